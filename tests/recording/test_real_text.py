"""On real text, where the folder of it is present."""

import pytest
import torch

import langneurons as ln
from langneurons.corpora import pack
from langneurons.models import view

TOKENS = 20_000


@pytest.fixture(scope="module")
def hindi(shared_data):
    return ln.load_corpus(shared_data("text"), ["hi"], split="heldout").shuffle(0)


@pytest.fixture(scope="module")
def stats(babel, hindi):
    return ln.record(babel, hindi, tokens_per_language=TOKENS, context_length=256, progress=False)


@pytest.fixture(scope="module")
def raw(babel, hindi, tmp_path_factory):
    """Every counted activation of the first and the last layer, "token neuron"."""
    seen = view(babel)
    packed = pack(hindi, seen.tokenizer, 256, tmp_path_factory.mktemp("packed"), TOKENS)
    kept: dict[int, list[torch.Tensor]] = {0: [], seen.n_layers - 1: []}
    for start in range(0, packed.n_blocks("hi"), 8):
        batch = packed.blocks("hi", range(start, min(start + 8, packed.n_blocks("hi"))))

        def keep(layer: int, act: torch.Tensor, counted: torch.Tensor = batch.counted) -> None:
            if layer in kept:
                kept[layer].append(act[counted])

        with torch.no_grad(), seen.reading({"act": keep}):
            seen.forward(batch.tokens, logits=False)
    return {layer: torch.cat(parts) for layer, parts in kept.items()}


def test_counts_are_exact_and_moments_right_to_rounding(stats, raw):
    for layer, values in raw.items():
        assert len(values) == TOKENS
        assert torch.equal(stats.probability()[0, layer], (values > 0).double().mean(0))
        assert torch.allclose(stats.mean()[0, layer], values.double().mean(0), atol=1e-6)
        assert torch.allclose(stats.std()[0, layer].double(), values.double().std(0, correction=0), rtol=1e-4)


@pytest.mark.slow
def test_percentiles_of_the_worst_neuron_are_within_half_a_point(stats, raw):
    for share in (0.01, 0.25, 0.5, 0.9, 0.99):
        found = stats.quantile(share)[0]
        for layer, values in raw.items():
            below = (values < found[layer]).double().mean(0)
            up_to = (values <= found[layer]).double().mean(0)
            assert torch.maximum(below - share, share - up_to).max() <= 0.005


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_does_not_change_a_byte_of_babels_statistics(babel, hindi, batch_size):
    few = {"tokens_per_language": 4_000, "context_length": 256, "progress": False}
    one = ln.record(babel, hindi, batch_size=8, **few).records["act"]["hi"]
    other = ln.record(babel, hindi, batch_size=batch_size, **few).records["act"]["hi"]
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
