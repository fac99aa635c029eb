"""Exact match and F1 against MLQA's published rules, written from their description, on generated answers.

MLQA (Lewis et al. 2020, section 4.1, and the rules that come with its data): lower case; every character of Unicode's
punctuation, and of ASCII's, is removed; articles of the language are removed; words stand between white space, and in
Chinese every character from U+4E00 to U+9FA5 is a word of its own. F1 is that of SQuAD, without a rule for answers of
which nothing is left.

Every difference is named in ``DIFFERENCES``: a change of both texts after which MLQA's rules say what ours do.
"""

import random
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable

import pytest

from langneurons.tasks.answers import exact_match, f1, normalise

LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")
ANSWERS = 20_000
ARTICLES = {
    "en": "a|an|the",
    "de": "ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des",
    "es": "un|una|unos|unas|el|la|los|las",
    "vi": "của|là|cái|chiếc|những",
}


def is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def mlqa_tokens(text: str, language: str) -> list[str]:
    text = "".join(letter for letter in text.lower() if not is_punctuation(letter))
    if language in ARTICLES:
        text = re.sub(rf"\b({ARTICLES[language]})\b", " ", text)
    if language == "ar":
        text = text.replace("ال", " ")
    if language == "zh":
        text = "".join(f" {letter} " if "\u4e00" <= letter <= "\u9fa5" else letter for letter in text)
    return text.split()


def mlqa_scores(prediction: str, gold: str, language: str) -> tuple[float, float]:
    answer, right = mlqa_tokens(prediction, language), mlqa_tokens(gold, language)
    shared = sum((Counter(answer) & Counter(right)).values())
    if not shared:
        return float(answer == right), 0.0
    precision, recall = shared / len(answer), shared / len(right)
    return float(answer == right), 2 * precision * recall / (precision + recall)


def translated(pairs: dict[str, str]) -> Callable[[str, str], str]:
    return lambda text, language: text.translate(str.maketrans(pairs))


def composed(text: str, language: str) -> str:
    return unicodedata.normalize("NFC", text)


def without_wide_forms(text: str, language: str) -> str:
    kinds = ("<wide>", "<narrow>", "<isolated>", "<initial>", "<medial>", "<final>")
    encoded_twice = {letter for letter in text if unicodedata.decomposition(letter).startswith(kinds)}
    return "".join(unicodedata.normalize("NFKC", letter) if letter in encoded_twice else letter for letter in text)


def plain_digits(text: str, language: str) -> str:
    return "".join(str(int(letter)) if unicodedata.category(letter) == "Nd" else letter for letter in text)


def without_invisible(text: str, language: str) -> str:
    return "".join(letter for letter in text if unicodedata.category(letter) != "Cf")


def without_vowel_signs(text: str, language: str) -> str:
    return re.sub("[\u064b-\u0652\u0670\u0640]", "", text)


def arabic_letters(text: str, language: str) -> str:
    return text.replace("ی", "ي").replace("ک", "ك") if language == "ar" else text


def full_case_folding(text: str, language: str) -> str:
    folded = text.casefold().replace("i\u0307", "i")
    return text if folded == text.lower() else folded


def arabic_article_at_the_start_of_words(text: str, language: str) -> str:
    """Hide from MLQA's rule the letters of the article where they are no article."""
    return re.sub(r"(?<=\w)ال|ال(?!\w\w)", "\ue000", text) if language == "ar" else text


def articles_are_whole_words(text: str, language: str) -> str:
    """Hide from MLQA's rule an article that stands beside a symbol, in one word with it."""
    if language not in ARTICLES:
        return text
    spoken = "".join(letter for letter in text if not is_punctuation(letter))
    hidden = rf"(?<=[^\w\s])({ARTICLES[language]})\b|\b({ARTICLES[language]})(?=[^\w\s])"
    apart = re.sub(hidden, lambda article: f"\u01c0{article[0]}\u01c1", spoken, flags=re.IGNORECASE)
    return text if apart == spoken else apart


def every_unspaced_character(text: str, language: str) -> str:
    """Write spaces around the characters of scripts without spaces that are not in MLQA's range."""
    if language != "zh":
        return text
    return re.sub("([\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u9fa6-\u9fff\U00020000-\U0003ffff])", r" \1 ", text)


DIFFERENCES: dict[str, Callable[[str, str], str]] = {
    "full-width, half-width and drawn forms are the plain ones": without_wide_forms,
    "composed and decomposed letters are the same": composed,
    "invisible characters are removed": without_invisible,
    "digits of every script are the digits they stand for": plain_digits,
    "optional vowel signs and the lengthening stroke are removed": without_vowel_signs,
    "Persian letters in Arabic words are the Arabic ones": arabic_letters,
    "case is folded, not lowered: ß is ss": full_case_folding,
    "the Arabic article stands at the start of a word": arabic_article_at_the_start_of_words,
    "an article is a whole word": articles_are_whole_words,
    "kana, iteration marks and rare characters are compared one by one in Chinese": every_unspaced_character,
}
EMPTY = "two answers of which nothing is left are equal, with F1 1"

WORDS = {
    "ar": "السلام سلام الف مال القاهرة محمد مُحَمَّد محمـــد علي علی كتاب کتاب ١٩٦٦ 1966 سالم العالم "
    "ال و في ﻣﺤﻤﺪ قال، السؤال؟",
    "de": "der Die das ein Straße STRASSE Königs Berlin 1966 Fußball die-Mauer „Wand“ 3,5 € der€ dem eines Maß",
    "en": "the The a an Panthers New York 1966 10⁹ 109 U.S. US well-known $5 a+ the° Beyoncé "
    "Beyonce\u0301 １９６６ ﬁn fin a",
    "es": "el la los unos niño NIÑO año 1966 ¿Qué? población la° Ángeles a\u0301ngeles él un-día una",
    "hi": "१९६६ 1966 में। राम ॥ हिंदी हिन्दी क़लम \u0915\u093cलम क्\u200dष क्ष भारत की एक NFL nfl की,",
    "vi": "của Việt Vie\u0323\u0302t Nam là cái chiếc những năm 1966 những, Hà Nội là€ la\u0300 người",
    "zh": "天气 很好 好 1966 年 １９６６ ＮＦＬ NFL 「摩摩斯」 。 カタ 々 〇 㐀 𠀀 丰田 Corona ﾊ 卡卡 90 分鐘 龦",
}
SPACES = (*[" "] * 12, "", "  ", "\u00a0", "\u3000", "\u200b", "\u200f", "-", ", ", ". ", "\t")


def generated(language: str, count: int) -> list[tuple[str, str]]:
    """Pairs of an answer and a right one that share some words, written a little differently."""
    draw = random.Random(f"answers in {language}")
    words = WORDS[language].split()

    def text(chosen: list[str]) -> str:
        return "".join(draw.choice((word, word, word.upper(), word.lower())) + draw.choice(SPACES) for word in chosen)

    pairs = []
    for _ in range(count):
        gold = draw.choices(words, k=draw.choice((0, 1, 2, 2, 3, 3, 4)))
        answer = [word for word in gold if draw.random() < 0.8] + draw.choices(words, k=draw.choice((0, 0, 0, 1, 2)))
        pairs.append((text(answer), text(gold)))
    return pairs


def our_scores(prediction: str, gold: str, language: str) -> tuple[float, float]:
    return exact_match(prediction, [gold], language), f1(prediction, [gold], language)


def explained(prediction: str, gold: str, language: str) -> tuple[tuple[float, float], list[str]]:
    """What MLQA's rules say with every named difference taken away, and which of them the two texts have."""
    pair, names = [prediction, gold], []
    for name, change in DIFFERENCES.items():
        changed = [change(text, language) for text in pair]
        if changed != pair:
            names.append(name)
        pair = changed
    scores = mlqa_scores(*pair, language)
    if not any(mlqa_tokens(text, language) for text in pair):
        return (1.0, 1.0), [*names, EMPTY]
    return scores, names


@pytest.fixture(scope="module")
def compared():
    """Every generated pair with our scores, MLQA's, and MLQA's once the named differences are taken away."""
    each = -(-ANSWERS // len(LANGUAGES))
    return [
        (language, pair, our_scores(*pair, language), mlqa_scores(*pair, language), *explained(*pair, language))
        for language in LANGUAGES
        for pair in generated(language, each)
    ]


def test_there_is_no_difference_but_those_that_are_named(compared):
    assert len(compared) >= ANSWERS
    odd = [
        (language, pair, ours, theirs)
        for language, pair, ours, _, theirs, _ in compared
        if ours != pytest.approx(theirs)
    ]
    assert odd == []


def test_answers_without_a_named_difference_score_as_mlqa_scores_them(compared):
    plain = [(ours, theirs) for _, _, ours, theirs, _, names in compared if not names]
    assert len(plain) > 4_000
    assert [pair for pair in plain if pair[0] != pytest.approx(pair[1])] == []


@pytest.mark.parametrize("name", [*DIFFERENCES, EMPTY])
def test_every_named_difference_changes_a_score(compared, name):
    changed = [
        pair for _, pair, ours, theirs, _, names in compared if names == [name] and ours != pytest.approx(theirs)
    ]
    assert changed


# ---- SQuAD 1.1's own rules ----


def squad_answer(text: str) -> str:
    """Lower case, punctuation of ASCII removed, then English articles, then all white space but single spaces."""
    text = text.lower()
    for letter in string.punctuation:
        text = text.replace(letter, "")
    for article in ("a", "an", "the"):
        text = re.sub(rf"\b{article}\b", " ", text)
    return " ".join(text.split())


def squad_scores(prediction: str, golds: list[str]) -> tuple[float, float]:
    """The best exact match and the best F1 over the golds; F1 is 0 where no word is shared."""
    exact, overlaps = [], []
    for gold in golds:
        answer, right = squad_answer(prediction), squad_answer(gold)
        exact.append(float(answer == right))
        rest, shared = right.split(), 0
        for word in answer.split():
            if word in rest:
                rest.remove(word)
                shared += 1
        total = len(answer.split()) + len(right.split())
        overlaps.append(2 * shared / total if shared else 0.0)
    return max(exact), max(overlaps)


def test_the_metric_squad_scores_as_squad_1_1_does_in_every_language(compared):
    pairs = [(language, *pair) for language, pair, *_ in compared]
    golds = {language: [gold for code, _, gold in pairs if code == language] for language in LANGUAGES}
    assert len(pairs) >= ANSWERS
    odd = []
    for number, (language, answer, gold) in enumerate(pairs):
        several = [gold, golds[language][number % len(golds[language])]]
        ours = (exact_match(answer, several, language, "squad"), f1(answer, several, language, "squad"))
        if ours != pytest.approx(squad_scores(answer, several)):
            odd.append((language, answer, several, ours))
    assert odd == []


def test_mlqas_rules_are_the_default_and_differ_from_squads_in_every_language(compared):
    for language in LANGUAGES:
        pairs = [(pair, ours) for code, pair, ours, *_ in compared if code == language]
        named = [(exact_match(*one, "mlqa"), f1(*one, "mlqa")) for (a, b), _ in pairs for one in [(a, [b], language)]]
        assert named == [ours for _, ours in pairs]
        assert any(squad_scores(a, [b]) != pytest.approx(ours) for (a, b), ours in pairs)


# ---- codes of languages ----

# Every language of MLQA and XQuAD as FLORES spells it, and in other ways.
SPELLINGS = {
    "ar": ("arb_Arab", "ara", "ar-EG"), "de": ("deu_Latn", "de-AT"), "el": ("ell_Grek", "gre"),
    "en": ("eng_Latn", "en-GB", "EN"), "es": ("spa_Latn", "es-419"), "hi": ("hin_Deva", "hin", "hi-IN"),
    "ro": ("ron_Latn", "rum"), "ru": ("rus_Cyrl", "ru-RU"), "th": ("tha_Thai", "tha"), "tr": ("tur_Latn", "tr-TR"),
    "vi": ("vie_Latn", "vi_VN"), "zh": ("zho_Hans", "zho_Hant", "zh-CN", "zh_TW", "cmn", "zh-Hans-CN"),
}  # fmt: skip
# A text that every one of these languages would normalise in a way of its own.
MIXED = "the der ο un của o niște 在2016年 السلام I İ ﻣﺤﻤﺪ １९६६ यह, ไทย30 el Straße علی"


@pytest.mark.parametrize(("language", "code"), [(name, code) for name, codes in SPELLINGS.items() for code in codes])
def test_a_language_is_normalised_alike_under_every_spelling(language, code):
    pairs = generated(language, 200) if language in WORDS else []
    for prediction, gold in [*pairs, (MIXED, MIXED[5:])]:
        assert normalise(prediction, code) == normalise(prediction, language)
        assert our_scores(prediction, gold, code) == our_scores(prediction, gold, language)


def test_languages_normalise_the_mixed_text_differently():
    own = {language: tuple(normalise(MIXED, language)) for language in SPELLINGS}
    assert len(set(own.values())) >= 10  # Hindi and Russian have neither articles nor letters of their own rules
