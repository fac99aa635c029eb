"""Calibration: whether effects keep their promises, by simulating comparisons whose truth is known (A/A tests)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from langneurons.effects.estimation import effect
from langneurons.effects.resampling import SIGNIFICANCE
from langneurons.errors import EffectError

Simulation = Callable[[np.random.Generator], tuple[pd.DataFrame, pd.DataFrame, float]]


@dataclass(frozen=True)
class Share:
    """A share of simulations with its exact binomial 95 % interval (Clopper and Pearson 1934).

    Attributes:
        share: The share seen.
        low: Lower end.
        high: Upper end.
    """

    share: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> "Share":
        """How many of how many."""
        interval = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
        return cls(count / total, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Calibration:
    """How often simulated effects were significant, covered the truth, and were called equivalent.

    Attributes:
        simulations: How many comparisons were simulated.
        rejected: Share with p < 0.05: the false alarms where the truth is 0, the power where it is not.
        covered: Share whose interval holds the truth.
        equivalent: Share called equivalent.
    """

    simulations: int
    rejected: Share
    covered: Share
    equivalent: Share


def calibrate(simulate: Simulation, simulations: int = 200, seed: int = 0, **options: Any) -> Calibration:
    """Estimate effects on simulated comparisons and count how often they are right.

    Args:
        simulate: Makes one comparison with a generator: condition rows, baseline rows, and the true effect.
        simulations: How many.
        seed: Of the generators, and of the resampling.
        options: Of ``effect``: value, per, delta, level, resamples.

    Raises:
        EffectError: If a comparison cannot be estimated.

    Example:
        >>> item = np.arange(60)
        >>> rows = pd.DataFrame({"item": item, "cluster": item // 3, "nll": 2.0 + item % 5})
        >>> checked = calibrate(null_comparisons(rows, cluster_sd=0.05), simulations=50, resamples=400)
        >>> checked.rejected.low <= 0.05 <= checked.rejected.high
        True
    """
    if simulations < 1:
        raise EffectError(f"A calibration needs at least one simulation, given {simulations}.")
    rejected = covered = equivalent = 0
    for number in range(simulations):
        condition, baseline, truth = simulate(np.random.default_rng([seed, number]))
        found = effect(condition, baseline, seed=seed, **options)
        rejected += found.p is not None and found.p < SIGNIFICANCE
        covered += found.low <= truth <= found.high
        equivalent += found.equivalent
    counts = (Share.of(int(count), simulations) for count in (rejected, covered, equivalent))
    return Calibration(simulations, *counts)


def null_comparisons(
    rows: pd.DataFrame, value: str = "nll", cluster_sd: float = 0.05, row_sd: float = 0.05
) -> Simulation:
    """Comparisons without an effect, made of real rows.

    Each simulation draws the rows' clusters with replacement, so that they vary as another sample of documents would,
    and multiplies the values by 1 + noise that rows of one cluster share, + noise of each row's own.

    Args:
        rows: Baseline rows with ``item``, ``cluster`` and the value.
        value: The column to disturb.
        cluster_sd: Standard deviation of the noise of a cluster, as a share of the value.
        row_sd: The same of a row.

    Returns:
        A simulation for ``calibrate``, whose truth is 0.
    """
    members = [part for _, part in rows.groupby("cluster", sort=False)]

    def simulate(generator: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, float]:
        drawn = [
            members[index].assign(cluster=place)
            for place, index in enumerate(generator.integers(len(members), size=len(members)))
        ]
        baseline = pd.concat(drawn, ignore_index=True)
        baseline["item"] = np.arange(len(baseline))
        shared = generator.normal(0, cluster_sd, len(members))[baseline["cluster"]]
        noise = 1 + shared + generator.normal(0, row_sd, len(baseline))
        return baseline.assign(**{value: baseline[value] * noise}), baseline, 0.0

    return simulate


def by_row(simulate: Simulation) -> Simulation:
    """The same comparisons as if every row were a cluster of its own: what goes wrong when clusters are ignored."""

    def ungrouped(generator: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, float]:
        condition, baseline, truth = simulate(generator)
        return condition.assign(cluster=condition["item"]), baseline.assign(cluster=baseline["item"]), truth

    return ungrouped
