import numpy as np
import pytest
import torch

import langneurons as ln
from langneurons.corpora import pack
from langneurons.errors import CorpusError, HookSiteError, ModelError, NeuronSetError
from langneurons.models import view
from tests.backends import unfused
from tests.recording.conftest import LANGUAGES, record


def packed_caches(model, corpus, folder, names_filter=None):
    packed = pack(corpus, view(model).tokenizer, 32, folder)
    caches = {}
    for language in packed.languages:
        caches[language] = []
        for block in range(packed.n_blocks(language)):
            tokens = packed.blocks(language, [block])
            # Positions beyond the budget are padding there; here they are padding tokens, which do not count.
            ids = torch.where(tokens.attention_mask.bool(), tokens.tokens, 0)
            with view(model).native_attention():  # what record() runs of a bridge: equal to the bit
                caches[language].append((ids, model.run_with_cache(ids, names_filter=names_filter)[1]))
    return caches


@pytest.mark.parametrize("site", ["act", "pre", "up", "post", "k", "head", "resid_post"])
def test_statistics_of_caches_equal_a_recording_of_the_same_blocks(tiny, corpus, tmp_path, site):
    with unfused(tiny):
        recorded = record(tiny, corpus, sites=(site,), batch_size=1)
    caches = packed_caches(tiny, corpus, tmp_path)
    of_caches = ln.recording.record_caches(tiny, caches, sites=(site,), like=recorded)
    assert torch.equal(of_caches.tokens, recorded.tokens)
    for language in LANGUAGES:
        mine, theirs = of_caches.records[site][language].tensors, recorded.records[site][language].tensors
        for name in ("histogram", "absolute", "squares", "minimum", "maximum", "width"):
            assert torch.equal(mine[name], theirs[name]), name
        for name in ("active", "sum"):
            assert torch.equal(mine[name].sum(0), theirs[name].sum(0)), name


def test_caches_without_given_edges_are_calibrated_on_themselves(tiny, corpus, tmp_path, whole):
    of_caches = ln.recording.record_caches(tiny, packed_caches(tiny, corpus, tmp_path))
    assert torch.allclose(of_caches.mean(), whole.mean(), atol=1e-5)
    assert (of_caches.quantile(0.9) - whole.quantile(0.9)).abs().median() < 0.01


def test_a_cache_that_lacks_the_site_or_has_other_tokens_is_refused(tiny):
    tokens = torch.tensor([[1, 5, 6, 7]])
    _, cache = tiny.run_with_cache(tokens, names_filter="blocks.0.mlp.hook_post")
    with pytest.raises(HookSiteError, match=r"lacks blocks\.0\.mlp\.(hook_pre|gate\.hook_out)"):
        ln.recording.record_caches(tiny, {"en": [(tokens, cache)]})
    _, full = tiny.run_with_cache(tokens)
    with pytest.raises(ln.LangNeuronsError, match="positions"):
        ln.recording.record_caches(tiny, {"en": [(torch.tensor([[1, 5, 6]]), full)]})
    with pytest.raises(CorpusError, match="no counted token"):
        ln.recording.record_caches(tiny, {"en": [(torch.tensor([[1, 2, 0]]), full)]})


@pytest.fixture(scope="module")
def some_neurons(tiny):
    return ln.NeuronSet.of({"en": [(0, 3), (1, 5), (1, 40)]}, shape=(2, 48), site="act")


def test_activations_of_a_text_equal_the_cache(tiny, some_neurons):
    table = ln.activations(tiny, "w5 w6 w7 w90", some_neurons)
    assert table.index.get_level_values("token").tolist() == ["w5", "w6", "w7", "w90"]
    _, cache = tiny.run_with_cache(torch.tensor([[1, 5, 6, 7, 90]]))
    act = torch.nn.functional.silu(cache["blocks.1.mlp.hook_pre"])[0, 1:, 40]
    assert np.allclose(table[1, 40], act, atol=1e-6)


def test_a_character_split_over_tokens_is_shown_once(babel):
    neurons = ln.NeuronSet.of({"hi": [(0, 0)]}, shape=(8, 1536), site="act")
    text = "नमस्ते दुनिया 𓂀"
    table = ln.activations(babel, text, neurons)
    assert "".join(table.index.get_level_values("token")) == text


def test_examples_find_the_texts_that_a_naive_search_finds(tiny, corpus, some_neurons):
    rows = ln.examples(tiny, corpus.select(["hi"]), some_neurons, k=3, context_length=64, progress=False)
    peaks = []
    for text in corpus.texts("hi"):
        peaks.append(ln.activations(tiny, text, some_neurons)[0, 3].max())
    top = rows[(rows.layer == 0) & (rows.neuron == 3) & (rows.kind == "top")].sort_values("rank")
    assert top.document.tolist() == np.argsort(-np.array(peaks), kind="stable")[:3].tolist()
    assert np.allclose(top.activation, sorted(peaks, reverse=True)[:3], atol=1e-5)
    best = top.iloc[0]
    token = best.text[best.start : best.end]
    shown = ln.activations(tiny, best.text, some_neurons)[0, 3]
    assert shown.idxmax()[1] == token
    assert set(rows.kind) == {"top", "median", "random"}


def test_looking_refuses_what_it_cannot_show(tiny, corpus, some_neurons):
    empty = ln.NeuronSet.of({"en": []}, shape=(2, 48), site="act")
    with pytest.raises(NeuronSetError, match="empty"):
        ln.activations(tiny, "w5", empty)
    with pytest.raises(ModelError, match="no tokens"):
        ln.activations(tiny, "", some_neurons)
    with pytest.raises(ModelError, match="holds"):
        ln.activations(tiny, "w5 " * 200, some_neurons)
    with pytest.raises(CorpusError, match="At least one"):
        ln.examples(tiny, corpus, some_neurons, k=0)
