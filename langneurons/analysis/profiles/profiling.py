"""Profiling: one look through the model at chosen neurons, for everything that their pages show."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from langneurons.analysis.profiles.outputs import output_tokens as output_tokens_of
from langneurons.analysis.profiles.outputs import similar_neurons
from langneurons.analysis.profiles.result import EXAMPLES, Profiles
from langneurons.corpora import Corpus
from langneurons.errors import NeuronSetError, SiteMismatchError, StaleArtefactError
from langneurons.identification.controls import fitting_statistics
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView, view
from langneurons.recording.looking import examples, token_values
from langneurons.recording.statistics import PUBLISHED, ActivationStats


def profile(
    model: torch.nn.Module,
    neurons: NeuronSet,
    corpus: Corpus,
    stats: ActivationStats | None = None,
    k: int = 5,
    context_length: int = 64,
    documents: int | None = 2000,
    output_tokens: int = 10,
    similar: int = 8,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Profiles:
    """Look at chosen neurons: the texts that move them, the tokens they promote, and the neurons like them.

    Args:
        model: From ``load_model``.
        neurons: A neuron set; choose some hundreds at most, see ``clearest_neurons``.
        corpus: Texts to look through.
        stats: Statistics of the same model, to find neurons that are active alike.
        k: Texts of each kind (top, median, random), language and neuron.
        context_length: Tokens of a text to read, special ones included.
        documents: Look through this many random documents a language; None looks through all.
        output_tokens: Tokens promoted, and as many suppressed.
        similar: Similar neurons by activity, and as many by output direction.
        batch_size: Texts a forward.
        seed: Of the documents and the random texts.
        progress: Show a progress bar on standard error.

    Returns:
        What the pages of these neurons need beside statistics.

    Raises:
        NeuronSetError: If the set is empty, does not fit the model, or a number is too small.
        SiteMismatchError: If the neurons belong to another model.
        StaleArtefactError: If the statistics do.

    Example:
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> texts = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> profiles = ln.profile(model, neurons, texts, stats, k=1, progress=False)
        >>> profiles[profiles.neurons[0]].examples["kind"].unique().tolist()
        ['top', 'median', 'random']
    """
    seen = view(model)
    _check_fits(seen, neurons, stats)
    for name, given, least in (("k", k, 1), ("output_tokens", output_tokens, 0), ("similar", similar, 0)):
        if given < least:
            raise NeuronSetError(f"{name} is {least} or more, not {given}.")
    found = examples(model, corpus, neurons, k, documents, context_length, batch_size, seed, progress)
    texts, numbered = _with_values(seen, neurons, found, context_length, batch_size, progress)
    settings = {
        "model": seen.name,
        "fingerprint": seen.fingerprint_at(neurons.site),
        "dtype": str(seen.dtype).removeprefix("torch."),
        "site": neurons.site,
        "gated": seen.gated,
        "shape": list(neurons.shape),
        "method": neurons.method,
        "neurons": neurons.indices().tolist(),
        "languages": list(corpus.languages),
        "corpus": corpus.fingerprint,
        "k": k,
        "context_length": context_length,
        "documents": documents,
        "seed": seed,
    }
    return Profiles(
        texts,
        numbered,
        output_tokens_of(seen, neurons, output_tokens),
        similar_neurons(seen, neurons, None if stats is None else stats.at(neurons.site), similar),
        settings,
    )


def _check_fits(seen: ModelView, neurons: NeuronSet, stats: ActivationStats | None) -> None:
    shape, here = seen.shape(neurons.site), seen.fingerprint_at(neurons.site)
    if neurons.shape != shape:
        raise NeuronSetError(
            f"The neuron set is of a model of {neurons.shape[0]} layers x {neurons.shape[1]} units at "
            f"{neurons.site!r}; {seen.name!r} has {shape[0]} x {shape[1]}."
        )
    if neurons.model and neurons.model != here:
        raise SiteMismatchError(
            f"The neurons belong to model {neurons.model[:8]}, but {seen.name!r} is {here[:8]}: identify its own."
        )
    if stats is not None and stats.at(neurons.site).fingerprint not in (here, PUBLISHED):
        raise StaleArtefactError(
            f"The statistics belong to model {stats.at(neurons.site).fingerprint[:8]}, but {seen.name!r} is "
            f"{here[:8]}: record it again."
        )


def _with_values(
    seen: ModelView, neurons: NeuronSet, found: pd.DataFrame, context_length: int, batch_size: int, progress: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the texts found once more, for every token's value: the table of texts, and of examples."""
    chosen = neurons.indices()
    texts = found.loc[:, ["language", "document", "text"]].drop_duplicates(["language", "document"], ignore_index=True)
    columns = {(int(layer), int(index)): column for column, (layer, index) in enumerate(chosen)}
    number = {key: row for row, key in enumerate(zip(texts["language"], texts["document"], strict=True))}
    wanted: dict[int, list[int]] = {}
    numbers = [number[key] for key in zip(found["language"], found["document"], strict=True)]
    for row, text in enumerate(numbers):
        wanted.setdefault(text, []).append(row)
    places = list(zip(found["layer"], found["neuron"], strict=True))
    values: list[Any] = [None] * len(found)
    pieces: list[list[str]] = []
    length = min(context_length, seen.context_length)
    whole = texts["text"].tolist()
    for text, (offsets, read) in enumerate(
        token_values(seen, neurons.site, chosen, whole, length, batch_size, progress)
    ):
        pieces.append(pieces_of(whole[text], offsets))
        for row in wanted[text]:
            values[row] = read[:, columns[places[row]]].tolist()
    shown = [sum(map(len, parts)) for parts in pieces]
    cut = [given > kept for given, kept in zip(map(len, whole), shown, strict=True)]
    table = pd.DataFrame({"text": range(len(texts)), **texts[["language", "document"]], "pieces": pieces, "cut": cut})
    return table, found.assign(text=numbers, values=values).loc[:, EXAMPLES]


def pieces_of(text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """Cut a text into the characters of each token, so that the pieces together are the text up to the last of them.

    What stands between two tokens (a space that a tokenizer does not count) goes to the second; bytes that go on with
    a character already shown give an empty piece.

    Example:
        >>> pieces_of("two words", [(0, 3), (4, 9)])
        ['two', ' words']
    """
    pieces, shown = [], 0
    for _, end in offsets:
        pieces.append(text[shown : max(end, shown)])
        shown = max(end, shown)
    return pieces


def clearest_neurons(neurons: NeuronSet, stats: ActivationStats, count: int) -> NeuronSet:
    """Keep the neurons that are furthest ahead in their own language, as many of each label as of the others.

    Args:
        neurons: A neuron set; a label that was recorded is a language.
        stats: Statistics of the same model.
        count: The most neurons to keep in all.

    Returns:
        The set, at most ``count`` neurons; of each label those whose activation probability exceeds that of every other
        language most (of a label that was not recorded, the first ones).

    Raises:
        NeuronSetError: If ``count`` is below 1, or the statistics do not fit.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> from langneurons.analysis.profiles.profiling import clearest_neurons
        >>> len(clearest_neurons(neurons, stats, 6)) <= 6
        True
    """
    if count < 1:
        raise NeuronSetError(f"At least one neuron is to be looked at, not {count}.")
    stats = fitting_statistics(stats, neurons.shape, neurons.site, neurons.model)
    probability = stats.probability().flatten(1)
    ordered = {}
    for label, flat in neurons.members.items():
        if label not in stats.languages or len(stats.languages) < 2:
            ordered[label] = flat
            continue
        own = stats.languages.index(label)
        others = torch.cat([probability[:own], probability[own + 1 :]]).amax(0)
        ahead = (probability[own] - others).numpy()[flat]
        ordered[label] = flat[np.argsort(-ahead, kind="stable")]
    return NeuronSet(
        _in_turn(ordered, count),
        neurons.shape,
        neurons.site,
        neurons.model,
        f"the {count} furthest ahead of: {neurons.method}",
    )


def _in_turn(ordered: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Take from each label in turn until ``count`` different neurons are taken."""
    taken: set[int] = set()
    kept: dict[str, list[int]] = {label: [] for label in ordered}
    for rank in range(max(map(len, ordered.values()), default=0)):
        for label, flat in ordered.items():
            if rank < len(flat) and (len(taken) < count or int(flat[rank]) in taken):
                taken.add(int(flat[rank]))
                kept[label].append(int(flat[rank]))
    return {label: np.array(sorted(flat), np.int64) for label, flat in kept.items()}
