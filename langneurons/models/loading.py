"""load_model(): a checkpoint, or a model in memory, as the TransformerLens object that suits it, and its check."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from langneurons.errors import LangNeuronsError, ModelError, in_short, unknown
from langneurons.models import checkpoints, internals
from langneurons.models.backends.bridge import transformer_bridge
from langneurons.models.backends.conversion import hooked_transformer, reason_against_hooked
from langneurons.models.gguf import converted_folder, is_gguf
from langneurons.models.model_view import ModelView
from langneurons.models.probing import probe_of, settle_attention, settle_generation
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
    gguf_file: str | None = None,
) -> Any:
    """Load a language model as a HookedTransformer or a TransformerBridge, weights unprocessed.

    One forward at load compares its logits with the Hugging Face model's and checks every site's hook.

    Args:
        name: ``"babel"`` (the embedded model), a local folder of any name, a GGUF file, or a hub id; with
            ``hf_model``, what to call it. A GGUF file is converted to float32 once, and then read from the cache.
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
        gguf_file: Name of a GGUF file in the folder or hub repository, to read instead of the checkpoint.

    Returns:
        The HookedTransformer or TransformerBridge itself.

    Raises:
        ModelError: If the model cannot be found, read or supported, or computes other logits than it should.
        HookSiteError: If a site's hook does not fire exactly once a layer.
    """
    label = str(name) if hf_model is None or str(name) != "babel" else hf_model.name_or_path or "hf_model"
    wanted_dtype = parse_dtype(dtype)
    asked_name, asked_revision = name, revision
    if hf_model is None and is_gguf(name, gguf_file):
        label, name, revision = gguf_file or label, converted_folder(name, gguf_file, revision), None
    config = checkpoints.load_config(name, revision) if hf_model is None else hf_model.config
    checkpoints.check_supported(config, label)
    backend = choose_backend(config, label, backend, device_map)
    loaded_as = None
    if hf_model is None:
        loaded_as = {"name": _from_anywhere(asked_name), "revision": asked_revision, "gguf_file": gguf_file}
        placement = {"device": None if device is None else str(device), "device_map": device_map}
        loaded_as |= {"tokenizer": tokenizer, "backend": backend, "dtype": dtype, **placement}
    source = name if hf_model is None else hf_model.name_or_path
    if tokenizer is None and source:
        tokenizer = checkpoints.load_tokenizer(source, revision if hf_model is None else None)
    if tokenizer is not None:
        tokenizer = checkpoints.fitting_tokenizer(tokenizer, config, label)
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


def _from_anywhere(name: str | Path) -> str:
    """The name under which a process in another folder finds the same model."""
    path = Path(name).expanduser()
    return str(path.resolve()) if str(name) != "babel" and path.exists() else str(name)


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
    probe, attention, ends = probe_of(hf_model, name), internals.attention_of(hf_model), checkpoints.ends_of(hf_model)
    for_transformer_lens = copy.deepcopy(tokenizer)
    if for_transformer_lens is not None:
        internals.mark_as_prepared(for_transformer_lens, name)
    if backend == "hooked":
        model = hooked_transformer(hf_model, for_transformer_lens, name, share_weights=share)
    else:
        model = transformer_bridge(hf_model, for_transformer_lens, name)
    model_view = ModelView(model, tokenizer, name)
    model_view.end_ids = tuple(dict.fromkeys([*model_view.end_ids, *ends]))
    settle_attention(model_view, probe, attention)
    settle_generation(model_view, probe)
    model_view.weights.remember(fingerprint)
    return model_view


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
