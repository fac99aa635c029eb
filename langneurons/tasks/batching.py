"""Texts as token sequences, in batches whose rows do not depend on their neighbours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langneurons.corpora.blocks import LENGTHS
from langneurons.errors import LangNeuronsError, ModelError, TaskError
from langneurons.models import ModelView, start_token, view
from langneurons.settings import whole_number

Tokens = tuple[int, ...]


def batches(
    inputs: Sequence[Tokens], batch_size: int, context_length: int
) -> Iterator[tuple[Int[np.ndarray, " row"], Int[Tensor, "row position"]]]:
    """Right-pad token sequences; causal models need no mask for that.

    Args:
        inputs: Token sequences, none empty or longer than the context.
        batch_size: Sequences per batch.
        context_length: Longest sequence that the model takes, in tokens.

    Yields:
        The ordinals of a batch's sequences, and their tokens.

    Raises:
        TaskError: If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise TaskError(f"A batch has at least one item, not {batch_size}.")
    for length, rows in groups(inputs, batch_size, context_length):
        yield rows, right_padded([inputs[row] for row in rows], length)


def right_padded(sequences: Sequence[Tokens], length: int | None = None) -> Int[Tensor, "row position"]:
    """Pad token sequences on the right, by default to the longest; causal models need no mask for that."""
    length = length or max(map(len, sequences))
    return torch.tensor([[*sequence, *[0] * (length - len(sequence))] for sequence in sequences])


def groups(
    inputs: Sequence[Sequence[int]], batch_size: int, longest: int
) -> Iterator[tuple[int, Int[np.ndarray, " row"]]]:
    """Divide token sequences into batches: only those of one length, rounded up to a multiple of 16, share one.

    The longest come first, so that a batch too big for the memory fails at once.

    Args:
        inputs: Token sequences.
        batch_size: Maximum number of sequences per batch.
        longest: Length in tokens that none exceeds.

    Yields:
        The padded length of a batch, and the ordinals of its sequences.
    """
    batch_size = whole_number(batch_size, "batch_size", TaskError, least=1)
    lengths = np.array([len(tokens) for tokens in inputs], np.int64)
    padded = np.minimum(-(-lengths // LENGTHS) * LENGTHS, longest)
    for length in np.unique(padded)[::-1].tolist():
        group = np.flatnonzero(padded == length)
        for start in range(0, len(group), batch_size):
            yield length, group[start : start + batch_size]


def groups_of_neighbours(
    inputs: Sequence[Sequence[int]], batch_size: int, longest: int
) -> Iterator[tuple[int, Int[np.ndarray, " row"]]]:
    """Divide token sequences into batches of about one length: the shortest is at least half as long as the longest.

    There are fewer batches than ``groups`` makes, which pays where every token that is generated is a forward pass.

    Args:
        inputs: Token sequences.
        batch_size: Maximum number of sequences per batch.
        longest: Length in tokens that none exceeds.

    Yields:
        The padded length of a batch, a multiple of 16, and the ordinals of its sequences; the longest come first.

    Example:
        >>> inputs = [[0] * length for length in (9, 20, 40, 30)]
        >>> [(length, rows.tolist()) for length, rows in groups_of_neighbours(inputs, batch_size=8, longest=64)]
        [(48, [2, 3, 1]), (16, [0])]
    """
    batch_size = whole_number(batch_size, "batch_size", TaskError, least=1)
    lengths = np.array([len(tokens) for tokens in inputs], np.int64)
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        group = order[:batch_size]
        group = group[2 * lengths[group] >= lengths[order[0]]]
        yield min(-(-int(lengths[order[0]]) // LENGTHS) * LENGTHS, longest), group
        order = order[len(group) :]


def tokenizer_of(model_view: ModelView, error: type[LangNeuronsError] = ModelError) -> PreTrainedTokenizerBase:
    """A model's tokenizer.

    Args:
        model_view: View of the model.
        error: Class of the error that says that it has none.

    Raises:
        ModelError: If it has none.
    """
    if model_view.tokenizer is None:
        raise error(f"{model_view.name} has no tokenizer: load it with load_model(..., tokenizer=...).")
    return model_view.tokenizer


def token_ids(model_view: ModelView, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise texts as a model's tokenizer does, without special tokens.

    Raises:
        ModelError: If the model has no tokenizer.
    """
    tokenizer = tokenizer_of(model_view)
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return cast(list[list[int]], encoded["input_ids"])


def front(model_view: ModelView) -> list[int]:
    """The token in front of every text, see ``start_token``, if there is one."""
    start = None if model_view.tokenizer is None else start_token(model_view.tokenizer)
    return [] if start is None else [start]


@contextmanager
def scoring(model: torch.nn.Module) -> Iterator[ModelView]:
    """Score a model inside the block: no gradients, no dropout, attention in the fastest way that is right.

    What is attached to the model stays attached; every module is left as it was.

    Args:
        model: A model returned by ``load_model``.
    """
    model_view = view(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode(), model_view.native_attention():
            yield model_view
    finally:
        for module in training:
            module.training = True
