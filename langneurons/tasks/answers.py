"""How right a short answer is: exact match and F1 of SQuAD 1.1, with the normalisation that MLQA gave each language.

Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1, and Lewis et al. 2020 (arXiv 1910.07475), section 4.1.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from langneurons.errors import TaskError

# As case folding leaves them (ς becomes σ). English, Spanish, German and Vietnamese are MLQA's.
_ARTICLES = {
    "de": "ein eine einen einem eines einer der die das den dem des",
    "el": "ο η το οι τα του τησ των τον την τουσ τισ ενασ ένασ μια μία ένα ενόσ μιασ μίασ",
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "fr": "le la les un une des",
    "it": "il lo la i gli le un uno una",
    "nl": "de het een",
    "pt": "o a os as um uma uns umas",
    "ro": "un o niște",
    "vi": "của là cái chiếc những",
}
_ARTICLES_OF = {language: frozenset(words.split()) for language, words in _ARTICLES.items()}
# Articles written as one with the next word. MLQA takes ال out of the middle of words too, which is a slip.
_PREFIXES = {
    "ar": re.compile(r"\bال(?=\w\w)"),
    "fr": re.compile(r"\bl['’]"),
    "it": re.compile(r"\b(?:l|un|gl)['’]"),
}
_UNSPACED = {"ja", "km", "lo", "my", "th", "zh"}  # written without spaces between words
_UNSPACED_LETTERS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Japanese kana, with the signs that repeat or lengthen
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_CHARACTERS = re.compile(rf"(?:\d|[^\s{_UNSPACED_LETTERS}])+|[{_UNSPACED_LETTERS}]")


def normalise(text: str, language: str) -> list[str]:
    """Split an answer into the tokens that are compared, so that writing it differently makes no difference.

    Unicode's compatible forms become one (full-width digits too), case is folded, and punctuation of every script,
    invisible characters and articles are removed. Chinese, Japanese, Thai, Lao, Khmer and Burmese are compared
    character by character, with runs of other scripts and of digits kept whole; every other language by words.

    Args:
        text: An answer.
        language: Its code; a language without known articles has none removed.

    Returns:
        Its tokens, perhaps none.

    Example:
        >>> normalise("The “Black Panthers”, １９６６", "en"), normalise("在 2016 年NFL。", "zh")
        (['black', 'panthers', '1966'], ['在', '2016', '年', 'nfl'])
    """
    primary = re.split("[-_]", language)[0]
    folded = _fold(text)
    if primary in _PREFIXES:
        folded = _PREFIXES[primary].sub(" ", folded)
    spoken = "".join(letter for letter in folded if not _is_silent(letter))
    if primary in _UNSPACED:
        return _CHARACTERS.findall(spoken)
    articles = _ARTICLES_OF.get(primary, frozenset())
    return [word for word in spoken.split() if word not in articles]


def exact_match(prediction: str, golds: Sequence[str], language: str) -> float:
    """Score an answer 1 if it equals one of the right ones after normalisation, else 0.

    Args:
        prediction: The answer given.
        golds: The right answers.
        language: Of all of them.

    Returns:
        0 or 1; an answer without any token is right only where a gold has none either.

    Raises:
        TaskError: If there is no gold.

    Example:
        >>> exact_match("el balón.", ["Balón", "la pelota"], "es")
        1.0
    """
    return _best(lambda given, gold: float(given == gold), prediction, golds, language)


def f1(prediction: str, golds: Sequence[str], language: str) -> float:
    """Score an answer by the tokens it shares with the right one it is nearest to.

    The harmonic mean of precision and recall over tokens, each counted as often as it occurs.

    Args:
        prediction: The answer given.
        golds: The right answers.
        language: Of all of them.

    Returns:
        Between 0 and 1; an answer without any token scores 0, unless a gold has none either.

    Raises:
        TaskError: If there is no gold.

    Example:
        >>> f1("Denver Broncos", ["the Broncos", "Carolina Panthers"], "en")
        0.6666666666666666
    """
    return _best(_overlap, prediction, golds, language)


def _best(
    score: Callable[[list[str], list[str]], float], prediction: str, golds: Sequence[str], language: str
) -> float:
    if isinstance(golds, str) or not golds:
        raise TaskError(f"Give the right answers as a list of at least one text, not {golds!r}.")
    given = normalise(prediction, language)
    return max(score(given, normalise(gold, language)) for gold in golds)


def _overlap(given: list[str], gold: list[str]) -> float:
    if not given or not gold:
        return float(given == gold)
    shared = (Counter(given) & Counter(gold)).total()
    return 2 * shared / (len(given) + len(gold))


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i")  # what İ folds to
    return unicodedata.normalize("NFKC", folded)


def _is_silent(letter: str) -> bool:
    """Whether a character is punctuation, or, as direction marks and joiners are, invisible."""
    category = unicodedata.category(letter)
    return category[0] == "P" or category == "Cf" or letter in string.punctuation
