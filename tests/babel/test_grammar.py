"""The miniature grammar says each thing in one way, and grammatically."""

import unicodedata
from itertools import product

import pytest

from langneurons.babel import LANGUAGES
from langneurons.babel.grammar import (
    Clause,
    clause,
    concepts,
    counted,
    forms,
    how_many,
    lexicon,
    sentence,
    where,
    who_does,
    who_is,
)

SAID = {
    Clause("boy", activity="cook", place="garden"): {
        "en": "The boy is cooking in the garden.",
        "fr": "Le garçon cuisine dans le jardin.",
        "es": "El niño está cocinando en el jardín.",
        "vi": "Cậu bé đang nấu ăn ở trong vườn.",
        "zh": "男孩在花园里做饭。",
        "hi": "लड़का बगीचे में खाना बना रहा है।",
        "ur": "لڑکا باغ میں کھانا بنا رہا ہے۔",
    },
    Clause("queen", activity="telephone", denied=True): {
        "en": "The queen is not talking on the phone.",
        "fr": "La reine ne téléphone pas.",
        "es": "La reina no está hablando por teléfono.",
        "vi": "Nữ hoàng không gọi điện thoại.",
        "zh": "女王没在打电话。",
        "hi": "रानी फ़ोन पर बात नहीं कर रही है।",
        "ur": "ملکہ فون پر بات نہیں کر رہی ہے۔",
    },
    Clause("boy", thing="orange", number="two"): {
        "en": "The boy has two oranges.",
        "fr": "Le garçon a deux oranges.",
        "es": "El niño tiene dos naranjas.",
        "vi": "Cậu bé có hai quả cam.",
        "zh": "男孩有两个橙子。",
        "hi": "लड़के के पास दो संतरे हैं।",
        "ur": "لڑکے کے پاس دو سنگترے ہیں۔",
    },
    Clause("student", thing="orange", denied=True): {
        "en": "The student has no oranges.",
        "fr": "L'étudiante n'a pas d'oranges.",
        "es": "La estudiante no tiene naranjas.",
        "vi": "Cô sinh viên không có cam.",
        "zh": "学生没有橙子。",
        "hi": "छात्रा के पास संतरे नहीं हैं।",
        "ur": "طالبہ کے پاس سنگترے نہیں ہیں۔",
    },
    Clause("cook", place="market", denied=True): {
        "en": "The cook is not at the market.",
        "fr": "Le cuisinier n'est pas au marché.",
        "es": "El cocinero no está en el mercado.",
        "vi": "Người đầu bếp không ở chợ.",
        "zh": "厨师不在市场上。",
        "hi": "रसोइया बाज़ार में नहीं है।",
        "ur": "باورچی بازار میں نہیں ہے۔",
    },
}


def every_clause() -> list[Clause]:
    said = [Clause(person, denied=denied) for person, denied in product(concepts("person"), (False, True))]
    found = []
    for one in said:
        found += [Clause(one.person, place=place, denied=one.denied) for place in concepts("place")]
        found += [Clause(one.person, activity=activity, denied=one.denied) for activity in concepts("activity")]
        found += [Clause(one.person, thing=thing, denied=one.denied) for thing in concepts("thing")]
    pairs = product(concepts("activity"), concepts("place"))
    found += [Clause("nurse", activity=activity, place=place) for activity, place in pairs]
    counts = product(concepts("thing"), concepts("number"))
    return found + [Clause("nurse", thing=thing, number=number) for thing, number in counts]


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_what_a_grammar_book_has(language):
    assert {one: sentence([one], language) for one in SAID} == {one: said[language] for one, said in SAID.items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_meanings_are_said_alike(language):
    said = [clause(one, language) for one in every_clause()]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_is_clean_text(language):
    for one in every_clause():
        said = sentence([one], language)
        assert said == unicodedata.normalize("NFC", said)
        assert "  " not in said
        assert "|" not in said
        assert said == said.strip()


def test_the_lexicon_has_every_form_in_every_language():
    wanted = {"vi": {"thing": 2}, "zh": {"thing": 2}, "fr": {"activity": 2}, "es": {"thing": 2}}
    wanted |= dict.fromkeys(("hi", "ur"), {"thing": 2})
    for kind, entries in lexicon().items():
        for concept, by_language in entries.items():
            assert set(by_language) == set(LANGUAGES)
            for language, found in by_language.items():
                least = 2 if kind == "person" and language in ("hi", "ur") else wanted.get(language, {}).get(kind, 1)
                assert len(found) >= least, (concept, language)
                assert all(text.strip() for text in found), (concept, language)


@pytest.mark.parametrize(("language", "he", "she"), [("hi", "रहा", "रही"), ("ur", "رہا", "رہی")])
def test_verbs_agree_with_their_subject(language, he, she):
    for person in concepts("person"):
        said = clause(Clause(person, activity="read"), language).split()
        assert (she if forms("person", person, language)[1] == "f" else he) in said


def test_french_elides_before_vowels():
    said = [clause(one, "fr") for one in every_clause()] + [how_many("boy", thing, "fr") for thing in concepts("thing")]
    for text in said:
        for small in (" de ", " ne ", "le ", "la "):
            after = [part[:1] for part in f" {text}".split(f" {small.strip()} ")[1:]]
            assert not set(after) & set("aeiouéèê"), text


def test_questions_agree_with_what_is_asked_for():
    assert how_many("boy", "key", "es") == "¿Cuántas llaves tiene el niño?"
    assert how_many("boy", "hat", "es") == "¿Cuántos sombreros tiene el niño?"
    assert how_many("boy", "key", "hi") == "लड़के के पास कितनी चाबियाँ हैं?"
    assert how_many("boy", "hat", "vi") == "Cậu bé có bao nhiêu chiếc mũ?"
    assert how_many("boy", "horse", "zh") == "男孩有几匹马？"
    assert who_does("wait", "ur") == "انتظار کون کر رہا ہے؟"
    assert who_is("beach", "fr") == "Qui est sur la plage ?"
    assert where("nurse", "vi") == "Cô y tá đang ở đâu?"
    assert counted("three", "cow", "zh") == "三头牛"


def test_joined_clauses_and_times_make_one_sentence():
    both = [Clause("girl", place="boat"), Clause("king", activity="sing", denied=True)]
    assert sentence(both, "es", "now") == "Ahora, la niña está en el barco, y el rey no está cantando."
    assert sentence(both, "zh", "now") == "现在女孩在船上，国王没在唱歌。"
    assert sentence(both, "vi", "today") == "Hôm nay cô bé đang ở trên thuyền, còn nhà vua không hát."
