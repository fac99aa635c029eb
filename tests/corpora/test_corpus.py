import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langneurons.corpora import load_corpus
from langneurons.errors import CorpusError, LanguageError

texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@settings(deadline=None, max_examples=60)
@given(st.lists(texts, min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_splits_cover_once_keep_the_order_and_put_equal_documents_on_one_side(documents, share, seed):
    documents = ["always", "another", *documents, *documents[::2]]
    corpus = load_corpus({"en": documents, "hi": ["x", "y"]})
    train, heldout = corpus.split(share, seed)
    left, right = list(train["en"]), list(heldout["en"])
    assert left
    assert right
    assert not set(left) & set(right)
    assert left == [document for document in documents if document in set(left)]
    assert right == [document for document in documents if document in set(right)]
    assert len(left) + len(right) == len(documents)
    again = load_corpus({"en": documents}).split(share, seed)[1]
    assert list(again["en"]) == right, "another language or another run changed the split"
    assert {*load_corpus({"en": documents[::-1]}).split(share, seed)[1]["en"]} == set(right), "position matters"


def test_splits_meet_their_share_and_differ_by_seed():
    corpus = load_corpus({"en": [f"sentence {i}" for i in range(500)]})
    sides = [set(corpus.split(0.1, seed)[1]["en"]) for seed in range(3)]
    assert [len(side) for side in sides] == [50, 50, 50]
    assert len(sides[0] & sides[1]) < 20
    assert len(sides[1] & sides[2]) < 20


def test_impossible_splits_are_refused():
    corpus = load_corpus({"en": ["same", "same"]})
    with pytest.raises(CorpusError, match="'en': it has 1 different document"):
        corpus.split()
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(CorpusError, match="between 0 and 1"):
            corpus.split(share)


def test_a_corpus_reads_as_a_mapping():
    corpus = load_corpus({"en": [f"document {i}" for i in range(2500)], "hi": ["एक"]})
    assert corpus.languages == tuple(corpus) == ("en", "hi")
    assert len(corpus) == 2
    assert len(corpus["en"]) == 2500
    assert corpus["en"][1:3] == ["document 1", "document 2"]
    assert list(corpus.texts("en")) == list(corpus["en"]) == [f"document {i}" for i in range(2500)]
    assert corpus.text("en", 2499) == "document 2499"
    assert "hi" in corpus
    assert "ur" not in corpus
    for index in (-1, 2500):
        with pytest.raises(CorpusError, match=f"no text {index}: it has 0 to 2499"):
            corpus.text("en", index)
    for read in (corpus.__getitem__, corpus.texts, lambda name: corpus.select([name])):
        with pytest.raises(LanguageError, match="Unknown language 'hii': did you mean 'hi'"):
            read("hii")


def test_select_take_and_shuffle():
    corpus = load_corpus({"en": [f"e{i}" for i in range(50)], "fr": [f"f{i}" for i in range(50)], "hi": ["h"]})
    assert corpus.select(["hi", "en"]).languages == ("hi", "en")
    assert [len(documents) for documents in corpus.take(3).values()] == [3, 3, 1]
    assert list(corpus.take(3)["en"]) == ["e0", "e1", "e2"]
    shuffled = corpus.shuffle(seed=1)
    assert list(shuffled["en"]) != list(corpus["en"])
    assert sorted(shuffled["en"]) == sorted(corpus["en"])
    assert list(shuffled["en"]) == list(corpus.select(["en"]).shuffle(seed=1)["en"])
    assert list(shuffled["en"]) != list(corpus.shuffle(seed=2)["en"])
    pairs = zip(shuffled["en"], shuffled["fr"], strict=True)
    assert all(english[1:] == french[1:] for english, french in pairs), "parallel documents came apart"
    assert list(shuffled.take(2).shuffle(seed=1).texts("en")) in (
        list(shuffled["en"])[:2],
        list(shuffled["en"])[1::-1],
    )
    with pytest.raises(CorpusError, match="Cannot take 0"):
        corpus.take(0)


def test_sizes_count_documents_characters_and_bytes():
    table = load_corpus({"en": ["abc", "é"], "hi": ["हि"]}).sizes()
    assert table.to_dict("list") == {
        "language": ["en", "hi"], "texts": [2, 1], "documents": [2, 1], "sources": [0, 0],
        "characters": [4, 2], "bytes": [5, 6],
    }  # fmt: skip


def test_fingerprints_follow_the_text_alone(tmp_path):
    (tmp_path / "en.txt").write_text("a\nbc\n")
    corpus = load_corpus({"en": ["a", "bc"], "hi": ["x"]})
    assert load_corpus(tmp_path).fingerprints["en"] == corpus.fingerprints["en"]
    assert load_corpus({"en": ["ab", "c"]}).fingerprints["en"] != corpus.fingerprints["en"]
    assert load_corpus({"en": ["bc", "a"]}).fingerprints["en"] != corpus.fingerprints["en"]
    assert corpus.shuffle().take(5).fingerprint != corpus.select(["en"]).fingerprint
    assert corpus.select(["hi", "en"]).fingerprint == corpus.fingerprint
    assert load_corpus({"hi": ["a", "bc"], "en": ["x"]}).fingerprint != corpus.fingerprint
    assert corpus == load_corpus({"en": ["a", "bc"], "hi": ["x"]})
    assert corpus != corpus.select(["hi", "en"])
    assert hash(corpus) == hash(load_corpus({"en": ["a", "bc"], "hi": ["x"]}))


def test_a_split_of_a_split_still_divides_the_documents():
    corpus = load_corpus({"en": [str(i) for i in np.random.default_rng(0).permutation(200)]})
    train, heldout = corpus.split(0.25)
    inner, development = train.split(0.2, seed=1)
    assert sorted([*inner["en"], *development["en"], *heldout["en"]]) == sorted(corpus["en"])
