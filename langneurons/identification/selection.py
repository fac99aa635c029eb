"""From scores to neurons: exactly as many as asked, ties broken by layer and then index."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import field, fields
from functools import cache
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field, create_model
from torch import Tensor

from langneurons.errors import LangNeuronsError, StatisticsError
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.reliability import warn_of_noise
from langneurons.identification.scores import Scores
from langneurons.identification.standing import highest_in
from langneurons.recording.statistics import PUBLISHED, ActivationStats, check_statistics
from langneurons.settings import Settings

PER_LANGUAGE = 0.00125
Side = Literal["top", "bottom", "both"]


class MethodOptions(Settings):
    """Options of a method, as its fields declare them."""

    model_config = ConfigDict(strict=True)
    error: ClassVar[type[LangNeuronsError]] = StatisticsError


def option(limits: Any) -> Any:
    """A field of a method: pydantic's ``Field`` with its default and limits."""
    return field(default=limits.default, metadata={"option": limits})


def share(default: float) -> Any:
    """A field that is a share of neurons, above 0."""
    return option(Field(default, gt=0, le=1))


def check_options(method: Any) -> None:
    """Refuse options of a method that its fields do not allow.

    Raises:
        StatisticsError: If one is out of its limits, or of another kind.
    """
    _options_of(type(method))(**vars(method))


@cache
def _options_of(method: type) -> type[Settings]:
    options: dict[str, Any] = {
        each.name: (each.type, each.metadata.get("option", each.default)) for each in fields(method)
    }
    return create_model(method.__name__, __base__=MethodOptions, **options)


def check_share(name: str, value: float, zero_allowed: bool = False) -> None:
    """Refuse a share outside (0, 1], or outside [0, 1].

    Raises:
        StatisticsError: If it is no such share.
    """
    if not (0 <= value <= 1) or (value == 0 and not zero_allowed):
        lowest = "at least 0" if zero_allowed else "above 0"
        raise StatisticsError(f"{name} must be {lowest} and at most 1, given {value}.")


def wanted(top: float | int, stats: ActivationStats) -> int:
    """The number of neurons that ``top`` stands for: round(top x layers x width), or itself if it is a whole number.

    Raises:
        StatisticsError: If that is none, or more than there are.
    """
    check_statistics(stats)
    layers, width = stats.shape
    if isinstance(top, int):
        if top > layers * width:
            raise StatisticsError(f"{top:,} neurons were asked for; there are {layers} layers x {width}.")
        return top
    count = round(layers * width * top)
    if count == 0:
        raise StatisticsError(
            f"top={top} of {layers} layers x {width} neurons is less than one neuron: give a larger top."
        )
    return count


def lowest(values: Float[np.ndarray, " n"], count: int, ties: str = "exact") -> Int[np.ndarray, " kept"]:
    """Positions of the ``count`` smallest values, increasing; of equal values the first are taken.

    Args:
        values: Numbers without NaN.
        count: Number of positions; all where there are fewer.
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
    return extremes(values, count - count // 2, count // 2)


def extremes(values: Float[np.ndarray, " n"], high: int, low: int) -> Int[np.ndarray, " kept"]:
    """Positions of the ``high`` largest and the ``low`` smallest values, increasing.

    Raises:
        StatisticsError: If more are asked for than there are.

    Example:
        >>> extremes(np.array([2.0, 1.0, 5.0, 3.0]), 1, 1).tolist()
        [1, 2]
    """
    if high + low > len(values):
        raise StatisticsError(f"{high:,} highest and {low:,} lowest were asked for; there are {len(values):,} neurons.")
    ends = [lowest(-values, high)] * bool(high) + [lowest(values, low)] * bool(low)
    return np.union1d(ends[0], ends[-1])


def labelled(
    stats: ActivationStats,
    scores: Scores,
    members: Mapping[str, np.ndarray],
    values: Float[Tensor, "language layer neuron"] | None = None,
) -> NeuronSet:
    """The neuron set with these members, their scores, and the language where each is highest.

    Args:
        stats: Statistics.
        scores: Scores.
        members: Language -> flat indices.
        values: What the method compares with its bar in each language; by default the scores.
    """
    warn_of_noise(stats)
    fingerprint = stats.fingerprint
    values = scores.values if values is None else values
    by_language = dict(zip(stats.languages, values.flatten(1).numpy(), strict=True))
    return NeuronSet(
        members={language: flat.astype(np.int64) for language, flat in members.items()},
        shape=stats.shape,
        site=stats.site,
        model=None if fingerprint == PUBLISHED else fingerprint,
        method=scores.method,
        scores={language: scores[language].flatten().numpy()[flat].astype(float) for language, flat in members.items()},
        highest=highest_in(members, by_language),
    )


@runtime_checkable
class Method(Protocol):
    """A way to find the neurons of a language in activation statistics."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Optional accumulators that must have been recorded; empty for most."""
        ...

    def scores(self, stats: ActivationStats) -> Scores:
        """Score every neuron."""
        ...

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label the neurons that the scores select."""
        ...


class Ranking(ABC):
    """Base of methods that label, in each language, the neurons with the highest scores there."""

    needs: ClassVar[tuple[str, ...]] = ()
    top: float
    side: Side = "top"

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def scores(self, stats: ActivationStats) -> Scores:
        """Score every neuron in every language."""

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label, in each language, the round(top x layers x width) neurons that score highest.

        Raises:
            StatisticsError: If the statistics do not hold what the scores need.
        """
        return best_per_language(stats, self.scores(stats), wanted(self.top, stats), self.side)
