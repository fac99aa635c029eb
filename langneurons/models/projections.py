"""The matrices of a layer that can be trained: their inputs, their outputs, and where their weights are stored.

``gate`` computes the pre-activation (on MLPs without a gate: the first matrix), ``up`` the factor that ``act`` is
multiplied by, ``down`` reads ``post``; ``q``, ``k``, ``v`` and ``o`` are attention's. A change is made between the
matrix and the hook points, so that patches see what was trained, whichever was entered first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import nn
from torch.utils.hooks import RemovableHandle

from langneurons.errors import TrainingError, unknown

MLP_TARGETS = ("gate", "up", "down")
ATTENTION_TARGETS = ("q", "k", "v", "o")

_MATRIX = "d_out d_in"
# How a matrix is read from the layouts that it is stored in.
_READ = {"d_in d_out": _MATRIX, "head d_in d_head": "(head d_head) d_in", "head d_head d_out": "d_out (head d_head)"}
_READ |= {"head d_head": "(head d_head)"}

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Point = Callable[[Change], list[RemovableHandle]]


@dataclass(frozen=True)
class Stored:
    """One parameter that holds a projection's matrix, or several projections' in its rows.

    Attributes:
        parameter: The parameter.
        layout: ``"d_out d_in"``, ``"d_in d_out"``, ``"head d_in d_head"`` or ``"head d_head d_out"``; of a bias,
            ``"d_out d_in"`` or ``"head d_head"``.
        rows: The rows of the matrix that are this projection's; None is all.
    """

    parameter: nn.Parameter
    layout: str = _MATRIX
    rows: torch.Tensor | None = None

    def read(self) -> torch.Tensor:
        """The projection's matrix "out in", or its bias "out"."""
        whole = self._whole()
        return whole if self.rows is None else whole.index_select(0, self.rows.to(whole.device))

    @torch.no_grad()
    def write(self, values: torch.Tensor) -> None:
        """Write the matrix in place: the parameter, its strides and the other projections' rows stay."""
        parameter = self.parameter
        if self.rows is not None:
            values = self._whole().index_copy(0, self.rows.to(parameter.device), values.to(parameter))
        if self.layout != _MATRIX:
            heads = {"head": len(parameter)} if "head" in self.layout else {}
            values = rearrange(values, f"{_READ[self.layout]} -> {self.layout}", **heads)
        parameter.copy_(values)

    def _whole(self) -> torch.Tensor:
        weight = self.parameter.detach()
        return weight if self.layout == _MATRIX else rearrange(weight, f"{self.layout} -> {_READ[self.layout]}")


@dataclass(frozen=True)
class HuggingFaceModule:
    """The module of the plain Hugging Face model that computes a projection.

    Attributes:
        name: Such as ``"model.layers.3.mlp.gate_proj"``.
        size: Number of its outputs; more than the projection's where others are fused with it.
        runs: The projection's outputs: stretches (first, one past the last), in order.
        transposed: Whether it stores its weight as "in out" (Conv1D).
    """

    name: str
    size: int
    runs: tuple[tuple[int, int], ...]
    transposed: bool = False


@dataclass(eq=False)
class Projection:
    """One matrix of one layer, on either backend.

    Attributes:
        layer: The layer.
        target: One of ``MLP_TARGETS`` or ``ATTENTION_TARGETS``.
        weights: Where its matrix is stored; bridges keep some twice.
        biases: Where its bias is stored, if it has one.
        points: Install a change where it is computed, and give the handles to remove; each forward passes one of them.
        hugging_face: Its module in the plain model.
        changes: Number of changes in force.
    """

    layer: int
    target: str
    weights: list[Stored]
    biases: list[Stored]
    points: list[Point]
    hugging_face: HuggingFaceModule
    changes: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs, inputs = self.matrix().shape
        return outputs, inputs

    def matrix(self) -> Float[torch.Tensor, "out in"]:
        """The weight as it is now; a view where the model stores it so, thus not to be written to."""
        return self.weights[0].read()

    def bias(self) -> Float[torch.Tensor, " out"] | None:
        """The bias as it is now."""
        return self.biases[0].read() if self.biases else None

    def set_matrix(self, values: Float[torch.Tensor, "out in"]) -> None:
        """Write the weight in place, wherever it is stored."""
        for stored in self.weights:
            stored.write(values)

    def set_bias(self, values: Float[torch.Tensor, " out"]) -> None:
        """Write the bias in place, wherever it is stored."""
        for stored in self.biases:
            stored.write(values)

    @contextmanager
    def changed(self, change: Change) -> Iterator[None]:
        """Change what the projection gives in every forward inside the block; several changes act in turn.

        Args:
            change: A function of (what the projection reads, "... in"; what it gives, "... out") that returns what it
                shall give. Patches at the neurons are seen in the first and see the result.
        """
        with ExitStack() as stack:
            for handle in [handle for point in self.points for handle in point(change)]:
                stack.callback(handle.remove)
            self.changes += 1
            try:
                yield
            finally:
                self.changes -= 1


def check_target(target: str, gated: bool) -> None:
    """Refuse a projection that a model does not have.

    Args:
        target: The projection's name.
        gated: Whether the model's MLPs have an ``up``.

    Raises:
        TrainingError: If there is no such projection.
    """
    if target not in MLP_TARGETS + ATTENTION_TARGETS:
        raise TrainingError(unknown("projection", target, MLP_TARGETS + ATTENTION_TARGETS))
    if target == "up" and not gated:
        raise TrainingError(
            "This model's MLP has no gate, hence no 'up': possible are gate (its first matrix) and down."
        )


def runs_in_turn(sizes: Sequence[int], index: int) -> tuple[tuple[int, int], ...]:
    """Find one of several projections that a fused matrix holds one after the other (GPT-2, Phi-3)."""
    start = sum(sizes[:index])
    return ((start, start + sizes[index]),)


def runs_by_head(n_heads: int, size: int, index: int) -> tuple[tuple[int, int], ...]:
    """Find q, k or v in a fused matrix that holds the three of each head in turn (Bloom)."""
    d_head = size // n_heads
    starts = [(3 * head + index) * d_head for head in range(n_heads)]
    return tuple((start, start + d_head) for start in starts)


def rows_of(runs: Sequence[tuple[int, int]]) -> Int[torch.Tensor, " row"]:
    """List the rows in some runs."""
    return torch.cat([torch.arange(start, stop) for start, stop in runs])
