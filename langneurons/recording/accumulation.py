"""Adding activations to running sums: exact integers, so that order, batch size, shards and device do not matter.

Every value is rounded to a multiple of its neuron's unit (a power of two, about a ten-millionth of the neuron's spread)
before it is added, so a sum is an integer addition. One fused loop does it on a processor; tensors elsewhere go
through torch operations that give the same integers.
"""

import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.errors import FINITE_ADVICE, StatisticsError

FOLDS = 20
BINS = 128
SUM_UNITS = 20  # a sum counts in width * 2^-20
SQUARE_UNITS = 8  # a sum of squares counts in width^2 * 2^-8
FAR = 256  # bins from zero
TILE = 64
EXACT = float(2**53)  # above this a float64 no longer holds every integer
LARGEST = 2.0**63  # unit, whose square a float32 still holds


@dataclass(frozen=True)
class Grid:
    """Where each neuron's bins lie, set once per language from its calibration blocks.

    Attributes:
        width: Bin width in the coordinate.
        first: Index of the first bin, in widths from zero.
        scale: Divisor inside asinh at ``post`` and ``head``; None where the coordinate is z.
    """

    width: Float[Tensor, "layer neuron"]
    first: Int[Tensor, "layer neuron"]
    scale: Float[Tensor, "layer neuron"] | None = None

    @classmethod
    def covering(
        cls,
        low: Float[Tensor, "layer neuron"],
        high: Float[Tensor, "layer neuron"],
        scale: Float[Tensor, "layer neuron"] | None = None,
    ) -> "Grid":
        """Spread the bins over [low, high] and a tenth of the span more on each side, zero on an edge.

        Example:
            >>> grid = Grid.covering(torch.tensor([[-1.0]]), torch.tensor([[3.0]]))
            >>> bool(grid.first <= -1 / grid.width), bool(grid.first + BINS >= 3 / grid.width)
            (True, True)
        """
        low, high = low.double(), high.double()
        smallest = torch.maximum(low.abs(), high.abs()).clamp(min=1e-6) * 1e-4
        span = torch.maximum(high - low, smallest) * 1.2
        width = (span / (BINS - 2)).float()
        first = torch.floor(((low + high - span) / 2) / width.double()).int()
        return cls(width, first, scale)

    @cached_property
    def units(self) -> Float[Tensor, "layer neuron"]:
        """The power of two that a neuron's fixed-point sums are counted in: at most its bin width in values.

        Where the grid lies far from zero it is as much larger, so that squares of a nearly constant neuron still fit.
        """
        value_width = (self.width if self.scale is None else self.width * self.scale).double()
        farthest = torch.maximum(self.first.abs(), (self.first + BINS).abs()).double()
        return torch.exp2(torch.floor(torch.log2(value_width * (farthest / FAR).clamp(min=1))))

    def to(self, device: torch.device) -> "Grid":
        """The same bins on a device."""
        return Grid(self.width.to(device), self.first.to(device), None if self.scale is None else self.scale.to(device))

    def coordinate(self, layer: int, values: Float[Tensor, "token neuron"]) -> Float[Tensor, "token neuron"]:
        """Where values fall, at sites whose coordinate is their asinh."""
        return values if self.scale is None else torch.asinh(values / self.scale[layer])


@dataclass(frozen=True)
class Accumulators:
    """The running sums of one language at one site.

    ``post_absolute`` sums what the neurons hand to their output weights; empty where those are the values at the site.
    """

    histogram: Int[Tensor, "layer neuron bin"]
    active: Int[Tensor, "fold layer neuron"]
    sum: Int[Tensor, "fold layer neuron"]
    absolute: Int[Tensor, "layer neuron"]
    squares: Int[Tensor, "layer neuron"]
    post_absolute: Int[Tensor, "post_layer neuron"]
    minimum: Float[Tensor, "layer neuron"]
    maximum: Float[Tensor, "layer neuron"]
    coordinate_minimum: Float[Tensor, "layer neuron"]
    coordinate_maximum: Float[Tensor, "layer neuron"]

    @classmethod
    def zeros(
        cls, layers: int, neurons: int, tokens: int, device: torch.device, written: bool = False
    ) -> "Accumulators":
        """Empty sums; counts are 32 bits wide where ``tokens`` fit."""
        count = count_dtype(tokens)
        shape, infinite = (layers, neurons), torch.full((layers, neurons), math.inf, device=device)
        integers = partial(torch.zeros, dtype=torch.int64, device=device)
        return cls(
            histogram=integers(*shape, BINS, dtype=count),
            active=integers(FOLDS, *shape, dtype=count),
            sum=integers(FOLDS, *shape),
            absolute=integers(*shape),
            squares=integers(*shape),
            post_absolute=integers(layers if written else 0, neurons),
            minimum=infinite.clone(),
            maximum=-infinite,
            coordinate_minimum=infinite.clone(),
            coordinate_maximum=-infinite,
        )

    def add(
        self,
        layer: int,
        coordinate: Float[Tensor, "token neuron"],
        values: Float[Tensor, "token neuron"],
        folds: Int[Tensor, " token"],
        grid: Grid,
    ) -> None:
        """Add one layer's values of a batch.

        Args:
            layer: The layer.
            coordinate: What the histogram bins.
            values: What is summed and counted.
            folds: The fold of each token's document, -1 where the token is not counted.
            grid: The bins.

        Raises:
            StatisticsError: If a value is not finite, or a sum leaves the integers.
        """
        add = _add_fused if values.device.type == "cpu" else _add_with_torch
        if not (grid.units[layer] < LARGEST).all() or not add(self, layer, coordinate, values, folds, grid):
            raise _not_summed(layer, values, folds, coordinate)

    def add_written(
        self, layer: int, values: Float[Tensor, "token neuron"], folds: Int[Tensor, " token"], grid: Grid
    ) -> None:
        """Add the magnitudes of what a layer's neurons hand to their output weights, act x up on gated MLPs.

        Args:
            layer: The layer.
            values: Values at ``post``.
            folds: The fold of each token's document, -1 where the token is not counted.
            grid: The bins at ``act``, whose units the sums are counted in.

        Raises:
            StatisticsError: If a value is not finite, or a sum leaves the integers.
        """
        scale, total = 2.0**SUM_UNITS / grid.units[layer], self.post_absolute[layer]
        if values.device.type == "cpu":
            _share_threads(torch.get_num_threads())
            arrays = (values.float().contiguous(), folds, scale, total)
            fits = _run(_sum_magnitudes, *(array.numpy() for array in arrays))
        else:
            rounded = torch.round(values[folds >= 0].double().abs() * scale)
            fits = bool((rounded.sum(0) < EXACT).all())
            total += rounded.long().sum(0) if fits else 0
        if not fits or not bool((total >= 0).all()):
            raise _not_summed(layer, values, folds)


@dataclass(frozen=True)
class GroupedSums:
    """Exact sums by group of tokens, such as the sentence or the fold they are part of.

    Attributes:
        unit: The power of two that each neuron's sums are counted in; a sum counts in unit * 2^-20.
        sum: The sums.
    """

    unit: Float[Tensor, "layer neuron"]
    sum: Int[Tensor, "group layer neuron"]

    @classmethod
    def zeros(cls, unit: Float[Tensor, "layer neuron"], groups: int) -> "GroupedSums":
        """Empty sums, on the unit's device.

        Example:
            >>> sums = GroupedSums.zeros(torch.ones(1, 2), groups=2)
            >>> sums.add(0, torch.tensor([[1.0, 2.0], [5.0, 6.0]]), torch.tensor([1, -1]))
            >>> (sums.sum * 2.0**-SUM_UNITS).tolist()
            [[[0.0, 0.0]], [[1.0, 2.0]]]
        """
        return cls(unit, torch.zeros((groups, *unit.shape), dtype=torch.int64, device=unit.device))

    def add(self, layer: int, values: Float[Tensor, "token neuron"], groups: Int[Tensor, " token"]) -> None:
        """Add one layer's values of a batch.

        Args:
            layer: The layer.
            values: What is summed.
            groups: The group of each token, -1 where it is in none.

        Raises:
            StatisticsError: If a value is not finite or too large.
        """
        grouped = groups >= 0
        rounded = torch.round(values[grouped].double() / self.unit[layer] * 2.0**SUM_UNITS)
        if not bool((rounded.abs() < EXACT).all()):
            raise _not_summed(layer, values, groups)
        self.sum[:, layer].index_add_(0, groups[grouped], rounded.long())


def _not_summed(layer: int, values: Tensor, groups: Tensor, coordinate: Tensor | None = None) -> StatisticsError:
    """Say which of a layer's values cannot be summed."""
    for of in (values, values if coordinate is None else coordinate):
        wrong = ~of.isfinite() & (groups >= 0)[:, None]
        if bool(wrong.any()):
            place = tuple(wrong.nonzero()[0].tolist())
            said = f"in layer {layer}, unit {place[1]} is {float(of[place])}"
            return StatisticsError(f"Activations are not finite: {said}. {FINITE_ADVICE}")
    largest, unit = values[groups >= 0].abs().amax(0).max(0)
    return StatisticsError(f"Layer {layer} is too large to sum: unit {unit} reaches {largest:.3g}. {FINITE_ADVICE}")


def count_dtype(tokens: int) -> torch.dtype:
    """The integer type that counts of up to ``tokens`` tokens are kept in."""
    return torch.int32 if tokens < 2**31 else torch.int64


def _add_fused(sums: Accumulators, layer: int, coordinate: Tensor, values: Tensor, folds: Tensor, grid: Grid) -> bool:
    _share_threads(torch.get_num_threads())
    return _run(
        _loop,
        coordinate.float().contiguous().numpy(),
        values.float().contiguous().numpy(),
        folds.numpy(),
        ((1 / grid.width[layer]).numpy(), grid.first[layer].numpy(), (1 / grid.units[layer]).numpy()),
        (sums.histogram[layer].numpy(), sums.active[:, layer].numpy()),
        (sums.sum[:, layer].numpy(), sums.absolute[layer].numpy(), sums.squares[layer].numpy()),
        (sums.minimum[layer].numpy(), sums.maximum[layer].numpy()),
        (sums.coordinate_minimum[layer].numpy(), sums.coordinate_maximum[layer].numpy()),
    )


def _share_threads(threads: int) -> None:
    """Let the loop use as many threads as torch does, and leave torch as many as it had."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
    if torch.get_num_threads() != threads:  # starting its threads, numba gives OpenMP, and so torch, every core
        torch.set_num_threads(threads)


def _loop(coordinate, values, folds, grid, counts, totals, extremes, coordinate_extremes):
    """One pass over [token, neuron]: neurons in tiles that stay in cache, tiles in parallel."""
    per_width, first, per_unit = grid
    histogram, active = counts
    sums, absolute, squares = totals
    minimum, maximum = extremes
    coordinate_minimum, coordinate_maximum = coordinate_extremes
    tokens, neurons = values.shape
    tiles = (neurons + TILE - 1) // TILE
    fine = np.ones(tiles, np.bool_)
    for tile in numba.prange(tiles):
        start = tile * TILE
        count = min(TILE, neurons - start)
        scale = per_unit[start : start + count] * 2.0**SUM_UNITS
        square_scale = per_unit[start : start + count] ** 2 * 2.0**SQUARE_UNITS
        inverse, offset = per_width[start : start + count], first[start : start + count]
        total, total_absolute, total_squares = np.zeros(TILE), np.zeros(TILE), np.zeros(TILE)
        positive, places = np.zeros(TILE, np.int64), np.zeros(TILE, np.int32)
        counted = np.zeros(TILE * BINS, np.int32)  # one array of its own is quicker to count in than the histogram
        low, high = np.full(TILE, np.inf, np.float32), np.full(TILE, -np.inf, np.float32)
        coordinate_low, coordinate_high = np.full(TILE, np.inf, np.float32), np.full(TILE, -np.inf, np.float32)
        token = 0
        while token < tokens:
            fold = folds[token]
            if fold < 0:
                token += 1
                continue
            total[:] = 0.0
            total_absolute[:] = 0.0
            total_squares[:] = 0.0
            positive[:] = 0
            while token < tokens and folds[token] == fold:
                row = values[token, start : start + count]
                place = coordinate[token, start : start + count]
                for j in range(count):
                    value = row[j]
                    wide = np.float64(value)
                    rounded = np.rint(wide * scale[j])
                    total[j] += rounded
                    total_absolute[j] += abs(rounded)
                    total_squares[j] += np.rint(wide * wide * square_scale[j])
                    positive[j] += value > 0
                    low[j] = min(low[j], value)
                    high[j] = max(high[j], value)
                    coordinate_low[j] = min(coordinate_low[j], place[j])
                    coordinate_high[j] = max(coordinate_high[j], place[j])
                    # Compared this way round, NaN goes to the first bin: nothing is written outside the histogram.
                    bin_index = np.floor(place[j] * inverse[j]) - offset[j]
                    bin_index = bin_index if bin_index > 0.0 else 0.0
                    bin_index = bin_index if bin_index < BINS - 1.0 else BINS - 1.0
                    places[j] = np.int32(bin_index) + j * np.int32(BINS)
                for j in range(count):
                    counted[places[j]] += np.int32(1)
                token += 1
            for j in range(count):
                if not (total_absolute[j] < EXACT and total_squares[j] < EXACT):
                    fine[tile] = False
                    continue
                active[fold, start + j] += positive[j]
                sums[fold, start + j] += np.int64(total[j])
                absolute[start + j] += np.int64(total_absolute[j])
                squares[start + j] += np.int64(total_squares[j])
                if absolute[start + j] < 0 or squares[start + j] < 0:
                    fine[tile] = False
        for j in range(count):
            for b in range(BINS):
                histogram[start + j, b] += counted[j * BINS + b]
            if not (coordinate_low[j] > -np.inf and coordinate_high[j] < np.inf):
                fine[tile] = False
            minimum[start + j] = min(minimum[start + j], low[j])
            maximum[start + j] = max(maximum[start + j], high[j])
            coordinate_minimum[start + j] = min(coordinate_minimum[start + j], coordinate_low[j])
            coordinate_maximum[start + j] = max(coordinate_maximum[start + j], coordinate_high[j])
    return fine.all()


def _sum_magnitudes(values, folds, scale, totals):
    """Add |value| of the counted tokens, rounded to multiples of 1 / scale; False where a sum is no exact integer."""
    tokens, neurons = values.shape
    tiles = (neurons + TILE - 1) // TILE
    fine = np.ones(tiles, np.bool_)
    for tile in numba.prange(tiles):
        start, count = tile * TILE, min(TILE, neurons - tile * TILE)
        per_unit = scale[start : start + count]
        total = np.zeros(TILE)
        for token in range(tokens):
            if folds[token] >= 0:
                row = values[token, start : start + count]
                for j in range(count):
                    total[j] += np.rint(abs(np.float64(row[j])) * per_unit[j])
        for j in range(count):
            if total[j] < EXACT:
                totals[start + j] += np.int64(total[j])
            else:
                fine[tile] = False
    return fine.all()


@cache
def _compiled(loop: Callable[..., object]) -> Callable[..., object]:
    """A loop, compiled at its first call and kept on disk for other processes where numba finds a folder for that."""
    # Unwrapped: where tests check shapes at run time every function is wrapped, and a wrapper cannot be compiled.
    compiled = numba.njit(parallel=True, error_model="numpy")(inspect.unwrap(loop))
    with suppress(RuntimeError):
        compiled.enable_caching()
    return compiled


def _run(loop: Callable[..., object], *arguments: object) -> bool:
    try:
        return bool(_compiled(loop)(*arguments))
    except OSError:  # the loop was compiled, but could not be kept, and has not run
        return bool(_compiled(loop)(*arguments))


def _add_with_torch(
    sums: Accumulators, layer: int, coordinate: Tensor, values: Tensor, folds: Tensor, grid: Grid
) -> bool:
    """The same sums by torch operations, for devices without the fused loop."""
    counted = folds >= 0
    folds, values, coordinate = folds[counted], values[counted].float(), coordinate[counted].float()
    if not len(folds):
        return True
    units = grid.units[layer]
    wide = values.double()
    rounded = torch.round(wide / units * 2.0**SUM_UNITS)
    squares = torch.round(wide * wide / units**2 * 2.0**SQUARE_UNITS)
    low, high = coordinate.amin(0), coordinate.amax(0)
    fits = (rounded.abs().sum(0) < EXACT).all() & (squares.sum(0) < EXACT).all()
    if not bool(fits & low.isfinite().all() & high.isfinite().all()):
        return False
    bins = (torch.floor(coordinate * (1 / grid.width[layer])) - grid.first[layer]).clamp(0, BINS - 1).long()
    histogram = sums.histogram[layer]
    places = bins + torch.arange(values.shape[1], device=values.device) * BINS
    histogram.view(-1).index_add_(0, places.view(-1), torch.ones_like(places.view(-1), dtype=histogram.dtype))
    sums.active[:, layer].index_add_(0, folds, (values > 0).to(sums.active.dtype))
    sums.sum[:, layer].index_add_(0, folds, rounded.long())
    sums.absolute[layer] += rounded.abs().long().sum(0)
    sums.squares[layer] += squares.long().sum(0)
    sums.minimum[layer] = torch.minimum(sums.minimum[layer], values.amin(0))
    sums.maximum[layer] = torch.maximum(sums.maximum[layer], values.amax(0))
    sums.coordinate_minimum[layer] = torch.minimum(sums.coordinate_minimum[layer], low)
    sums.coordinate_maximum[layer] = torch.maximum(sums.coordinate_maximum[layer], high)
    return bool((sums.absolute[layer] >= 0).all() & (sums.squares[layer] >= 0).all())
