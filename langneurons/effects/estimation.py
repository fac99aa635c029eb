"""Effects: a paired difference with its interval, its p-value, and a verdict that knows how to say "nothing there".

A difference that is not significant is no evidence of no difference. So each effect carries what it could have found
(the minimal detectable effect) and is called equivalent only where its interval lies inside a stated margin.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from langneurons.effects.pairing import BASELINE, Paired, pair
from langneurons.effects.resampling import SIGNIFICANCE, ClusterSums, Spread, sign_flip_p_values, spreads
from langneurons.errors import EffectError

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
LOSSES = ("nll", "loss", "perplexity", "bits_per_byte")
LEAST_SEEDS = 6


@dataclass(frozen=True)
class Effect:
    """What a condition changed, against the baseline, on the same items.

    Attributes:
        estimate: Sum of differences / sum of denominators; positive where the condition's values are larger.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided; None where fewer than six training seeds could not give one below 0.05.
        verdict: "equivalent", "better", "worse" or "inconclusive".
        delta: Margin of equivalence, in units of the estimate.
        level: Confidence of the interval.
        minimal_detectable: The true effect found with 80 % power by one two-sided 5 % test (no family counted), and
            never less than half the 95 % interval; infinite where no outcome could be significant.
        standard_error: Of the estimate, from clusters (and seeds).
        items: Distinct items.
        clusters: What was resampled.
        baseline: Level without the condition: sum of values / sum of denominators, or per row where ``per`` is
            "baseline".
        condition: Level with the condition.
        per: What differences were divided by.
        value: What was measured.
        seed: Of the resampling.
        resamples: How many.
        lower_is_better: Whether a smaller value is better.
        equivalent: Whether two one-sided 5 % tests place the effect inside +-delta.
        seeds: Training seeds, None where nothing was trained.
        seed_sd: Standard deviation of the effect between training seeds.
    """

    estimate: float
    low: float
    high: float
    p: float | None
    verdict: Verdict
    delta: float
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

        A difference smaller than delta is equivalent even where it is significant.
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
    delta: float = 0.01,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Effect:
    """Compare two conditions measured on the same items.

    The interval is a symmetric studentized bootstrap of clusters; the test flips the signs of clusters (exact McNemar
    where every cluster is one row of 0 or 1). The interval is the more cautious of the two: with few clusters of very
    unequal size it may hold 0 where the test rejects 0.

    Rows with a column ``seed`` come from trained models: seeds and clusters are both resampled, the p-value is the
    bootstrap's, and below six seeds there is none. The interval of a single seed says nothing about other seeds.

    Args:
        condition: Rows with ``item``, ``cluster`` and the value, perhaps ``seed``.
        baseline: Rows of the same items in the same clusters.
        value: The column compared.
        per: What the summed differences are divided by: ``"baseline"`` (the baseline's own sum: relative change),
            ``"row"`` (their number) or a column of the baseline such as ``"tokens"``.
        lower_is_better: None knows that it is for losses (nll, loss, perplexity, bits_per_byte) and for nothing else.
        delta: Differences within +-delta are of no interest; in units of the estimate.
        level: Confidence of the interval.
        resamples: Bootstrap samples, and sign patterns.
        seed: Of the resampling.

    Raises:
        EffectError: If the rows cannot be paired, there are fewer than two clusters, or the denominators are not
            positive.

    Example:
        >>> before = pd.DataFrame({"item": range(40), "cluster": [i // 2 for i in range(40)], "nll": 2.0})
        >>> after = before.assign(nll=[2.2 + 0.01 * (i % 7) for i in range(40)])
        >>> found = effect(after, before)
        >>> round(found.estimate, 3), found.verdict, found.clusters
        (0.114, 'worse', 20)
    """
    lower_is_better = value in LOSSES if lower_is_better is None else lower_is_better
    options = Options(value, per, lower_is_better, float(delta), level, resamples, seed)
    return effects_of([pair(condition, baseline, value, per)], options)[0]


@dataclass(frozen=True)
class Options:
    """How effects are estimated; ``effect`` says what each means."""

    value: str
    per: str
    lower_is_better: bool
    delta: float
    level: float
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        check_options(self.delta, self.level, self.resamples)


def effects_of(paired: Sequence[Paired], options: Options) -> list[Effect]:
    """Estimate the effects of conditions that share one baseline; all are resampled alike.

    Args:
        paired: Each condition beside the baseline.
        options: How.
    """
    sums = [sums_of(rows, options.per, options.value) for rows in paired]
    found = spreads(sums, options.resamples, options.seed)
    p = _p_values_of(paired, sums, found, options)
    return [_judged(*one, options) for one in zip(paired, sums, found, p, strict=True)]


def _judged(rows: Paired, sums: ClusterSums, found: Spread, p: float | None, options: Options) -> Effect:
    (low, high), (inner_low, inner_high) = found.interval(options.level), found.interval(1 - 2 * SIGNIFICANCE)
    one_seed = rows.trained and sums.shape[0] == 1
    equivalent = -options.delta <= inner_low and inner_high <= options.delta and not one_seed
    return Effect(
        estimate=found.estimate,
        low=low,
        high=high,
        p=p,
        verdict=verdict_of(found.estimate, p, equivalent, options.lower_is_better),
        minimal_detectable=_detectable_size(found) if _can_be_significant(rows, sums) else float("inf"),
        standard_error=found.standard_error,
        items=rows.items,
        clusters=sums.shape[1],
        baseline=_level_of(rows.baseline, rows, options.per),
        condition=_level_of(rows.condition, rows, options.per),
        equivalent=equivalent,
        seeds=sums.shape[0] if rows.trained else None,
        seed_sd=_seed_sd(sums) if rows.trained else None,
        **asdict(options),
    )


def difference(condition: pd.DataFrame, baseline: pd.DataFrame, value: str = "nll", per: str = BASELINE) -> float:
    """The estimate of ``effect`` alone, without resampling: for the many draws of a control.

    Args:
        condition: Rows as for ``effect``.
        baseline: Rows as for ``effect``.
        value: The column compared.
        per: What the summed differences are divided by.

    Raises:
        EffectError: As ``effect``.

    Example:
        >>> before = pd.DataFrame({"item": [0, 1], "cluster": [0, 1], "nll": [2.0, 2.0]})
        >>> difference(before.assign(nll=[2.0, 3.0]), before)
        0.25
    """
    return sums_of(pair(condition, baseline, value, per), per, value).ratio


def holm(p: Sequence[float | None] | Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjust p-values so that one family makes any false claim with 5 % probability at most (Holm 1979).

    Args:
        p: One per test; None or NaN is no test, does not count in the family, and stays NaN.

    Example:
        >>> holm([0.01, None, 0.04, 0.03]).tolist()
        [0.03, nan, 0.06, 0.06]
    """
    given, adjusted = _p_values(p)
    order = np.argsort(given)
    stepped = given[order] * np.arange(len(given), 0, -1)
    adjusted[np.flatnonzero(~np.isnan(adjusted))[order]] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


def benjamini_hochberg(p: Sequence[float | None] | Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjust p-values so that at most 5 % of a long list of claims are false in expectation (Benjamini, Hochberg 1995).

    Args:
        p: One per test; None or NaN is no test, does not count, and stays NaN.

    Example:
        >>> benjamini_hochberg([0.01, None, 0.04, 0.03]).tolist()
        [0.03, nan, 0.04, 0.04]
    """
    given, adjusted = _p_values(p)
    if len(given):
        adjusted[~np.isnan(adjusted)] = stats.false_discovery_control(given)
    return adjusted


def check_options(delta: float, level: float, resamples: int) -> None:
    """Refuse options that no effect can be estimated with, before anything is measured.

    Raises:
        EffectError: If one is out of range.
    """
    if not 0 < delta < np.inf:
        raise EffectError(f"delta is the largest difference of no interest: a positive number, given {delta}.")
    if not 0 < level < 1:
        raise EffectError(f"level is a confidence between 0 and 1, such as 0.95, given {level}.")
    if resamples < 100:
        raise EffectError(f"{resamples} resamples cannot give an interval: take at least 100, better 5000.")


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
    paired: Sequence[Paired], sums: Sequence[ClusterSums], found: Sequence[Spread], options: Options
) -> list[float | None]:
    """The test that fits the rows: over seeds, of single right or wrong answers, or by flipping clusters' signs."""
    if paired[0].trained:
        return [one.p() if of.shape[0] >= LEAST_SEEDS else None for of, one in zip(sums, found, strict=True)]
    p: list[float | None] = [
        _mcnemar(of) if rows.binary and rows.single_rows else None for rows, of in zip(paired, sums, strict=True)
    ]
    if flipped := [place for place, one in enumerate(p) if one is None]:
        differences = np.stack([sums[place].differences[0] for place in flipped], axis=1)
        values = sign_flip_p_values(differences, options.resamples, options.seed)
        for place, value in zip(flipped, values.tolist(), strict=True):
            p[place] = value
    return p


def _mcnemar(sums: ClusterSums) -> float:
    gained, lost = int((sums.differences > 0).sum()), int((sums.differences < 0).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _detectable_size(found: Spread) -> float:
    """At least half the interval: where only few rows change, the standard error alone would promise too much."""
    low, high = found.interval(1 - SIGNIFICANCE)
    return max(found.minimal_detectable(), (high - low) / 2)


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
    """The p-values given, and an array with a place for each (NaN where none was)."""
    values = np.array([np.nan if one is None else one for one in p], dtype=float)
    given = values[~np.isnan(values)]
    if ((given < 0) | (given > 1)).any():
        raise EffectError(f"p-values lie between 0 and 1, given {given[(given < 0) | (given > 1)][0]}.")
    return given, values


TOGETHER = 64  # conditions whose resamples are held at once


def many_effects(
    conditions: Float[np.ndarray, "condition row"],
    baseline: pd.DataFrame,
    value: str = "nll",
    per: str = BASELINE,
    lower_is_better: bool | None = None,
    delta: float = 0.01,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> list[Effect]:
    """Compare many untrained conditions with one baseline.

    Args:
        conditions: The value of each row of the baseline, in its order, under every condition.
        baseline: Rows with ``item``, ``cluster`` and the value, of one language.
        value: As for ``effect``, like all that follow.
        per: What summed differences are divided by.
        lower_is_better: None knows that it is for losses.
        delta: Differences within +-delta are of no interest.
        level: Confidence of the intervals.
        resamples: Bootstrap samples, and sign patterns.
        seed: Of the resampling.

    Returns:
        What ``effect`` gives for each condition alone.

    Raises:
        EffectError: As ``effect``; also if a value is not finite.

    Example:
        >>> before = pd.DataFrame({"item": range(40), "cluster": [i // 2 for i in range(40)], "nll": 2.0})
        >>> worse, same = many_effects(np.stack([np.linspace(2.1, 2.3, 40), np.full(40, 2.0)]), before)
        >>> round(worse.estimate, 3), worse.verdict, same.verdict
        (0.1, 'worse', 'equivalent')
    """
    lower_is_better = value in LOSSES if lower_is_better is None else lower_is_better
    options = Options(value, per, lower_is_better, float(delta), level, resamples, seed)
    unchanged = pair(baseline, baseline, value, per)
    if wrong := np.argwhere(~np.isfinite(conditions)).tolist():
        affected, (condition, row) = len({one for one, _ in wrong}), wrong[0]
        raise EffectError(
            f"{affected} of {len(conditions)} conditions hold values of {value!r} that are no finite number, such as "
            f"condition {condition} at item {baseline['item'].tolist()[row]!r}."
        )
    found = []
    for start in range(0, len(conditions), TOGETHER):
        part = conditions[start : start + TOGETHER].astype(float)
        found += effects_of([replace(unchanged, condition=one) for one in part], options)
    return found
