"""Layers of a HookedTransformer that compute in one step what nothing listens inside of.

Attention goes through torch's fused kernel, a layer's first norm is computed once instead of for queries, keys and
values each, and norms, rotations and products need fewer tensors. Every hook point outside of these still fires, in
the same order, with the values of the plain forward but for rounding. A module runs TransformerLens' own forward where
a hook listens inside what would be fused, where gradients are recorded, and with every option that is not known here.

The forwards stand in the modules themselves, beside those of their classes, so that copying, saving and training a
model go on as ever. ``load_model`` compares both with the Hugging Face model, and keeps the plain ones where the fused
ones differ.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from langneurons.models.internals import listens

_SPLIT = ("use_attn_in", "use_split_qkv_input", "use_hook_mlp_in")
_SCORES = ("load_in_4bit", "use_attn_result", "use_attention_sinks", "use_logn_attn", *_SPLIT)


def fuse(model: nn.Module) -> None:
    """Give a HookedTransformer's layers their fused forwards."""
    for module, forward in _fused(model):
        vars(module)["forward"] = partial(forward, module)


def unfuse(model: nn.Module) -> None:
    """Leave a HookedTransformer's layers to the forwards of their classes."""
    for module, _ in _fused(model):
        vars(module).pop("forward", None)


def _fused(model: nn.Module) -> Iterator[tuple[nn.Module, Callable[..., torch.Tensor]]]:
    by_class = {"RMSNorm": _rms_norm, "LayerNorm": _layer_norm, "GatedMLP": _gated_mlp}
    by_class |= dict.fromkeys(("Attention", "GroupedQueryAttention"), _attention)
    by_class |= {"TransformerBlock": _layer}
    for module in model.modules():
        if (forward := by_class.get(type(module).__name__)) is not None:
            yield module, forward


def _plain(devices: int, *points: nn.Module) -> bool:
    """Whether TransformerLens' own forward must run, because somebody may look inside."""
    return torch.is_grad_enabled() or devices > 1 or listens(*points)


def _layer(
    block: nn.Module,
    resid_pre: torch.Tensor,
    shortformer_pos_embed: torch.Tensor | None = None,
    past_kv_cache_entry: object = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    layer: Any = block
    options = {"past_kv_cache_entry": past_kv_cache_entry, "attention_mask": attention_mask}
    unusual = shortformer_pos_embed is not None or any(getattr(layer.cfg, name) for name in _SPLIT)
    if unusual or _plain(layer.cfg.n_devices, layer.ln1):
        return type(layer).forward(layer, resid_pre, shortformer_pos_embed, **options)
    residual = layer.hook_resid_pre(resid_pre)
    normed = layer.ln1(residual)
    attended = layer.attn(query_input=normed, key_input=normed, value_input=normed, **options)
    residual = layer.hook_resid_mid(residual + layer.hook_attn_out(attended))
    return layer.hook_resid_post(residual + layer.apply_mlp(layer.ln2(residual)))


def _rms_norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    norm: Any = module
    if _plain(norm.cfg.n_devices, norm.hook_scale, norm.hook_normalized):
        return type(norm).forward(norm, x)
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * (wide.square().mean(-1, keepdim=True) + norm.eps).rsqrt_()
    return normed.to(norm.cfg.dtype) * norm.w


def _layer_norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    norm: Any = module
    if _plain(norm.cfg.n_devices, norm.hook_scale, norm.hook_normalized) or x.dtype != norm.w.dtype:
        return type(norm).forward(norm, x)
    return functional.layer_norm(x, norm.w.shape, norm.w, norm.b, norm.eps)


def _gated_mlp(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    mlp: Any = module
    if _plain(mlp.cfg.n_devices) or mlp.cfg.is_layer_norm_activation():
        return type(mlp).forward(mlp, x)
    pre = mlp.hook_pre(functional.linear(x, mlp.W_gate.T))
    up = mlp.hook_pre_linear(functional.linear(x, mlp.W_in.T))
    act = mlp.act_fn(pre)
    post = act * up if act is pre else act.mul_(up)
    return functional.linear(mlp.hook_post(post.add_(mlp.b_in)), mlp.W_out.T, mlp.b_out)


def _attention(
    module: nn.Module,
    query_input: torch.Tensor,
    key_input: torch.Tensor,
    value_input: torch.Tensor,
    past_kv_cache_entry: object = None,
    additive_attention_mask: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    attention: Any = module
    cache: Any = past_kv_cache_entry
    cfg = attention.cfg
    unknown = additive_attention_mask is not None or position_bias is not None or not _is_known(vars(cfg))
    if unknown or _plain(cfg.n_devices, attention.hook_attn_scores, attention.hook_pattern):
        inputs = (query_input, key_input, value_input, cache)
        return type(attention).forward(
            attention, *inputs, additive_attention_mask, attention_mask=attention_mask, position_bias=position_bias
        )
    q, k, v = attention.calculate_qkv_matrices(query_input, key_input, value_input)
    before = 0
    if cache is not None:
        before = cache.past_keys.size(1)
        k, v = cache.append(k, v)
    if attention_mask is not None and attention_mask.device.type == "cpu" and bool(attention_mask.all()):
        attention_mask = None
    if cfg.positional_embedding_type == "rotary":
        q = attention.hook_rot_q(_rotated(attention, q, before, attention_mask))
        k = attention.hook_rot_k(_rotated(attention, k, 0, attention_mask))
    window = cfg.window_size if attention.attn_type == "local" else None
    mask = _mask(q.shape[1], before, window, attention_mask, q.device)
    z = functional.scaled_dot_product_attention(
        *(rearrange(part, "batch position head d_head -> batch head position d_head") for part in (q, k, v)),
        attn_mask=mask,
        is_causal=mask is None and not before,
        scale=1 / attention.attn_scale,
        enable_gqa=k.shape[2] != q.shape[2],
    )
    if attention_mask is not None and mask is not None:
        z = z.masked_fill(~mask.any(-1, keepdim=True), 0.0)  # padding that attends to nothing
    z = attention.hook_z(rearrange(z, "batch head position d_head -> batch position head d_head"))
    weights = rearrange(attention.W_O, "head d_head d_model -> d_model (head d_head)")
    return functional.linear(z.to(weights.dtype).flatten(2), weights, attention.b_O)


def _is_known(settings: Mapping[str, object]) -> bool:
    if settings["positional_embedding_type"] not in ("rotary", "standard") or settings["attention_dir"] != "causal":
        return False
    uncapped = settings["attn_scores_soft_cap"] in (-1.0, 0.0) and settings["clip_qkv"] is None
    return uncapped and not any(settings[name] for name in _SCORES)


def _rotated(module: nn.Module, x: torch.Tensor, before: int, attention_mask: torch.Tensor | None) -> torch.Tensor:
    attention: Any = module
    cfg, end = attention.cfg, before + x.shape[1]
    whole = cfg.rotary_dim == x.shape[-1] and end <= len(attention.rotary_cos)
    if not whole or attention_mask is not None or cfg.rotary_adjacent_pairs or cfg.use_dynamic_ntk_rope:
        return attention.apply_rotary(x, before, attention_mask)
    cos, sin = (table[before:end, None].to(x.device) for table in (attention.rotary_cos, attention.rotary_sin))
    half = x.shape[-1] // 2
    rotated = x * cos
    rotated[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return rotated


def _mask(
    queries: int, before: int, window: int | None, attention_mask: torch.Tensor | None, device: torch.device
) -> torch.Tensor | None:
    """Which keys each query attends to; None where all before it count and the kernel needs not be told."""
    keys = before + queries
    narrow = window is not None and window < keys
    if attention_mask is None and not narrow and (not before or queries == 1):
        return None
    key, query = torch.arange(keys, device=device), torch.arange(before, keys, device=device)[:, None]
    mask = key <= query
    if window is not None:
        mask &= key > query - window
    mask = mask[None, None]
    return mask if attention_mask is None else mask & attention_mask.to(device)[:, None, None].bool()
