"""Profiles: the pages of the clearest neurons."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

import langneurons as ln
from langneurons.settings import Profiling
from langneurons.study.stages import Plan, Stage, Step, Units, keyed
from langneurons.study.tables import Part, StudyConfig
from langneurons.study.work import Work

DOCUMENTS = 2000  # that are looked through per language, where all are


class ReportPart(Part):
    """The page that a study ends with."""

    profiles: int = Field(
        0, ge=0, le=10**4, description="neurons with a page, the clearest of the first method and set"
    )
    profiling: Profiling = Profiling()


class ProfileStage(
    Stage[ReportPart], name="profile", version=3, table="report", always=True, verb="profile", section="profiles"
):
    """Profiles of neurons; a report has room for those of the first method in the first language set."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each model."""
        config = plan.config
        (part,) = self.parts(config).values()
        place = (model, next(iter(config.sets)), next(iter(config.methods)))
        settings = {"neurons": part.profiles, "languages": config.sets[place[1]], "seed": config.seed}
        if part.profiles:
            inputs = plan.of("identify", *place), plan.of("record", model)
            yield Step(self, settings | {"profiling": keyed(part.profiling)}, inputs, *place)

    def run(self, step: Step, part: ReportPart, work: Work) -> Any:
        """Look at the clearest neurons."""
        neurons, stats = work.neurons(step)
        stats = stats.at(neurons.site)
        clearest = neurons.clearest(stats, min(step.settings["neurons"], len(neurons)))
        text = work.text(heldout=False).select(step.settings["languages"])
        return ln.profile(work.model(step), clearest, text, stats, profiling=part.profiling, run=work.run())

    def tokens(self, step: Step, part: ReportPart, config: StudyConfig, units: Units) -> float:
        """The documents that are looked through."""
        documents = (part.profiling.documents or DOCUMENTS) * len(step.settings["languages"])
        return documents * part.profiling.context_length
