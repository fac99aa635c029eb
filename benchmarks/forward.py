"""Forwards: HookedTransformer from load_model, as TransformerLens loads it, and plain transformers."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformer_lens import HookedTransformer

from benchmarks.llama import chosen, loaded, random_llama, shapes
from benchmarks.measuring import Settings, medians
from benchmarks.rows import Row
from langneurons.models import view
from langneurons.models.backends.conversion import hooked_config

OURS = "HookedTransformer forward"
BASE = "as TransformerLens loads it"


def as_transformer_lens_loads(model: Any, hf_model: Any) -> Any:
    """Copy a HookedTransformer's weights into another one, laid out as TransformerLens lays them out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain = HookedTransformer(hooked_config(hf_model.config, torch.float32, "plain"))
    plain.load_state_dict(model.state_dict())
    return plain.eval()


@torch.no_grad()
def rows(settings: Settings) -> Iterator[Row]:
    """Compare forwards of a short and of a long batch."""
    hf_model = random_llama(chosen(settings.tiny))
    model = loaded(hf_model, "hooked")
    plain = as_transformer_lens_loads(model, hf_model)
    for (batch, length), hold in zip(shapes(settings.tiny), (0.7, 1.0), strict=True):
        tokens = torch.randint(0, hf_model.config.vocab_size, (batch, length))
        ways = {
            BASE: lambda tokens=tokens: plain(tokens),
            OURS: lambda tokens=tokens: model(tokens),
            "HookedTransformer forward without unembedding": lambda tokens=tokens: view(model).forward(
                tokens, logits=False
            ),
            "Hugging Face sdpa forward": lambda tokens=tokens: hf_model(tokens, use_cache=False),
        }
        taken = medians(ways, settings.rounds * (4 if batch == 1 else 1))
        base = taken.pop(BASE)
        for name, seconds in taken.items():
            held = hold if name == OURS else None
            detail = f"{1000 * seconds:.1f} ms"
            yield Row(f"{name}, {batch} x {length}", BASE, seconds / base, at_most=held, detail=detail)
        difference = float((model(tokens) - plain(tokens)).abs().max())
        what = f"{OURS}, {batch} x {length}, largest difference of a logit"
        yield Row(what, BASE, difference, "", at_most=0.0)
