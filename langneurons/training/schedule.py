"""What decides each step of a fine-tuning besides the examples themselves: its learning rate, and their order."""

import numpy as np
from jaxtyping import Int

from langneurons.settings import Training

_POOL = 8  # batches whose examples are sorted by length together: more would waste less padding, and mix less


def rate(training: Training, step: int, steps: int) -> float:
    """Find the learning rate of a step.

    Args:
        training: Settings of the training.
        step: Index of the step, from 0.
        steps: Number of steps.

    Returns:
        It rises in equal parts during the warm-up, then stays or falls to nearly 0; it is never 0.
    """
    warm = round(training.warmup * steps)
    if step < warm:
        share = (step + 1) / (warm + 1)
    else:
        share = 1.0 if training.schedule == "constant" else (steps - step) / (steps - warm)
    return float(training.learning_rate * share)


class Order:
    """The examples of each step: every example once per epoch, in an order that seed and epoch alone decide.

    Examples of similar length share a batch, so that little padding is computed; which do changes with every epoch.

    Args:
        lengths: Number of tokens of each example.
        batch_size: Examples per forward pass.
        accumulate: Forward passes per step.
        seed: Seed for the order.
    """

    def __init__(self, lengths: Int[np.ndarray, " example"], batch_size: int, accumulate: int, seed: int) -> None:
        self._lengths, self._batch_size, self._accumulate, self._seed = lengths, batch_size, accumulate, seed
        self._epoch: tuple[int, list[np.ndarray]] | None = None
        batches = -(-len(lengths) // batch_size)
        self.steps_per_epoch = -(-batches // accumulate)

    def batches(self, step: int) -> list[Int[np.ndarray, " row"]]:
        """The batches of a step, from 0: the indices of their examples."""
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
