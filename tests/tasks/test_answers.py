from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from langneurons.errors import TaskError
from langneurons.tasks.answers import exact_match, f1, normalise

THIRD, HALF, QUARTER = Fraction(1, 3), Fraction(1, 2), Fraction(1, 4)
# Each worked out on paper: language, prediction, golds, exact match, F1 = 2 x shared / (given + gold).
CASES = [
    ("en", "308", ["308"], 1, 1),
    ("en", "The Panthers", ["panthers"], 1, 1),
    ("en", "Denver Broncos", ["the Broncos"], 0, 2 * THIRD),  # 2 x 1 / (2 + 1)
    ("en", "24–10", ["24-10"], 1, 1),
    ("en", "U.S. Army", ["US army"], 1, 1),
    ("en", "", ["308"], 0, 0),
    ("en", " \t", ["308"], 0, 0),
    ("en", "the", ["a"], 1, 1),  # nothing is left of either
    ("en", "", ["The"], 1, 1),
    ("en", "?!", ["The"], 1, 1),
    ("en", "the", ["Lady Gaga"], 0, 0),
    ("en", "an apple a day", ["apple day"], 1, 1),
    ("en", "new york new york", ["New York"], 0, 2 * THIRD),  # 2 x 2 / (4 + 2)
    ("en", "new new new", ["new york new"], 0, 2 * THIRD),  # 2 x min(3, 2) / (3 + 3)
    ("en", "Sir Isaac Newton", ["Newton", "Isaac Newton", "Leibniz"], 0, Fraction(4, 5)),  # of 2/4, 4/5, 0
    ("en", "Newton", ["Isaac Newton", "Newton"], 1, 1),
    ("en", "１２ km", ["12 km"], 1, 1),
    ("en", "12 km²", ["12 km2"], 0, HALF),
    ("en", "109", ["10⁹"], 0, 0),
    ("en", "12", ["½"], 0, 0),
    ("en", "H2O", ["H₂O"], 0, 0),
    ("en", "IV", ["Ⅳ"], 0, 0),
    ("en", "ﬁn", ["fin"], 1, 1),
    ("en", "“Beyoncé”", ["Beyonce"], 0, 0),
    ("en", "Beyonce\u0301", ["Beyonc\u00e9"], 1, 1),
    ("en", "It is in Santa Clara, California.", ["Santa Clara"], 0, HALF),  # 2 x 2 / (6 + 2)
    ("en", "well-known", ["well known"], 0, 0),
    ("en", "$5 million", ["5 million"], 1, 1),
    ("en", "soft\u00adware", ["software"], 1, 1),
    ("es", "el año 1966", ["Año 1966"], 1, 1),
    ("es", "ano 1966", ["año 1966"], 0, HALF),
    ("es", "¿Los Ángeles?", ["ángeles"], 1, 1),
    ("es", "EL NIÑO", ["niño"], 1, 1),
    ("es", "unos", ["las"], 1, 1),
    ("es", "él", ["el"], 0, 0),
    ("es", "dos tercios de su población", ["dos tercios de la población"], 0, Fraction(8, 9)),  # 2 x 4 / (5 + 4)
    ("es", "Universidad de Chicago", ["Chicago", "la Universidad de Chicago"], 1, 1),
    ("hi", "१९६६ में।", ["१९६६ में"], 1, 1),
    ("hi", "॥ राम ॥", ["राम"], 1, 1),
    ("hi", "सौ मिलियन डॉलर", ["100 मिलियन डॉलर"], 0, 2 * THIRD),
    ("hi", "भारत की राजधानी", ["भारत"], 0, HALF),
    ("hi", "NFL में", ["nfl में"], 1, 1),
    ("hi", "\u0958लम", ["\u0915\u093cलम"], 1, 1),  # qa, and ka with a nukta
    ("hi", "\u0915लम", ["\u0915\u093cलम"], 0, 0),
    ("hi", "क्\u200dष", ["क्ष"], 1, 1),
    ("hi", "एक", ["एक दो"], 0, 2 * THIRD),
    ("vi", "của Việt Nam", ["Việt Nam"], 1, 1),
    ("vi", "những chiếc xe", ["xe"], 1, 1),
    ("vi", "Viet Nam", ["Việt Nam"], 0, HALF),
    ("vi", "Vie\u0323\u0302t Nam", ["Vi\u1ec7t Nam"], 1, 1),
    ("vi", "là", ["Cái"], 1, 1),
    ("vi", "năm 1966.", ["1966"], 0, 2 * THIRD),
    ("zh", "女神卡卡", ["女神卡卡"], 1, 1),
    ("zh", "女神", ["女神卡卡"], 0, 2 * THIRD),  # 2 x 2 / (2 + 4)
    ("zh", "1901 年", ["1901年。"], 1, 1),
    ("zh", "1901", ["1901年"], 0, 2 * THIRD),  # 1901 is one token
    ("zh", "１９０１年", ["1901年"], 1, 1),
    ("zh", "丰田Corona Mark II", ["丰田 Corona"], 0, 3 * QUARTER),  # 2 x 3 / (5 + 3)
    ("zh", "「摩摩斯」（Momus）", ["摩摩斯 (Momus)"], 1, 1),
    ("zh", "卡卡卡", ["卡卡"], 0, Fraction(4, 5)),
    ("zh", "。", ["卡"], 0, 0),
    ("zh", "90分鐘", ["九十分鐘"], 0, Fraction(4, 7)),  # 2 x 2 / (3 + 4)
    ("ar", "السلام", ["سلام"], 1, 1),
    ("ar", "في القاهرة؟", ["القاهرة"], 0, 2 * THIRD),
    ("ar", "مال", ["م"], 0, 0),
    ("ar", "الف", ["ف"], 0, 0),  # a thousand: no article
    ("ar", "أحمد، محمد", ["أحمد محمد"], 1, 1),
    ("ar", "١٩٦٦", ["1966"], 1, 1),
    ("ar", "مُحَمَّد", ["محمد"], 1, 1),
    ("ar", "محمـــد", ["محمد"], 1, 1),
    ("ar", "کتاب علی", ["كتاب علي"], 1, 1),  # with Persian letters
    ("ar", "على", ["علي"], 0, 0),  # "on", and a name
    ("ar", "أمر", ["امر"], 0, 0),
    ("ar", "\ufee3\ufea4\ufee4\ufeaa", ["محمد"], 1, 1),  # letters as they are drawn
    ("ar", "شَّ", ["ش"], 1, 1),
    ("ar", "يُئ", ["يئ"], 1, 1),
    ("ur", "على كتاب", ["علی کتاب"], 1, 1),
    ("ur", "لاهور", ["لاہور"], 1, 1),
    ("ur", "۱۹۶۶", ["1966"], 1, 1),
    ("ur", "بھارت", ["بہارت"], 0, 0),  # the aspirated h is another letter
    ("ur", "پاکستانؔ کے", ["پاکستان"], 0, 2 * THIRD),
    ("fa", "می\u200cرود", ["میرود"], 1, 1),
    ("he", "שָׁלוֹם", ["שלום"], 1, 1),
    ("hi", "१९६६", ["1966"], 1, 1),
    ("hi", "हिंदी", ["हिन्दी"], 0, 0),  # two spellings
    ("hin_Deva", "१९६६ में।", ["1966 में"], 1, 1),
    ("tr", "ISPARTA", ["Isparta"], 1, 1),
    ("tr", "Isparta", ["ısparta"], 1, 1),
    ("tr", "IRAK", ["irak"], 0, 0),
    ("tr", "İZMİR", ["izmir"], 1, 1),
    ("tur_Latn", "SIR", ["sır"], 1, 1),
    ("en", "IRAK", ["irak"], 1, 1),
    ("azj_Latn", "QIRMIZI", ["qırmızı"], 1, 1),
    ("bo", "བོད་ཡིག", ["བོད"], 0, 2 * THIRD),
    ("am", "ሰላም፡ዓለም", ["ዓለም"], 0, 2 * THIRD),
    ("zho_Hans", "天气很好", ["天气好"], 0, Fraction(6, 7)),  # 2 x 3 / (4 + 3)
    ("zh_CN", "天气很好", ["天气好"], 0, Fraction(6, 7)),
    ("cmn", "天气很好", ["天气好"], 0, Fraction(6, 7)),
    ("yue_Hant", "天氣好", ["天氣"], 0, Fraction(4, 5)),
    ("jpn_Jpan", "東京都", ["東京"], 0, Fraction(4, 5)),
    ("spa_Latn", "el balón", ["balón"], 1, 1),
    ("arb_Arab", "السلام", ["سلام"], 1, 1),
    ("ar", "س\ufefcم", ["سلام"], 1, 1),  # lam and alef drawn as one
    ("th", "ในปี 2004", ["ปี 2004"], 0, 3 * QUARTER),  # ใ น ป ี 2004 against ป ี 2004
    ("th", "กรุงเทพฯ", ["กรุงเทพ"], 0, Fraction(14, 15)),  # 2 x 7 / (8 + 7)
    ("th", "IBM ไทย", ["ibmไทย"], 1, 1),
    ("th", "ไทยไทย", ["ไทย"], 0, 2 * THIRD),
    ("th", "๒๕ ปี", ["๒ ปี"], 0, 2 * THIRD),  # 2 x 2 / (3 + 3)
]
TEXTS = st.text(st.sampled_from("aAbéIıİ 的年ไี12１१٤²ْٔيیﻲ।،.-'’ا ل\u200d\u0301"), max_size=12) | st.text(max_size=8)
LANGUAGES = st.sampled_from(["en", "es", "fr", "hi", "vi", "zh", "ar", "th", "tr", "ur", "he", "xx"])


@pytest.mark.parametrize(("language", "prediction", "golds", "exact", "overlap"), CASES)
def test_scores_equal_those_worked_out_by_hand(language, prediction, golds, exact, overlap):
    assert exact_match(prediction, golds, language) == exact
    assert f1(prediction, golds, language) == pytest.approx(float(overlap))


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        ("fr", "L’eau de l'Été", ["eau", "de", "été"]),
        ("it", "un'arte, gli dell'Arno", ["arte", "dellarno"]),
        ("de", "Die Straße des Königs", ["strasse", "königs"]),
        ("el", "ΤΗΣ Αθήνας", ["αθήνασ"]),
        ("ro", "o casă", ["casă"]),
        ("tr", "İstanbul'da bir", ["istanbulda", "bir"]),
        ("ru", "В 1966 году", ["в", "1966", "году"]),
        ("ur", "لاہور۔", ["لاہور"]),
        ("en", "10⁹ m₂ x½ Ⅳ ①", ["10⁹", "m₂", "x½", "ⅳ", "①"]),
        ("ja", "東京タワー・Tokyo 25", ["東", "京", "タ", "ワ", "ー", "tokyo", "25"]),
        ("zh-Hant", "臺北 Привет", ["臺", "北", "привет"]),
        ("xx", "The a  b", ["the", "a", "b"]),
    ],
)
def test_other_languages_lose_their_own_articles_only(language, text, tokens):
    assert normalise(text, language) == tokens


@given(TEXTS, TEXTS, LANGUAGES)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(prediction, gold, language):
    given, right = normalise(prediction, language), normalise(gold, language)
    left, shared = list(right), 0
    for token in given:
        if token in left:
            left.remove(token)
            shared += 1
    if not shared:
        expected = float(not given and not right)
    else:
        precision, recall = shared / len(given), shared / len(right)
        expected = 2 * precision * recall / (precision + recall)
    assert f1(prediction, [gold], language) == pytest.approx(expected)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), LANGUAGES)
def test_an_exact_match_has_full_f1_and_another_gold_never_lowers_a_score(prediction, golds, language):
    exact, overlap = exact_match(prediction, golds, language), f1(prediction, golds, language)
    assert exact in (0, 1)
    assert exact <= overlap <= 1
    assert exact_match(prediction, golds[:1], language) <= exact
    assert f1(prediction, golds[:1], language) <= overlap


@given(TEXTS, LANGUAGES)
@example("İْ", "en")  # a mark between i and its dot
def test_case_width_and_marks_around_an_answer_make_no_difference(text, language):
    assert exact_match(text, [text], language) == 1
    assert normalise(f"«{text}»。", language) == normalise(text, language) == normalise(f" {text}\n", language)
    if language != "tr":  # where I is the capital of ı
        assert normalise(text.casefold(), language) == normalise(text, language)


@pytest.mark.parametrize("golds", [[], "gold"])
def test_golds_that_are_no_list_or_none_are_refused(golds):
    with pytest.raises(TaskError, match="list of at least one text"):
        f1("gold", golds, "en")
