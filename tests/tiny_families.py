"""Tiny configurations of the families that users load, each with what sets the family apart."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from langneurons.models import load_model
from tests.tiny_models import DECODER, SPECIAL, random_model

_EIGHT_BY_FOUR = {**DECODER, "num_key_value_heads": 4}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1],
    "long_factor": [1.5, 2.0],
    "factor": 2.0,
    "original_max_position_embeddings": 48,
    "partial_rotary_factor": 0.5,
}
_OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "word_embed_proj_dim": 32,
    "tie_word_embeddings": True,
}
_ALTERNATING = ["sliding_attention", "full_attention"]
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
_QWEN_IMAGES = {"image_token_id": 100, "video_token_id": 99, "vision_start_token_id": 98, "vision_end_token_id": 97}
_QWEN_TEXT = {
    **DECODER,
    **SPECIAL,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama-2": {"model_type": "llama", **_EIGHT_BY_FOUR},
    "llama-3.1": {"model_type": "llama", **DECODER, "rope_parameters": _LLAMA3_ROPE},
    "llama-3.2": {"model_type": "llama", **DECODER, "rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True},
    "tinyllama": {"model_type": "llama", **DECODER, "num_key_value_heads": 1},
    "eurollm": {"model_type": "llama", **DECODER, "head_dim": 8},
    "smollm2": {"model_type": "llama", **DECODER, "tie_word_embeddings": True},
    "smollm3": {"model_type": "smollm3", **DECODER, "no_rope_layers": [1, 0], "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **DECODER, "sliding_window": 16},
    "mistral-nemo": {"model_type": "mistral", **DECODER, "head_dim": 12, "sliding_window": None},
    "ministral": {
        "model_type": "ministral",
        **DECODER,
        "head_dim": 12,
        "sliding_window": 16,
        "layer_types": _ALTERNATING,
    },
    "ministral-3": {"model_type": "ministral3", **DECODER, "head_dim": 12},
    "qwen2.5": {"model_type": "qwen2", **DECODER},
    "qwen2.5-small": {"model_type": "qwen2", **DECODER, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **DECODER, "head_dim": 12},
    "qwen3-yarn": {"model_type": "qwen3", **DECODER, "head_dim": 12, "rope_parameters": _YARN},
    "gemma": {"model_type": "gemma", **DECODER, "head_dim": 12, "tie_word_embeddings": True},
    "gemma-2": {
        "model_type": "gemma2",
        **DECODER,
        "head_dim": 12,
        "sliding_window": 16,
        "query_pre_attn_scalar": 12,
        "tie_word_embeddings": True,
    },
    "gemma-3": {
        "model_type": "gemma3_text",
        **DECODER,
        "head_dim": 12,
        "sliding_window": 16,
        "layer_types": _ALTERNATING,
        "tie_word_embeddings": True,
    },
    "command-r": {"model_type": "cohere", **DECODER, "tie_word_embeddings": True},
    "command-r-plus": {"model_type": "cohere", **DECODER, "use_qk_norm": True, "tie_word_embeddings": True},
    "command-r7b": {
        "model_type": "cohere2",
        **DECODER,
        "sliding_window": 16,
        "layer_types": _ALTERNATING,
        "tie_word_embeddings": True,
    },
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "tie_word_embeddings": True},
    "xglm": {
        "model_type": "xglm",
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "attention_heads": 4,
        "max_position_embeddings": 96,
        "tie_word_embeddings": True,
    },
    "falcon-7b": {
        "model_type": "falcon",
        **DECODER,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "tie_word_embeddings": True,
    },
    "falcon-40b": {
        "model_type": "falcon",
        **DECODER,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "bias": False,
        "tie_word_embeddings": True,
    },
    "falcon-rw": {
        "model_type": "falcon",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "alibi": True,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
        "tie_word_embeddings": True,
    },
    "mpt": {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96, "no_bias": True},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 96,
        "tie_word_embeddings": True,
    },
    "opt": _OPT,
    "opt-350m": {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "gpt-neo": {
        "model_type": "gpt_neo",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
        "max_position_embeddings": 96,
        "tie_word_embeddings": True,
    },
    "gpt-j": {
        "model_type": "gptj",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 4,
        "n_positions": 96,
    },
    "pythia": {"model_type": "gpt_neox", **_EIGHT_BY_FOUR, "use_parallel_residual": True},
    "gpt-neox-serial": {"model_type": "gpt_neox", **_EIGHT_BY_FOUR, "use_parallel_residual": False},
    "stablelm": {"model_type": "stablelm", **_EIGHT_BY_FOUR},
    "stablelm-2": {
        "model_type": "stablelm",
        **DECODER,
        "qk_layernorm": True,
        "use_qkv_bias": True,
        "use_parallel_residual": True,
    },
    "phi-2": {"model_type": "phi", **_EIGHT_BY_FOUR},
    "phi-3": {"model_type": "phi3", **_EIGHT_BY_FOUR, "sliding_window": 16},
    "phi-4": {"model_type": "phi3", **DECODER, "sliding_window": None},
    "phi-4-mini": {
        "model_type": "phi3",
        **DECODER,
        "sliding_window": None,
        "rope_parameters": _LONGROPE,
        "original_max_position_embeddings": 48,
        "tie_word_embeddings": True,
    },
    "olmo": {"model_type": "olmo", **_EIGHT_BY_FOUR, "clip_qkv": 8.0},
    "olmo-2": {"model_type": "olmo2", **DECODER},
    "olmo-3": {"model_type": "olmo3", **DECODER, "sliding_window": 16, "layer_types": _ALTERNATING},
    "starcoder2": {"model_type": "starcoder2", **DECODER, "sliding_window": 16},
    "granite": {"model_type": "granite", **DECODER, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "glm-4": {"model_type": "glm", **DECODER, "head_dim": 8},
    "glm-4-0414": {"model_type": "glm4", **DECODER, "head_dim": 8},
    "nemotron": {"model_type": "nemotron", **DECODER},
    "exaone-4": {"model_type": "exaone4", **DECODER, "sliding_window": 16, "layer_types": _ALTERNATING},
    "seed-oss": {"model_type": "seed_oss", **DECODER, "head_dim": 12},
    "apertus": {"model_type": "apertus", **DECODER},
    "helium": {"model_type": "helium", **DECODER, "head_dim": 8},
    "gpt-bigcode": {"model_type": "gpt_bigcode", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
}

HOOKED = (
    *("llama-2", "llama-3.1", "llama-3.2", "tinyllama", "eurollm", "smollm2", "mistral", "mistral-nemo", "qwen2.5"),
    *("qwen2.5-small", "qwen3", "bloom", "gpt2", "opt", "phi-3", "phi-4"),
)
WITH_IMAGES: dict[str, dict[str, Any]] = {
    "gemma-3-vision": {
        "model_type": "gemma3",
        "text_config": {**FAMILIES["gemma-3"], **SPECIAL},
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
        "image_token_index": 100,
        "mm_tokens_per_image": 1,
        "tie_word_embeddings": True,
    },
    "mistral-3": {
        "model_type": "mistral3",
        "text_config": {**FAMILIES["mistral-nemo"], **SPECIAL},
        "vision_config": {"model_type": "pixtral", **_VISION},
        "image_token_index": 100,
    },
    "ministral-3-vision": {
        "model_type": "mistral3",
        "text_config": {**FAMILIES["ministral-3"], **SPECIAL},
        "vision_config": {"model_type": "pixtral", **_VISION},
        "image_token_index": 100,
    },
    "qwen2.5-vl": {
        "model_type": "qwen2_5_vl",
        "text_config": _QWEN_TEXT,
        "vision_config": {**_QWEN_VISION, "patch_size": 8, "fullatt_block_indexes": [0]},
        **_QWEN_IMAGES,
    },
    "qwen3-vl": {
        "model_type": "qwen3_vl",
        "text_config": {**_QWEN_TEXT, "head_dim": 8},
        "vision_config": {
            **_QWEN_VISION,
            "patch_size": 8,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **_QWEN_IMAGES,
    },
}
_SMALL = {"moe_intermediate_size": 24}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": None},
    "qwen3-moe": {"model_type": "qwen3_moe", **_SMALL, "num_experts": 6, "head_dim": 12, "norm_topk_prob": True},
    "olmoe": {"model_type": "olmoe", "num_experts": 6, "num_key_value_heads": 4},
    "gpt-oss": {"model_type": "gpt_oss", "num_local_experts": 4, "head_dim": 12, "sliding_window": 16},
    "granite-moe": {"model_type": "granitemoe", "num_local_experts": 4},
    "flex-olmo": {"model_type": "flex_olmo", "num_experts": 4},
    "minimax-m2": {"model_type": "minimax_m2", "num_local_experts": 4, "head_dim": 8, "rotary_dim": 8},
    "qwen2-moe": {"model_type": "qwen2_moe", **_SMALL, "num_experts": 6, "shared_expert_intermediate_size": 40},
    "glm-4-moe": {"model_type": "glm4_moe", **_SMALL, "n_routed_experts": 8, "head_dim": 12},
    "ernie-4.5-moe": {"model_type": "ernie4_5_moe", **_SMALL, "moe_num_experts": 4, "moe_layer_start_index": 1},
    "qwen3-moe-dense": {"model_type": "qwen3_moe", **_SMALL, "num_experts": 6, "head_dim": 12, "mlp_only_layers": [0]},
}


def tiny_family(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build a random model of a family, in memory."""
    if name in WITH_IMAGES:
        settings = {**WITH_IMAGES[name], **overrides}
    elif name in EXPERTS:
        settings = {**DECODER, **SPECIAL, "num_experts_per_tok": 2, **EXPERTS[name], **overrides}
    else:
        settings = {**SPECIAL, "tie_word_embeddings": False, **FAMILIES[name], **overrides}
    return random_model(AutoConfig.for_model(settings.pop("model_type"), **settings), seed)


def loaded_once(new_folder: Callable[[str], Path], save: Callable[[str, Path], None]) -> Callable[[str, str], Any]:
    """A function that loads a family's model with a backend, from a folder that ``save`` fills, once for each."""

    @cache
    def load(name: str, backend: str) -> Any:
        folder = new_folder("family")
        save(name, folder)
        return load_model(folder, backend=backend)

    return load
