"""Random Llamas: the models that everything but babel is measured on."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from langneurons.models import load_model
from langneurons.models.checkpoints import load_tokenizer


@dataclass(frozen=True)
class Shape:
    """A Llama's shape; its vocabulary has room for babel's tokens."""

    layers: int
    d_model: int
    d_mlp: int
    heads: int = 8
    key_value_heads: int = 8
    vocabulary: int = 16384
    context: int = 1024


LLAMA_44M = Shape(layers=8, d_model=512, d_mlp=1536)
SMOLLM2 = Shape(layers=30, d_model=576, d_mlp=1536, heads=9, key_value_heads=3, vocabulary=49152, context=2048)
TINY = Shape(layers=2, d_model=64, d_mlp=200)
# Llama 3.1 takes 131,072 tokens; HookedTransformer would hold a mask of as many rows and columns.
LLAMA_8B = Shape(32, 4096, 14336, heads=32, key_value_heads=8, vocabulary=128256, context=2048)
BACKENDS = {"hooked": "HookedTransformer", "bridge": "Bridge"}


def chosen(tiny: bool) -> Shape:
    """The model that is measured on a processor."""
    return TINY if tiny else LLAMA_44M


def of_processors(tiny: bool) -> dict[str, Shape]:
    """The models that are measured on a processor where both kinds matter: few wide layers, and many narrow ones."""
    return {"44M": chosen(tiny), "SmolLM2-135M's shape": TINY if tiny else SMOLLM2}


def shapes(tiny: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """The short and the long batch that forwards are measured on: rows and tokens."""
    return ((1, 16), (2, 32)) if tiny else ((1, 64), (8, 256))


def random_llama(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """Make a Llama of random weights, the same ones each time, in a dtype where it is to lie."""
    config = LlamaConfig(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.context,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def loaded(hf_model: Any, backend: str) -> Any:
    """Load one as ``load_model`` does, with babel's tokenizer."""
    return load_model("benchmark", hf_model=hf_model, tokenizer=_tokenizer(), backend=backend)


@cache
def _tokenizer() -> Any:
    return load_tokenizer("babel")
