"""TransformerBridge around a Hugging Face model: the model itself, wrapped in place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedTokenizerBase

from langneurons.errors import HookSiteError, ModelError, TrainingError
from langneurons.models.projections import (
    ATTENTION_TARGETS,
    MLP_TARGETS,
    Change,
    HuggingFaceModule,
    Projection,
    Stored,
    rows_of,
    runs_by_head,
    runs_in_turn,
)

_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act", "gelu_impl", "activation")


def transformer_bridge(
    hf_model: "transformers.PreTrainedModel", tokenizer: PreTrainedTokenizerBase | None, name: str
) -> nn.Module:
    """Wrap a Hugging Face model in a TransformerBridge; both share the weights.

    Args:
        hf_model: The model, on any device; its modules are wrapped in place.
        tokenizer: Its tokenizer, already prepared for TransformerLens.
        name: What to call it; never looked up.

    Returns:
        The TransformerBridge, in evaluation mode.

    Raises:
        ModelError: If TransformerLens has no bridge for the architecture.
    """
    from transformer_lens.model_bridge import TransformerBridge  # noqa: PLC0415 (seconds that only loading needs)

    if tokenizer is None:
        raise ModelError(f"Cannot load {name!r} as TransformerBridge without a tokenizer: give one as tokenizer=.")
    try:
        # A folder may be called "opt": under its own name TransformerLens would take it for an alias of another model.
        bridge = TransformerBridge.boot_transformers(
            "langneurons/local", hf_model=hf_model, tokenizer=tokenizer, dtype=hf_model.dtype, device=hf_model.device
        )
    except (ValueError, NotImplementedError, KeyError, AttributeError) as error:
        architecture = (hf_model.config.architectures or [hf_model.config.model_type])[0]
        raise ModelError(f"TransformerLens cannot wrap {name!r} ({architecture}): {error}") from error
    bridge.cfg.model_name = name
    return bridge.eval()


def bridge_activation(mlp: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Find the activation function of a bridged MLP in the Hugging Face module it wraps.

    The configuration of the bridge is not asked: it says relu of Bloom, which is a gelu.
    """
    original = mlp.original_component
    found = [getattr(original, name) for name in _ACTIVATION_NAMES if callable(getattr(original, name, None))]
    if not found:
        raise HookSiteError(f"No activation function in {type(original).__name__}: sites need an MLP with one.")
    return found[0]


@contextmanager
def native_attention(bridge: Any, implementation: str) -> Iterator[None]:
    """Let the Hugging Face attention modules run instead of the bridge's eager copies of them, inside a block.

    About as fast as the plain model. ``hook_z`` still fires; ``hook_pattern`` and ``hook_attn_scores`` do not.

    Args:
        bridge: The TransformerBridge.
        implementation: Which attention transformers uses inside the block, such as ``"sdpa"``.
    """
    config = bridge.original_model.config
    before = config._attn_implementation
    try:
        for block in bridge.blocks:
            block.original_component._modules[block.attn.name] = block.attn.original_component
        if before != implementation:
            bridge.original_model.set_attn_implementation(implementation)
        yield
    finally:
        for block in bridge.blocks:
            block.original_component._modules[block.attn.name] = block.attn
        if config._attn_implementation != before:
            bridge.original_model.set_attn_implementation(before)


_MLP_NAMES = {"up": "in", "down": "out"}


def bridge_projection(bridge: Any, gated: bool, layer: int, target: str) -> Projection:
    """Find a projection of a TransformerBridge.

    Args:
        bridge: The model.
        gated: Whether its MLPs have a gate.
        layer: The layer.
        target: A projection that it has.

    Raises:
        TrainingError: If it is fused with others in an unknown order, or is no linear module.
    """
    block = bridge.blocks[layer]
    parent = block.mlp if target in MLP_TARGETS else block.attn
    name = _MLP_NAMES.get(target, target)
    component: Any = getattr(parent, "in" if target == "gate" and not gated else name, None)
    linear: Any = getattr(component, "original_component", None)
    if not isinstance(getattr(linear, "weight", None), nn.Parameter):
        raise TrainingError(f"Layer {layer} of this model computes no {target!r} in a linear module of its own.")
    if not linear.weight.is_floating_point():
        raise TrainingError(
            f"The weights of {target!r} are quantised ({linear.weight.dtype}), and an update could not be written into "
            "them: train the checkpoint that is not quantised, in bfloat16."
        )
    weights, points = [_stored(linear)], [partial(_installed, linear, None)]
    biases = [Stored(linear.bias)] if linear.bias is not None else []
    path = ".".join(part for part in (block.name, parent.name, component.name) if part)
    module = HuggingFaceModule(path, len(weights[0].read()), ((0, len(weights[0].read())),), _is_conv1d(linear))
    if (fused := _fused(parent, target)) is not None:
        name, whole = fused
        runs = _runs(_stored(whole), weights[0].read(), _sizes(parent, target), bridge.cfg.n_heads, target)
        rows = rows_of(runs)
        weights.append(_stored(whole, rows))
        biases += [Stored(whole.bias, rows=rows)] if whole.bias is not None else []
        points.append(partial(_installed, whole, rows))
        path = ".".join((block.name, parent.name, name))
        module = HuggingFaceModule(path, len(_stored(whole).read()), runs, _is_conv1d(whole))
    return Projection(layer, target, weights, biases, points, module)


def _is_conv1d(linear: Any) -> bool:
    return type(linear).__name__ == "Conv1D"


def _stored(linear: Any, rows: torch.Tensor | None = None) -> Stored:
    return Stored(linear.weight, "in out" if _is_conv1d(linear) else "out in", rows)


def _installed(linear: nn.Module, rows: torch.Tensor | None, change: Change) -> list[RemovableHandle]:
    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
        if rows is None:
            return change(inputs[0], outputs)
        index = rows.to(outputs.device)
        return outputs.index_copy(-1, index, change(inputs[0], outputs.index_select(-1, index)))

    return [linear.register_forward_hook(hook)]


def _fused(parent: Any, target: str) -> tuple[str, Any] | None:
    """Find the module that the Hugging Face model has in place of this projection and others."""
    if target in ("q", "k", "v") and (whole := getattr(parent, "qkv", None)) is not None:
        return whole.name, whole.original_component
    if target in ("gate", "up") and not hasattr(parent.original_component, getattr(parent, "in").name):
        linears = parent.original_component.named_children()
        return next(((name, child) for name, child in linears if isinstance(child, nn.Linear)), None)
    return None


def _sizes(parent: Any, target: str) -> list[int]:
    names = ("q", "k", "v") if target in ATTENTION_TARGETS else ("gate", "in")
    return [len(_stored(getattr(parent, name).original_component).read()) for name in names]


def _runs(whole: Stored, own: torch.Tensor, sizes: list[int], n_heads: int, target: str) -> tuple[tuple[int, int], ...]:
    """Find which order a fused matrix has by finding the projection's own weight in it."""
    index = ATTENTION_TARGETS.index(target) if target in ATTENTION_TARGETS else MLP_TARGETS.index(target)
    candidates = [runs_in_turn(sizes, index)]
    if len(sizes) == 3 and len(set(sizes)) == 1:
        candidates.append(runs_by_head(n_heads, sizes[0], index))
    for runs in candidates:
        if torch.equal(whole.read().index_select(0, rows_of(runs).to(own.device)), own):
            return runs
    raise TrainingError(f"{target!r} is fused with other projections in an order that is not known, so it stays fixed.")
