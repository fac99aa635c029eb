"""Effects of very many conditions on the same rows, such as one ablated neuron each: the numbers of ``ln.effect``.

Every condition is resampled alike, so one product of matrices serves many of them at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from langneurons.evaluation.effects import (
    LOSSES,
    Effect,
    can_be_significant,
    check_options,
    detectable_size,
    level_of,
    p_value_of,
    sums_of,
    verdict_of,
)
from langneurons.evaluation.pairing import BASELINE, Paired, pair
from langneurons.evaluation.resampling import (
    DEGENERATE,
    SIGNIFICANCE,
    ClusterSums,
    Spread,
    all_signs,
    jackknife_variance,
    sign_chunks,
    weight_chunks,
)

TOGETHER = 64  # conditions whose resamples are held at once


def many_effects(
    conditions: Float[np.ndarray, "condition row"],
    baseline: pd.DataFrame,
    value: str = "nll",
    per: str = BASELINE,
    lower_is_better: bool | None = None,
    delta: float | int = 0.01,
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
        EffectError: As ``effect``.

    Example:
        >>> before = pd.DataFrame({"item": range(40), "cluster": [i // 2 for i in range(40)], "nll": 2.0})
        >>> worse, same = many_effects(np.stack([np.linspace(2.1, 2.3, 40), np.full(40, 2.0)]), before)
        >>> round(worse.estimate, 3), worse.verdict, same.verdict
        (0.1, 'worse', 'equivalent')
    """
    check_options(delta, level, resamples)
    unchanged = pair(baseline, baseline, value, per)
    lower_is_better = value in LOSSES if lower_is_better is None else lower_is_better
    options = (value, per, lower_is_better, float(delta), level, resamples, seed)
    found = []
    for start in range(0, len(conditions), TOGETHER):
        paired = [replace(unchanged, condition=one) for one in conditions[start : start + TOGETHER].astype(float)]
        found += _judged(paired, *options)
    return found


def _judged(
    paired: Sequence[Paired],
    value: str,
    per: str,
    lower_is_better: bool,
    delta: float,
    level: float,
    resamples: int,
    seed: int,
) -> Iterator[Effect]:
    sums = [sums_of(rows, per, value) for rows in paired]
    spreads, flipped = _spreads(sums, resamples, seed), _sign_flip_p(sums, resamples, seed)
    for rows, of, found, p in zip(paired, sums, spreads, flipped.tolist(), strict=True):
        if rows.binary and rows.single_rows:
            p = p_value_of(rows, of, found, resamples, seed)
        (low, high), (inner_low, inner_high) = found.interval(level), found.interval(1 - 2 * SIGNIFICANCE)
        equivalent = -delta <= inner_low and inner_high <= delta
        yield Effect(
            estimate=found.estimate,
            low=low,
            high=high,
            p=p,
            verdict=verdict_of(found.estimate, p, equivalent, lower_is_better),
            delta=delta,
            level=level,
            minimal_detectable=detectable_size(found) if can_be_significant(rows, of) else float("inf"),
            standard_error=found.standard_error,
            items=rows.items,
            clusters=of.shape[1],
            baseline=level_of(rows.baseline, rows, per),
            condition=level_of(rows.condition, rows, per),
            per=per,
            value=value,
            seed=seed,
            resamples=resamples,
            lower_is_better=lower_is_better,
            equivalent=equivalent,
        )


def _spreads(sums: Sequence[ClusterSums], resamples: int, seed: int) -> list[Spread]:
    """As ``spread`` of each, without training seeds."""
    variances = np.array([jackknife_variance(one, axis=0) for one in sums])
    magnitudes = _magnitudes(sums, resamples, seed, DEGENERATE * np.sqrt(variances))
    errors = np.sqrt(np.maximum(variances, [one.least_variance for one in sums]))
    degrees = float(sums[0].shape[1] - 1)
    return [
        Spread(one.ratio, float(error), degrees, drawn)
        for one, error, drawn in zip(sums, errors, magnitudes, strict=True)
    ]


def _magnitudes(
    sums: Sequence[ClusterSums], resamples: int, seed: int, least: Float[np.ndarray, " condition"]
) -> list[Float[np.ndarray, " resample"]]:
    """|ratio* - ratio| / standard error* of every condition, sorted; none where it does not vary at all."""
    size = sums[0].denominators[0]
    clusters = len(size)
    centred = np.stack([one.differences[0] - one.ratio * size for one in sums], axis=1)
    chunks = []
    for _, weights in weight_chunks((1, clusters), resamples, seed):
        total, both = weights @ size, weights @ size**2
        drawn = total > 0
        divisor = np.where(drawn, total, np.inf)[:, None]
        moved = weights @ centred / divisor
        squared = weights @ centred**2 - 2 * moved * (weights @ (centred * size[:, None])) + moved**2 * both[:, None]
        chunks.append((moved, np.sqrt(np.maximum(clusters / (clusters - 1) * squared, 0)) / divisor))
    moved, error = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    kept = (error > least) & (least > 0)
    return [np.sort(np.abs(moved[own, i]) / error[own, i]) for i, own in enumerate(kept.T)]


def _sign_flip_p(sums: Sequence[ClusterSums], resamples: int, seed: int) -> Float[np.ndarray, " condition"]:
    """As ``sign_flip_p`` of each."""
    differences = np.stack([one.differences[0] for one in sums], axis=1)
    clusters = len(differences)
    bar = np.abs(differences.sum(0)) - 1e-9 * np.abs(differences).sum(0)
    exact = 2 ** (clusters - 1) <= resamples
    chunks = [all_signs(clusters)] if exact else sign_chunks(clusters, resamples, seed)
    extreme = np.sum([(np.abs(signs @ differences) >= bar).sum(0) for signs in chunks], axis=0)
    return extreme / 2 ** (clusters - 1) if exact else (1 + extreme) / (1 + resamples)
