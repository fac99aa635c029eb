"""One cell of the heatmap: a layer's neurons of one language, the clearest first."""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.errors import NeuronSetError, StatisticsError
from langneurons.identification.firing import check_sign_means_something
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats

ACTIVE, MAGNITUDE = "share active", "mean magnitude"


def response(stats: ActivationStats) -> tuple[str, Float[Tensor, "language layer neuron"]]:
    """Measure how much every neuron responds to every language, in a way that means something at the site.

    Returns:
        What it is, and its values: the share of tokens with an activation above zero, or where the sign means nothing
        the mean absolute activation.

    Example:
        >>> response(stats)[0]
        'share active'
    """
    try:
        check_sign_means_something(stats)
    except StatisticsError:
        return MAGNITUDE, stats.mean_magnitude()
    return ACTIVE, stats.probability()


def ranked(
    neurons: NeuronSet,
    languages: tuple[str, ...],
    responses: Float[Tensor, "language layer neuron"],
    language: str,
    layer: int,
) -> pd.DataFrame:
    """List a layer's neurons of one language by how far they are ahead in it.

    Args:
        neurons: A neuron set.
        languages: The recorded languages.
        responses: What ``response`` measured in them.
        language: A label of the set.
        layer: Which layer.

    Returns:
        Columns layer, neuron, own (the response in the language), elsewhere (the largest in another), where (which one)
        and ahead (own - elsewhere); NaN of a label that was not recorded, which leaves the order of the neurons.

    Raises:
        LanguageError: If the set has no such label.
        NeuronSetError: If there is no such layer, or none of these neurons in it.

    Example:
        >>> neurons = ln.NeuronSet.of({"hi": [(0, 1), (0, 2)]}, (1, 3), "act")
        >>> shares = torch.tensor([[[0.1, 0.2, 0.1]], [[0.3, 0.3, 0.9]]])
        >>> ranked(neurons, ("en", "hi"), shares, "hi", 0)["neuron"].tolist()
        [2, 1]
    """
    layers = neurons.shape[0]
    per_layer = neurons[language].per_layer()
    if not 0 <= layer < layers:
        raise NeuronSetError(f"There is no layer {layer}: layers go from 0 to {layers - 1}.")
    if layer not in per_layer:
        has = ", ".join(map(str, per_layer)) or "no layer"
        raise NeuronSetError(f"{language} has no neurons in layer {layer}: it has some in {has}.")
    members = per_layer[layer]
    found = responses[:, layer, members].double()
    own, others = torch.full_like(found[0], torch.nan), found
    if language in languages:
        position = languages.index(language)
        own, others = found[position], found.clone()
        others[position] = -torch.inf
    elsewhere, where = others.max(0)
    known = torch.isfinite(elsewhere)
    elsewhere = elsewhere.where(known, torch.nan)
    table = pd.DataFrame(
        {
            "layer": layer,
            "neuron": members.numpy(),
            "own": own.numpy(),
            "elsewhere": elsewhere.numpy(),
            "where": [languages[place] if one else "" for place, one in zip(where.tolist(), known, strict=True)],
            "ahead": (own - elsewhere).numpy(),
        }
    )
    return table.iloc[np.argsort(-table["ahead"].to_numpy(), kind="stable")].reset_index(drop=True)
