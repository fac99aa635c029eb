"""HookedTransformer from a Hugging Face model: its configuration written out, weights shared, nothing processed.

TransformerLens guesses a configuration from a model's name. Here it comes from the Hugging Face configuration alone, so
local folders of any name, any size and any head width load, with the context length that the checkpoint states.
"""

import warnings
from functools import partial
from typing import Any

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from einops import rearrange
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from langneurons.errors import ModelError
from langneurons.models import internals
from langneurons.models.checkpoints import activation_of, architecture_of, context_length_of, sliding_window_of

CONVERTERS = {
    "LlamaForCausalLM": "convert_llama_weights",
    "MistralForCausalLM": "convert_mistral_weights",
    "Qwen2ForCausalLM": "convert_qwen2_weights",
    "Qwen3ForCausalLM": "convert_qwen3_weights",
    "GPT2LMHeadModel": "convert_gpt2_weights",
    "OPTForCausalLM": "convert_opt_weights",
    "Phi3ForCausalLM": "convert_phi3_weights",
    "BloomForCausalLM": "convert_bloom_weights",
}
_ACTIVATIONS = {"silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"}
_WITHOUT_BOS = {"Qwen2ForCausalLM", "Qwen3ForCausalLM", "BloomForCausalLM"}


def reason_against_hooked(config: PretrainedConfig) -> str | None:
    """Say why HookedTransformer cannot hold a model, or None where it can.

    Args:
        config: The model's Hugging Face configuration.

    Returns:
        A clause for an error message, such as ``"its attention has biases"``.
    """
    architecture = architecture_of(config)
    if internals.hooked_class() is None:
        return "TransformerLens 4 has no HookedTransformer (install transformer-lens<4 to have it)"
    if architecture not in CONVERTERS:
        return f"HookedTransformer is not available for {architecture}"
    for holds, reason in _obstacles(config):
        if holds:
            return reason
    return None


def _obstacles(config: PretrainedConfig) -> list[tuple[object, str]]:
    """List what TransformerLens' converters would leave out silently: (whether it applies, what it is)."""
    get = partial(getattr, config)
    is_qwen2 = architecture_of(config) == "Qwen2ForCausalLM"
    rope = get("rope_parameters", None) or {}
    rope_type, width = rope.get("rope_type", "default"), get("hidden_size", None)
    return [
        (activation_of(config) not in _ACTIVATIONS | {"gelu_fast"}, f"it cannot compute {activation_of(config)!r}"),
        (context_length_of(config) > 1 << 20, "its tables of rotary positions would fill the memory"),
        (get("attention_bias", False) and not is_qwen2, "its attention has biases"),
        (get("mlp_bias", False), "its MLP has biases"),
        (rope_type not in ("default", "llama3"), f"it does not scale rotary positions by {rope_type!r}"),
        (rope.get("partial_rotary_factor", 1.0) != 1.0, "only a part of each head is rotated"),
        (get("quantization_config", None) is not None, "its weights are quantised"),
        (get("reorder_and_upcast_attn", False), "it reorders attention"),
        (get("add_cross_attention", False), "it has cross attention"),
        (not get("do_layer_norm_before", True), "it normalises after each layer"),
        (get("_remove_final_layer_norm", False), "it has no final layer norm"),
        (not get("enable_bias", True), "its layers have no biases"),
        (not get("layer_norm_elementwise_affine", True), "its layer norms have no weights"),
        (get("word_embed_proj_dim", width) != width, "it projects its embeddings"),
        (get("apply_residual_connection_post_layernorm", False), "its residual follows the layer norm"),
    ]


def hooked_config(config: PretrainedConfig, dtype: torch.dtype, name: str) -> Any:
    """Write a HookedTransformerConfig from a Hugging Face configuration.

    Args:
        config: The model's configuration, of an architecture in ``CONVERTERS``.
        dtype: The dtype the model computes in.
        name: The model's name; it is never looked up.

    Returns:
        The HookedTransformerConfig, on CPU.
    """
    from transformer_lens import HookedTransformerConfig  # noqa: PLC0415 (absent from TransformerLens 4)

    architecture = architecture_of(config)
    family = {"gpt2": _gpt2, "opt": _opt, "bloom": _bloom}.get(config.model_type, _llama_like)
    activation = activation_of(config)
    return HookedTransformerConfig(
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_ctx=context_length_of(config),
        d_vocab=config.vocab_size,
        act_fn="silu" if activation == "swish" else activation,
        model_name=name,
        original_architecture=architecture,
        default_prepend_bos=architecture not in _WITHOUT_BOS,
        init_weights=False,
        dtype=dtype,
        device="cpu",
        **family(config),
    )


def _llama_like(config: PretrainedConfig) -> dict[str, Any]:
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    grouped = config.num_key_value_heads != config.num_attention_heads
    # The Mistral and Qwen2 converters write grouped key and value weights whatever the number of heads.
    always_grouped = config.model_type in ("mistral", "qwen2")
    return {
        "d_head": d_head,
        "d_mlp": config.intermediate_size,
        "n_key_value_heads": config.num_key_value_heads if grouped or always_grouped else None,
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        "use_qk_norm": config.model_type == "qwen3",
        **_rotary(config),
        **_sliding_window(config),
    }


def _rotary(config: PretrainedConfig) -> dict[str, Any]:
    rope = config.rope_parameters or {}
    base = {"rotary_base": rope.get("rope_theta", 10000.0)}
    if rope.get("rope_type", "default") != "llama3":
        return base
    return base | {
        "use_NTK_by_parts_rope": True,
        "NTK_original_ctx_len": rope.get("original_max_position_embeddings", config.max_position_embeddings),
        "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
        "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
        "NTK_by_parts_factor": rope["factor"],
    }


def _sliding_window(config: PretrainedConfig) -> dict[str, Any]:
    window = sliding_window_of(config)
    if window is None:
        return {}
    layer_types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    local = ["local" if layer == "sliding_attention" else "global" for layer in layer_types]
    return {"use_local_attn": True, "window_size": window, "attn_types": local}


def _gpt2(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "d_head": config.n_embd // config.n_head,
        "d_mlp": config.n_inner or 4 * config.n_embd,
        "eps": config.layer_norm_epsilon,
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
    }


def _opt(config: PretrainedConfig) -> dict[str, Any]:
    return {"d_head": config.hidden_size // config.num_attention_heads, "d_mlp": config.ffn_dim, "eps": 1e-5}


def _bloom(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "d_head": config.hidden_size // config.n_head,
        "d_mlp": 4 * config.hidden_size,
        "eps": config.layer_norm_epsilon,
        "post_embedding_ln": True,
        "positional_embedding_type": "alibi",
    }


def hooked_transformer(
    hf_model: "transformers.PreTrainedModel", tokenizer: PreTrainedTokenizerBase | None, name: str, share_weights: bool
) -> nn.Module:
    """Turn a Hugging Face model into a HookedTransformer with the same weights, unprocessed.

    Every matrix is stored so that the transpose a forward asks for is already contiguous: TransformerLens then copies
    nothing, and the logits of its own forward stay equal to the bit.

    Args:
        hf_model: The model, on any device.
        tokenizer: Its tokenizer, already prepared for TransformerLens.
        name: The model's name.
        share_weights: Whether to take over the tensors of ``hf_model``, which must not be used afterwards, instead of
            copying them.

    Returns:
        The HookedTransformer, in evaluation mode, on the device of ``hf_model``.
    """
    config, dtype, device = hf_model.config, hf_model.dtype, hf_model.device
    constructor = internals.hooked_class()
    if constructor is None:
        raise ModelError(f"Cannot load {name!r} as HookedTransformer: {reason_against_hooked(config)}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model: Any = constructor(hooked_config(config, dtype, name), move_to_device=False)
    if tokenizer is not None:
        model.set_tokenizer(tokenizer)
    model.cfg.device = str(device)  # where weights are converted
    with torch.no_grad():
        converted = internals.weight_converter(CONVERTERS[architecture_of(config)])(hf_model, model.cfg)
    if model.cfg.positional_embedding_type == "alibi":
        converted["pos_embed.W_pos"] = torch.zeros_like(model.pos_embed.W_pos)
    _load(model, internals.complete(model, converted), share_weights)
    model.to(device, print_details=False)
    return model.eval()


def _load(model: nn.Module, weights: dict[str, torch.Tensor], share_weights: bool) -> None:
    own = dict(model.named_parameters())
    state = {name: weight.detach() for name, weight in weights.items() if name in own}
    tied = state["embed.W_E"].untyped_storage().data_ptr() == state["unembed.W_U"].untyped_storage().data_ptr()
    for name, weight in state.items():
        shared = share_weights and not (tied and name == "unembed.W_U")
        state[name] = cheap_layout(name, weight if shared else weight.clone())
    model.load_state_dict(state, strict=False, assign=True)


def cheap_layout(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Lay out a weight of a HookedTransformer so that the transpose that each forward takes of it costs nothing.

    Args:
        name: The weight's name in the state dict, such as ``"blocks.0.mlp.W_gate"``.
        weight: The weight, as a view of what the Hugging Face model stores.

    Returns:
        The same values and shape, with other strides where that saves a copy.
    """
    matrix = name.rsplit(".", 1)[-1].lstrip("_")
    if matrix in ("W_Q", "W_K", "W_V"):
        return _stored_as("head d_head d_in", weight, "head d_in d_head")
    if matrix == "W_O":
        return _stored_as("d_out head d_head", weight, "head d_head d_out")
    if matrix in ("W_gate", "W_in", "W_out", "W_U"):
        return weight if weight.is_contiguous() else _stored_as("d_out d_in", weight, "d_in d_out")
    return weight.contiguous()


def _stored_as(storage: str, weight: torch.Tensor, axes: str) -> torch.Tensor:
    return rearrange(rearrange(weight, f"{axes} -> {storage}").contiguous(), f"{storage} -> {axes}")
