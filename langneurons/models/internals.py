"""The private parts of TransformerLens, transformers and torch that langneurons relies on, each under one name.

No other file reaches behind the documented interfaces of these libraries. ``check_hugging_face``, ``check_hooked`` and
``check_bridge`` run when a model is loaded: they reach for every part, so that one which another version of a library
has moved is named in a sentence before anything else fails.
"""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from langneurons.errors import ModelError

TESTED = {"torch": "2.13", "transformers": "5.23", "transformer-lens": "3.9 and 4.3"}

_ACTIVATIONS = ("act_fn", "activation_fn", "act", "gelu_impl", "activation")
_ATTENTION_INPUTS = {"q": "query_input", "k": "key_input", "v": "value_input"}

Arguments = ParamSpec("Arguments")
Part = TypeVar("Part")


@runtime_checkable
class HookPoint(Protocol):
    """Where hooks are attached: TransformerLens' HookPoint, or a stand-in for one."""

    name: str | None
    fwd_hooks: list[Any]

    def add_hook(self, hook: Callable[..., object]) -> None:
        """Call a function of (values, hook=) whenever values pass."""
        ...


def private(library: str, part: str) -> Callable[[Callable[Arguments, Part]], Callable[Arguments, Part]]:
    """Mark a function that reaches for a private part of a library; it names the part where it is gone.

    Args:
        library: The library's name on PyPI, one of ``TESTED``.
        part: What is reached for, such as "tokenizer.init_kwargs".

    Returns:
        A decorator. The decorated function raises a ModelError that says what moved and which versions are known to
        work.
    """

    def decorate(reach: Callable[Arguments, Part]) -> Callable[Arguments, Part]:
        @functools.wraps(reach)
        def reach_or_say(*arguments: Arguments.args, **options: Arguments.kwargs) -> Part:
            try:
                return reach(*arguments, **options)
            except (AttributeError, ImportError, KeyError, IndexError, TypeError) as error:
                raise ModelError(
                    f"{library} {metadata.version(library)} has moved {part}: langneurons was tested with {library} "
                    f"{TESTED[library]}. Install that version, or report this as a bug."
                ) from error

        return reach_or_say

    return decorate


# ---- transformers ----


@private("transformers", "config._attn_implementation and set_attn_implementation()")
def attention_of(hf_model: nn.Module) -> str | None:
    """The attention implementation that a model runs with, such as ``"sdpa"``."""
    model: Any = hf_model
    assert callable(model.set_attn_implementation)
    return model.config._attn_implementation


@contextmanager
def attention(hf_model: nn.Module, implementation: str) -> Iterator[None]:
    """Run a Hugging Face model with another attention implementation inside the block."""
    model: Any = hf_model
    usual = attention_of(hf_model)
    try:
        if usual != implementation:
            model.set_attn_implementation(implementation)
        yield
    finally:
        if attention_of(hf_model) != usual:
            model.set_attn_implementation(usual)


@private("transformers", "MODEL_FOR_MASKED_LM_MAPPING_NAMES")
def masks_tokens(config: PretrainedConfig) -> bool:
    """Whether transformers has a masked language model (an encoder) of this type."""
    mapping = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in mapping


@private("transformers", "the lists that output_loading_info gives")
def incomplete_weights(report: Mapping[str, Iterable[str | tuple]]) -> tuple[set[str], set[str]]:
    """Name the weights that a checkpoint lacked, and those of another shape, from transformers' loading report."""
    missing, mismatched = (
        {key if isinstance(key, str) else str(key[0]) for key in report[kind]}
        for kind in ("missing_keys", "mismatched_keys")
    )
    return missing, mismatched


@private("transformers", "tokenizer.init_kwargs")
def mark_as_prepared(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make TransformerLens take a tokenizer as it is, instead of reloading it by name."""
    tokenizer.init_kwargs |= {"name_or_path": tokenizer.name_or_path or name, "add_bos_token": True}


@private("transformers", "tokenizer.init_kwargs")
def declare_start(tokenizer: PreTrainedTokenizerBase) -> None:
    """Note that texts begin with the beginning of sequence, where the tokenizer leaves it to others to write it."""
    tokenizer.init_kwargs["add_bos_token"] = True


@private("transformers", "tokenizer.init_kwargs")
def declares_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer was made to write its beginning of sequence."""
    return bool(tokenizer.init_kwargs.get("add_bos_token"))


@private("transformers", "tokenizer.add_bos_token")
def writing_start(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Copy a tokenizer so that it writes its beginning of sequence itself, wherever it is loaded."""
    tokenizer = copy.deepcopy(tokenizer)
    assert hasattr(tokenizer, "add_bos_token")
    setattr(tokenizer, "add_bos_token", True)  # noqa: B010 (not every class of tokenizers has it)
    return tokenizer


@private("transformers", "the arguments of a model's forward")
def accepts(hf_model: nn.Module, option: str) -> bool:
    """Whether a Hugging Face model's forward takes an option, such as ``logits_to_keep``."""
    return option in inspect.signature(hf_model.forward).parameters


@private("transformers", "Cache.batch_select_indices")
def selected_rows(cache: object, rows: torch.Tensor) -> object:
    """Copy some rows of a key-value cache of transformers, in any order and number."""
    part: Any = copy.deepcopy(cache)
    part.batch_select_indices(rows)
    return part


@private("transformers", "get_decoder()")
def decoder_of(hf_model: nn.Module) -> nn.Module:
    """The part of a Hugging Face model that computes what its unembedding reads."""
    model: Any = hf_model
    return model.get_decoder()


@contextmanager
def decoding(hf_model: nn.Module, states: torch.Tensor) -> Iterator[None]:
    """Let a Hugging Face model unembed given states inside the block, whatever tokens it is run on."""
    outputs: Any = BaseModelOutputWithPastAndCrossAttentions()
    outputs.last_hidden_state = states
    with replaced([(decoder_of(hf_model), "forward", lambda *inputs, **options: outputs)]):
        yield


@contextmanager
def plain_generation(hf_model: nn.Module) -> Iterator[None]:
    """Set aside the checkpoint's generation settings inside the block: a repetition penalty would change greedy."""
    model: Any = hf_model
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def without_cache(config: PretrainedConfig | None) -> Iterator[None]:
    """Switch a Hugging Face model's key-value cache off inside the block."""
    use_cache = getattr(config, "use_cache", False)
    try:
        if config is not None and use_cache:
            config.use_cache = False
        yield
    finally:
        if config is not None and use_cache:
            config.use_cache = use_cache


def is_conv1d(linear: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D (GPT-2), which stores its weight as "in out"."""
    return type(linear).__name__ == "Conv1D"


def activation_in(mlp: nn.Module) -> Callable[..., Any] | None:
    """Find the activation function in a Hugging Face MLP, or in a layer (OPT)."""
    return next((function for name in _ACTIVATIONS if callable(function := getattr(mlp, name, None))), None)


class _NoProcessor:
    @staticmethod
    def from_pretrained(*arguments: object, **options: object) -> None:
        """Give no processor, of images or of sound."""


@contextmanager
def without_processors() -> Iterator[None]:
    """Keep TransformerLens from looking for a processor of images or sound, and for the packages that one needs.

    Where it finds none it would install packages with pip.
    """
    names = ("AutoProcessor", "AutoFeatureExtractor", "AutoImageProcessor")
    adapter = import_module("transformer_lens.model_bridge.architecture_adapter").ArchitectureAdapter
    source = import_module("transformer_lens.model_bridge.sources.transformers")
    helpers = getattr(source, "helpers", source)  # version 4 has them in a file of their own
    # Version 4 asks the library as it was when TransformerLens was imported, version 3 as it is.
    libraries = {id(library): library for library in (import_module("transformers"), vars(helpers).get("transformers"))}
    refused: list[tuple[object, str, Callable[..., object]]] = [
        (library, name, _NoProcessor) for library in libraries.values() if library for name in names
    ]
    if "_ensure_torchvision" in vars(helpers):
        refused.append((helpers, "_ensure_torchvision", lambda: False))
    check = adapter._check_required_libraries
    adapter._check_required_libraries = lambda adapter: None
    try:
        with replaced(refused):
            yield
    finally:
        adapter._check_required_libraries = check


# ---- hook points, in TransformerLens 3 and 4 ----


@private("transformer-lens", "model.hook_dict, HookPoint.fwd_hooks and what it lists")
def count_hooks(model: nn.Module, permanent: bool = False) -> int:
    """Count what is attached at a model's hook points, or only what TransformerLens attached for good."""
    root: Any = model
    points = {id(point): point for point in root.hook_dict.values()}  # a point may have several names
    return sum(handle.is_permanent or not permanent for point in points.values() for handle in point.fwd_hooks)


@private("transformer-lens", "HookPoint.add_hook and HookPoint.fwd_hooks")
def attach(point: HookPoint, function: Callable[[torch.Tensor], object]) -> Callable[[], None]:
    """Call a function of a hook point's values in every forward.

    Returns:
        A function that detaches this one hook and no other.
    """
    point.add_hook(lambda values, hook: function(values))
    return functools.partial(_detach, point, point.fwd_hooks[-1])


def _detach(point: HookPoint, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


@private("transformer-lens", "W_out and W_O of a layer's components")
def readable_weight(component: nn.Module, name: str) -> torch.Tensor | None:
    """Read a component's weight; None where it is quantised, of which TransformerLens says that it is not possible."""
    try:
        return getattr(component, name)
    except NotImplementedError:
        return None


# ---- HookedTransformer, in TransformerLens 3 ----


def hooked_class() -> type[nn.Module] | None:
    """Find HookedTransformer; TransformerLens 4 no longer has it."""
    try:
        from transformer_lens import HookedTransformer  # noqa: PLC0415 (absent from TransformerLens 4)
    except ImportError:
        return None
    return HookedTransformer


@private("transformer-lens", "the converters in transformer_lens.pretrained.weight_conversions")
def weight_converter(name: str) -> Callable[..., dict[str, torch.Tensor]]:
    """Find a function that turns a Hugging Face model into HookedTransformer's weights."""
    return getattr(import_module("transformer_lens.pretrained.weight_conversions"), name)


@private("transformer-lens", "HookedTransformer.fill_missing_keys")
def complete(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add to converted weights what HookedTransformer has beyond them, such as zero biases."""
    root: Any = model
    return root.fill_missing_keys(state)


@private("transformer-lens", "TransformerLensKeyValueCache.init_cache")
def key_value_cache(model: nn.Module, rows: int) -> object:
    """Make an empty key-value cache of a HookedTransformer for a batch."""
    from transformer_lens import TransformerLensKeyValueCache  # noqa: PLC0415 (seconds that only generating needs)

    root: Any = model
    return TransformerLensKeyValueCache.init_cache(root.cfg, root.cfg.device, rows)


@private("transformer-lens", "entries and previous_attention_mask of TransformerLensKeyValueCache")
def cache_rows(cache: object, rows: torch.Tensor) -> object:
    """Make a key-value cache of some rows of another, in any order and number."""
    whole: Any = cache
    entries = [
        dataclasses.replace(entry, past_keys=entry.past_keys[rows], past_values=entry.past_values[rows])
        for entry in whole.entries
    ]
    return dataclasses.replace(whole, entries=entries, previous_attention_mask=whole.previous_attention_mask[rows])


@private("transformer-lens", "the weights of HookedTransformer's layers (W_in, W_Q, _W_K)")
def parameter_of(component: nn.Module, name: str) -> nn.Parameter:
    """Find a weight of an MLP or an attention; where heads share keys and values its name begins with "_"."""
    own = dict(component.named_parameters(recurse=False))
    return own[name] if name in own else own[f"_{name}"]


@private("transformer-lens", "the arguments query_input, key_input and value_input of HookedTransformer's attention")
def attention_input(attention: nn.Module, target: str) -> str:
    """Name the argument of an attention's forward from which q, k or v is computed."""
    return inspect.signature(attention.forward).parameters[_ATTENTION_INPUTS[target]].name


# ---- TransformerBridge, in TransformerLens 3 and 4 ----


@private("transformer-lens", "TransformerBridge.original_model")
def hugging_face_of(bridge: nn.Module) -> Any:
    """The Hugging Face model that a bridge wraps."""
    return bridge.original_model


@private("transformer-lens", "original_component of a bridge's components")
def wrapped_by(component: nn.Module) -> Any:
    """The Hugging Face module that a component of a bridge wraps."""
    return component.original_component


def linear_in(component: object) -> Any:
    """The linear module with a weight of its own that a component of a bridge wraps, or None."""
    linear = getattr(component, "original_component", None)
    return linear if isinstance(getattr(linear, "weight", None), nn.Parameter) else None


@private("transformer-lens", "hook_out of a bridge's components")
def output_point(component: nn.Module) -> HookPoint:
    """The hook point that hands on what a component of a bridge gives, as the module that it wraps gives it."""
    bridged: Any = component
    return bridged.hook_out


_ROUTERS, _SHARED = ("gate", "router"), ("shared_expert", "shared_experts", "shared_mlp")


@private("transformers", "the places of experts and routers")
def routers_in(module: nn.Module) -> list[Any]:
    """The router beside every bank of experts in a Hugging Face module; None for one that has another name."""
    beside = [part for part in module.modules() if "experts" in dict(part.named_children())]
    routers = [next((own for name in _ROUTERS if (own := getattr(part, name, None))), None) for part in beside]
    return [None if router is None else _innermost(router) for router in routers]


def _innermost(module: nn.Module) -> nn.Module:
    """What a component of a bridge wraps, through all that wraps it; a module of transformers itself."""
    while isinstance(inner := getattr(module, "original_component", None), nn.Module):
        module = inner
    return module


@private("transformer-lens", "original_component and bound_dense of a bridge's layers")
def experts_in(block: nn.Module) -> tuple[Any, Any] | None:
    """The router of a bridge's layer and its shared expert, each None where it has none; None for a dense layer."""
    mlp: Any = getattr(block, "mlp", None)
    layer = getattr(block, "original_component", None)
    routers = [] if layer is None else routers_in(layer)
    if not routers and getattr(mlp, "bound_dense", True):
        return None
    shared = next((part for name in _SHARED if hasattr(part := getattr(mlp, name, None), "hook_pre")), None)
    return (routers[0] if routers else None), shared


def mlp_of(block: nn.Module) -> Any:
    """The MLP of a layer that every token runs: beside experts the shared one, or None."""
    experts = experts_in(block)
    return getattr(block, "mlp", None) if experts is None else experts[1]


@private("transformer-lens", "name of a bridge's components")
def path_of(*components: nn.Module) -> str:
    """Where in the Hugging Face model a component lies, given it and those around it from the outside."""
    return ".".join(str(component.name) for component in components if component.name)


@private("transformer-lens", "the place where a bridge's layer keeps its attention")
def install_attention(block: nn.Module, native: bool) -> None:
    """Let transformers' own attention run in a bridge's layer, or the bridge's."""
    bridged: Any = block
    wrapped_by(block)._modules[bridged.attn.name] = wrapped_by(bridged.attn) if native else bridged.attn


# ---- torch ----


@private("torch", "Module._forward_hooks")
def run_at(module: nn.Module, handle: RemovableHandle, last: bool) -> None:
    """Make a forward hook the first or the last that its module runs."""
    hooks: Any = module._forward_hooks
    hooks.move_to_end(handle.id, last=last)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@private("torch", "Module._forward_hooks and its like")
def listens(*modules: nn.Module) -> bool:
    """Whether a hook of any kind is attached to a module or to one inside it, or to all there are."""
    return bool(nn.modules.module._has_any_global_hook()) or any(
        getattr(part, hooks) for module in modules for part in module.modules() for hooks in _HOOKS
    )


@private("torch", "Tensor._version")
def times_changed(weights: Sequence[torch.Tensor]) -> list[int]:
    """Count how often each tensor was changed in place."""
    return [weight._version for weight in weights]


@contextmanager
def replaced(replacements: Sequence[tuple[object, str, Callable[..., object]]]) -> Iterator[None]:
    """Give objects other methods inside the block: torch and transformers call what stands in the object itself.

    Args:
        replacements: Triples of object, method's name and function.
    """
    before = [vars(target).get(name) for target, name, _ in replacements]
    try:
        for target, name, function in replacements:
            vars(target)[name] = function
        yield
    finally:
        for (target, name, _), own in zip(replacements, before, strict=True):
            if own is None:
                vars(target).pop(name, None)
            else:
                vars(target)[name] = own


# ---- checked at load ----


def check_hugging_face(hf_model: nn.Module) -> None:
    """Reach for every private part of transformers and torch that wrapping and running a model relies on.

    Raises:
        ModelError: If one has moved.
    """
    attention_of(hf_model)
    accepts(hf_model, "use_cache")
    decoder_of(hf_model)
    times_changed(list(hf_model.parameters())[:1])


def check_hooked(model: nn.Module) -> None:
    """Reach for every private part of a HookedTransformer that reading, writing and training it relies on.

    Raises:
        ModelError: If one has moved.
    """
    root: Any = model
    count_hooks(model)
    attach(root.blocks[0].hook_resid_pre, _ignore)()
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
        parameter_of(root.blocks[0].attn, name)
    for target in _ATTENTION_INPUTS:
        attention_input(root.blocks[0].attn, target)
    key_value_cache(model, 1)


def check_bridge(bridge: nn.Module) -> None:
    """Reach for every private part of a TransformerBridge that reading, writing and training it relies on.

    Raises:
        ModelError: If one has moved.
    """
    root: Any = bridge
    check_hugging_face(hugging_face_of(bridge))
    count_hooks(bridge)
    attach(root.blocks[0].hook_resid_pre, _ignore)()
    path_of(root.blocks[0], root.blocks[0].attn)
    output_point(root.blocks[0].attn)
    install_attention(root.blocks[0], native=False)


def _ignore(values: torch.Tensor) -> None:
    pass
