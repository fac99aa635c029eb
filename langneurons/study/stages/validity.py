"""Validity: is the score real? Split halves of the text, and nulls in which there is no language to find."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

import langneurons as ln
from langneurons.errors import StatisticsError
from langneurons.settings import Count
from langneurons.study.stages import Plan, Stage, Step, Units, keyed, misnamed
from langneurons.study.stages.record import recorded_bytes, recording_for
from langneurons.study.tables import Grid, StudyConfig
from langneurons.study.wording import make_method
from langneurons.study.work import Work


class ValidityPart(Grid):
    """Is the score real? Split halves of the text, and nulls in which there is no language to find."""

    splits: int = Field(20, ge=2, le=10**4, description="random halvings of the text")
    nulls: list[str] = Field(["shuffled"], description="shuffled, source, topic; each is a recording of its own")
    tokens: Count | None = Field(None, description="of each label of a null; as many as the smallest has")


class NullsStage(Stage[ValidityPart], name="nulls", table="validity"):
    """Recordings of texts with labels that say nothing about language."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each language set of which methods are checked."""
        for part in self.parts(plan.config).values():
            for language_set, languages in plan.config.sets.items():
                methods = [each for name, each in plan.config.methods.items() if part.covers(name, language_set)]
                if part.nulls and methods:
                    recording = recording_for(plan.config, methods)
                    recording = recording.model_copy(update={"tokens_per_language": part.tokens})
                    settings = plan.text_settings(model) | keyed(recording)
                    settings |= {"languages": languages, "nulls": part.nulls}
                    yield Step(self, settings, model=model, language_set=language_set)

    def mistakes(self, config: StudyConfig) -> Iterator[str]:
        """None of its own: the table is that of ``validity``."""
        return iter(())

    def run(self, step: Step, part: ValidityPart, work: Work) -> Any:
        """Record every null in two halves."""
        from langneurons.analysis.validity import record_nulls

        text = work.ordered_text(heldout=False).select(step.settings["languages"])
        about = {name: tuple(step.settings[name]) for name in ("sites", "also")}
        about |= {"tokens_per_language": step.settings["tokens_per_language"]}
        recording, run = work.config.recording.model_copy(update=about), work.run(work.result(step))
        record_nulls(work.model(step), text, which=part.nulls, seed=work.config.seed, recording=recording, run=run)

    def tokens(self, step: Step, part: ValidityPart, config: StudyConfig, units: Units) -> float:
        """One forward of the real text's and of every null's tokens."""
        tokens = (step.settings["tokens_per_language"] or 0) * len(step.settings["languages"])
        return tokens * (1 + len(step.settings["nulls"]))

    def disk(self, step: Step, part: ValidityPart, config: StudyConfig, units: Units) -> int:
        """Two halves of the real text and of every null."""
        return 2 * (1 + len(step.settings["nulls"])) * recorded_bytes(config, step, units)


class ValidityStage(Stage[ValidityPart], name="validity", table="validity", section="validity"):
    """Split halves and nulls of each method, in one table."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each method in each language set."""
        config = plan.config
        for part in self.parts(config).values():
            for language_set, languages in config.sets.items():
                nulls = [plan.steps[name] for name in (f"nulls/{model}/{language_set}",) if name in plan.steps]
                for method, settings in config.methods.items():
                    if part.covers(method, language_set):
                        about = {**settings.model_dump(exclude={"published_as"}), "splits": part.splits}
                        about |= {"languages": languages, "seed": config.seed}
                        yield Step(self, about, (plan.of("record", model), *nulls), model, language_set, method)

    def mistakes_in(self, config: StudyConfig, where: str, part: ValidityPart) -> Iterator[str]:
        """Unknown nulls, and methods whose scores other recordings cannot give."""
        from langneurons.analysis.validity import NULLS

        yield from misnamed("null", where, part.nulls, NULLS)
        for name in config.methods if part.methods is None else part.methods:
            if config.methods[name].published:
                yield (
                    f"validity needs scores of other recordings, and methods.{name} reads published statistics: name "
                    "its methods (own-p90 is what published-act-prob-90p is but for its batches)."
                )

    def run(self, step: Step, part: ValidityPart, work: Work) -> Any:
        """Check one method."""
        from langneurons.analysis.validity import Evidence, nulls_of, split_half, validity_table

        part_of_method = work.config.methods[step.method]
        method = make_method(part_of_method.method, part_of_method.options)
        halves = _halves(work.result(step.input("nulls")), part_of_method.site) if step.reads("nulls") else {}
        whole = {name: first + second for name, (first, second) in halves.items()}
        nulls = nulls_of(method, whole.pop("real"), whole) if whole else None
        stats = work.statistics(step.input("record")).select(step.settings["languages"])
        stats = stats if part_of_method.site is None else stats.at(part_of_method.site)
        try:
            reliability = split_half(method, stats, step.settings["splits"], work.config.seed)
        except StatisticsError:  # the folds of one recording hold counts and sums only
            if not halves:
                raise
            reliability = split_half(method, halves["real"], seed=work.config.seed)
        evidence = Evidence(f"{step.method}, {step.language_set}", split_half=reliability, nulls=nulls)
        return validity_table([evidence])


def _halves(folder: Path, site: str | None) -> "dict[str, tuple[ln.ActivationStats, ln.ActivationStats]]":
    """The two recordings of each real or null corpus, by its name."""
    recordings = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        first, second = (ln.ActivationStats.load(place / name) for name in ("first", "second"))
        recordings[place.name] = (first, second) if site is None else (first.at(site), second.at(site))
    return recordings
