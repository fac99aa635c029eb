"""A description tells from the configuration alone what loading then finds."""

import pytest
import torch

from langneurons.errors import ModelError
from langneurons.models import describe
from tests.backends import BACKENDS
from tests.tiny_models import tiny_config


def test_it_agrees_with_the_loaded_model(loaded):
    told, seen = describe(loaded.folder), loaded.view
    assert told.neurons == {site: seen.width(site) for site in seen.sites}
    assert (told.layers, told.context_length, told.dtype) == (seen.n_layers, seen.context_length, seen.dtype)
    assert told.parameters == sum(weight.numel() for weight in loaded.hf_model.parameters())
    assert told.memory_to_load["bridge"] == 4 * told.parameters


def test_a_published_shape_is_described_without_weights():
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = tiny_config(
        "llama", **shape, num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072, dtype=torch.bfloat16
    )
    config.architectures = ["LlamaForCausalLM"]
    told = describe("Llama-3.1-8B", config)
    assert told.parameters == 8_030_261_248
    assert told.memory_to_load == dict.fromkeys(BACKENDS, 16_060_522_496)
    assert (told.backend, told.context_length, told.dtype) == (BACKENDS[0], 131072, torch.bfloat16)


def test_what_cannot_be_loaded_is_not_described(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        describe(tmp_path / "nothing")
