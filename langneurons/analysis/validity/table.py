"""One table over methods: what each check says of each, and whether that passes a stated bar."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from langneurons import storage
from langneurons.analysis.validity.recordings import LIMIT, Nulls
from langneurons.analysis.validity.reliability import SplitHalf
from langneurons.errors import StatisticsError
from langneurons.storage.objects import JsonObject
from langneurons.storage.presenting import Table
from langneurons.storage.result import Result


@dataclass(frozen=True)
class Check:
    """One column of the table and what passes.

    Attributes:
        column: Name of the column.
        title: Text above the column.
        bar: The value that decides.
        least: Whether the bar is the least that passes, or the most.
    """

    column: str
    title: str
    bar: float
    least: bool = True

    def passes(self, value: float) -> bool | None:
        """Whether a value passes; None of NaN, which was not measured."""
        if np.isnan(value):
            return None
        return bool(value >= self.bar if self.least else value <= self.bar)

    def __str__(self) -> str:
        return f"{self.title}: at {'least' if self.least else 'most'} {self.bar:g}"


CHECKS = (
    Check("recall", "recall on plants", 0.9),
    Check("fdr", "FDR on plants", 0.1, least=False),
    Check("spearman", "split-half Spearman", 0.8),
    Check("jaccard", "split-half Jaccard", 0.5),
    Check("source_jaccard", "by-source Jaccard", 0.5),
    Check("parallel_jaccard", "parallel-text Jaccard", 0.5),
    Check("null_shuffled", "null: shuffled", LIMIT, least=False),
    Check("null_source", "null: source", LIMIT, least=False),
    Check("null_topic", "null: topic", LIMIT, least=False),
    Check("selectivity", "selectivity, points", 0.0),
)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was measured of one method; None was not.

    Attributes:
        method: Name of the method.
        recall: Share of planted neurons it finds.
        fdr: Share of the neurons it names that were not planted.
        split_half: Agreement of two halves of the documents.
        by_source: Agreement of two halves of different sources.
        parallel: Agreement of all text with parallel text.
        nulls: What it finds in nulls.
        selectivity: Selectivity of its perplexity matrix, in points: above 0 where patching a language's neurons hurts
            it most.
    """

    method: str
    recall: float | None = None
    fdr: float | None = None
    split_half: SplitHalf | None = None
    by_source: SplitHalf | None = None
    parallel: SplitHalf | None = None
    nulls: Nulls | None = None
    selectivity: float | None = None

    def figures(self) -> dict[str, float | str]:
        """One row of the table; NaN where nothing was measured."""
        halves, sources, parallel = (
            {} if split is None else split.overall for split in (self.split_half, self.by_source, self.parallel)
        )
        row: dict[str, float | str] = {"method": self.method, "recall": _number(self.recall), "fdr": _number(self.fdr)}
        for name in ("spearman", "jaccard", "jaccard_low", "jaccard_high", "jaccard_chance"):
            row[name] = halves.get(name, np.nan)
        for prefix, figures in (("source", sources), ("parallel", parallel)):
            row |= {f"{prefix}_{name}": figures.get(name, np.nan) for name in ("jaccard", "jaccard_chance")}
        for null in ("shuffled", "source", "topic"):
            row[f"null_{null}"] = np.nan if self.nulls is None else self.nulls.share(null)
        return {**row, "selectivity": _number(self.selectivity)}


@dataclass(frozen=True, eq=False, repr=False)
class ValidityTable(Result, kind="validity-table", file="validity", tables={"rows": "validity"}):
    """Methods and checks.

    Attributes:
        rows: One row per method: every figure, and ``<column>_passes`` for every check (missing where not measured).
        checks: What passes.
    """

    rows: pd.DataFrame
    checks: tuple[Check, ...] = CHECKS

    @property
    def passing(self) -> list[str]:
        """The methods that fail no check that was measured."""
        failed = {method for check in self.checks for method in self.failing(check.column)}
        return [method for method in self.rows["method"] if method not in failed]

    def failing(self, column: str) -> list[str]:
        """The methods that fail one check."""
        verdicts = self.rows[f"{column}_passes"].fillna(True).astype(bool)
        return [method for method, passes in zip(self.rows["method"], verdicts, strict=True) if not passes]

    def table(self) -> Table:
        """One line per method and one column per check that was measured; what fails has an asterisk."""
        return self._printed("{}*", "An asterisk marks what fails.")

    def to_markdown(self) -> str:
        """The table for a document: failed checks bold, checks that nobody measured left out, bars below it."""
        return self._printed("**{}**", "Bold fails.").to_markdown()

    def _printed(self, failing: str, said: str) -> Table:
        rows = self.rows.to_dict("records")
        checks = [check for check in self.checks if bool(self.rows[check.column].notna().to_numpy().any())]
        columns = {
            check.title: [
                _cell(check, failing, float(row[check.column]), float(row.get(f"{check.column}_chance", np.nan)))
                for row in rows
            ]
            for check in checks
        }
        frame = pd.DataFrame({"method": self.rows["method"].tolist(), **columns})
        return Table(frame, caption=f"{said} Bars: {'; '.join(map(str, checks))}.")

    def _write(self, folder: Path) -> JsonObject:
        storage.write_text(folder / "validity.md", self.to_markdown())
        return {**super()._write(folder), "checks": [asdict(check) for check in self.checks]}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        if "checksum" in content:  # as version 0.1.0 wrote it
            content = {**content, "settings": {}, "checksums": {"validity": content["checksum"]}}
        rows = super()._read(folder, content)["rows"]
        return {"rows": rows, "checks": tuple(Check(**check) for check in content["checks"])}


def validity_table(evidence: Sequence[Evidence], checks: Sequence[Check] = CHECKS) -> ValidityTable:
    """Put what is known of several methods side by side.

    Args:
        evidence: What was measured of each method.
        checks: What passes.

    Returns:
        The table.

    Raises:
        StatisticsError: If there is no method, or two have one name.

    Example:
        >>> from langneurons.analysis.validity import Evidence, validity_table
        >>> table = validity_table([Evidence("good", recall=1.0, fdr=0.0), Evidence("bad", recall=0.2, fdr=0.0)])
        >>> table.passing, table.failing("recall")
        (['good'], ['bad'])
    """
    names = [method.method for method in evidence]
    if not names or len(set(names)) < len(names):
        raise StatisticsError(f"A validity table needs methods with different names, not {names}.")
    rows = pd.DataFrame([method.figures() for method in evidence])
    for check in checks:
        rows[f"{check.column}_passes"] = pd.array([check.passes(value) for value in rows[check.column]], "boolean")
    return ValidityTable(rows, tuple(checks))


def _cell(check: Check, failing: str, value: float, chance: float) -> str | None:
    if np.isnan(value):
        return None
    text = f"{value:.2f}" if check.passes(value) else failing.format(f"{value:.2f}")
    return text if np.isnan(chance) else f"{text} (chance {chance:.2f})"


def _number(value: float | None) -> float:
    return np.nan if value is None else value
