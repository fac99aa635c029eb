"""Ablating neurons one by one: ablate's own batches, whole patched forwards, and the physical limit, layer by layer.

The limit is the layers above and the unembedding on as many rows with nothing patched.
"""

from collections.abc import Iterator

import torch

import langneurons as ln
from benchmarks.llama import BACKENDS, chosen, loaded, random_llama
from benchmarks.measuring import Settings, Way, medians
from benchmarks.rows import Row
from langneurons.analysis.running import Remembered
from langneurons.models import ModelView, view

VALUE = 0.0
HOLD = 1.25
NEURONS, TEXTS, LENGTH, ROWS = 8, 8, 128, 32
BASE = "the layers above and the unembedding, as many rows"
ABLATE = "ablate, a neuron"
WHOLE = "one whole patched forward a neuron"
HEAD = "ablate, a head (its layer run again)"


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


def ways_of(seen: ModelView, layer: int, texts: torch.Tensor) -> dict[str, tuple[Way, int]]:
    """List what is compared on units of one layer: each with how many units it ablates."""
    copies, units, heads = ROWS // len(texts), torch.arange(NEURONS), torch.arange(ROWS // len(texts))
    memory = remembered(seen, "post", {layer: units}, texts)
    memory_of_heads = remembered(seen, "head", {layer: heads}, texts)
    repeated = texts.repeat(copies, 1)
    residual: dict[int, torch.Tensor] = {}
    with seen.reading({"resid_post": residual.__setitem__}):
        seen.forward(repeated)

    def whole() -> torch.Tensor:
        found = []
        for unit in units:
            neuron = ln.NeuronSet.of({"one": [(layer, int(unit))]}, (seen.n_layers, seen.width("post")), "post")
            with ln.intervene(seen.model, ln.SetTo(neuron, VALUE)):
                found.append(losses(seen, texts))
        return torch.cat(found)

    def resumed() -> torch.Tensor:
        found = []
        for batch in units.split(copies):
            with memory.ablated(layer, batch, torch.full((len(batch),), VALUE)):
                found.append(losses(seen, texts.repeat(len(batch), 1)))
        return torch.cat(found)

    def again() -> torch.Tensor:
        with memory_of_heads.ablated(layer, heads, torch.zeros(copies)):
            return losses(seen, repeated)

    def limit() -> torch.Tensor:
        found = []
        for batch in units.split(copies):
            with seen.above(layer, lambda tokens: residual[layer][: len(tokens)]):
                found.append(losses(seen, repeated[: len(batch) * len(texts)]))
        return torch.cat(found)

    expected = whole()
    assert (resumed() - expected).abs().max() <= 1e-4 * expected.abs().max(), "ablate gives other losses"
    return {BASE: (limit, NEURONS), ABLATE: (resumed, NEURONS), HEAD: (again, copies), WHOLE: (whole, NEURONS)}


@torch.inference_mode()
def seconds_a_unit(seen: ModelView, layer: int, texts: torch.Tensor, rounds: int) -> dict[str, float]:
    """Give each way's median seconds a unit."""
    with seen.native_attention():
        ways = ways_of(seen, layer, texts)
        taken = medians({what: way for what, (way, _) in ways.items()}, rounds)
    return {what: seconds / ways[what][1] for what, seconds in taken.items()}


def rows(settings: Settings) -> Iterator[Row]:
    """Compare at a few layers of both backends."""
    texts = torch.randint(0, 16384, (TEXTS, 16 if settings.tiny else LENGTH))
    for backend, name in BACKENDS.items():
        seen = view(loaded(random_llama(chosen(settings.tiny)), backend))
        for layer in sorted({0, seen.n_layers // 2, seen.n_layers - 2, seen.n_layers - 1}):
            each = seconds_a_unit(seen, layer, texts, settings.rounds)
            base = each.pop(BASE)
            for what, seconds in each.items():
                place = f"44M {name}, layer {layer} of {seen.n_layers}"
                hold = HOLD if what == ABLATE else None
                yield Row(f"{what}, {place}", BASE, seconds / base, at_most=hold, detail=f"{1000 * seconds:.1f} ms")
