"""From scores to neurons: exactly as many as asked, ties broken by layer and then index."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int

from langneurons.errors import StatisticsError
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.recording.statistics import PUBLISHED, ActivationStats


def check_share(name: str, value: float, zero_allowed: bool = False) -> None:
    """Refuse a share outside (0, 1], or outside [0, 1].

    Raises:
        StatisticsError: If it is no such share.
    """
    if not (0 <= value <= 1) or (value == 0 and not zero_allowed):
        lowest = "0 <=" if zero_allowed else "0 <"
        raise StatisticsError(f"{name} is a share, {lowest} {name} <= 1, not {value}.")


def wanted(top: float, stats: ActivationStats) -> int:
    """How many neurons ``top`` stands for: round(top x layers x width).

    Raises:
        StatisticsError: If that is none.
    """
    layers, width = stats.shape
    count = round(layers * width * top)
    if count == 0:
        raise StatisticsError(
            f"top={top} of {layers} layers x {width} neurons is less than one neuron: give a larger top."
        )
    return count


def lowest(values: Float[np.ndarray, " n"], count: int, ties: str = "exact") -> Int[np.ndarray, " kept"]:
    """Positions of the ``count`` smallest values, increasing; of equal values the first are taken.

    Args:
        values: Without NaN.
        count: How many; all where there are fewer.
        ties: ``"exact"``, or ``"keep"`` to keep every value equal to the last one taken.

    Example:
        >>> lowest(np.array([2.0, 1.0, 1.0, 1.0]), 2).tolist()
        [1, 2]
    """
    if count >= len(values):
        return np.arange(len(values))
    cutoff = np.partition(values, count - 1)[count - 1]
    if ties == "keep":
        return np.flatnonzero(values <= cutoff)
    below = np.flatnonzero(values < cutoff)
    equal = np.flatnonzero(values == cutoff)[: count - len(below)]
    return np.sort(np.concatenate([below, equal]))


def level(values: Float[torch.Tensor, "..."], quantile: float, interpolation: str) -> float:
    """The ``quantile`` of all values: their round(n x quantile)-th smallest, or interpolated linearly.

    Example:
        >>> level(torch.tensor([1.0, 2.0, 3.0, 4.0]), 0.5, "kthvalue"), level(torch.arange(4.0), 0.5, "linear")
        (2.0, 1.5)
    """
    flat = values.flatten().numpy()
    if interpolation == "linear":
        return float(np.quantile(flat, quantile))
    position = max(round(len(flat) * quantile), 1) - 1
    return float(np.partition(flat, position)[position])


def best_per_language(stats: ActivationStats, scores: Scores, count: int, side: str = "top") -> NeuronSet:
    """Label, in each language, the neurons that score highest (or lowest, or half each) there."""
    members = {language: _extreme(scores[language].flatten().numpy(), count, side) for language in stats.languages}
    return labelled(stats, scores, members)


def _extreme(values: np.ndarray, count: int, side: str) -> np.ndarray:
    if side == "top":
        return lowest(-values, count)
    if side == "bottom":
        return lowest(values, count)
    high = lowest(-values, count - count // 2)
    return np.union1d(high, lowest(values, count // 2))


def labelled(stats: ActivationStats, scores: Scores, members: Mapping[str, np.ndarray]) -> NeuronSet:
    """The neuron set with these members and their scores."""
    fingerprint = stats.model.fingerprint
    return NeuronSet(
        members={language: flat.astype(np.int64) for language, flat in members.items()},
        shape=stats.shape,
        site=stats.site,
        model=None if fingerprint == PUBLISHED else fingerprint,
        method=scores.method,
        scores={language: scores[language].flatten().numpy()[flat].astype(float) for language, flat in members.items()},
    )
