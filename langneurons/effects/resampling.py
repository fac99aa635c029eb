"""Resampling clusters: how far a ratio of sums would move with other documents, and with other training seeds.

Everything works on ``ClusterSums``: sums per training seed and cluster, so its cost does not grow with the rows. The
random draws depend on the number of clusters (and seeds) only and are kept, so a table of effects draws them once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float, Int, UInt16
from scipy import stats

SIGNIFICANCE = 0.05
POWER = 0.8
ENTRIES = 4_000_000
DEGENERATE = 1e-6
SKEW_WIDENING = 1.5  # of the standard error, per excess skewness; measured, see docs/effects.md
FEW_CLUSTERS = 8  # that cannot show whether they are skewed


@dataclass(frozen=True, eq=False)
class ClusterSums:
    """What is left of paired rows: sums per training seed (one, where nothing was trained) and cluster.

    Attributes:
        differences: Sum of condition - baseline.
        denominators: Sum of what the differences are divided by.
        least_variance: Lower bound on the sampling variance of ``ratio``, where the values themselves imply one.
        binary: Whether all values are 0 or 1, so that no difference can lie far out.
    """

    differences: Float[np.ndarray, "seed cluster"]
    denominators: Float[np.ndarray, "seed cluster"]
    least_variance: float = 0.0
    binary: bool = False

    @classmethod
    def of(
        cls,
        differences: Float[np.ndarray, " row"],
        denominators: Float[np.ndarray, " row"],
        clusters: Int[np.ndarray, " row"],
        seeds: Int[np.ndarray, " row"],
        least_variance: float = 0.0,
    ) -> "ClusterSums":
        """Sum rows by seed and cluster, both numbered from 0 without gaps."""
        shape = int(seeds.max()) + 1, int(clusters.max()) + 1
        flat = seeds * shape[1] + clusters
        size = shape[0] * shape[1]
        differences, denominators = (np.bincount(flat, part, size) for part in (differences, denominators))
        return cls(differences.reshape(shape), denominators.reshape(shape), least_variance)

    @property
    def ratio(self) -> float:
        """Sum of differences / sum of denominators: the estimate."""
        return float(self.differences.sum() / self.denominators.sum())

    @property
    def largest_share(self) -> float:
        """Share of the denominators that the largest cluster holds."""
        by_cluster = self.denominators.sum(0)
        return float(by_cluster.max() / by_cluster.sum())

    @property
    def shape(self) -> tuple[int, int]:
        """Number of seeds, number of clusters."""
        seeds, clusters = self.differences.shape
        return seeds, clusters


@dataclass(frozen=True, eq=False)
class Spread:
    """How a ratio varies from one draw of clusters (and seeds) to the next.

    Attributes:
        estimate: The ratio itself.
        standard_error: Jackknife over clusters, and over seeds where there are several (the variances are added),
            widened where clusters are skewed.
        degrees: Degrees of freedom of the standard error: those of clusters of equal size, however unequal they are
            (Satterthwaite where there are several seeds).
        draws: Studentized resamples, (ratio* - ratio) / standard error*, increasing; those that drew no variation at
            all are left out.
    """

    estimate: float
    standard_error: float
    degrees: float
    draws: Float[np.ndarray, " resample"]

    @cached_property
    def magnitudes(self) -> Float[np.ndarray, " resample"]:
        """|t| of the resamples, increasing."""
        return np.sort(np.abs(self.draws))

    def interval(self, level: float) -> tuple[float, float]:
        """The interval that holds 0 exactly where ``p`` is at least 1 - ``level``.

        Of the symmetric and the equal-tailed studentized bootstrap (Hall 1988) and of Student's t, it is on each side
        the farthest.

        Args:
            level: Confidence, such as 0.95.

        Returns:
            Low and high.
        """
        alpha = 1 - level
        widest = max(float(stats.t.ppf(1 - alpha / 2, self.degrees)), _critical(self.magnitudes, alpha))
        below = max(widest, _critical(self.draws, alpha / 2)) * self.standard_error
        above = max(widest, _critical(-self.draws[::-1], alpha / 2)) * self.standard_error
        return self.estimate - below, self.estimate + above

    def p(self) -> float:
        """Two-sided p-value of an effect of 0: the largest of the tests whose intervals ``interval`` puts together."""
        if self.standard_error == 0:
            return 1.0 if self.estimate == 0 else 0.0
        observed = self.estimate / self.standard_error
        student = float(2 * stats.t.sf(abs(observed), self.degrees))
        tail = self.draws if observed >= 0 else -self.draws[::-1]
        symmetric, equal_tailed = (_share_beyond(draws, abs(observed)) for draws in (self.magnitudes, tail))
        return min(1.0, max(student, symmetric, 2 * equal_tailed))

    def minimal_detectable(self) -> float:
        """The true effect that a two-sided 5 % test finds with 80 % power (Bloom 1995, doi 10.1177/0193841X9501900504).

        Example:
            >>> spread = Spread(0.0, 0.01, 1e9, np.empty(0))
            >>> round(spread.minimal_detectable(), 4)
            0.028
        """
        low, high = self.interval(1 - SIGNIFICANCE)
        return (high - low) / 2 + float(stats.t.ppf(POWER, self.degrees)) * self.standard_error


def detectable_multiplier(degrees: float, family: int = 1) -> float:
    """How many standard errors an effect must measure to be found with 80 % power, two-sided, at 5 % / ``family``.

    Example:
        >>> round(detectable_multiplier(1e9, 49) / detectable_multiplier(1e9), 2)
        1.47
    """
    return float(stats.t.ppf(1 - SIGNIFICANCE / 2 / family, degrees) + stats.t.ppf(POWER, degrees))


def spread(sums: ClusterSums, resamples: int, seed: int) -> Spread:
    """Bootstrap a ratio: clusters are drawn with replacement, and seeds too, numerators and denominators together.

    docs/effects.md says how often it raises false alarms, on skewed, heavy-tailed and sparse differences of 8 to 100
    clusters of equal and unequal sizes. All seeds of a resample share its clusters, because all trained models were
    measured on the same documents; drawing clusters anew for every seed would average their share of the variance away.

    Args:
        sums: The observed sums.
        resamples: Number of bootstrap samples.
        seed: Seed of the samples.
    """
    return spreads([sums], resamples, seed)[0]


def spreads(sums: Sequence[ClusterSums], resamples: int, seed: int) -> list[Spread]:
    """Bootstrap several ratios like ``spread``; one product of matrices resamples them all.

    Args:
        sums: Sums of each condition, over the same clusters (and seeds) and with the same denominators.
        resamples: Number of bootstrap samples.
        seed: Seed of the samples.
    """
    by_seed, by_cluster = (np.array([jackknife_variance(part, axis) for part in sums]) for axis in (1, 0))
    variances = by_seed + by_cluster
    errors = np.sqrt(np.maximum(variances, [part.least_variance for part in sums]))
    errors *= [1 + SKEW_WIDENING * excess_skewness(part) for part in sums]
    draws = _draws(sums, resamples, seed, DEGENERATE * np.sqrt(variances))
    equal = max(effective_clusters(sums[0]), 1.1)  # Student's t has no quantiles at no degrees of freedom
    degrees = [
        _degrees(*parts, equal)
        for parts in zip(by_seed.tolist(), by_cluster.tolist(), (part.shape[0] for part in sums), strict=True)
    ]
    return [
        Spread(part.ratio, float(error), freedom, of_part)
        for part, error, freedom, of_part in zip(sums, errors, degrees, draws, strict=True)
    ]


def least_p(resamples: int) -> float:
    """The smallest p-value that a number of resamples can give: none of them lies in either tail.

    Example:
        >>> least_p(1999)
        0.001
    """
    return 2 / (resamples + 1)


def effective_clusters(sums: ClusterSums) -> float:
    """How many clusters of equal size would carry as much information: the inverse of the sum of squared shares.

    Example:
        >>> effective_clusters(ClusterSums(np.zeros((1, 3)), np.array([[2.0, 1.0, 1.0]])))
        2.6666666666666665
    """
    shares = sums.denominators.sum(0) / sums.denominators.sum()
    return float(1 / np.square(shares).sum())


def excess_skewness(sums: ClusterSums) -> float:
    """Skewness of the clusters' differences over the root of their number, beyond what normal ones show by chance.

    A sample of few skewed clusters mostly lacks the long tail: then it looks less variable than it is, and its mean is
    off in one direction. What normal clusters show by chance (root of 6 / n) is taken off, all of it only of many
    clusters, since few can hardly look skewed. Values of 0 and 1 hide no tail.
    """
    differences, size = sums.differences.sum(0), sums.denominators.sum(0)
    weighted = size > 0
    centred = (differences - sums.ratio * size)[weighted] / np.sqrt(size[weighted])
    centred = centred - centred.mean()
    spread_of_all, count = np.sqrt(np.square(centred).sum()), len(centred)
    if sums.binary or count < 3 or spread_of_all <= DEGENERATE * np.abs(differences).sum():
        return 0.0
    skewness = abs(float(((centred / spread_of_all) ** 3).sum()))
    return max(0.0, skewness - np.sqrt(6) / count * max(0.0, 1 - FEW_CLUSTERS / count))


def _critical(draws: Float[np.ndarray, " resample"], alpha: float) -> float:
    """The value that a statistic must exceed so that fewer than ``alpha`` of it and the draws are as large."""
    if not len(draws):
        return 0.0
    beyond = int(np.ceil(alpha * (1 + len(draws)) - 1e-9)) - 2
    return float("inf") if beyond < 0 else float(draws[len(draws) - 1 - beyond])


def _share_beyond(draws: Float[np.ndarray, " resample"], value: float) -> float:
    """The share of the value and the draws that is at least as large as the value; 0 without draws."""
    if not len(draws):
        return 0.0
    return (1 + len(draws) - int(np.searchsorted(draws, value))) / (1 + len(draws))


def jackknife_variance(sums: ClusterSums, axis: int) -> float:
    """Variance of the ratio when one cluster (summing over axis 0) or one seed (over axis 1) is left out in turn."""
    differences, denominators = sums.differences.sum(axis), sums.denominators.sum(axis)
    count = len(differences)
    if count == 1:
        return 0.0
    # Centred first: equal relative differences then give exactly the rounding error of zero, not of the sums.
    centred = differences - sums.ratio * denominators
    left_out = (centred.sum() - centred) / (denominators.sum() - denominators)
    return float((count - 1) / count * np.square(left_out - left_out.mean()).sum())


def _degrees(seed_variance: float, cluster_variance: float, seeds: int, clusters: float) -> float:
    if seed_variance == 0:
        return clusters - 1
    rates = seed_variance**2 / (seeds - 1) + cluster_variance**2 / (clusters - 1)
    return (seed_variance + cluster_variance) ** 2 / rates


def _draws(
    sums: Sequence[ClusterSums], resamples: int, seed: int, least: Float[np.ndarray, " condition"]
) -> list[Float[np.ndarray, " resample"]]:
    """(ratio* - ratio) / standard error* of each, sorted, of the resamples whose standard error exceeds ``least``.

    None where nothing varies.
    """
    if not (least > 0).any():
        return [np.empty(0)] * len(sums)
    chunks = [_studentized(sums, *chunk) for chunk in weight_chunks(sums[0].shape, resamples, seed)]
    moved, error = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    varies = (error > least) & (least > 0)
    return [np.sort(moved[own, i] / error[own, i]) for i, own in enumerate(varies.T)]


def _studentized(
    sums: Sequence[ClusterSums],
    seed_weights: Float[np.ndarray, "resample seed"],
    cluster_weights: Float[np.ndarray, "resample cluster"],
) -> tuple[Float[np.ndarray, "resample condition"], Float[np.ndarray, "resample condition"]]:
    """How far each resample's ratio moved, and its linearised standard error (0 where it has no denominator)."""
    size = sums[0].denominators
    seeds, clusters = size.shape
    centred = np.stack([part.differences - part.ratio * size for part in sums])
    by_seed, size_by_seed, own, cross, both = _weighted(
        cluster_weights,
        centred,
        size,
        np.einsum("nsc,ntc->nstc", centred, centred),
        np.einsum("nsc,tc->nstc", centred, size),
        np.einsum("sc,tc->stc", size, size),
    )
    total = np.einsum("bs,bs->b", seed_weights, size_by_seed)
    divisor = np.where(total > 0, total, np.inf)[:, None]
    moved = np.einsum("bs,bns->bn", seed_weights, by_seed) / divisor
    twice = np.einsum("bs,bt->bst", seed_weights, seed_weights)
    own, cross = (np.einsum("bst,bnst->bn", twice, part) for part in (own, cross))
    both = np.einsum("bst,bst->b", twice, both)[:, None]
    variance = clusters / (clusters - 1) * (own - 2 * moved * cross + moved**2 * both)
    if seeds > 1:
        residuals = by_seed - moved[..., None] * size_by_seed[:, None]
        variance += seeds / (seeds - 1) * np.einsum("bs,bns->bn", seed_weights, residuals**2)
    return moved, np.sqrt(np.maximum(variance, 0)) / divisor


def _weighted(
    weights: Float[np.ndarray, "resample cluster"], *parts: Float[np.ndarray, "... cluster"]
) -> list[Float[np.ndarray, "resample ..."]]:
    """Sum arrays over clusters by the weights of every resample, in one product of matrices."""
    flat = [part.reshape(-1, weights.shape[1]) for part in parts]
    products = weights @ np.concatenate(flat).T
    split = np.split(products, np.cumsum([len(part) for part in flat])[:-1], axis=1)
    return [sums.reshape(len(weights), *part.shape[:-1]) for sums, part in zip(split, parts, strict=True)]


def weight_chunks(
    shape: tuple[int, int], resamples: int, seed: int
) -> Iterator[tuple[Float[np.ndarray, "resample seed"], Float[np.ndarray, "resample cluster"]]]:
    """How often each resample drew each seed and each cluster, some resamples at a time."""
    seeds, clusters = shape
    for chunk, count in enumerate(_chunked(resamples, clusters)):
        yield _counts(seeds, count, seed, -1 - chunk).astype(float), _counts(clusters, count, seed, chunk).astype(float)


def _chunked(resamples: int, clusters: int) -> list[int]:
    """Cut resamples so that no matrix of resamples x clusters exceeds ``ENTRIES``."""
    rows = max(1, ENTRIES // clusters)
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]


@lru_cache(maxsize=32)
def _counts(units: int, resamples: int, seed: int, stream: int) -> UInt16[np.ndarray, "resample unit"]:
    indices = np.random.default_rng([units, seed, abs(stream), stream < 0]).integers(units, size=(resamples, units))
    indices += units * np.arange(resamples)[:, None]
    return np.bincount(indices.ravel(), minlength=indices.size).reshape(indices.shape).astype(np.uint16)
