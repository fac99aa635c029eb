"""Survival: do neurons respond to language or to script, to language or to words? Text is altered, and named again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

import langneurons as ln
from langneurons.settings import Altering, Count
from langneurons.study.stages import Plan, Stage, Step, Units, keyed
from langneurons.study.stages.record import recorded_bytes, recording_for
from langneurons.study.tables import Grid, StudyConfig
from langneurons.study.wording import make_method
from langneurons.study.work import Work

FIRST, SECOND = "first", "second"


class SurvivalPart(Grid):
    """Language or script, language or words: how many neurons stay when text is altered."""

    tokens: Count | None = Field(None, description="of each language in each condition; as many as the smallest has")
    altering: Altering = Altering()


class AlteredStage(Stage[SurvivalPart], name="altered", table="survival"):
    """Recordings of two halves of the text, the second also altered."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each language set of which methods are asked."""
        for part in self.parts(plan.config).values():
            for language_set, languages in plan.config.sets.items():
                if methods := _methods(plan.config, part, language_set):
                    recording = recording_for(plan.config, [plan.config.methods[name] for name in methods])
                    recording = recording.model_copy(update={"tokens_per_language": part.tokens})
                    settings = plan.text_settings(model) | keyed(recording) | keyed(part.altering, "random_share")
                    yield Step(self, settings | {"languages": languages}, model=model, language_set=language_set)

    def mistakes(self, config: StudyConfig) -> Iterator[str]:
        """None of its own: the table is that of ``survival``."""
        return iter(())

    def run(self, step: Step, part: SurvivalPart, work: Work) -> Any:
        """Record every part of every condition."""
        from langneurons.analysis.validity import record_altered

        text = work.ordered_text(heldout=False).select(step.settings["languages"])
        about = {name: tuple(step.settings[name]) for name in ("sites", "also")}
        about |= {"tokens_per_language": step.settings["tokens_per_language"]}
        groups = {
            "altering": part.altering,
            "recording": work.config.recording.model_copy(update=about),
            "run": work.run(work.result(step)),
        }
        record_altered(work.model(step), text, seed=work.config.seed, **groups)

    def tokens(self, step: Step, part: SurvivalPart, config: StudyConfig, units: Units) -> float:
        """One forward of the tokens of two halves and of every condition, at most."""
        tokens = (step.settings["tokens_per_language"] or 0) * len(step.settings["languages"])
        return tokens * (2 + len(step.settings["conditions"]))

    def disk(self, step: Step, part: SurvivalPart, config: StudyConfig, units: Units) -> int:
        """Every part of two halves and of every condition, at most."""
        recordings = (2 + len(step.settings["conditions"])) * step.settings["parts"]
        return recordings * recorded_bytes(config, step, units)


class SurvivalStage(Stage[SurvivalPart], name="survival", table="survival", section="survival"):
    """How many neurons of every method stay, in one table."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each language set."""
        config = plan.config
        for part in self.parts(config).values():
            for language_set in config.sets:
                if methods := _methods(config, part, language_set):
                    about = {name: config.methods[name].model_dump(exclude={"published_as"}) for name in methods}
                    settings = {"methods": about, "random_share": part.altering.random_share}
                    altered = plan.of("altered", model, language_set)
                    yield Step(self, settings, (altered,), model, language_set)

    def mistakes_in(self, config: StudyConfig, where: str, part: SurvivalPart) -> Iterator[str]:
        """Methods whose scores other recordings cannot give."""
        for name in part.methods or ():
            if name in config.methods and config.methods[name].published:
                yield f"{where} names neurons in other recordings, and methods.{name} reads published statistics."

    def run(self, step: Step, part: SurvivalPart, work: Work) -> Any:
        """Name neurons in every condition."""
        from langneurons.analysis.validity import AlteredRecordings, Survival, survival_of

        folder, tables = work.result(step.input("altered")), []
        for name in step.settings["methods"]:
            of_method = work.config.methods[name]
            conditions = {
                condition: _parts(folder / condition, of_method.site)
                for condition in (FIRST, SECOND, *part.altering.conditions)
                if (folder / condition).is_dir()  # those that alter no language are left out
            }
            recordings = AlteredRecordings(conditions.pop(FIRST), conditions.pop(SECOND), conditions)
            methods = {name: make_method(of_method.method, of_method.options)}
            tables.append(survival_of(methods, recordings, step.settings["random_share"]))
        return Survival.joined(tables)


def _methods(config: StudyConfig, part: SurvivalPart, language_set: str) -> list[str]:
    """The methods that are asked: where none are named, all that do not read published statistics."""
    covered = [name for name in config.methods if part.covers(name, language_set)]
    return [name for name in covered if not config.methods[name].published]


def _parts(folder: Path, site: str | None) -> "list[ln.ActivationStats]":
    """The parts of one condition, in their order."""
    from langneurons.analysis.validity.altering import load_parts

    parts = load_parts(folder)
    return parts if site is None else [part.at(site) for part in parts]
