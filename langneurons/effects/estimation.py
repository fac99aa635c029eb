"""Effects: a paired difference with its interval, its p-value, and a verdict.

A verdict answers two questions: is there a difference (is the p-value below 0.05), and is it of any interest (or is it
shown to lie within a stated margin). A difference that is not significant is no evidence of no difference, so each
effect also carries what could have been detected.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from langneurons.effects.pairing import BASELINE, Paired, pair
from langneurons.effects.resampling import SIGNIFICANCE, ClusterSums, Spread, detectable_multiplier, spreads
from langneurons.errors import EffectError, counted
from langneurons.settings import Testing, TestingOptions, with_options

Verdict = Literal["better", "worse", "slightly better", "slightly worse", "no effect", "inconclusive"]
LOSSES = ("nll", "loss", "perplexity", "bits_per_byte")
LEAST_SEEDS = LEAST_CLUSTERS = 6
ROUNDING = 1e-12  # share of a value that may be lost to it
TOGETHER = 64  # conditions whose resamples are held at once


@dataclass(frozen=True)
class Effect:
    """What a condition changed, against the baseline, on the same items.

    Attributes:
        estimate: Sum of differences / sum of denominators; positive where the condition's values are larger.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided p-value; None with fewer than six clusters, or training seeds where something was trained.
        verdict: "better" or "worse"; "slightly better" or "slightly worse" where it is significant and within the
            margin; "no effect" where it is not significant and within the margin; else "inconclusive".
        margin: Largest difference of no interest, in units of the estimate.
        level: Confidence of the interval.
        minimal_detectable: The true effect that one two-sided 5 % test finds with 80 % power; infinite where there is
            no test. See ``detectable_in`` for a family.
        standard_error: Standard error of the estimate, from clusters (and seeds).
        degrees: Degrees of freedom of the standard error.
        largest_cluster: Share of the denominators that the largest cluster holds.
        items: Number of distinct items.
        clusters: Number of clusters, or sources, which are what is resampled.
        unit: What is resampled: "cluster" or "source".
        baseline: Level without the condition: sum of values / sum of denominators, or per row where ``per`` is
            "baseline".
        condition: Level with the condition.
        per: What differences were divided by.
        value: Name of what was measured.
        seed: Seed of the resampling.
        resamples: Bootstrap samples.
        lower_is_better: Whether a smaller value is better.
        within_margin: Whether two one-sided 5 % tests place the effect within the margin.
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
    degrees: float
    largest_cluster: float
    items: int
    clusters: int
    unit: str
    baseline: float
    condition: float
    per: str
    value: str
    seed: int
    resamples: int
    lower_is_better: bool
    within_margin: bool
    seeds: int | None = None
    seed_sd: float | None = None

    def judged(self, p: float | None) -> Verdict:
        """The verdict by a p-value, such as one adjusted for a family of tests."""
        return verdict_of(self.estimate, p, self.within_margin, self.lower_is_better)

    def detectable_in(self, family: int) -> float:
        """The minimal detectable effect where it must be significant beside others.

        Args:
            family: Number of tests in the family; the strictest level that Holm, or Benjamini and Hochberg, ask of any
                of them is 5 % divided by it.

        Example:
            >>> item = pd.DataFrame({"item": range(40), "cluster": range(40), "nll": 2.0})
            >>> change = effect(item.assign(nll=[2.2 + 0.01 * (i % 7) for i in range(40)]), item)
            >>> round(change.detectable_in(49) / change.minimal_detectable, 1)
            1.5
        """
        alone, in_family = (detectable_multiplier(self.degrees, tests) for tests in (1, family))
        return self.minimal_detectable * in_family / alone

    def __str__(self) -> str:
        sizes = f"{counted(self.items, 'item')} in {counted(self.clusters, self.unit)}"
        seeds = "" if self.seeds is None else f", {counted(self.seeds, 'seed')} (SD {self.seed_sd or 0:.3g})"
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

    Interval and p-value are of one studentized bootstrap of clusters: the interval holds 0 exactly where the p-value is
    at least 1 - level. Below six clusters there is no p-value.

    Rows with a column ``seed`` come from trained models: seeds and clusters are both resampled, and below six seeds
    there is no p-value. The interval of a single seed says nothing about other seeds.

    Args:
        condition: Rows with ``item``, ``cluster`` and the value, and ``seed`` where models were trained.
        baseline: Rows of the same items in the same clusters, with ``source`` where clusters come from some.
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
    rows = pair(condition, baseline, value, per, testing.resampled)
    return _effects([rows], value, per, lower_is_better, testing)[0]


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
        (0.1, 'worse', 'no effect')
    """
    (testing,) = with_options(options, testing)
    unchanged = pair(baseline, baseline, value, per, testing.resampled)
    if wrong := np.argwhere(~np.isfinite(conditions)).tolist():
        affected, (condition, row) = len({number for number, _ in wrong}), wrong[0]
        raise EffectError(
            f"{affected} of {len(conditions)} conditions hold values of {value!r} that are not finite, such as "
            f"condition {condition} at item {baseline['item'].tolist()[row]!r}."
        )
    effects = []
    for start in range(0, len(conditions), TOGETHER):
        part = conditions[start : start + TOGETHER].astype(float)
        effects += _effects(
            [replace(unchanged, condition=values) for values in part], value, per, lower_is_better, testing
        )
    return effects


def _effects(
    paired: Sequence[Paired], value: str, per: str, lower_is_better: bool | None, testing: Testing
) -> list[Effect]:
    """Estimate the effects of conditions that share one baseline; all are resampled alike."""
    sums = [sums_of(rows, per, value) for rows in paired]
    bootstrapped = spreads(sums, testing.samples, testing.seed)
    lower = value in LOSSES if lower_is_better is None else lower_is_better
    return [_effect(*parts, value, per, lower, testing) for parts in zip(paired, sums, bootstrapped, strict=True)]


def _effect(
    rows: Paired, sums: ClusterSums, spread: Spread, value: str, per: str, lower_is_better: bool, testing: Testing
) -> Effect:
    (low, high), inner = spread.interval(testing.level), spread.interval(1 - 2 * SIGNIFICANCE)
    tested = _can_be_tested(rows, sums)
    p = spread.p() if tested else None
    within_margin = tested and -testing.margin <= inner[0] and inner[1] <= testing.margin
    return Effect(
        estimate=spread.estimate,
        low=low,
        high=high,
        p=p,
        verdict=verdict_of(spread.estimate, p, within_margin, lower_is_better),
        minimal_detectable=spread.minimal_detectable() if tested else float("inf"),
        standard_error=spread.standard_error,
        degrees=spread.degrees,
        largest_cluster=sums.largest_share,
        items=rows.items,
        clusters=sums.shape[1],
        unit=rows.unit,
        baseline=_level_of(rows.baseline, rows, per),
        condition=_level_of(rows.condition, rows, per),
        value=value,
        per=per,
        lower_is_better=lower_is_better,
        resamples=testing.samples,
        within_margin=within_margin,
        seeds=sums.shape[0] if rows.trained else None,
        seed_sd=_seed_sd(sums) if rows.trained else None,
        **testing.model_dump(include={"margin", "level", "seed"}),
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
    sums = replace(ClusterSums.of(changes, rows.denominators, rows.clusters, rows.seeds, least), binary=rows.binary)
    for axis, unit in ((0, "cluster"), (1, "seed")):
        parts = sums.denominators.sum(axis)
        if (rows.denominators < 0).any() or (len(parts) > 1 and (parts.sum() - parts <= 0).any()) or parts.sum() <= 0:
            divisor = "the baseline's own values" if per == BASELINE else f"{per!r}"
            raise EffectError(
                f"Differences cannot be divided by {divisor}: they must not be negative, and positive in more than one "
                f"{unit}; possible: per='row'."
            )
    return sums


def _can_be_tested(rows: Paired, sums: ClusterSums) -> bool:
    """Whether there is enough to resample: of n signs, all equal has probability 2 / 2**n, below 0.05 from six on."""
    seeds, clusters = sums.shape
    return seeds >= LEAST_SEEDS if rows.trained else clusters >= LEAST_CLUSTERS


def verdict_of(estimate: float, p: float | None, within_margin: bool, lower_is_better: bool) -> Verdict:
    """The verdict on an effect: whether it is significant, and whether it is shown to lie within the margin."""
    if p is None or np.isnan(p) or p >= SIGNIFICANCE:
        return "no effect" if within_margin else "inconclusive"
    if (estimate < 0) == lower_is_better:
        return "slightly better" if within_margin else "better"
    return "slightly worse" if within_margin else "worse"


def current_verdicts(
    rows: pd.DataFrame, lower_is_better: bool, effect: str = "estimate", p: str = "p_holm"
) -> list[str]:
    """The verdicts of a stored table, in which version 0.1.0 called everything within the margin equivalent.

    Args:
        rows: The table's rows.
        lower_is_better: Whether a smaller value is better.
        effect: The column of the effects.
        p: The column of the adjusted p-values.
    """
    return [
        verdict_of(row[effect], row[p], True, lower_is_better) if row["verdict"] == "equivalent" else row["verdict"]
        for row in rows.to_dict("records")
    ]


def _level_of(values: Float[np.ndarray, " row"], rows: Paired, per: str) -> float:
    """What one condition is worth by itself, in the unit of its effect."""
    return float(values.mean() if per == BASELINE else values.sum() / rows.denominators.sum())


def _seed_sd(sums: ClusterSums) -> float | None:
    by_seed = sums.differences.sum(1) / sums.denominators.sum(1)
    if len(by_seed) < 2:
        return None
    # Seeds that agree but for rounding do not differ.
    return 0.0 if np.ptp(by_seed) < ROUNDING * np.abs(by_seed).max() else float(by_seed.std(ddof=1))


def _p_values(p: Sequence[float | None] | Float[np.ndarray, " test"]) -> tuple[np.ndarray, np.ndarray]:
    """The p-values of tests, and an array with a place for each (NaN where there is none)."""
    values = np.array([np.nan if value is None else value for value in p], dtype=float)
    tests = values[~np.isnan(values)]
    if ((tests < 0) | (tests > 1)).any():
        raise EffectError(f"p-values lie between 0 and 1, given {tests[(tests < 0) | (tests > 1)][0]}.")
    return tests, values
