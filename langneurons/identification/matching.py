"""Drawing control neurons: outside a neuron set, but in the same layers and of the same magnitude."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from langneurons import storage
from langneurons.errors import LanguageError, NeuronSetError, SiteMismatchError, unknown
from langneurons.identification.flat_indices import shape_text
from langneurons.recording.statistics import PUBLISHED, ActivationStats

Match = Literal["layer+magnitude", "layer"]
DECILES = 10


def draw_matched(
    label: str,
    chosen: Int[np.ndarray, " chosen"],
    taken: Int[np.ndarray, " taken"],
    stats: ActivationStats,
    seed: int,
    match: Match,
) -> Int[np.ndarray, " chosen"]:
    """Draw as many neurons as were chosen, stratum by stratum, none of them taken.

    Args:
        label: The label they stand for; with ``layer+magnitude`` also the language whose magnitudes count.
        chosen: Flat indices to match.
        taken: Flat indices that cannot be drawn.
        stats: Statistics of the model.
        seed: Of the draw.
        match: What a stratum is: a layer, or a decile of magnitude inside a layer.

    Returns:
        Flat indices, sorted.

    Raises:
        NeuronSetError: If a stratum has too few neurons left.
        LanguageError: If the label was not recorded and the magnitude must match.
    """
    if match not in get_args(Match):
        raise NeuronSetError(unknown("match", match, get_args(Match)))
    strata = _strata(label, stats, match)
    free = np.ones(strata.size, dtype=bool)
    free[taken] = False
    random = random_stream(seed, "control", label)
    drawn = [np.empty(0, np.int64)]
    for stratum, wanted in zip(*np.unique(strata[chosen], return_counts=True), strict=True):
        candidates = np.flatnonzero((strata == stratum) & free)
        if len(candidates) < wanted:
            raise NeuronSetError(_too_few(label, int(stratum), int(wanted) - len(candidates), match))
        drawn.append(random.choice(candidates, int(wanted), replace=False))
    return np.sort(np.concatenate(drawn))


def fitting_statistics(stats: ActivationStats, shape: tuple[int, int], site: str, model: str | None) -> ActivationStats:
    """The statistics at a neuron set's site.

    Raises:
        SiteMismatchError: If they hold another site or model.
        NeuronSetError: If their shape is another.
    """
    stats = stats.at(site)
    if model and stats.model.fingerprint not in (model, PUBLISHED):
        raise SiteMismatchError(
            f"The statistics belong to model {stats.model.fingerprint[:8]}, this set to {model[:8]}."
        )
    if stats.shape != shape:
        raise NeuronSetError(
            f"The statistics have {shape_text(stats.shape)}, this set {shape_text(shape)}: "
            "they belong to different models."
        )
    return stats


def random_stream(seed: int, *names: str) -> np.random.Generator:
    """A random generator that depends on the seed and the names alone.

    Example:
        >>> bool(random_stream(0, "hi").random() == random_stream(0, "hi").random())
        True
    """
    return np.random.Generator(np.random.PCG64(int(storage.fingerprint(str(seed), *names), 16)))


def _strata(label: str, stats: ActivationStats, match: Match) -> np.ndarray:
    """One whole number per neuron, flat: the layer, or layer x 10 + decile."""
    layers, width = stats.shape
    layer = np.repeat(np.arange(layers), width)
    if match == "layer":
        return layer
    if label not in stats.languages:
        raise LanguageError(
            unknown("language", label, stats.languages)
            + " A label that was not recorded can be matched by 'layer' only."
        )
    magnitude = (stats[label].mean_magnitude().values.double() * stats.output_norm().double()).numpy()
    rank = magnitude.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return layer * DECILES + (rank * DECILES // width).ravel()


def _too_few(label: str, stratum: int, missing: int, match: Match) -> str:
    if match == "layer":
        where, instead = f"Layer {stratum}", "a smaller set"
    else:
        layer, decile = divmod(stratum, DECILES)
        where, instead = f"Layer {layer} (magnitude decile {decile + 1})", "a smaller set, or match='layer'"
    return f"{where} has {missing} neurons too few for a control of {label!r}: try {instead}."
