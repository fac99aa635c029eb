"""The planted model with its plants known as a neuron set, and a short text in its four languages."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import langneurons as ln
from tests.planted_model import LAYERS, WIDTH, planted


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
def packed() -> ln.HeldoutText:
    """The held-out text in short blocks."""
    model, heldout, _, _ = setting()
    return ln.HeldoutText.of(model, heldout, context_length=64)


@cache
def setting() -> tuple[Any, ln.Corpus, ln.ActivationStats, ln.NeuronSet]:
    """Model, held-out text, statistics of other text, and each language's exclusive neurons."""
    truth = planted(documents=60)
    model = ln.load_model("planted", hf_model=truth.model, tokenizer=truth.tokenizer)
    train, heldout = ln.load_corpus(truth.documents).split(heldout=0.4, seed=0)
    stats = ln.record(model, train, context_length=64, progress=False)
    exclusive = truth.neurons["exclusive"]
    members = {language: [n for n, owner in exclusive.items() if owner == language] for language in stats.languages}
    neurons = ln.NeuronSet.of(members, (LAYERS, WIDTH), "act", stats.model.fingerprint)
    return model, heldout, stats, neurons
