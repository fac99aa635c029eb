"""The plain Hugging Face checkpoint that a model was loaded from: its weights, and the biases that it can be given."""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers  # PreTrainedModel is named in quotes, because its module takes seconds to import
from torch import nn
from transformers import PretrainedConfig

from langneurons.baking.folding import INSTEAD
from langneurons.errors import ModelError, PatchError
from langneurons.models import ModelView
from langneurons.models.checkpoints import architecture_of, load_config, load_weights, source_of, weights_on_meta
from langneurons.models.gguf import converted_folder, is_gguf
from langneurons.models.weights import module_fingerprint

# Options of configurations that give biases to matrices which have none by default.
_BIAS_OPTIONS = ("mlp_bias", "attention_bias", "attention_out_bias", "use_bias", "bias")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that transformers loads.

    Attributes:
        name: The name that the model was loaded under, or of its folder.
        source: ``"babel"``, a folder, or a hub id.
        revision: Branch, tag or commit of a model on the hub.
    """

    name: str
    source: str
    revision: str | None

    @classmethod
    def of(cls, model_view: ModelView) -> "Checkpoint":
        """Find what a model was loaded from.

        Raises:
            ModelError: If it was given in memory, or its weights are quantised.
        """
        origin = model_view.loaded_as
        if origin is None:
            raise ModelError(
                f"{model_view.name!r} was given as a model in memory, which its checkpoint cannot be found by: save it "
                "with hf_model.save_pretrained, and load it from that folder."
            )
        name, revision, file = str(origin["name"]), origin["revision"], origin["gguf_file"]
        label = str(file or (Path(name).name if Path(name).exists() else name))
        if is_gguf(name, file):
            name, revision = str(converted_folder(name, file, revision)), None
        checkpoint = cls(label, name, revision)
        if getattr(checkpoint.config, "quantization_config", None) is not None:
            raise ModelError(
                f"The weights of {label!r} are quantised, and nothing can be written into them: bake the checkpoint "
                "that is not quantised."
            )
        return checkpoint

    @property
    def folder(self) -> Path:
        """Its folder on this machine, unless it is on the hub."""
        return Path(source_of(self.source))

    @property
    def on_hub(self) -> bool:
        """Whether its source is a hub id."""
        return not self.folder.is_dir()

    @cached_property
    def config(self) -> PretrainedConfig:
        """Its configuration."""
        return load_config(self.source, self.revision)

    def load(self, model_view: ModelView) -> "transformers.PreTrainedModel":
        """Load the weights into the memory of this machine, in the dtype of a model that was loaded from them.

        Raises:
            ModelError: If the model has other weights.
        """
        config = copy.deepcopy(self.config)
        hf_model = load_weights(self.source, config, model_view.dtype, torch.device("cpu"), None, self.revision)
        fingerprint = module_fingerprint(hf_model)
        if fingerprint != model_view.fingerprint:
            merged = model_view.weights.is_of(fingerprint)
            what = "has updates merged into it: unmerge them and give them as updates=" if merged else (
                f"has weights ({model_view.fingerprint[:8]}) that are not those of its checkpoint "
                f"({fingerprint[:8]}): load it again"
            )  # fmt: skip
            raise ModelError(f"{self.name!r} {what}.")
        return hf_model

    def biased(self, modules: Collection[str]) -> list[str]:
        """Find the options of the configuration that give biases to modules.

        Args:
            modules: Names of linear modules of the plain model.

        Raises:
            PatchError: If none gives a module one.
        """
        if not modules:
            return []
        lacking, options, config = {f"{module}.bias" for module in modules}, [], self.config
        names = _parameters_of(config)
        for option in _BIAS_OPTIONS:
            if lacking <= names or getattr(config.get_text_config(), option, None) is not False:
                continue
            candidate = with_options(config, [option])
            gained = _parameters_of(candidate)
            if names < gained and lacking & (gained - names) and all(name.endswith("bias") for name in gained - names):
                names, config = gained, candidate
                options.append(option)
        if lacking - names:
            raise PatchError(
                f"A constant needs a bias of {min(lacking - names).removesuffix('.bias')}, and {self.name!r} "
                f"({architecture_of(config)}) can have none there: {INSTEAD}; 0 and factors need no bias."
            )
        return options


def with_options(config: PretrainedConfig, options: Collection[str]) -> PretrainedConfig:
    """Copy a configuration with some options on."""
    config = copy.deepcopy(config)
    for option in options:
        setattr(config.get_text_config(), option, True)
    return config


def add_biases(hf_model: "transformers.PreTrainedModel", options: Collection[str]) -> None:
    """Give a model, in place, the biases that some options of its configuration stand for; all are zero."""
    config = with_options(hf_model.config, options)
    for name in _parameters_of(config) - {name for name, _ in hf_model.named_parameters()}:
        linear: Any = hf_model.get_submodule(name.removesuffix(".bias"))
        size = linear.out_features
        linear.bias = nn.Parameter(torch.zeros(size, dtype=linear.weight.dtype), requires_grad=False)
    for option in options:
        setattr(hf_model.config.get_text_config(), option, True)


def _parameters_of(config: PretrainedConfig) -> set[str]:
    """Names of the parameters of a configuration's model, on tensors that have no storage."""
    return {name for name, _ in weights_on_meta(config).named_parameters()}
