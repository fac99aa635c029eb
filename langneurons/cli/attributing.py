"""Commands that ask which neurons an answer depends on."""

from typing import Any

import langneurons as ln
from langneurons.cli.commands import command
from langneurons.cli.finding import Model, PatchOptions, keep
from langneurons.cli.measuring import AskedItems, Tasks, TaskSource, loaded_patches, named_task
from langneurons.errors import TaskError
from langneurons.settings import Attributing, Prompting, Run, TaskScoring, Testing
from langneurons.study.tables import ModelOptions


@command()
def confusion_point(
    model: Model,
    task: TaskSource,
    *,
    files: PatchOptions,
    asked_items: AskedItems,
    prompting: Prompting,
    attributing: Attributing,
    testing: Testing,
    run: Run,
    options: ModelOptions,
) -> None:
    """Find the neurons that push the token with which answers leave their language."""
    # What can be wrong with the small files is found before the model is loaded.
    _, _, by_name = loaded_patches(files)
    confusion: Any
    [confusion] = asked_items.load([("confusion", task)], prompting)

    def patches_of(language: str) -> "list[ln.patches.Patch]":
        return [patch for of_language in by_name.values() for patch in of_language(language)]

    settings: dict[str, Any] = {"attributing": attributing, "testing": testing, "run": run}
    settings["patches"] = patches_of if by_name else ()
    attribution = ln.analysis.confusion_point(options.load(model), confusion, **settings)
    keep(attribution, run, "attribution")
    print(attribution)


@command()
def task_gradient(
    model: Model,
    task: Tasks = None,
    *,
    asked_items: AskedItems,
    prompting: Prompting,
    task_scoring: TaskScoring,
    run: Run,
    options: ModelOptions,
) -> None:
    """Name the neurons that right answers to a task depend on, and those to a control, the second task, do not."""
    if not task or len(task) > 2:
        raise TaskError("Give --task once, or twice: the task, and then its control.")
    scored, *control = asked_items.load([named_task(each) for each in task], prompting)
    result = ln.analysis.task_gradient(
        options.load(model), scored, control[0] if control else None, task_scoring=task_scoring, run=run
    )
    if run.out is not None:
        print(f"Neurons: {result.neurons.save(run.out / 'neurons.task-gradient.json')}")
    keep(result, run, "task-gradient")
    print(result)
