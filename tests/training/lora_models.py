"""Tiny models of every kind of MLP and attention, each loaded once a session, and sets of some of their neurons."""

import functools
from typing import Any

import torch

import langneurons as ln
from langneurons.models import load_model, view
from langneurons.training.lora import MaskedIA3, MaskedLoRA, MaskedRows
from tests.tiny_models import tiny_model, tiny_tokenizer

PAIRS = [
    ("llama", "hooked"),
    ("llama", "bridge"),
    ("qwen2", "hooked"),
    ("qwen3", "hooked"),
    ("gpt2", "hooked"),
    ("gpt2", "bridge"),
    ("opt", "hooked"),
    ("opt", "bridge"),
    ("phi3", "hooked"),
    ("phi3", "bridge"),
    ("bloom", "hooked"),
    ("bloom", "bridge"),
    ("gemma2", "bridge"),
]
FEW = [("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked"), ("gpt2", "bridge"), ("phi3", "bridge")]
TOKENS = torch.randint(4, 101, (2, 16), generator=torch.Generator().manual_seed(1))
ATTENTION = ("q", "k", "v", "o")


@functools.cache
def hf_model(architecture: str, dtype: torch.dtype = torch.float32) -> Any:
    return tiny_model(architecture).to(dtype)


def fresh(architecture: str, backend: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a model of its own."""
    return load_model(
        architecture,
        hf_model=tiny_model(architecture).to(dtype),
        tokenizer=tiny_tokenizer(),
        backend=backend,
    )


def some_neurons(model, site="act") -> ln.NeuronSet:
    seen = view(model)
    return ln.NeuronSet.of(
        {"hi": [(0, 1), (0, 5), (0, 30), (1, 0), (1, 47)], "ur": [(0, 5), (1, 2)]},
        (seen.n_layers, seen.width(site)),
        site,
    )


def all_neurons(model) -> ln.NeuronSet:
    seen = view(model)
    width = seen.width("act")
    units = [(layer, unit) for layer in range(seen.n_layers) for unit in range(width)]
    return ln.NeuronSet.of({"all": units}, (seen.n_layers, width), "act")


def mlp_targets(model) -> tuple[str, ...]:
    return ("gate", "up", "down") if view(model).gated else ("gate", "down")


def every_kind(model, attention=ATTENTION):
    """One update of each kind, on everything it can train."""
    neurons, targets = some_neurons(model), mlp_targets(model)
    return [
        MaskedLoRA(neurons, rank=2, targets=targets, attention=attention),
        MaskedRows(neurons, targets=targets, attention=attention, rank=2),
        MaskedIA3(neurons, targets=targets, attention=attention, rank=2),
    ]


def trained(update, model, steps=3, learning_rate=0.05):
    """Train an update, so that it is no longer zero."""
    update.prepare(model)
    optimizer = torch.optim.AdamW(update.parameters(), lr=learning_rate, weight_decay=0.1)
    with update.attach(model):
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
    return update


def loss_of(model) -> torch.Tensor:
    logits = view(model).forward(TOKENS)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters(remove_duplicate=False)}


@torch.no_grad()
def logits_of(model, update=None) -> torch.Tensor:
    if update is None:
        return view(model).forward(TOKENS)
    with update.attach(model):
        return view(model).forward(TOKENS)
