"""The folder of a fine-tuning: which run it is, and its last checkpoint, from which it goes on exactly.

A checkpoint is written into the slot that the current one does not occupy, then a small JSON file points at it: a run
killed at any moment leaves a whole one behind.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float

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


COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "dev")


class History:
    """One row a step, in order."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, epoch: int, loss: float, learning_rate: float, grad_norm: float) -> None:
        """Note a step that was taken."""
        values = (float(len(self.rows) + 1), float(epoch), loss, learning_rate, grad_norm, math.nan)
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))

    def measured(self, dev: float) -> None:
        """Note what the development set gives after the last step."""
        self.rows[-1]["dev"] = dev

    def table(self) -> pd.DataFrame:
        """All of it as a table; step and epoch are integers."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS)).astype({"step": int, "epoch": int})

    def tensor(self) -> Float[torch.Tensor, "step column"]:
        """All of it as numbers in double precision, which lose nothing."""
        values = [[row[column] for column in COLUMNS] for row in self.rows]
        return torch.tensor(values, dtype=torch.float64).reshape(-1, len(COLUMNS))

    def restore(self, values: Float[torch.Tensor, "step column"]) -> None:
        """Take over what ``tensor`` gave."""
        self.rows = [dict(zip(COLUMNS, row, strict=True)) for row in values.tolist()]

    def write_log(self, path: Path) -> None:
        """Write a line of JSON a step; what was not measured is left out."""
        lines = [{name: value for name, value in row.items() if not math.isnan(value)} for row in self.rows]
        storage.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
