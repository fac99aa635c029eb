"""Negative controls: methods that must fail a check, and corpora of labels that are no languages.

Each method is caught by one check, so that a table of checks shows that they can be failed. The recorder takes a
corpus' labels for languages, whatever documents they hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, cast

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from datasets import Dataset, concatenate_datasets
from einops import reduce
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langneurons.corpora import Corpus
from langneurons.errors import CorpusError, StatisticsError, unknown
from langneurons.identification.activation import PER_LANGUAGE
from langneurons.identification.firing import design_effect
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.identification.selection import best_per_language, check_share, wanted
from langneurons.recording.statistics import ActivationStats

GROUPINGS = ("source", "topic")
DIMENSIONS = 32  # of the space in which topics are clusters


class _TopPerLanguage:
    """A method that labels, in each language, the neurons with the highest score."""

    top: float
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check_share("top", self.top)

    def scores(self, stats: ActivationStats) -> Scores:
        """A score of every neuron in every language."""
        return Scores(self._values(stats), stats.languages, repr(self), "none", 1, self._no_standard_error)

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label, in each language, the neurons with the highest score."""
        return best_per_language(stats, self.scores(stats), wanted(self.top, stats))

    def _values(self, stats: ActivationStats) -> Float[Tensor, "language layer neuron"]:
        raise NotImplementedError

    def _no_standard_error(self) -> Tensor:
        raise StatisticsError(f"{self!r} is a control that must fail, so its scores have no standard error.")


@dataclass(frozen=True)
class RedrawnRandom(_TopPerLanguage):
    """Random neurons, drawn anew for every recording: agrees with itself no more than chance does.

    ``Random`` draws the same neurons whatever was recorded; it is perfectly reliable, and caught by the nulls.

    Args:
        top: Share of all neurons to draw in each language.

    Example:
        >>> RedrawnRandom(top=0.01).identify(stats).languages
        ('en', 'hi', 'zh')
    """

    top: float = PER_LANGUAGE

    def _values(self, stats: ActivationStats) -> Float[Tensor, "language layer neuron"]:
        recorded = stats.probability().numpy()
        generator = np.random.default_rng(np.frombuffer(recorded.tobytes(), np.uint32))
        return torch.from_numpy(generator.random(recorded.shape))


@dataclass(frozen=True)
class OwnQuantile(_TopPerLanguage):
    """Neurons that exceed their own quantile in the same language most often: all do equally, so this is rounding.

    What "Act Prob 90p" of Mondal et al. 2025 (arXiv 2503.17456) is but for its batches.

    Args:
        share: The quantile, between 0 and 1.
        top: Share of all neurons to keep in each language.

    Example:
        >>> scores = OwnQuantile().scores(stats).values
        >>> bool((scores.median() - 0.1).abs() < 0.01)
        True
    """

    share: float = 0.9
    top: float = PER_LANGUAGE

    def _values(self, stats: ActivationStats) -> Float[Tensor, "language layer neuron"]:
        alone = [stats.select([language]) for language in stats.languages]
        return torch.cat([language.probability(language.quantile(self.share)[0]) for language in alone])


@dataclass(frozen=True)
class DocumentHeterogeneity(_TopPerLanguage):
    """Neurons that differ most between documents of the language: topic detectors, in parts of one language as well.

    The score is the design effect of the documents: how many times more the documents make a neuron's mean vary than
    independent tokens would.

    Args:
        top: Share of all neurons to keep in each language.

    Example:
        >>> DocumentHeterogeneity(top=0.01).identify(stats).languages
        ('en', 'hi', 'zh')
    """

    top: float = PER_LANGUAGE

    def _values(self, stats: ActivationStats) -> Float[Tensor, "language layer neuron"]:
        return torch.stack([design_effect(stats, language) for language in stats.languages])


def shuffled_languages(corpus: Corpus, seed: int = 0) -> Corpus:
    """Pool the documents of all languages and deal them at random to as many labels.

    Every label holds the same mixture of languages, so no neuron tells them apart but by chance.

    Args:
        corpus: A corpus of two languages or more.
        seed: Seed of the deal.

    Returns:
        A corpus of the labels "deal-1", "deal-2" and so on.

    Example:
        >>> shuffled_languages(ln.load_corpus({"en": ["A cat.", "A dog."], "fr": ["Un chat.", "Un chien."]}))
        Corpus(deal-1: 2 texts, deal-2: 2 texts; every text is a document of its own)
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
        corpus: A corpus in the order of its sources.
        language: The language whose documents are cut.
        parts: Number of parts.
        by: ``"source"``: stretches of the corpus' order; ``"topic"``: clusters of what the documents speak of (k-means
            on the 32 first singular directions of tf-idf weighted token counts); both cut so that the parts have about
            equally many characters. Or the part of each document, from 0 to ``parts`` - 1.
        tokenizer: A tokenizer, which topics need.
        seed: Seed of the clusters.

    Returns:
        A corpus of the labels "en-1", "en-2" and so on, for a language "en".

    Raises:
        LanguageError: If the corpus has no such language.
        CorpusError: If there are too few documents, or ``by`` is neither known nor one part a document.

    Example:
        >>> corpus = ln.load_corpus({"en": ["A cat.", "A dog.", "A bird.", "A fish."]})
        >>> pseudo_languages(corpus, "en", 2)
        Corpus(en-1: 2 texts, en-2: 2 texts; every text is a document of its own)
    """
    table = corpus.select([language]).tables[language]
    if isinstance(by, str):
        if by not in GROUPINGS:
            raise CorpusError(unknown("grouping", by, GROUPINGS))
        characters = np.array([len(text) for text in table["text"]])
        group = _stretches(characters, parts) if by == "source" else _topics(table, characters, parts, tokenizer, seed)
    else:
        group = np.asarray(by)
    if len(group) != len(table) or set(group.tolist()) != set(range(parts)):
        raise CorpusError(
            f"{len(table)} documents of {language!r} do not fall into {parts} parts: every part from 0 to {parts - 1} "
            "needs a document, and every document a part."
        )
    return Corpus({f"{language}-{part + 1}": table.select(np.flatnonzero(group == part)) for part in range(parts)})


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
    distances = reduce((places[:, None] - centres) ** 2, "document part dimension -> document part", "sum")
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
        part = next((part for part in wishes if room[part] > 0), wishes[0])
        group[document] = part
        room[part] -= sizes[document]
    return group
