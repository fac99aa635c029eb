import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langneurons.errors import StatisticsError
from langneurons.recording.accumulation import (
    BINS,
    FAR,
    FOLDS,
    SQUARE_UNITS,
    SUM_UNITS,
    Accumulators,
    Grid,
    _add_with_torch,
)

CPU = torch.device("cpu")


def sample(tokens: int, neurons: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Grid]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, neurons, generator=generator) * 2 - 0.5
    folds = torch.randint(-1, FOLDS, (tokens,), generator=generator)
    grid = Grid.covering(z.quantile(0.01, 0)[None], z.quantile(0.99, 0)[None])
    return z, torch.nn.functional.silu(z), folds, grid


def equal(left: Accumulators, right: Accumulators) -> bool:
    return all(torch.equal(value, vars(right)[name]) for name, value in vars(left).items())


def test_sums_equal_a_loop_over_every_token_and_neuron():
    z, act, folds, grid = sample(60, 5)
    sums = Accumulators.zeros(1, 5, 60, CPU)
    sums.add(0, z, act, folds, grid)
    for j in range(5):
        unit = float(grid.units[0, j])
        for fold in range(FOLDS):
            values = [float(act[t, j]) for t in range(60) if folds[t] == fold]
            assert int(sums.active[fold, 0, j]) == sum(value > 0 for value in values)
            assert int(sums.sum[fold, 0, j]) == sum(round(value / unit * 2**SUM_UNITS) for value in values)
        counted = [t for t in range(60) if folds[t] >= 0]
        squares = sum(round(float(act[t, j]) ** 2 / unit**2 * 2**SQUARE_UNITS) for t in counted)
        assert int(sums.squares[0, j]) == squares
        expected = np.zeros(BINS, int)
        for t in counted:
            position = math.floor(np.float32(z[t, j]) * np.float32(1 / grid.width[0, j])) - int(grid.first[0, j])
            expected[min(max(position, 0), BINS - 1)] += 1
        assert sums.histogram[0, j].tolist() == expected.tolist()
        assert float(sums.minimum[0, j]) == min(float(act[t, j]) for t in counted)
        assert float(sums.coordinate_maximum[0, j]) == max(float(z[t, j]) for t in counted)


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 90), max_size=4),
    neurons=st.sampled_from([1, 63, 64, 65, 130]),
    backwards=st.booleans(),
)
def test_any_split_and_order_of_the_tokens_gives_the_same_integers(cuts, neurons, backwards):
    z, act, folds, grid = sample(90, neurons)
    whole = Accumulators.zeros(1, neurons, 90, CPU)
    whole.add(0, z, act, folds, grid)
    parts = Accumulators.zeros(1, neurons, 90, CPU)
    edges = [0, *sorted(cuts), 90]
    pieces = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]
    for piece in reversed(pieces) if backwards else pieces:
        parts.add(0, z[piece], act[piece], folds[piece], grid)
    assert equal(whole, parts)


def test_torch_operations_give_the_same_integers_as_the_fused_loop():
    z, act, folds, grid = sample(200, 70)
    fused, plain = (Accumulators.zeros(1, 70, 200, CPU) for _ in range(2))
    fused.add(0, z, act, folds, grid)
    assert _add_with_torch(plain, 0, z, act, folds, grid)
    assert equal(fused, plain)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_activations_that_are_not_finite_are_refused(bad):
    z, act, folds, grid = sample(20, 3)
    act[folds >= 0, 1] = bad
    with pytest.raises(StatisticsError, match="not finite"):
        Accumulators.zeros(1, 3, 20, CPU).add(0, z, act, folds, grid)


def test_uncounted_tokens_change_nothing_even_if_not_finite():
    z, act, folds, grid = sample(20, 3)
    act[folds < 0] = math.nan
    z[folds < 0] = math.inf
    with_padding, without = (Accumulators.zeros(1, 3, 20, CPU) for _ in range(2))
    with_padding.add(0, z, act, folds, grid)
    without.add(0, z[folds >= 0], act[folds >= 0], folds[folds >= 0], grid)
    assert equal(with_padding, without)


@given(low=st.floats(-1e4, 1e4), span=st.floats(0, 1e4))
def test_the_grid_covers_its_range_with_zero_on_an_edge(low, span):
    low, high = torch.tensor([[low]]), torch.tensor([[low + span]])
    grid = Grid.covering(low, high)
    width, first = float(grid.width), int(grid.first)
    assert first * width <= float(low) + 1e-6 * abs(float(low))
    assert (first + BINS) * width >= float(high) - 1e-6 * abs(float(high))
    farthest = max(abs(first), abs(first + BINS))
    assert float(grid.units) <= width * max(1, farthest / FAR) < 2 * float(grid.units)


ALONE = """
import torch
from langneurons.recording.accumulation import Accumulators, Grid
z = torch.randn(50, 3)
Accumulators.zeros(1, 3, 50, z.device).add(0, z, z, torch.zeros(50, dtype=torch.long), Grid.covering(z[:1], z[1:2]))
print(torch.get_num_threads())
"""


def test_recording_leaves_torch_as_many_threads_as_it_had():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
