"""load_model(): a checkpoint, or a model in memory, as the TransformerLens object that suits it."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from langneurons.errors import LangNeuronsError, ModelError, in_short, unknown
from langneurons.models.backends.bridge import transformer_bridge
from langneurons.models.backends.hooked import hooked_transformer, reason_against_hooked
from langneurons.models.checkpoints import check_supported, check_tokenizer, load_config, load_tokenizer, load_weights
from langneurons.models.probe import probe_of
from langneurons.models.view import ModelView, view
from langneurons.models.weights import module_fingerprint

BACKENDS = ("auto", "hooked", "bridge")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path = "babel",
    *,
    hf_model: "transformers.PreTrainedModel | None" = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    backend: str = "auto",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: Any = None,
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
        device: Where to put it; None is a GPU where there is one.
        device_map: Placement over several devices, as in transformers; the backend is then TransformerBridge.
        revision: Of a model on the hub: a branch, tag or commit.

    Returns:
        The HookedTransformer or TransformerBridge itself.

    Raises:
        ModelError: If the model cannot be found, read or supported, or computes other logits than it should.
        HookSiteError: If a site's hook does not fire exactly once a layer.
    """
    name_said = str(name) if hf_model is None or str(name) != "babel" else hf_model.name_or_path or "hf_model"
    chosen_dtype = parse_dtype(dtype)
    config = load_config(name, revision) if hf_model is None else hf_model.config
    check_supported(config, name_said)
    backend = choose_backend(config, name_said, backend, device_map)
    loaded_as = None
    if hf_model is None:
        placed = {"device": None if device is None else str(device), "device_map": device_map, "revision": revision}
        loaded_as = {"name": _absolute(name), "tokenizer": tokenizer, "backend": backend, "dtype": dtype, **placed}
    if tokenizer is None:
        tokenizer = _own_tokenizer(name, hf_model, revision)
    if tokenizer is not None:
        check_tokenizer(tokenizer, config, name_said)
    share = hf_model is None
    if hf_model is None:
        wanted = chosen_dtype or (torch.float32 if str(name) == "babel" else "auto")
        hf_model = load_weights(name, config, wanted, _device(device), device_map, revision)
    else:
        _check_in_memory(hf_model, chosen_dtype, device, device_map)
    try:
        model = _wrapped(hf_model, tokenizer, Path(name_said).name if share else name_said, backend, share)
    except LangNeuronsError:
        raise
    except Exception as error:  # a configuration that fits the weights may still be none that runs
        raise ModelError(f"{name_said!r} cannot be run as it is configured ({in_short(error)}).") from error
    view(model).loaded_as = loaded_as
    return model


def choose_backend(config: PretrainedConfig, name: str, backend: str = "auto", device_map: Any = None) -> str:
    """Choose between HookedTransformer and TransformerBridge.

    Args:
        config: The model's configuration.
        name: What the model is called.
        backend: What was asked for.
        device_map: Placement over several devices, or None.

    Returns:
        ``"hooked"`` or ``"bridge"``.

    Raises:
        ModelError: If the name is unknown, or ``"hooked"`` was asked for and cannot be had.
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
) -> Any:
    """Wrap, then compare with what the Hugging Face model computed before it was wrapped."""
    hf_model.eval()
    fingerprint = module_fingerprint(hf_model)
    probe, attention = probe_of(hf_model), hf_model.config._attn_implementation
    for_transformer_lens = _prepared(tokenizer, name)
    if backend == "hooked":
        model = hooked_transformer(hf_model, for_transformer_lens, name, share_weights=share)
    else:
        model = transformer_bridge(hf_model, for_transformer_lens, name)
    model_view = ModelView(model, tokenizer, name)
    probe.check(model_view.check_sites(probe.tokens), name, backend)
    if backend == "bridge" and attention is not None:
        model_view.try_native_attention(attention, probe)
    model_view.remember_fingerprint(fingerprint)
    return model


def _prepared(tokenizer: PreTrainedTokenizerBase | None, name: str) -> PreTrainedTokenizerBase | None:
    """Copy a tokenizer such that TransformerLens takes it as it is, instead of reloading it by name."""
    if tokenizer is None:
        return None
    prepared = copy.deepcopy(tokenizer)
    prepared.init_kwargs |= {"name_or_path": prepared.name_or_path or name, "add_bos_token": True}
    return prepared


def _absolute(name: str | Path) -> str:
    """A name that means the same from every folder."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if str(name) != "babel" and folder.is_dir() else str(name)


def _own_tokenizer(
    name: str | Path, hf_model: "transformers.PreTrainedModel | None", revision: str | None
) -> PreTrainedTokenizerBase | None:
    if hf_model is None:
        return load_tokenizer(name, revision)
    return load_tokenizer(hf_model.name_or_path) if hf_model.name_or_path else None


def _check_in_memory(
    hf_model: "transformers.PreTrainedModel", dtype: torch.dtype | None, device: Any, device_map: Any
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
        ModelError: If it is none that models load in.

    Example:
        >>> parse_dtype("bfloat16")
        torch.bfloat16
    """
    if dtype is None:
        return None
    given = str(dtype).removeprefix("torch.")
    if given not in DTYPES:
        raise ModelError(unknown("dtype", given, DTYPES))
    return DTYPES[given]


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        possible = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ModelError(unknown("device", str(device), possible)) from error
    return torch.device(device)
