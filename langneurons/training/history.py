"""What happened at every step of a fine-tuning: kept exactly, shown while it runs, written for others to read."""

import json
import math
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float

from langneurons import storage

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
