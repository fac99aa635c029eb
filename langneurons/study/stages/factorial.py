"""Factorial: operation x site x protocol, to see which choice turns the sign of an effect around."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

import langneurons as ln
from langneurons.corpora.languages import spelled
from langneurons.settings import Controls
from langneurons.study.stages import NeuronStage, Piece, Plan, Step, Units, among, keyed, misnamed
from langneurons.study.stages.tasks import TaskPart, asked_tokens, patchable, task_of, task_settings, tuned_inputs
from langneurons.study.tables import Grid, Languages, Names, StudyConfig
from langneurons.study.wording import OPERATIONS
from langneurons.study.work import Work


class FactorialPart(Grid):
    """Operation x site x protocol: which choice turns the sign of an effect around?"""

    tasks: Names = Field(min_length=1, description="which of the tasks, one per protocol")
    languages: Languages | None = Field(None, description="of the language set; those that the tasks have by default")
    operations: Names = Field(list(OPERATIONS), min_length=1)
    sites: Names | None = Field(None, description="recorded sites; all by default")
    controls: Controls = Controls(draws=0)


class FactorialStage(NeuronStage[FactorialPart], name="factorial", judged=True):
    """Factorial experiments."""

    def work_on(self, plan: Plan, part: FactorialPart, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """One, if it is about languages of the set."""
        if among(part.languages, languages):
            tasks = _tasks(plan.config, part)
            settings = {
                **keyed(part, "methods", "sets", "languages"),
                "of": part.languages,
                "tasks": {name: task_settings(plan, task) for name, task in tasks.items()},
                "sites": part.sites or list(plan.config.recording.sites),
            }
            yield "", settings, tuned_inputs(model, *tasks.values())

    def mistakes_in(self, config: StudyConfig, where: str, part: FactorialPart) -> Iterator[str]:
        """Unknown tasks, operations and sites."""
        yield from misnamed("task", where, part.tasks, config.tables("tasks"))
        yield from misnamed("operation", where, part.operations, OPERATIONS)
        yield from misnamed("site", where, part.sites, config.recording.sites)

    def run(self, step: Step, part: FactorialPart, work: Work) -> Any:
        """Patch each language's neurons in every way and place, and ask in every way."""
        neurons, stats = work.neurons(step)
        tasks = [task_of(task, step, work) for task in _tasks(work.config, part).values()]
        common = [code for code in step.settings["languages"] if all(spelled(code, task.languages) for task in tasks)]
        languages = patchable(among(part.languages, common), neurons)
        design = {"languages": languages, "operations": part.operations, "sites": step.settings["sites"]}
        options = {**self.settings(part, step, work), **design}
        return ln.factorial(work.model(step), neurons, stats, tasks, **options)

    def load(self, folder: Path) -> Any:
        """The factorial, not the evaluation that it is saved with."""
        from langneurons.evaluation.results import Factorial

        return Factorial.load(folder)

    def tokens(self, step: Step, part: FactorialPart, config: StudyConfig, units: Units) -> float:
        """Every item of every task unpatched, and in every cell with its controls."""
        conditions = 1 + len(part.operations) * len(step.settings["sites"]) * (1 + part.controls.draws)
        languages = among(part.languages, step.settings["languages"])
        return conditions * sum(asked_tokens(task, languages) for task in _tasks(config, part).values())


def _tasks(config: StudyConfig, part: FactorialPart) -> dict[str, TaskPart]:
    return {name: config.tables("tasks")[name] for name in part.tasks}
