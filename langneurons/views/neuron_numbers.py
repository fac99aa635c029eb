"""Statistics of single neurons as a page shows them: numbers per language, and distributions on shared axes."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.recording.statistics import ActivationStats

SHARES = (0.1, 0.5, 0.9)
TAIL = 0.001  # share of each language's tokens that is left out at either end of the shared axis
BINS, STEP, HEIGHT = 40, 4, 28  # bins of a strip; width of a bin and height of the strip, in pixels


@dataclass(frozen=True)
class Numbers:
    """Every neuron's numbers.

    Attributes:
        probability: Share of tokens with a value above zero.
        mean: Mean value; None where the statistics do not hold it (published counts).
    """

    probability: Float[Tensor, "language layer neuron"]
    mean: Float[Tensor, "language layer neuron"] | None


@dataclass(frozen=True)
class Strips:
    """One neuron's distribution in each language, on one axis and one scale.

    Attributes:
        low: Left end of the axis.
        high: Right end.
        zero: Position of 0 on it, in pixels; None outside.
        paths: Language -> outline, as the ``d`` of an SVG path.
        quantiles: Language -> the quantiles at ``SHARES`` of the same quantity, interpolated in the histogram.
    """

    low: float
    high: float
    zero: float | None
    paths: dict[str, str]
    quantiles: dict[str, list[float]]


_CACHE: WeakKeyDictionary[ActivationStats, dict[str, Numbers]] = WeakKeyDictionary()


def numbers(stats: ActivationStats, site: str) -> Numbers:
    """Compute the numbers of all neurons of a site, once for each statistics."""
    by_site = _CACHE.setdefault(stats, {})
    if site not in by_site:
        at_site = stats.at(site)
        try:
            mean = at_site.mean()
        except StatisticsError:
            mean = None
        by_site[site] = Numbers(at_site.probability(), mean)
    return by_site[site]


def strips(stats: ActivationStats, neuron: tuple[int, int]) -> Strips | None:
    """Outline a neuron's distributions: of z at the sites pre and act, of the value elsewhere.

    Args:
        stats: Activation statistics.
        neuron: Layer and index.

    Returns:
        The outlines, all of one area; None where no histograms were recorded.

    Raises:
        StatisticsError: If the model has no such neuron.

    Example:
        >>> from langneurons.views.neuron_numbers import strips
        >>> list(strips(stats, (0, 5)).paths)
        ['en', 'hi', 'zh']
    """
    stats.check_neuron(neuron)
    try:
        histograms = [stats.histogram(language, neuron) for language in stats.languages]
    except StatisticsError:
        return None
    curves = [_cumulative(edges.double().numpy(), counts.double().numpy()) for edges, counts in histograms]
    low = min(float(np.interp(TAIL, share, edges)) for edges, share in curves)
    high = max(float(np.interp(1 - TAIL, share, edges)) for edges, share in curves)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    axis = np.linspace(low, high, BINS + 1)
    heights = [np.diff(np.interp(axis, edges, share)) for edges, share in curves]
    highest = max(float(height.max()) for height in heights) or 1.0
    zero = STEP * BINS * (0 - low) / (high - low) if low <= 0 <= high else None
    paths = [_outline(height / highest) for height in heights]
    quantiles = [np.interp(SHARES, share, edges).tolist() for edges, share in curves]
    languages = stats.languages
    return Strips(
        low, high, zero, dict(zip(languages, paths, strict=True)), dict(zip(languages, quantiles, strict=True))
    )


def _cumulative(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of tokens below each edge, where there are any: strictly increasing, so that it can be inverted."""
    share = np.concatenate([[0.0], np.cumsum(counts) / max(counts.sum(), 1.0)])
    rising = np.flatnonzero(np.diff(share) > 0)
    places = [*rising, rising[-1] + 1] if len(rising) else [0, len(share) - 1]
    return edges[places], share[places]


def _outline(heights: np.ndarray) -> str:
    tops = [HEIGHT - round(float(height) * (HEIGHT - 1)) for height in heights]
    return f"M0 {HEIGHT}" + "".join(f"V{top}h{STEP}" for top in tops) + f"V{HEIGHT}z"
