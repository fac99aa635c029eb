"""Texts that lack one thing that makes a language: its script, the order of its words, its words, or all of them."""

import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from langneurons.corpora.corpus import Corpus
from langneurons.corpora.languages import scripts_of
from langneurons.errors import CorpusError
from langneurons.settings import whole_number

LATIN = "LATIN"
SAMPLE = 100  # texts that show in which letters a language is written
REMAINING = 0.05  # share of the letters that may stay in another script
RANDOM = "random"  # label of random tokens
RANDOM_LENGTH = 32  # tokens of a random text
VIRAMA = 9  # Unicode's combining class of the marks that join consonants
# First words of the letters' names in scripts that are written without spaces between words; Korean has spaces.
UNSPACED = {"CJK", "HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI"}


class NothingToAlterError(CorpusError):
    """A condition alters the text of no language."""


def romanised(corpus: Corpus) -> Corpus:
    """Write in Latin letters the languages that are written in others, by the transliterator uroman.

    What stays is the language in another spelling: its sounds or words, not its letters. Short vowels that a script
    leaves out (Arabic, Hebrew) and tones (Chinese) are missing; Japanese characters are read as Chinese ones.

    Source: uroman, the universal romaniser (Hermjakob, May and Knight 2018).

    Args:
        corpus: Any corpus; ids, documents and sources stay.

    Returns:
        A corpus of those languages most letters of which are not Latin.

    Raises:
        CorpusError: If uroman is not installed, every language is in Latin letters already, or uroman leaves more than
            5 % of a language's letters as they are.

    Example:
        >>> from langneurons.corpora.altered import romanised
        >>> romanised(ln.load_corpus({"en": ["Hello."], "ru": ["Привет, мир!"]})).text("ru", 0)
        'Privet, mir!'
    """
    others = [language for language in corpus.languages if _share_of_latin(corpus.tables[language]) < 0.5]
    if not others:
        raise NothingToAlterError(
            f"Nothing is to be romanised: {', '.join(corpus.languages)} are in Latin letters already; give a language "
            "in another script, such as hi or zh."
        )
    romanise = _romaniser()
    latin = _changed(corpus.select(others), romanise)
    for language, table in latin.tables.items():
        if (share := 1 - _share_of_latin(table)) > REMAINING:
            raise CorpusError(
                f"{language!r} cannot be romanised: uroman leaves {share:.0%} of its letters in another script."
            )
    return latin


def words_shuffled(corpus: Corpus, seed: int = 0) -> Corpus:
    """Put the words of each text in a random order: every word stays, and what word follows what is lost.

    Args:
        corpus: Any corpus; words are what spaces separate.
        seed: Seed of the orders.

    Returns:
        A corpus of the languages that put spaces between words.

    Raises:
        CorpusError: If none does, such as Chinese, Japanese and Thai.

    Example:
        >>> from langneurons.corpora.altered import words_shuffled
        >>> sorted(words_shuffled(ln.load_corpus({"en": ["A cat sat."]})).text("en", 0).split())
        ['A', 'cat', 'sat.']
    """
    spaced = [language for language in corpus.languages if not _unspaced(language)]
    if not spaced:
        raise NothingToAlterError(
            f"No words can be shuffled: {', '.join(corpus.languages)} put no spaces between them."
        )
    return _changed(corpus.select(spaced), lambda text, random: " ".join(_permuted(text.split(), random)), seed)


def characters_shuffled(corpus: Corpus, seed: int = 0) -> Corpus:
    """Put the characters of each text in a random order, with spaces where they were: letters stay, words do not.

    A character is a letter with its marks, or consonants that are written as one, which stay together.

    Args:
        corpus: Any corpus.
        seed: Seed of the orders.

    Returns:
        A corpus of all languages.

    Example:
        >>> from langneurons.corpora.altered import characters_shuffled
        >>> text = characters_shuffled(ln.load_corpus({"en": ["A cat sat."]})).text("en", 0)
        >>> sorted(text) == sorted("A cat sat."), [place for place, letter in enumerate(text) if letter == " "]
        (True, [1, 5])
    """
    return _changed(corpus, _with_characters_shuffled, seed)


def random_tokens(tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int = 0) -> Corpus:
    """Texts of tokens drawn at random from the vocabulary, special ones aside: no language, and no text.

    Tokens that are pieces of a character are not drawn, and neighbours may join to other tokens when they are read.

    Args:
        tokenizer: The tokenizer of a model.
        tokens: Number of tokens to draw; when the texts are read there may be some less.
        seed: Seed of the draw.

    Returns:
        A corpus of one label, "random".

    Example:
        >>> from langneurons.corpora.altered import random_tokens
        >>> random_tokens(ln.models.view(model).tokenizer, 640)
        Corpus(random: 20 texts; every text is a document of its own)
    """
    tokens = whole_number(tokens, "tokens", CorpusError, least=1)
    generator = np.random.default_rng(whole_number(seed, "seed", CorpusError, least=0))
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    vocabulary = np.array([index for index in sorted(tokenizer.get_vocab().values()) if index not in special])
    texts: list[str] = []
    while len(texts) * RANDOM_LENGTH < tokens:
        ids = generator.choice(vocabulary, RANDOM_LENGTH).tolist()
        text = str(tokenizer.decode([index for index in ids if "\ufffd" not in tokenizer.decode(index)]))
        texts += [text] if text.strip() else []
    return Corpus({RANDOM: Dataset.from_dict({"text": texts})})


def _changed(corpus: Corpus, change: Callable[[str, np.random.Generator], str], seed: int = 0) -> Corpus:
    """The corpus with every text changed, and all that is known of the texts kept."""
    seed = whole_number(seed, "seed", CorpusError, least=0)
    tables = {}
    for language, table in corpus.tables.items():
        random = np.random.default_rng(seed)
        columns: Mapping[str, Any] = {name: list(table[name]) for name in table.column_names}
        texts = [change(text, random) for text in corpus.texts(language)]
        tables[language] = Dataset.from_dict({**columns, "text": texts}, features=table.features)
    return Corpus(tables)


def _romaniser() -> Callable[[str, np.random.Generator], str]:
    try:
        from uroman import Uroman
    except ImportError as error:
        raise CorpusError("Romanising a text needs the package uroman: pip install 'langneurons[script]'.") from error
    romaniser = _loaded(Uroman)
    return lambda text, _: str(romaniser.romanize_string(text)).strip() or text


@cache
def _loaded(kind: Callable[[], Any]) -> Any:
    """An object whose tables take seconds to load."""
    return kind()


def _with_characters_shuffled(text: str, random: np.random.Generator) -> str:
    characters = _characters(text)
    shuffled = iter(_permuted([character for character in characters if not character.isspace()], random))
    return "".join(character if character.isspace() else next(shuffled) for character in characters)


def _characters(text: str) -> list[str]:
    """The letters of a text, each with the marks that belong to it, and with those that a virama joins to it."""
    characters: list[str] = []
    for letter in text:
        is_mark = unicodedata.category(letter).startswith("M")
        is_joined = letter.isalpha() and bool(characters) and unicodedata.combining(characters[-1][-1]) == VIRAMA
        if characters and (is_mark or is_joined):
            characters[-1] += letter
        else:
            characters.append(letter)
    return characters


def _permuted(parts: list[str], random: np.random.Generator) -> list[str]:
    return [parts[place] for place in random.permutation(len(parts))]


def _unspaced(language: str) -> bool:
    scripts = scripts_of(language)
    return bool(scripts & UNSPACED) and "HANGUL" not in scripts


def _share_of_latin(table: Dataset) -> float:
    """Share of the letters of a language's first texts that are Latin; 1 where there is no letter."""
    letters = [letter for text in table[:SAMPLE]["text"] for letter in text if letter.isalpha()]
    latin = sum(unicodedata.name(letter, "").startswith(LATIN) for letter in letters)
    return latin / len(letters) if letters else 1.0
