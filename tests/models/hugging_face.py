"""The naive oracle: torch hooks on the modules of the Hugging Face model itself, architecture by architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from langneurons.models import SITES


@dataclass
class Parts:
    gate: nn.Module
    act: nn.Module
    down: nn.Module
    o: nn.Module
    layer: nn.Module


def parts(hf_model: Any) -> list[Parts]:
    kind = hf_model.config.model_type
    if kind == "gpt2":
        return [Parts(b.mlp.c_fc, b.mlp.act, b.mlp.c_proj, b.attn.c_proj, b) for b in hf_model.transformer.h]
    if kind == "bloom":
        return [
            Parts(b.mlp.dense_h_to_4h, b.mlp.gelu_impl, b.mlp.dense_4h_to_h, b.self_attention.dense, b)
            for b in hf_model.transformer.h
        ]
    if kind == "opt":
        layers = hf_model.model.decoder.layers
        return [Parts(b.fc1, b.activation_fn, b.fc2, b.self_attn.out_proj, b) for b in layers]
    if kind == "phi3":
        layers = hf_model.model.layers
        return [Parts(b.mlp.gate_up_proj, b.mlp.activation_fn, b.mlp.down_proj, b.self_attn.o_proj, b) for b in layers]
    layers = hf_model.model.layers
    return [Parts(b.mlp.gate_proj, b.mlp.act_fn, b.mlp.down_proj, b.self_attn.o_proj, b) for b in layers]


@dataclass
class Linear:
    """A linear module, and the columns of what it gives that belong to one of the matrices fused in it."""

    module: nn.Module
    columns: torch.Tensor


def linears(hf_model: Any, part: Parts) -> dict[str, Linear]:
    """Find q, k and v, and up in gated MLPs, by the names that each architecture gives them."""
    config, attention = (
        hf_model.config,
        next(child for name, child in part.layer.named_children() if name in ("attn", "self_attn", "self_attention")),
    )
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    fused = next((getattr(attention, name) for name in _FUSED if hasattr(attention, name)), None)
    if fused is None:
        found = {site: Linear(module := getattr(attention, f"{site}_proj"), _all(module)) for site in ("q", "k", "v")}
    elif config.model_type == "bloom":
        of_head = torch.arange(3 * heads * size).view(heads, 3, size)
        found = {site: Linear(fused, of_head[:, place].flatten()) for place, site in enumerate(("q", "k", "v"))}
    else:
        runs = torch.arange((heads + 2 * keys) * size).split([heads * size, keys * size, keys * size])
        found = {site: Linear(fused, run) for site, run in zip(("q", "k", "v"), runs, strict=True)}
    mlp = getattr(part.layer, "mlp", None)
    if (up := getattr(mlp, "up_proj", None)) is not None:
        found["up"] = Linear(up, _all(up))
    elif (both := getattr(mlp, "gate_up_proj", None)) is not None:
        found["up"] = Linear(both, _all(both).chunk(2)[1])
    return found


_FUSED = ("c_attn", "query_key_value", "qkv_proj")


def _all(linear: Any) -> torch.Tensor:
    return torch.arange(linear.out_features)


def first_of(out: Any) -> torch.Tensor:
    """Find the residual stream in what a layer returns: Bloom's gives its attention too."""
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def hf_sites(hf_model: Any, tokens: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Read every site of every layer, each "batch position ...", and the logits."""
    batch, heads = tokens.shape[0], hf_model.config.num_attention_heads
    sites: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}

    def note(site: str, values: torch.Tensor) -> None:
        sites[site].append(values.reshape(batch, tokens.shape[1], -1).clone())

    handles = []
    for part in parts(hf_model):
        handles += [
            part.gate.register_forward_hook(lambda _, inputs, out: note("pre", out)),
            part.act.register_forward_hook(lambda _, inputs, out: note("act", out)),
            part.down.register_forward_pre_hook(lambda _, inputs: note("post", inputs[0])),
            part.o.register_forward_pre_hook(lambda _, inputs: note("head", inputs[0])),
            part.layer.register_forward_hook(lambda _, inputs, out: note("resid_post", first_of(out))),
        ]
        for site, linear in linears(hf_model, part).items():
            handles.append(
                linear.module.register_forward_hook(
                    lambda _, inputs, out, site=site, linear=linear: note(site, out[..., linear.columns])
                )
            )
    logits = hf_model(tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    if hf_model.config.model_type == "phi3":
        sites["pre"] = [both.chunk(2, dim=-1)[0] for both in sites["pre"]]
    sites["head"] = [z.unflatten(-1, (heads, -1)) for z in sites["head"]]
    return {**{site: layers for site, layers in sites.items() if layers}, "logits": [logits]}


@contextmanager
def hf_set(hf_model: Any, layer: int, site: str, units: torch.Tensor, value: float) -> Iterator[None]:
    """Write a value at what one layer's linear module gives."""
    linear = linears(hf_model, parts(hf_model)[layer])[site]

    def write(_: nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[..., linear.columns[units]] = value
        return out

    handle = linear.module.register_forward_hook(write)
    yield
    handle.remove()


@contextmanager
def hf_act_set(hf_model: Any, layer: int, units: torch.Tensor, value: float) -> Iterator[None]:
    """Write a value at what one layer's activation function returns."""

    def write(_: nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[..., units] = value
        return out

    handle = parts(hf_model)[layer].act.register_forward_hook(write)
    yield
    handle.remove()
