"""Looking at single neurons: their activations on a text, and the texts of a corpus that move them most and least."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.corpora import Corpus
from langneurons.errors import CorpusError, ModelError, NeuronSetError
from langneurons.models import ModelView, start_token, view
from langneurons.models.finite import check_finite
from langneurons.run import Progress

LENGTHS = 16  # rows are padded to a multiple of this
ONE_LANGUAGE_SAMPLE = 2000


@runtime_checkable
class Neurons(Protocol):
    """Anything that names neurons of one site, such as a NeuronSet."""

    @property
    def site(self) -> str:
        """Their site."""
        ...

    def indices(self) -> Int[Tensor, "n 2"]:
        """Layer and index of each."""
        ...


@runtime_checkable
class Watch(Protocol):
    """Sees every token that ``examples`` reads, at sites of its own."""

    @property
    def sites(self) -> Sequence[str]:
        """The sites; on gated MLPs also "up"."""
        ...

    def __call__(
        self, text: str, offsets: Sequence[tuple[int, int]], values: Float[np.ndarray, "site token n"]
    ) -> None:
        """See a text: where its tokens start and end, and what the neurons are at the sites."""
        ...


def activations(model: torch.nn.Module, text: str, neurons: Neurons) -> pd.DataFrame:
    """Show what some neurons do on each token of a text.

    Args:
        model: A model returned by ``load_model``.
        text: Any text within the model's context.
        neurons: A neuron set.

    Returns:
        One row per token (indexed by position and the characters it covers; a character split over several tokens
        stands with the first of them), one column per neuron (indexed by layer and neuron).

    Raises:
        NeuronSetError: If the set is empty.
        ModelError: If the text is empty or longer than the model's context, or a value is not finite.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> ln.activations(model, "The boy drinks water.", neurons["en"]).index.names
        FrozenList(['position', 'token'])
    """
    model_view, indices = view(model), checked_indices(neurons)
    encoded = model_view.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, pieces = encoded["input_ids"], _pieces(text, encoded["offset_mapping"])
    start = _start_tokens(model_view)
    if not ids:
        raise ModelError(f"The text {text!r} has no tokens.")
    if len(ids) + len(start) > model_view.context_length:
        raise ModelError(
            f"The text has {len(ids)} tokens; {model_view.name}'s context holds "
            f"{model_view.context_length - len(start)}."
        )
    with _values_of(model_view, [neurons.site], indices) as read:
        tokens = torch.tensor([[*start, *ids]])
        values = read(tokens)[0, 0, len(start) :]
        check_finite(model_view, values, tokens)
    rows = pd.MultiIndex.from_arrays([range(len(ids)), pieces], names=["position", "token"])
    columns = pd.MultiIndex.from_arrays(indices.T.tolist(), names=["layer", "neuron"])
    return pd.DataFrame(values.cpu().numpy(), index=rows, columns=columns)


def examples(
    model: torch.nn.Module,
    corpus: Corpus,
    neurons: Neurons,
    k: int = 10,
    documents: int | None = ONE_LANGUAGE_SAMPLE,
    context_length: int = 128,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
    watch: Watch | None = None,
) -> pd.DataFrame:
    """Find the texts on which each neuron is most active, texts from the middle, and random ones, per language.

    A second pass over the corpus that keeps one number per document and chosen neuron: its highest activation.

    Args:
        model: A model returned by ``load_model``.
        corpus: A corpus returned by ``load_corpus``.
        neurons: A neuron set of few neurons.
        k: Texts of each kind.
        documents: Random documents to look through per language; None takes all.
        context_length: Tokens read per document.
        batch_size: Documents per forward pass.
        seed: Seed for the choice of documents and of random texts.
        progress: Whether to show a progress bar on standard error.
        watch: Sees every token that is read, in the same pass.

    Returns:
        Rows with language, layer, neuron, kind ("top", "median", "random"), rank, activation, document, text, and
        start and end of the most active token in the text.

    Raises:
        NeuronSetError: If the set is empty.
        CorpusError: If ``k`` is below 1.
        ModelError: If a value is not finite.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> rows = ln.examples(model, ln.load_corpus("babel", ["en"]).take(20), neurons["en"], k=1, progress=False)
        >>> sorted(rows["kind"].unique())
        ['median', 'random', 'top']
    """
    if k < 1:
        raise CorpusError(f"At least one example of each kind is needed, not {k}.")
    model_view, indices = view(model), checked_indices(neurons)
    rows = []
    for language in corpus.languages:
        generator = np.random.default_rng([seed, *language.encode()])
        n = len(corpus[language])
        looked_at = (
            np.arange(n) if documents is None or n <= documents else np.sort(generator.choice(n, documents, False))
        )
        texts = [corpus.text(language, int(index)) for index in looked_at]
        peaks, places = _peaks(
            model_view,
            neurons.site,
            indices,
            texts,
            min(context_length, model_view.context_length),
            batch_size,
            progress,
            watch,
        )
        for column, (layer, index) in enumerate(indices.tolist()):
            for kind, rank, row in _kinds(peaks[:, column], k, generator):
                start, end = places[row, column]
                rows.append(
                    {
                        "language": language,
                        "layer": layer,
                        "neuron": index,
                        "kind": kind,
                        "rank": rank,
                        "activation": float(peaks[row, column]),
                        "document": int(looked_at[row]),
                        "text": texts[row],
                        "start": int(start),
                        "end": int(end),
                    }
                )
    return pd.DataFrame(rows)


def _peaks(
    model_view: ModelView,
    site: str,
    indices: Int[Tensor, "n 2"],
    texts: Sequence[str],
    context_length: int,
    batch_size: int,
    progress: bool,
    watch: Watch | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Each document's highest activation of each neuron, and the characters of the token where it occurs."""
    peaks = np.full((len(texts), len(indices)), -np.inf, np.float32)
    places = np.zeros((len(texts), len(indices), 2), np.int64)
    sites = [site, *(watch.sites if watch is not None else ())]
    read = token_values(model_view, sites, indices, texts, context_length, batch_size, progress)
    for row, (offsets, (values, *others)) in enumerate(read):
        if not len(values):
            continue
        if watch is not None:
            watch(texts[row], offsets, np.stack(others))
        best = values.argmax(0)
        peaks[row] = values[best, np.arange(len(indices))]
        places[row] = np.array(offsets)[best]
    return peaks, places


def token_values(
    model_view: ModelView,
    sites: Sequence[str],
    indices: Int[Tensor, "n 2"],
    texts: Sequence[str],
    context_length: int,
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[tuple[list[tuple[int, int]], Float[np.ndarray, "site token n"]]]:
    """Read some neurons on every token of the beginnings of texts, several texts per forward pass.

    Args:
        model_view: The model.
        sites: Sites at which the neurons are read; on gated MLPs also "up", what ``act`` is multiplied by.
        indices: Layer and index of each.
        texts: Texts to read.
        context_length: Tokens read per text, special ones included.
        batch_size: Texts per forward pass.
        progress: Whether to show a progress bar on standard error.

    Yields:
        For every text, where each of its tokens starts and ends, and its values; none for a text without tokens.
    """
    start = _start_tokens(model_view)
    with _values_of(model_view, sites, indices) as read:
        for first in Progress(range(0, len(texts), batch_size), shown=progress, unit="batch", leave=False):
            batch = list(texts[first : first + batch_size])
            encoded = model_view.tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            token_ids = [ids[: context_length - len(start)] for ids in encoded["input_ids"]]
            length = -(-max(len(ids) + len(start) for ids in token_ids) // LENGTHS) * LENGTHS
            rows = torch.full((len(batch), min(length, model_view.context_length)), _padding(model_view))
            for row, ids in enumerate(token_ids):
                rows[row, : len(start) + len(ids)] = torch.tensor([*start, *ids])
            values = read(rows).cpu().numpy()
            for row, ids in enumerate(token_ids):
                own = values[:, row, len(start) : len(start) + len(ids)]
                check_finite(model_view, torch.from_numpy(own), rows[row : row + 1, : len(start) + len(ids)])
                yield encoded["offset_mapping"][row][: len(ids)], own


def _kinds(peaks: np.ndarray, k: int, generator: np.random.Generator) -> Iterator[tuple[str, int, int]]:
    order = np.argsort(-peaks, kind="stable")
    middle = max(0, len(order) // 2 - k // 2)
    random = generator.permutation(len(order))[:k]
    for kind, rows in (("top", order[:k]), ("median", order[middle : middle + k]), ("random", random)):
        for rank, row in enumerate(rows):
            yield kind, rank, int(row)


@contextmanager
def _values_of(
    model_view: ModelView, sites: Sequence[str], indices: Int[Tensor, "n 2"]
) -> Iterator[Callable[[Int[Tensor, "row position"]], Float[Tensor, "site row position n"]]]:
    """Give a function from token rows to the chosen neurons' values at some sites (a head's value is its norm)."""
    held: dict[tuple[str, int], Tensor] = {}
    wanted = {int(layer): indices[indices[:, 0] == layer, 1] for layer in indices[:, 0].unique()}

    def keep(site: str, layer: int, values: Tensor) -> None:
        if layer in wanted:
            picked = values[:, :, wanted[layer].to(values.device)].float()
            held[site, layer] = torch.linalg.vector_norm(picked, dim=-1) if site == "head" else picked

    def read(rows: Tensor) -> Tensor:
        model_view.forward(rows.to(model_view.device), logits=False)
        by_site = [torch.cat([held[site, layer] for layer in sorted(wanted)], dim=-1) for site in sites]
        held.clear()
        return torch.stack(by_site)

    with torch.no_grad(), model_view.reading({site: partial(keep, site) for site in sites}):
        yield read


def checked_indices(neurons: Neurons) -> Int[Tensor, "n 2"]:
    """Layer and index of each neuron.

    Raises:
        NeuronSetError: If there is none.
    """
    indices = neurons.indices()
    if not len(indices):
        raise NeuronSetError("The neuron set is empty: there is nothing to look at.")
    return indices


def _pieces(text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """The characters of each token; bytes that go on with a character already shown give an empty string."""
    pieces, shown = [], 0
    for start, end in offsets:
        pieces.append(text[max(start, shown) : end])
        shown = max(shown, end)
    return pieces


def _start_tokens(model_view: ModelView) -> list[int]:
    if model_view.tokenizer is None:
        raise ModelError(f"{model_view.name} has no tokenizer: load it with load_model(..., tokenizer=...).")
    start = start_token(model_view.tokenizer)
    return [] if start is None else [start]


def _padding(model_view: ModelView) -> int:
    tokenizer: Any = model_view.tokenizer
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
