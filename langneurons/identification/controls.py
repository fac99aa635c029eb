"""Drawing control neurons: outside a neuron set, but in the same layers and of the same magnitude.

``NeuronSet.matched_control`` and ``Patch.matched_control`` are the ways in; what is drawn depends on the controls'
seed, the number of the draw and the label alone.
"""

import numpy as np
import torch
from einops import reduce
from jaxtyping import Int

from langneurons import storage
from langneurons.errors import LanguageError, NeuronSetError, SiteMismatchError, unknown
from langneurons.identification.firing import check_sign_means_something
from langneurons.identification.indices import shape_text
from langneurons.recording.statistics import PUBLISHED, ActivationStats
from langneurons.settings import Controls, Match

DECILES = 10
FREQUENT = 0.75  # quantile of a layer's activation probabilities above which a neuron is called frequent
SEEDS_APART = 10_007  # so that the draws of different seeds are different


def draw_seed(controls: Controls, draw: int) -> int:
    """The seed of one draw."""
    return controls.seed * SEEDS_APART + draw


def matched_by(controls: Controls) -> Match:
    """What controls share with the neurons they stand for: the layer, and the magnitude where there are statistics."""
    return controls.match or ("layer+magnitude" if statistics_of(controls) else "layer")


def statistics_of(controls: Controls) -> list[ActivationStats]:
    """The statistics that controls are matched by."""
    return [controls.stats] if isinstance(controls.stats, ActivationStats) else list(controls.stats or [])


def statistics_at(controls: Controls, site: str) -> ActivationStats | None:
    """Those of the controls' statistics that hold a site, or the first, if none does; None without statistics."""
    statistics = statistics_of(controls)
    return next((stats for stats in statistics if site in stats.records), next(iter(statistics), None))


def draw_matched(
    label: str,
    flat: Int[np.ndarray, " n"],
    taken: Int[np.ndarray, " taken"],
    strata: Int[np.ndarray, " neuron"],
    seed: int,
    match: Match,
) -> Int[np.ndarray, " n"]:
    """Draw as many neurons as a label has in every stratum, none of them taken.

    Args:
        label: The label that they stand for.
        flat: Flat indices of the label's neurons.
        taken: Flat indices that cannot be drawn.
        strata: Stratum of every neuron.
        seed: Seed for the draw.
        match: Whether a stratum is a layer, or a decile of magnitude inside a layer.

    Returns:
        Flat indices, sorted.

    Raises:
        NeuronSetError: If a stratum has too few neurons left.
    """
    free = np.ones(strata.size, dtype=bool)
    free[taken] = False
    random = random_stream(seed, "control", label)
    draws = [np.empty(0, np.int64)]
    for stratum, wanted in zip(*np.unique(strata[flat], return_counts=True), strict=True):
        candidates = np.flatnonzero((strata == stratum) & free)
        if len(candidates) < wanted:
            raise NeuronSetError(_too_few(label, int(stratum), int(wanted) - len(candidates), match))
        draws.append(random.choice(candidates, int(wanted), replace=False))
    return np.sort(np.concatenate(draws))


def fitting_statistics(stats: ActivationStats, shape: tuple[int, int], site: str, model: str | None) -> ActivationStats:
    """The statistics at a neuron set's site.

    Raises:
        SiteMismatchError: If they hold another site or model.
        NeuronSetError: If their shape is another.
    """
    stats = stats.at(site)
    if model and stats.fingerprint not in (model, PUBLISHED):
        raise SiteMismatchError(f"The statistics belong to model {stats.fingerprint[:8]}, this set to {model[:8]}.")
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


def choose_neutral(
    label: str, flat: Int[np.ndarray, " n"], taken: Int[np.ndarray, " taken"], stats: ActivationStats
) -> Int[np.ndarray, " n"]:
    """Choose as many frequent neurons as a label has in every layer, none of them taken, the most even over languages.

    Args:
        label: The label that they stand for.
        flat: Flat indices of the label's neurons.
        taken: Flat indices that cannot be chosen.
        stats: Statistics of the model.

    Returns:
        Flat indices, sorted.

    Raises:
        NeuronSetError: If a layer has too few frequent neurons.
        StatisticsError: If the sign of the site means nothing.
    """
    check_sign_means_something(stats)
    p = stats.probability()
    mean = reduce(p, "language layer neuron -> layer neuron", "mean")
    frequent = mean >= mean.quantile(FREQUENT, dim=1, keepdim=True)
    frequent.view(-1)[torch.from_numpy(taken.copy())] = False
    evenness = torch.special.entr(p / p.sum(0).clamp(min=1e-12)).sum(0).where(frequent, -torch.inf).numpy()
    width, members = stats.shape[1], [np.empty(0, np.int64)]
    for layer, wanted in zip(*np.unique(flat // width, return_counts=True), strict=True):
        available = int(frequent[layer].sum())
        if available < wanted:
            raise NeuronSetError(
                f"Layer {layer} has {available} frequent neurons outside the set, and {wanted} are needed as a control "
                f"of {label!r}: try a smaller set."
            )
        members.append(layer * width + np.argsort(-evenness[layer], kind="stable")[:wanted])
    return np.sort(np.concatenate(members))


def strata(
    label: str, shape: tuple[int, int], stats: ActivationStats | None, match: Match
) -> Int[np.ndarray, " neuron"]:
    """Give each neuron its stratum, flat: the layer, or layer x 10 + decile of magnitude in the label's language.

    Raises:
        NeuronSetError: If the magnitude must match without statistics.
        LanguageError: If the label was not recorded and the magnitude must match.
    """
    layers, width = shape
    layer = np.repeat(np.arange(layers), width)
    if match == "layer":
        return layer
    if stats is None:
        raise NeuronSetError("Matching by magnitude needs statistics: give stats=, or match='layer'.")
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
