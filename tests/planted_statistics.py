"""Activation statistics of raw activations that a test makes up: what record() would keep, without a model."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.recording.accumulation import FOLDS, Accumulators, Grid
from langneurons.recording.distributions import ActivationFunction
from langneurons.recording.records import LanguageRecord, RecordedModel
from langneurons.recording.statistics import ActivationStats


def statistics_from(
    values: Mapping[str, Float[Tensor, "token layer neuron"]],
    documents: Mapping[str, Int[Tensor, " token"]] | None = None,
    site: str = "act",
    act_fn: Callable[[Tensor], Tensor] | None = None,
    gated: bool = True,
    output_norm: Float[Tensor, "layer neuron"] | None = None,
) -> ActivationStats:
    """Record raw activations.

    Args:
        values: Each language's activations; with ``act_fn`` the pre-activations, which it is applied to.
        documents: Each token's document, dealt to folds by document % 20; default ten tokens a document.
        site: What they are called.
        act_fn: The activation function; None records the values as they are.
        gated: Whether the model has a gate.
        output_norm: Norm of each neuron's output weights, default 1.
    """
    first = next(iter(values.values()))
    shape = tuple(first.shape[1:])
    documents = documents or {language: torch.arange(len(one)) // 10 for language, one in values.items()}
    records = {language: _record(one.float(), documents[language], site, act_fn) for language, one in values.items()}
    model = RecordedModel(
        name="planted",
        fingerprint="planted0" * 4,
        dtype="float32",
        gated=gated,
        output_norm={site: torch.ones(shape) if output_norm is None else output_norm},
        act_fn=None if act_fn is None else ActivationFunction.of(act_fn),
    )
    return ActivationStats(model, 512, {site: records})


def _record(values: Tensor, documents: Tensor, site: str, act_fn: Callable[[Tensor], Tensor] | None) -> LanguageRecord:
    scale = values.abs().mean(0).clamp(min=1e-3) if site in ("post", "head") else None
    coordinates = values if scale is None else torch.asinh(values / scale)
    values = values if act_fn is None else act_fn(values)
    grid = Grid.covering(coordinates.amin(0), coordinates.amax(0), scale)
    tokens, layers, neurons = values.shape
    sums = Accumulators.zeros(layers, neurons, tokens, torch.device("cpu"))
    order = (documents % FOLDS).argsort(stable=True)  # the fused loop is fastest on runs of one fold
    folds = (documents % FOLDS)[order]
    for layer in range(layers):
        sums.add(layer, coordinates[order, layer].contiguous(), values[order, layer].contiguous(), folds, grid)
    counted = torch.bincount(folds, minlength=FOLDS)
    return LanguageRecord.of(sums, grid, counted, {})
