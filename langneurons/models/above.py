"""Running only the layers above one, from a residual stream that is known already.

The embedding and the blocks up to that layer stay in their places and do nothing but hand the residual stream on, so
everything else of a forward (positions, masks, rotary angles, the alternation of attention kinds, the final norm, the
unembedding) is what it always is, on both classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

ResidualOf = Callable[[torch.Tensor], torch.Tensor | None]

_FORWARD = "forward"
# How many values a block returns beside the residual stream, None where it returns the bare tensor: Bloom's give two.
_BESIDE: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()


@contextmanager
def resumed_above(blocks: Any, embedding: nn.Module, layer: int, residual_of: ResidualOf) -> Iterator[None]:
    """Begin forwards above a layer, inside the block.

    Args:
        blocks: The model's layers.
        embedding: Its token embedding.
        layer: The last layer that is not run; -1 runs all.
        residual_of: From a forward's tokens to the residual stream after the layer; None runs that forward whole.
    """
    resumed: list[torch.Tensor | None] = [None]

    def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        resumed[0] = residual_of(inputs[0])

    skipped = list(blocks)[: layer + 1]
    before = [vars(block).get(_FORWARD) for block in skipped]
    handle = embedding.register_forward_pre_hook(begin)
    try:
        for index, block in enumerate(skipped):
            vars(block)[_FORWARD] = _handing_on(block, resumed, index == layer)
        yield
    finally:
        handle.remove()
        for block, own in zip(skipped, before, strict=True):
            if own is None:
                vars(block).pop(_FORWARD, None)
            else:
                vars(block)[_FORWARD] = own


def _handing_on(block: nn.Module, resumed: list[torch.Tensor | None], last: bool) -> Callable[..., Any]:
    forward = block.forward

    def run(*inputs: Any, **options: Any) -> Any:
        if resumed[0] is None or block not in _BESIDE:
            out = forward(*inputs, **options)
            _BESIDE[block] = len(out) - 1 if isinstance(out, tuple) else None
            if resumed[0] is None:
                return out
        given = inputs[0] if inputs else options["hidden_states"]
        handed = resumed[0].to(given.device) if last else given
        beside = _BESIDE[block]
        return handed if beside is None else (handed, *[None] * beside)

    return run
