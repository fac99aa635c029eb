"""The state a model is scored in, whatever is scored."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from langneurons.models import ModelView, view


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
