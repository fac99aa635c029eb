"""How often effects are right: simulated comparisons without an effect, and the share of them that is significant."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from langneurons.effects.estimation import effect
from langneurons.effects.pairing import BASELINE
from langneurons.effects.resampling import SIGNIFICANCE, ClusterSums, spreads
from langneurons.errors import EffectError
from langneurons.settings import Testing, TestingOptions, with_options

TOGETHER = 50  # simulations that share their clusters' sizes
JUMPS = 0.03  # share of the clusters that differ thirty times as much as others
FLIPPED = "rare flips"  # of answers right or wrong
FLIPS, ROWS = 0.01, 20  # share of answers that change, each way, of the answers of a cluster

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
    """How often simulated effects were significant, covered the truth, and were called equivalent.

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


Drawn = Callable[[np.random.Generator, tuple[int, int]], Float[np.ndarray, "cluster simulation"]]

DIFFERENCES: Mapping[str, Drawn] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "Student's t (3)": lambda generator, shape: generator.standard_t(3, size=shape),
    "lognormal (1.2)": lambda generator, shape: generator.lognormal(0, 1.2, shape) - np.exp(1.2**2 / 2),
    "rare jumps": lambda generator, shape: (
        generator.normal(size=shape) * np.where(generator.random(shape) < JUMPS, 30.0, 1.0)
    ),
    FLIPPED: lambda generator, shape: (
        (generator.binomial(ROWS, FLIPS, shape) - generator.binomial(ROWS, FLIPS, shape)) / ROWS
    ),
}
SIZES: Mapping[str, Callable[[np.random.Generator, int], Float[np.ndarray, " cluster"]]] = {
    "equal": lambda generator, clusters: np.ones(clusters),
    "lognormal": lambda generator, clusters: generator.lognormal(0, 1, clusters),
    "one dominant": lambda generator, clusters: np.append(np.ones(clusters - 1), 20.0),
}


def observed_differences(rows_after: pd.DataFrame, rows_before: pd.DataFrame, value: str = "nll") -> Drawn:
    """Differences to draw with replacement, relative to the baseline, of the clusters of a real comparison.

    Args:
        rows_after: Rows of the condition, with ``cluster`` and the value.
        rows_before: Rows of the baseline.
        value: The column compared.
    """
    sums = [rows.groupby("cluster")[value].sum() for rows in (rows_after, rows_before)]
    relative = (sums[0] / sums[1] - sums[0].sum() / sums[1].sum()).to_numpy(float)
    centred = relative - relative.mean()
    return lambda generator, shape: generator.choice(centred, size=shape)


def false_alarms(
    differences: Mapping[str, Drawn] = DIFFERENCES,
    clusters: Sequence[int] = (8, 15, 30, 100),
    simulations: int = 2000,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how often effects of 0 are significant; as often the 95 % interval fails to hold them.

    Args:
        differences: Name -> a function that draws differences of mean 0, one per cluster and simulation.
        clusters: Numbers of clusters.
        simulations: Simulated comparisons of each kind, a multiple of 50.
        resamples: Resamples of each comparison.
        seed: Seed for the simulations.

    Returns:
        One row per kind of differences, kind of sizes and number of clusters: differences, sizes, clusters, rejected
        (the share with p < 0.05), low and high (its exact binomial 95 % interval).

    Example:
        >>> false_alarms({"normal": DIFFERENCES["normal"]}, [30], simulations=50, resamples=100)["clusters"].tolist()
        [30, 30, 30]
    """
    rows = []
    for name, draw in differences.items():
        for sizes, draw_sizes in SIZES.items():
            for number in clusters:
                generator, rejected = np.random.default_rng([seed, number]), 0
                for _ in range(simulations // TOGETHER):
                    size = draw_sizes(generator, number)
                    change = draw(generator, (number, TOGETHER)) * size[:, None]
                    sums = [ClusterSums(column[None], size[None], binary=name == FLIPPED) for column in change.T]
                    rejected += sum(spread.p() < SIGNIFICANCE for spread in spreads(sums, resamples, seed))
                share = Share.of(rejected, simulations // TOGETHER * TOGETHER)
                rows.append((name, sizes, number, share.share, share.low, share.high))
    return pd.DataFrame(rows, columns=["differences", "sizes", "clusters", "rejected", "low", "high"])
