"""Recording: what every neuron does in every language, also as it was published; and each language's neurons in it."""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import Field

import langneurons as ln
from langneurons.settings import ContextLength, Count, Recording
from langneurons.study.stages import Plan, Stage, Step, Units, keyed
from langneurons.study.tables import MethodPart, Part, StudyConfig
from langneurons.study.wording import make_method
from langneurons.study.work import Work

BYTES_PER_NEURON = 800  # of one language's statistics at a site, at most
PUBLISHED_BYTES_PER_NEURON = 44  # of the published statistics: eleven single-precision numbers
BACKWARD = 3  # a token that is also gone back through, in forwards


class RecordStage(Stage[Recording], name="record", verb="record", section="stats"):
    """Activation statistics of all languages; their settings are the study's ``recording``."""

    def part_of(self, config: StudyConfig, step: Step) -> Recording:
        """The study's ``recording``."""
        return config.recording

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each model."""
        methods = [part for part in plan.config.methods.values() if not part.published]
        recording = keyed(recording_for(plan.config, methods)) | {"languages": plan.config.languages}
        yield Step(self, plan.text_settings(model) | recording, model=model)

    def run(self, step: Step, part: Recording, work: Work) -> Any:
        """Record the text that is not held out."""
        recording = part.model_copy(update={"also": tuple(step.settings["also"])})
        run = work.run(work.result(step))
        ln.record(work.model(step), work.text(heldout=False), recording=recording, run=run)

    def tokens(self, step: Step, part: Recording, config: StudyConfig, units: Units) -> float:
        """One forward of every language's tokens, and a backward where gradients are recorded."""
        tokens = (part.tokens_per_language or 0) * len(step.settings["languages"])
        return tokens * (1 + BACKWARD * ("gradient" in step.settings["also"]))

    def disk(self, step: Step, part: Recording, config: StudyConfig, units: Units) -> int:
        """The statistics of every site."""
        return recorded_bytes(config, step, units)


class PublishedStatisticsPart(Part):
    """The statistics as Mondal et al. 2025 compute them; only if a method or patch is called published."""

    tokens: Count | None = Field(
        None, description="each of two passes reads a language; recording.tokens_per_language by default"
    )
    context_length: ContextLength | None = Field(None, description="recording.context_length by default")
    batch_size: Count = Field(4, description="chunks per batch, on which the percentiles depend")


class PublishedStage(Stage[PublishedStatisticsPart], name="published", table="published_statistics", always=True):
    """The published statistics, where a method or a patch reads them."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each model, if anything reads it."""
        config = plan.config
        if plan.published(model, *config.methods.values(), *config.patches.values()):
            (part,) = self.parts(config).values()
            settings = {
                "languages": config.languages,
                "tokens": part.tokens or config.recording.tokens_per_language,
                "context_length": part.context_length or config.recording.context_length,
                "batch_size": part.batch_size,
            }
            yield Step(self, plan.text_settings(model) | settings, model=model)

    def run(self, step: Step, part: PublishedStatisticsPart, work: Work) -> Any:
        """Compute them as the paper's code does."""
        text, seed, about = work.text(heldout=False), work.config.seed, step.settings
        recording = Recording(tokens_per_language=about["tokens"], context_length=about["context_length"])
        run = work.run().model_copy(update={"batch_size": about["batch_size"]})
        return ln.replication.published_statistics(work.model(step), text, seed=seed, recording=recording, run=run)

    def tokens(self, step: Step, part: PublishedStatisticsPart, config: StudyConfig, units: Units) -> float:
        """Two forwards of every language's tokens."""
        return 2 * (step.settings["tokens"] or 0) * len(step.settings["languages"])

    def disk(self, step: Step, part: PublishedStatisticsPart, config: StudyConfig, units: Units) -> int:
        """The published statistics of ``pre``."""
        return len(step.settings["languages"]) * units.get("pre", 0) * PUBLISHED_BYTES_PER_NEURON


class IdentifyStage(Stage[MethodPart], name="identify", section="neurons"):
    """Each language's neurons, by every method in every language set; their settings are the study's ``methods``."""

    def part_of(self, config: StudyConfig, step: Step) -> MethodPart:
        """The method."""
        return config.methods[step.method]

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each method in each language set."""
        for language_set, languages in plan.config.sets.items():
            for method, part in plan.config.methods.items():
                settings = {**part.model_dump(exclude={"published_as"}), "languages": languages}
                read = plan.of("published" if part.published else "record", model)
                yield Step(self, settings, (read,), model, language_set, method)

    def run(self, step: Step, part: MethodPart, work: Work) -> Any:
        """Identify neurons in recorded or published statistics."""
        languages, method = step.settings["languages"], make_method(part.method, part.options)
        if (published := work.published(step)) is not None:
            neurons = method(published, languages=languages)
        else:
            stats = work.statistics(step.input("record"))
            stats = stats if part.site is None else stats.at(part.site)
            neurons = method.identify(stats.select(languages))
        neurons.save(work.result(step) / "neurons.json")


def recording_for(config: StudyConfig, methods: Iterable[MethodPart]) -> Recording:
    """What is recorded, with all that some methods need."""
    needed = {each for part in methods for each in make_method(part.method, part.options).needs}
    return config.recording.model_copy(update={"also": tuple(sorted({*config.recording.also, *needed}))})


def recorded_bytes(config: StudyConfig, step: Step, units: Units) -> int:
    """Bytes of a recording on disk, at most."""
    neurons = sum(units.get(site, 0) for site in config.recording.sites)
    return neurons * BYTES_PER_NEURON * len(step.settings["languages"])
