"""Polysemanticity: what else the neurons carry, language against the labels of a task."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field

import langneurons as ln
from langneurons.settings import Controls, Probing
from langneurons.study.stages import NeuronStage, Piece, Plan, Step, Units, among, keyed, misnamed
from langneurons.study.stages.tasks import item_tokens, task_of, task_settings
from langneurons.study.tables import Grid, StudyConfig
from langneurons.study.work import Work


class PolysemanticityPart(Grid):
    """What else the neurons carry: language against the labels of a task."""

    old_names: ClassVar = {"items": "probing.max_items"}

    task: str = Field(description="which of the tasks")
    controls: Controls = Controls()
    probing: Probing = Probing()


class PolysemanticityStage(NeuronStage[PolysemanticityPart], name="polysemanticity", own="values"):
    """Shares of language and task in neurons."""

    def work_on(self, plan: Plan, part: PolysemanticityPart, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """One for each neuron set."""
        settings = keyed(part, "methods", "sets", "task")
        yield "", {**settings, "task": task_settings(plan, plan.config.tables("tasks")[part.task])}, []

    def mistakes_in(self, config: StudyConfig, where: str, part: PolysemanticityPart) -> Iterator[str]:
        """A task that does not exist, or is asked of a fine-tuned model."""
        yield from misnamed("task", where, [part.task], config.tables("tasks"))
        if config.tables("tasks")[part.task].tuned is not None:
            yield f"polysemanticity looks at the model as it is, and tasks.{part.task} asks a tuned one."

    def run(self, step: Step, part: PolysemanticityPart, work: Work) -> Any:
        """Read the neurons' values on the task's texts."""
        neurons, stats = work.neurons(step)
        task = task_of(work.config.tables("tasks")[part.task], step, work)
        options = {**self.settings(part, step, work), "stats": stats}
        return ln.polysemanticity(work.model(step), neurons, task, **options)

    def tokens(self, step: Step, part: PolysemanticityPart, config: StudyConfig, units: Units) -> float:
        """Every text once."""
        task = config.tables("tasks")[part.task]
        items = min(part.probing.max_items or task.items, task.items)
        return items * len(among(task.languages, step.settings["languages"])) * item_tokens(task)
