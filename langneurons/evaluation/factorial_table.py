"""What a factorial found: effects of every cell, their summary, pairs of cells with opposite signs; no model."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from langneurons.errors import CorruptArtefactError, EffectError
from langneurons.evaluation.evaluation import MEASURED, UNPATCHED, Evaluation
from langneurons.storage.presenting import Column, Table
from langneurons.storage.result import Result

AT = " at "  # between operation and site in a patch's name
FACTORS = ("operation", "site", "protocol")
FORCING = "language forcing"  # what turning a language up is for: more of it is no better or worse answer


@dataclass(frozen=True, eq=False, repr=False)
class Factorial(Result):
    """The effects of every operation, site and protocol; saved and loaded as its evaluation is.

    Attributes:
        evaluation: All measurements; its patches are named ``"<operation> at <site>"``.
        design: One row per patch: patch, operation, site.

    Raises:
        EffectError: If the design has other patches than the evaluation.
    """

    evaluation: Evaluation
    design: pd.DataFrame

    def __post_init__(self) -> None:
        designed, patches = sorted(self.design["patch"]), sorted(_patches(self.evaluation))
        if designed != patches:
            raise EffectError(
                f"The design of a factorial has one row for each patch that was measured, {', '.join(patches)}, not "
                f"for {', '.join(designed)}."
            )

    @property
    def effects(self) -> pd.DataFrame:
        """Every effect of every cell on the main metric of its task; families are tasks.

        Returns:
            operation, site, protocol, task, metric, language, then the columns of an effect table.
        """
        parts = []
        rows = self.evaluation.rows
        for task, protocol in rows[["task", "protocol"]].drop_duplicates().itertuples(index=False):
            table = self.evaluation.effects(task, protocol)
            about = {name: table.settings[name] for name in MEASURED}
            parts.append(table.rows.assign(**about).merge(self.design, on="patch", validate="many_to_one"))
        effects = pd.concat(parts, ignore_index=True)
        first = [*FACTORS, "task", "metric", "language"]
        return effects.reindex(columns=[*first, *(name for name in effects if name not in {*first, "patch"})])

    @property
    def summary(self) -> pd.DataFrame:
        """Each cell over its languages.

        Returns:
            operation, site, protocol, task; the mean estimate; how many languages got better, worse, equivalent,
            inconclusive; the largest effect that could have gone unnoticed in a language (detectable).
        """
        keys = [*FACTORS, "task"]
        counts = {name: ("verdict", _count(name)) for name in ("better", "worse", "equivalent", "inconclusive")}
        sizes = {"estimate": ("estimate", "mean"), "detectable": ("minimal_detectable", "max")}
        return self.effects.groupby(keys, sort=False).agg(**sizes, **counts).reset_index()

    @property
    def opposites(self) -> pd.DataFrame:
        """Pairs of cells that would make two papers disagree: answers get better in one, worse in the other.

        Verdicts are those of each task's own family. Language forcing is no answer, and left out.

        Returns:
            language, better, worse (each "operation at site, task protocol") and differ, the factors they differ in,
            the task among them; the pairs that differ in fewest first. No rows: nothing in this design turns a sign
            around.
        """
        cells = [cell for cell in self.effects.to_dict("records") if cell["task"] != FORCING]
        sure = [cell for cell in cells if cell["verdict"] in ("better", "worse")]
        rows = []
        for cell, other in combinations(sure, 2):
            if cell["language"] == other["language"] and cell["verdict"] != other["verdict"]:
                better, worse = (cell, other) if cell["verdict"] == "better" else (other, cell)
                differ = [factor for factor in (*FACTORS, "task") if better[factor] != worse[factor]]
                rows.append((better["language"], _cell(better), _cell(worse), ", ".join(differ), len(differ)))
        table = pd.DataFrame(rows, columns=["language", "better", "worse", "differ", "factors"])
        return table.sort_values("factors", kind="stable", ignore_index=True).drop(columns="factors")

    def save(self, path: str | Path) -> Path:
        """Write everything to a folder, as its evaluation does.

        Args:
            path: The folder.

        Returns:
            The folder.
        """
        return self.evaluation.save(path)

    @classmethod
    def load(cls, path: str | Path) -> "Factorial":
        """Read a saved factorial.

        Args:
            path: The folder that ``save`` wrote.

        Raises:
            StorageError: If a file is missing.
            CorruptArtefactError: If it is no evaluation, none of a factorial, or was changed.
        """
        evaluation = Evaluation.load(path)
        cells = {name: name.rpartition(AT) for name in _patches(evaluation)}
        for name, (operation, _, site) in cells.items():
            if not operation or not site:
                raise CorruptArtefactError(
                    f"{path} holds an evaluation but no factorial: the patch {name!r:.60} names no operation and site."
                )
        return cls(evaluation, design_of((operation, site) for operation, _, site in cells.values()))

    def table(self) -> Table:
        """The summary to print, in points, above the conclusion."""
        points = {"estimate": Column("mean effect", "points", 100, signed=True)}
        return Table(self.summary, points | {"detectable": Column(unit="points", scale=100)}, caption=self.conclusion)

    @property
    def conclusion(self) -> str:
        """Whether cells have opposite significant signs, and in which factors they differ."""
        if self.opposites.empty:
            return "No two cells have opposite significant signs."
        differ = self.opposites["differ"].value_counts()
        counted = ", ".join(f"{count} that differ in {factors}" for factors, count in differ.items())
        return f"{len(self.opposites)} pairs of cells have opposite significant signs: {counted}."


def design_of(cells: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """The design of a factorial, from the operation and site of every patch."""
    rows = [(f"{name}{AT}{site}", name, site) for name, site in cells]
    return pd.DataFrame(rows, columns=["patch", "operation", "site"])


def _patches(evaluation: Evaluation) -> list[str]:
    return [name for name in evaluation.rows["patch"].unique() if name != UNPATCHED]


def _count(verdict: str) -> Callable[[pd.Series], int]:
    return lambda verdicts: int((verdicts == verdict).sum())


def _cell(cell: Mapping[str, Any]) -> str:
    return f"{cell['operation']} at {cell['site']}, {cell['task']} {cell['protocol']}"
