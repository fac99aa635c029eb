import json
import pickle
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langneurons.corpora import Blocks, PackedCorpus, load_corpus, pack, packing
from langneurons.errors import CorpusError, CorruptArtefactError, LanguageError, StorageError
from tests.corpora.conftest import LETTERS, TOKENIZERS, word_tokenizer, words

documents = st.lists(st.lists(words, min_size=1, max_size=30).map(" ".join), min_size=1, max_size=12)
kinds = st.sampled_from(sorted(TOKENIZERS))


def naive_blocks(texts, tokenizer, context_length, budget):
    """(token, counted, document, attended) of every position of every block, one token after the other."""
    bos, eos, special = tokenizer.bos_token_id, tokenizer.eos_token_id, set(tokenizer.all_special_ids)
    separator = eos if eos is not None else bos
    stream = []
    for index, text in enumerate(texts):
        stream += [(token, index) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        if separator is not None:
            stream.append((separator, index))
    padding = next((p for p in (tokenizer.pad_token_id, eos) if p is not None), 0)
    blocks, seen = [], 0
    while stream and seen < budget:
        block = [] if bos is None else [(bos, False, -1, 1)]
        while len(block) < context_length:
            if not stream or seen == budget:
                block.append((padding, False, -1, 0))
                continue
            token, document = stream.pop(0)
            counted = token not in special and len(block) > 0
            seen += counted
            block.append((token, counted, document if counted else -1, 1))
        blocks.append(block)
    return blocks, seen


def as_lists(blocks: Blocks):
    parts = (blocks.tokens, blocks.counted, blocks.text, blocks.attention_mask)
    return [list(zip(*rows, strict=True)) for rows in zip(*(part.tolist() for part in parts), strict=True)]


def all_blocks(packed: PackedCorpus, language: str) -> Blocks:
    return packed.blocks(language, range(packed.n_blocks(language)))


@settings(deadline=None, max_examples=60)
@given(documents, documents, kinds, st.sampled_from([16, 32]))
def test_blocks_equal_a_naive_packing_and_hold_the_smallest_language_whole(first, second, kind, context_length):
    tokenizer = TOKENIZERS[kind]
    sizes = [naive_blocks(texts, tokenizer, context_length, 10**9)[1] for texts in (first, second)]
    with tempfile.TemporaryDirectory() as folder:
        if not min(sizes):
            with pytest.raises(CorpusError, match="no counted token"):
                pack(load_corpus({"xx": first, "yy": second}), tokenizer, context_length, folder)
            return
        packed = pack(load_corpus({"xx": first, "yy": second}), tokenizer, context_length, folder)
        assert packed.tokens == {"xx": min(sizes), "yy": min(sizes)}
        for language, texts in (("xx", first), ("yy", second)):
            expected, _ = naive_blocks(texts, tokenizer, context_length, min(sizes))
            blocks = all_blocks(packed, language)
            assert as_lists(blocks) == expected
            assert packed.text_count(language) == int(blocks.text.max()) + 1


@settings(deadline=None, max_examples=30)
@given(documents, kinds, st.data())
def test_counted_tokens_are_the_first_of_the_stream_each_once_and_in_order(texts, kind, data):
    tokenizer = TOKENIZERS[kind]
    _, available = naive_blocks(texts, tokenizer, 16, 10**9)
    budget = data.draw(st.integers(1, max(available, 1)))
    with tempfile.TemporaryDirectory() as folder:
        if available < budget:
            with pytest.raises(CorpusError, match=r"'xx' has 0 counted tokens, fewer than the 1 asked"):
                pack(load_corpus({"xx": texts}), tokenizer, 16, folder, budget)
            return
        blocks = all_blocks(pack(load_corpus({"xx": texts}), tokenizer, 16, folder, budget), "xx")
    assert int(blocks.counted.sum()) == budget
    assert not blocks.counted[:, 0].any()
    if tokenizer.bos_token_id is not None:
        special = set(tokenizer.all_special_ids)
        ids = [(t, i) for i, text in enumerate(texts) for t in tokenizer(text, add_special_tokens=False)["input_ids"]]
        expected = [(token, index) for token, index in ids if token not in special][:budget]
        assert (
            list(zip(blocks.tokens[blocks.counted].tolist(), blocks.text[blocks.counted].tolist(), strict=True))
            == expected
        )


def sentences(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(list(LETTERS), rng.integers(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_other_languages_change_nothing_but_the_budget(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("langneurons.corpora.corpus.READ_AT_ONCE", 3)
    alone = pack(load_corpus({"hi": sentences(0, 40)}), TOKENIZERS[kind], 32, tmp_path / "alone", 300)
    together = load_corpus({"en": sentences(1, 300), "hi": sentences(0, 40), "ur": sentences(2, 60)})
    packed = pack(together, TOKENIZERS[kind], 32, tmp_path / "together", 300)
    assert as_lists(all_blocks(alone, "hi")) == as_lists(all_blocks(packed, "hi"))
    assert alone.fingerprints["hi"] == packed.fingerprints["hi"]
    other_budget = pack(together, TOKENIZERS[kind], 32, tmp_path / "other", 299)
    assert not set(other_budget.fingerprints.values()) & set(packed.fingerprints.values())


def test_fingerprints_tell_where_documents_end(tmp_path):
    cuts = [["a b c", "d e"], ["a b", "c d e"]]
    packs = [pack(load_corpus({"en": cut}), TOKENIZERS["neither"], 16, tmp_path / str(len(cut[0]))) for cut in cuts]
    assert torch.equal(all_blocks(packs[0], "en").tokens, all_blocks(packs[1], "en").tokens)
    assert packs[0].fingerprints != packs[1].fingerprints


def test_only_as_much_is_tokenised_as_the_smallest_language_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("langneurons.corpora.corpus.READ_AT_ONCE", 10)
    corpus = load_corpus({"en": sentences(1, 2000), "hi": sentences(0, 50)})
    packed = pack(corpus, TOKENIZERS["bos and eos"], 32, tmp_path)
    assert packed.about["en"].texts < 100
    assert packed.about["hi"].texts == 50


def test_a_second_pack_opens_the_first(tmp_path, monkeypatch):
    corpus = load_corpus({"en": sentences(1, 30), "hi": sentences(0, 30)})
    tokenizer = word_tokenizer("bos", "eos", "pad")
    first = pack(corpus, tokenizer, 32, tmp_path)
    tokenizer(["a b c"] * 2, padding=True, truncation=True, max_length=2)  # leaves its settings in the tokenizer
    monkeypatch.setattr(packing, "_write_streams", lambda *_: pytest.fail("packed again"))
    assert pack(corpus, tokenizer, 32, tmp_path).fingerprints == first.fingerprints
    assert PackedCorpus.open(tmp_path).fingerprints == first.fingerprints


@pytest.mark.parametrize(
    "change",
    [
        lambda: (load_corpus({"en": sentences(9, 30), "hi": sentences(0, 30)}), word_tokenizer("bos", "eos"), 32, None),
        lambda: (load_corpus({"en": sentences(1, 30), "hi": sentences(0, 31)}), word_tokenizer("bos", "eos"), 32, None),
        lambda: (load_corpus({"hi": sentences(0, 30)}), word_tokenizer("bos", "eos"), 32, None),
        lambda: (load_corpus({"en": sentences(1, 30), "hi": sentences(0, 30)}), word_tokenizer("eos"), 32, None),
        lambda: (load_corpus({"en": sentences(1, 30), "hi": sentences(0, 30)}), word_tokenizer("bos", "eos"), 48, None),
        lambda: (load_corpus({"en": sentences(1, 30), "hi": sentences(0, 30)}), word_tokenizer("bos", "eos"), 32, 99),
    ],
    ids=["document", "more documents", "languages", "tokenizer", "context length", "budget"],
)
def test_anything_that_differs_is_packed_again(change, tmp_path):
    corpus = load_corpus({"en": sentences(1, 30), "hi": sentences(0, 30)})
    pack(corpus, word_tokenizer("bos", "eos"), 32, tmp_path / "old")
    corpus, tokenizer, context_length, budget = change()
    again = pack(corpus, tokenizer, context_length, tmp_path / "old", budget)
    fresh = pack(corpus, tokenizer, context_length, tmp_path / "fresh", budget)
    assert again.fingerprints == fresh.fingerprints
    assert again.languages == fresh.languages == corpus.languages


@pytest.mark.parametrize("name", ["hi.tokens", "hi.ends"])
def test_truncated_files_are_refused_and_packed_again(name, tmp_path):
    corpus = load_corpus({"en": sentences(1, 30), "hi": sentences(0, 30)})
    whole = pack(corpus, TOKENIZERS["eos"], 32, tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-4])
    with pytest.raises(CorruptArtefactError, match=name):
        PackedCorpus.open(tmp_path)
    again = pack(corpus, TOKENIZERS["eos"], 32, tmp_path)
    assert again.fingerprints == whole.fingerprints
    assert as_lists(all_blocks(again, "hi")) == as_lists(all_blocks(whole, "hi"))
    (tmp_path / name).unlink()
    with pytest.raises(StorageError, match="missing"):
        PackedCorpus.open(tmp_path)


def test_a_failed_packing_leaves_the_old_one(tmp_path):
    corpus = load_corpus({"en": sentences(1, 30), "hi": sentences(0, 30)})
    old = pack(corpus, TOKENIZERS["eos"], 32, tmp_path)
    with pytest.raises(CorpusError, match=r"'en' has \d+ counted tokens, fewer than the 1000000"):
        pack(corpus, TOKENIZERS["eos"], 32, tmp_path, 1_000_000)
    assert PackedCorpus.open(tmp_path).fingerprints == old.fingerprints
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "en.ends",
        "en.tokens",
        "hi.ends",
        "hi.tokens",
        "manifest.json",
    ]


def test_special_tokens_beyond_the_named_ones_are_not_counted(tmp_path):
    tokenizer = word_tokenizer("bos", "eos")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    packed = pack(load_corpus({"en": ["a <turn> b c"]}), tokenizer, 16, tmp_path)
    assert packed.tokens == {"en": 3}


def test_blocks_come_in_the_order_asked_and_a_pickled_corpus_gives_the_same(tmp_path):
    packed = pack(load_corpus({"hi": sentences(0, 30)}), TOKENIZERS["bos and eos"], 32, tmp_path)
    everything = all_blocks(packed, "hi")
    some = pickle.loads(pickle.dumps(packed)).blocks("hi", np.array([3, 0, 3]))
    for name in ("tokens", "counted", "text", "attention_mask"):
        assert torch.equal(getattr(some, name), getattr(everything, name)[[3, 0, 3]])
    assert some.tokens.dtype == torch.int64
    assert some.counted.dtype == torch.bool


def test_a_model_with_a_small_context_is_packed_without_warnings(tmp_path, caplog, recwarn):
    tokenizer = word_tokenizer("bos", "eos")
    tokenizer.model_max_length = 16
    packed = pack(load_corpus({"en": [" ".join("a" * 100)]}), tokenizer, 16, tmp_path)
    assert packed.tokens == {"en": 100}
    assert not caplog.records
    assert not recwarn.list


@pytest.mark.parametrize("context_length", [0, 8, 15, 17, 500, -16])
def test_context_lengths_that_are_no_multiple_of_16_are_refused(context_length, tmp_path):
    with pytest.raises(CorpusError, match=f"multiple of 16, given {context_length}"):
        pack(load_corpus({"en": ["a b"]}), TOKENIZERS["eos"], context_length, tmp_path)


def test_impossible_budgets_blocks_and_languages_are_refused(tmp_path):
    corpus = load_corpus({"en": sentences(1, 30)})
    with pytest.raises(CorpusError, match="at least 1, given 0"):
        pack(corpus, TOKENIZERS["eos"], 16, tmp_path, 0)
    packed = pack(corpus, TOKENIZERS["eos"], 16, tmp_path)
    with pytest.raises(LanguageError, match="did you mean 'en'"):
        packed.n_blocks("enx")
    assert packed.lengths("eng").tolist() == packed.lengths("en").tolist()
    for indices in ([packed.n_blocks("en")], [-1], []):
        with pytest.raises(CorpusError, match=rf"blocks 0 to {packed.n_blocks('en') - 1}"):
            packed.blocks("en", indices)


def test_the_manifest_holds_no_path_and_no_time(tmp_path):
    corpus = load_corpus({"en": sentences(1, 30)})
    pack(corpus, TOKENIZERS["eos"], 16, tmp_path / "a")
    pack(corpus, TOKENIZERS["eos"], 16, tmp_path / "b")
    texts = [(tmp_path / name / "manifest.json").read_text() for name in "ab"]
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]
    assert set(json.loads(texts[0])) == {"schema", "languages", "counted", "format", "made_from", "about", "seal"}


def test_a_batch_of_blocks_is_cheap(tmp_path):
    packed = pack(load_corpus({"en": sentences(1, 3000)}), TOKENIZERS["bos and eos"], 512, tmp_path)
    times = []
    for start in range(30):
        begun = perf_counter()
        packed.blocks("en", range(start, start + 8))
        times.append(perf_counter() - begun)
    assert min(times) < 0.002


def test_real_text_is_packed_exactly(text_folder: Path, tmp_path):
    corpus = load_corpus(text_folder, ["en", "zh"], split="heldout").take(300)
    tokenizer = word_tokenizer("bos", "eos", "pad")
    packed = pack(corpus, tokenizer, 128, tmp_path)
    for language in corpus.languages:
        expected, _ = naive_blocks(corpus[language], tokenizer, 128, packed.tokens[language])
        assert as_lists(all_blocks(packed, language)) == expected
