"""Altered text, recorded: what a language's neurons do where its script, its words or their order are gone.

One half of the documents names the neurons; the other half is recorded as it is and altered. Each half is recorded in
parts of documents, the same ones in every language and condition, so that leaving out one part in turn says how much a
figure depends on the documents. Parts have equal histogram edges and can be added.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from itertools import chain
from operator import add
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from langneurons import storage
from langneurons.analysis.validity.recordings import inside
from langneurons.analysis.validity.staying import RANDOM, AlteredRecordings, Survival, survival_of
from langneurons.corpora import Corpus, pack
from langneurons.corpora.altered import (
    NothingToAlterError,
    characters_shuffled,
    random_tokens,
    romanised,
    words_shuffled,
)
from langneurons.errors import warn_user
from langneurons.identification import Method
from langneurons.models import view
from langneurons.recording.recorder import record
from langneurons.recording.statistics import ActivationStats
from langneurons.run import alone_in_out
from langneurons.settings import Altering, AlteringOptions, Recording, Run, with_options

PARALLEL = "parallel"
# What is done to a text where that needs nothing but the text and a seed.
ALTERATIONS: Mapping[str, Callable[[Corpus, int], Corpus]] = {
    "words": words_shuffled,
    "characters": characters_shuffled,
    "romanised": lambda corpus, seed: romanised(corpus),
}


@alone_in_out
def survival(
    methods: Method | Mapping[str, Method],
    model: torch.nn.Module,
    corpus: Corpus,
    *,
    seed: int = 0,
    altering: Altering = Altering(),
    recording: Recording = Recording(),
    run: Run = Run(),
    **options: Unpack[AlteringOptions],
) -> Survival:
    """Ask what a method's neurons respond to: language or script, language or words.

    A method names neurons in one half of the documents, and again in the other half, as it is and altered: with words
    or characters shuffled, in Latin letters, without what is active on random tokens, or with the same sentences in
    every language. A neuron stays if the method names it for the same language again.

    Args:
        methods: A method, or several by name.
        model: A model returned by ``load_model``.
        corpus: A corpus of two languages or more, with its documents and, for parallel text, ids.
        seed: Seed of the halves, the parts, and every shuffling.
        altering: How text is altered.
        recording: What is recorded, from how much text: tokens of each language in each half and condition, by default
            as many as the smallest part allows in all.
        run: Where it runs and what keeps it.
        options: Single fields of ``Altering``, ``Recording`` and ``Run``, such as ``conditions=["words"]``.

    Returns:
        The shares that stay.

    Raises:
        CorpusError: If there are too few documents or tokens, or the only condition alters no language.

    Example:
        >>> from langneurons.analysis.validity import survival
        >>> size = {"tokens_per_language": 600, "context_length": 64, "progress": False}
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> stays = survival(ln.LAPE(top=0.01), model, corpus, conditions=["words"], parts=3, **size)
        >>> stays.rows["language"].tolist()
        ['en', 'hi', 'overall']
    """
    altering, recording, run = with_options(options, altering, recording, run)
    by_name = methods if isinstance(methods, Mapping) else {repr(methods): methods}
    needs = {need for method in by_name.values() for need in method.needs}
    recording = recording.model_copy(update={"also": tuple(sorted({*recording.also, *needs}))})
    recordings = record_altered(model, corpus, seed=seed, altering=altering, recording=recording, run=run)
    return survival_of(by_name, recordings, altering.random_share)


@alone_in_out
def record_altered(
    model: torch.nn.Module,
    corpus: Corpus,
    *,
    seed: int = 0,
    altering: Altering = Altering(),
    recording: Recording = Recording(),
    run: Run = Run(),
    **options: Unpack[AlteringOptions],
) -> AlteredRecordings:
    """Record two halves of a corpus, the second also altered: what ``survival`` reads, with the same arguments.

    Returns:
        The recordings.

    Raises:
        CorpusError: If there are too few documents or tokens, or the only condition alters no language.

    Example:
        >>> from langneurons.analysis.validity import record_altered
        >>> size = {"tokens_per_language": 600, "context_length": 64, "progress": False}
        >>> corpus = ln.load_corpus("babel", ["en", "zh"])
        >>> recordings = record_altered(model, corpus, conditions=["words"], parts=3, **size)
        >>> recordings.altered["words"][0].languages
        ('en',)
    """
    altering, recording, run = with_options(options, altering, recording, run)
    tokenizer = view(model).tokenizer
    first, second = (_parts_of(half, altering.parts, seed) for half in corpus.split(heldout=0.5, seed=seed))
    texts = {
        name: altered
        for name, alter in ALTERATIONS.items()
        if (altered := _altered_if_any(name, altering, partial(_each, alter, seed, second)))
    }
    everything = [*first, *second, *chain.from_iterable(texts.values())]
    tokens = recording.tokens_per_language or altering.parts * _least_tokens(everything, tokenizer, recording)
    of_a_part = tokens // altering.parts
    same = partial(_same_texts, tokenizer=tokenizer, tokens=of_a_part)
    if parallel := _altered_if_any(PARALLEL, altering, lambda: list(map(same, second))):
        texts[PARALLEL] = parallel
    if RANDOM in altering.conditions:
        texts[RANDOM] = [random_tokens(tokenizer, 2 * of_a_part, seed + place) for place in range(altering.parts)]
    texts = {"first": first, "second": second} | {name: texts[name] for name in altering.conditions if name in texts}
    recording = recording.model_copy(update={"tokens_per_language": of_a_part})
    recorded = {
        name: _recorded(model, parts, recording, inside(run, name), equal=name != PARALLEL)
        for name, parts in texts.items()
    }
    return AlteredRecordings(recorded.pop("first"), recorded.pop("second"), recorded)


def _each(alter: Callable[[Corpus, int], Corpus], seed: int, parts: Sequence[Corpus]) -> list[Corpus]:
    return [alter(part, seed + place) for place, part in enumerate(parts)]


def _altered_if_any(condition: str, altering: Altering, alter: Callable[[], list[Corpus]]) -> list[Corpus] | None:
    """The altered parts; None for a condition that is not wanted, or one of several that alters no language."""
    if condition not in altering.conditions:
        return None
    try:
        return alter()
    except NothingToAlterError as error:
        if len(altering.conditions) == 1:
            raise
        warn_user(f"{error} The condition {condition!r} is left out.")
        return None


def _parts_of(corpus: Corpus, parts: int, seed: int) -> list[Corpus]:
    """Parts of about equally many documents, each with the first texts of all its documents before their second."""
    several = []
    for left in range(parts, 1, -1):
        corpus, part = corpus.split(heldout=1 / left, seed=seed)
        several.append(part)
    return [_interleaved(part) for part in (*several, corpus)]


def _interleaved(corpus: Corpus) -> Corpus:
    """The first text of every document, then the second of each: a few tokens then come of many documents."""
    tables = {}
    for language, table in corpus.tables.items():
        documents = corpus.groups(language)
        order = np.argsort(documents, kind="stable")
        firsts = np.searchsorted(documents[order], documents[order])
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order)) - firsts
        tables[language] = table.select(np.lexsort((documents, place)))
    return Corpus(tables)


def _same_texts(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, tokens: int) -> Corpus:
    """The first texts that every language has, by their ids, as many as have the tokens in the longest language."""
    places: dict[str, dict[str, int]] = {}
    for language in corpus.languages:
        if (ids := corpus.ids(language)) is None:
            raise NothingToAlterError(
                f"{language!r} has no ids, which say what texts are translations of each other: load texts with a "
                "column 'id', or leave out the condition 'parallel'."
            )
        places[language] = {name: place for place, name in enumerate(ids)}
    shared = [name for name in places[corpus.languages[0]] if all(name in of for of in places.values())]
    if not shared:
        raise NothingToAlterError(
            f"No text is in all of {', '.join(corpus.languages)} by its id: there is no parallel text."
        )
    tables = {
        language: corpus.tables[language].select([of[name] for name in shared]) for language, of in places.items()
    }
    longest = np.max([np.cumsum(_lengths(table["text"], tokenizer)) for table in tables.values()], axis=0)
    count = max(int((longest <= tokens).sum()), 1)
    return Corpus({language: table.select(range(count)) for language, table in tables.items()})


def _lengths(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [len(text) for text in ids]


def _least_tokens(parts: Sequence[Corpus], tokenizer: PreTrainedTokenizerBase, recording: Recording) -> int:
    return min(tokens for part in parts for tokens in _counted(part, tokenizer, recording).values())


def _counted(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, recording: Recording) -> dict[str, int]:
    """Counted tokens of each language, which packing makes equal only where it packs several together."""
    with storage.temporary_folder() as folder:
        packed = (
            pack(corpus.select([language]), tokenizer, recording.context_length, folder / str(place))
            for place, language in enumerate(corpus.languages)
        )
        return reduce(lambda counts, one: counts | dict(one.tokens), packed, {})


def _recorded(
    model: torch.nn.Module, parts: Sequence[Corpus], recording: Recording, run: Run, equal: bool
) -> list[ActivationStats]:
    """The statistics of parts, with the histogram edges of the first: of equally many tokens, or of whole texts."""
    edges, recorded = None, []
    for place, part in enumerate(parts):
        texts = [(part, recording.tokens_per_language)]
        if not equal:
            counted = _counted(part, view(model).tokenizer, recording)
            texts = [(part.select([language]), tokens) for language, tokens in counted.items()]
        of_part = [
            record(
                model,
                text,
                like=edges,
                recording=recording.model_copy(update={"tokens_per_language": tokens}),
                run=inside(run, f"{place}.{'all' if equal else text.languages[0]}"),
            )
            for text, tokens in texts
        ]
        recorded.append(reduce(add, of_part))
        edges = recorded[0]
    return recorded


def load_parts(folder: Path) -> list[ActivationStats]:
    """The parts of one condition that ``record_altered`` kept, in their order.

    Args:
        folder: Folder of the condition.
    """
    recorded: dict[int, list[ActivationStats]] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        recorded.setdefault(int(place.name.partition(".")[0]), []).append(ActivationStats.load(place))
    return [reduce(add, recorded[part]) for part in sorted(recorded)]
