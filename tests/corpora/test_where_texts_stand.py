"""Texts stand in documents, and documents in sources: read from the data, and kept together ever after."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from langneurons.corpora import load_corpus, pack
from langneurons.errors import LangNeuronsWarning
from tests.corpora.conftest import word_tokenizer

ARTICLES = Path(__file__).parents[3] / "shared" / "data" / "articles"


def articles(language: str, count: int = 12, texts: int = 3) -> list[dict]:
    return [
        {
            "id": number,
            "article": f"article {number // texts}",
            "source": f"source {number // texts % 4}",
            "text": f"a b {language} {number}",
        }
        for number in range(count * texts)
    ]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture
def corpus(tmp_path):
    for language in ("en", "hi"):
        write_jsonl(tmp_path / f"{language}.jsonl", articles(language))
    return load_corpus(tmp_path)


def test_a_corpus_says_how_many_documents_and_sources_it_has_or_that_every_text_is_one(corpus):
    assert repr(corpus) == (
        "Corpus(en: 12 documents of 36 texts from 4 sources, hi: 12 documents of 36 texts from 4 sources)"
    )
    assert repr(load_corpus({"en": ["a", "b"]})) == "Corpus(en: 2 texts; every text is a document of its own)"
    assert corpus.sizes()[["texts", "documents", "sources"]].to_numpy().tolist() == [[36, 12, 4]] * 2
    assert corpus.ids("hi")[:3] == ["0", "1", "2"]
    assert load_corpus({"en": ["a"]}).ids("en") is None


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("column", ["document", "article", "title"])
def test_documents_are_read_from_any_of_their_names(tmp_path, suffix, column):
    rows = [{column: name, "text": text} for name, text in (("x", "a"), ("x", "b"), ("y", "c"), ("y", "  "))]
    if suffix == "jsonl":
        write_jsonl(tmp_path / "en.jsonl", rows)
    else:
        pd.DataFrame(rows).to_parquet(tmp_path / "en.parquet")
    corpus = load_corpus(tmp_path)
    assert corpus.groups("en").tolist() == [0, 0, 1]
    assert not corpus.grouped("en", "source")


def test_blank_lines_of_a_txt_file_separate_documents_and_a_last_one_does_not(tmp_path):
    (tmp_path / "en.txt").write_text("a\nb\n\n\nc\n\nd\ne\n\n", "utf-8")
    (tmp_path / "hi.txt").write_text("a\nb\nc\n\n", "utf-8")
    corpus = load_corpus(tmp_path)
    assert corpus.groups("en").tolist() == [0, 0, 1, 2, 2]
    assert not corpus.grouped("hi")
    assert list(corpus["en"]) == list("abcde")


def test_a_text_without_document_is_its_own_where_others_have_one(tmp_path):
    rows = [{"text": "a", "document": "x", "source": "s"}, {"text": "b"}, {"text": "c"}, {"text": "d", "document": "x"}]
    write_jsonl(tmp_path / "en.jsonl", rows)
    corpus = load_corpus(tmp_path)
    assert corpus.groups("en").tolist() == [0, 1, 2, 0]
    assert not corpus.grouped("en", "source")


def test_take_shuffle_and_split_keep_documents_whole(corpus):
    whole = {f"article {number}": [f"a b en {3 * number + k}" for k in range(3)] for number in range(12)}
    for part in (corpus.take(5), corpus.shuffle(3), *corpus.split(0.25, seed=1)):
        table = part.tables["en"].to_pandas()
        for document, rows in table.groupby("document"):
            assert rows["text"].tolist() == whole[document]
            assert np.ptp(rows.index) == 2, "the texts of a document lie apart"
    assert corpus.take(5).sizes()["documents"].tolist() == [5, 5]
    assert list(corpus.shuffle(3)["en"]) != list(corpus["en"])


def test_translations_of_a_document_fall_on_one_side_of_a_split(corpus):
    train, heldout = corpus.split(0.25, seed=4)
    for part, count in ((train, 9), (heldout, 3)):
        names = [sorted(set(part.tables[language]["document"])) for language in ("en", "hi")]
        assert names[0] == names[1]
        assert len(names[0]) == count


def test_a_packed_corpus_knows_the_document_and_source_of_each_text(corpus, tmp_path):
    packed = pack(corpus, word_tokenizer("bos", "eos", "pad"), 16, tmp_path / "packed")
    reached = packed.text_count("en")
    assert packed.groups("en")[:reached].tolist() == [n // 3 for n in range(reached)]
    assert packed.groups("en", "source")[:6].tolist() == [0, 0, 0, 1, 1, 1]
    alone = load_corpus({"en": list(corpus["en"]), "hi": list(corpus["hi"])})
    plain = pack(alone, word_tokenizer("bos", "eos", "pad"), 16, tmp_path / "plain")
    assert plain.groups("en").tolist() == list(range(36))
    assert plain.fingerprints["en"] != packed.fingerprints["en"]


def test_where_texts_stand_is_part_of_a_corpus_fingerprint(corpus):
    assert load_corpus({"en": list(corpus["en"])}).fingerprints["en"] != corpus.fingerprints["en"]


def test_the_old_names_of_texts_go_on_working_with_a_warning(corpus):
    with pytest.warns(LangNeuronsWarning, match="Corpus.documents is called Corpus.texts"):
        assert list(corpus.documents("en")) == list(corpus["en"])
    with pytest.warns(LangNeuronsWarning, match="Corpus.document is called Corpus.text"):
        assert corpus.document("en", 3) == corpus.text("en", 3)


def test_the_news_articles_are_123_documents_from_18_sources():
    if not ARTICLES.is_dir():
        pytest.skip("the folder of articles is not beside this checkout")
    corpus = load_corpus(ARTICLES, ["hi", "zh"])
    assert corpus.sizes()[["texts", "documents", "sources"]].to_numpy().tolist() == [[1997, 123, 18]] * 2
