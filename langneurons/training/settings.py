"""What decides each step of a fine-tuning besides the data: its settings, the learning rate, the order of examples."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from langneurons.errors import TrainingError, unknown

SCHEDULES = ("linear", "constant")
_POOL = 8  # batches whose examples are sorted by length together: more would waste less padding, and mix less


@dataclass(frozen=True)
class Settings:
    """How parameters are trained, whatever they are; ``finetune`` says what each number means.

    Raises:
        TrainingError: If a number makes no sense.
    """

    epochs: int
    steps: int | None
    batch_size: int
    accumulate: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    warmup: float
    schedule: str
    clip: float | None
    bfloat16: bool
    gradient_checkpointing: bool
    evaluate_every: int | None
    patience: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise TrainingError(unknown("schedule", self.schedule, SCHEDULES))
        counts = ("epochs", "steps", "batch_size", "accumulate", "evaluate_every", "patience")
        wrong: dict[str, Any] = {name: "at least 1" for name in counts if (getattr(self, name) or 1) < 1}
        wrong |= {name: "at least 1" for name in counts if getattr(self, name) == 0}
        wrong |= {name: "a whole number" for name in (*counts, "seed") if (getattr(self, name) or 0) % 1}
        if self.seed < 0:
            wrong["seed"] = "at least 0"
        if not 0 < self.learning_rate < math.inf:
            wrong["learning_rate"] = "above 0, and finite"
        if not 0 <= self.weight_decay < math.inf:
            wrong["weight_decay"] = "at least 0, and finite"
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            wrong["betas"] = "two numbers from 0 to below 1"
        if not 0 <= self.warmup < 1:
            wrong["warmup"] = "a share of the steps, from 0 to below 1"
        if self.clip is not None and not self.clip > 0:
            wrong["clip"] = "above 0, or None"
        for name, possible in wrong.items():
            raise TrainingError(f"{name} is {possible}, given {getattr(self, name)}.")

    def rate(self, step: int, steps: int) -> float:
        """Find the learning rate of a step.

        Args:
            step: Which, from 0.
            steps: How many there are.

        Returns:
            It rises in equal parts during the warm-up, then stays or falls to nearly 0; it is never 0.
        """
        warm = round(self.warmup * steps)
        if step < warm:
            share = (step + 1) / (warm + 1)
        else:
            share = 1.0 if self.schedule == "constant" else (steps - step) / (steps - warm)
        return float(self.learning_rate * share)


class Order:
    """Which examples each step sees: every one once an epoch, in an order that seed and epoch alone decide.

    Examples of similar length share a batch, so that little padding is computed; which do changes with every epoch.

    Args:
        lengths: Of each example, in tokens.
        batch_size: Examples a forward.
        accumulate: Batches a step.
        seed: Of the order.
    """

    def __init__(self, lengths: Int[np.ndarray, " example"], batch_size: int, accumulate: int, seed: int) -> None:
        self._lengths, self._batch_size, self._accumulate, self._seed = lengths, batch_size, accumulate, seed
        self._epoch: tuple[int, list[np.ndarray]] | None = None
        batches = -(-len(lengths) // batch_size)
        self.steps_per_epoch = -(-batches // accumulate)

    def batches(self, step: int) -> list[Int[np.ndarray, " row"]]:
        """The batches of a step, from 0: the ordinals of their examples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][place * self._accumulate : (place + 1) * self._accumulate]

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([self._seed, epoch])
        rows, pool = random.permutation(len(self._lengths)), _POOL * self._batch_size
        batches = []
        for start in range(0, len(rows), pool):
            near = rows[start : start + pool]
            near = near[np.argsort(self._lengths[near], kind="stable")]
            batches += [near[first : first + self._batch_size] for first in range(0, len(near), self._batch_size)]
        return [batches[index] for index in random.permutation(len(batches))]
