import math
from pathlib import Path
from time import perf_counter

import pytest

from langneurons.corpora import load_corpus, purity, purity_warnings

ENGLISH = [f"The committee will meet again on the {i}th of the month to discuss the new budget." for i in range(40)]
HINDI = [f"समिति महीने की {i} तारीख को नए बजट पर चर्चा करने के लिए फिर से बैठक करेगी।" for i in range(40)]


def row(documents: list[str], language: str, **options):
    return purity({language: documents}, **options).iloc[0]


def test_clean_text_worries_nobody():
    table = load_corpus({"en": ENGLISH, "hi": HINDI}).purity()
    assert table.language.tolist() == ["en", "hi"]
    assert table.script_share.tolist() == [1.0, 1.0]
    assert table.elsewhere.tolist() == [0, 0]
    assert table.identified.tolist() == [40, 40]
    assert purity_warnings(table) == []


def test_planted_english_in_a_hindi_corpus_is_found():
    mixed = [*HINDI[:30], *ENGLISH[:10]]
    found = row(mixed, "hi")
    letters = [letter for text in mixed for letter in text if letter.isalpha()]
    assert found.script_share == pytest.approx(sum(letter > "\u0900" for letter in letters) / len(letters))
    assert (found.elsewhere, found.elsewhere_share, found.elsewhere_language) == (10, 0.25, "en")
    assert found.examples == (30, 31, 32)
    warnings = purity_warnings(purity({"hi": mixed}))
    assert len(warnings) == 2
    assert "'hi': only" in warnings[0]
    assert warnings[1].startswith("'hi': 25 % of 40 documents read like another language, most often 'en'")
    assert warnings[1].endswith("documents 30, 31, 32.")


def test_duplicates_are_counted_over_all_documents_whatever_the_sample():
    found = row([*HINDI, *HINDI[:10]], "hi", sample=5)
    assert (found.documents, found.sampled, found.duplicates, found.duplicate_share) == (50, 5, 10, 0.2)
    assert purity_warnings(purity({"hi": [*HINDI, *HINDI[:10]]})) == [
        "'hi': 20 % of the 50 documents repeat an earlier one."
    ]


def test_the_sample_is_repeatable_and_follows_the_seed():
    mixed = [text for pair in zip(HINDI, ENGLISH, strict=True) for text in pair]
    examples = [row(mixed, "hi", sample=20, seed=seed).examples for seed in (0, 0, 1)]
    assert examples[0] == examples[1] != examples[2]
    assert all(mixed[index] in ENGLISH for index in examples[0])


def test_short_documents_are_not_identified():
    found = row(["Hi you.", "12 34 ... 56 78 90 12 34 56"], "hi")
    assert found.identified == 0
    assert math.isnan(found.elsewhere_share)
    assert found.elsewhere_language == ""


@pytest.mark.parametrize("code", ["zho_Hans", "zh-Hans", "zh_CN", "cmn", "zh", "zho", "zh-Hant"])
def test_a_language_is_judged_under_whatever_code_it_has(code):
    judged = row(
        [
            "委员会将于星期二再次开会，讨论下一年度的新预算和几项重要的工作。",
            "The committee will meet again on Tuesday.",
        ],
        code,
    )
    assert (judged.identified, judged.elsewhere, judged.elsewhere_language) == (2, 1, "en")
    assert 0 < judged.script_share < 1


def test_a_romanised_text_is_in_the_script_of_its_code():
    assert row(["Samiti mangalvar ko phir se baithak karegi."], "hin_Latn").script_share == 1
    assert row(["Samiti mangalvar ko phir se baithak karegi."], "hin_Deva").script_share == 0
    assert row(["Odbor će se ponovo sastati."], "sr").script_share == 1
    assert row(["Odbor će se ponovo sastati."], "srp_Cyrl").script_share == 0


def test_a_language_without_known_script_or_identification_gets_nan():
    found = row(ENGLISH, "qq")
    assert math.isnan(found.script_share)
    assert math.isnan(found.elsewhere_share)
    assert purity_warnings(purity({"qq": ENGLISH})) == []


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ja", "東京タワーへ行きました。々ー"), ("zh", "我們去北京〇"), ("bn", "বাংলা"), ("ta", "தமிழ்"), ("te", "తెలుగు"),
        ("mr", "मराठी"), ("ur", "اردو"), ("ar", "العربية"), ("kn", "ಕನ್ನಡ"), ("ml", "മലയാളം"), ("pa", "ਪੰਜਾਬੀ"),
        ("th", "ภาษาไทย"),
        ("ru", "русский"), ("de", "Straße"), ("vi", "Tiếng Việt"), ("id", "Bahasa"), ("es", "niño"),
        ("ko", "한국어"), ("el", "ελληνικά"),
    ],
)  # fmt: skip
def test_letters_are_known_as_their_language_s_script(language, text):
    assert row([text], language).script_share == 1.0
    other = "en" if language not in ("de", "vi", "id", "es") else "hi"
    assert row([text], other).script_share == 0.0


def test_real_text_is_clean_and_judged_in_seconds(text_folder: Path):
    corpus = load_corpus(text_folder, split="heldout")
    begun = perf_counter()
    table = corpus.purity(sample=500)
    assert perf_counter() - begun < 10
    assert purity_warnings(table) == []
    assert (table.elsewhere_share < 0.1).all()
