"""The folder of a fine-tuning: the identity of the run, and its last checkpoint, from which it continues exactly.

A checkpoint is written into the slot that the current one does not occupy, then a small JSON file points at it: a run
killed at any moment leaves a complete one behind.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float

from langneurons import storage

RUN = "langneurons/finetuning/1"
CHECKPOINT = "langneurons/finetuning-checkpoint/1"


class RunFolder:
    """Where a run keeps its checkpoints.

    Args:
        folder: The folder; it is created where it is missing.
        identity: Everything that decides the result of the run, by name.

    Raises:
        StaleArtefactError: If the folder holds another run; the message names what differs.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, object]) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / "run.json"
        if path.exists():
            storage.check_same(self.folder, "fine-tuning", storage.read_json(path, RUN), identity)
        else:
            storage.write_json(path, RUN, identity)
        self._slot = 0

    @property
    def log(self) -> Path:
        """The log, one line of JSON per step."""
        return self.folder / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The file that points at the last checkpoint."""
        return self.folder / "checkpoint.json"

    def save(self, tensors: Mapping[str, torch.Tensor], about: Mapping[str, object]) -> None:
        """Write a checkpoint; until it is complete the previous one counts."""
        slot = 1 - self._slot
        on_cpu = {name: values.cpu() for name, values in tensors.items()}
        checksum = storage.write_tensors(self._tensors(slot), on_cpu)
        storage.write_json(self.checkpoint, CHECKPOINT, {**about, "checksum": checksum, "slot": slot})
        self._slot = slot

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Read the last checkpoint: its tensors, and the state saved with them; None where there is none.

        Raises:
            CorruptArtefactError: If its files were changed.
        """
        if not self.checkpoint.exists():
            return None
        about = storage.read_json(self.checkpoint, CHECKPOINT)
        with storage.understood(self.checkpoint):
            self._slot = about.pop("slot")
            return storage.read_tensors(self._tensors(self._slot), about.pop("checksum")), about

    def _tensors(self, slot: int) -> Path:
        return self.folder / f"checkpoint-{'ab'[slot]}.safetensors"


COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "dev")


class History:
    """One row per step, in order.

    Args:
        metrics: What is measured on the development set; the first is the column ``dev``, further ones have their own.
    """

    def __init__(self, metrics: Sequence[str] = ()) -> None:
        self.rows: list[dict[str, float]] = []
        self._measured = ("dev", *(f"dev_{metric}" for metric in metrics[1:]))
        self._columns = (*COLUMNS[:-1], *self._measured)

    def add(self, epoch: int, loss: float, learning_rate: float, grad_norm: float) -> None:
        """Add a step that was taken."""
        values = (float(len(self.rows) + 1), float(epoch), loss, learning_rate, grad_norm)
        self.rows.append(dict(zip(COLUMNS[:-1], values, strict=True)) | dict.fromkeys(self._measured, math.nan))

    def measured(self, values: Sequence[float]) -> None:
        """Add what was measured on the development set after the last step."""
        self.rows[-1] |= dict(zip(self._measured, values, strict=True))

    def table(self) -> pd.DataFrame:
        """The history as a table; step and epoch are integers."""
        return pd.DataFrame(self.rows, columns=list(self._columns)).astype({"step": int, "epoch": int})

    def tensor(self) -> Float[torch.Tensor, "step column"]:
        """The history as numbers in double precision, which lose nothing."""
        values = [[row[column] for column in self._columns] for row in self.rows]
        return torch.tensor(values, dtype=torch.float64).reshape(-1, len(self._columns))

    def restore(self, values: Float[torch.Tensor, "step column"]) -> None:
        """Continue from what ``tensor`` returned."""
        self.rows = [dict(zip(self._columns, row, strict=True)) for row in values.tolist()]

    def write_log(self, path: Path) -> None:
        """Write one line of JSON per step; what was not measured is left out."""
        lines = [{name: value for name, value in row.items() if not math.isnan(value)} for row in self.rows]
        storage.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
