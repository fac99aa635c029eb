"""A long text is tokenised in pieces, which gives the tokens of the whole, and no more of it than a budget needs."""

import random
import resource
from time import perf_counter

import numpy as np
import pytest
from transformers import AutoTokenizer

from langneurons import babel
from langneurons.corpora import load_corpus, long_texts, pack, packing
from langneurons.corpora.packing import stream_bytes
from langneurons.errors import StaleArtefactError
from tests.corpora.conftest import word_tokenizer
from tests.corpora.test_text_bytes import TOKENIZERS, naive_bytes

TOKENIZERS = {**TOKENIZERS, "babel": AutoTokenizer.from_pretrained(babel.FOLDER)}
WORDS = [
    "The", "boy", "drinks", "water.", "लड़का", "पानी", "पीता", "है।", "男孩喝水。", "بچہ", "schönes", "e\u0301", "👍🏽",
    "\u200d", "  ", "\n", "\n\n", "1966", "</s>", "aaaaaaaa", "....",
]  # fmt: skip


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 400 characters that share 200."""
    monkeypatch.setattr(packing, "PIECE", 400)
    monkeypatch.setattr(long_texts, "PIECE", 400)
    monkeypatch.setattr(long_texts, "_OVERLAP", 200)


def text_of(seed: int, words: int, between: str = " ") -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice([between, between, ""]) for _ in range(words))


def whole(tokenizer, text):
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [tuple(pair) for pair in encoded["offset_mapping"]]


def joined(tokenizer, text):
    pieces = list(long_texts.pieces_of(tokenizer, text))
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return [index for p in pieces for index in p.ids], [pair for p in pieces for pair in p.offsets], len(pieces)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("seed", range(12))
def test_the_pieces_have_the_tokens_of_the_whole(kind, seed, small_pieces):
    text = text_of(seed, 700, " " if seed % 3 else "")
    ids, offsets, pieces = joined(TOKENIZERS[kind], text)
    assert (ids, offsets) == whole(TOKENIZERS[kind], text)
    assert pieces > 3 or kind == "words"


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    "text", ["a" * 3000, " " * 3000, "ab" * 1501, "\n" * 1000 + "boy " * 500, "", "boy", "👍" * 900, "</s>" * 500]
)
def test_texts_without_a_place_to_join_are_tokenised_whole(kind, text, small_pieces):
    ids, offsets, _ = joined(TOKENIZERS[kind], text)
    assert (ids, offsets) == whole(TOKENIZERS[kind], text)


@pytest.mark.parametrize("kind", ["babel", "byte-level BPE", "words"])
@pytest.mark.parametrize("budget", [None, 700])
def test_packing_gives_the_same_bytes_with_pieces_and_without(kind, budget, tmp_path, request):
    texts = {"en": ["The boy.", text_of(1, 900), text_of(2, 500), "water"], "hi": [text_of(3, 2000)]}
    corpus, tokenizer = load_corpus(texts), TOKENIZERS[kind]
    without = pack(corpus, tokenizer, 32, tmp_path / "whole", budget)
    request.getfixturevalue("small_pieces")
    pieces = pack(corpus, tokenizer, 32, tmp_path / "pieces", budget)
    assert pieces.fingerprints == without.fingerprints
    assert pieces.tokens == without.tokens
    for language in corpus.languages:
        blocks = [packed.blocks(language, range(packed.n_blocks(language))) for packed in (pieces, without)]
        assert all(
            bool((ours == theirs).all()) for ours, theirs in zip(*(vars(b).values() for b in blocks), strict=True)
        )
        stop = pieces.about[language].stop
        ours, theirs = (stream_bytes(packed, corpus, tokenizer, language)[:stop] for packed in (pieces, without))
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_byte_of_a_long_text_belongs_to_one_token(kind, tmp_path, small_pieces):
    text, tokenizer = text_of(5, 900), TOKENIZERS[kind]
    corpus = load_corpus({"xx": [text, "boy"]})
    packed = pack(corpus, tokenizer, 32, tmp_path)
    counts = stream_bytes(packed, corpus, tokenizer, "xx")[: packed.lengths("xx")[0]]
    assert counts.tolist() == naive_bytes(text, whole(tokenizer, text)[1])


def test_the_tokens_of_another_long_text_are_refused(tmp_path, small_pieces):
    tokenizer = word_tokenizer("eos")
    packed = pack(load_corpus({"xx": ["a b " * 900]}), tokenizer, 16, tmp_path)
    with pytest.raises(StaleArtefactError, match="not those of the corpus"):
        stream_bytes(packed, load_corpus({"xx": ["a b " * 899]}), tokenizer, "xx")


def test_of_one_line_of_5_megabytes_no_more_is_tokenised_than_a_budget_needs(tmp_path):
    draw = random.Random(0)
    line = " ".join(draw.choices(["boy", "drinks", "water", "the", "पानी", "house"], k=900_000))[:5_000_000]
    corpus, tokenizer = load_corpus({"en": [line]}), TOKENIZERS["babel"]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, perf_counter()
    packed = pack(corpus, tokenizer, 128, tmp_path, 2000)
    counts = stream_bytes(packed, corpus, tokenizer, "en")
    assert perf_counter() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert packed.about["en"].stream < 100_000
    assert len(counts) == packed.about["en"].stream
