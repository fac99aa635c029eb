"""Pairing: rows of two conditions put side by side, item by item, or a sentence that says why that cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from langneurons.errors import EffectError, unknown
from langneurons.settings import Resampled

ROW, BASELINE = "row", "baseline"
CLUSTER, SOURCE = "cluster", "source"
LEAST_SOURCES = 8  # fewer are too few to resample


@dataclass(frozen=True, eq=False)
class Paired:
    """The same items under two conditions.

    Attributes:
        condition: Values under the condition.
        baseline: Values under the baseline.
        denominators: What differences are divided by.
        clusters: Cluster of each row, numbered from 0.
        seeds: Training seed of each row, numbered from 0.
        items: Number of distinct items.
        trained: Whether rows carry a seed at all.
        unit: The column whose values are resampled: "cluster" or "source".
    """

    condition: Float[np.ndarray, " row"]
    baseline: Float[np.ndarray, " row"]
    denominators: Float[np.ndarray, " row"]
    clusters: Int[np.ndarray, " row"]
    seeds: Int[np.ndarray, " row"]
    items: int
    trained: bool
    unit: str = CLUSTER

    @property
    def seed_count(self) -> int:
        """Number of training seeds; 1 where nothing was trained."""
        return int(self.seeds.max()) + 1

    @property
    def binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return bool((_zero_or_one(self.condition) & _zero_or_one(self.baseline)).all())

    @property
    def unchanged_shares(self) -> bool:
        """Whether every value is a share, from 0 to 1, and none of them changed."""
        shares = ((self.baseline >= 0) & (self.baseline <= 1)).all()
        return bool(shares and (self.condition == self.baseline).all())


def pair(
    condition: pd.DataFrame, baseline: pd.DataFrame, value: str, per: str, resampled: Resampled = "auto"
) -> Paired:
    """Put the rows of two conditions side by side.

    Args:
        condition: Rows with ``item``, ``cluster`` and the value; ``seed`` where a trained model gave them.
        baseline: Rows of the same items; without ``seed`` it stands beside every seed of the condition.
        value: The column measured.
        per: ``"baseline"``, ``"row"``, or a column of the baseline.
        resampled: What is resampled, see ``Testing``.

    Raises:
        EffectError: If a column is missing or not a number everywhere, an item occurs twice, the two conditions hold
            other items, clusters, languages or denominators, or there are fewer than two clusters.
    """
    _check_languages(condition, baseline)
    columns = [value] if per in (ROW, BASELINE) else [value, per]
    trained = "seed" in condition.columns or "seed" in baseline.columns
    after, before = _aligned(condition, baseline, ["item", "seed"] if trained else ["item"], columns)
    unit = resampled_unit(before, resampled)
    clusters, names = pd.factorize(before[unit])
    if len(names) < 2:
        raise EffectError(
            f"All {len(before)} rows belong to one {unit} ({_shown(names[0])}): an effect needs at least two, "
            f"because {unit}s are what is resampled."
        )
    values = before[value].to_numpy(float)
    denominators = values if per == BASELINE else np.ones(len(before)) if per == ROW else before[per].to_numpy(float)
    item = before.index.get_level_values("item")
    seeds = pd.factorize(before.index.get_level_values("seed"))[0] if trained else np.zeros(len(before), np.int64)
    return Paired(after[value].to_numpy(float), values, denominators, clusters, seeds, item.nunique(), trained, unit)


def resampled_unit(rows: pd.DataFrame, resampled: Resampled = "auto") -> str:
    """The column of rows whose values are resampled: "cluster", or "source" where there are enough sources.

    Args:
        rows: Rows with ``cluster``, and ``source`` where clusters come from some.
        resampled: What is resampled, see ``Testing``.

    Raises:
        EffectError: If sources are to be resampled and the rows have none.
    """
    sources = len(set(rows[SOURCE])) if SOURCE in rows.columns else 0
    if resampled == "sources" and not sources:
        raise EffectError("Sources cannot be resampled: the rows have no column 'source'.")
    enough = sources >= LEAST_SOURCES and resampled == "auto"
    return SOURCE if enough or resampled == "sources" else CLUSTER


def _aligned(
    condition: pd.DataFrame, baseline: pd.DataFrame, key: Sequence[str], columns: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both conditions in the baseline's order, after checking that all but the values agrees."""
    value, *others = columns
    shared = [name for name in others if name in condition.columns]
    sources = [SOURCE] if SOURCE in baseline.columns else []
    before = _indexed(_for_every_seed(baseline, condition), "baseline", key, columns, sources)
    after = _indexed(_for_every_seed(condition, baseline), "condition", key, [value, *shared])
    _check_items(after.index, before.index)
    after = after.reindex(before.index)
    for column in ("cluster", *shared):
        _check_equal(after, before, column)
    return after, before


def _indexed(
    rows: pd.DataFrame, name: str, key: Sequence[str], columns: Sequence[str], labels: Sequence[str] = ()
) -> pd.DataFrame:
    for column in dict.fromkeys((*key, "cluster", *columns)):
        if column not in rows.columns:
            raise EffectError(unknown(f"column of the {name}", column, rows.columns))
    if rows.empty:
        raise EffectError(f"The {name} has no rows.")
    for column in dict.fromkeys((*key, "cluster")):
        if absent := int(rows[column].isna().to_numpy().sum()):
            raise EffectError(f"The {name} has {absent} rows without {column}.")
    for column in columns:
        _check_numbers(rows, name, column)
    indexed = rows.loc[:, list(dict.fromkeys((*key, "cluster", *columns, *labels)))].set_index(list(key))
    if not indexed.index.is_unique:
        twice = indexed.index[indexed.index.duplicated()]
        raise EffectError(
            f"The {name} holds {' and '.join(key)} {_shown(twice[0])} more than once ({len(twice)} rows too many): "
            "give the rows of one language and one condition at a time."
        )
    return indexed


def _check_numbers(rows: pd.DataFrame, name: str, column: str) -> None:
    numbers = pd.Series(pd.to_numeric(rows[column], errors="coerce"))
    wrong = np.flatnonzero(~np.isfinite(numbers.to_numpy(dtype=float, na_value=np.nan)))
    if len(wrong):
        raise EffectError(
            f"{len(wrong)} of the {name}'s {len(rows)} values of {column!r} are not finite numbers, "
            f"such as that of item {_shown(rows['item'].iloc[wrong[0]])}."
        )


def _for_every_seed(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Repeat an untrained condition beside every seed of a trained one."""
    if "seed" in rows.columns or "seed" not in other.columns:
        return rows
    return rows.merge(other[["seed"]].drop_duplicates(), how="cross")


def _check_items(after: pd.Index, before: pd.Index) -> None:
    lacking, surplus = before.difference(after, sort=False), after.difference(before, sort=False)
    if len(lacking) or len(surplus):
        example = _shown((lacking if len(lacking) else surplus)[0])
        raise EffectError(
            f"The two conditions hold different items: the condition lacks {len(lacking)} of the baseline's "
            f"{len(before)}, the baseline lacks {len(surplus)} of the condition's {len(after)}, such as {example}."
        )


def _check_equal(after: pd.DataFrame, before: pd.DataFrame, column: str) -> None:
    differing = np.flatnonzero(after[column].to_numpy() != before[column].to_numpy())
    if len(differing):
        item = before.index[differing[0]]
        raise EffectError(
            f"{len(differing)} items differ in {column!r} between the conditions, such as {_shown(item)}: "
            f"{_shown(after[column].iloc[differing[0]])} and {_shown(before[column].iloc[differing[0]])}."
        )


def _check_languages(condition: pd.DataFrame, baseline: pd.DataFrame) -> None:
    if "language" not in condition.columns or "language" not in baseline.columns:
        return
    languages, baseline_languages = (sorted(map(str, rows["language"].unique())) for rows in (condition, baseline))
    if languages != baseline_languages:
        raise EffectError(
            f"The condition was measured in {', '.join(languages)}, the baseline in {', '.join(baseline_languages)}: "
            "an effect compares rows of one language."
        )


def _zero_or_one(values: Float[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
    return (values == 0) | (values == 1)


def _shown(value: object) -> str:
    """A value of a table as a user writes it, not as NumPy does."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"{value.item() if isinstance(value, np.generic) else value!r:.60}"
