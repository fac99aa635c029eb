"""What every task gives: rows of scored items, the same items under every condition."""

from typing import Protocol, runtime_checkable

import pandas as pd
import torch


@runtime_checkable
class Task(Protocol):
    """Items in several languages and a way to score a model on them.

    Any object with these names can be given to ``ln.evaluate``.
    """

    @property
    def name(self) -> str:
        """What is asked, such as ``"xnli"``."""
        ...

    @property
    def protocol(self) -> str:
        """How the answer is read off the model: ``"likelihood"``, ``"head"`` or ``"generation"``."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Columns of the rows that are scores, higher is better, the main one first."""
        ...

    @property
    def generates(self) -> bool:
        """Whether the model generates; only then does a patch of generated positions do anything."""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it has items in."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the items and of everything that decides how they are scored, but not of the model."""
        ...

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Score a model on the items of one language, with whatever is attached to it at this moment.

        Returns:
            One row an item: item, cluster, prediction, gold (texts) and each of ``metrics`` (0 to 1); perhaps more.
        """
        ...

    def references(self, language: str) -> dict[str, float]:
        """What the main metric is worth without the model, by name, such as chance."""
        ...
