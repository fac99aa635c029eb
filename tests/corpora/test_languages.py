"""A language has one code, however it is spelled, and everything asks the same place for it."""

import pytest

from langneurons.corpora.languages import (
    SET5,
    by_canonical_code,
    canonical,
    code_in_name,
    distinct,
    label_of,
    language_of,
    nearest,
    scripts_of,
    spelled,
)
from langneurons.errors import LanguageError

SPELLINGS = {
    "zh-Hans": ["zho_Hans", "zh-Hans", "zh_CN", "zh-cn", "cmn", "cmn_Hans", "chi_Hans", "ZH-HANS", "zh-Hans-CN"],
    "zh-Hant": ["zho_Hant", "zh-Hant", "zh_TW", "cmn_Hant", "zh-Hant-TW", "cmn-TW"],
    "zh-Hant-HK": ["zh_HK", "zh-Hant-HK"],
    "zh": ["zh", "zho", "chi", "zh_Hani", "ZH"],
    "th": ["tha", "th", "tha_Thai", "TH"],
    "hi": ["hin_Deva", "hin", "hi", "hi-Deva"],
    "hi-Latn": ["hin_Latn", "hi_latn"],
    "en": ["eng_Latn", "eng", "en"],
    "pt-BR": ["pt_BR", "pt-br", "por-BR"],
    "de": ["deu_Latn", "ger", "de"],
    "ar": ["arb_Arab", "ara", "arb"],
    "arz": ["arz_Arab"],
    "fa": ["pes_Arab", "per", "fas"],
    "sr-Cyrl": ["srp_Cyrl", "sr-Cyrl"],
    "ne": ["npi_Deva"],
    "sw": ["swh_Latn"],
    "no": ["nob_Latn", "nb", "nor"],
    "es-419": ["es-419"],
    "ace-Arab": ["ace_Arab"],
    "he": ["heb_Hebr", "iw"],
    "als": ["als"],  # Alemannic in Wikipedia, Tosk Albanian in ISO 639-3
}


@pytest.mark.parametrize(("code", "spelling"), [(code, name) for code, names in SPELLINGS.items() for name in names])
def test_every_spelling_of_a_language_has_one_code(code, spelling):
    assert canonical(spelling) == code
    assert canonical(canonical(spelling)) == code


@pytest.mark.parametrize("label", ["xx", "my own", "qq2", "en_news", "third", "", "a", "zh-Hans-x-private", "-"])
def test_what_is_no_code_stays_as_it_is(label):
    assert canonical(label) == label


def test_the_codes_of_published_sets_are_canonical():
    assert [canonical(code) for code in SET5] == list(SET5)


def test_scripts_follow_the_code():
    assert scripts_of("zho_Hant") == scripts_of("zh") == {"CJK", "IDEOGRAPHIC"}
    assert scripts_of("srp_Latn") == {"LATIN"}
    assert scripts_of("kor_Hang") == {"HANGUL"}
    assert scripts_of("xx") == set()
    assert language_of("zh-Hant-HK") == "zh"


def test_values_are_found_under_any_spelling_and_the_nearer_wins():
    assert nearest("zho_Hant", {"zh": 1, "zh_TW": 2}) == 2
    assert nearest("zho_Hans", {"zh": 1, "zh_TW": 2}) == 1
    assert nearest("zh", {"zh_TW": 2}) is None


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("zh-Hans.txt", "zh-Hans"), ("zh-Hant", "zh-Hant"), ("zho_Hans.dev", "zh-Hans"),
        ("zh_CN.train.jsonl", "zh-Hans"),
        ("zh-tw.txt", "zh-Hant"), ("en.train.txt", "en"), ("eng_Latn.devtest", "en"), ("en_test.txt", "en"),
        ("en-wiki.txt", "en"), ("en-de.txt", "en"), ("en_2024.csv", "en"), ("hi-latn.txt", "hi-Latn"),
        ("pt_BR.txt", "pt-BR"), ("EN.txt", "en"), ("en2.txt", "en"), ("xx.txt", "xx"), ("README.md", None),
        ("english.txt", None), ("_en.txt", None), ("LOG.txt", None), ("20231101.hi", None),
    ],
)  # fmt: skip
def test_a_file_is_named_after_its_language(name, code):
    assert code_in_name(name) == code


def test_two_spellings_of_one_language_are_refused_and_lists_have_each_once():
    with pytest.raises(LanguageError, match="'zh_CN' and 'cmn', which are both 'zh-Hans'"):
        by_canonical_code(["zh_CN", "en", "cmn"], "The dict")
    assert distinct(["eng", "en", "hin_Deva"]) == ["eng", "hin_Deva"]


MEANT = [
    ("hin", ["en", "hi"], "hi"),
    ("hin_Deva", ["en", "hi"], "hi"),
    ("HI", ["en", "hi"], "hi"),
    ("hi", ["eng_Latn", "hin_Deva"], "hin_Deva"),
    ("zh-CN", ["zh-Hans", "zh-Hant"], "zh-Hans"),
    ("zho_Hans", ["en", "zh"], "zh"),
    ("cmn", ["zh"], "zh"),
    ("zh", ["en", "zh-Hant"], "zh-Hant"),
    ("zh", ["zh", "zh-Hans", "zh-Hant"], "zh"),
    ("zh_HK", ["zh-Hans", "zh-Hant"], "zh-Hant"),
    ("en-GB", ["en", "hi"], "en"),
    ("pt", ["pt-BR"], "pt-BR"),
    ("pt_PT", ["pt-BR", "pt"], "pt"),
    ("hin", ["hin", "hi"], "hin"),
    ("hi&ur", ["hi&ur", "hi"], "hi&ur"),
    ("srp_Cyrl", ["sr"], "sr"),
]


@pytest.mark.parametrize(("code", "labels", "label"), MEANT)
def test_a_lookup_finds_the_one_label_that_a_code_means(code, labels, label):
    assert label_of(code, labels) == spelled(code, labels) == label


@pytest.mark.parametrize(
    ("code", "labels"),
    [
        ("zh-Hant", ["zh"]),  # a label without a script is the usual one
        ("srp_Latn", ["sr"]),
        ("hi_Latn", ["hi"]),
        ("hi", ["hi-Latn"]),
        ("pt-BR", ["pt-PT"]),
        ("hi", ["hi&ur"]),
        ("xx", ["xx-YY"]),
        ("hi", []),
        ("", ["hi"]),
    ],
)
def test_a_lookup_never_finds_another_language_script_or_region(code, labels):
    assert spelled(code, labels) is None
    with pytest.raises(LanguageError, match="Unknown language"):
        label_of(code, labels)


@pytest.mark.parametrize(
    ("code", "labels"), [("zh", ["zh-Hans", "zh-Hant"]), ("pt", ["pt-BR", "pt-PT"]), ("hin_Deva", ["hi", "hin"])]
)
def test_a_lookup_never_guesses_between_two_labels(code, labels):
    assert spelled(code, labels) is None
    with pytest.raises(LanguageError, match=f"may be any of '{labels[0]}', '{labels[1]}'"):
        label_of(code, labels)


@pytest.mark.parametrize("languages", ["hi", 5, [None], [b"hi"], [["hi"]], []])
def test_what_is_no_list_of_codes_is_said(languages):
    for labels in (None, ["en", "hi"]):
        with pytest.raises(LanguageError):
            distinct(languages, labels)


def test_two_spellings_of_one_label_are_one():
    assert distinct(["hin", "en", "hi"], ["en", "hi"]) == ["hi", "en"]
    assert distinct(["zh", "zho_Hans"], ["zh-Hans"]) == ["zh-Hans"]
