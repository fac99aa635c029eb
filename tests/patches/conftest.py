"""The tiny models of tests/models, with an architecture of every kind of MLP on both backends."""

import pytest
import torch

import langneurons as ln
from langneurons.models import view
from tests.models.conftest import Loaded, folders, load, tokens  # noqa: F401 (fixtures)

PAIRS = [
    ("llama", "hooked"),
    ("llama", "bridge"),
    ("gpt2", "hooked"),
    ("gpt2", "bridge"),
    ("phi3", "hooked"),
    ("opt", "hooked"),
    ("opt", "bridge"),
    ("bloom", "bridge"),
    ("gemma2", "bridge"),
]
SITES = ("pre", "act", "post", "head", "resid_post")  # of every model; tests/models/test_linear_sites.py has the others
UNITS = {"head": [(0, 0), (0, 3), (1, 2)], "resid_post": [(0, 1), (0, 30), (1, 7)]}
MLP_UNITS = [(0, 0), (0, 5), (0, 47), (1, 1), (1, 20)]


@pytest.fixture(params=PAIRS, ids="-".join)
def each(request, load) -> Loaded:  # noqa: F811
    """Every kind of MLP, on both backends."""
    return load(*request.param)


@pytest.fixture(params=PAIRS[:4], ids="-".join)
def few(request, load) -> Loaded:  # noqa: F811
    """A gated and a plain MLP, on both backends."""
    return load(*request.param)


def set_at(model, site: str, units=None) -> ln.NeuronSet:
    """Some neurons of a tiny model at a site."""
    seen = view(model)
    units = UNITS.get(site, MLP_UNITS) if units is None else units
    return ln.NeuronSet.of({"hi": units}, (seen.n_layers, seen.width(site)), site)


def everything_at(model, site: str) -> ln.NeuronSet:
    """Every neuron of a tiny model at a site."""
    seen = view(model)
    return set_at(model, site, [(layer, unit) for layer in range(seen.n_layers) for unit in range(seen.width(site))])


@torch.no_grad()
def logits_of(model, text: torch.Tensor, *patches) -> torch.Tensor:
    """Logits while patches are in force."""
    with ln.intervene(model, *patches):
        return view(model).forward(text)


def hooks_left(model: torch.nn.Module) -> int:
    """Hooks that are still on a model."""
    return sum(len(module._forward_hooks) for module in model.modules())
