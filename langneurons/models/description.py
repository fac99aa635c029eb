"""A model's size and what it takes to load it, from its configuration alone, without its weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from langneurons.errors import ModelError, in_short
from langneurons.models.backends.conversion import reason_against_hooked
from langneurons.models.checkpoints import (
    architecture_of,
    check_supported,
    context_length_of,
    load_config,
    number_of_experts,
    weights_on_meta,
)
from langneurons.models.gguf import converted_folder, is_gguf, stored_as
from langneurons.models.loading import choose_backend, parse_dtype

_INTERMEDIATE = ("intermediate_size", "ffn_dim", "n_inner")


@dataclass(frozen=True)
class ModelDescription:
    """A model's shape and what it takes to load it.

    Attributes:
        name: The model's name.
        architecture: Its architecture, such as ``"LlamaForCausalLM"``.
        parameters: Number of weights, tied ones counted once.
        layers: Number of layers.
        neurons: Units per layer at each site: neurons, heads at ``head``, experts at ``router``, coordinates at q, k, v
            and resid_post.
        context_length: The longest text it takes, in tokens.
        dtype: The dtype it loads in by default.
        memory_to_load: Bytes of weights in memory after loading, for each backend it can load with.
        backend: The backend that ``auto`` takes.
        stored_as: How a GGUF file held the weights, "" for other checkpoints.
    """

    name: str
    architecture: str
    parameters: int
    layers: int
    neurons: dict[str, int]
    context_length: int
    dtype: torch.dtype
    memory_to_load: dict[str, int]
    backend: str
    stored_as: str = ""

    def __str__(self) -> str:
        neurons = ", ".join(f"{site} {self.layers * width:,}" for site, width in self.neurons.items())
        memory = ", ".join(f"{backend} {size / 1e9:.2f} GB" for backend, size in self.memory_to_load.items())
        return (
            f"{self.name} ({self.architecture}): {self.parameters:,} parameters, {self.layers} layers, context "
            f"{self.context_length:,}, {str(self.dtype).removeprefix('torch.')}\n"
            f"neurons: {neurons}\n"
            f"memory for the weights: {memory}; auto takes {self.backend}"
            + (f"\nquantised: {self.stored_as}; the weights are approximations" if self.stored_as else "")
        )


def describe(
    name: str | Path, hf_config: PretrainedConfig | None = None, gguf_file: str | None = None
) -> ModelDescription:
    """Describe a model from its configuration.

    Args:
        name: ``"babel"``, a local folder, a GGUF file, or a hub id; with ``hf_config``, what to call it.
        hf_config: A configuration in memory instead.
        gguf_file: Name of a GGUF file in the folder or hub repository.

    Returns:
        The description.

    Raises:
        ModelError: If the model cannot be found or is not supported.
    """
    folder = converted_folder(name, gguf_file) if hf_config is None and is_gguf(name, gguf_file) else name
    config = load_config(folder) if hf_config is None else hf_config
    check_supported(config, str(name))
    backend = choose_backend(config, str(name))
    text = config.get_text_config()
    dtype = torch.float32 if str(name) == "babel" else parse_dtype(text.dtype) or torch.float32
    parameters, untied, gated = _parameters(config, str(name))
    memory = {"bridge": parameters * dtype.itemsize}
    if reason_against_hooked(config) is None:
        # HookedTransformer has its own unembedding where the checkpoint ties it to the embedding.
        memory["hooked"] = (parameters + untied) * dtype.itemsize
    width = text.hidden_size
    neurons = next((size for field in _INTERMEDIATE if (size := getattr(text, field, None))), 4 * width)
    heads = text.num_attention_heads
    d_head = getattr(text, "head_dim", None) or width // heads
    keys = _heads_of_keys(text) * d_head
    experts = number_of_experts(config)
    mlp_sites = ("pre", "up", "act", "post") if gated else ("pre", "act", "post")
    of_layer = {"router": experts} if experts else {site: neurons for site in mlp_sites}
    return ModelDescription(
        name=str(name),
        architecture=architecture_of(config),
        parameters=parameters,
        layers=text.num_hidden_layers,
        neurons={
            **of_layer,
            **{"q": heads * d_head, "k": keys, "v": keys},
            "head": heads,
            "resid_post": width,
        },
        context_length=context_length_of(config),
        dtype=dtype,
        memory_to_load=memory,
        backend=backend,
        stored_as="" if folder is name else stored_as(folder),
    )


def _heads_of_keys(config: PretrainedConfig) -> int:
    """The number of heads that keys and values have, which several heads of queries may share."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    names = ("num_key_value_heads", "num_kv_heads", "num_attention_heads")
    return next(heads for name in names if (heads := getattr(config, name, None)))


def _parameters(config: PretrainedConfig, name: str) -> tuple[int, int, bool]:
    """Count a model's weights, and those of a tied unembedding; find out whether its MLPs have a gate.

    All on tensors that have no storage.
    """
    try:
        model = weights_on_meta(config)
    except (ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise ModelError(f"Cannot describe {name!r}: {in_short(error)}.") from error
    embedding = model.get_input_embeddings().get_parameter("weight").numel()
    tied = config.get_text_config().tie_word_embeddings
    gated = any(".mlp.gate_" in weight for weight, _ in model.named_parameters())
    return sum(weight.numel() for weight in model.parameters()), embedding if tied else 0, gated
