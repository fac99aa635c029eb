"""Nulls: texts in which there is no language to find, recorded, and what a method finds there.

Real languages and nulls are recorded in two halves whose sum is the whole. Halves have the same histogram edges, so
that one pass over the text serves both the whole and its split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from langneurons import storage
from langneurons.analysis.validity.controls import pseudo_languages, shuffled_languages
from langneurons.analysis.validity.reliability import Halves, Selection, deciding, high_ones, split_half, whole
from langneurons.corpora import Corpus, pack
from langneurons.errors import CorpusError, StatisticsError, unknown
from langneurons.identification.selection import Method
from langneurons.models import view
from langneurons.recording.recorder import record
from langneurons.recording.statistics import ActivationStats
from langneurons.settings import Recording, RecordingOptions, Run, with_options
from langneurons.storage.objects import JsonObject
from langneurons.storage.presenting import Column, Table
from langneurons.storage.result import Result

NULLS = ("shuffled", "source", "topic")
LIMIT = 0.05  # estimated share of false discoveries that a method may have
REAL = "real"


@dataclass(frozen=True)
class Recordings:
    """Recorded halves of real languages and of nulls, all with equally many tokens per label.

    Attributes:
        real: Two halves of the documents of every language.
        nulls: Name -> two halves of the documents of every label.
    """

    real: Halves
    nulls: Mapping[str, Halves]


@dataclass(frozen=True, eq=False, repr=False)
class Nulls(Result, kind="nulls", tables=("rows", "per_language")):
    """What a method finds in nulls.

    Attributes:
        method: The method and its options.
        rows: One row per null: ``null``, ``share`` (estimated share of false discoveries), ``passes`` (share <= limit),
            ``chosen`` (neurons the method chose on the null), and its split-half ``jaccard`` with ``jaccard_chance``
            where the null was given in halves. The first row, "real", holds the real languages' figures.
        per_language: One row per null and real language (or "overall" alone, where the score knows no language): the
            cut-off(s), how many were ``chosen`` on real data, how many choices of the null lie ``beyond`` the cut-off
            (the mean over the null's labels), and their ``share``.
        limit: The largest share that passes.
    """

    method: str
    rows: pd.DataFrame
    per_language: pd.DataFrame
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the method passes every null."""
        return bool(self.rows.loc[self.rows["null"] != REAL, "passes"].all())

    def share(self, null: str) -> float:
        """Estimated share of false discoveries under one null; NaN if it was not tried."""
        return self._value(null, "share")

    def jaccard(self, null: str) -> float:
        """Split-half Jaccard of one null's choice; NaN if it was not given in halves."""
        return self._value(null, "jaccard")

    def table(self) -> Table:
        """One line per null: the share of false discoveries, and how far the method agrees with itself."""
        verdict = "passes" if self.passes else "fails"
        columns = {"share": Column("false discoveries", "%", 100), "jaccard_chance": Column("jaccard by chance")}
        return Table(self.rows, columns, title=f"{self.method} {verdict} (limit {self.limit:.0%})")

    @property
    def settings(self) -> dict[str, Any]:
        """The method and the limit."""
        return {"method": self.method, "limit": self.limit}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        fields = super()._read(folder, content)
        return {**fields.pop("settings"), **fields}

    def _value(self, null: str, column: str) -> float:
        values = self.rows.loc[self.rows["null"] == null, column]
        return float(values.iloc[0]) if len(values) else np.nan


def nulls(
    method: Method,
    model: torch.nn.Module,
    corpus: Corpus,
    *,
    which: Sequence[str] = NULLS,
    language: str | None = None,
    limit: float = LIMIT,
    seed: int = 0,
    recording: Recording = Recording(),
    run: Run = Run(),
    **options: Unpack[RecordingOptions],
) -> Nulls:
    """Record nulls and tell how much a method finds in them, as a share of what it finds in real languages.

    Three nulls: "shuffled", documents of all languages dealt at random to the labels; "source", stretches of one
    language's documents in the corpus' order; "topic", clusters of one language's documents by what they speak of. The
    first says what chance gives, the others what a difference of texts gives that is none of language.

    For several methods, record once with ``record_nulls`` and ask ``nulls_of``.

    Args:
        method: Any method.
        model: A model returned by ``load_model``.
        corpus: A corpus of two languages or more, in the order of its sources.
        which: Nulls to record, among "shuffled", "source", "topic".
        language: The language whose documents are cut into parts; by default the one with most characters.
        limit: The largest share of false discoveries that passes.
        seed: Seed of every deal.
        recording: What is recorded, from how much text: tokens of each label, by default as many as the smallest label
            of all allows.
        run: Where it runs and what keeps it.
        options: Single fields of ``Recording`` and ``Run``, such as ``tokens_per_language=10_000``.

    Returns:
        The shares, with each recording's split-half overlap.

    Raises:
        CorpusError: If there are fewer than two languages, or too few tokens.

    Example:
        >>> corpus, size = ln.load_corpus("babel", ["en", "hi"]), {"tokens_per_language": 1000, "context_length": 64}
        >>> found = ln.nulls(ln.LAPE(top=0.01), model, corpus, which=["shuffled"], progress=False, **size)
        >>> found.rows["null"].tolist()
        ['real', 'shuffled']
    """
    recording, run = with_options(options, recording, run)
    recording = recording.model_copy(update={"also": (*recording.also, *method.needs)})
    recorded = record_nulls(model, corpus, which=which, language=language, seed=seed, recording=recording, run=run)
    return nulls_of(method, recorded.real, recorded.nulls, limit)


def record_nulls(
    model: torch.nn.Module,
    corpus: Corpus,
    *,
    which: Sequence[str] = NULLS,
    language: str | None = None,
    seed: int = 0,
    recording: Recording = Recording(),
    run: Run = Run(),
    **options: Unpack[RecordingOptions],
) -> Recordings:
    """Record the real languages and some nulls, with equally many tokens, each in two halves by document.

    Args:
        model: A model returned by ``load_model``.
        corpus: A corpus of two languages or more, in the order of its sources.
        which: Nulls to record, among "shuffled", "source", "topic".
        language: The language whose documents are cut into parts; by default the one with most characters.
        seed: Seed of every deal.
        recording: What is recorded, from how much text: tokens of each label, half in each half, by default as many as
            the smallest label of all allows.
        run: Where it runs, and the folder for the recordings.
        options: Single fields of ``Recording`` and ``Run``, such as ``sites=("act", "post")``.

    Returns:
        The recordings.

    Raises:
        CorpusError: If there are fewer than two languages, or too few tokens.

    Example:
        >>> from langneurons.analysis.validity import record_nulls
        >>> corpus, size = ln.load_corpus("babel", ["en", "hi"]), {"tokens_per_language": 1000, "context_length": 64}
        >>> recorded = record_nulls(model, corpus, which=["source"], progress=False, **size)
        >>> recorded.nulls["source"][0].languages
        ('en-1', 'en-2')
    """
    recording, run = with_options(options, recording, run)
    corpora = {REAL: corpus, **_null_corpora(model, corpus, which, language, seed)}
    halved = {name: text.split(heldout=0.5, seed=seed) for name, text in corpora.items()}
    recording = _sized(model, recording, [half for halves in halved.values() for half in halves])
    recorded = {}
    for name, halves in halved.items():
        folder = run if run.out is None else run.model_copy(update={"out": run.out / name})
        recorded[name] = record_halves(model, halves, seed=seed, recording=recording, run=folder)
    return Recordings(recorded.pop(REAL), recorded)


def record_halves(
    model: torch.nn.Module,
    halves: tuple[Corpus, Corpus],
    *,
    seed: int = 0,
    recording: Recording = Recording(),
    run: Run = Run(),
    **options: Unpack[RecordingOptions],
) -> Halves:
    """Record two halves of a corpus with the same histogram edges, so that they can also be added.

    Args:
        model: A model returned by ``load_model``.
        halves: Two corpora of the same labels without common documents, such as ``corpus.split`` gives.
        seed: Seed of the order in which each half's documents are taken, until there are tokens enough.
        recording: What is recorded, from how much text: tokens of each label in both halves together, by default as
            many as the smallest label allows.
        run: Where it runs, and the folder for the recordings.
        options: Single fields of ``Recording`` and ``Run``, such as ``context_length=256``.

    Returns:
        Statistics of each half.

    Raises:
        CorpusError: If a label has fewer tokens.

    Example:
        >>> from langneurons.analysis.validity import record_halves
        >>> halves, size = ln.load_corpus("babel", ["en", "hi"]).split(0.5), {"tokens_per_language": 1000}
        >>> first, second = record_halves(model, halves, context_length=64, progress=False, **size)
        >>> (first + second).tokens.tolist()
        [1000, 1000]
    """
    recording, run = with_options(options, recording, run)
    tokens = _sized(model, recording, halves).tokens_per_language
    assert tokens is not None
    recording = recording.model_copy(update={"tokens_per_language": tokens // 2})
    runs = [run if run.out is None else run.model_copy(update={"out": run.out / name}) for name in ("first", "second")]
    first, second = (half.shuffle(seed) for half in halves)
    statistics = record(model, first, recording=recording, run=runs[0])
    return statistics, record(model, second, like=statistics, recording=recording, run=runs[1])


def _null_corpora(
    model: torch.nn.Module, corpus: Corpus, which: Sequence[str], language: str | None, seed: int
) -> dict[str, Corpus]:
    parts = len(corpus.languages)
    if parts < 2:
        raise CorpusError(f"Nulls are compared with two languages or more; this corpus holds {parts}.")
    language = language or str(corpus.sizes().set_index("language")["characters"].idxmax())
    corpora = {}
    for name in which:
        if name not in NULLS:
            raise CorpusError(unknown("null", name, NULLS))
        if name == "shuffled":
            corpora[name] = shuffled_languages(corpus, seed)
        else:
            corpora[name] = pseudo_languages(corpus, language, parts, name, view(model).tokenizer, seed)
    return corpora


def _sized(model: torch.nn.Module, recording: Recording, corpora: Sequence[Corpus]) -> Recording:
    """The settings with a number of tokens: twice the counted tokens that the smallest label of halves has."""
    if recording.tokens_per_language is not None:
        return recording
    smallest = []
    for corpus in corpora:
        with storage.temporary_folder() as folder:
            packed = pack(corpus, view(model).tokenizer, recording.context_length, folder)
            smallest.append(min(packed.tokens.values()))
    return recording.model_copy(update={"tokens_per_language": 2 * min(smallest)})


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
        nulls: Name -> statistics of as many labels, with as many tokens; or two halves of them.
        limit: The largest share of false discoveries that passes.

    Returns:
        The shares, and where halves were given each recording's split-half overlap.

    Raises:
        StatisticsError: If a null has another number of labels or tokens, or the method chooses nothing on real data.

    Example:
        >>> from langneurons.analysis.validity import nulls_of
        >>> found = nulls_of(ln.identification.MeanActivation(), stats, {"itself": stats})
        >>> found.share("itself") > 0.3, found.passes
        (True, False)
    """
    if not nulls:
        raise StatisticsError("No null was given: record some with langneurons.nulls, or pass {name: statistics}.")
    on_real = whole(real)
    cutoffs = {
        label: _Cutoff.of(selection) for label, selection in deciding(method, on_real).items() if len(selection.neurons)
    }
    if not cutoffs:
        raise StatisticsError(f"{method!r} chooses no neuron on the real languages: there is no cut-off to test.")
    rows, per_language = [_row(method, REAL, real, sum(cutoff.count for cutoff in cutoffs.values()), None, limit)], []
    for name, null in nulls.items():
        on_null = whole(null)
        _check_comparable(name, on_null, on_real)
        selections = list(deciding(method, on_null).values())
        figures = {label: cutoff.against(selections) for label, cutoff in cutoffs.items()}
        per_language += [{"null": name, "language": label, **row} for label, row in figures.items()]
        share = float(np.mean([row["share"] for row in figures.values()]))
        rows.append(_row(method, name, null, sum(len(selection.neurons) for selection in selections), share, limit))
    return Nulls(repr(method), pd.DataFrame(rows), pd.DataFrame(per_language), limit)


@dataclass(frozen=True)
class _Cutoff:
    """Scores from ``high`` up or from ``low`` down are as good as the worst of ``count`` chosen neurons."""

    low: float
    high: float
    count: int

    @classmethod
    def of(cls, selection: Selection) -> "_Cutoff":
        scores, upper = selection.scores[selection.neurons], high_ones(selection)
        low, high = scores[~upper].max(initial=-np.inf), scores[upper].min(initial=np.inf)
        return cls(float(low), float(high), len(scores))

    def against(self, selections: Sequence[Selection]) -> dict[str, float]:
        """The choices of a null beyond the cut-off."""
        scores = [selection.scores[selection.neurons] for selection in selections]
        beyond = float(np.mean([((values >= self.high) | (values <= self.low)).sum() for values in scores]))
        ends = {"cutoff_low": self.low, "cutoff_high": self.high}
        cutoffs = {name: end if np.isfinite(end) else np.nan for name, end in ends.items()}
        return {**cutoffs, "chosen": self.count, "beyond": beyond, "share": beyond / self.count}


def _row(
    method: Method, name: str, recording: ActivationStats | Halves, chosen: int, share: float | None, limit: float
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
