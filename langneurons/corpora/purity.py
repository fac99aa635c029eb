"""Is a corpus in the language it says? Scripts, repeated documents, and documents that look like another language."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from langneurons.corpora.languages import canonical, language_of, scripts_of

LEAST_LETTERS = 20  # below this, language identification guesses
CHARACTERS_READ = 1000  # of a document, for identification

# What ISO 639 counts as part of a language with a two-letter code, and py3langid tells apart.
_MEMBERS = {"wuu": "zh", "yue": "zh", "arz": "ar", "ary": "ar", "nn": "no", "sdh": "ku", "uzs": "uz"}


def purity(corpus: Mapping[str, Sequence[str]], sample: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Judge each language's documents.

    Duplicates are counted over all documents; scripts and identification (py3langid, of its full set of languages)
    over a random sample. Identification of single sentences errs on a few per cent of clean text.

    Args:
        corpus: Documents per language; a ``Corpus`` is one.
        sample: Documents per language to look at closely.
        seed: Seed for the sample.

    Returns:
        One row per language: language; documents; sampled; script_share, the share of letters in the scripts the
        language is written in (NaN where these are not known); duplicates and duplicate_share, documents equal to an
        earlier one; identified, sampled documents with at least 20 letters; elsewhere and elsewhere_share, those of
        them placed in another language (NaN where the language cannot be identified); elsewhere_language, the most
        common such language or ""; examples, the indices of up to three such documents.

    Example:
        >>> table = purity({"hi": ["यह एक साफ़ हिन्दी वाक्य है और इसमें कुछ नहीं है।", "This sentence is English, plainly."]})
        >>> table.loc[0, ["elsewhere_language", "examples"]].tolist()
        ['en', (1,)]
    """
    return pd.DataFrame([_judge(language, documents, sample, seed) for language, documents in corpus.items()])


def purity_warnings(table: pd.DataFrame) -> list[str]:
    """List, in sentences, what in a purity table is a cause for concern.

    Example:
        >>> purity_warnings(purity({"en": ["The same words.", "The same words."]}))
        ["'en': 50 % of the 2 documents repeat an earlier one."]
    """
    return [warning for _, row in table.iterrows() for warning in _warnings(row)]


def _warnings(row: pd.Series) -> Iterator[str]:
    language = repr(row.language)
    if row.script_share < 0.9:
        yield f"{language}: only {100 * row.script_share:.0f} % of the letters are in the script of the language."
    if row.duplicate_share > 0.05:
        yield f"{language}: {100 * row.duplicate_share:.0f} % of the {row.documents} documents repeat an earlier one."
    if row.elsewhere_share > 0.1:
        share = f"{100 * row.elsewhere_share:.0f} % of {row.identified} documents"
        examples = f"most often {row.elsewhere_language!r}; for example documents {', '.join(map(str, row.examples))}"
        yield f"{language}: {share} read like another language, {examples}."


def _judge(language: str, documents: Sequence[str], sample: int, seed: int) -> dict[str, object]:
    sampled = np.zeros(len(documents), bool)
    sampled[np.random.default_rng(seed).choice(len(documents), min(sample, len(documents)), replace=False)] = True
    hashes: set[bytes] = set()
    sample_of: dict[int, str] = {}
    for index, document in enumerate(documents):
        hashes.add(hashlib.blake2b(document.encode(), digest_size=8).digest())
        if sampled[index]:
            sample_of[index] = document
    repeats = len(documents) - len(hashes)
    return {
        "language": language,
        "documents": len(documents),
        "sampled": len(sample_of),
        "script_share": _script_share(language, sample_of.values()),
        "duplicates": repeats,
        "duplicate_share": repeats / len(documents),
        **_elsewhere(language, sample_of),
    }


def _script_share(language: str, documents: Iterable[str]) -> float:
    letters: Counter[str] = Counter()
    for document in documents:
        letters.update(document)
    counts = {letter: count for letter, count in letters.items() if letter.isalpha()}
    scripts = scripts_of(language)
    if not scripts or not counts:
        return float("nan")
    expected = sum(count for letter, count in counts.items() if script(letter) in scripts)
    return expected / sum(counts.values())


@cache
def script(letter: str) -> str:
    """Name the script of a letter, as Unicode does: the first word of its name, such as "DEVANAGARI"."""
    return unicodedata.name(letter, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").partition(" ")[0]


def _elsewhere(language: str, documents: Mapping[int, str]) -> dict[str, object]:
    long_enough = {i: text for i, text in documents.items() if sum(map(str.isalpha, text)) >= LEAST_LETTERS}
    labels = labels_of(language)
    placed = {i: identifier().classify(text[:CHARACTERS_READ])[0] for i, text in long_enough.items() if labels}
    other = {i: guess for i, guess in placed.items() if guess not in labels}
    return {
        "identified": len(placed),
        "elsewhere": len(other),
        "elsewhere_share": len(other) / len(placed) if placed else float("nan"),
        "elsewhere_language": Counter(other.values()).most_common(1)[0][0] if other else "",
        "examples": tuple(other)[:3],
    }


@cache
def identifier() -> LanguageIdentifier:
    """Load py3langid, with all of its languages and with probabilities; not to be restricted, for it is shared."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def labels_of(language: str) -> frozenset[str]:
    """What py3langid calls a language and its varieties; nothing where it does not know the language in this script.

    Example:
        >>> sorted(labels_of("zho_Hant")), sorted(labels_of("yue")), sorted(labels_of("hi-Latn"))
        (['wuu', 'yue', 'zh'], ['yue'], [])
    """
    if not scripts_of(language) & scripts_of(language_of(language)) and language_of(language) != canonical(language):
        return frozenset()
    labels = map(str, identifier().labels)
    return frozenset(label for label in labels if language_of(language) in (canonical(label), _MEMBERS.get(label)))


def identifiable() -> list[str]:
    """The languages that py3langid tells apart, varieties aside."""
    return sorted({canonical(label) for label in map(str, identifier().labels) if label not in _MEMBERS})
