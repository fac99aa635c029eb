"""Projections of a HookedTransformer: products inside an MLP's or an attention's forward, between hook points."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from langneurons.errors import TrainingError
from langneurons.models.projections import (
    MLP_TARGETS,
    Change,
    HuggingFaceModule,
    Point,
    Projection,
    Stored,
    runs_by_head,
    runs_in_turn,
)

_LLAMA_LIKE = {
    "block": "model.layers.{}.",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
}
_MODULES = {
    "Phi3ForCausalLM": _LLAMA_LIKE
    | dict.fromkeys(("gate", "up"), "mlp.gate_up_proj")
    | dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj"),
    "OPTForCausalLM": _LLAMA_LIKE
    | {"block": "model.decoder.layers.{}.", "gate": "fc1", "down": "fc2", "o": "self_attn.out_proj"},
    "GPT2LMHeadModel": {"block": "transformer.h.{}.", "gate": "mlp.c_fc", "down": "mlp.c_proj", "o": "attn.c_proj"}
    | dict.fromkeys(("q", "k", "v"), "attn.c_attn"),
    "BloomForCausalLM": {
        "block": "transformer.h.{}.",
        "gate": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
        "o": "self_attention.dense",
    }
    | dict.fromkeys(("q", "k", "v"), "self_attention.query_key_value"),
}
_LAYOUTS = {"o": "head d_head out"} | dict.fromkeys(("q", "k", "v"), "head in d_head")
_ARGUMENTS = {"q": "query_input", "k": "key_input", "v": "value_input"}


def hooked_projection(model: Any, gated: bool, layer: int, target: str) -> Projection:
    """Find a projection of a HookedTransformer.

    Args:
        model: The model.
        gated: Whether its MLPs have a gate.
        layer: The layer.
        target: A projection that it has.
    """
    parent = _parent(model, layer, target)
    weight = Stored(_parameter(parent, target, gated), _LAYOUTS.get(target, "in out"))
    biases = [Stored(parent.b_in)] if target == "gate" and not gated else []
    install = _installing(parent, target)
    return Projection(layer, target, [weight], biases, [install], _module(model, gated, layer, target, weight))


def _parameter(parent: Any, target: str, gated: bool) -> nn.Parameter:
    names = {"gate": "W_gate" if gated else "W_in", "up": "W_in", "down": "W_out"}
    name = names.get(target, f"W_{target.upper()}")
    own = dict(parent.named_parameters(recurse=False))
    # Under a name with an underscore where heads share keys and values.
    return own[name] if name in own else own[f"_{name}"]


def _installing(parent: Any, target: str) -> Point:
    points = {"gate": "hook_pre", "up": "hook_pre_linear", "down": "hook_post", "o": "hook_z"}
    point = getattr(parent, points.get(target, f"hook_{target}"))
    if target in ("down", "o"):
        return partial(_changed_after, parent, point)
    return partial(_changed_before, parent, point, _ARGUMENTS.get(target))


def _changed_before(parent: nn.Module, point: Any, argument: str | None, change: Change) -> list[RemovableHandle]:
    """The parent's own input is read, and the first that a hook point does is to change what the product gave."""
    if argument:
        _check_whole_inputs(parent.cfg)
    read: list[torch.Tensor] = []

    def write(_: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
        return change(read.pop(), outputs.flatten(2)).reshape(outputs.shape)

    writing = point.register_forward_hook(write)

    def begin(_: nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        read[:] = [named[argument] if argument else inputs[0]]
        point._forward_hooks.move_to_end(writing.id, last=False)

    # Of several changes the one installed first moves to the front last.
    return [writing, _before(parent, begin, prepend=True)]


def _changed_after(parent: nn.Module, point: Any, change: Change) -> list[RemovableHandle]:
    """What a hook point gives when all of its hooks have run is read; what the parent gives is changed."""
    read: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
        read[:] = [outputs.flatten(2)]

    reading = point.register_forward_hook(keep)

    def begin(_: nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        point._forward_hooks.move_to_end(reading.id)

    def write(_: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
        return change(read.pop(), outputs)

    return [reading, _before(parent, begin, prepend=False), parent.register_forward_hook(write)]


def _check_whole_inputs(config: Any) -> None:
    split = ("use_split_qkv_input", "use_attn_in", "ungroup_grouped_query_attention")
    if on := [name for name in split if getattr(config, name, False)]:
        raise TrainingError(f"Attention cannot be trained while the model's {on[0]} is on: set it to False.")


def _before(parent: nn.Module, begin: Callable[..., None], prepend: bool) -> RemovableHandle:
    return parent.register_forward_pre_hook(begin, prepend=prepend, with_kwargs=True)


def _module(model: Any, gated: bool, layer: int, target: str, weight: Stored) -> HuggingFaceModule:
    architecture = model.cfg.original_architecture
    names = _MODULES.get(architecture, _LLAMA_LIKE)
    size = len(weight.read())
    sizes, runs = [size], ((0, size),)
    fused = [other for other in names if other != "block" and names[other] == names[target]]
    if len(fused) > 1:
        blocks = {other: _parameter(_parent(model, layer, other), other, gated) for other in fused}
        sizes = [len(Stored(block, _LAYOUTS.get(other, "in out")).read()) for other, block in blocks.items()]
        index = fused.index(target)
        by_head = architecture == "BloomForCausalLM"
        runs = runs_by_head(model.cfg.n_heads, size, index) if by_head else runs_in_turn(sizes, index)
    name = names["block"].format(layer) + names[target]
    return HuggingFaceModule(name, sum(sizes), runs, architecture == "GPT2LMHeadModel")


def _parent(model: Any, layer: int, target: str) -> Any:
    block = model.blocks[layer]
    return block.mlp if target in MLP_TARGETS else block.attn
