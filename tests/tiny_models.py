"""Tiny random models of every architecture, with random norm weights and biases, and a word-level tokenizer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from langneurons.models.checkpoints import model_class

VOCABULARY = 101
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **DECODER},
    "llama-head-dim": {"model_type": "llama", **DECODER, "head_dim": 12, "num_key_value_heads": 4},
    "llama3-rope": {"model_type": "llama", **DECODER, "rope_parameters": _LLAMA3_ROPE},
    "mistral": {"model_type": "mistral", **DECODER, "head_dim": 12, "sliding_window": 16},
    "qwen2": {"model_type": "qwen2", **DECODER},
    "qwen3": {"model_type": "qwen3", **DECODER, "head_dim": 12},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
        "word_embed_proj_dim": 32,
        "dropout": 0.0,
    },
    "phi3": {"model_type": "phi3", **DECODER, "sliding_window": None},
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": 96},
    "gemma2": {"model_type": "gemma2", **DECODER, "head_dim": 12, "sliding_window": 16},
    "gemma3": {"model_type": "gemma3_text", **DECODER, "head_dim": 12, "sliding_window": 16},
}
HOOKED = ["llama", "llama-head-dim", "llama3-rope", "mistral", "qwen2", "qwen3", "gpt2", "opt", "phi3", "bloom"]
ARCHITECTURES = list(_CONFIGS)


def tiny_config(architecture: str, **overrides: Any) -> Any:
    settings = {
        **_CONFIGS[architecture],
        **SPECIAL,
        "tie_word_embeddings": architecture in ("gpt2", "opt", "bloom", "gemma2", "gemma3"),
        **overrides,
    }
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def tiny_model(architecture: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build a random model in memory; every norm weight and bias is random too, so that none can be left out unseen."""
    return random_model(tiny_config(architecture, **overrides), seed)


def random_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a model of a configuration whose weights, of norms and biases too, are random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config).from_config(config).eval()
    config.architectures = [type(model).__name__]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                centre = 1.0 if name.endswith("weight") and "gemma" not in config.model_type else 0.0
                weight.copy_(centre + 0.3 * torch.randn(weight.shape, generator=generator))
            else:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer of whitespace-separated words, <pad>, <s>, </s> and <unk> among them."""
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, add_bos_token=True, **special)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of the words w4 to w100, with <pad>, <s>, </s> and <unk>."""
    return word_tokenizer(["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(4, VOCABULARY))])


def save_tiny(folder: Path, architecture: str, seed: int = 0, tokenizer: bool = True, **overrides: Any) -> Path:
    """Save a tiny model, and its tokenizer unless told otherwise, into a folder."""
    tiny_model(architecture, seed, **overrides).save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return Path(folder)


TURN_END = "<|end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} <|{{ message['role'] }}|> {{ message['content'] | trim }} <|end|>"
    "{% endfor %}{% if add_generation_prompt %} <|assistant|> {% endif %}"
)


def chat_tokenizer(turn_end: int = VOCABULARY - 1) -> PreTrainedTokenizerFast:
    """Build a tokenizer with a chat template: w97 to w99 are the roles, and one word is the end of a turn."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(4, VOCABULARY))]
    words[97:100] = ["<|system|>", "<|user|>", "<|assistant|>"]
    words[turn_end] = TURN_END
    tokenizer = word_tokenizer(words)
    tokenizer.add_special_tokens({"additional_special_tokens": [*words[97:100], TURN_END]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
