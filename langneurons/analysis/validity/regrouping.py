"""Documents dealt anew: to halves, to labels that are no languages, to parts of one language.

What comes out is a corpus whose labels the recorder takes for languages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.sparse.linalg
from datasets import Dataset, concatenate_datasets
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from transformers import PreTrainedTokenizerBase

from langneurons.analysis.validity.reliability import Halves, Selection, deciding, high_ones, split_half, whole
from langneurons.corpora import Corpus
from langneurons.errors import CorpusError, StatisticsError, unknown
from langneurons.identification.selection import Method
from langneurons.recording.statistics import ActivationStats

GROUPINGS = ("source", "topic")

DIMENSIONS = 32  # of the space in which topics are clusters


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


LIMIT = 0.05  # estimated share of false discoveries that a method may have
REAL = "real"


@dataclass(frozen=True, eq=False, repr=False)
class Nulls:
    """What a method finds in nulls.

    Attributes:
        method: The method and its options.
        table: One row a null: ``null``, ``share`` (estimated share of false discoveries), ``passes`` (share <= limit),
            ``chosen`` (neurons the method chose on the null), and its split-half ``jaccard`` with ``jaccard_chance``
            where the null was given in halves. The first row, "real", holds the real languages' figures.
        per_language: One row a null and real language (or "overall" alone, where the score knows no language): the
            cut-off(s), how many were ``chosen`` on real data, how many choices of the null lie ``beyond`` the cut-off
            (the mean over the null's labels), and their ``share``.
        limit: The largest share that passes.
    """

    method: str
    table: pd.DataFrame
    per_language: pd.DataFrame
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the method passes every null."""
        return bool(self.table.loc[self.table["null"] != REAL, "passes"].all())

    def share(self, null: str) -> float:
        """Estimated share of false discoveries under one null; NaN if it was not tried."""
        return self._value(null, "share")

    def jaccard(self, null: str) -> float:
        """Split-half Jaccard of one null's choice; NaN if it was not given in halves."""
        return self._value(null, "jaccard")

    def __repr__(self) -> str:
        verdict = "passes" if self.passes else "fails"
        return f"{self.method} {verdict} (limit {self.limit:.0%})\n{self.table.round(3).to_string(index=False)}"

    def _value(self, null: str, column: str) -> float:
        found = self.table.loc[self.table["null"] == null, column]
        return float(found.iloc[0]) if len(found) else np.nan


def nulls_of(
    method: Method,
    real: ActivationStats | Halves,
    nulls: Mapping[str, ActivationStats | Halves],
    limit: float = LIMIT,
) -> Nulls:
    """Compare what a method finds in recorded nulls with what it finds in real languages.

    The cut-off of a language is the worst score the method chose on real data; where the score knows no language, as
    LAPE's, there is one. Which scores are good is read off the real choice: high or low ones, or both ends where at
    least a tenth of the choice lies on each side of the median. On a null the method applies all its rules, filters
    included, and of its choices those beyond the cut-off count, as the mean over the null's labels, because none of
    them stands for the language.

    Args:
        method: Any method.
        real: Statistics of real languages, or of two halves of their documents (recorded with equal histogram edges).
        nulls: By name, statistics of as many labels, with as many tokens; or two halves of them.
        limit: The largest share of false discoveries that passes.

    Returns:
        The shares, and where halves were given each recording's split-half overlap.

    Raises:
        StatisticsError: If a null has another number of labels or tokens, or the method chooses nothing on real data.

    Example:
        >>> found = nulls_of(ln.identification.MeanActivation(), stats, {"itself": stats})
        >>> found.share("itself") > 0.3, found.passes
        (True, False)
    """
    if not nulls:
        raise StatisticsError("No null was given: record some with langneurons.nulls, or pass {name: statistics}.")
    on_real = whole(real)
    cutoffs = {label: _Cutoff.of(one) for label, one in deciding(method, on_real).items() if len(one.chosen)}
    if not cutoffs:
        raise StatisticsError(f"{method!r} chooses no neuron on the real languages: there is no cut-off to test.")
    rows, per_language = [_row(method, REAL, real, sum(one.chosen for one in cutoffs.values()), None, limit)], []
    for name, null in nulls.items():
        on_null = whole(null)
        _check_comparable(name, on_null, on_real)
        found = list(deciding(method, on_null).values())
        against = {label: cutoff.against(found) for label, cutoff in cutoffs.items()}
        per_language += [{"null": name, "language": label, **one} for label, one in against.items()]
        share = float(np.mean([one["share"] for one in against.values()]))
        rows.append(_row(method, name, null, sum(len(one.chosen) for one in found), share, limit))
    return Nulls(repr(method), pd.DataFrame(rows), pd.DataFrame(per_language), limit)


@dataclass(frozen=True)
class _Cutoff:
    """Scores from ``high`` up or from ``low`` down are as good as the worst of the ``chosen`` neurons."""

    low: float
    high: float
    chosen: int

    @classmethod
    def of(cls, selection: Selection) -> "_Cutoff":
        scores, upper = selection.scores[selection.chosen], high_ones(selection)
        low, high = scores[~upper].max(initial=-np.inf), scores[upper].min(initial=np.inf)
        return cls(float(low), float(high), len(scores))

    def against(self, found: list[Selection]) -> dict[str, float]:
        chosen = [one.scores[one.chosen] for one in found]
        beyond = float(np.mean([((scores >= self.high) | (scores <= self.low)).sum() for scores in chosen]))
        ends = {"cutoff_low": self.low, "cutoff_high": self.high}
        known = {name: end if np.isfinite(end) else np.nan for name, end in ends.items()}
        return {**known, "chosen": self.chosen, "beyond": beyond, "share": beyond / self.chosen}


def _row(
    method: Method,
    name: str,
    recording: ActivationStats | Halves,
    chosen: int,
    share: float | None,
    limit: float,
) -> dict[str, object]:
    overlap = split_half(method, recording).overall if isinstance(recording, tuple) else {}
    return {
        "null": name,
        "share": np.nan if share is None else share,
        "passes": None if share is None else share <= limit,
        "chosen": chosen,
        "jaccard": overlap.get("jaccard", np.nan),
        "jaccard_chance": overlap.get("jaccard_chance", np.nan),
    }


def _check_comparable(name: str, null: ActivationStats, real: ActivationStats) -> None:
    mine = (len(null.languages), null.tokens.tolist()[0])
    theirs = (len(real.languages), real.tokens.tolist()[0])
    if mine != theirs:
        raise StatisticsError(
            f"The null {name!r} holds {mine[0]} labels of {mine[1]:,} tokens and the real recording {theirs[0]} of "
            f"{theirs[1]:,}: chance finds more in fewer tokens, so both must be equal."
        )
