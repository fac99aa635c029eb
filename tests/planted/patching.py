"""Planted models that are recorded and ready to be patched, made once for all tests: change nothing in them."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import langneurons as ln
from tests.planted.model import planted_model


@dataclass(frozen=True, eq=False, repr=False)
class Amplify(ln.patches.Patch):
    """Multiply what neurons have where they fire: of an exclusive plant, that changes nothing in other languages."""

    factor: float | int = 1000.0

    @property
    def values(self) -> dict:
        return {"factor": self.factor}

    def written(self, current: torch.Tensor, **values: Any) -> torch.Tensor:
        return torch.where(current > 0, current * values["factor"], current)


@cache
def setting() -> tuple[Any, ln.Corpus, ln.ActivationStats, ln.NeuronSet]:
    """Model, held-out text, statistics of other text, and each language's exclusive neurons."""
    truth = planted_model(documents=60)
    model = truth.model()
    train, heldout = truth.corpus().split(heldout=0.4, seed=0)
    stats = ln.record(model, train, context_length=64, progress=False)
    return model, heldout, stats, truth.exclusive(model)


@cache
def packed() -> ln.HeldoutText:
    """The held-out text in short blocks."""
    model, heldout, _, _ = setting()
    return ln.HeldoutText.of(model, heldout, context_length=64)


@cache
def needed() -> tuple[Any, ln.Corpus, ln.NeuronSet, tuple[int, int]]:
    """A model whose Chinese hangs on one neuron: it fires on Chinese only, and writes what all Chinese words share.

    Returns:
        Model, text, each language's exclusive neurons, and the neuron.
    """
    truth = planted_model(documents=12)
    layer, neuron = next(place for place, owner in truth.neurons["exclusive"].items() if owner == "zh")
    mlp, head = truth.hf_model.model.layers[layer].mlp, truth.hf_model.lm_head.weight
    with torch.no_grad():
        shared = head[-60:].mean(0) - head[4:-60].mean(0)
        mlp.down_proj.weight[:, neuron] = 8 * shared / shared.norm()
        mlp.up_proj.weight[neuron] = mlp.gate_proj.weight[neuron]
    model = truth.model()
    return model, truth.corpus().select(["en", "zh"]), truth.exclusive(model), (layer, neuron)
