"""The classification head of Mondal et al. 2025, which reads padding, and their filter of long examples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langneurons import storage
from langneurons.errors import ModelError, TaskError
from langneurons.models import ModelView, view
from langneurons.tasks.batching import scoring
from langneurons.tasks.heads import ClassificationHead, LabelledPairs, Pair, items_of, pairs_of

POSITIONS = 256


@dataclass(frozen=True, eq=False, repr=False)
class PadPositionHead:
    """A linear layer on the hidden state at the last position of ``premise <eos> hypothesis`` padded to 256 positions.

    What is wrong: that position is padding, unless the text is too long; the hidden state there sees the text from as
    far away as the text is short, at a token that means nothing, and a patch writes at it too. ``ClassificationHead``
    reads the last real token.

    Padding is on the right, its token the tokenizer's own or, where that has none, the end-of-sequence token; no
    position attends to it. Departure: the published layer is trained together with LoRA weights.

    Source: github.com/soumenkm/LangSpecificNeurons, code/dataset.py (``XNLIDatasetHF``) and code/models.py
    (``ModelForCLS``).

    Args:
        linear: The layer.
        positions: How many positions are read; 256 in the paper.

    Example:
        >>> from langneurons.tasks.padded_head import PadPositionHead
        >>> linear = ln.tasks.ClassificationHead(torch.eye(3, 160), torch.zeros(3), ("entailment", "neutral", "other"))
        >>> PadPositionHead(linear, positions=32).logits(model, [("It rains.", "It is wet.")]).shape
        torch.Size([1, 3])
    """

    linear: ClassificationHead
    positions: int = POSITIONS

    @classmethod
    def fit(
        cls,
        model: torch.nn.Module,
        task: LabelledPairs,
        languages: Iterable[str] | None = None,
        batch_size: int = 8,
        penalty: float = 10.0,
        positions: int = POSITIONS,
    ) -> "PadPositionHead":
        """Fit the head on a model that stays as it is, as ``ClassificationHead.fit`` does.

        Args:
            model: From ``load_model``; whatever is attached to it counts.
            task: ``XNLI``, or anything with tables of premise, hypothesis and label.
            languages: Which to fit on, together; None is all.
            batch_size: Pairs a forward.
            penalty: Strength of the L2 penalty on the weights of standardised hidden states.
            positions: How many positions are read.

        Raises:
            LanguageError: If the task has no such language.
            TaskError: If there are fewer than two labels, or the tokenizer has no end-of-sequence token.
        """
        table = items_of(task, languages)
        features = last_position(model, pairs_of(table), batch_size, positions)
        linear = ClassificationHead.of_features(features, list(table["label"]), view(model).fingerprint, penalty)
        return cls(linear, positions)

    def __repr__(self) -> str:
        return f"PadPositionHead({self.linear!r}, position {self.positions - 1})"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the logits."""
        return self.linear.labels

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the layer and of what it reads."""
        return storage.fingerprint("pad position", str(self.positions), self.linear.fingerprint)

    def logits(self, model: torch.nn.Module, pairs: Sequence[Pair], batch_size: int = 8) -> Float[Tensor, "item label"]:
        """Score every label of every (premise, hypothesis), with whatever is attached to the model at this moment.

        Args:
            model: The model the head was fitted on.
            pairs: (premise, hypothesis) each.
            batch_size: Pairs a forward.

        Returns:
            Logits in single precision, on CPU.

        Raises:
            TaskError: If the head belongs to another model, or the tokenizer has no end-of-sequence token.
        """
        self.linear.check_fits(view(model))
        return self.linear.read(last_position(model, pairs, batch_size, self.positions))

    def cut(self, model: torch.nn.Module, pairs: Sequence[Pair]) -> Bool[np.ndarray, " item"]:
        """Which pairs have more tokens than are read."""
        return _lengths(pairs, tokenizer_of(view(model))) > self.positions


def last_position(
    model: torch.nn.Module, pairs: Sequence[Pair], batch_size: int = 8, positions: int = POSITIONS
) -> Float[Tensor, "item d_model"]:
    """Read the hidden state at the last position of padded pairs, normally that of a padding token.

    What is wrong: see PadPositionHead.

    Args:
        model: From ``load_model``; whatever is attached to it at this moment counts.
        pairs: (premise, hypothesis) each.
        batch_size: Pairs a forward.
        positions: Texts are padded on the right, or cut, to as many tokens.

    Returns:
        The residual stream after the final norm, in single precision, on CPU.

    Raises:
        ModelError: If the model has no tokenizer.
        TaskError: If it takes fewer positions, its tokenizer has no end-of-sequence token, or the batch size is below
            1.
    """
    seen = view(model)
    if not 1 <= positions <= seen.context_length:
        raise TaskError(f"{seen.name!r} takes 1 to {seen.context_length} positions, so a head cannot read {positions}.")
    if batch_size < 1:
        raise TaskError(f"A batch has at least one item, not {batch_size}.")
    tokens, attention_mask = padded_pairs(pairs, tokenizer_of(seen), positions)
    found = torch.empty(len(tokens), seen.model.cfg.d_model)
    with scoring(model):
        for start in range(0, len(tokens), batch_size):
            rows = slice(start, start + batch_size)
            found[rows] = seen.hidden(tokens[rows], attention_mask[rows])[:, -1].float().cpu()
    return found


def kept_by_length(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, limit: int = POSITIONS
) -> Bool[np.ndarray, " item"]:
    """Tell which pairs the published filter keeps: those of fewer than 256 tokens.

    What is wrong: what is long depends on the tokenizer and the language, so that languages and models are scored on
    different items.

    Source: github.com/soumenkm/LangSpecificNeurons, code/dataset.py, ``XNLIDatasetHF``.

    Args:
        pairs: (premise, hypothesis) each.
        tokenizer: The model's.
        limit: Pairs of as many tokens, or more, are dropped; special tokens count.

    Returns:
        True where a pair is kept.

    Raises:
        TaskError: If the tokenizer has no end-of-sequence token.

    Example:
        >>> from langneurons.tasks.padded_head import kept_by_length
        >>> kept_by_length([("It rains.", "It is wet."), ("It rains. " * 50, "It is wet.")], model.tokenizer, 32)
        array([ True, False])
    """
    return _lengths(pairs, tokenizer) < limit


def tokenizer_of(seen: ModelView) -> PreTrainedTokenizerBase:
    """A model's tokenizer.

    Raises:
        ModelError: If it has none.
    """
    if seen.tokenizer is None:
        raise ModelError(f"{seen.name} has no tokenizer: load it with load_model(..., tokenizer=...).")
    return seen.tokenizer


def _token_ids(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if tokenizer.eos_token is None:
        raise TaskError("The tokenizer has no end-of-sequence token, which stands between premise and hypothesis.")
    texts = [f"{premise} {tokenizer.eos_token} {hypothesis}" for premise, hypothesis in pairs]
    return cast(list[list[int]], tokenizer(texts, verbose=False)["input_ids"]) if texts else []


def _lengths(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> Int[np.ndarray, " item"]:
    return np.array([len(tokens) for tokens in _token_ids(pairs, tokenizer)], np.int64)


def padded_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, positions: int
) -> tuple[Int[Tensor, "item position"], Int[Tensor, "item position"]]:
    """Tokenise pairs and pad or cut each to as many positions.

    Returns:
        Token ids, and 0 for padding, 1 for text.
    """
    read = [torch.tensor(tokens[:positions]) for tokens in _token_ids(pairs, tokenizer)]
    own = cast(int | None, tokenizer.pad_token_id)
    tokens = torch.full((len(read), positions), cast(int, tokenizer.eos_token_id) if own is None else own)
    attention_mask = torch.zeros_like(tokens)
    for row, ids in enumerate(read):
        tokens[row, : len(ids)], attention_mask[row, : len(ids)] = ids, 1
    return tokens, attention_mask
