"""Statistics that are recorded when asked: per-sentence means and relevance to the loss."""

import numpy as np
import pytest
import torch

import langneurons as ln
from langneurons.corpora import Blocks
from langneurons.errors import StaleArtefactError, StatisticsError
from langneurons.models import view
from langneurons.recording.sums import relevance
from tests.recording.conftest import documents, record, same
from tests.recording.test_recorder import naive
from tests.tiny_models import save_tiny, tiny_model, tiny_tokenizer

BOTH = ("sentence", "gradient")


@pytest.fixture(scope="module")
def small():
    """A few documents of two languages."""
    return ln.load_corpus({language: texts[:12] for language, texts in documents().items() if language != "zh"})


@pytest.fixture(scope="module")
def asked(tiny, small):
    return record(tiny, small, also=BOTH)


def test_asking_for_more_changes_nothing_of_the_rest(tiny, small, asked):
    plain = record(tiny, small)
    assert plain.also == ()
    assert asked.also == BOTH
    assert plain.manifest() == asked.manifest()
    for language in plain.languages:
        for name, values in plain.records["act"][language].tensors.items():
            assert torch.equal(values, asked.records["act"][language].tensors[name])


def test_means_over_sentences_equal_naive_hooks_on_the_hugging_face_model(tiny_folder, small, asked):
    tokenizer = tiny_tokenizer()
    for language in small.languages:
        n = int(asked.tokens[0])
        values = naive(tiny_folder, language, dict(small))[:n]
        lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in small[language]]
        ends = [min(sum(lengths[: i + 1]), n) for i in range(len(lengths))]
        starts = [start for start in [0, *ends] if start < n]
        expected = torch.stack([values[start:end].double().mean(0) for start, end in zip(starts, ends, strict=False)])
        found = torch.stack([asked.sentence_means(language, layer) for layer in range(2)], dim=1)
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_relevance_equals_the_slope_of_the_loss_in_the_hugging_face_model(tmp_path, architecture, backend):
    folder = save_tiny(tmp_path / "model", architecture)
    model = ln.load_model(str(folder), backend=backend)
    corpus = ln.load_corpus({"en": documents()["en"][:3]})
    stats = record(model, corpus, also=("gradient",), sites=("act", "post"), context_length=96)
    for site in stats.sites:
        found = stats.at(site).relevance()[0]
        expected = _naive_relevance(model, corpus, site)
        assert torch.allclose(found, expected, rtol=2e-3, atol=1e-6)


def _naive_relevance(model, corpus, site: str) -> torch.Tensor:
    """One neuron after the other: scale its value at one position by 1 +- h and difference the loss."""
    seen = view(model)
    ids = [seen.tokenizer(text, add_special_tokens=False)["input_ids"] + [2] for text in corpus["en"]]
    stream = [token for one in ids for token in one]
    total, counted = torch.zeros(seen.shape(site), dtype=torch.float64), 0
    tokens = torch.tensor([[1, *stream][:96]])
    keep = [i for i in range(1, tokens.shape[1]) if tokens[0, i] not in (0, 1, 2)]
    values: dict[int, torch.Tensor] = {}
    every = {layer: torch.arange(seen.width(site)) for layer in range(2)}

    def watched(layer: int, now: torch.Tensor) -> torch.Tensor:
        values[layer] = now + torch.zeros_like(now, requires_grad=True)
        values[layer].retain_grad()
        return values[layer]

    with torch.enable_grad(), seen.writing(site, every, watched):
        logits = seen.forward(tokens)[0].log_softmax(-1)
        loss = -sum(logits[i - 1, tokens[0, i]] for i in keep)
        loss.backward()
    for layer, now in values.items():
        total[layer] += (now * now.grad)[0, keep].abs().double().sum(0)
    counted += len(keep)
    return total / counted


def test_relevance_predicts_what_shrinking_a_neuron_does(tiny, small):
    stats = record(tiny, small.select(["en"]), also=("gradient",), sites=("head",))
    seen = view(tiny)
    assert stats.relevance().shape == (1, 2, 4)
    assert stats.relevance().min() > 0
    tokens = torch.randint(4, 60, (1, 20), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def loss() -> float:
        return float(torch.nn.functional.cross_entropy(seen.forward(tokens)[0, :-1], tokens[0, 1:], reduction="sum"))

    counted = torch.ones_like(tokens, dtype=torch.bool)
    batch = Blocks(tokens, counted, torch.zeros_like(tokens), torch.ones_like(tokens), torch.zeros_like(tokens))
    values = {layer: values for _, _, layer, values in relevance(seen, batch, ("head",))}
    assert values[0].shape == (20, 4)

    def scaled_loss(position: int, factor: float) -> float:
        factors = torch.ones(20).index_fill(0, torch.tensor(position), factor)[:, None, None]
        with seen.writing("head", {1: torch.tensor([2])}, lambda layer, outputs: outputs * factors):
            return loss()

    slopes = [(scaled_loss(position, 1.05) - scaled_loss(position, 0.95)) / 0.1 for position in range(20)]
    assert values[1][:, 2].tolist() == pytest.approx(np.abs(slopes), abs=0.02 * float(values[1][:, 2].max()))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batch_size_does_not_change_a_byte_of_what_is_optional(tiny, small, asked, batch_size):
    assert same(record(tiny, small, batch_size=batch_size, also=BOTH), asked)


def test_shards_put_sentences_together_that_their_boundary_cuts(tiny, small, asked):
    shards = [record(tiny, small, shard=(i, 3), also=BOTH) for i in range(3)]
    kept = [len(shard.records["act"]["en"].tensors["sentence"]) for shard in shards]
    assert sum(kept) > len(asked.records["act"]["en"].tensors["sentence"])
    assert same(shards[2] + shards[0] + shards[1], asked)


def test_more_text_is_added_and_unlike_recordings_are_not(tiny, small, asked):
    other = ln.load_corpus({"en": documents(seed=9)["en"][:6]})
    more = record(tiny, other, like=asked, tokens_per_language=40, also=BOTH)
    total = asked.select(["en"]) + more
    assert len(total.sentence_means("en", 0)) == len(asked.sentence_means("en", 0)) + len(more.sentence_means("en", 0))
    weights = torch.stack([asked.tokens[0], more.tokens[0]]).double()
    expected = (asked.relevance()[0] * weights[0] + more.relevance()[0] * weights[1]) / weights.sum()
    assert torch.allclose(total.relevance()[0], expected)
    with pytest.raises(StatisticsError, match=r"also=\('gradient', 'sentence'\)"):
        asked.select(["en"]) + record(tiny, other, like=asked, tokens_per_language=40)


def test_folds_share_sentences_and_relevance_among_them(asked):
    halves = asked.folds(2)
    assert sum(len(half.sentence_means("hi", 1)) for half in halves) == len(asked.sentence_means("hi", 1))
    weights = [half.tokens.double()[:, None, None] for half in halves]
    joined = sum(half.relevance() * weight for half, weight in zip(halves, weights, strict=True)) / sum(weights)
    assert torch.allclose(joined, asked.relevance())


def test_only_so_many_sentences_are_kept_spread_over_the_text(tiny, small):
    stats = record(tiny, small, also=("sentence",), sentences=4)
    assert stats.also == ("sentence",)
    assert len(stats.sentence_means("en", 0)) == 4
    ordinals = stats.records["act"]["en"].tensors["sentence"] & (2**32 - 1)
    assert ordinals.tolist() == sorted(ordinals.tolist())
    assert ordinals[-1] > 4


def test_what_was_recorded_is_read_back_and_the_same_call_records_nothing_again(tiny, small, asked, tmp_path):
    assert same(record(tiny, small, also=BOTH, out=tmp_path), asked)
    assert same(record(tiny, small, also=("gradient", "sentence"), out=tmp_path), asked)
    with pytest.raises(StaleArtefactError, match="also"):
        record(tiny, small, out=tmp_path)


def test_ctrl_c_loses_nothing_of_what_is_optional(tiny, small, asked, tmp_path, interrupted_at):
    interrupted_at(3)
    with pytest.raises(KeyboardInterrupt):
        record(tiny, small, out=tmp_path, batch_size=2, also=BOTH)
    assert same(record(tiny, small, out=tmp_path, batch_size=2, also=BOTH), asked)


def test_what_was_not_recorded_is_refused_with_the_option_that_records_it(tiny, small):
    plain = record(tiny, small)
    with pytest.raises(StatisticsError, match=r"record\(\.\.\., also=\('sentence',\)\)"):
        plain.sentence_means("en", 0)
    with pytest.raises(StatisticsError, match=r"also=\('gradient',\)"):
        plain.relevance()
    with pytest.raises(StatisticsError, match="did you mean 'sentence'"):
        record(tiny, small, also=("sentences",))
    with pytest.raises(StatisticsError, match="sentences must be a whole number of at least 1, given 0"):
        record(tiny, small, also=("sentence",), sentences=0)


def test_a_model_whose_gradients_are_not_finite_is_refused():
    model = ln.load_model("broken", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        model.unembed.W_U[:, 5] = float("inf")
    with pytest.raises(StatisticsError, match="does not compute finite numbers"):
        record(model, ln.load_corpus({"en": documents()["en"][:4]}), also=("gradient",))
