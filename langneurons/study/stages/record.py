"""Recording: what every neuron does in every language, and the statistics as they were published."""

from collections.abc import Iterable, Iterator

from pydantic import Field

import langneurons as ln
from langneurons.models.description import ModelDescription
from langneurons.replication.statistics import published_statistics
from langneurons.settings import Count, Recording
from langneurons.study.stages import Cost, Plan, Stage, Step, keyed
from langneurons.study.tables import MethodPart, Part, StudyConfig
from langneurons.study.wording import make_method
from langneurons.study.work import Work

BYTES_PER_NEURON = 800  # of one language's statistics at a site, at most
PUBLISHED_BYTES_PER_NEURON = 44  # of the published statistics: eleven single-precision numbers
BACKWARD = 3  # a token that is also gone back through, in forwards


class RecordStage(Stage[Recording], name="record", verb="record", section="stats"):
    """Activation statistics of all languages; their settings are the study's ``recording``."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each model."""
        methods = [part for part in plan.config.methods.values() if not part.published]
        settings = {
            **plan.model_settings(model),
            **plan.text_settings(),
            **keyed(recording_for(plan.config, methods)),
            "languages": plan.config.languages,
        }
        yield Step(self, settings, model=model)

    def run(self, step: Step, work: Work) -> None:
        """Record the text that is not held out."""
        recording = work.config.recording.model_copy(update={"also": tuple(step.settings["also"])})
        run = work.run(work.result(step))
        ln.record(work.model(step), work.text(heldout=False), recording=recording, run=run)

    def cost(self, step: Step, config: StudyConfig, model: ModelDescription | None) -> Cost:
        """One forward of every language's tokens, and a backward where gradients are recorded."""
        tokens = (config.recording.tokens_per_language or 0) * len(step.settings["languages"])
        passes = 1 + BACKWARD * ("gradient" in step.settings["also"])
        return Cost(step.name, tokens, passes, disk=disk(config, step, model))


class PublishedStatisticsPart(Part):
    """The statistics as Mondal et al. 2025 compute them; only if a method or patch is called published."""

    tokens: Count | None = Field(
        None, description="each of two passes reads a language; recording.tokens_per_language by default"
    )
    context_length: Count | None = Field(None, description="recording.context_length by default")
    batch_size: Count = Field(4, description="chunks a batch, on which the percentiles depend")


class PublishedStage(Stage[PublishedStatisticsPart], name="published", table="published_statistics", always=True):
    """The published statistics, where a method or a patch reads them."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each model, if anything reads it."""
        config = plan.config
        if any(part.published for part in (*config.methods.values(), *config.patches.values())):
            (part,) = self.parts(config).values()
            settings = {
                **plan.model_settings(model),
                **plan.text_settings(),
                "languages": config.languages,
                "tokens": part.tokens or config.recording.tokens_per_language,
                "context_length": part.context_length or config.recording.context_length,
                "batch_size": part.batch_size,
            }
            yield Step(self, settings, model=model)

    def run(self, step: Step, work: Work) -> None:
        """Compute them as the paper's code does."""
        sizes = [step.settings[name] for name in ("tokens", "context_length", "batch_size")]
        run = work.run()
        options = {"seed": work.config.seed, "progress": bool(run.progress), "executor": run.executor}
        text = work.text(heldout=False)
        published_statistics(work.model(step), text, None, *sizes, **options).save(work.result(step))

    def cost(self, step: Step, config: StudyConfig, model: ModelDescription | None) -> Cost:
        """Two forwards of every language's tokens."""
        languages = len(step.settings["languages"])
        neurons = model.layers * model.neurons.get("pre", model.neurons["act"]) if model else 0
        tokens = (step.settings["tokens"] or 0) * languages
        return Cost(step.name, tokens, 2, disk=languages * neurons * PUBLISHED_BYTES_PER_NEURON)


def recording_for(config: StudyConfig, methods: Iterable[MethodPart]) -> Recording:
    """What is recorded, with all that some methods need."""
    needed = {each for part in methods for each in make_method(part.method, part.options).needs}
    return config.recording.model_copy(update={"also": tuple(sorted({*config.recording.also, *needed}))})


def disk(config: StudyConfig, step: Step, model: ModelDescription | None, recordings: int = 1) -> int:
    """Bytes of recordings on disk."""
    if model is None:
        return 0
    neurons = sum(model.layers * model.neurons.get(site, 0) for site in config.recording.sites)
    return recordings * neurons * BYTES_PER_NEURON * len(step.settings["languages"])
