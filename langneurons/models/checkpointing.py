"""Gradient checkpointing: a layer's activations are computed again for the backward pass instead of being kept.

A layer of both classes is a module whose hook points lie inside, so running it again runs its hooks again: what they
write is written again, and gradients stay what they are.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

_FORWARD = "forward"


@contextmanager
def checkpointed(blocks: Any, config: Any, again: Callable[[], Any]) -> Iterator[None]:
    """Keep only the input of each block for the backward pass, inside the block.

    Args:
        blocks: The model's layers.
        config: Of the Hugging Face model that runs, if one does: a key-value cache would be filled twice.
        again: Makes a context that a block runs in when it runs for the second time.
    """
    before = [vars(block).get(_FORWARD) for block in blocks]
    use_cache = getattr(config, "use_cache", False)
    try:
        for block in blocks:
            vars(block)[_FORWARD] = _twice(block.forward, again)
        if use_cache:
            config.use_cache = False
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                vars(block).pop(_FORWARD, None)
            else:
                vars(block)[_FORWARD] = own
        if use_cache:
            config.use_cache = use_cache


def _twice(forward: Callable[..., Any], again: Callable[[], Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        contexts = functools.partial(_contexts, again)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)

    return run


def _contexts(again: Callable[[], Any]) -> tuple[Any, Any]:
    return nullcontext(), again()
