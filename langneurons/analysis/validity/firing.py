"""How often chosen neurons fire on each token of each language: a second pass over the text, for these neurons only."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from langneurons import storage
from langneurons.corpora import Blocks, Corpus, PackedCorpus, pack
from langneurons.errors import NeuronSetError, StatisticsError
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView, view
from langneurons.recording.accumulation import FOLDS

NO_LETTERS = "punctuation and digits"
UNFINISHED = "bytes of an unfinished character"
_SCRIPT_NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han"}


@dataclass(frozen=True, eq=False)
class TokenFiring:
    """Counts of tokens, and of tokens on which a neuron fired, by language, document fold and token.

    Attributes:
        tokens: One row per language, fold and token id that occurs: ``language``, ``fold``, ``token``, ``script`` (of
            the token's letters), ``count``.
        fired: On how many of these tokens each neuron's activation was above 0.
        neurons: The neurons, flat (layer x width + neuron), increasing.
    """

    tokens: pd.DataFrame
    fired: Shaped[np.ndarray, "row neuron"]
    neurons: Int[np.ndarray, " neuron"]

    def columns(self, chosen: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, " chosen"]:
        """Where some neurons stand in ``fired``.

        Raises:
            NeuronSetError: If one was not watched.
        """
        unwatched = np.setdiff1d(chosen, self.neurons)
        if len(unwatched):
            raise NeuronSetError(f"{len(unwatched):,} of {len(chosen):,} neurons were not watched: count them too.")
        return np.searchsorted(self.neurons, chosen)


def firing_by_token(
    model: torch.nn.Module,
    corpus: Corpus,
    neurons: NeuronSet,
    tokens_per_language: int | None = None,
    context_length: int = 512,
    batch_size: int = 8,
    progress: bool = True,
) -> TokenFiring:
    """Count on which tokens some neurons fire (activation > 0), in every language.

    Args:
        model: From ``load_model``.
        corpus: From ``load_corpus``; shuffle it first if it is sorted.
        neurons: At a site where the sign of an activation means something; choose few.
        tokens_per_language: Counted tokens of each language; None takes as many as the smallest has.
        context_length: Positions a block, a multiple of 16.
        batch_size: Blocks a forward.
        progress: Show a progress bar on standard error.

    Returns:
        The counts.

    Raises:
        NeuronSetError: If the set is empty.
        StatisticsError: If the sign of an activation means nothing at the neurons' site.

    Example:
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> corpus = ln.load_corpus("babel", ["en", "hi", "zh"])
        >>> firing = firing_by_token(model, corpus, neurons, 200, 64, progress=False)
        >>> firing.tokens.groupby("language")["count"].sum().tolist()
        [200, 200, 200]
    """
    seen = view(model)
    _check_site(seen, neurons)
    pieces, fired = [], []
    with (
        storage.temporary_folder() as folder,
        seen.native_attention(),
        _firing(seen, neurons) as fires,
    ):
        packed = pack(corpus, seen.tokenizer, context_length, folder, tokens_per_language)
        blocks = sum(packed.n_blocks(language) for language in packed.languages)
        bar = tqdm(total=blocks, unit="block", disable=not progress)
        for language in packed.languages:
            bar.set_description(language)
            counts = _Counts.empty(packed, language, len(neurons))
            for start in range(0, packed.n_blocks(language), batch_size):
                batch = packed.blocks(language, range(start, min(start + batch_size, packed.n_blocks(language))))
                counts.add(batch, fires(batch))
                bar.update(len(batch.tokens))
            pieces.append(counts.table(language, seen.tokenizer))
            fired.append(counts.fired)
        bar.close()
    return TokenFiring(pd.concat(pieces, ignore_index=True), np.concatenate(fired), _flat(neurons))


def script_of(text: str) -> str:
    r"""The script of most of a text's letters, as Unicode names it.

    Example:
        >>> [script_of(text) for text in (" the", "में", "的", "12,", "\ufffd")]
        ['Latin', 'Devanagari', 'Han', 'punctuation and digits', 'bytes of an unfinished character']
    """
    if "\ufffd" in text:
        return UNFINISHED
    scripts = Counter(_script(letter) for letter in text if unicodedata.category(letter)[0] in "LM")
    return scripts.most_common(1)[0][0] if scripts else NO_LETTERS


@lru_cache(4096)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "unknown").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").partition(" ")[0]
    return _SCRIPT_NAMES.get(name, name.capitalize())


@dataclass(frozen=True, eq=False)
class _Counts:
    """One language's counts while they grow; a code is fold x vocabulary + token id."""

    codes: Int[np.ndarray, " row"]
    count: Int[np.ndarray, " row"]
    fired: Shaped[np.ndarray, "row neuron"]
    vocabulary: int

    @classmethod
    def empty(cls, packed: PackedCorpus, language: str, neurons: int) -> "_Counts":
        indices = range(packed.n_blocks(language))
        batches = [packed.blocks(language, indices[start : start + 512]) for start in range(0, len(indices), 512)]
        vocabulary = 1 + max(int(batch.tokens.max()) for batch in batches)
        codes, count = np.unique(np.concatenate([_codes(batch, vocabulary) for batch in batches]), return_counts=True)
        # What fires on a row is at most its count: the smallest type that holds it keeps the table small.
        return cls(codes, count, np.zeros((len(codes), neurons), np.min_scalar_type(int(count.max()))), vocabulary)

    def add(self, batch: Blocks, fires: Shaped[np.ndarray, "token neuron"]) -> None:
        rows, position = np.unique(np.searchsorted(self.codes, _codes(batch, self.vocabulary)), return_inverse=True)
        every = np.arange(len(position))
        gather = scipy.sparse.csr_array((np.ones(len(every), np.int32), (position, every)), (len(rows), len(every)))
        self.fired[rows] += (gather @ fires.astype(np.int32)).astype(self.fired.dtype)

    def table(self, language: str, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
        fold, token = np.divmod(self.codes, self.vocabulary)
        ids, where = np.unique(token, return_inverse=True)
        scripts = np.array([script_of(str(tokenizer.decode([int(one)]))) for one in ids], dtype=object)
        columns = {"fold": fold, "token": token, "script": scripts[where], "count": self.count}
        return pd.DataFrame({"language": language, **columns})


def _codes(batch: Blocks, vocabulary: int) -> Int[np.ndarray, " token"]:
    counted = batch.counted
    return ((batch.document[counted] % FOLDS) * vocabulary + batch.tokens[counted]).numpy()


@contextmanager
def _firing(seen: ModelView, neurons: NeuronSet) -> Iterator[Callable[[Blocks], np.ndarray]]:
    """Give a function from blocks to which neurons (in the order of flat indices) fire on each counted token."""
    held: dict[int, Tensor] = {}
    wanted = neurons.per_layer()

    def keep(layer: int, values: Tensor) -> None:
        if layer in wanted:
            held[layer] = values[:, :, wanted[layer].to(values.device)] > 0

    def fires(batch: Blocks) -> np.ndarray:
        seen.forward(batch.tokens.to(seen.device), logits=False)
        of_all = torch.cat([held.pop(layer) for layer in sorted(wanted)], dim=-1).cpu()
        return of_all[batch.counted].numpy()

    with torch.no_grad(), seen.reading({neurons.site: keep}):
        yield fires


def _flat(neurons: NeuronSet) -> Int[np.ndarray, " neuron"]:
    layers, indices = neurons.indices().numpy().T
    return layers * neurons.shape[1] + indices


def _check_site(seen: ModelView, neurons: NeuronSet) -> None:
    if not len(neurons):
        raise NeuronSetError("The neuron set is empty: there is nothing to watch.")
    if neurons.site in ("head", "resid_post") or (neurons.site == "post" and seen.gated):
        raise StatisticsError(
            f"At site {neurons.site!r} of {seen.name} the sign of an activation does not say that a neuron fires: "
            "choose neurons at 'act' or 'pre'."
        )
