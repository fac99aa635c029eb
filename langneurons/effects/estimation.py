"""Effects: a paired difference with its interval, its p-value, and a verdict that knows how to say "nothing there".

A difference that is not significant is no evidence of no difference. So each effect carries what it could have found
(the minimal detectable effect) and is called equivalent only where its interval lies inside a stated margin.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from langneurons.effects.pairing import BASELINE, Paired, pair
from langneurons.effects.resampling import SIGNIFICANCE, ClusterSums, Spread, sign_flip_p_values, spreads
from langneurons.errors import EffectError
from langneurons.settings import Testing, TestingOptions, with_options

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
LOSSES = ("nll", "loss", "perplexity", "bits_per_byte")
LEAST_SEEDS = 6
TOGETHER = 64  # conditions whose resamples are held at once


@dataclass(frozen=True)
class Effect:
    """What a condition changed, against the baseline, on the same items.

    Attributes:
        estimate: Sum of differences / sum of denominators; positive where the condition's values are larger.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided p-value; None with fewer than six training seeds, where no p-value below 0.05 is possible.
        verdict: "equivalent", "better", "worse" or "inconclusive".
        margin: Largest difference of no interest, in units of the estimate.
        level: Confidence of the interval.
        minimal_detectable: The true effect that one two-sided 5 % test finds with 80 % power (no family counted), and
            never less than half the 95 % interval; infinite where no outcome could be significant.
        standard_error: Standard error of the estimate, from clusters (and seeds).
        items: Number of distinct items.
        clusters: Number of clusters, which are what is resampled.
        baseline: Level without the condition: sum of values / sum of denominators, or per row where ``per`` is
            "baseline".
        condition: Level with the condition.
        per: What differences were divided by.
        value: Name of what was measured.
        seed: Seed of the resampling.
        resamples: Bootstrap and sign-flip samples.
        lower_is_better: Whether a smaller value is better.
        equivalent: Whether two one-sided 5 % tests place the effect within the margin.
        seeds: Training seeds, None where nothing was trained.
        seed_sd: Standard deviation of the effect between training seeds.
    """

    estimate: float
    low: float
    high: float
    p: float | None
    verdict: Verdict
    margin: float
    level: float
    minimal_detectable: float
    standard_error: float
    items: int
    clusters: int
    baseline: float
    condition: float
    per: str
    value: str
    seed: int
    resamples: int
    lower_is_better: bool
    equivalent: bool
    seeds: int | None = None
    seed_sd: float | None = None

    def judged(self, p: float | None) -> Verdict:
        """The verdict by a p-value, such as one adjusted for a family of tests.

        A difference within the margin is equivalent even where it is significant.
        """
        return verdict_of(self.estimate, p, self.equivalent, self.lower_is_better)

    def __str__(self) -> str:
        sizes = f"{self.items:,} items in {self.clusters:,} clusters"
        seeds = "" if self.seeds is None else f", {self.seeds} seeds (SD {self.seed_sd or 0:.3g})"
        tested = "no p-value" if self.p is None else f"p {self.p:.2g}"
        return (
            f"{self.value} per {self.per}: {self.estimate:+.4g} [{self.low:+.4g}, {self.high:+.4g}] {self.verdict} "
            f"({tested}, minimal detectable {self.minimal_detectable:.2g}, {sizes}{seeds})"
        )


def effect(
    condition: pd.DataFrame,
    baseline: pd.DataFrame,
    value: str = "nll",
    per: str = BASELINE,
    lower_is_better: bool | None = None,
    *,
    testing: Testing = Testing(),
    **options: Unpack[TestingOptions],
) -> Effect:
    """Compare two conditions measured on the same items.

    The interval is a symmetric studentized bootstrap of clusters; the test flips the signs of clusters (exact McNemar
    where every cluster is one row of 0 or 1). The interval is the more cautious of the two: with few clusters of very
    unequal size it may hold 0 where the test rejects 0.

    Rows with a column ``seed`` come from trained models: seeds and clusters are both resampled, the p-value is the
    bootstrap's, and below six seeds there is none. The interval of a single seed says nothing about other seeds.

    Args:
        condition: Rows with ``item``, ``cluster`` and the value, and ``seed`` where models were trained.
        baseline: Rows of the same items in the same clusters.
        value: The column to compare.
        per: What the summed differences are divided by: ``"baseline"`` (the baseline's own sum: relative change),
            ``"row"`` (their number) or a column of the baseline such as ``"tokens"``.
        lower_is_better: Whether smaller values are better; by default only for losses (nll, loss, perplexity,
            bits_per_byte).
        testing: The margin, in units of the estimate, the interval's level, and the resampling.
        options: Single fields of ``Testing``, such as ``margin=0.02``.

    Raises:
        EffectError: If the rows cannot be paired, there are fewer than two clusters, or the denominators are not
            positive.

    Example:
        >>> before = pd.DataFrame({"item": range(40), "cluster": [i // 2 for i in range(40)], "nll": 2.0})
        >>> after = before.assign(nll=[2.2 + 0.01 * (i % 7) for i in range(40)])
        >>> change = effect(after, before)
        >>> round(change.estimate, 3), change.verdict, change.clusters
        (0.114, 'worse', 20)
    """
    (testing,) = with_options(options, testing)
    return _effects([pair(condition, baseline, value, per)], Comparison.of(value, per, lower_is_better, testing))[0]


def many_effects(
    conditions: Float[np.ndarray, "condition row"],
    baseline: pd.DataFrame,
    value: str = "nll",
    per: str = BASELINE,
    lower_is_better: bool | None = None,
    *,
    testing: Testing = Testing(),
    **options: Unpack[TestingOptions],
) -> list[Effect]:
    """Compare many untrained conditions with one baseline.

    Args:
        conditions: The value of each row of the baseline, in its order, under every condition.
        baseline: Rows with ``item``, ``cluster`` and the value, of one language.
        value: The column to compare.
        per: What summed differences are divided by, see ``effect``.
        lower_is_better: Whether smaller values are better; by default only for losses.
        testing: The margin, in units of the estimate, the interval's level, and the resampling.
        options: Single fields of ``Testing``, such as ``margin=0.02``.

    Returns:
        What ``effect`` gives for each condition alone.

    Raises:
        EffectError: If ``effect`` would refuse a condition, or a value is not finite.

    Example:
        >>> before = pd.DataFrame({"item": range(40), "cluster": [i // 2 for i in range(40)], "nll": 2.0})
        >>> worse, same = many_effects(np.stack([np.linspace(2.1, 2.3, 40), np.full(40, 2.0)]), before)
        >>> round(worse.estimate, 3), worse.verdict, same.verdict
        (0.1, 'worse', 'equivalent')
    """
    (testing,) = with_options(options, testing)
    comparison = Comparison.of(value, per, lower_is_better, testing)
    unchanged = pair(baseline, baseline, value, per)
    if wrong := np.argwhere(~np.isfinite(conditions)).tolist():
        affected, (condition, row) = len({number for number, _ in wrong}), wrong[0]
        raise EffectError(
            f"{affected} of {len(conditions)} conditions hold values of {value!r} that are no finite number, such as "
            f"condition {condition} at item {baseline['item'].tolist()[row]!r}."
        )
    effects = []
    for start in range(0, len(conditions), TOGETHER):
        part = conditions[start : start + TOGETHER].astype(float)
        effects += _effects([replace(unchanged, condition=values) for values in part], comparison)
    return effects


@dataclass(frozen=True)
class Comparison:
    """What is compared and how it is judged: the fields that an ``Effect`` has in common with it."""

    value: str
    per: str
    lower_is_better: bool
    margin: float
    level: float
    resamples: int
    seed: int

    @classmethod
    def of(cls, value: str, per: str, lower_is_better: bool | None, testing: Testing) -> "Comparison":
        """A comparison, in which smaller losses are better unless told otherwise."""
        lower_is_better = value in LOSSES if lower_is_better is None else lower_is_better
        return cls(value, per, lower_is_better, testing.margin, testing.level, testing.samples, testing.seed)


def _effects(paired: Sequence[Paired], comparison: Comparison) -> list[Effect]:
    """Estimate the effects of conditions that share one baseline; all are resampled alike."""
    sums = [sums_of(rows, comparison.per, comparison.value) for rows in paired]
    varied = spreads(sums, comparison.resamples, comparison.seed)
    p_values = _p_values_of(paired, sums, varied, comparison)
    return [_effect(*parts, comparison) for parts in zip(paired, sums, varied, p_values, strict=True)]


def _effect(rows: Paired, sums: ClusterSums, spread: Spread, p: float | None, comparison: Comparison) -> Effect:
    (low, high), inner = spread.interval(comparison.level), spread.interval(1 - 2 * SIGNIFICANCE)
    one_seed = rows.trained and sums.shape[0] == 1
    equivalent = -comparison.margin <= inner[0] and inner[1] <= comparison.margin and not one_seed
    return Effect(
        estimate=spread.estimate,
        low=low,
        high=high,
        p=p,
        verdict=verdict_of(spread.estimate, p, equivalent, comparison.lower_is_better),
        minimal_detectable=_detectable_size(spread) if _can_be_significant(rows, sums) else float("inf"),
        standard_error=spread.standard_error,
        items=rows.items,
        clusters=sums.shape[1],
        baseline=_level_of(rows.baseline, rows, comparison.per),
        condition=_level_of(rows.condition, rows, comparison.per),
        equivalent=equivalent,
        seeds=sums.shape[0] if rows.trained else None,
        seed_sd=_seed_sd(sums) if rows.trained else None,
        **asdict(comparison),
    )


def difference(condition: pd.DataFrame, baseline: pd.DataFrame, value: str = "nll", per: str = BASELINE) -> float:
    """The estimate of ``effect`` alone, without resampling: for the many draws of a control.

    Args:
        condition: Rows with ``item``, ``cluster`` and the value, and ``seed`` where models were trained.
        baseline: Rows of the same items in the same clusters.
        value: The column to compare.
        per: What the summed differences are divided by, see ``effect``.

    Raises:
        EffectError: If ``effect`` would refuse the rows.

    Example:
        >>> before = pd.DataFrame({"item": [0, 1], "cluster": [0, 1], "nll": [2.0, 2.0]})
        >>> difference(before.assign(nll=[2.0, 3.0]), before)
        0.25
    """
    return sums_of(pair(condition, baseline, value, per), per, value).ratio


def holm(p: Sequence[float | None] | Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjust p-values so that one family makes any false claim with 5 % probability at most (Holm 1979).

    Args:
        p: One p-value per test; None or NaN is no test, does not count in the family, and stays NaN.

    Example:
        >>> holm([0.01, None, 0.04, 0.03]).tolist()
        [0.03, nan, 0.06, 0.06]
    """
    tests, adjusted = _p_values(p)
    order = np.argsort(tests)
    stepped = tests[order] * np.arange(len(tests), 0, -1)
    adjusted[np.flatnonzero(~np.isnan(adjusted))[order]] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


def benjamini_hochberg(p: Sequence[float | None] | Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjust p-values so that at most 5 % of a long list of claims are false in expectation (Benjamini, Hochberg 1995).

    Args:
        p: One p-value per test; None or NaN is no test, does not count, and stays NaN.

    Example:
        >>> benjamini_hochberg([0.01, None, 0.04, 0.03]).tolist()
        [0.03, nan, 0.04, 0.04]
    """
    tests, adjusted = _p_values(p)
    if len(tests):
        adjusted[~np.isnan(adjusted)] = stats.false_discovery_control(tests)
    return adjusted


def sums_of(rows: Paired, per: str, value: str) -> ClusterSums:
    """Differences and denominators of paired rows, summed by seed and cluster."""
    changes = rows.condition - rows.baseline
    # Of scores from 0 to 1, no change among n rows does not prove that there is none: two changed rows, one each way,
    # give an interval of about +-3/n, the rule of three.
    scores = rows.binary or (rows.unchanged_shares and value not in LOSSES)
    least = 2 / (rows.denominators.sum() / rows.seed_count) ** 2 if scores and rows.denominators.sum() else 0.0
    sums = ClusterSums.of(changes, rows.denominators, rows.clusters, rows.seeds, least)
    for axis, unit in ((0, "cluster"), (1, "seed")):
        parts = sums.denominators.sum(axis)
        if (rows.denominators < 0).any() or (len(parts) > 1 and (parts.sum() - parts <= 0).any()) or parts.sum() <= 0:
            divisor = "the baseline's own values" if per == BASELINE else f"{per!r}"
            raise EffectError(
                f"Differences cannot be divided by {divisor}: they must not be negative, and positive in more than one "
                f"{unit}; possible: per='row'."
            )
    return sums


def _p_values_of(
    paired: Sequence[Paired], sums: Sequence[ClusterSums], varied: Sequence[Spread], comparison: Comparison
) -> list[float | None]:
    """The test that fits the rows: over seeds, of single right or wrong answers, or by flipping clusters' signs."""
    if paired[0].trained:
        return [
            spread.p() if parts.shape[0] >= LEAST_SEEDS else None for parts, spread in zip(sums, varied, strict=True)
        ]
    p: list[float | None] = [
        _mcnemar(parts) if rows.binary and rows.single_rows else None for rows, parts in zip(paired, sums, strict=True)
    ]
    if flipped := [place for place, value in enumerate(p) if value is None]:
        differences = np.stack([sums[place].differences[0] for place in flipped], axis=1)
        values = sign_flip_p_values(differences, comparison.resamples, comparison.seed)
        for place, value in zip(flipped, values.tolist(), strict=True):
            p[place] = value
    return p


def _mcnemar(sums: ClusterSums) -> float:
    gained, lost = int((sums.differences > 0).sum()), int((sums.differences < 0).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _detectable_size(spread: Spread) -> float:
    """At least half the interval: where only few rows change, the standard error alone would promise too much."""
    low, high = spread.interval(1 - SIGNIFICANCE)
    return max(spread.minimal_detectable(), (high - low) / 2)


def _can_be_significant(rows: Paired, sums: ClusterSums) -> bool:
    """Whether the test has any outcome below 0.05: of n signs, all equal has probability 2 / 2**n."""
    return sums.shape[0] >= LEAST_SEEDS if rows.trained else 2.0 ** (1 - sums.shape[1]) < SIGNIFICANCE


def verdict_of(estimate: float, p: float | None, equivalent: bool, lower_is_better: bool) -> Verdict:
    """Better, worse, equivalent or inconclusive."""
    if equivalent:
        return "equivalent"
    if p is None or np.isnan(p) or p >= SIGNIFICANCE:
        return "inconclusive"
    return "better" if (estimate < 0) == lower_is_better else "worse"


def _level_of(values: Float[np.ndarray, " row"], rows: Paired, per: str) -> float:
    """What one condition is worth by itself, in the unit of its effect."""
    return float(values.mean() if per == BASELINE else values.sum() / rows.denominators.sum())


def _seed_sd(sums: ClusterSums) -> float | None:
    by_seed = sums.differences.sum(1) / sums.denominators.sum(1)
    return float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None


def _p_values(p: Sequence[float | None] | Float[np.ndarray, " test"]) -> tuple[np.ndarray, np.ndarray]:
    """The p-values of tests, and an array with a place for each (NaN where there is none)."""
    values = np.array([np.nan if value is None else value for value in p], dtype=float)
    tests = values[~np.isnan(values)]
    if ((tests < 0) | (tests > 1)).any():
        raise EffectError(f"p-values lie between 0 and 1, given {tests[(tests < 0) | (tests > 1)][0]}.")
    return tests, values
