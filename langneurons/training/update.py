"""What fine-tuning asks of an update: something trainable that a model computes with for as long as it is attached."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from langneurons.identification.neurons import NeuronSet


@runtime_checkable
class Update(Protocol):
    """A change of some weights of a model, with parameters of its own; the model's parameters are never touched.

    MaskedLoRA, MaskedRows and MaskedIA3 are updates. Parameters exist from ``prepare``, or the first ``attach``, on;
    they start such that the model computes what it did before.
    """

    @property
    def name(self) -> str:
        """What kind of update this is, with its settings, for tables."""
        ...

    @property
    def neurons(self) -> NeuronSet | None:
        """The neurons whose weights are trained; None where only attention is."""
        ...

    def prepare(self, model: nn.Module) -> None:
        """Create the parameters for a model; does nothing where that was done before for the same model."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        ...

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The same by name, such as ``"3.gate.lora_A"``: layer, projection, factor."""
        ...

    def count(self) -> int:
        """Count the trained numbers."""
        ...

    def attach(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Let the model compute with the update inside the block; its own parameters get no gradients there."""
        ...

    def merge(self, model: nn.Module) -> None:
        """Write the update into the model's weights."""
        ...

    def unmerge(self, model: nn.Module) -> None:
        """Give the model the weights it had before, bit for bit."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copy the parameters' values, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set the parameters' values.

        Raises:
            TrainingError: If names or shapes are not this update's.
        """
        ...

    def save(self, folder: str | Path) -> Path:
        """Write the update into a folder; returns the folder."""
        ...
