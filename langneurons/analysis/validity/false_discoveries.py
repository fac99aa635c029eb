"""Nulls that can be failed: how much would the method find where there is no language to find?

A null is a recording whose "languages" are none: documents of all languages dealt at random to the labels, or parts of
one language. Methods that choose a fixed number choose it on any data, so what can be failed is the cut-off: the
method is run on the null with its own rules, and those of its choices are counted that score as well as the worst
neuron it chose on real data. Their number, as a share of the real choice, estimates the share of false discoveries.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from langneurons.analysis.validity.reliability import split_half
from langneurons.analysis.validity.selections import Halves, Selection, deciding, high_ones, whole
from langneurons.errors import StatisticsError
from langneurons.identification.methods import Method
from langneurons.recording.statistics import ActivationStats

LIMIT = 0.05  # estimated share of false discoveries that a method may have
REAL = "real"


@dataclass(frozen=True, eq=False, repr=False)
class Nulls:
    """What a method finds in nulls.

    Attributes:
        method: The method and its options.
        table: One row a null: ``null``, ``share`` (estimated share of false discoveries), ``passes`` (share <= limit),
            ``chosen`` (neurons the method chose on the null), and its split-half ``jaccard`` with ``jaccard_chance``
            where the null was given in halves. The first row, "real", holds the real languages' figures.
        per_language: One row a null and real language (or "overall" alone, where the score knows no language): the
            cut-off(s), how many were ``chosen`` on real data, how many choices of the null lie ``beyond`` the cut-off
            (the mean over the null's labels), and their ``share``.
        limit: The largest share that passes.
    """

    method: str
    table: pd.DataFrame
    per_language: pd.DataFrame
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the method passes every null."""
        return bool(self.table.loc[self.table["null"] != REAL, "passes"].all())

    def share(self, null: str) -> float:
        """Estimated share of false discoveries under one null; NaN if it was not tried."""
        return self._value(null, "share")

    def jaccard(self, null: str) -> float:
        """Split-half Jaccard of one null's choice; NaN if it was not given in halves."""
        return self._value(null, "jaccard")

    def __repr__(self) -> str:
        verdict = "passes" if self.passes else "fails"
        return f"{self.method} {verdict} (limit {self.limit:.0%})\n{self.table.round(3).to_string(index=False)}"

    def _value(self, null: str, column: str) -> float:
        found = self.table.loc[self.table["null"] == null, column]
        return float(found.iloc[0]) if len(found) else np.nan


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
        nulls: By name, statistics of as many labels, with as many tokens; or two halves of them.
        limit: The largest share of false discoveries that passes.

    Returns:
        The shares, and where halves were given each recording's split-half overlap.

    Raises:
        StatisticsError: If a null has another number of labels or tokens, or the method chooses nothing on real data.

    Example:
        >>> found = nulls_of(ln.MeanActivation(), stats, {"itself": stats})
        >>> found.share("itself") > 0.3, found.passes
        (True, False)
    """
    if not nulls:
        raise StatisticsError("No null was given: record some with langneurons.nulls, or pass {name: statistics}.")
    on_real = whole(real)
    cutoffs = {label: _Cutoff.of(one) for label, one in deciding(method, on_real).items() if len(one.chosen)}
    if not cutoffs:
        raise StatisticsError(f"{method!r} chooses no neuron on the real languages: there is no cut-off to test.")
    rows, per_language = [_row(method, REAL, real, sum(one.chosen for one in cutoffs.values()), None, limit)], []
    for name, null in nulls.items():
        on_null = whole(null)
        _check_comparable(name, on_null, on_real)
        found = list(deciding(method, on_null).values())
        against = {label: cutoff.against(found) for label, cutoff in cutoffs.items()}
        per_language += [{"null": name, "language": label, **one} for label, one in against.items()]
        share = float(np.mean([one["share"] for one in against.values()]))
        rows.append(_row(method, name, null, sum(len(one.chosen) for one in found), share, limit))
    return Nulls(repr(method), pd.DataFrame(rows), pd.DataFrame(per_language), limit)


@dataclass(frozen=True)
class _Cutoff:
    """Scores from ``high`` up or from ``low`` down are as good as the worst of the ``chosen`` neurons."""

    low: float
    high: float
    chosen: int

    @classmethod
    def of(cls, selection: Selection) -> "_Cutoff":
        scores, upper = selection.scores[selection.chosen], high_ones(selection)
        low, high = scores[~upper].max(initial=-np.inf), scores[upper].min(initial=np.inf)
        return cls(float(low), float(high), len(scores))

    def against(self, found: list[Selection]) -> dict[str, float]:
        chosen = [one.scores[one.chosen] for one in found]
        beyond = float(np.mean([((scores >= self.high) | (scores <= self.low)).sum() for scores in chosen]))
        ends = {"cutoff_low": self.low, "cutoff_high": self.high}
        known = {name: end if np.isfinite(end) else np.nan for name, end in ends.items()}
        return {**known, "chosen": self.chosen, "beyond": beyond, "share": beyond / self.chosen}


def _row(
    method: Method,
    name: str,
    recording: ActivationStats | Halves,
    chosen: int,
    share: float | None,
    limit: float,
) -> dict[str, object]:
    overlap = split_half(method, recording).overall if isinstance(recording, tuple) else {}
    return {
        "null": name,
        "share": np.nan if share is None else share,
        "passes": None if share is None else share <= limit,
        "chosen": chosen,
        "jaccard": overlap.get("jaccard", np.nan),
        "jaccard_chance": overlap.get("jaccard_chance", np.nan),
    }


def _check_comparable(name: str, null: ActivationStats, real: ActivationStats) -> None:
    mine = (len(null.languages), null.tokens.tolist()[0])
    theirs = (len(real.languages), real.tokens.tolist()[0])
    if mine != theirs:
        raise StatisticsError(
            f"The null {name!r} holds {mine[0]} labels of {mine[1]:,} tokens and the real recording {theirs[0]} of "
            f"{theirs[1]:,}: chance finds more in fewer tokens, so both must be equal."
        )
