"""load_model(): a checkpoint, or a model in memory, as the TransformerLens object that suits it, and its check."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from jaxtyping import Float, Int
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from langneurons.errors import LangNeuronsError, ModelError, in_short, unknown
from langneurons.models import checkpoints, internals
from langneurons.models.backends.bridge import transformer_bridge
from langneurons.models.backends.conversion import hooked_transformer, reason_against_hooked
from langneurons.models.model_view import ModelView
from langneurons.models.weights import module_fingerprint

Device = torch.device | str | None
DeviceMap = str | int | torch.device | dict[str, str | int | torch.device] | None

BACKENDS = ("auto", "hooked", "bridge")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path = "babel",
    *,
    hf_model: "transformers.PreTrainedModel | None" = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    backend: str = "auto",
    dtype: torch.dtype | str | None = None,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: str | None = None,
) -> Any:
    """Load a language model as a HookedTransformer or a TransformerBridge, weights unprocessed.

    One forward at load compares its logits with the Hugging Face model's and checks every site's hook.

    Args:
        name: ``"babel"`` (the embedded model), a local folder of any name, or a hub id; with ``hf_model``, what to
            call it.
        hf_model: A Hugging Face model in memory instead. As HookedTransformer it is copied, as TransformerBridge it is
            wrapped in place.
        tokenizer: A tokenizer instead of the checkpoint's.
        backend: ``"hooked"``, ``"bridge"``, or ``"auto"``: HookedTransformer where TransformerLens has it for the
            model, TransformerBridge elsewhere.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or a torch dtype; None is the checkpoint's own (float32 for
            babel).
        device: The device to load to; by default a GPU where there is one.
        device_map: Placement over several devices, as in transformers; the backend is then TransformerBridge.
        revision: Branch, tag or commit of a model on the hub.

    Returns:
        The HookedTransformer or TransformerBridge itself.

    Raises:
        ModelError: If the model cannot be found, read or supported, or computes other logits than it should.
        HookSiteError: If a site's hook does not fire exactly once a layer.
    """
    label = str(name) if hf_model is None or str(name) != "babel" else hf_model.name_or_path or "hf_model"
    wanted_dtype = parse_dtype(dtype)
    config = checkpoints.load_config(name, revision) if hf_model is None else hf_model.config
    checkpoints.check_supported(config, label)
    backend = choose_backend(config, label, backend, device_map)
    loaded_as = None
    if hf_model is None:
        placement = {"device": None if device is None else str(device), "device_map": device_map, "revision": revision}
        folder = Path(name).expanduser()
        from_anywhere = str(folder.resolve()) if str(name) != "babel" and folder.is_dir() else str(name)
        loaded_as = {"name": from_anywhere, "tokenizer": tokenizer, "backend": backend, "dtype": dtype, **placement}
    source = name if hf_model is None else hf_model.name_or_path
    if tokenizer is None and source:
        tokenizer = checkpoints.load_tokenizer(source, revision if hf_model is None else None)
    if tokenizer is not None:
        checkpoints.check_tokenizer(tokenizer, config, label)
    share = hf_model is None
    if hf_model is None:
        own_dtype = torch.float32 if str(name) == "babel" else "auto"
        hf_model = checkpoints.load_weights(
            name, config, wanted_dtype or own_dtype, _device(device), device_map, revision
        )
    else:
        _check_in_memory(hf_model, wanted_dtype, device, device_map)
    try:
        model_view = _wrapped(hf_model, tokenizer, Path(label).name if share else label, backend, share)
    except (LangNeuronsError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a configuration that fits the weights may still be none that runs
        raise ModelError(
            f"{label!r} was loaded but does not run ({in_short(error)}). Compare its config.json with that of the "
            "original checkpoint, or try the model in transformers."
        ) from error
    model_view.loaded_as = loaded_as
    return model_view.model


def choose_backend(config: PretrainedConfig, name: str, backend: str = "auto", device_map: DeviceMap = None) -> str:
    """Choose between HookedTransformer and TransformerBridge.

    Args:
        config: The model's configuration.
        name: The model's name.
        backend: One of ``BACKENDS``.
        device_map: Placement over several devices, or None.

    Returns:
        ``"hooked"`` or ``"bridge"``.

    Raises:
        ModelError: If the backend is unknown, or is ``"hooked"`` and HookedTransformer cannot hold the model.
    """
    if backend not in BACKENDS:
        raise ModelError(unknown("backend", backend, BACKENDS))
    reason = reason_against_hooked(config)
    if reason is None and device_map is not None:
        reason = "device_map needs the Hugging Face model itself"
    if backend == "hooked" and reason is not None:
        raise ModelError(f"Cannot load {name!r} with backend 'hooked': {reason}. Use backend 'bridge' or 'auto'.")
    if backend == "auto":
        return "bridge" if reason else "hooked"
    return backend


def _wrapped(
    hf_model: "transformers.PreTrainedModel",
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    backend: str,
    share: bool,
) -> ModelView:
    """Wrap, then compare with what the Hugging Face model computed before it was wrapped."""
    internals.check_hugging_face(hf_model)
    hf_model.eval()
    fingerprint = module_fingerprint(hf_model)
    probe, attention = probe_of(hf_model), internals.attention_of(hf_model)
    for_transformer_lens = copy.deepcopy(tokenizer)
    if for_transformer_lens is not None:
        internals.mark_as_prepared(for_transformer_lens, name)
    if backend == "hooked":
        model = hooked_transformer(hf_model, for_transformer_lens, name, share_weights=share)
    else:
        model = transformer_bridge(hf_model, for_transformer_lens, name)
    model_view = ModelView(model, tokenizer, name)
    probe.check(model_view.check_sites(probe.tokens), name, backend)
    if backend == "bridge" and attention is not None:
        _try_native_attention(model_view, attention, probe)
    model_view.weights.remember(fingerprint)
    return model_view


def _try_native_attention(model_view: ModelView, implementation: str, probe: "Probe") -> None:
    """Make ``native_attention`` available if, with it, sites still fire once and logits are still right."""
    model_view.attention = implementation
    try:
        with model_view.native_attention():
            probe.check(model_view.check_sites(probe.tokens), model_view.name, model_view.backend)
    except LangNeuronsError:
        model_view.attention = None


def _check_in_memory(
    hf_model: "transformers.PreTrainedModel", dtype: torch.dtype | None, device: Device, device_map: DeviceMap
) -> None:
    if dtype is not None and dtype != hf_model.dtype:
        raise ModelError(
            f"The hf_model given is {hf_model.dtype}, not {dtype}: convert it first, with hf_model.to(dtype)."
        )
    if device is not None and torch.device(device).type != hf_model.device.type:
        raise ModelError(
            f"The hf_model given is on {hf_model.device}, not {device}: move it first, with hf_model.to()."
        )
    if device_map is not None:
        raise ModelError(
            "The hf_model given is placed already: device_map works only when load_model loads the weights."
        )


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Turn a dtype's name into the dtype; None stays None.

    Raises:
        ModelError: If it is not one of ``DTYPES``.

    Example:
        >>> parse_dtype("bfloat16")
        torch.bfloat16
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ModelError(unknown("dtype", name, DTYPES))
    return DTYPES[name]


def _device(device: Device) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        possible = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ModelError(unknown("device", str(device), possible)) from error
    return torch.device(device)


# The largest difference allowed: 1e-5 standard deviations of the logits, or 4 times what one rounding step in the
# embeddings does to them, where that is more (deep models, 16-bit weights). Measured on 50 random models of 2 to 24
# layers, float32 and bfloat16: correct wrappings differ by 0 to 1.5 rounding steps, wrong ones by whole deviations.
_DEVIATIONS = 1e-5
_ROUNDING_STEPS = 4
_MOST_DEVIATIONS = 1.0


@dataclass(frozen=True)
class Probe:
    """What the Hugging Face model computes, and how exactly a wrapping of it must agree.

    Attributes:
        tokens: Token ids.
        logits: The Hugging Face model's logits.
        tolerance: The largest difference of a logit that rounding explains.
    """

    tokens: Int[torch.Tensor, "1 position"]
    logits: Float[torch.Tensor, "1 position token"]
    tolerance: float

    def check(self, logits: Float[torch.Tensor, "1 position token"], name: str, backend: str) -> None:
        """Compare a wrapped model's logits with the Hugging Face model's.

        Args:
            logits: Logits of the wrapped model, on the same tokens.
            name: The model's name.
            backend: ``"hooked"`` or ``"bridge"``.

        Raises:
            ModelError: If a logit differs by more than the tolerance.
        """
        difference = float((logits.float() - self.logits.float()).abs().max())
        if not difference <= self.tolerance:
            other = "bridge" if backend == "hooked" else "hooked"
            raise ModelError(
                f"{name!r} loaded with backend {backend!r} computes other logits than the Hugging Face model: they "
                f"differ by {difference:.2g}, and rounding explains {self.tolerance:.2g}. Try backend={other!r}."
            )


@torch.no_grad()
def probe_of(hf_model: "transformers.PreTrainedModel") -> Probe:
    """Run a Hugging Face model, before anything wraps it, as it is and with its embeddings one rounding step off.

    Args:
        hf_model: The model, in evaluation mode.

    Returns:
        Its logits, which a wrapping of it must compute.

    Raises:
        ModelError: If its logits are infinite or no numbers.
    """
    config = hf_model.config
    window = checkpoints.sliding_window_of(config)
    # From all over the vocabulary, and more than fit in a sliding window.
    length = min(checkpoints.context_length_of(config), 64 if window is None else window + 32)
    tokens = (torch.arange(length, device=hf_model.device) * 7919 + 13)[None] % config.get_text_config().vocab_size
    logits = hf_model(tokens, use_cache=False).logits
    handle = hf_model.get_input_embeddings().register_forward_hook(_one_rounding_step_off)
    try:
        off = hf_model(tokens, use_cache=False).logits
    finally:
        handle.remove()
    deviation = float(logits.float().std())
    if not logits.isfinite().all():
        raise ModelError(
            f"{hf_model.name_or_path or 'The model'!r} computes logits that are no numbers in {hf_model.dtype}: its "
            "weights are damaged, or overflow; try dtype='float32'."
        )
    rounding = float((off.float() - logits.float()).abs().max())
    if getattr(hf_model, "is_quantized", False):
        # A quantised matrix product jumps where its input crosses an edge, so that rounding now and then shows large.
        with internals.attention(hf_model, "eager"):  # step by step, as a bridge computes it
            eager = hf_model(tokens, use_cache=False).logits
        rounding = max(rounding, float((eager.float() - logits.float()).abs().max()))
    allowed = max(_DEVIATIONS * deviation, _ROUNDING_STEPS * rounding)
    return Probe(tokens, logits, min(allowed, _MOST_DEVIATIONS * deviation))


def _one_rounding_step_off(module: object, inputs: object, embeddings: torch.Tensor) -> torch.Tensor:
    """Change every other component up and the rest down, so that no normalisation undoes it."""
    step = torch.full(embeddings.shape[-1:], torch.finfo(embeddings.dtype).eps, device=embeddings.device)
    step[::2] *= -1
    return (embeddings.float() * (1 + step)).to(embeddings.dtype)
