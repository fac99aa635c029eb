"""evaluate(): tasks in several languages, unpatched, patched, and with the same patch on control neurons."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from langneurons.corpora.loading import distinct
from langneurons.effects.estimation import difference
from langneurons.errors import LanguageError, PatchError, TaskError, unknown
from langneurons.evaluation.evaluation import UNPATCHED, Evaluation
from langneurons.evaluation.measuring import Job, measure_jobs
from langneurons.models import view
from langneurons.patches.patch import Patch, control_patches
from langneurons.recording.statistics import ActivationStats
from langneurons.run import Executor
from langneurons.settings import Controls, Testing
from langneurons.tasks.task import Task

Written = Patch | Sequence[Patch]
Patches = Mapping[str, Written | Callable[[str], Written]]
CHANGES = ["task", "protocol", "metric", "patch", "language", "draw", "estimate"]
ROWS = ["task", "protocol", "patch", "language", "item", "cluster", "metric", "value", "prediction", "gold"]


def evaluate(
    model: torch.nn.Module,
    tasks: Task | Sequence[Task],
    languages: Iterable[str] | None = None,
    patches: Patches | None = None,
    head: Any = None,
    controls: int = 0,
    stats: ActivationStats | Sequence[ActivationStats] | None = None,
    delta: float = 0.01,
    seed: int = 0,
    resamples: int = 5000,
    batch_size: int = 8,
    out: str | Path | None = None,
    progress: bool = True,
    executor: str | Executor | None = None,
) -> Evaluation:
    """Score a model on tasks, per language, without and with patches.

    Args:
        model: From ``load_model``.
        tasks: What to score it on, such as ``ln.XNLI.load(...)``.
        languages: Which; None takes all that every task has.
        patches: Name -> a patch, or several written together, or a function of the evaluated language that makes them,
            because neurons and values usually change with it:
            ``{"mean": lambda language: ln.SetTo(neurons[language], stats[language].mean())}``.
        head: A classification head: tasks that can be answered by one are.
        controls: Draws of matched controls a patch and language: the same patch on as many other neurons of the same
            layers and, with ``stats``, magnitudes. SiteValues are read at the control's own neurons.
        stats: Statistics of the same model to match controls by; a sequence where patches are at several sites.
        delta: A change below this counts as none: 0.01 is one point of accuracy or F1.
        seed: Of the controls and the resampling.
        resamples: Bootstrap and sign-flip samples.
        batch_size: Texts a forward.
        out: Folder that keeps every condition measured; the same call goes on there.
        progress: Show a progress bar on standard error.
        executor: Where to run, as for ``ln.record``.

    Returns:
        Rows, scores beside their references, and paired effects against the unpatched model.

    Raises:
        TaskError: If no task is given, or two have the same name and protocol.
        LanguageError: If a task does not have a language.
        PatchError: If a patch does not fit, or does not depend on neurons that a control could replace.
        NeuronSetError: If a layer has too few neurons for a control.

    Example:
        >>> prompts = ln.tasks.Generation.of(ln.load_corpus("babel", ["en", "hi"]), documents=4, max_new_tokens=4)
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> silenced = {"zero": lambda language: ln.SetTo(neurons[language], 0.0)}
        >>> found = ln.evaluate(model, prompts, ["en", "hi"], silenced, progress=False)
        >>> found.scores["patch"].unique().tolist()
        ['unpatched', 'zero']
    """
    Testing(margin=delta, resamples=resamples)
    how = Controls(draws=controls, stats=stats, seed=seed)
    asked = _asked(tasks, head)
    chosen = chosen_languages(asked, languages)
    written = written_patches(patches or {}, chosen)
    drawn = control_patches(written, how)
    conditions = {(UNPATCHED, language): [] for language in chosen} | written | drawn
    jobs = {
        (index, *name): job
        for index, task in enumerate(asked)
        for name, job in task_jobs(model, task, conditions, batch_size).items()
    }
    references = _references(asked, chosen)
    rows: dict[tuple, pd.DataFrame] = {}
    changes: list[tuple] = []

    def keep(key: tuple, found: pd.DataFrame) -> None:
        # Of a control only its effect is kept: its rows are many, and only that is used.
        index, patch, language, *draw = key
        task = asked[index]
        if not draw:
            rows[key] = found
            return
        about = (task.name, task.protocol)
        baseline = rows[index, UNPATCHED, language]
        for metric in task.metrics:
            changes.append((*about, metric, patch, language, *draw, difference(found, baseline, metric, "row")))

    measure_jobs(model, jobs, out, progress, keep, executor)
    seen = view(model)
    return Evaluation(
        rows=pd.concat([_rows(asked[key[0]], key[1], key[2], found) for key, found in rows.items()], ignore_index=True),
        references=references,
        controls=pd.DataFrame(changes, columns=CHANGES) if controls else None,
        settings={
            "model": f"{seen.name} ({seen.fingerprint[:8]}, {seen.backend})",
            "patches": {
                f"{patch} {language}": [repr(one) for one in parts] for (patch, language), parts in written.items()
            },
            "tasks": {f"{task.name} {task.protocol}": task.fingerprint for task in asked},
            "control_draws": controls,
            "options": {"margin": delta, "seed": seed, "resamples": resamples},
        },
    )


def _asked(tasks: Any, head: Any) -> list[Task]:
    given = list(tasks) if isinstance(tasks, Sequence) else [tasks]
    for task in given:
        if not isinstance(task, Task):
            raise TaskError(f"A task is an XNLI, XQuAD, Generation or another Task, not {type(task).__name__}.")
    asked = given if head is None else [_by_head(task, head) for task in given]
    if head is not None and all(one is task for one, task in zip(asked, given, strict=True)):
        raise TaskError("A head was given, but no task is one that a head can answer.")
    if not asked:
        raise TaskError("No task was given: give at least one, such as ln.XNLI.load(...).")
    names = [(task.name, task.protocol) for task in asked]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TaskError(f"Two tasks are called {' '.join(next(iter(twice)))}: evaluate them apart.")
    return asked


def _by_head(task: Any, head: Any) -> Task:
    return task.by_head(head) if hasattr(task, "by_head") else task


def chosen_languages(tasks: Sequence[Task], languages: Iterable[str] | None) -> list[str]:
    """The languages to evaluate: those given, or all that the tasks share.

    Raises:
        LanguageError: If a task lacks one, or they share none.
    """
    if languages is None:
        shared = [name for name in tasks[0].languages if all(name in task.languages for task in tasks)]
        if not shared:
            raise LanguageError("The tasks have no language in common: give languages=, or evaluate them apart.")
        return shared
    chosen = distinct(languages)
    for language, task in product(chosen, tasks):
        if language not in task.languages:
            raise LanguageError(f"Task {task.name!r}: {unknown('language', language, task.languages)}")
    return chosen


def written_patches(patches: Mapping[str, Any], languages: Sequence[str]) -> dict[tuple[str, str], list[Patch]]:
    """Make the patches of every name and language, before anything is measured.

    Args:
        patches: As for ``evaluate``.
        languages: Which.

    Returns:
        (name, language) -> the patches written together.

    Raises:
        PatchError: If something else than patches is given.
    """
    if not isinstance(patches, Mapping):
        raise PatchError(f"patches maps names to patches, such as {{'zero': patch}}, not {type(patches).__name__}.")
    if UNPATCHED in patches:
        raise PatchError(f"{UNPATCHED!r} is the model without patches: give the patch another name.")
    return {
        (name, language): _parts(name, given(language) if callable(given) else given)
        for name, given in patches.items()
        for language in languages
    }


def _parts(name: str, given: Any) -> list[Patch]:
    parts = list(given) if isinstance(given, Sequence) else [given]
    for part in parts:
        if not isinstance(part, Patch):
            raise PatchError(
                f"{name!r} should give a patch such as ln.SetTo, or a list of them, not {type(part).__name__}."
            )
    if not parts:
        raise PatchError(f"{name!r} gives no patch: the unpatched model is measured anyway.")
    return parts


def task_jobs(
    model: torch.nn.Module, task: Task, conditions: Mapping[tuple, Sequence[Patch]], batch_size: int
) -> dict[tuple, Job]:
    """Measuring a task under conditions, whose names have the language in the second place."""
    about = task.fingerprint
    return {
        name: Job(
            patches, f"{about} {name[1]}", partial(measured_rows, task, model, name[1], batch_size), task.generates
        )
        for name, patches in conditions.items()
    }


def measured_rows(task: Task, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
    """Measure a task once, and check what it gives.

    Args:
        task: What is measured.
        model: From ``load_model``.
        language: Which of the task's.
        batch_size: Texts a forward.

    Raises:
        TaskError: If a column is missing.
    """
    rows = task.measure(model, language, batch_size)
    for column in ("item", "cluster", "prediction", "gold", *task.metrics):
        if column not in rows.columns:
            raise TaskError(f"Task {task.name!r} gave rows without {column!r}; they have {', '.join(rows.columns)}.")
    return rows


def _rows(task: Task, patch: str, language: str, rows: pd.DataFrame) -> pd.DataFrame:
    """One row an item and metric."""
    kept = rows.loc[:, ["item", "cluster", "prediction", "gold"]].astype(str)  # ids of one task may be numbers
    about = {"task": task.name, "protocol": task.protocol, "patch": patch, "language": language}
    parts = [kept.assign(**about, metric=metric, value=rows[metric].astype(float)) for metric in task.metrics]
    return pd.concat(parts, ignore_index=True).reindex(columns=ROWS)


def _references(tasks: Sequence[Task], languages: Sequence[str]) -> pd.DataFrame:
    """What each task's main metric is worth without the model: task, protocol, metric, language, reference, value."""
    rows = [
        (task.name, task.protocol, task.metrics[0], language, name, value)
        for task, language in product(tasks, languages)
        for name, value in task.references(language).items()
    ]
    return pd.DataFrame(rows, columns=["task", "protocol", "metric", "language", "reference", "value"])
