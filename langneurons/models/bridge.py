"""TransformerBridge around a Hugging Face model: the model itself, wrapped in place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from torch import nn
from transformers import PreTrainedTokenizerBase

from langneurons.errors import HookSiteError, ModelError

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
