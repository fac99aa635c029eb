"""Checkpoints on disk or on the hub: configuration, weights and tokenizer; broken ones are refused in plain words."""

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from langneurons import babel, storage
from langneurons.errors import ModelError, in_short
from langneurons.models import internals
from langneurons.models.experts import check_routers

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# The most that a configuration may say: what it names is built, or listed, before any weight is read.
_LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "attention_types"), 1000),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"), 1 << 24),
    "num_labels": 100_000,
}
_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
_LONGEST_NAME = 4096
_WEIGHTS_PER_BYTE = 16  # quantised to less than a bit, none has more
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def source_of(name: str | Path) -> str:
    """Turn a name into what transformers loads: the embedded folder, a local folder, or a hub id.

    Args:
        name: ``"babel"``, a folder, or a hub id such as ``"gpt2"`` or ``"meta-llama/Llama-3.1-8B"``.

    Returns:
        A folder that has a config.json, or the hub id.

    Raises:
        ModelError: If it looks like a folder that does not exist, or has no config.json.
    """
    if not 0 < len(str(name)) < _LONGEST_NAME:
        raise ModelError(f"A model needs a name: 'babel', a folder, or a hub id, not {str(name)!r:.80}.")
    folder = babel.FOLDER if str(name) == "babel" else storage.path_of(name, ModelError)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"No model in folder {str(folder)!r}: it has no config.json.")
        return str(folder)
    if isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"No model {str(name)!r}: there is no such folder.")
    return name


def model_class(config: PretrainedConfig) -> Any:
    """Find the class that makes models of a configuration: of language, or of language and images."""
    images = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    language = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForImageTextToText if images and not language else transformers.AutoModelForCausalLM


def ends_of(hf_model: torch.nn.Module) -> tuple[int, ...]:
    """Read the ids that end what a Hugging Face model generates; chat models have several."""
    ends = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    listed = ends if isinstance(ends, list | tuple) else [ends]
    return tuple(end for end in listed if isinstance(end, int) and end >= 0)


def architecture_of(config: PretrainedConfig) -> str:
    """Name the architecture, such as ``"LlamaForCausalLM"``, or the model type where none is stored."""
    return str((config.architectures or [config.model_type])[0])[:80]


def activation_of(config: PretrainedConfig) -> str:
    """Name the MLP's activation function as the configuration does (Bloom's is a fixed tanh approximation of gelu)."""
    if config.model_type == "bloom":
        return "gelu_fast"
    text = config.get_text_config()
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    return next((activation for name in names if (activation := getattr(text, name, None))), "unknown")


def context_length_of(config: PretrainedConfig) -> int:
    """Read the longest text in tokens; Bloom's configuration says nothing binding, and was trained on 2048."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        if (length := getattr(text, name, None)) is not None:
            return int(length)
    return 2048


def sliding_window_of(config: PretrainedConfig) -> int | None:
    """Read how many positions back attention reaches in the layers that have a sliding window."""
    text = config.get_text_config()
    if not getattr(text, "use_sliding_window", True):
        return None
    return getattr(text, "sliding_window", None) or None


def load_config(name: str | Path, revision: str | None = None) -> PretrainedConfig:
    """Load a configuration and refuse models that are not dense decoders.

    Args:
        name: ``"babel"``, a folder, or a hub id.
        revision: Branch, tag or commit of a model on the hub.

    Returns:
        The configuration.

    Raises:
        ModelError: If it cannot be found or read, or the model is a mixture of experts or an encoder.
    """
    source = source_of(name)
    with reading(name, "configuration"):
        content, _ = PretrainedConfig.get_config_dict(source, revision=revision)
        for field, number in _numbers(content):
            if number > _LIMITS.get(field, number):
                raise ModelError(
                    f"The config.json of {str(name)!r} says {field} = {number:.6g}: more than {_LIMITS[field]:,} is no "
                    "model that there is."
                )
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    check_supported(config, str(name))
    return config


def _numbers(content: object, field: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a configuration with the field it is in, also of the configurations inside."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _numbers(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, field)
    elif isinstance(content, int | float):
        yield field, content


def check_supported(config: PretrainedConfig, name: str) -> None:
    """Refuse encoders, and mixtures of experts whose router has an unknown form, before any weight is read.

    Args:
        config: The model's configuration.
        name: The model's name.

    Raises:
        ModelError: If it is one.
    """
    architecture = architecture_of(config)
    masked = internals.masks_tokens(config) and not getattr(config, "is_decoder", False)
    if getattr(config, "is_encoder_decoder", False) or masked:
        raise ModelError(f"{name!r} ({architecture}) has an encoder; langneurons takes decoder-only language models.")
    if number_of_experts(config):
        with reading(name, "configuration"):
            hf_model = weights_on_meta(config)
        check_routers(hf_model, f"{name} ({architecture})")


def number_of_experts(config: PretrainedConfig) -> int:
    """Read how many experts a layer routes to; 0 of a dense model."""
    text = config.get_text_config()
    number = next((number for field in _EXPERTS if (number := getattr(text, field, None))), 0)
    return number if number > 1 else 0


def load_weights(
    name: str | Path,
    config: PretrainedConfig,
    dtype: torch.dtype | str,
    device: torch.device | None,
    device_map: object,
    revision: str | None = None,
) -> "transformers.PreTrainedModel":
    """Load a model's weights and make sure that every one of them came from the checkpoint.

    Args:
        name: ``"babel"``, a folder, or a hub id.
        config: Its configuration.
        dtype: The dtype to load in, or ``"auto"`` for the checkpoint's own.
        device: The device to load to; ignored with ``device_map``.
        device_map: Placement over several devices, as in transformers.
        revision: Branch, tag or commit of a model on the hub.

    Returns:
        The Hugging Face model in evaluation mode.

    Raises:
        ModelError: If weights are missing, of another shape, corrupt or unreachable.
    """
    source = source_of(name)
    with reading(name, "weights"):
        if Path(source).is_dir():
            _check_size(Path(source), config)
        loaded: Any = model_class(config).from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map=cast(Any, device_map),
            revision=revision,
            output_loading_info=True,
            trust_remote_code=False,
            # Mismatches are then listed, not raised, and refused below by name.
            ignore_mismatched_sizes=True,
        )
        model, report = loaded
    missing, mismatched = internals.incomplete_weights(report)
    for weights, problem in [(missing, "lacks weights that"), (mismatched, "has weights of another shape than")]:
        if weights:  # they were left at their random initial values
            first = ", ".join(sorted(weights)[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")
            raise ModelError(
                f"The checkpoint of {str(name)!r} {problem} its config.json asks for: {first}. "
                "It is incomplete, or belongs to another model."
            )
    if device_map is None and device is not None and not getattr(model, "is_quantized", False):
        model.to(device)  # a quantised model lies where it was read to, and refuses to be moved
    return model.eval()


def weights_on_meta(config: PretrainedConfig) -> "transformers.PreTrainedModel":
    """Build the model of a configuration with weights that have a shape and no storage."""
    with torch.device("meta"):
        return model_class(config).from_config(config)


def _check_size(folder: Path, config: PretrainedConfig) -> None:
    """Refuse a configuration of more weights than the files can hold: those that lack would fill the memory."""
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    described = sum(weight.numel() for weight in weights_on_meta(config).parameters())
    if stored and described > _WEIGHTS_PER_BYTE * stored:
        raise ModelError(
            f"Cannot load the weights of {str(folder)!r}: its config.json describes {described:.2g} of them, and its "
            f"files have {stored:.2g} bytes. They are truncated, or belong to another model."
        )


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Args:
        name: ``"babel"``, a folder, or a hub id.
        revision: Branch, tag or commit of a model on the hub.

    Returns:
        The tokenizer.

    Raises:
        ModelError: If there is none, or it cannot be read.
    """
    source = Path(source_of(name))
    if source.is_dir() and not any((source / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(
            f"The folder {str(source)!r} has no tokenizer.json: add one, or give a tokenizer as tokenizer=."
        )
    with reading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(str(source), revision=revision, trust_remote_code=False)
        tokenizer("a")  # some damage shows only then
    if str(name) == "babel":  # trained with a token in front that its tokenizer leaves to the caller
        internals.declare_start(tokenizer)
    return tokenizer


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Find the token that stands in front of every text, as the tokenizer itself writes it.

    Bloom's tokenizer names a beginning of sequence that it never writes, and that the model has never read.

    Args:
        tokenizer: A tokenizer.

    Returns:
        The beginning of sequence where the tokenizer writes it, or was made with ``add_bos_token=True``; else None.
    """
    bos = cast(int | None, tokenizer.bos_token_id)
    if bos is None or internals.declares_start(tokenizer):
        return bos
    return bos if cast(list[int], tokenizer("a", verbose=False)["input_ids"])[:1] == [bos] else None


def standalone_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that writes the start token itself, for engines that do not know of it.

    Args:
        tokenizer: A tokenizer.

    Returns:
        The tokenizer, or a copy of it that writes what ``start_token`` finds.
    """
    start = start_token(tokenizer)
    writes = cast(list[int], tokenizer("a", verbose=False)["input_ids"])[:1] == [start]
    return tokenizer if start is None or writes else internals.writing_start(tokenizer)


def fitting_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str
) -> PreTrainedTokenizerBase:
    """Refuse a tokenizer that turns texts into ids beyond the model's vocabulary.

    Special tokens beyond it that no text produces, such as an image's, are left alone; the end of sequence takes the
    place of a padding token among them.

    Args:
        tokenizer: The tokenizer.
        config: The model's configuration.
        name: The model's name.

    Returns:
        The tokenizer, or a copy of it that pads otherwise.

    Raises:
        ModelError: If an id that texts can have has no embedding.
    """
    size = config.get_text_config().vocab_size
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    around = [*cast(list[int], tokenizer("a", verbose=False)["input_ids"]), tokenizer.bos_token_id]
    usual = [index for index in tokenizer.get_vocab().values() if index not in special]
    used = (*usual, *around, tokenizer.eos_token_id, tokenizer.unk_token_id)
    if (highest := max((index for index in used if isinstance(index, int)), default=-1)) >= size:
        raise ModelError(
            f"The tokenizer and the vocabulary of {name!r} do not fit: the tokenizer writes ids up to {highest}, the "
            f"model has {size} embeddings. Give the model's own tokenizer as tokenizer=."
        )
    if isinstance(padding := tokenizer.pad_token_id, int) and padding >= size:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def without_debris() -> Iterator[None]:
    """Leave out the bars of other libraries where nothing can be drawn over, such as in a log."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
        yield


@contextmanager
def reading(name: str | Path, what: str) -> Iterator[None]:
    """Silence transformers' load report and turn its many exceptions into one sentence."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    converting = os.environ.get(_NO_CONVERSION)
    os.environ[_NO_CONVERSION] = "1"  # else transformers asks a service of the hub to convert weights in other formats
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # configurations, weights and tokenizers can be damaged in every way there is
        if what == "configuration" and isinstance(error, OSError) and not Path(source_of(name)).is_dir():
            raise ModelError(
                f"There is no folder {str(name)!r}, and no model of that name can be fetched from the hub: it does not "
                "exist there, needs a login, or this machine is offline."
            ) from error
        raise ModelError(f"Cannot load the {what} of {str(name)!r}: {_first_sentence(error)}") from error
    finally:
        os.environ.pop(_NO_CONVERSION)
        if converting is not None:
            os.environ[_NO_CONVERSION] = converting
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_sentence(error: Exception) -> str:
    if isinstance(error, SafetensorError):
        return f"they are corrupt or truncated ({in_short(error)}); fetch the file again."
    if not isinstance(error, OSError | ValueError | RuntimeError):  # nothing that was said to a user
        return f"its files are damaged or incomplete ({in_short(error)}); fetch them again."
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237].rsplit(" ", 1)[0] + " ..."
