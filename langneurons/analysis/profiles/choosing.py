"""Which neurons of a large set to look at closely."""

import numpy as np
import torch

from langneurons.errors import NeuronSetError
from langneurons.identification.matching import fitting_statistics
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats


def clearest_neurons(neurons: NeuronSet, stats: ActivationStats, count: int) -> NeuronSet:
    """Keep the neurons that are furthest ahead in their own language, as many of each label as of the others.

    Args:
        neurons: A neuron set; a label that was recorded is a language.
        stats: Statistics of the same model.
        count: The most neurons to keep in all.

    Returns:
        The set, at most ``count`` neurons; of each label those whose activation probability exceeds that of every other
        language most (of a label that was not recorded, the first ones).

    Raises:
        NeuronSetError: If ``count`` is below 1, or the statistics do not fit.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> from langneurons.analysis.profiles.choosing import clearest_neurons
        >>> len(clearest_neurons(neurons, stats, 6)) <= 6
        True
    """
    if count < 1:
        raise NeuronSetError(f"At least one neuron is to be looked at, not {count}.")
    stats = fitting_statistics(stats, neurons.shape, neurons.site, neurons.model)
    probability = stats.probability().flatten(1)
    ordered = {}
    for label, flat in neurons.members.items():
        if label not in stats.languages or len(stats.languages) < 2:
            ordered[label] = flat
            continue
        own = stats.languages.index(label)
        others = torch.cat([probability[:own], probability[own + 1 :]]).amax(0)
        ahead = (probability[own] - others).numpy()[flat]
        ordered[label] = flat[np.argsort(-ahead, kind="stable")]
    return NeuronSet(
        _in_turn(ordered, count),
        neurons.shape,
        neurons.site,
        neurons.model,
        f"the {count} furthest ahead of: {neurons.method}",
    )


def _in_turn(ordered: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Take from each label in turn until ``count`` different neurons are taken."""
    taken: set[int] = set()
    kept: dict[str, list[int]] = {label: [] for label in ordered}
    for rank in range(max(map(len, ordered.values()), default=0)):
        for label, flat in ordered.items():
            if rank < len(flat) and (len(taken) < count or int(flat[rank]) in taken):
                taken.add(int(flat[rank]))
                kept[label].append(int(flat[rank]))
    return {label: np.array(sorted(flat), np.int64) for label, flat in kept.items()}
