"""The folder of a fine-tuning: which run it is, and its last checkpoint, from which it goes on exactly.

A checkpoint is written into the slot that the current one does not occupy, then a small JSON file points at it: a run
killed at any moment leaves a whole one behind.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from langneurons import storage
from langneurons.errors import StaleArtefactError

RUN = "langneurons/finetuning/1"
CHECKPOINT = "langneurons/finetuning-checkpoint/1"


class RunFolder:
    """Where a run keeps its checkpoints.

    Args:
        folder: The folder; it is made.
        identity: Everything that decides what comes out of the run, by name.

    Raises:
        StaleArtefactError: If the folder holds another run; the message names what differs.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / "run.json"
        if path.exists():
            self._check_same(storage.read_json(path, RUN), identity)
        else:
            storage.write_json(path, RUN, identity)
        self._slot = 0

    @property
    def log(self) -> Path:
        """Where the log goes."""
        return self.folder / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The file that points at the last checkpoint."""
        return self.folder / "checkpoint.json"

    def save(self, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Write a checkpoint; until it is whole the one before stands."""
        slot = 1 - self._slot
        written = storage.write_tensors(self._tensors(slot), {name: one.cpu() for name, one in tensors.items()})
        storage.write_json(self.checkpoint, CHECKPOINT, {**about, "checksum": written, "slot": slot})
        self._slot = slot

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Read the last checkpoint: its tensors, and what was said about it; None where there is none.

        Raises:
            CorruptArtefactError: If it was changed.
        """
        if not self.checkpoint.exists():
            return None
        about = storage.read_json(self.checkpoint, CHECKPOINT)
        with storage.understood(self.checkpoint):
            self._slot = about.pop("slot")
            return storage.read_tensors(self._tensors(self._slot), about.pop("checksum")), about

    def _tensors(self, slot: int) -> Path:
        return self.folder / f"checkpoint-{'ab'[slot]}.safetensors"

    def _check_same(self, kept: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        names = sorted(set(kept) | set(identity))
        other = [name for name in names if kept.get(name) != identity.get(name)]
        if other:
            said = ", ".join(f"{name} ({kept.get(name)!s:.160}, now {identity.get(name)!s:.160})" for name in other)
            raise StaleArtefactError(
                f"{self.folder} holds a fine-tuning that differs in {said}: give another folder, or remove this one."
            )
