"""Neurons as flat indices: layer x width + neuron, sorted, each once."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from langneurons.errors import NeuronSetError

Shape = tuple[int, int]


def checked_shape(shape: Sequence[int]) -> Shape:
    """Layers and neurons a layer.

    Raises:
        NeuronSetError: If they are not two positive numbers.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise NeuronSetError(f"A shape is (layers, neurons a layer), such as (32, 14336), not {tuple(shape)}.")
    return int(shape[0]), int(shape[1])


def shape_text(shape: Shape) -> str:
    """The shape in words."""
    return f"{shape[0]} layers x {shape[1]}"


def flat_indices(label: str, pairs: Iterable[Sequence[int]] | np.ndarray, shape: Shape) -> Int[np.ndarray, " n"]:
    """(layer, neuron) pairs as flat indices, sorted, each once.

    Raises:
        NeuronSetError: If something is no pair, or no neuron of that shape.

    Example:
        >>> flat_indices("hi", [(1, 2), (0, 3), (1, 2)], (2, 8)).tolist()
        [3, 10]
    """
    try:
        rows = np.asarray(pairs if isinstance(pairs, np.ndarray) else [tuple(pair) for pair in pairs])
    except (TypeError, ValueError):
        rows = np.array([None])
    if rows.size == 0:
        return np.empty(0, np.int64)
    if rows.ndim != 2 or rows.shape[1] != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise NeuronSetError(f"The neurons of {label!r} must be (layer, neuron) pairs of whole numbers.")
    outside = ((rows < 0) | (rows >= np.array(shape))).any(axis=1)
    if outside.any():
        layer, neuron = rows[outside][0].tolist()
        raise NeuronSetError(f"{label!r} holds neuron ({layer}, {neuron}), which {shape_text(shape)} do not have.")
    return np.unique(rows[:, 0].astype(np.int64) * shape[1] + rows[:, 1])


def check_flat(label: str, flat: Int[np.ndarray, " n"], shape: Shape) -> None:
    """Refuse flat indices that are out of order or out of range.

    Raises:
        NeuronSetError: If they are.
    """
    if len(flat) and (flat[0] < 0 or flat[-1] >= shape[0] * shape[1]):
        raise NeuronSetError(f"{label!r} holds a neuron that {shape_text(shape)} do not have.")
    if bool((np.diff(flat) <= 0).any()):
        raise NeuronSetError(f"The flat indices of {label!r} must increase: build the set with NeuronSet.of.")


def overlap(mine: Int[np.ndarray, " n"], theirs: Int[np.ndarray, " m"]) -> float:
    """Jaccard index of two sets of flat indices; NaN where both are empty."""
    shared = len(np.intersect1d(mine, theirs, assume_unique=True))
    either = len(mine) + len(theirs) - shared
    return shared / either if either else float("nan")
