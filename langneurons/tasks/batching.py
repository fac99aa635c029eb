"""Texts as token sequences, in batches whose rows do not depend on their neighbours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from langneurons.corpora.blocks import LENGTHS
from langneurons.errors import ModelError, TaskError
from langneurons.models import ModelView, view

Tokens = tuple[int, ...]


def batches(
    inputs: Sequence[Tokens], batch_size: int, context_length: int
) -> Iterator[tuple[Int[np.ndarray, " row"], Int[Tensor, "row position"]]]:
    """Right-pad token sequences; causal models need no mask for that.

    Args:
        inputs: Token sequences, none empty or longer than the context.
        batch_size: Sequences a batch.
        context_length: Positions the model takes.

    Yields:
        The ordinals of a batch's sequences, and their tokens.

    Raises:
        TaskError: If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise TaskError(f"A batch has at least one item, not {batch_size}.")
    for length, rows in groups(inputs, batch_size, context_length):
        tokens = torch.zeros(len(rows), length, dtype=torch.int64)
        for place, row in enumerate(rows):
            tokens[place, : len(inputs[row])] = torch.tensor(inputs[row])
        yield rows, tokens


def groups(
    inputs: Sequence[Sequence[int]], batch_size: int, longest: int
) -> Iterator[tuple[int, Int[np.ndarray, " row"]]]:
    """Divide token sequences into batches: only those of one length, rounded up to a multiple of 16, share one.

    The longest come first, so that a batch too big for the memory fails at once.

    Args:
        inputs: Token sequences.
        batch_size: Sequences a batch, at most.
        longest: Positions that none exceeds.

    Yields:
        The padded length of a batch, and the ordinals of its sequences.
    """
    lengths = np.array([len(tokens) for tokens in inputs], np.int64)
    padded = np.minimum(-(-lengths // LENGTHS) * LENGTHS, longest)
    for length in np.unique(padded)[::-1].tolist():
        group = np.flatnonzero(padded == length)
        for start in range(0, len(group), batch_size):
            yield length, group[start : start + batch_size]


def token_ids(seen: ModelView, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise texts as a model's tokenizer does, without special tokens.

    Raises:
        ModelError: If the model has no tokenizer.
    """
    if seen.tokenizer is None:
        raise ModelError(f"{seen.name} has no tokenizer: load it with load_model(..., tokenizer=...).")
    if not texts:
        return []
    encoded = seen.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return cast(list[list[int]], encoded["input_ids"])


def front(seen: ModelView) -> list[int]:
    """The token in front of every text: the tokenizer's beginning of sequence, if it has one."""
    bos = cast(int | None, seen.tokenizer.bos_token_id) if seen.tokenizer is not None else None
    return [] if bos is None else [bos]


@contextmanager
def scoring(model: torch.nn.Module) -> Iterator[ModelView]:
    """Score a model inside the block: no gradients, no dropout, attention in the fastest way that is right.

    What is attached to the model stays attached; every module is left as it was.

    Args:
        model: From ``load_model``.
    """
    seen = view(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode(), seen.native_attention():
            yield seen
    finally:
        for module in training:
            module.training = True
