"""On real text, where the folder of it is present."""

from functools import partial

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
    sites = ("act", "post")
    return ln.record(babel, hindi, sites=sites, tokens_per_language=TOKENS, context_length=256, progress=False)


@pytest.fixture(scope="module")
def raw(babel, hindi, tmp_path_factory):
    """Every counted value of the first and the last layer, by site and layer: "token neuron"."""
    seen = view(babel)
    packed = pack(hindi, seen.tokenizer, 256, tmp_path_factory.mktemp("packed"), TOKENS)
    kept: dict[tuple[str, int], list[torch.Tensor]] = {
        (site, layer): [] for site in ("act", "post") for layer in (0, seen.n_layers - 1)
    }
    for start in range(0, packed.n_blocks("hi"), 8):
        batch = packed.blocks("hi", range(start, min(start + 8, packed.n_blocks("hi"))))

        def keep(site: str, layer: int, values: torch.Tensor, counted: torch.Tensor = batch.counted) -> None:
            if (site, layer) in kept:
                kept[site, layer].append(values[counted])

        with torch.no_grad(), seen.reading({site: partial(keep, site) for site in ("act", "post")}):
            seen.forward(batch.tokens, logits=False)
    return {place: torch.cat(parts) for place, parts in kept.items()}


def test_counts_are_exact_and_moments_right_to_rounding(stats, raw):
    for (site, layer), values in raw.items():
        at = stats.at(site)
        assert len(values) == TOKENS
        assert torch.equal(at.probability()[0, layer], (values > 0).double().mean(0))
        assert torch.allclose(at.mean()[0, layer], values.double().mean(0), atol=1e-6)
        assert torch.allclose(at.std()[0, layer].double(), values.double().std(0, correction=0), rtol=1e-4)


@pytest.mark.slow
def test_percentiles_of_the_worst_neuron_are_within_half_a_point(stats, raw):
    for share in (0.01, 0.25, 0.5, 0.9, 0.99):
        quantiles = {site: stats.at(site).quantile(share)[0] for site in stats.sites}
        for (site, layer), values in raw.items():
            quantile = quantiles[site][layer]
            below, up_to = (values < quantile).double().mean(0), (values <= quantile).double().mean(0)
            assert torch.maximum(below - share, share - up_to).max() <= 0.005, (site, layer, share)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_does_not_change_a_byte_of_babels_statistics(babel, hindi, batch_size):
    few = {"tokens_per_language": 4_000, "context_length": 256, "progress": False}
    one = ln.record(babel, hindi, batch_size=8, **few).records["act"]["hi"]
    other = ln.record(babel, hindi, batch_size=batch_size, **few).records["act"]["hi"]
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
