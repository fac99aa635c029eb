"""How often effects are right: simulated comparisons without an effect, and the share of them that is significant."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd
from scipy import stats

from langneurons.effects.estimation import effect
from langneurons.effects.pairing import BASELINE
from langneurons.effects.resampling import SIGNIFICANCE
from langneurons.errors import EffectError
from langneurons.settings import Testing, TestingOptions, with_options

Simulation = Callable[[np.random.Generator], tuple[pd.DataFrame, pd.DataFrame, float]]


@dataclass(frozen=True)
class Share:
    """A share of simulations with its exact binomial 95 % interval (Clopper and Pearson 1934).

    Attributes:
        share: The share.
        low: Lower end of the interval.
        high: Upper end.
    """

    share: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> "Share":
        """The share of a count in a total."""
        interval = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
        return cls(count / total, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Calibration:
    """How often simulated effects were significant, covered the truth, and were shown to lie within the margin.

    Attributes:
        simulations: Number of simulated comparisons.
        rejected: Share with p < 0.05: the false alarms where the truth is 0, the power where it is not.
        covered: Share whose interval holds the truth.
        within_margin: Share shown to lie within the margin.
    """

    simulations: int
    rejected: Share
    covered: Share
    within_margin: Share


def calibrate(
    simulate: Simulation,
    simulations: int = 200,
    value: str = "nll",
    per: str = BASELINE,
    *,
    testing: Testing = Testing(),
    **options: Unpack[TestingOptions],
) -> Calibration:
    """Estimate effects on simulated comparisons and count how often they are right.

    Args:
        simulate: Makes one comparison with a generator: condition rows, baseline rows, and the true effect.
        simulations: Number of comparisons to simulate.
        value: The column to compare.
        per: What summed differences are divided by, see ``effect``.
        testing: The margin, the interval's level and the resampling; its seed is also that of the simulations.
        options: Single fields of ``Testing``, such as ``margin=0.02``.

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
    (testing,) = with_options(options, testing)
    rejected = covered = within_margin = 0
    for number in range(simulations):
        condition, baseline, truth = simulate(np.random.default_rng([testing.seed, number]))
        change = effect(condition, baseline, value, per, testing=testing)
        rejected += change.p is not None and change.p < SIGNIFICANCE
        covered += change.low <= truth <= change.high
        within_margin += change.within_margin
    counts = (Share.of(int(count), simulations) for count in (rejected, covered, within_margin))
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
        cluster_sd: Standard deviation of each cluster's noise, as a share of the value.
        row_sd: Standard deviation of each row's noise, as a share of the value.

    Returns:
        A simulation for ``calibrate``, whose truth is 0.
    """
    members = [part for _, part in rows.groupby("cluster", sort=False)]

    def simulate(generator: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, float]:
        clusters = [
            members[index].assign(cluster=place)
            for place, index in enumerate(generator.integers(len(members), size=len(members)))
        ]
        baseline = pd.concat(clusters, ignore_index=True)
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
