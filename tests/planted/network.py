"""What the planted models share: a Llama of random weights that writes little, so that all layers read the words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import langneurons as ln

LAYERS, HIDDEN = 2, 64
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


@dataclass(frozen=True)
class PlantedNetwork:
    """A Llama in which it is known what some neurons do.

    Attributes:
        hf_model: The model of transformers.
        tokenizer: Its tokenizer, of whole words.
    """

    hf_model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast

    def model(self, backend: str = "auto") -> Any:
        """Load it."""
        return ln.load_model("planted", hf_model=self.hf_model, tokenizer=self.tokenizer, backend=backend)


def directions(generator: torch.Generator) -> Tensor:
    """Draw orthogonal directions of the hidden space, one per row."""
    return torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator)).Q


def embedding(vocabulary: Mapping[str, Tensor], noise: float, generator: torch.Generator) -> Tensor:
    """Stack the words' vectors, with noise of an SD."""
    return torch.stack(list(vocabulary.values())) + noise * torch.randn(len(vocabulary), HIDDEN, generator=generator)


@torch.no_grad()
def random_llama(
    vocabulary: int,
    width: int,
    generator: torch.Generator,
    *,
    sd: float = 0.1,
    attention: float = 0.03,
    mlp: float = 0.03,
    positions: int = 64,
) -> LlamaForCausalLM:
    """Build a Llama of random weights.

    Args:
        vocabulary: Words.
        width: Neurons per layer.
        generator: What weights are drawn from.
        sd: SD of the weights.
        attention: Factor of what attention writes.
        mlp: Factor of what neurons write.
        positions: Tokens that it reads at most.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.copy_(1 + 0.05 * torch.randn(weight.shape, generator=generator))
        if weight.ndim == 2:
            weight.copy_(sd * torch.randn(weight.shape, generator=generator))
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(attention)
        layer.mlp.down_proj.weight.mul_(mlp)
    return model


@torch.no_grad()
def set_gate(layer: Any, neuron: int, direction: Tensor) -> None:
    """Let a neuron of a layer fire on words that point in a direction."""
    layer.mlp.gate_proj.weight[neuron] = 2 * direction / layer.post_attention_layernorm.weight
