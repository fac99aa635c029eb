"""Updates on disk: a folder with the neurons, the compact parameters, and what both belong to.

``neurons.json`` (a NeuronSet), ``parameters.safetensors`` (only the trained rows and columns) and ``langneurons.json``
(settings, checksums, the model's fingerprint). LoRA is beside it as plain peft reads it: see ``peft_format``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from langneurons import storage
from langneurons.errors import StorageError
from langneurons.identification.neurons import NeuronSet
from langneurons.models.projections import ATTENTION_TARGETS, HuggingFaceModule
from langneurons.training import peft_format
from langneurons.training.forms import Form, LowRank
from langneurons.training.pieces import Piece

SCHEMA = "langneurons/update/1"
SIDECAR, NEURONS, PARAMETERS = "langneurons.json", "neurons.json", "parameters.safetensors"


@dataclass(frozen=True)
class SavedUpdate:
    """What a folder says of an update.

    Attributes:
        kind: Which class wrote it.
        settings: What that class was called with.
        model: Fingerprint of the weights it was made for, None where unknown.
        pieces: Its parameters; the form is given where it is LoRA.
    """

    kind: str
    settings: dict[str, Any]
    model: str | None
    pieces: list["SavedPiece"]


@dataclass(frozen=True)
class SavedPiece:
    """What a folder says of the trained part of one projection; ``low_rank`` is None where it is no LoRA."""

    layer: int
    target: str
    shape: tuple[int, int]
    module: HuggingFaceModule
    low_rank: LowRank | None
    parameters: dict[str, torch.Tensor]

    def piece(self, neurons: NeuronSet | None, form: Form) -> Piece:
        """Make the trained part of it.

        Args:
            neurons: Those of the update, whose rows or columns are trained where this is no projection of attention.
            form: How they are changed, where it is no LoRA.
        """
        attention = self.target in ATTENTION_TARGETS
        units = None if attention or neurons is None else neurons.per_layer()[self.layer]
        parameters = {name: nn.Parameter(values) for name, values in self.parameters.items()}
        return Piece(self.layer, self.target, self.shape, units, self.low_rank or form, self.module, parameters)


def write_update(folder: Path, kind: str, settings: dict[str, Any], model: str | None, pieces: Sequence[Piece]) -> None:
    """Write an update; the sidecar comes last, so a folder with one is whole.

    Args:
        folder: Where to.
        kind: Which class writes it.
        settings: What that class was called with, the neurons among it.
        model: Fingerprint of the weights it was made for.
        pieces: Its parameters.
    """
    (folder / SIDECAR).unlink(missing_ok=True)
    neurons = settings["neurons"]
    checksums = {}
    if neurons is not None:
        checksums[NEURONS] = storage.checksum(neurons.save(folder / NEURONS))
    tensors = {
        f"{piece.name}.{name}": value.detach().cpu() for piece in pieces for name, value in piece.parameters.items()
    }
    checksums[PARAMETERS] = storage.write_tensors(folder / PARAMETERS, tensors)
    if all(isinstance(piece.form, LowRank) for piece in pieces):
        checksums |= peft_format.write(folder, pieces)
    content = {
        "kind": kind,
        "settings": {name: value for name, value in settings.items() if name != "neurons"},
        "model": model,
        "pieces": [_described(piece) for piece in pieces],
        "checksums": checksums,
    }
    storage.write_json(folder / SIDECAR, SCHEMA, content)


def read_update(folder: Path) -> SavedUpdate:
    """Read an update, and check every byte of it.

    Args:
        folder: Where it was saved.

    Raises:
        StorageError: If there is none.
        CorruptArtefactError: If a file was changed since.
    """
    content = storage.read_json(folder / SIDECAR, SCHEMA)
    with storage.understood(folder / SIDECAR):
        for name, checksum in content["checksums"].items():
            storage.verify(folder / name, checksum)
        tensors = storage.read_tensors(folder / PARAMETERS, content["checksums"][PARAMETERS])
        neurons = NeuronSet.load(folder / NEURONS) if NEURONS in content["checksums"] else None
        pieces = [_read_piece(described, tensors) for described in content["pieces"]]
        return SavedUpdate(content["kind"], {"neurons": neurons, **content["settings"]}, content["model"], pieces)


def is_ours(folder: Path) -> bool:
    """Whether a folder has our sidecar; one without may be plain peft's.

    Raises:
        StorageError: If it has neither.
    """
    if (folder / SIDECAR).exists():
        return True
    if not (folder / peft_format.CONFIG).exists():
        raise StorageError(f"{folder} holds no update: neither {SIDECAR} nor {peft_format.CONFIG} is there.")
    return False


def _described(piece: Piece) -> dict[str, Any]:
    low_rank = asdict(piece.form) if isinstance(piece.form, LowRank) else None
    return {
        "layer": piece.layer,
        "target": piece.target,
        "shape": list(piece.shape),
        "module": asdict(piece.module),
        "low_rank": low_rank,
        "parameters": sorted(piece.parameters),
    }


def _read_piece(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> SavedPiece:
    layer, target, (outputs, inputs) = described["layer"], described["target"], described["shape"]
    module = described["module"]
    runs = tuple((start, stop) for start, stop in module["runs"])
    return SavedPiece(
        layer,
        target,
        (outputs, inputs),
        HuggingFaceModule(module["name"], module["size"], runs, module["transposed"]),
        LowRank(**described["low_rank"]) if described["low_rank"] else None,
        {name: tensors[f"{layer}.{target}.{name}"] for name in described["parameters"]},
    )
