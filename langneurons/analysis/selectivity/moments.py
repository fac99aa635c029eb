"""Counts, means and squared deviations of every neuron in every cell, added up as texts stream by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int


@dataclass(frozen=True, eq=False)
class Moments:
    """What is left of many values: enough for every sum of squares.

    Sums of squared deviations are kept rather than of squares: nothing cancels, however far the values are from zero.

    Attributes:
        counts: Values in each cell.
        means: Of each cell and neuron; 0 where a cell is empty.
        squares: Sum of squared deviations from the cell's mean.
    """

    counts: Int[np.ndarray, " cell"]
    means: Float[np.ndarray, "cell neuron"]
    squares: Float[np.ndarray, "cell neuron"]

    @classmethod
    def of(
        cls,
        values: Float32[np.ndarray, "row neuron"] | Float[np.ndarray, "row neuron"],
        cells: Int[np.ndarray, " row"],
        count: int,
    ) -> "Moments":
        """Take the moments of some rows.

        Args:
            values: One row a text.
            cells: Which cell each row belongs to, from 0.
            count: How many cells there are.
        """
        exact = values.astype(float)
        belongs = (cells == np.arange(count)[:, None]).astype(float)
        counts = belongs.sum(1).astype(np.int64)
        means = belongs @ exact / np.maximum(counts, 1)[:, None]
        return cls(counts, means, belongs @ np.square(exact - means[cells]))

    def __add__(self, other: "Moments") -> "Moments":
        """Both together (Chan, Golub, LeVeque 1983)."""
        counts = self.counts + other.counts
        share = (other.counts / np.maximum(counts, 1))[:, None]
        apart = other.means - self.means
        squares = self.squares + other.squares + np.square(apart) * share * self.counts[:, None]
        return Moments(counts, self.means + apart * share, squares)

    @classmethod
    def stacked(cls, parts: Sequence["Moments"]) -> "Moments":
        """The cells of several, one after the other."""
        columns = zip(*((part.counts, part.means, part.squares) for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))
