"""Nulls, recorded: texts in which there is no language to find.

Real languages and nulls are recorded in two halves whose sum is the whole. Halves have the same histogram edges, so
that one pass over the text serves both the whole and its split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch

from langneurons import storage
from langneurons.analysis.validity.checks import LIMIT, REAL, Nulls, nulls_of
from langneurons.analysis.validity.controls import pseudo_languages, shuffled_languages
from langneurons.analysis.validity.reliability import Halves
from langneurons.corpora import Corpus, pack
from langneurons.errors import CorpusError, unknown
from langneurons.identification import Method
from langneurons.models import view
from langneurons.recording.recorder import record
from langneurons.run import alone_in_out
from langneurons.settings import Recording, RecordingOptions, Run, with_options

NULLS = ("shuffled", "source", "topic")


@dataclass(frozen=True)
class Recordings:
    """Recorded halves of real languages and of nulls, all with equally many tokens per label.

    Attributes:
        real: Two halves of the documents of every language.
        nulls: Name -> two halves of the documents of every label.
    """

    real: Halves
    nulls: Mapping[str, Halves]


@alone_in_out
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


@alone_in_out
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
    recorded = {
        name: record_halves(model, halves, seed=seed, recording=recording, run=inside(run, name))
        for name, halves in halved.items()
    }
    return Recordings(recorded.pop(REAL), recorded)


@alone_in_out
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
    first, second = (half.shuffle(seed) for half in halves)
    statistics = record(model, first, recording=recording, run=inside(run, "first"))
    return statistics, record(model, second, like=statistics, recording=recording, run=inside(run, "second"))


def inside(run: Run, name: str) -> Run:
    """The same run, in a folder of its folder."""
    return run if run.out is None else run.model_copy(update={"out": run.out / name})


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
