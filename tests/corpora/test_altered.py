"""Altered text keeps what it says it keeps, and loses the rest."""

import sys
from collections import Counter
from types import SimpleNamespace

import pytest

import langneurons as ln
from langneurons.corpora import altered
from langneurons.errors import CorpusError

TEXTS = {
    "en": ["A cat sat on the mat.", "Dogs  bark."],
    "hi": ["नमस्ते दुनिया, कैसे हो?", "एक बिल्ली"],
    "ru": ["Привет, мир!", "Это кошка"],
    "zh": ["今天天气很好。", "我爱你"],
}


@pytest.fixture(scope="module")
def corpus():
    rows = {
        language: [{"text": text, "id": f"s{place}", "document": "d"} for place, text in enumerate(texts)]
        for language, texts in TEXTS.items()
    }
    return ln.load_corpus(rows)


def test_shuffled_words_are_the_same_words_and_chinese_has_none(corpus):
    shuffled = altered.words_shuffled(corpus, seed=1)
    assert shuffled.languages == ("en", "hi", "ru")
    for language in shuffled:
        for text, original in zip(shuffled[language], TEXTS[language], strict=True):
            assert Counter(text.split()) == Counter(original.split())
    assert shuffled.text("en", 0) != TEXTS["en"][0]


def test_shuffled_characters_keep_marks_and_spaces_in_their_places(corpus):
    shuffled = altered.characters_shuffled(corpus, seed=1)
    assert shuffled.languages == corpus.languages
    for language in shuffled:
        for text, original in zip(shuffled[language], TEXTS[language], strict=True):
            assert Counter(text) == Counter(original)
            assert len(text.split()) == len(original.split())
    assert "स्ते" in shuffled.text("hi", 0)  # what is written as one consonant with its vowel


def test_ids_and_documents_stay_and_the_seed_decides(corpus):
    first, again, other = (altered.characters_shuffled(corpus, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert list(first.ids("hi")) == ["s0", "s1"]
    assert first.grouped("hi")


def test_languages_in_other_letters_are_romanised(corpus):
    pytest.importorskip("uroman", reason="langneurons[script] is not installed")
    latin = altered.romanised(corpus)
    assert latin.languages == ("hi", "ru", "zh")
    assert latin["ru"][:] == ["Privet, mir!", "Eto koshka"]
    assert latin["hi"][1] == "ek billii"
    assert latin["zh"][1].strip() == "woaini"
    assert list(latin.ids("zh")) == ["s0", "s1"]


def test_text_in_latin_letters_is_refused_in_one_sentence(corpus):
    with pytest.raises(CorpusError, match="en are in Latin letters already"):
        altered.romanised(corpus.select(["en"]))
    with pytest.raises(CorpusError, match="zh put no spaces"):
        altered.words_shuffled(corpus.select(["zh"]))


def test_without_the_transliterator_one_sentence_says_what_to_install(corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "uroman", None)
    with pytest.raises(CorpusError, match=r"needs the package uroman: pip install 'langneurons\[script\]'"):
        altered.romanised(corpus)


def test_a_script_that_the_transliterator_leaves_is_refused(corpus, monkeypatch):
    silent = SimpleNamespace(romanize_string=lambda text: text)
    monkeypatch.setitem(sys.modules, "uroman", SimpleNamespace(Uroman=lambda: silent))
    with pytest.raises(CorpusError, match="'hi' cannot be romanised: uroman leaves 100% of its letters"):
        altered.romanised(corpus)


def test_random_tokens_are_of_the_whole_vocabulary_and_no_special_token():
    tokenizer = ln.models.view(ln.load_model("babel")).tokenizer
    texts = altered.random_tokens(tokenizer, 3200, seed=3)
    assert texts.languages == ("random",)
    ids = [token for text in texts["random"] for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert len(set(ids)) > 1500
    assert not set(ids) & set(tokenizer.all_special_ids)
