"""Tasks in several languages: unpatched, patched, with the same patch on control neurons, and every way crossed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Unpack

import numpy as np
import pandas as pd
import torch

from langneurons import storage
from langneurons.corpora.languages import distinct, spelled
from langneurons.effects.estimation import difference
from langneurons.errors import LanguageError, PatchError, TaskError, check_text, unknown
from langneurons.evaluation.incomplete import both_scored, complete
from langneurons.evaluation.measuring import BATCH_SIZE, Job, measure_jobs
from langneurons.evaluation.results import AT, UNPATCHED, Evaluation, Factorial, design_of
from langneurons.identification.neurons import NeuronSet, report_balance, united
from langneurons.models import view
from langneurons.patches.patch import Add, DiffMean, Patch, Scale, SetTo, control_patches
from langneurons.recording.statistics import ActivationStats
from langneurons.run import alone_in_out
from langneurons.settings import (
    ControlledOptions,
    Controls,
    MatchingOptions,
    MeasuringOptions,
    Prompting,
    Run,
    Testing,
    controls_of,
    with_options,
)
from langneurons.tasks.heads import Head
from langneurons.tasks.task import Task

Patches = Mapping[str, Patch | Sequence[Patch] | Callable[[str], Patch | Sequence[Patch]]]
CHANGES = ["task", "protocol", "metric", "patch", "language", "draw", "estimate"]
ROWS = ["task", "protocol", "patch", "language", "item", "cluster", "metric", "value", "prediction", "gold"]

MakePatch = Callable[[NeuronSet, ActivationStats, str], Patch]
# Each turns a language up in its own way, with values of that language.
OPERATIONS: dict[str, MakePatch] = {
    "set": lambda neurons, stats, language: SetTo(neurons, stats[language].mean()),
    "add": lambda neurons, stats, language: Add(neurons, stats[language].mean()),
    "scale": lambda neurons, stats, language: Scale(neurons, 2.0),
    "diffmean": lambda neurons, stats, language: DiffMean(neurons, stats, language),
}


@alone_in_out
def evaluate(
    model: torch.nn.Module,
    tasks: Task | Sequence[Task],
    languages: Iterable[str] | None = None,
    patches: Patches | None = None,
    *,
    head: Head | None = None,
    controls: int | Controls = 0,
    testing: Testing = Testing(),
    run: Run = Run(),
    **options: Unpack[ControlledOptions],
) -> Evaluation:
    """Score a model on tasks, per language, without and with patches.

    Args:
        model: A model returned by ``load_model``.
        tasks: Tasks to score it on, such as ``ln.XNLI.load(...)``.
        languages: Languages to evaluate; by default all that every task has.
        patches: Name -> a patch, or several written together, or a function of the evaluated language that makes them,
            because neurons and values usually change with it:
            ``{"mean": lambda language: ln.SetTo(neurons[language], stats[language].mean())}``.
        head: A classification head, by which tasks that can be are answered.
        controls: Draws of matched controls per patch and language: the same patch on as many other neurons of the same
            layers and, with ``stats``, magnitudes. SiteValues are read at the control's own neurons.
        testing: The margin (0.01 is one point of accuracy or F1), the interval's level and the resampling.
        run: Where it runs and is kept, texts per forward pass (8 by default), and progress.
        options: Single fields of ``Controls``, ``Testing`` and ``Run``, such as ``margin=0.02`` or ``out="runs/x"``.

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
        >>> evaluation = ln.evaluate(model, prompts, ["en", "hi"], silenced, progress=False)
        >>> evaluation.scores["patch"].unique().tolist()
        ['unpatched', 'zero']
    """
    controls, testing, run = with_options(options, controls_of(controls), testing, run)
    tasks = _tasks(tasks, head)
    languages = chosen_languages(tasks, languages)
    by_cell = written_patches(patches or {}, languages)
    conditions = {(UNPATCHED, language): [] for language in languages} | by_cell | control_patches(by_cell, controls)
    jobs = {
        (index, *name): job
        for index, task in enumerate(tasks)
        for name, job in task_jobs(model, task, conditions, run.batch_size or BATCH_SIZE).items()
    }
    references = references_of(tasks, languages)
    rows: dict[tuple, pd.DataFrame] = {}
    sums_of_controls: dict[tuple, np.ndarray] = {}
    changes: list[tuple] = []

    def keep(key: tuple, of_job: pd.DataFrame) -> None:
        # Of controls each effect and their mean are kept: their rows are many, and only those are used.
        index, patch, language, *draw = key
        if not draw:
            rows[key] = of_job
            return
        task, baseline = tasks[index], rows[index, UNPATCHED, language]
        names = list(task.metrics)
        scores = of_job.set_index("item").reindex(baseline["item"])[names].to_numpy(dtype=float)
        sums_of_controls[key[:3]] = sums_of_controls.get(key[:3], 0.0) + scores
        for metric in task.metrics:
            estimate = difference(*both_scored(task, metric, of_job, baseline), metric, "row")
            changes.append((task.name, task.protocol, metric, patch, language, *draw, estimate))

    measure_jobs(model, jobs, run, keep)
    parts = [
        long_rows(tasks[index], of_job, patch=patch, language=language)
        for (index, patch, language), of_job in rows.items()
    ]
    means = [
        long_rows(
            tasks[index],
            rows[index, patch, language].assign(
                **dict(zip(tasks[index].metrics, sums.T / controls.draws, strict=True))
            ),
            patch=patch,
            language=language,
        )
        for (index, patch, language), sums in sums_of_controls.items()
    ]
    tables = [pd.concat(tables, ignore_index=True) for tables in (parts, means) if tables]
    by_item, *control_means = complete(tasks, *tables)
    return Evaluation(
        rows=by_item.reindex(columns=ROWS),
        references=references,
        controls=pd.DataFrame(changes, columns=CHANGES) if controls.draws else None,
        control_means=control_means[0].reindex(columns=ROWS[:8]) if control_means else None,
        settings={
            "model": view(model).described,
            "patches": {f"{name} {language}": list(map(repr, cell)) for (name, language), cell in by_cell.items()},
            "tasks": {f"{task.name} {task.protocol}": task.fingerprint for task in tasks},
            "control_draws": controls.draws,
            **_balance(by_cell, controls),
            "options": testing.model_dump(),
        },
    )


def _balance(by_cell: Mapping[tuple[str, ...], Sequence[Patch]], controls: Controls) -> dict[str, object]:
    """What the neurons of the patches write beside their controls: one set of neurons for each label."""
    patches = [patch for together in by_cell.values() for patch in together] if controls.draws else []
    sites = list(dict.fromkeys(patch.neurons.site for patch in patches))
    if len(sites) != 1:
        return {}  # at several sites, what neurons write cannot be put in one table
    taken = united(patch.neurons for patch in patches)
    by_label: dict[str, np.ndarray] = {}
    for patch in patches:
        for label, flat in patch.neurons.members.items():  # parts of a language's neurons may have patches of their own
            by_label[label] = np.union1d(by_label.get(label, flat), flat)
    return report_balance(replace(taken, members=by_label), controls, taken)


class FactorialOptions(MeasuringOptions, MatchingOptions, total=False):
    """The options of ``evaluate`` but the statistics."""

    head: Head | None
    controls: int | Controls
    testing: Testing
    run: Run


@alone_in_out
def factorial(
    model: torch.nn.Module,
    neurons: NeuronSet,
    stats: ActivationStats,
    tasks: Task | Sequence[Task],
    languages: Iterable[str] | None = None,
    operations: Iterable[str] | Mapping[str, MakePatch] = tuple(OPERATIONS),
    sites: Iterable[str] = ("act", "post"),
    **options: Unpack[FactorialOptions],
) -> Factorial:
    """Cross operation x site x protocol: patch each language's neurons in every way and place, and ask in every way.

    Two papers on the same models report opposite signs: Mondal et al. 2025 replace activations and ask by a head and by
    generation, Gurgurov et al. 2025 (arXiv 2507.22608) add to them and generate. They differ in several choices at
    once; crossed, each can be seen alone.

    Args:
        model: A model returned by ``load_model``.
        neurons: Neurons with a label for every evaluated language; the same units are written at every site.
        stats: Statistics of the same model that recorded every site.
        tasks: One task per protocol: ``XNLI`` with and without a head, ``XQuAD``, ``Generation``.
        languages: Languages to evaluate; by default those that neurons, statistics and tasks have.
        operations: Names out of "set", "add" (the language's mean), "scale" (twice) and "diffmean"; or name ->
            function of (neurons, statistics at the site, language) that makes a patch.
        sites: Sites to write at.
        options: Options of ``evaluate`` but ``stats``, such as ``controls=20``, ``head=head`` or ``out="runs/x"``.

    Returns:
        Effects of every cell, their summary, and the pairs of cells with opposite signs.

    Raises:
        PatchError: If an operation is unknown, or no operation or site is given.
        SiteMismatchError: If a site was not recorded.
        LanguageError: If neurons or statistics lack a language.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> prompts = ln.tasks.Generation.of(ln.load_corpus("babel", ["en", "hi"]), documents=4, max_new_tokens=4)
        >>> ways = {"operations": ["set", "scale"], "sites": ["act"]}
        >>> crossed = ln.factorial(model, neurons, stats, prompts, **ways, resamples=200, progress=False)
        >>> crossed.summary[["operation", "site", "protocol"]].to_numpy().tolist()
        [['set', 'act', 'generation'], ['scale', 'act', 'generation']]
    """
    if not isinstance(operations, Mapping):
        names = list(operations)
        for name in names:
            if name not in OPERATIONS:
                raise PatchError(unknown("operation", name, OPERATIONS))
        operations = {name: OPERATIONS[name] for name in names}
    at_site = {site: (replace(neurons, site=site, scores={}), stats.at(site)) for site in dict.fromkeys(sites)}
    if not operations or not at_site:
        raise PatchError("A factorial needs at least one operation and one site.")
    patches = {
        f"{name}{AT}{site}": _patch(make, *where)
        for name, make in operations.items()
        for site, where in at_site.items()
    }
    if languages is None:
        shared = chosen_languages(_tasks(tasks, None), None)
        of_neurons = [spelled(label, shared) for label in neurons.languages if len(neurons[label])]
        languages = [language for language in of_neurons if language and spelled(language, stats.languages)]
        if not languages:
            raise LanguageError("The neurons, the statistics and the tasks have no language in common.")
    recorded = [stats_at_site for _, stats_at_site in at_site.values()]
    evaluation = evaluate(model, tasks, languages, patches, stats=recorded, **options)
    return Factorial(evaluation, design_of((name, site) for name in operations for site in at_site))


def _patch(make: MakePatch, neurons: NeuronSet, stats: ActivationStats) -> Callable[[str], Patch]:
    return lambda language: make(neurons[language], stats, language)


def _tasks(tasks: object, head: Head | None) -> list[Task]:
    checked: list[Task] = []
    for task in tasks if isinstance(tasks, Sequence) else [tasks]:
        if not isinstance(task, Task):
            raise TaskError(f"A task is an XNLI, XQuAD, Generation or another Task, not {type(task).__name__}.")
        checked.append(task)
    if not checked:
        raise TaskError("No task was given: give at least one, such as ln.XNLI.load(...).")
    answered = checked if head is None else [task.with_head(head) for task in checked]
    if head is not None and all(task is plain for task, plain in zip(answered, checked, strict=True)):
        raise TaskError("A head was given, but no task is one that a head can answer.")
    names = [(task.name, task.protocol) for task in answered]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TaskError(f"Two tasks are called {' '.join(next(iter(twice)))}: evaluate them apart.")
    return answered


def chosen_languages(tasks: Sequence[Task], languages: Iterable[str] | None) -> list[str]:
    """The languages to evaluate: those asked for, or all that the tasks share.

    Args:
        tasks: Tasks to evaluate.
        languages: Languages asked for; by default all that every task has.

    Raises:
        LanguageError: If a task lacks one, or they share none.
    """
    if languages is None:
        shared = [name for name in tasks[0].languages if all(name in task.languages for task in tasks)]
        if not shared:
            raise LanguageError("The tasks have no language in common: give languages=, or evaluate them apart.")
        return shared
    first, *others = tasks
    languages = distinct(languages, first.languages)
    for language, task in product(languages, others):
        if language not in task.languages:
            raise LanguageError(f"Task {task.name!r}: {unknown('language', language, task.languages)}")
    return languages


def written_patches(patches: Mapping[str, object], languages: Sequence[str]) -> dict[tuple[str, str], list[Patch]]:
    """Make the patches of every name and language, before anything is measured.

    Args:
        patches: Name -> a patch, several, or a function of the language that makes them, see ``evaluate``.
        languages: Languages to make them for.

    Returns:
        (name, language) -> the patches written together.

    Raises:
        PatchError: If anything but patches is given.
    """
    if not isinstance(patches, Mapping):
        raise PatchError(f"patches maps names to patches, such as {{'zero': patch}}, not {type(patches).__name__}.")
    for name in patches:
        check_text(name, "patch's name", PatchError)
    if UNPATCHED in patches:
        raise PatchError(f"{UNPATCHED!r} is the model without patches: give the patch another name.")
    return {
        (name, language): _cell(name, patch(language) if callable(patch) else patch)
        for name, patch in patches.items()
        for language in languages
    }


def _cell(name: str, patches: object) -> list[Patch]:
    cell: list[Patch] = []
    for patch in patches if isinstance(patches, Sequence) else [patches]:
        if not isinstance(patch, Patch):
            raise PatchError(
                f"{name!r} should give a patch such as ln.SetTo, or a list of them, not {type(patch).__name__}."
            )
        cell.append(patch)
    if not cell:
        raise PatchError(f"{name!r} gives no patch: the unpatched model is measured anyway.")
    return cell


def task_jobs(
    model: torch.nn.Module, task: Task, conditions: Mapping[tuple, Sequence[Patch]], batch_size: int
) -> dict[tuple, Job]:
    """Jobs that measure a task under conditions, whose names have the language in the second place."""
    about = task.fingerprint
    prompting = getattr(task, "prompting", None)
    if isinstance(prompting, Prompting) and prompting.chat:
        about = storage.fingerprint(about, str(getattr(view(model).tokenizer, "chat_template", None)))
    return {
        name: Job(
            patches, f"{about} {name[1]}", partial(_measured_rows, task, model, name[1], batch_size), task.generates
        )
        for name, patches in conditions.items()
    }


def _measured_rows(task: Task, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
    """Measure a task once, and check that its rows have all columns."""
    rows = task.measure(model, language, batch_size)
    for column in ("item", "cluster", "prediction", "gold", *task.metrics):
        if column not in rows.columns:
            raise TaskError(f"Task {task.name!r} gave rows without {column!r}; they have {', '.join(rows.columns)}.")
    return rows


def long_rows(task: Task, rows: pd.DataFrame, **about: str | int) -> pd.DataFrame:
    """One row per item and metric of what a task measured.

    Args:
        task: The task.
        rows: Its rows, one per item.
        about: Further columns, each of one value.
    """
    items = rows.loc[:, ["item", "cluster", "prediction", "gold"]].astype(str)  # ids of one task may be numbers
    about = {"task": task.name, "protocol": task.protocol, **about}
    parts = [items.assign(**about, metric=metric, value=rows[metric].astype(float)) for metric in task.metrics]
    return pd.concat(parts, ignore_index=True)


def references_of(tasks: Sequence[Task], languages: Sequence[str]) -> pd.DataFrame:
    """What each task's main metric is worth without the model: task, protocol, metric, language, reference, value."""
    rows = [
        (task.name, task.protocol, task.metrics[0], language, name, value)
        for task, language in product(tasks, languages)
        for name, value in task.references(language).items()
    ]
    return pd.DataFrame(rows, columns=["task", "protocol", "metric", "language", "reference", "value"])
