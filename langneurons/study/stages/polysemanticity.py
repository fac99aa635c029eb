"""Polysemanticity: what else the neurons carry, language against the labels of a task."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import Field

import langneurons as ln
from langneurons.models.description import ModelDescription
from langneurons.settings import Controls, Probing
from langneurons.study.stages import Cost, NeuronStage, Piece, Plan, Step, keyed, misnamed
from langneurons.study.stages.tasks import FEW, item_tokens, task_of, task_settings
from langneurons.study.tables import Grid, StudyConfig
from langneurons.study.work import Work


class PolysemanticityPart(Grid):
    """What else the neurons carry: language against the labels of a task."""

    moved: ClassVar = {"items": "probing.max_items"}

    task: str = Field(description="which of the tasks")
    controls: Controls = Controls()
    probing: Probing = Probing()


class PolysemanticityStage(
    NeuronStage[PolysemanticityPart],
    name="polysemanticity",
    table="polysemanticity",
    verb="polysemanticity",
    section="polysemanticity",
):
    """Shares of language and task in neurons."""

    def work_on(self, plan: Plan, part: PolysemanticityPart, about: tuple[str, Sequence[str]]) -> Iterator[Piece]:
        """One for each neuron set."""
        settings = keyed(part, "methods", "sets", "task")
        yield "", {**settings, "task": task_settings(plan, plan.config.tables("tasks")[part.task])}, []

    def mistakes_in(self, config: StudyConfig, where: str, part: PolysemanticityPart) -> Iterator[str]:
        """A task that does not exist, or is asked of a fine-tuned model."""
        yield from misnamed("task", where, [part.task], config.tables("tasks"))
        if config.tables("tasks")[part.task].tuned is not None:
            yield f"polysemanticity looks at the model as it is, and tasks.{part.task} asks a tuned one."

    def run(self, step: Step, work: Work) -> None:
        """Read the neurons' values on the task's texts."""
        neurons, stats = work.neurons(step)
        part = self.part_of(work.config, step)
        ln.polysemanticity(
            work.model(step),
            neurons,
            task_of(work.config.tables("tasks")[part.task], step, work),
            controls=work.matched(part.controls, stats),
            probing=part.probing,
            run=work.own(step, "values"),
        ).save(work.result(step))

    def cost(self, step: Step, config: StudyConfig, model: ModelDescription | None) -> Cost:
        """Every text once."""
        part = self.part_of(config, step)
        each = item_tokens(config.tables("tasks")[part.task])
        return Cost(step.name, (part.probing.max_items or FEW) * each * len(step.settings["languages"]))
