"""Tiny random mixtures of experts, one of each architecture that is read."""

from typing import Any

from transformers import AutoConfig, PreTrainedModel

from tests.tiny_models import VOCABULARY, random_model

_DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
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
    "qwen3-moe-dense": {
        "model_type": "qwen3_moe",
        **_SMALL,
        "num_experts": 6,
        "head_dim": 12,
        "mlp_only_layers": [0],
    },
}


def tiny_experts(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build a random mixture of experts in memory."""
    settings = {**_DECODER, **EXPERTS[name], **overrides}
    return random_model(AutoConfig.for_model(settings.pop("model_type"), **settings), seed)
