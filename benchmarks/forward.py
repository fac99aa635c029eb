"""Forwards: HookedTransformer from load_model, as TransformerLens loads it, and plain transformers."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformer_lens import HookedTransformer

from benchmarks.llama import loaded, of_processors, random_llama, shapes
from benchmarks.measuring import Settings, medians
from benchmarks.rows import Row
from langneurons.models import view
from langneurons.models.backends.conversion import hooked_config

OURS = "HookedTransformer forward"
BODY = "HookedTransformer forward without unembedding"
PLAIN = "as TransformerLens loads it"
BASE = "Hugging Face sdpa forward"
HOLDS = (None, 1.1)


def as_transformer_lens_loads(model: Any, hf_model: Any) -> Any:
    """Copy a HookedTransformer's weights into another one, laid out as TransformerLens lays them out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain = HookedTransformer(hooked_config(hf_model.config, torch.float32, "plain"))
    plain.load_state_dict(model.state_dict())
    return plain.eval()


@torch.no_grad()
def rows(settings: Settings) -> Iterator[Row]:
    """Compare forwards of a short and of a long batch, on both kinds of model."""
    for name, shape in of_processors(settings.tiny).items():
        hf_model = random_llama(shape)
        model = loaded(hf_model, "hooked")
        plain = as_transformer_lens_loads(model, hf_model)
        for (batch, length), hold in zip(shapes(settings.tiny), HOLDS, strict=True):
            tokens = torch.randint(0, hf_model.config.vocab_size, (batch, length))
            ways = {
                PLAIN: lambda tokens=tokens, plain=plain: plain(tokens),
                OURS: lambda tokens=tokens, model=model: model(tokens),
                BODY: lambda tokens=tokens, model=model: view(model).forward(tokens, logits=False),
                BASE: lambda tokens=tokens, hf_model=hf_model: hf_model(tokens, use_cache=False),
            }
            taken = medians(ways, settings.rounds * (4 if batch == 1 else 1))
            base, of = taken.pop(BASE), f"{name}, {batch} x {length}"
            for way, seconds in taken.items():
                held = hold if way == OURS else None
                detail = f"{1000 * seconds:.1f} ms"
                yield Row(f"{way}, {of}", BASE, seconds / base, at_most=held, detail=detail)
            what = f"{OURS}, beside TransformerLens', {of}"
            yield Row(what, PLAIN, taken[OURS] / taken[PLAIN], at_most=0.7 if batch == 1 else 1.0)
            logits, expected = model(tokens), plain(tokens)
            difference = 1e5 * float((logits - expected).abs().max() / expected.std())
            what = f"{OURS}, {of}, largest difference of a logit"
            yield Row(what, PLAIN, difference, "hundred-thousandths of a standard deviation", at_most=1.0)
