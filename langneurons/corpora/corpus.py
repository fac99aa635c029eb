"""A corpus: the documents of every language, memory-mapped, in an order that never changes by itself."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import cast

import numpy as np
import pandas as pd
from datasets import Dataset

from langneurons.corpora.purity import purity
from langneurons.errors import CorpusError, LanguageError, unknown
from langneurons.storage import fingerprint

READ_AT_ONCE = 1000  # documents


@dataclass(frozen=True, eq=False, repr=False)
class Corpus(Mapping[str, Sequence[str]]):
    """Documents per language, as a read-only mapping from language to its documents.

    The text stays on disk (Arrow, memory-mapped), shared with the corpora derived from this one.

    Args:
        tables: One data set per language, each with a column ``text`` that holds no blank document.

    Example:
        >>> from langneurons.corpora import load_corpus
        >>> corpus = load_corpus({"en": ["A cat.", "A dog."], "fr": ["Un chat."]})
        >>> corpus
        Corpus(en: 2 documents, fr: 1 document)
        >>> len(corpus["en"]), corpus.document("fr", 0)
        (2, 'Un chat.')
    """

    tables: Mapping[str, Dataset]

    def __getitem__(self, language: str) -> Sequence[str]:
        """The documents of a language; supports ``len``, iteration, indices and slices.

        Raises:
            LanguageError: If the corpus has no such language.
        """
        return self._table(language)["text"]

    def __contains__(self, language: object) -> bool:
        return language in self.tables

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Corpus) and list(self.fingerprints.items()) == list(other.fingerprints.items())

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        counts = (
            f"{language}: {len(table):,} document{'s' * (len(table) != 1)}" for language, table in self.tables.items()
        )
        return f"Corpus({', '.join(counts)})"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in order."""
        return tuple(self.tables)

    def documents(self, language: str) -> Iterator[str]:
        """Stream the documents of a language in order, in memory that does not grow with the corpus.

        Raises:
            LanguageError: If the corpus has no such language.
        """
        return _stream(self._table(language))

    def document(self, language: str, index: int) -> str:
        """Read one document.

        Args:
            language: Its language.
            index: Its ordinal within the language, from 0.

        Raises:
            LanguageError: If the corpus has no such language.
            CorpusError: If the language has no such document.
        """
        table = self._table(language)
        if not 0 <= index < len(table):
            raise CorpusError(f"{language!r} has no document {index}: it has 0 to {len(table) - 1}.")
        return table[int(index)]["text"]

    def select(self, languages: Iterable[str]) -> "Corpus":
        """Keep some languages, in the order given.

        Raises:
            LanguageError: If the corpus lacks one of them.
        """
        return Corpus({language: self._table(language) for language in languages})

    def take(self, documents: int) -> "Corpus":
        """Keep the first ``documents`` of each language, or all where there are fewer; shuffle first.

        Raises:
            CorpusError: If ``documents`` is below 1.
        """
        if documents < 1:
            raise CorpusError(f"Cannot take {documents} documents per language: take at least 1.")
        return self._each(lambda table: table.select(range(min(documents, len(table)))))

    def shuffle(self, seed: int = 0) -> "Corpus":
        """Put the documents of each language in a random order.

        Languages with equally many documents get the same order, so parallel documents stay side by side.
        """
        return self._each(lambda table: table.select(np.random.default_rng(seed).permutation(len(table))))

    def split(self, heldout: float = 0.1, seed: int = 0) -> tuple["Corpus", "Corpus"]:
        """Split each language by document, equal documents always on the same side.

        A document's side follows from a hash of its text and the seed, not from its position or its neighbours.

        Args:
            heldout: The share of documents to hold out, between 0 and 1; met as closely as repeated documents allow.
            seed: Seed for the split.

        Returns:
            The training corpus and the held-out corpus, both in the order of this one.

        Raises:
            CorpusError: If the share is not between 0 and 1, or a language has fewer than two different documents.

        Example:
            >>> from langneurons.corpora import load_corpus
            >>> train, heldout = load_corpus({"en": [f"Sentence {i}." for i in range(20)]}).split(heldout=0.1)
            >>> train, heldout
            (Corpus(en: 18 documents), Corpus(en: 2 documents))
        """
        if not 0 < heldout < 1:
            raise CorpusError(f"The share to hold out must lie between 0 and 1, given {heldout}.")
        masks = {language: _heldout_mask(language, table, heldout, seed) for language, table in self.tables.items()}
        return self._where({language: ~mask for language, mask in masks.items()}), self._where(masks)

    def sizes(self) -> pd.DataFrame:
        """Count documents, characters and UTF-8 bytes of each language.

        Returns:
            One row per language: language, documents, characters, bytes.
        """
        rows = []
        for language, table in self.tables.items():
            lengths = [(len(text), len(text.encode())) for text in _stream(table)]
            rows.append((language, len(table), *map(sum, zip(*lengths, strict=True))))
        return pd.DataFrame(rows, columns=["language", "documents", "characters", "bytes"])

    def purity(self, sample: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Look for other scripts, duplicates and other languages; see ``purity``."""
        return purity(self, sample, seed)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """A hash of each language's documents in order; other languages do not matter."""
        return {language: _fingerprint(_stream(table)) for language, table in self.tables.items()}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the languages and their documents; the order of the languages does not matter."""
        return fingerprint(*(part for pair in sorted(self.fingerprints.items()) for part in pair))

    def _table(self, language: str) -> Dataset:
        if language not in self.tables:
            raise LanguageError(unknown("language", language, self.tables))
        return self.tables[language]

    def _each(self, change: Callable[[Dataset], Dataset]) -> "Corpus":
        return Corpus({language: change(table) for language, table in self.tables.items()})

    def _where(self, masks: Mapping[str, np.ndarray]) -> "Corpus":
        return Corpus(
            {language: table.select(np.flatnonzero(masks[language])) for language, table in self.tables.items()}
        )


def batches(table: Dataset) -> Iterator[list[str]]:
    """Stream a table's documents, 1000 at once."""
    for batch in table.iter(READ_AT_ONCE):
        yield cast(dict[str, list[str]], batch)["text"]


def _stream(table: Dataset) -> Iterator[str]:
    return chain.from_iterable(batches(table))


def _fingerprint(documents: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        data = document.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _heldout_mask(language: str, table: Dataset, heldout: float, seed: int) -> np.ndarray:
    key = str(seed).encode()
    hashes = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8, key=key).digest(), "little")
            for document in _stream(table)
        ),
        np.uint64,
        len(table),
    )
    # Equal documents are one group of equal hashes; the held-out side is the groups of smallest hash.
    groups, repeats = np.unique(hashes, return_counts=True)
    if len(groups) < 2:
        raise CorpusError(
            f"Cannot split {language!r}: it has {len(groups)} different document; a split needs at least 2."
        )
    held_out_after = np.cumsum(repeats)[:-1]
    last = np.argmin(np.abs(held_out_after - heldout * len(table)))
    return hashes <= groups[last]
