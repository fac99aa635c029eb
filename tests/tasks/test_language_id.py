"""Languages of short texts, and what is no text in any of them."""

import pytest

import langneurons as ln
from langneurons.errors import CorpusError, LanguageError
from langneurons.tasks.answers import confusion, cut_to_letters, identify

SENTENCES = {
    "en": "The committee will meet again on Tuesday.",
    "es": "El comité se reunirá de nuevo el martes.",
    "fr": "Le comité se réunira de nouveau mardi.",
    "hi": "समिति मंगलवार को फिर से बैठक करेगी।",
    "ur": "کمیٹی کا اجلاس منگل کو دوبارہ ہوگا۔",
    "vi": "Ủy ban sẽ họp lại vào thứ Ba.",
    "zh": "委员会将于星期二再次开会。",
}


def test_sentences_are_placed_in_their_language():
    assert identify(list(SENTENCES.values()), list(SENTENCES)) == list(SENTENCES)
    assert identify(list(SENTENCES.values())) == list(SENTENCES)


def test_too_few_letters_are_unknown_by_bytes_so_that_scripts_are_treated_alike():
    assert identify(["", "12:30, 45 %", "Hello you", "बैठक में", "你好"], ["en", "hi", "zh"]) == [
        "unknown",
        "unknown",
        "unknown",
        "hi",
        "unknown",
    ]
    assert identify(["你好世界吗"], ["en", "hi", "zh"]) == ["zh"]


def test_a_language_that_is_not_asked_for_is_unknown():
    for language, sentence in SENTENCES.items():
        others = [other for other in SENTENCES if other != language]
        assert identify([sentence * 2], others) == ["unknown"]


def test_a_language_is_identified_under_the_code_that_it_is_asked_by():
    codes = dict(zip(SENTENCES, ["eng_Latn", "spa", "fr-FR", "hin_Deva", "urd_Arab", "vie", "zho_Hans"], strict=True))
    assert identify(list(SENTENCES.values()), list(codes.values())) == list(codes.values())


def test_a_variety_that_is_asked_for_beside_its_language_is_told_apart():
    assert identify(["Eg veit ikkje kva dei gjer no.", "Jeg vet ikke hva de gjør nå."], ["no", "nn"]) == ["nn", "no"]


def test_members_of_a_language_are_the_language():
    assert identify(["佢哋聽日會再開會㗎喇，你知唔知呀？"], ["zh", "en"]) == ["zh"]


def test_a_language_that_cannot_be_identified_is_refused():
    with pytest.raises(LanguageError, match="Unknown language 'hii': did you mean 'hi'"):
        identify(["text"], ["hii"])
    with pytest.raises(LanguageError, match="Unknown language 'hi-Latn'"):
        identify(["text"], ["en", "hi-Latn"])
    with pytest.raises(LanguageError, match="'zh-Hans' and 'zho_Hant' cannot be told apart"):
        identify(["text"], ["zh-Hans", "en", "zho_Hant"])
    with pytest.raises(LanguageError, match="No language was given"):
        identify(["text"], [])


def test_letters_are_cut_with_their_marks():
    assert cut_to_letters("a b-c d", 3) == "a b-c"
    assert cut_to_letters("दुनिया है", 6) == "दुनिया"
    assert cut_to_letters("abc", 4) is None


def test_confusion_says_where_each_language_goes():
    mixed = {"en": [SENTENCES["en"]] * 3 + [SENTENCES["hi"]], "hi": [SENTENCES["hi"], "1 2 3"]}
    table = confusion(mixed)
    assert table.index.tolist() == ["en", "hi"]
    assert table.columns.tolist() == ["en", "hi", "unknown"]
    assert table.loc["en"].tolist() == [0.75, 0.25, 0.0]
    assert table.loc["hi"].tolist() == [0.0, 0.5, 0.5]


def test_confusion_of_cut_text_leaves_out_what_is_shorter():
    mixed = {"en": [SENTENCES["en"], "Short"], "fr": [SENTENCES["fr"]]}
    assert confusion(mixed, letters=25).to_numpy().tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    with pytest.raises(CorpusError, match="'en' has no document of 500 letters"):
        confusion(mixed, letters=500)


def test_babels_languages_are_told_apart_at_the_length_of_a_completion():
    table = confusion(ln.load_corpus("babel"), letters=20, sample=200)
    assert all(table.loc[language, language] > 0.94 for language in table.index)


def test_the_sample_follows_the_seed():
    corpus = {"en": [SENTENCES["en"], SENTENCES["hi"]], "hi": [SENTENCES["hi"]]}
    shares = {confusion(corpus, sample=1, seed=seed).loc["en", "en"] for seed in range(8)}
    assert shares == {0.0, 1.0}
