"""Documents dealt anew: to halves, to labels that are no languages, to parts of one language.

What comes out is a corpus whose labels the recorder takes for languages.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from datasets import Dataset, concatenate_datasets
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from transformers import PreTrainedTokenizerBase

from langneurons.corpora import Corpus
from langneurons.errors import CorpusError, unknown

GROUPINGS = ("source", "topic")

DIMENSIONS = 32  # of the space in which topics are clusters


def halves_by_source(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Cut each language's documents, in the corpus' order, into two stretches of about equally many characters.

    In a corpus in the order of its sources the halves are of different sources, which halves of ``corpus.split`` are
    not.

    Raises:
        CorpusError: If a language has fewer than two documents.

    Example:
        >>> halves_by_source(ln.load_corpus({"en": ["A cat.", "A dog.", "A bird."]}))
        (Corpus(en: 2 documents), Corpus(en: 1 document))
    """
    groups = {language: _stretches(_characters(table), 2) for language, table in corpus.tables.items()}
    for language, group in groups.items():
        if len(set(group.tolist())) < 2:
            raise CorpusError(f"{language!r} has {len(corpus[language])} document: two halves need 2.")
    first, second = (
        Corpus(
            {
                language: table.select(np.flatnonzero(groups[language] == half))
                for language, table in corpus.tables.items()
            }
        )
        for half in (0, 1)
    )
    return first, second


def shuffled_languages(corpus: Corpus, seed: int = 0) -> Corpus:
    """Pool the documents of all languages and deal them at random to as many labels.

    Every label holds the same mixture of languages, so no neuron tells them apart but by chance.

    Args:
        corpus: Of two languages or more.
        seed: Of the deal.

    Returns:
        A corpus of the labels "deal-1", "deal-2" and so on.

    Example:
        >>> shuffled_languages(ln.load_corpus({"en": ["A cat.", "A dog."], "fr": ["Un chat.", "Un chien."]}))
        Corpus(deal-1: 2 documents, deal-2: 2 documents)
    """
    pooled = concatenate_datasets(list(corpus.tables.values()))
    order = np.random.default_rng(seed).permutation(len(pooled))
    parts = len(corpus.languages)
    return Corpus({f"deal-{part + 1}": pooled.select(order[part::parts]) for part in range(parts)})


def pseudo_languages(
    corpus: Corpus,
    language: str,
    parts: int,
    by: str | Sequence[int] | Int[np.ndarray, " document"] = "source",
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
) -> Corpus:
    """Cut the documents of one language into parts that differ, though not in language.

    Args:
        corpus: From ``load_corpus``, in the order of its sources.
        language: Whose documents.
        parts: How many.
        by: ``"source"``: stretches of the corpus' order; ``"topic"``: clusters of what the documents speak of (k-means
            on the 32 first singular directions of tf-idf weighted token counts); both cut so that the parts have about
            equally many characters. Or the part of each document, from 0 to ``parts`` - 1.
        tokenizer: Needed for topics.
        seed: Of the clusters.

    Returns:
        A corpus of the labels "en-1", "en-2" and so on, for a language "en".

    Raises:
        LanguageError: If the corpus has no such language.
        CorpusError: If there are too few documents, or ``by`` is neither known nor one part a document.

    Example:
        >>> corpus = ln.load_corpus({"en": ["A cat.", "A dog.", "A bird.", "A fish."]})
        >>> pseudo_languages(corpus, "en", 2)
        Corpus(en-1: 2 documents, en-2: 2 documents)
    """
    table = corpus.select([language]).tables[language]
    if isinstance(by, str):
        _check_grouping(by)
        characters = _characters(table)
        group = _stretches(characters, parts) if by == "source" else _topics(table, characters, parts, tokenizer, seed)
    else:
        group = np.asarray(by)
    if len(group) != len(table) or set(group.tolist()) != set(range(parts)):
        raise CorpusError(
            f"{len(table)} documents of {language!r} do not fall into {parts} parts: every part from 0 to {parts - 1} "
            "needs a document, and every document a part."
        )
    return Corpus({f"{language}-{part + 1}": table.select(np.flatnonzero(group == part)) for part in range(parts)})


def _check_grouping(by: str) -> None:
    if by not in GROUPINGS:
        raise CorpusError(unknown("grouping", by, GROUPINGS))


def _characters(table: Dataset) -> Int[np.ndarray, " document"]:
    return np.array([len(text) for text in table["text"]])


def _stretches(characters: Int[np.ndarray, " document"], parts: int) -> Int[np.ndarray, " document"]:
    """Consecutive documents to parts of about equal size: a document goes where its middle lies."""
    middles = np.cumsum(characters) - characters / 2
    return (middles * parts / characters.sum()).astype(np.int64)


def _topics(
    table: Dataset,
    characters: Int[np.ndarray, " document"],
    parts: int,
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
) -> Int[np.ndarray, " document"]:
    if tokenizer is None:
        raise CorpusError("Topics are clusters of token counts: give the model's tokenizer.")
    if len(table) <= parts:
        raise CorpusError(f"{len(table)} documents have no {parts} topics: give more documents.")
    ids = tokenizer(list(table["text"]), add_special_tokens=False, return_attention_mask=False, verbose=False)
    places = _topic_space(_weighted_counts(ids["input_ids"]), seed)
    centres, _ = kmeans2(places, parts, iter=50, minit="++", rng=np.random.default_rng(seed))
    distances = ((places[:, None] - centres[None]) ** 2).sum(2)
    return _with_room(distances, characters)


def _weighted_counts(documents: Sequence[Sequence[int]]) -> scipy.sparse.csr_array:
    """Tf-idf of every token in every document, without tokens that all or single documents have."""
    ends = list(accumulate(map(len, documents), initial=0))
    flat = np.concatenate([np.asarray(ids, np.int64) for ids in documents])
    counts = scipy.sparse.csr_array((np.ones(len(flat)), flat, ends), shape=(len(documents), int(flat.max()) + 1))
    counts.sum_duplicates()
    frequency = counts.astype(bool).sum(0)
    telling = np.flatnonzero((frequency > 1) & (frequency < len(documents)))
    if not len(telling):
        raise CorpusError("The documents share no telling tokens and so have no topics: give longer or more of them.")
    inverse = np.log(len(documents) / frequency[telling])
    return scipy.sparse.csr_array(counts[:, telling].log1p().multiply(inverse[None]))


def _topic_space(counts: scipy.sparse.csr_array, seed: int) -> Float[np.ndarray, "document dimension"]:
    """Documents in the first singular directions, each at unit length."""
    smaller = min(cast(tuple[int, int], counts.shape))
    dimensions = min(DIMENSIONS, smaller - 1)
    if dimensions < 1:
        raise CorpusError("The documents share too few tokens to have topics: give longer or more documents.")
    start = np.random.default_rng(seed).normal(size=smaller)
    left, values, _ = scipy.sparse.linalg.svds(counts, k=dimensions, v0=start)
    places = left * values
    return places / np.maximum(np.linalg.norm(places, axis=1, keepdims=True), 1e-12)


def _with_room(
    distances: Float[np.ndarray, "document part"], sizes: Int[np.ndarray, " document"]
) -> Int[np.ndarray, " document"]:
    """The nearest part that still has room, for documents in the order of how much they care."""
    room = np.full(distances.shape[1], sizes.sum() / distances.shape[1])
    nearest_two = np.partition(distances, 1, axis=1)[:, :2]
    preferences = distances.argsort(1)
    group = np.empty(len(distances), np.int64)
    for document in np.argsort(nearest_two[:, 0] - nearest_two[:, 1], kind="stable"):
        wishes = preferences[document]
        part = next((one for one in wishes if room[one] > 0), wishes[0])
        group[document] = part
        room[part] -= sizes[document]
    return group
