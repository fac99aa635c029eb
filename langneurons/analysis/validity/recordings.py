"""What the checks need recorded: real languages and nulls, each in two halves whose sum is the whole.

Halves are recorded with the same histogram edges, so that one pass over the text serves both the whole and its split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from langneurons import storage
from langneurons.analysis.validity.regrouping import LIMIT, REAL, Nulls, nulls_of, pseudo_languages, shuffled_languages
from langneurons.analysis.validity.reliability import Halves
from langneurons.corpora import Corpus, pack
from langneurons.errors import CorpusError, unknown
from langneurons.identification.selection import Method
from langneurons.models import view
from langneurons.recording.recorder import record
from langneurons.run import Executor

NULLS = ("shuffled", "source", "topic")


@dataclass(frozen=True)
class Recordings:
    """Recorded halves of real languages and of nulls, all with equally many tokens a label.

    Attributes:
        real: Two halves of the documents of every language.
        nulls: By name, two halves of the documents of every label.
    """

    real: Halves
    nulls: Mapping[str, Halves]


def nulls(
    method: Method,
    model: torch.nn.Module,
    corpus: Corpus,
    tokens_per_language: int | None = None,
    context_length: int = 512,
    batch_size: int = 8,
    which: Sequence[str] = NULLS,
    language: str | None = None,
    limit: float = LIMIT,
    seed: int = 0,
    progress: bool = True,
) -> Nulls:
    """Record nulls and tell how much a method finds in them, as a share of what it finds in real languages.

    Three nulls: "shuffled", documents of all languages dealt at random to the labels; "source", stretches of one
    language's documents in the corpus' order; "topic", clusters of one language's documents by what they speak of. The
    first says what chance gives, the others what a difference of texts gives that is none of language.

    For several methods, record once with ``record_nulls`` and ask ``nulls_of``.

    Args:
        method: Any method.
        model: From ``load_model``.
        corpus: From ``load_corpus``, of two languages or more, in the order of its sources.
        tokens_per_language: Counted tokens of each label; None takes as many as the smallest label of all allows.
        context_length: Positions a block, a multiple of 16.
        batch_size: Blocks a forward.
        which: Among "shuffled", "source", "topic".
        language: The one whose documents are cut into parts; None takes the one with most characters.
        limit: The largest share of false discoveries that passes.
        seed: Of every deal.
        progress: Show progress on standard error.

    Returns:
        The shares, with each recording's split-half overlap.

    Raises:
        CorpusError: If there are fewer than two languages, or too few tokens.

    Example:
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> found = nulls(ln.LAPE(top=0.01), model, corpus, 1000, 64, which=["shuffled"], progress=False)
        >>> found.table["null"].tolist()
        ['real', 'shuffled']
    """
    recorded = record_nulls(
        model, corpus, tokens_per_language, context_length, batch_size, which, language, seed, None, progress,
        also=method.needs,
    )  # fmt: skip
    return nulls_of(method, recorded.real, recorded.nulls, limit)


def record_nulls(
    model: torch.nn.Module,
    corpus: Corpus,
    tokens_per_language: int | None = None,
    context_length: int = 512,
    batch_size: int = 8,
    which: Sequence[str] = NULLS,
    language: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    sites: Sequence[str] = ("act",),
    also: Sequence[str] = (),
    executor: str | Executor | None = None,
) -> Recordings:
    """Record the real languages and some nulls, with equally many tokens, each in two halves by document.

    Args:
        model: From ``load_model``.
        corpus: From ``load_corpus``, of two languages or more, in the order of its sources.
        tokens_per_language: Counted tokens of each label, half in each half; None takes as many as the smallest allows.
        context_length: Positions a block, a multiple of 16.
        batch_size: Blocks a forward.
        which: Among "shuffled", "source", "topic".
        language: The one whose documents are cut into parts; None takes the one with most characters.
        seed: Of every deal.
        out: Folder for the recordings; the same call finds them there, or goes on with what is missing.
        progress: Show progress on standard error.
        sites: As in ``record``.
        also: What is optional and some method needs, as in ``record``.
        executor: Where to run, as for ``record``.

    Returns:
        The recordings.

    Raises:
        CorpusError: If there are fewer than two languages, or too few tokens.

    Example:
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> recorded = record_nulls(model, corpus, 1000, 64, which=["source"], progress=False)
        >>> recorded.nulls["source"][0].languages
        ('en-1', 'en-2')
    """
    named = _null_corpora(model, corpus, which, language, seed)
    halved = {name: one.split(heldout=0.5, seed=seed) for name, one in {REAL: corpus, **named}.items()}
    if tokens_per_language is None:
        tokens_per_language = 2 * min(_tokens(model, half, context_length) for pair in halved.values() for half in pair)
    recorded = {
        name: record_halves(
            model,
            halves,
            tokens_per_language,
            context_length,
            batch_size,
            seed,
            None if out is None else Path(out) / name,
            progress,
            sites,
            also,
            executor,
        )
        for name, halves in halved.items()
    }
    return Recordings(recorded.pop(REAL), recorded)


def record_halves(
    model: torch.nn.Module,
    halves: tuple[Corpus, Corpus],
    tokens_per_language: int,
    context_length: int = 512,
    batch_size: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    sites: Sequence[str] = ("act",),
    also: Sequence[str] = (),
    executor: str | Executor | None = None,
) -> Halves:
    """Record two halves of a corpus with the same histogram edges, so that they can also be added.

    Args:
        model: From ``load_model``.
        halves: Two corpora of the same labels without common documents: of ``corpus.split`` or ``halves_by_source``.
        tokens_per_language: Counted tokens of each label in both halves together.
        context_length: Positions a block, a multiple of 16.
        batch_size: Blocks a forward.
        seed: Of the order in which each half's documents are taken, until there are tokens enough.
        out: Folder for the recordings; the same call finds them there.
        progress: Show progress on standard error.
        sites: As in ``record``.
        also: What is optional and some method needs, as in ``record``.
        executor: Where to run, as for ``record``.

    Returns:
        Statistics of each half.

    Raises:
        CorpusError: If a label has fewer tokens.

    Example:
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> first, second = record_halves(model, corpus.split(0.5), 1000, 64, progress=False)
        >>> (first + second).tokens.tolist()
        [1000, 1000]
    """
    folders = (None, None) if out is None else (Path(out) / "first", Path(out) / "second")
    each = tokens_per_language // 2
    options: dict[str, Any] = {
        "tokens_per_language": each,
        "context_length": context_length,
        "batch_size": batch_size,
        "progress": progress,
        "sites": sites,
        "also": also,
        "executor": executor,
    }
    first, second = (half.shuffle(seed) for half in halves)
    one = record(model, first, out=folders[0], **options)
    return one, record(model, second, out=folders[1], like=one, **options)


def _null_corpora(
    model: torch.nn.Module, corpus: Corpus, which: Sequence[str], language: str | None, seed: int
) -> dict[str, Corpus]:
    parts = len(corpus.languages)
    if parts < 2:
        raise CorpusError(f"Nulls are compared with two languages or more; this corpus holds {parts}.")
    language = language or _largest(corpus)
    named = {}
    for name in which:
        if name not in NULLS:
            raise CorpusError(unknown("null", name, NULLS))
        if name == "shuffled":
            named[name] = shuffled_languages(corpus, seed)
        else:
            named[name] = pseudo_languages(corpus, language, parts, name, view(model).tokenizer, seed)
    return named


def _largest(corpus: Corpus) -> str:
    sizes = corpus.sizes().set_index("language")["characters"]
    return str(sizes.idxmax())


def _tokens(model: torch.nn.Module, corpus: Corpus, context_length: int) -> int:
    """Counted tokens that the smallest label has."""
    with storage.temporary_folder() as folder:
        packed = pack(corpus, view(model).tokenizer, context_length, folder)
        return min(packed.tokens.values())
