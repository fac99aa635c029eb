"""Time ablating neurons one by one, side by side in one process, layer by layer.

Run with ``python benchmarks/ablation.py``. Four ways give the loss of the same texts without each of some neurons of
one layer: one whole patched forward a neuron (as the field does it); ``ablate``'s own batches; the same by running the
layer itself again (as for attention heads, and where an MLP's output is normed); and the physical limit, the layers
above and the unembedding on as many rows with nothing patched. Medians are printed, each as a ratio to the limit. To be
held: ``ablate`` at most 1.25 times the limit.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from forward import Way, llama, medians

import langneurons as ln
from langneurons.analysis.ablation.remembering import Remembered
from langneurons.models import ModelView, load_model, view

VALUE = 0.0
HOLD = 1.25
HELD = "ablate: resumed above the layer"
LIMIT = "the layers above and the unembedding alone"


def losses(seen: ModelView, tokens: torch.Tensor) -> torch.Tensor:
    """The loss of each row."""
    logits = seen.forward(tokens)
    assert logits is not None
    found = [
        torch.nn.functional.cross_entropy(row[:-1], ids[1:], reduction="sum")
        for row, ids in zip(logits, tokens, strict=True)
    ]
    return torch.stack(found)


def remembered(seen: ModelView, site: str, units: dict[int, torch.Tensor], tokens: torch.Tensor) -> Remembered:
    """Read the texts once."""
    memory = Remembered(seen, site, units)
    with memory.remembering():
        seen.forward(tokens)
    return memory


def ways_of(seen: ModelView, layer: int, count: int, texts: torch.Tensor, rows: int) -> dict[str, Way]:
    """List what is compared on neurons of one layer."""
    copies, units = rows // len(texts), torch.arange(count)
    memory = remembered(seen, "post", {layer: units}, texts)
    repeated = texts.repeat(copies, 1)
    residual: dict[int, torch.Tensor] = {}
    with seen.reading({"resid_post": residual.__setitem__}):
        seen.forward(repeated)

    def whole() -> torch.Tensor:
        found = []
        for unit in units:
            neuron = ln.NeuronSet.of({"one": [(layer, int(unit))]}, (seen.n_layers, seen.width("post")), "post")
            with ln.intervene(seen.model, ln.Set(neuron, VALUE)):
                found.append(losses(seen, texts))
        return torch.cat(found)

    def resumed() -> torch.Tensor:
        found = []
        for chosen in units.split(copies):
            with memory.ablated(layer, chosen, torch.full((len(chosen),), VALUE)):
                found.append(losses(seen, texts.repeat(len(chosen), 1)))
        return torch.cat(found)

    def limit() -> torch.Tensor:
        found = []
        for chosen in units.split(copies):
            with seen.above(layer, lambda tokens: residual[layer][: len(tokens)]):
                found.append(losses(seen, repeated[: len(chosen) * len(texts)]))
        return torch.cat(found)

    return {"one whole patched forward a neuron": whole, HELD: resumed, LIMIT: limit}


def again_ways(seen: ModelView, layer: int, texts: torch.Tensor, rows: int) -> Way:
    """Ablate heads, whose layer is run again, as many as there are copies."""
    copies = rows // len(texts)
    memory = remembered(seen, "head", {layer: torch.arange(copies)}, texts)
    repeated = texts.repeat(copies, 1)

    def run() -> torch.Tensor:
        with memory.ablated(layer, torch.arange(copies), torch.zeros(copies)):
            return losses(seen, repeated)

    return run


def report(seen: ModelView, count: int, texts: torch.Tensor, rows: int, rounds: int, say: Callable[[str], Any]) -> None:
    """Time and print a few layers of one model."""
    for layer in (0, seen.n_layers // 2, seen.n_layers - 2, seen.n_layers - 1):
        ways = ways_of(seen, layer, count, texts, rows)
        whole, resumed = ways["one whole patched forward a neuron"](), ways[HELD]()
        assert (whole - resumed).abs().max() <= 1e-4 * whole.abs().max()
        taken = medians(ways, rounds)
        again = medians({"again": again_ways(seen, layer, texts, rows)}, rounds)["again"] / (rows // len(texts))
        each = {name: seconds / count for name, seconds in taken.items()}
        each["ablate: the layer run again (a head)"] = again
        say(f"\n### Layer {layer} of {seen.n_layers}\n\n| | ms a neuron | x limit |\n|---|---:|---:|")
        for name, seconds in each.items():
            say(f"| {name} | {1000 * seconds:.2f} | {seconds / each[LIMIT]:.2f} |")
        held = each[HELD] / each[LIMIT]
        say(f"\n{held:.3f} x, to be at most {HOLD} x: {'held' if held <= HOLD else 'NOT HELD'}")


def main() -> None:
    """Print one table a layer and backend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--neurons", type=int, default=16, help="neurons a layer")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--backend", default="hooked,bridge")
    parser.add_argument("--tiny", action="store_true", help="four narrow layers, to see that it runs")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"layers": 4, "d_model": 64, "d_mlp": 200, "vocabulary": 16384} if arguments.tiny else {"vocabulary": 16384}
    tokenizer = view(load_model("babel")).tokenizer
    texts = torch.randint(0, 16384, (arguments.texts, arguments.length))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for backend in arguments.backend.split(","):
        model = load_model("benchmark", hf_model=llama(**sizes), tokenizer=tokenizer, backend=backend)
        parameters = sum(weight.numel() for weight in model.parameters()) / 1e6
        print(f"\n## {type(model).__name__}, {parameters:.0f}M Llama, {len(texts)} texts of {texts.shape[1]} tokens")
        with torch.inference_mode(), view(model).native_attention():
            report(view(model), arguments.neurons, texts, arguments.rows, arguments.rounds, print)


if __name__ == "__main__":
    main()
