"""What a histogram knows of a distribution: cumulative probabilities, quantiles, and how wrong they can be.

A neuron's histogram is uniform in a coordinate: z itself at the sites ``pre`` and ``act``, asinh(x / scale) at ``post``
and ``head``. Bin k covers ``[(first + k) * width, (first + k + 1) * width)``, so zero is always an edge of the grid;
the two end bins are open. Values of ``act`` are z pushed through the activation function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

BISECTIONS = 64


@dataclass(frozen=True)
class Histogram:
    """One language's histograms of one layer, in the coordinate."""

    counts: Int[Tensor, "neuron bin"]
    width: Float[Tensor, " neuron"]
    first: Int[Tensor, " neuron"]
    minimum: Float[Tensor, " neuron"]
    maximum: Float[Tensor, " neuron"]

    def cumulative(self) -> Float[Tensor, "neuron edge"]:
        """Share of the tokens below each bin edge, from 0 to 1."""
        below = torch.nn.functional.pad(self.counts.double().cumsum(-1), (1, 0))
        return below / below[:, -1:].clamp(min=1)

    def edges(self) -> Float[Tensor, "neuron edge"]:
        """Bin edges in the coordinate, none beyond the extremes that occurred; the open end bins end at them."""
        bins = self.counts.shape[-1]
        low, high = self.minimum.double()[:, None], self.maximum.double()[:, None]
        edges = (self.first.double()[:, None] + torch.arange(bins + 1)) * self.width.double()[:, None]
        edges = torch.minimum(torch.maximum(edges, low), high)
        edges[:, :1], edges[:, -1:] = torch.minimum(low, edges[:, 1:2]), torch.maximum(high, edges[:, -2:-1])
        return edges


class CoordinateCdf:
    """P(coordinate <= c) of one language and layer: a monotone cubic inside each bin (Fritsch and Butland, 1984)."""

    def __init__(self, histogram: Histogram):
        self.cumulative, self.edges = histogram.cumulative(), histogram.edges()
        self.width, self.first = histogram.width.double(), histogram.first.double()
        self.last_bin = histogram.counts.shape[-1] - 1
        steps = self.edges.diff(dim=1)
        density = torch.where(steps > 0, self.cumulative.diff(dim=1) / steps.clamp(min=1e-300), 0.0)
        left, right = density[:, :-1], density[:, 1:]
        inner = torch.where((left > 0) & (right > 0), 2 * left * right / (left + right).clamp(min=1e-300), 0.0)
        self.slopes = torch.cat([density[:, :1], inner, density[:, -1:]], dim=1)

    def __call__(self, at: Float[Tensor, "neuron point"]) -> Float[Tensor, "neuron point"]:
        """The interpolated probabilities."""
        ends = self._bin_ends(at)
        low, high = (self.cumulative.gather(1, end) for end in ends)
        left, right = (self.edges.gather(1, end) for end in ends)
        rise_left, rise_right = (self.slopes.gather(1, end) * (right - left) for end in ends)
        share = ((at - left) / (right - left).clamp(min=1e-300)).clamp(0, 1)
        whole = high - low
        cubic = rise_left + rise_right - 2 * whole
        square = 3 * whole - 2 * rise_left - rise_right
        inside = low + share * (rise_left + share * (square + share * cubic))
        return torch.where(at >= right, high, torch.minimum(torch.maximum(inside, low), high))

    def around(self, at: Float[Tensor, "neuron point"]) -> tuple[Tensor, Tensor]:
        """Probabilities at the two edges around each point: between them nothing is known."""
        low, high = (self.cumulative.gather(1, end) for end in self._bin_ends(at))
        return low, high

    def _bin_ends(self, at: Tensor) -> tuple[Tensor, Tensor]:
        left = (torch.floor(at / self.width[:, None]) - self.first[:, None]).clamp(0, self.last_bin).long()
        return left, left + 1


@dataclass(frozen=True)
class ActivationFunction:
    """An activation function as a table: one minimum, falling to its left and rising to its right."""

    inputs: Float[Tensor, " node"]
    outputs: Float[Tensor, " node"]

    @classmethod
    def of(cls, function: Callable[[Tensor], Tensor], nodes: int = 2**15) -> "ActivationFunction":
        """Tabulate a function on asinh-spaced nodes over [-1000, 1000].

        Example:
            >>> silu = ActivationFunction.of(torch.nn.functional.silu)
            >>> round(float(silu.minimum), 4)
            -0.2785
        """
        inputs = torch.sinh(torch.linspace(-7.6, 7.6, nodes + 1, dtype=torch.float64))
        return cls(inputs, function(inputs))

    @cached_property
    def minimum(self) -> Float[Tensor, ""]:
        """The smallest value the function takes."""
        return self.outputs.min()

    def branches(self, value: Float[Tensor, " neuron"]) -> tuple[Tensor, Tensor]:
        """The inputs left and right of the minimum that give ``value``.

        Returns:
            Left and right inputs; left is -inf where the falling branch does not reach the value.
        """
        rising, falling = self._branches
        if falling is None:
            return torch.full_like(value, -torch.inf), rising(value)
        return torch.where(value >= falling.last, -torch.inf, falling(value)), rising(value)

    @cached_property
    def _branches(self) -> "tuple[_Interpolation, _Interpolation | None]":
        """The inverse right of the minimum, and left of it unless nothing falls there."""
        turn = int(self.outputs.argmin())
        flat = int((self.outputs == self.outputs[turn]).nonzero().max())  # relu: the right end of the flat part
        rising = _Interpolation(self.outputs[flat:], self.inputs[flat:])
        if turn == 0 or flat > turn + 1:
            return rising, None
        return rising, _Interpolation(self.outputs[: turn + 1].flip(0), self.inputs[: turn + 1].flip(0))


class _Interpolation:
    """Linear interpolation on a rising table, extrapolated with its last slope."""

    def __init__(self, positions: Tensor, values: Tensor) -> None:
        self.last, self._values = positions[-1], values
        self._rising = positions.cummax(0).values

    def __call__(self, at: Tensor) -> Tensor:
        upper = torch.searchsorted(self._rising, at).clamp(1, len(self._rising) - 1)
        lower = upper - 1
        step = (self._rising[upper] - self._rising[lower]).clamp(min=1e-300)
        share = ((at - self._rising[lower]) / step).clamp(min=0)
        return self._values[lower] + share * (self._values[upper] - self._values[lower])


class ValueCdf:
    """P(value <= v) of one language and layer at any site.

    Args:
        histogram: The histogram in the coordinate.
        scale: At ``post`` and ``head``, the scale of asinh(x / scale); else None.
        act_fn: At ``act``, the function z was pushed through; else None.
    """

    def __init__(
        self,
        histogram: Histogram,
        scale: Float[Tensor, " neuron"] | None = None,
        act_fn: ActivationFunction | None = None,
    ):
        self.coordinate, self.scale, self.act_fn = CoordinateCdf(histogram), scale, act_fn

    def __call__(self, value: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
        """The interpolated probability."""
        at = self._coordinates(value)
        shares = self.coordinate(at)
        return self._at_most(value, at, shares, shares)

    def bounds(self, value: Float[Tensor, " neuron"]) -> tuple[Tensor, Tensor]:
        """The lowest and highest P(value <= v) that the histogram allows."""
        at = self._coordinates(value)
        low, high = self.coordinate.around(at)
        return self._at_most(value, at, low, high), self._at_most(value, at, high, low)

    def _coordinates(self, value: Float[Tensor, " neuron"]) -> Float[Tensor, "neuron branch"]:
        """Where the coordinate gives the value: at ``act`` right of the function's minimum, and left of it."""
        if self.act_fn is not None:
            return torch.stack(self.act_fn.branches(value)[::-1], dim=1)
        return (value if self.scale is None else torch.asinh(value / self.scale.double()))[:, None]

    def _at_most(self, value: Tensor, at: Tensor, right: Tensor, left: Tensor) -> Float[Tensor, " neuron"]:
        """P(value <= v) from the shares of the coordinate below the right and the left branch."""
        if self.act_fn is None:
            return right[:, 0]
        falling = torch.where(at[:, 1] > -torch.inf, left[:, 1], 0.0)
        return torch.where(value < self.act_fn.minimum, 0.0, (right[:, 0] - falling).clamp(0, 1))


def quantile(
    cdfs: Sequence[ValueCdf], low: Float[Tensor, " neuron"], high: Float[Tensor, " neuron"], share: float
) -> Float[Tensor, " neuron"]:
    """The value below which ``share`` of an equally weighted mixture lies, by bisection from ``low`` to ``high``."""
    start, low, high = low.double(), low.double(), high.double()
    reached = torch.stack([cdf(start) for cdf in cdfs]).mean(0) >= share
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = torch.stack([cdf(middle) for cdf in cdfs]).mean(0) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(reached, start, high)


def rank_error_bound(
    cdfs: Sequence[ValueCdf], values: Float[Tensor, " neuron"], share: float
) -> Float[Tensor, " neuron"]:
    """How far the true rank of ``values`` can be from ``share``, whatever lies inside the bins."""
    bounds = [cdf.bounds(values) for cdf in cdfs]
    low = torch.stack([bound[0] for bound in bounds]).mean(0)
    high = torch.stack([bound[1] for bound in bounds]).mean(0)
    return torch.maximum((low - share).abs(), (high - share).abs())
