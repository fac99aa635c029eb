"""What checks say of methods: what each finds where there is no language, and one table that holds all against bars."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from langneurons import storage
from langneurons.analysis.validity import reliability
from langneurons.analysis.validity.reliability import Halves, Selection, SplitHalf, deciding, split_half, whole
from langneurons.errors import StatisticsError
from langneurons.identification import Method
from langneurons.recording.statistics import ActivationStats
from langneurons.storage import Column, JsonObject, Result, Table, all_of, layout
from langneurons.storage.layouts import Layout

LIMIT = 0.05  # estimated share of false discoveries that a method may have
REAL = "real"


@dataclass(frozen=True, eq=False, repr=False)
class Nulls(Result, kind="nulls", tables=("rows", "per_language")):
    """What a method finds in nulls.

    Attributes:
        method: The method and its options.
        rows: One row per null: ``null``, ``share`` (estimated share of false discoveries), ``passes`` (share <= limit),
            ``chosen`` (neurons the method chose on the null), and its split-half ``jaccard`` with ``jaccard_chance``
            where the null was given in halves. The first row, "real", holds the real languages' figures.
        per_language: One row per null and real language (or "overall" alone, where the score knows no language): the
            cut-off(s), how many were ``chosen`` on real data, how many choices of the null lie ``beyond`` the cut-off
            (the mean over the null's labels), and their ``share``.
        limit: The largest share that passes.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(text="null", number="share chosen jaccard jaccard_chance", tick="passes"),
        "per_language": layout(text="null", mark="language", number="cutoff_low? cutoff_high? chosen beyond share"),
    }

    method: str
    rows: pd.DataFrame
    per_language: pd.DataFrame
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the method passes every null."""
        return bool(self.rows.loc[self.rows["null"] != REAL, "passes"].all())

    def share(self, null: str) -> float:
        """Estimated share of false discoveries under one null; NaN if it was not tried."""
        return self._value(null, "share")

    def jaccard(self, null: str) -> float:
        """Split-half Jaccard of one null's choice; NaN if it was not given in halves."""
        return self._value(null, "jaccard")

    def table(self) -> Table:
        """One line per null: the share of false discoveries, and how far the method agrees with itself."""
        verdict = "passes" if self.passes else "fails"
        columns = {"share": Column("false discoveries", "%", 100), "jaccard_chance": Column("jaccard by chance")}
        return Table(self.rows, columns, title=f"{self.method} {verdict} (limit {self.limit:.0%})")

    @property
    def settings(self) -> dict[str, Any]:
        """The method and the limit."""
        return {"method": self.method, "limit": self.limit}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        fields = super()._read(folder, content)
        settings = fields.pop("settings")
        layout(text="method", finite="limit").check("the nulls", settings)
        return {**settings, **fields}

    def _value(self, null: str, column: str) -> float:
        values = self.rows.loc[self.rows["null"] == null, column]
        return float(values.iloc[0]) if len(values) else np.nan


def nulls_of(
    method: Method,
    real: ActivationStats | Halves,
    nulls: Mapping[str, ActivationStats | Halves],
    limit: float = LIMIT,
) -> Nulls:
    """Compare what a method finds in recorded nulls with what it finds in real languages.

    The cut-off of a language is the worst score the method chose on real data; where the score knows no language, as
    LAPE's, there is one. Which scores are good is read off the real choice: high or low ones, or both ends where at
    least a tenth of the choice lies on each side of the median. On a null the method applies all its rules, filters
    included, and of its choices those beyond the cut-off count, as the mean over the null's labels, because none of
    them stands for the language.

    Args:
        method: Any method.
        real: Statistics of real languages, or of two halves of their documents (recorded with equal histogram edges).
        nulls: Name -> statistics of as many labels, with as many tokens; or two halves of them.
        limit: The largest share of false discoveries that passes.

    Returns:
        The shares, and where halves were given each recording's split-half overlap.

    Raises:
        StatisticsError: If a null has another number of labels or tokens, or the method chooses nothing on real data.

    Example:
        >>> from langneurons.analysis.validity import nulls_of
        >>> found = nulls_of(ln.identification.MeanActivation(), stats, {"itself": stats})
        >>> found.share("itself") > 0.3, found.passes
        (True, False)
    """
    if not nulls:
        raise StatisticsError("No null was given: record some with langneurons.nulls, or pass {name: statistics}.")
    on_real = whole(real)
    of_real = {label: selection for label, selection in deciding(method, on_real).items() if len(selection.neurons)}
    if not of_real:
        raise StatisticsError(f"{method!r} chooses no neuron on the real languages: there is no cut-off to test.")
    counts = {label: len(selection.neurons) for label, selection in of_real.items()}
    rows, per_language = [_row(method, REAL, real, sum(counts.values()), None, limit)], []
    for name, null in nulls.items():
        on_null = whole(null)
        _check_comparable(name, on_null, on_real)
        selections = list(deciding(method, on_null).values())
        figures = {label: _beyond(counts[label], *_cutoffs(own), selections) for label, own in of_real.items()}
        per_language += [{"null": name, "language": label, **row} for label, row in figures.items()]
        share = float(np.mean([row["share"] for row in figures.values()]))
        rows.append(_row(method, name, null, sum(len(selection.neurons) for selection in selections), share, limit))
    return Nulls(repr(method), pd.DataFrame(rows), pd.DataFrame(per_language), limit)


def _cutoffs(selection: Selection) -> tuple[float, float]:
    """Scores from the first up, or from the second down, are as good as the worst of those that were chosen."""
    scores, upper = selection.scores[selection.neurons], reliability.high_ones(selection)
    return float(scores[upper].min(initial=np.inf)), float(scores[~upper].max(initial=-np.inf))


def _beyond(count: int, high: float, low: float, selections: Sequence[Selection]) -> dict[str, float]:
    """The choices of a null beyond the cut-offs, as the mean over its labels."""
    scores = [selection.scores[selection.neurons] for selection in selections]
    beyond = float(np.mean([((values >= high) | (values <= low)).sum() for values in scores]))
    ends = {"cutoff_low": low, "cutoff_high": high}
    cutoffs = {name: end if np.isfinite(end) else np.nan for name, end in ends.items()}
    return {**cutoffs, "chosen": count, "beyond": beyond, "share": beyond / count}


def _row(
    method: Method, name: str, recording: ActivationStats | Halves, chosen: int, share: float | None, limit: float
) -> dict[str, object]:
    overlap = split_half(method, recording).overall if isinstance(recording, tuple) else {}
    return {
        "null": name,
        "share": np.nan if share is None else share,
        "passes": None if share is None else share <= limit,
        "chosen": chosen,
        **{name: overlap.get(name, np.nan) for name in ("jaccard", "jaccard_chance")},
    }


def _check_comparable(name: str, null: ActivationStats, real: ActivationStats) -> None:
    sizes, real_sizes = ((len(recording.languages), recording.tokens.tolist()[0]) for recording in (null, real))
    if sizes != real_sizes:
        raise StatisticsError(
            f"The null {name!r} holds {sizes[0]} labels of {sizes[1]:,} tokens and the real recording "
            f"{real_sizes[0]} of {real_sizes[1]:,}: chance finds more in fewer tokens, so both must be equal."
        )


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
        row: dict[str, float | str] = {"method": self.method, "recall": _number(self.recall), "fdr": _number(self.fdr)}
        jaccard = ("jaccard", "jaccard_chance")
        for prefix, split, names in (
            ("", self.split_half, ("spearman", "jaccard", "jaccard_low", "jaccard_high", "jaccard_chance")),
            ("source_", self.by_source, jaccard),
            ("parallel_", self.parallel, jaccard),
        ):
            row |= {f"{prefix}{name}": np.nan if split is None else split.overall[name] for name in names}
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

    layouts: ClassVar[Mapping[str, Layout]] = {"rows": layout(text="method")}

    rows: pd.DataFrame
    checks: tuple[Check, ...] = CHECKS

    def _check_parts(self) -> None:
        about = layout(text="column title", finite="bar", flag="least")
        for check in self.checks:
            about.check("a check", asdict(check))
            chance = {f"{check.column}_chance"} & set(self.rows.columns)
            all_of("number", [check.column, *chance]).check("the validity table", self.rows)
            all_of("tick", [f"{check.column}_passes"]).check("the validity table", self.rows)
        if len({check.column for check in self.checks}) < len(self.checks):
            raise ValueError("a check stands there twice")

    @classmethod
    def joined(cls, tables: "Sequence[ValidityTable]") -> "ValidityTable":
        """One table of methods that were checked one by one, by the same checks."""
        rows = pd.concat([table.rows for table in tables], ignore_index=True)
        return cls(rows, tables[0].checks)

    @property
    def measured(self) -> list[Check]:
        """The checks that were measured of any method."""
        return [check for check in self.checks if bool(self.rows[check.column].notna().to_numpy().any())]

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
        cells = {
            check.title: [_cell(check, failing, row[check.column], row.get(f"{check.column}_chance")) for row in rows]
            for check in self.measured
        }
        frame = pd.DataFrame({"method": self.rows["method"], **cells})
        return Table(frame, caption=f"{said} Bars: {'; '.join(map(str, self.measured))}.")

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


def _cell(check: Check, failing: str, value: float, chance: float | None) -> str | None:
    if np.isnan(value):
        return None
    text = f"{value:.2f}" if check.passes(value) else failing.format(f"{value:.2f}")
    return text if chance is None or np.isnan(chance) else f"{text} (chance {chance:.2f})"


def _number(value: float | None) -> float:
    return np.nan if value is None else value
