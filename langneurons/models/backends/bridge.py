"""TransformerBridge around a Hugging Face model: made, run, and where its projections are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from jaxtyping import Int
from torch import nn
from torch.utils.hooks import RemovableHandle

from langneurons.errors import HookSiteError, ModelError, TrainingError, in_short
from langneurons.models import internals, projections
from langneurons.models.checkpoints import activation_of, architecture_of, ends_of
from langneurons.models.running import GeneratedRows
from langneurons.models.sites import Place

_MLP_NAMES = {"up": "in", "down": "out"}
# Architectures that TransformerLens does not know, though it knows another with the same modules.
_SAME_MODULES = {
    "MinistralForCausalLM": "MistralForCausalLM",
    "HeliumForCausalLM": "LlamaForCausalLM",
}


def transformer_bridge(
    hf_model: "transformers.PreTrainedModel", tokenizer: transformers.PreTrainedTokenizerBase | None, name: str
) -> nn.Module:
    """Wrap a Hugging Face model in a TransformerBridge; both share the weights.

    Args:
        hf_model: The model, on any device; its modules are wrapped in place.
        tokenizer: Its tokenizer, already prepared for TransformerLens.
        name: The model's name; it is never looked up.

    Returns:
        The TransformerBridge, in evaluation mode.

    Raises:
        ModelError: If TransformerLens has no bridge for the architecture.
    """
    from transformer_lens.model_bridge import TransformerBridge  # noqa: PLC0415 (seconds that only loading needs)

    if tokenizer is None:
        raise ModelError(f"Cannot load {name!r} as TransformerBridge without a tokenizer: give one as tokenizer=.")
    # A folder may be called "opt": under its own name TransformerLens would take it for an alias of another model.
    settings = {"hf_model": hf_model, "tokenizer": tokenizer, "dtype": hf_model.dtype, "device": hf_model.device}
    settings["hf_config_overrides"] = _config_overrides(hf_model.config)
    try:
        with internals.without_processors(), _undeclared_norms_hidden(hf_model):
            bridge = TransformerBridge.boot_transformers("langneurons/local", **settings)
    except (ValueError, NotImplementedError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"TransformerLens cannot wrap {name!r} ({architecture_of(hf_model.config)}): {in_short(error)}"
        ) from error
    bridge.cfg.model_name = name
    return bridge.eval()


def _config_overrides(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """What TransformerLens must read in a configuration to know a model's modules."""
    overrides: dict[str, Any] = {}
    if (same := _SAME_MODULES.get(architecture_of(config))) is not None:
        overrides["architectures"] = [same]
    if getattr(config, "new_decoder_architecture", False):
        overrides["multi_query"] = False  # a Falcon of this kind has groups of queries whatever it says here
    return overrides


@contextmanager
def _undeclared_norms_hidden(hf_model: "transformers.PreTrainedModel") -> Iterator[None]:
    """Hide norms of queries and keys that TransformerLens does not know of Cohere, and would refuse the model for."""
    names = ("q_norm", "k_norm") if hf_model.config.model_type == "cohere" else ()
    hidden = [(part, name, getattr(part, name)) for part in hf_model.modules() for name in names if hasattr(part, name)]
    try:
        for part, name, _ in hidden:
            delattr(part, name)
        yield
    finally:
        for part, name, norm in hidden:
            setattr(part, name, norm)


class Bridge:
    """A TransformerBridge over a Hugging Face model: how it runs, and where its matrices are.

    Args:
        model: The TransformerBridge.

    Attributes:
        model: The model.
        name: ``"bridge"``.
        adds_bias: Whether a gated MLP adds b_in after the product act x up.
        act_fn_name: The activation function's name in the Hugging Face configuration.
        generators: The objects whose ``generate`` may be called.
        hf_config: The configuration of the Hugging Face model inside.
        end_ids: The ids that end what it generates.
        attention: The implementation that ``native_attention`` runs, such as ``"sdpa"``; None where it does nothing.
        generation_fault: What is wrong with what it generates, or None.
    """

    name, adds_bias = "bridge", False

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self._hugging_face = internals.hugging_face_of(model)
        self.hf_config = self._hugging_face.config
        self.act_fn_name = activation_of(self.hf_config)
        self.generators = [model, self._hugging_face]
        self.end_ids = ends_of(self._hugging_face)
        self.attention: str | None = None
        self.generation_fault: str | None = None
        self._native = self._attention_is_wrong = False
        self._uncached: set[bool] = set()
        self._columns: dict[str, torch.Tensor | None] = {}

    def check_internals(self) -> None:
        """Refuse a version of TransformerLens or transformers that has moved what langneurons relies on."""
        internals.check_bridge(self.model)

    @property
    def embedding(self) -> nn.Module:
        """The module that turns token ids into the residual stream."""
        return self._hugging_face.get_input_embeddings()

    def act_fn(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Find the activation function that a layer's MLP calls.

        The configuration of the bridge is not asked: it says relu of Bloom, which is a gelu.
        """
        mlp = internals.wrapped_by(internals.mlp_of(self.model.blocks[layer]))
        act_fn = internals.activation_in(mlp)
        if act_fn is None:
            raise HookSiteError(f"No activation function in {type(mlp).__name__}: sites need an MLP with one.")
        return act_fn

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None, logits: bool) -> torch.Tensor | None:
        """Run the model; without logits, unembed one position only where it can."""
        options: dict[str, Any] = {"use_cache": False} if self._accepts("use_cache") else {}
        if not logits and self._accepts("logits_to_keep"):
            options["logits_to_keep"] = 1
        out = self.model(tokens, attention_mask=mask, **options)
        return out if logits else None

    def hidden(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Compute the residual stream after the final norm."""
        base = self._hugging_face.base_model
        options = {"use_cache": False} if internals.accepts(base, "use_cache") else {}
        return base(tokens, attention_mask=mask, **options).last_hidden_state

    def unembed(self, states: torch.Tensor) -> torch.Tensor:
        """Compute the logits of states that ``hidden`` gave, by all that the Hugging Face model does after it."""
        options = {"use_cache": False} if self._accepts("use_cache") else {}
        rows = states.reshape(-1, 1, states.shape[-1])  # one position each: there may be more than a context has
        tokens = torch.zeros(rows.shape[:2], dtype=torch.int64, device=next(self.embedding.parameters()).device)
        with internals.decoding(self._hugging_face, rows):
            logits = self._hugging_face(tokens, **options).logits
        return logits.reshape(*states.shape[:-1], logits.shape[-1])

    def generate(self, tokens: torch.Tensor, mask: torch.Tensor, rows: GeneratedRows) -> None:
        """Generate from left-padded prompts until every row has ended, with transformers' own generate."""
        settings = transformers.GenerationConfig(
            do_sample=False, use_cache=self._native not in self._uncached, max_new_tokens=rows.max_new_tokens
        )
        with internals.plain_generation(self._hugging_face):
            self._hugging_face.generate(
                tokens,
                attention_mask=mask,
                generation_config=settings,
                stopping_criteria=transformers.StoppingCriteriaList([_Ending(rows)]),
                logits_processor=transformers.LogitsProcessorList([_Allowing(rows)]),
            )

    def branching(self, tokens: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """Run what texts begin with; from what follows and the rows that it goes on from, to its normed states."""
        base = self._hugging_face.base_model
        if self._native in self._uncached or not internals.accepts(base, "past_key_values"):
            return None
        cache = base(tokens, use_cache=True).past_key_values
        if not hasattr(cache, "batch_select_indices"):
            return None

        def states(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            part = internals.selected_rows(cache, rows)
            return base(tokens, past_key_values=part, use_cache=True).last_hidden_state

        return states

    @contextmanager
    def native_attention(self) -> Iterator[None]:
        """Let transformers' attention modules run instead of the bridge's copies of them, inside the block.

        About as fast as the plain model. ``hook_z`` still fires; ``hook_pattern`` and ``hook_attn_scores`` do not.
        """
        if self.attention is None or self._native:
            yield
            return
        try:
            self._install_attention(native=True)
            with internals.attention(self._hugging_face, self.attention):
                yield
        finally:
            self._install_attention(native=False)

    def keep_native_attention(self, implementation: str | None) -> None:
        """Let transformers' attention modules run from now on, because the bridge's copies of them are wrong.

        Args:
            implementation: The attention that transformers uses, such as ``"sdpa"``; None leaves it as it is.
        """
        self._install_attention(native=True)
        self._attention_is_wrong = True
        if implementation is not None:
            self._hugging_face.set_attn_implementation(implementation)

    def _install_attention(self, native: bool) -> None:
        for block in self.model.blocks:
            internals.install_attention(block, native)
        self._native = native

    def leave_out_cache(self) -> None:
        """Generate without a key-value cache from now on, with the attention modules that run at this moment."""
        self._uncached.add(self._native)

    def outputs(self, layer: int, target: str) -> list[Place]:
        """Find where q, k or v is handed on as its matrix gives it; transformers' attention may fuse the three."""
        attention = self.model.blocks[layer].attn
        component, places = getattr(attention, target, None), []
        if component is not None:
            places.append((internals.output_point(component), None))
        if (columns := self._columns_of(target)) is not None:
            places.append((internals.output_point(attention.qkv), columns))
        return places

    def _columns_of(self, target: str) -> Int[torch.Tensor, " unit"] | None:
        """Find the columns of q, k or v in what a fused matrix gives, the same in every layer; None without one."""
        if target not in self._columns:
            attention, columns = self.model.blocks[0].attn, None
            with suppress(TrainingError):
                if (fused := _fused(attention, target)) is not None:
                    whole = _stored(fused[1]).read()
                    columns = projections.rows_of(_runs(whole, attention, target, self.model.cfg.n_heads))
            self._columns[target] = columns
        return None if self._attention_is_wrong else self._columns[target]

    def projection(self, gated: bool, layer: int, target: str) -> projections.Projection:
        """Find a projection that the model has.

        Args:
            gated: Whether its MLPs have a gate.
            layer: The layer.
            target: The projection's name.

        Raises:
            TrainingError: If it is fused with others in an unknown order, or is no linear module.
        """
        block = self.model.blocks[layer]
        if target in projections.MLP_TARGETS and internals.experts_in(block) is not None:
            raise TrainingError(f"The MLP of layer {layer} is a mixture of experts: train q, k, v or o.")
        parent = block.mlp if target in projections.MLP_TARGETS else block.attn
        name = "in" if target == "gate" and not gated else _MLP_NAMES.get(target, target)
        component = getattr(parent, name, None)
        if component is None or (linear := internals.linear_in(component)) is None:
            raise TrainingError(f"Layer {layer} of this model computes no {target!r} in a linear module of its own.")
        if not linear.weight.is_floating_point():
            raise TrainingError(
                f"The weights of {target!r} are quantised ({linear.weight.dtype}), and an update could not be written "
                "into them: train the checkpoint that is not quantised, in bfloat16."
            )
        weights, points = [_stored(linear)], [partial(_installed, linear, None)]
        biases = [projections.Stored(linear.bias)] if linear.bias is not None else []
        path, size = internals.path_of(block, parent, component), len(weights[0].read())
        module = projections.HuggingFaceModule(path, size, ((0, size),), internals.is_conv1d(linear))
        if (fused := _fused(parent, target)) is not None:
            if self._attention_is_wrong and target in projections.ATTENTION_TARGETS:
                raise TrainingError(
                    f"{target!r} is fused with other projections in an order that TransformerLens mistakes."
                )
            name, whole = fused
            runs = _runs(_stored(whole).read(), parent, target, self.model.cfg.n_heads)
            rows = projections.rows_of(runs)
            weights.append(_stored(whole, rows))
            biases += [projections.Stored(whole.bias, rows=rows)] if whole.bias is not None else []
            points.append(partial(_installed, whole, rows))
            path = f"{internals.path_of(block, parent)}.{name}"
            module = projections.HuggingFaceModule(path, len(_stored(whole).read()), runs, internals.is_conv1d(whole))
        return projections.Projection(layer, target, weights, biases, points, module)

    def _accepts(self, option: str) -> bool:
        return internals.accepts(self._hugging_face, option)


class _Ending(transformers.StoppingCriteria):
    def __init__(self, rows: GeneratedRows) -> None:
        self._rows = rows

    def __call__(self, input_ids: Int[torch.Tensor, "row position"], scores: object, **options: object) -> Any:
        self._rows.extend(input_ids[:, -1])
        return torch.tensor(self._rows.ended, device=input_ids.device)


class _Allowing(transformers.LogitsProcessor):
    def __init__(self, rows: GeneratedRows) -> None:
        self._rows = rows

    def __call__(self, input_ids: Int[torch.Tensor, "row position"], scores: torch.Tensor) -> Any:
        return self._rows.allowed(scores)


def _stored(linear: nn.Module, rows: torch.Tensor | None = None) -> projections.Stored:
    layout = "d_in d_out" if internals.is_conv1d(linear) else "d_out d_in"
    return projections.Stored(linear.get_parameter("weight"), layout, rows)


def _installed(linear: nn.Module, rows: torch.Tensor | None, change: projections.Change) -> list[RemovableHandle]:
    return [linear.register_forward_hook(partial(_changed, rows, change))]


def _changed(
    rows: torch.Tensor | None,
    change: projections.Change,
    _: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    outputs: torch.Tensor,
) -> torch.Tensor:
    if rows is None:
        return change(inputs[0], outputs)
    index = rows.to(outputs.device)
    return outputs.index_copy(-1, index, change(inputs[0], outputs.index_select(-1, index)))


def _fused(parent: nn.Module, target: str) -> tuple[str, Any] | None:
    """Find the module that the Hugging Face model has in place of this projection and others."""
    if target in ("q", "k", "v") and (whole := getattr(parent, "qkv", None)) is not None:
        return internals.path_of(whole), internals.wrapped_by(whole)
    if target in ("gate", "up") and not hasattr(mlp := internals.wrapped_by(parent), getattr(parent, "in").name):
        return next(((name, child) for name, child in mlp.named_children() if isinstance(child, nn.Linear)), None)
    return None


def _runs(whole: torch.Tensor, parent: nn.Module, target: str, n_heads: int) -> tuple[tuple[int, int], ...]:
    """Find the order of a fused matrix by looking for the projection's own weight in it."""
    names = ["q", "k", "v"] if target in projections.ATTENTION_TARGETS else ["gate", "in"]
    index = names.index(_MLP_NAMES.get(target, target))
    matrices = [_stored(internals.wrapped_by(getattr(parent, name))).read() for name in names]
    sizes = [len(matrix) for matrix in matrices]
    candidates = [projections.runs_in_turn(sizes, index)]
    if len(sizes) == 3 and len(set(sizes)) == 1:
        candidates.append(projections.runs_by_head(n_heads, sizes[0], index))
    for runs in candidates:
        if torch.equal(whole.index_select(0, projections.rows_of(runs).to(whole.device)), matrices[index]):
            return runs
    raise TrainingError(f"{target!r} is fused with other projections in an order that is not known, so it stays fixed.")
