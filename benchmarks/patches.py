"""Time patched forwards side by side in one process: intervene() and the ways published code patches neurons.

Run with ``python benchmarks/patches.py``. Every way sets the same neurons at ``act`` to 0, is run in turn, round after
round, and gives the same logits; medians are printed, each as a ratio to the unpatched forward. To be held: 1 % of the
neurons at most 1.05 times the unpatched forward.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from forward import Way, llama, medians

import langneurons as ln
from langneurons.models import ModelView, load_model, view
from langneurons.models.sites import attached

VALUE = 0.0
HOLD = 1.05


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


def ways_of(model: Any, tokens: torch.Tensor, slow: bool) -> dict[str, Way]:
    """List what is compared; ``slow`` adds one hook a neuron for a tenth of the neurons."""
    seen = view(model)
    ways: dict[str, Way] = {"unpatched forward": lambda: seen.forward(tokens)}
    builds = {
        "full-width torch.where": full_width_mask(seen.width("act")),
        "one hook a layer, a loop over its neurons": one_hook_with_a_loop,
        "one hook a neuron": one_hook_a_neuron,
    }
    for share, neurons in (("1 %", every(seen, 100)), ("10 %", every(seen, 10))):
        ways[f"{share} of neurons: intervene(Set)"] = run(seen, tokens, ln.intervene, model, ln.Set(neurons, VALUE))
        for name, build in builds.items():
            if slow or (share, build) != ("10 %", one_hook_a_neuron):
                ways[f"{share} of neurons: {name}"] = run(seen, tokens, hooks_that, seen, neurons, build)
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
    plain = ways["unpatched forward"]()
    for share in ("1 %", "10 %"):
        logits = [way() for name, way in ways.items() if name.startswith(share)]
        assert not torch.equal(logits[0], plain)
        assert all(torch.equal(one, logits[0]) for one in logits)


def table(title: str, taken: dict[str, float]) -> None:
    """Print a markdown table and whether the number to be held is held."""
    base, *_ = taken.values()
    print(f"\n### {title}\n\n| | ms | x unpatched |\n|---|---:|---:|")
    for name, seconds in taken.items():
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / base:.2f} |")
    held = taken["1 % of neurons: intervene(Set)"] / base
    print(f"\n1 % of neurons: {held:.3f} x, to be at most {HOLD} x: {'held' if held <= HOLD else 'NOT HELD'}")


def main() -> None:
    """Print one table a backend and batch shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, to see that it runs")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"layers": 2, "d_model": 64, "d_mlp": 200, "vocabulary": 16384} if arguments.tiny else {"vocabulary": 16384}
    tokenizer = view(load_model("babel")).tokenizer
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for backend in ("hooked", "bridge"):
        model = load_model("benchmark", hf_model=llama(**sizes), tokenizer=tokenizer, backend=backend)
        parameters = sum(weight.numel() for weight in model.parameters()) / 1e6
        for batch, length in ((1, 64), (8, 256)):
            tokens = torch.randint(0, 16384, (batch, length))
            with torch.no_grad():
                ways = ways_of(model, tokens, slow=batch == 1)
                check(ways)
                taken = medians(ways, arguments.rounds if batch > 1 else 4 * arguments.rounds)
            table(f"{type(model).__name__}, {parameters:.0f}M Llama, {batch} x {length} tokens", taken)


if __name__ == "__main__":
    main()
