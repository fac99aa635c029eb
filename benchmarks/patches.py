"""Patched forwards: intervene(), and the ways published code patches neurons; all give the same logits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

import langneurons as ln
from benchmarks.llama import BACKENDS, chosen, loaded, random_llama, shapes
from benchmarks.measuring import Settings, Way, medians
from benchmarks.rows import Row
from langneurons.models import ModelView, view
from langneurons.models.sites import attached

VALUE = 0.0
HOLD = 1.05
BASE = "unpatched forward"
OURS = "intervene(SetTo)"
SHARES = {"1 %": 100, "10 %": 10}


def every(seen: ModelView, step: int) -> ln.NeuronSet:
    """Take every ``step``-th neuron of each layer."""
    units = [(layer, unit) for layer in range(seen.n_layers) for unit in range(0, seen.width("act"), step)]
    return ln.NeuronSet.of({"all": units}, (seen.n_layers, seen.width("act")), "act")


@contextmanager
def hooks_that(seen: ModelView, neurons: ln.NeuronSet, build: Callable[[torch.Tensor], list[Any]]) -> Any:
    """Write act = VALUE as VALUE x up at hook_post, by the hooks that ``build`` makes of a layer's neurons."""
    up: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(seen.reading({"up": up.__setitem__}))
        for layer, units in neurons.per_layer().items():
            point = seen.model.blocks[layer].mlp.hook_post
            hooks = [lambda post, hook=hook, layer=layer: hook(post, up[layer]) for hook in build(units)]
            stack.enter_context(attached([(point, hook) for hook in hooks]))
        yield


def one_hook_with_a_loop(units: torch.Tensor) -> list[Any]:
    """One hook a layer, one index write a neuron: as the reference implementation does it."""
    indices = units.tolist()

    def write(post: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        for index in indices:
            post[:, :, index] = VALUE * up[:, :, index]
        return post

    return [write]


def one_hook_a_neuron(units: torch.Tensor) -> list[Any]:
    """One hook a neuron."""

    def writing(index: int) -> Any:
        def write(post: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            post[:, :, index] = VALUE * up[:, :, index]
            return post

        return write

    return [writing(index) for index in units.tolist()]


def full_width_mask(width: int) -> Callable[[torch.Tensor], list[Any]]:
    """One hook a layer, torch.where over all of its neurons."""

    def build(units: torch.Tensor) -> list[Any]:
        mask = torch.zeros(width, dtype=torch.bool).index_fill(0, units, True)
        return [lambda post, up: torch.where(mask, VALUE * up, post)]

    return build


def ways_of(model: Any, tokens: torch.Tensor, published: bool) -> dict[str, Way]:
    """List what is compared; ``published`` adds the ways published code has."""
    seen = view(model)
    builds = {
        "full-width torch.where": full_width_mask(seen.width("act")),
        "one hook a layer, a loop over its neurons": one_hook_with_a_loop,
        "one hook a neuron": one_hook_a_neuron,
    }
    ways: dict[str, Way] = {BASE: lambda: seen.forward(tokens)}
    for share, step in SHARES.items():
        neurons = every(seen, step)
        ways[f"{OURS} on {share} of neurons"] = run(seen, tokens, ln.intervene, model, ln.SetTo(neurons, VALUE))
        for name, build in builds.items() if published else ():
            ways[f"{name}, on {share} of neurons"] = run(seen, tokens, hooks_that, seen, neurons, build)
    return ways


def run(seen: ModelView, tokens: torch.Tensor, enter: Callable[..., Any], *arguments: Any) -> Way:
    """Make a way of a context: one forward inside it, entering and leaving included."""

    def way() -> torch.Tensor | None:
        with enter(*arguments):
            return seen.forward(tokens)

    return way


def check(ways: dict[str, Any]) -> None:
    """Refuse to time ways that do not patch alike.

    Raises:
        AssertionError: If two ways that write the same neurons give other logits.
    """
    plain = ways[BASE]()
    for share in SHARES:
        logits = [way() for name, way in ways.items() if f" {share} " in name]
        assert not torch.equal(logits[0], plain)
        assert all(torch.equal(one, logits[0]) for one in logits)


def patch_rows(
    model: Any, name: str, batch: int, length: int, settings: Settings, published: bool = False
) -> Iterator[Row]:
    """Compare patched forwards of one model and batch, where the model lies."""
    seen = view(model)
    tokens = torch.randint(0, 16384, (batch, length), device=seen.device)
    ways = ways_of(model, tokens, published)
    check(ways)
    taken = medians(ways, settings.rounds * (4 if batch == 1 else 1), str(seen.device))
    for what, seconds in taken.items():
        if what != BASE:
            hold = HOLD if what == f"{OURS} on 1 % of neurons" else None
            detail = f"{1000 * seconds:.1f} ms"
            yield Row(f"{what}, {name}, {batch} x {length}", BASE, seconds / taken[BASE], at_most=hold, detail=detail)


@torch.no_grad()
def rows(settings: Settings) -> Iterator[Row]:
    """Compare patched forwards on both backends; the published ways on a short batch of a HookedTransformer."""
    for backend, name in BACKENDS.items():
        model = loaded(random_llama(chosen(settings.tiny)), backend)
        for batch, length in shapes(settings.tiny):
            published = backend == "hooked" and batch == 1
            yield from patch_rows(model, f"44M {name}", batch, length, settings, published)
