"""Which language a short text is in, and how often that is mistaken at the length of a completion."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from itertools import islice

import numpy as np
import pandas as pd

from langneurons.corpora.purity import CHARACTERS_READ, MEMBERS, identifier
from langneurons.errors import CorpusError, LanguageError, unknown

UNKNOWN = "unknown"
# Bytes, not letters: of Hindi and Chinese seven characters say what of French twenty do. Among seven languages 15 bytes
# of news text are placed right in 97 to 100 % of cases, 10 bytes in 93 to 100 %.
LEAST_BYTES = 15
# A text is in none of the languages asked for if its probability there is below this share of the best of all. Of 40
# bytes of news text that keeps 99 % of the texts in one of the languages, and refuses 99 % of those in another.
LEAST_SHARE = 0.1
_WHOLE = {member: code for code, members in MEMBERS.items() for member in members}


def identify(texts: Sequence[str], languages: Collection[str] | None = None) -> list[str]:
    """Place texts in languages, with py3langid.

    Tell it which languages are possible wherever that is known: among seven, 20 bytes of letters are placed right in
    97 to 100 % of cases; among its 140, Hindi of that length reads like Nepali or Marathi every third time.

    Args:
        texts: Of which the first 1000 characters are read.
        languages: The languages a text may be in; None is any.

    Returns:
        Language codes; "unknown" for texts with fewer than 15 UTF-8 bytes of letters, and for those that read much
        more like a language that is not in ``languages``.

    Raises:
        LanguageError: If one of ``languages`` cannot be identified.

    Example:
        >>> identify(["Das Wetter ist heute schön.", "आज मौसम अच्छा है।", "12:30"], ["en", "hi"])
        ['unknown', 'hi', 'unknown']
    """
    known = {_whole(code) for code in identifier().labels}
    for language in languages or ():
        if language not in known:
            raise LanguageError(unknown("language", language, sorted(known)))
    possible = known if languages is None else set(languages)
    if not possible:
        raise LanguageError("No language was given to choose from; None stands for any.")
    return [_place(text, possible) for text in texts]


def confusion(
    corpus: Mapping[str, Sequence[str]], letters: int | None = None, sample: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Measure how often text of each language is placed in each of them.

    Args:
        corpus: Documents per language; a ``Corpus`` is one.
        letters: Cut documents after so many letters (vowel signs and other marks included), leaving out shorter ones,
            to see what happens at the length of a completion; None reads them as they are.
        sample: Documents a language, at most.
        seed: Of the sample.

    Returns:
        One row a language (the index), one column for each of them and "unknown": shares, which sum to 1.

    Raises:
        CorpusError: If a language has no document so long.
        LanguageError: If a language cannot be identified.

    Example:
        >>> table = confusion(ln.load_corpus("babel", ["en", "hi"]), letters=20)
        >>> bool(table.loc["hi", "hi"] > 0.9), table.columns.tolist()
        (True, ['en', 'hi', 'unknown'])
    """
    columns = [*corpus, UNKNOWN]
    shares = {}
    for language, documents in corpus.items():
        placed = identify(_sample(language, documents, letters, sample, seed), list(corpus))
        shares[language] = pd.Series(placed).value_counts(normalize=True)
    table = pd.DataFrame(shares).T.reindex(index=list(corpus), columns=columns, fill_value=0.0).fillna(0.0)
    return table.rename_axis(index="language")


def cut_to_letters(text: str, letters: int) -> str | None:
    """Cut a text after some letters, marks included; None where it has fewer.

    Example:
        >>> cut_to_letters("नमस्ते, दुनिया", 6), cut_to_letters("Hi!", 3)
        ('नमस्ते', None)
    """
    places = [place for place, character in enumerate(text) if _is_letter(character)]
    return text[: places[letters - 1] + 1] if len(places) >= letters else None


def _place(text: str, possible: Collection[str]) -> str:
    read = text[:CHARACTERS_READ]
    if sum(len(character.encode()) for character in read if _is_letter(character)) < LEAST_BYTES:
        return UNKNOWN
    shares: dict[str, float] = {}
    for code, share in identifier().rank(read):
        whole = _whole(code)
        shares[whole] = max(share, shares.get(whole, 0.0))
    best = max(possible, key=lambda code: (shares.get(code, 0.0), code))
    return best if shares.get(best, 0.0) >= LEAST_SHARE * max(shares.values()) else UNKNOWN


def _whole(code: object) -> str:
    """The language that a code stands for, or stands for a part of."""
    return _WHOLE.get(str(code), str(code))


def _is_letter(character: str) -> bool:
    # In Indic scripts vowels are marks, which str.isalpha leaves out.
    return unicodedata.category(character)[0] in "LM"


def _sample(language: str, documents: Sequence[str], letters: int | None, sample: int, seed: int) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(documents))
    read = (documents[int(index)] for index in order)
    cut = (document if letters is None else cut_to_letters(document, letters) for document in read)
    found = list(islice((text for text in cut if text is not None), sample))
    if not found:
        raise CorpusError(f"{language!r} has no document of {letters or 1} letters.")
    return found
