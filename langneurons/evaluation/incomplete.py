"""Items that a metric could not score under some condition: left out under all, so that conditions stay paired."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from langneurons.errors import warn_user
from langneurons.tasks.task import Task

CELL = ["task", "protocol", "metric", "language", "item"]


def both_scored(
    task: Task, metric: str, condition: pd.DataFrame, baseline: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of two conditions without items that lack a metric in one of them, where the task says that some may."""
    if metric not in getattr(task, "incomplete", ()):
        return condition, baseline
    lacking = [item for rows in (condition, baseline) for item in rows["item"][rows[metric].isna()]]
    return condition.loc[~condition["item"].isin(lacking)], baseline.loc[~baseline["item"].isin(lacking)]


def complete(tasks: Sequence[Task], *tables: pd.DataFrame) -> list[pd.DataFrame]:
    """Leave an item out of a metric under every condition where it could not be scored under one, and say how many.

    Args:
        tasks: The tasks; only metrics that they call incomplete may lack values.
        tables: Rows of the conditions, and of controls.
    """
    incomplete = {(task.name, task.protocol, metric) for task in tasks for metric in getattr(task, "incomplete", ())}
    if not incomplete:
        return list(tables)
    cells = [list(rows[CELL].itertuples(index=False, name=None)) for rows in tables]
    lacking = {
        cell
        for of_table, rows in zip(cells, tables, strict=True)
        for cell, absent in zip(of_table, rows["value"].isna(), strict=True)
        if absent and cell[:3] in incomplete
    }
    counts: dict[str, Counter[str]] = {}
    for task, _, metric, language, _ in sorted(lacking):
        counts.setdefault(f"{task}: items with no {metric}", Counter())[language] += 1
    for items, by_language in counts.items():
        listed = ", ".join(f"{language} {count:,}" for language, count in by_language.items())
        warn_user(f"{items} under some condition are left out of it under all, which are, by language: {listed}.")
    return [
        rows.loc[[cell not in lacking for cell in of_table]].reset_index(drop=True)
        for of_table, rows in zip(cells, tables, strict=True)
    ]
