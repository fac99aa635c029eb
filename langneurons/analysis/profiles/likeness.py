"""Which neurons are like a neuron: active on the same languages and documents, or writing in the same direction."""

from collections.abc import Iterable, Iterator

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.analysis.profiles.result import SIMILAR
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView
from langneurons.models.output_directions import output_directions
from langneurons.recording.statistics import ActivationStats


def similar_neurons(seen: ModelView, neurons: NeuronSet, stats: ActivationStats | None, count: int) -> pd.DataFrame:
    """Find the neurons most like each of some neurons, among all of the model.

    Args:
        seen: The model.
        neurons: Which neurons.
        stats: Statistics at their site; None leaves activity out.
        count: How many of each kind.

    Returns:
        Rows as ``Profiles.similar`` has them, the largest absolute similarity first.
    """
    chosen = neurons.indices()
    tables = []
    if count and stats is not None:
        cells = standardised(activity(stats))
        tables.append(("activity", [cells[:, layer].T for layer in range(cells.shape[1])]))
    if count and (directions := list(_directions(seen, neurons.site))):
        tables.append(("direction", directions))
    rows = [(*key[:2], by, *key[2:]) for by, vectors in tables for key in _most_alike(chosen, vectors, count)]
    return pd.DataFrame(rows, columns=pd.Index(SIMILAR))


def activity(stats: ActivationStats) -> Float[Tensor, "cell layer neuron"]:
    """How often each neuron is active in every language and document fold that has tokens."""
    folds = []
    for language in stats.languages:
        kept = stats.fold_tokens(language) > 0
        folds.append(stats.fold_probability(language)[kept].float())
    return torch.cat(folds)


def standardised(cells: Float[Tensor, "cell layer neuron"]) -> Float[Tensor, "cell layer neuron"]:
    """Make the sum of products of two neurons over cells their correlation; 0 for neurons that never change."""
    centred = cells - cells.mean(0)
    norm = centred.norm(dim=0)
    return torch.where(norm > 1e-6, centred / norm.clamp(min=1e-6), 0.0)


def _directions(seen: ModelView, site: str) -> Iterator[Float[Tensor, "unit d_model"]]:
    if site == "resid_post":
        return  # coordinates are orthogonal: none is like another
    for layer in range(seen.shape(site)[0]):
        directions = output_directions(seen, site, layer)
        if directions is None:
            return
        yield torch.nn.functional.normalize(directions.float().cpu(), dim=1)


def _most_alike(
    chosen: Int[Tensor, "n 2"], vectors: list[Tensor], count: int
) -> Iterable[tuple[int, int, int, int, int, float]]:
    """For each chosen neuron: layer, neuron, rank, the other's layer and neuron, and the product of their vectors."""
    own = torch.stack([vectors[layer][index] for layer, index in chosen.tolist()])
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for layer, units in enumerate(vectors):
        products = own @ units.T
        here = chosen[:, 0] == layer
        products[here, chosen[here, 1]] = 0.0  # itself
        most = products.abs().topk(min(count, len(units)), dim=1)
        found.append((products.gather(1, most.indices), torch.full_like(most.indices, layer), most.indices))
    similarity, layers, indices = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
    best = similarity.abs().topk(min(count, similarity.shape[1]), dim=1).indices
    for row, (layer, index) in enumerate(chosen.tolist()):
        for rank, place in enumerate(best[row].tolist()):
            if similarity[row, place] != 0:
                other = int(layers[row, place]), int(indices[row, place])
                yield layer, index, rank, *other, float(similarity[row, place])
