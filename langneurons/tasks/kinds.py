"""The kinds of tasks that studies and the command line know by name."""

from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd

from langneurons.corpora import Corpus
from langneurons.errors import TaskError, unknown
from langneurons.settings import Asking, Prompting
from langneurons.tasks.confusion import Confusion
from langneurons.tasks.generation import Generation
from langneurons.tasks.harness import Harness
from langneurons.tasks.steering import Steering
from langneurons.tasks.task import Task
from langneurons.tasks.xnli import XNLI
from langneurons.tasks.xquad import XQuAD

_TASKS: dict[str, type[Task]] = {
    "xnli": XNLI,
    "xquad": XQuAD,
    "generation": Generation,
    "confusion": Confusion,
    "harness": Harness,
    "steering": Steering,
}
KINDS: dict[str, Any] = {**_TASKS}  # each has ``load`` as well


def load_task(
    kind: str,
    source: str | Path | Corpus | Mapping[str, pd.DataFrame],
    languages: Iterable[str] | None = None,
    split: str | None = None,
    *,
    items: int | None = None,
    seed: int = 0,
    **options: object,
) -> Task:
    """Load a task of any kind.

    Args:
        kind: Name of the kind in ``KINDS``.
        source: Source of the items, as the kind's ``load`` takes it.
        languages: Languages to load; by default all of the source.
        split: Split of the source, or a part of one such as "train[:25%]"; by default what the kind's ``load`` takes.
        items: Premises, questions, documents or prompts to draw; by default all.
        seed: Seed of the draw.
        options: Options of any kind's ``load``; those that this kind does not have are left out.

    Raises:
        TaskError: If there is no such kind, no kind has an option, or this kind has no splits or no prompting.
        LangNeuronsError: If the kind's ``load`` refuses something.

    Example:
        >>> ln.tasks.load_task("xquad", "babel", ["en", "hi"], "test", items=5, max_new_tokens=8, calibration=None)
        XQuAD(en, hi; questions in each: 5, clusters: 5)
    """
    if kind not in KINDS:
        raise TaskError(unknown("kind of task", kind, KINDS))
    possible = {name: _options_of(name) for name in KINDS}
    for option in options:
        if not any(option in names for names in possible.values()):
            raise TaskError(unknown("option", option, sorted(set().union(*possible.values()))))
    if split is not None and "split" not in possible[kind]:
        raise TaskError(f"A task of kind {kind!r} has no splits: leave out split={split!r}.")
    prompting = options.get("prompting")
    if isinstance(prompting, Prompting) and prompting.changes and "prompting" not in possible[kind]:
        changes = ", ".join(prompting.changes)
        raise TaskError(f"A task of kind {kind!r} is not asked by these options: leave out {changes}.")
    options = {"seed": seed, **({} if items is None else {"documents": items}), **options}
    options = {name: value for name, value in options.items() if name in possible[kind]}
    task = KINDS[kind].load(source, languages, **({} if split is None else {"split": split}), **options)
    return task if items is None else task.take(items, seed)


def idle_options(kinds: Iterable[str], asking: Asking) -> Iterator[str]:
    """Say of every option that was changed, and that none of some kinds of tasks has, that it does nothing.

    Args:
        kinds: Names of kinds; those that do not exist are for ``load_task`` to refuse.
        asking: The options.

    Example:
        >>> from langneurons.tasks.kinds import idle_options
        >>> list(idle_options(["xnli"], ln.settings.Asking(metric="squad", items=8)))
        ["xnli has no option 'metric': leave it out."]
    """
    names = [kind for kind in dict.fromkeys(kinds) if kind in KINDS]
    possible = set().union(*map(_options_of, names))
    for name in asking.changes if names else ():
        if name not in possible:
            yield f"{' or '.join(names)} has no option {name!r}: leave it out."


def _options_of(kind: str) -> set[str]:
    return set(signature(KINDS[kind].load).parameters)
