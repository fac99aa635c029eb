"""HookedTransformer: how it runs, and its projections, which are products between hook points inside a layer."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from langneurons.errors import TrainingError
from langneurons.models import internals
from langneurons.models.backends import fused
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
from langneurons.models.running import GeneratedRows
from langneurons.models.sites import ATTENTION_SITES, Hook, Place, attached

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
_LAYOUTS = {"o": "head d_head d_out"} | dict.fromkeys(("q", "k", "v"), "head d_in d_head")


class Hooked:
    """A HookedTransformer: how it runs, and where its matrices are.

    Args:
        model: The HookedTransformer.

    Attributes:
        model: The model.
        name: ``"hooked"``.
        adds_bias: Whether a gated MLP adds b_in after the product act x up.
        act_fn_name: The activation function's name in its configuration.
        generators: The objects whose ``generate`` may be called.
        hf_config: The configuration of the Hugging Face model that runs inside; none does.
        end_ids: The ids that end what it generates; the tokenizer alone knows them.
        generation_fault: What is wrong with what it generates, or None.
    """

    name, adds_bias, hf_config = "hooked", True, None

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.act_fn_name: str = self.model.cfg.act_fn
        self.generators = [model]
        self.end_ids: tuple[int, ...] = ()
        self.generation_fault: str | None = None

    def check_internals(self) -> None:
        """Refuse a version of TransformerLens that has moved what langneurons relies on."""
        internals.check_hooked(self.model)

    def fuse(self, on: bool) -> None:
        """Let layers compute in one step what nothing listens inside of, or leave them to TransformerLens."""
        (fused.fuse if on else fused.unfuse)(self.model)

    @property
    def embedding(self) -> nn.Module:
        """The module that turns token ids into the residual stream."""
        return self.model.embed

    def act_fn(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Find the activation function that a layer's MLP calls."""
        return self.model.blocks[layer].mlp.act_fn

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None, logits: bool) -> torch.Tensor | None:
        """Run the model; without logits, up to the unembedding."""
        mask = self._mask(tokens, mask)
        out = self.model(tokens, attention_mask=mask, stop_at_layer=None if logits else self.model.cfg.n_layers)
        return out if logits else None

    def hidden(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute the residual stream after the final norm."""
        # TransformerLens' own mask would number padding as the last real token.
        with attached([] if mask is None else self._hiding(mask.to(tokens.device) == 0)):
            residual = self.model(
                tokens, attention_mask=self._mask(tokens, None), stop_at_layer=self.model.cfg.n_layers
            )
        return self._normed(residual)

    def unembed(self, states: torch.Tensor) -> torch.Tensor:
        """Compute the logits of states that ``hidden`` gave."""
        logits, cap = self.model.unembed(states), self.model.cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def generate(self, tokens: torch.Tensor, mask: torch.Tensor, rows: GeneratedRows) -> None:
        """Generate from left-padded prompts until every row has ended."""
        model, cache = self.model, internals.key_value_cache(self.model, len(tokens))
        while not rows.done:
            residual = model(tokens, attention_mask=mask, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers)
            # Logits of the last position alone.
            tokens = rows.allowed(self.unembed(self._normed(residual[:, -1:]))[:, 0]).argmax(-1, keepdim=True)
            mask = torch.ones_like(tokens)
            rows.extend(tokens[:, 0])

    def branching(self, tokens: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """Run what texts begin with; from what follows and the rows that it goes on from, to its normed states."""
        model, cache = self.model, internals.key_value_cache(self.model, len(tokens))

        def states(tokens: torch.Tensor, cache: object) -> torch.Tensor:
            mask = torch.ones_like(tokens)
            return model(tokens, attention_mask=mask, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers)

        states(tokens, cache)
        return lambda tokens, rows: self._normed(states(tokens, internals.cache_rows(cache, rows)))

    def native_attention(self) -> AbstractContextManager[None]:
        """Do nothing: a HookedTransformer has no attention of transformers."""
        return nullcontext()

    def outputs(self, layer: int, target: str) -> list[Place]:
        """Find where q, k or v is handed on as its matrix gives it."""
        return [(getattr(self.model.blocks[layer].attn, f"hook_{target}"), None)]

    def projection(self, gated: bool, layer: int, target: str) -> Projection:
        """Find a projection that the model has.

        Args:
            gated: Whether its MLPs have a gate.
            layer: The layer.
            target: The projection's name.
        """
        parent = self._parent(layer, target)
        weight = Stored(_parameter(parent, target, gated), _LAYOUTS.get(target, "d_in d_out"))
        biases = [Stored(parent.b_in)] if target == "gate" and not gated else []
        if target in ATTENTION_SITES:
            biases = [Stored(internals.parameter_of(parent, f"b_{target.upper()}"), "head d_head")]
        module = self._hugging_face_module(gated, layer, target, len(weight.read()))
        return Projection(layer, target, [weight], biases, [_installing(parent, target)], module)

    def _normed(self, residual: torch.Tensor) -> torch.Tensor:
        return residual if self.model.cfg.normalization_type is None else self.model.ln_final(residual)

    def _mask(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        if mask is None and getattr(self.model.tokenizer, "padding_side", "right") == "left":
            # Without a mask HookedTransformer would take every padding token's id for padding.
            return torch.ones_like(tokens)
        return mask

    def _hiding(self, keys: torch.Tensor) -> list[tuple[internals.HookPoint, Hook]]:
        def hide(scores: torch.Tensor) -> torch.Tensor:
            return scores.masked_fill(keys[:, None, None].to(scores.device), -torch.inf)

        return [(block.attn.hook_attn_scores, hide) for block in self.model.blocks]

    def _parent(self, layer: int, target: str) -> Any:
        block = self.model.blocks[layer]
        return block.mlp if target in MLP_TARGETS else block.attn

    def _hugging_face_module(self, gated: bool, layer: int, target: str, size: int) -> HuggingFaceModule:
        architecture = self.model.cfg.original_architecture
        names = _MODULES.get(architecture, _LLAMA_LIKE)
        sizes, runs = [size], ((0, size),)
        fused = [other for other in names if other != "block" and names[other] == names[target]]
        if len(fused) > 1:
            weights = {other: _parameter(self._parent(layer, other), other, gated) for other in fused}
            sizes = [len(Stored(weight, _LAYOUTS.get(other, "d_in d_out")).read()) for other, weight in weights.items()]
            index = fused.index(target)
            by_head = architecture == "BloomForCausalLM"
            runs = runs_by_head(self.model.cfg.n_heads, size, index) if by_head else runs_in_turn(sizes, index)
        name = names["block"].format(layer) + names[target]
        return HuggingFaceModule(name, sum(sizes), runs, architecture == "GPT2LMHeadModel")


def _parameter(component: nn.Module, target: str, gated: bool) -> nn.Parameter:
    names = {"gate": "W_gate" if gated else "W_in", "up": "W_in", "down": "W_out"}
    return internals.parameter_of(component, names.get(target, f"W_{target.upper()}"))


def _installing(parent: nn.Module, target: str) -> Point:
    points = {"gate": "hook_pre", "up": "hook_pre_linear", "down": "hook_post", "o": "hook_z"}
    point = getattr(parent, points.get(target, f"hook_{target}"))
    if target in ("down", "o"):
        return partial(_changed_after, parent, point)
    argument = internals.attention_input(parent, target) if target in ("q", "k", "v") else None
    return partial(_changed_before, parent, point, argument)


def _changed_before(parent: nn.Module, point: nn.Module, argument: str | None, change: Change) -> list[RemovableHandle]:
    """Read the parent's input, and change what the product gave before any other hook at the hook point runs."""
    if argument:
        _check_whole_inputs(parent)
    inputs_read: list[Any] = []

    def write(_: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
        return change(inputs_read.pop(), outputs.flatten(2)).reshape(outputs.shape)

    writing = point.register_forward_hook(write)

    def begin(_: nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, object]) -> None:
        inputs_read[:] = [named[argument] if argument else inputs[0]]
        internals.run_at(point, writing, last=False)

    # Of several changes the one installed first moves to the front last.
    return [writing, parent.register_forward_pre_hook(begin, prepend=True, with_kwargs=True)]


def _changed_after(parent: nn.Module, point: nn.Module, change: Change) -> list[RemovableHandle]:
    """Read what a hook point gives when all of its hooks have run, and change what the parent gives."""
    inputs_read: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
        inputs_read[:] = [outputs.flatten(2)]

    reading = point.register_forward_hook(keep)

    def begin(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        internals.run_at(point, reading, last=True)

    def write(_: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
        return change(inputs_read.pop(), outputs)

    return [reading, parent.register_forward_pre_hook(begin), parent.register_forward_hook(write)]


def _check_whole_inputs(attention: nn.Module) -> None:
    split = ("use_split_qkv_input", "use_attn_in", "ungroup_grouped_query_attention")
    if on := [name for name in split if getattr(attention.cfg, name, False)]:
        raise TrainingError(f"Attention cannot be trained while the model's {on[0]} is on: set it to False.")
