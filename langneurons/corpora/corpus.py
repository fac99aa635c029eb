"""A corpus: the texts of every language, memory-mapped, in an order that never changes by itself.

A text is one line, sentence or row. It stands in a document, such as an article, and the document in a source, such as
a newspaper, where the data say so; otherwise every text is a document of its own.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import cast

import numpy as np
import pandas as pd
from datasets import Dataset
from jaxtyping import Int

from langneurons.corpora.languages import label_of, spelled
from langneurons.corpora.purity import purity
from langneurons.errors import CorpusError, check_kind, counted, warn_user
from langneurons.settings import finite_number, whole_number
from langneurons.storage import fingerprint

READ_AT_ONCE = 1000  # texts
UNGROUPED = "every text is a document of its own"
LEVELS = ("document", "source")  # columns that say where a text stands


@dataclass(frozen=True, eq=False, repr=False)
class Corpus(Mapping[str, Sequence[str]]):
    """Texts per language, as a read-only mapping from language to its texts.

    The text stays on disk (Arrow, memory-mapped), shared with the corpora derived from this one.

    Args:
        tables: One data set per language, each with a column ``text`` that holds no blank text, and with columns
            ``id``, ``document`` and ``source`` where these are known.

    Example:
        >>> from langneurons.corpora import load_corpus
        >>> corpus = load_corpus({"en": ["A cat.", "A dog."], "fr": ["Un chat."]})
        >>> corpus
        Corpus(en: 2 texts, fr: 1 text; every text is a document of its own)
        >>> len(corpus["en"]), corpus.text("fr", 0)
        (2, 'Un chat.')
    """

    tables: Mapping[str, Dataset]

    def __getitem__(self, language: str) -> Sequence[str]:
        """The texts of a language; supports ``len``, iteration, indices and slices.

        Raises:
            LanguageError: If the corpus has no such language.
        """
        return self._table(language)["text"]

    def __contains__(self, language: object) -> bool:
        return isinstance(language, str) and spelled(language, self.tables) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Corpus) and list(self.fingerprints.items()) == list(other.fingerprints.items())

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        grouped = any(map(self.grouped, self.tables))
        return f"Corpus({', '.join(map(self._size_of, self.tables))}{'' if grouped else f'; {UNGROUPED}'})"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in order."""
        return tuple(self.tables)

    def texts(self, language: str) -> Iterator[str]:
        """Stream the texts of a language in order, in memory that does not grow with the corpus.

        Raises:
            LanguageError: If the corpus has no such language.
        """
        return _stream(self._table(language))

    def text(self, language: str, index: int) -> str:
        """Read one text.

        Args:
            language: Its language.
            index: Its ordinal within the language, from 0.

        Raises:
            LanguageError: If the corpus has no such language.
            CorpusError: If the language has no such text.
        """
        table, index = self._table(language), whole_number(index, "index", CorpusError)
        if not 0 <= index < len(table):
            raise CorpusError(f"{language!r} has no text {index}: it has 0 to {len(table) - 1}.")
        return table[index]["text"]

    def documents(self, language: str) -> Iterator[str]:
        """The old name of ``texts``."""
        _warn_of_old_name("documents", "texts")
        return self.texts(language)

    def document(self, language: str, index: int) -> str:
        """The old name of ``text``."""
        _warn_of_old_name("document", "text")
        return self.text(language, index)

    def grouped(self, language: str, level: str = "document") -> bool:
        """Whether it is known which document, or source, each text of a language stands in.

        Raises:
            LanguageError: If the corpus has no such language.
        """
        return level in self._table(language).column_names

    def groups(self, language: str, level: str = "document") -> Int[np.ndarray, " text"]:
        """Number the documents, or sources, of a language, and say in which of them each text stands.

        Args:
            language: A language of the corpus.
            level: "document" or "source"; where the data do not say it, every text is one of its own.

        Returns:
            The ordinal of each text's document, from 0 in the order of their first texts.

        Raises:
            LanguageError: If the corpus has no such language.

        Example:
            >>> from langneurons.corpora import load_corpus
            >>> load_corpus({"en": ["A cat.", "A dog."]}).groups("en").tolist()
            [0, 1]
        """
        if not self.grouped(language, level):
            return np.arange(len(self._table(language)))
        return pd.factorize(np.asarray(self._table(language)[level][:], dtype=object))[0]

    def ids(self, language: str) -> Sequence[str] | None:
        """What the data call each text of a language, equal for translations of one text; None where they do not.

        Raises:
            LanguageError: If the corpus has no such language.
        """
        table = self._table(language)
        return table["id"] if "id" in table.column_names else None

    def select(self, languages: Iterable[str]) -> "Corpus":
        """Keep some languages, in the order given.

        Raises:
            LanguageError: If the corpus lacks one of them.
        """
        return Corpus({label_of(language, self.tables): self._table(language) for language in languages})

    def take(self, documents: int) -> "Corpus":
        """Keep the first ``documents`` of each language, whole, or all where there are fewer; shuffle first.

        Raises:
            CorpusError: If ``documents`` is below 1.
        """
        documents = whole_number(documents, "documents", CorpusError)
        if documents < 1:
            raise CorpusError(f"Cannot take {documents} documents per language: take at least 1.")
        return self._where({language: self.groups(language) < documents for language in self.tables})

    def first_texts(self, texts: int) -> "Corpus":
        """Keep the first texts of each language, whatever documents they stand in."""
        texts = whole_number(texts, "texts", CorpusError, least=1)
        return Corpus(
            {language: table.select(range(min(texts, len(table)))) for language, table in self.tables.items()}
        )

    def shuffle(self, seed: int = 0) -> "Corpus":
        """Put the documents of each language in a random order; the texts of a document stay together, in their order.

        Languages with equally many documents get the same order, so parallel documents stay side by side.
        """
        seed = whole_number(seed, "seed", CorpusError, least=0)
        return Corpus({language: self._shuffled(language, seed) for language in self.tables})

    def split(self, heldout: float = 0.1, seed: int = 0) -> tuple["Corpus", "Corpus"]:
        """Split each language by document, equal documents always on the same side.

        A document's side follows from a hash of its name and the seed, so that translations of an article that has one
        name in all languages stay together. Where documents have no names, the text takes the name's place.

        Args:
            heldout: The share of texts to hold out, between 0 and 1; met as closely as whole documents allow.
            seed: Seed for the split.

        Returns:
            The training corpus and the held-out corpus, both in the order of this one.

        Raises:
            CorpusError: If the share is not between 0 and 1, or a language has fewer than two different documents.

        Example:
            >>> from langneurons.corpora import load_corpus
            >>> train, heldout = load_corpus({"en": [f"Sentence {i}." for i in range(20)]}).split(heldout=0.1)
            >>> len(train["en"]), len(heldout["en"])
            (18, 2)
        """
        heldout, seed = finite_number(heldout, "heldout", CorpusError), whole_number(seed, "seed", CorpusError)
        if not 0 < heldout < 1:
            raise CorpusError(f"The share to hold out must lie between 0 and 1, given {heldout}.")
        masks = {language: _heldout_mask(language, table, heldout, seed) for language, table in self.tables.items()}
        return self._where({language: ~mask for language, mask in masks.items()}), self._where(masks)

    def sizes(self) -> pd.DataFrame:
        """Count texts, documents, sources, characters and UTF-8 bytes of each language.

        Returns:
            One row per language: language, texts, documents, sources (0 where they are not known), characters, bytes.
        """
        rows = []
        for language, table in self.tables.items():
            lengths = [(len(text), len(text.encode())) for text in _stream(table)]
            groups = (self._count(language, "document"), self._count(language, "source"))
            rows.append((language, len(table), *groups, *map(sum, zip(*lengths, strict=True))))
        return pd.DataFrame(rows, columns=["language", "texts", "documents", "sources", "characters", "bytes"])

    def purity(self, sample: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Look for other scripts, duplicates and other languages; see ``purity``."""
        return purity(self, whole_number(sample, "sample", CorpusError, 0), whole_number(seed, "seed", CorpusError, 0))

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """A hash of each language's texts in order, and of where they stand; other languages do not matter."""
        return {language: _fingerprint(table) for language, table in self.tables.items()}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the languages and their texts; the order of the languages does not matter."""
        return fingerprint(*(part for pair in sorted(self.fingerprints.items()) for part in pair))

    def _table(self, language: str) -> Dataset:
        return self.tables[label_of(language, self.tables)]

    def _count(self, language: str, level: str) -> int:
        """Number of documents or sources; of sources 0, where they are not known."""
        if not self.grouped(language, level):
            return len(self._table(language)) if level == "document" else 0
        return int(self.groups(language, level).max()) + 1

    def _size_of(self, language: str) -> str:
        texts, sources = counted(len(self.tables[language]), "text"), self._count(language, "source")
        if not self.grouped(language):
            return f"{language}: {texts}"
        documents = counted(self._count(language, "document"), "document")
        return f"{language}: {documents} of {texts}" + (f" from {counted(sources, 'source')}" if sources else "")

    def _shuffled(self, language: str, seed: int) -> Dataset:
        groups = self.groups(language)
        place = np.argsort(np.random.default_rng(seed).permutation(int(groups.max()) + 1))
        return self.tables[language].select(np.argsort(place[groups], kind="stable"))

    def _where(self, masks: Mapping[str, np.ndarray]) -> "Corpus":
        return Corpus(
            {language: table.select(np.flatnonzero(masks[language])) for language, table in self.tables.items()}
        )


def batches(table: Dataset) -> Iterator[list[str]]:
    """Stream a table's texts, 1000 at once."""
    for batch in table.iter(READ_AT_ONCE):
        yield cast(dict[str, list[str]], batch)["text"]


def _stream(table: Dataset) -> Iterator[str]:
    return chain.from_iterable(batches(table))


def check_corpus(corpus: object) -> None:
    """Refuse what is not a corpus.

    Raises:
        CorpusError: If it is something else.
    """
    check_kind(corpus, Corpus, "A text is a Corpus, such as ln.load_corpus() gives", CorpusError)


def _warn_of_old_name(old: str, name: str) -> None:
    warn_user(f"Corpus.{old} is called Corpus.{name}; the old name goes with 1.0.")


def _fingerprint(table: Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    levels = [level for level in LEVELS if level in table.column_names]
    for batch in table.iter(READ_AT_ONCE):
        columns = cast(dict[str, list[str]], batch)
        for parts in zip(*(columns[name] for name in ("text", *levels)), strict=True):
            for data in map(str.encode, parts):
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
    return digest.hexdigest()


def _heldout_mask(language: str, table: Dataset, heldout: float, seed: int) -> np.ndarray:
    key = str(seed).encode()
    names = table["document"] if "document" in table.column_names else _stream(table)
    hashes = np.fromiter(
        (int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, key=key).digest(), "little") for name in names),
        np.uint64,
        len(table),
    )
    # Equal names are one group of equal hashes; the held-out side is the groups of smallest hash.
    groups, repeats = np.unique(hashes, return_counts=True)
    if len(groups) < 2:
        raise CorpusError(
            f"Cannot split {language!r}: it has {len(groups)} different document; a split needs at least 2."
        )
    held_out_after = np.cumsum(repeats)[:-1]
    last = np.argmin(np.abs(held_out_after - heldout * len(table)))
    return hashes <= groups[last]
