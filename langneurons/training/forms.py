"""What is trained of a matrix, or of the rows or columns of it that belong to some neurons."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

Parameters = Mapping[str, Tensor]


@runtime_checkable
class Form(Protocol):
    """How some parameters change a matrix "out in"; with the parameters it starts from, nothing changes."""

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the first parameters for a matrix of some outputs and inputs."""
        ...

    def added(
        self, parameters: Parameters, read: Tensor, given: Callable[[], Tensor], weight: Callable[[], Tensor]
    ) -> Tensor:
        """Compute what is added to what the matrix gives.

        Args:
            parameters: The parameters.
            read: What the matrix reads, "... in".
            given: Finds what it gives, "... out", bias included.
            weight: Finds the matrix.
        """
        ...

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute the matrix and the bias that do the same by themselves."""
        ...


@dataclass(frozen=True)
class LowRank:
    """W + alpha / rank x B A (Hu et al. 2021, arXiv 2106.09685, section 4.1), A drawn as peft draws it, B zero."""

    rank: int
    alpha: float | int

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Draw A "rank in" uniformly within 1 / sqrt(in), which is Kaiming's bound for a = sqrt(5)."""
        outputs, inputs = shape
        drawn = torch.rand(self.rank, inputs, generator=generator, dtype=torch.float64)
        return {"lora_A": (2 * drawn - 1) / math.sqrt(inputs), "lora_B": torch.zeros(outputs, self.rank)}

    def added(
        self, parameters: Parameters, read: Tensor, given: Callable[[], Tensor], weight: Callable[[], Tensor]
    ) -> Tensor:
        """Compute alpha / rank x B A x."""
        reduced = functional.linear(read.to(parameters["lora_A"].dtype), parameters["lora_A"])
        return functional.linear(self.alpha / self.rank * reduced, parameters["lora_B"])

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute W + alpha / rank x B A."""
        return weight + self.alpha / self.rank * (parameters["lora_B"] @ parameters["lora_A"]), bias


@dataclass(frozen=True)
class Direct:
    """W + D: every weight is trained by itself."""

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Start at D = 0."""
        return {"delta": torch.zeros(shape)}

    def added(
        self, parameters: Parameters, read: Tensor, given: Callable[[], Tensor], weight: Callable[[], Tensor]
    ) -> Tensor:
        """Compute D x."""
        return functional.linear(read.to(parameters["delta"].dtype), parameters["delta"])

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute W + D."""
        return weight + parameters["delta"], bias


@dataclass(frozen=True)
class ScaledOutputs:
    """(1 + d) x (W x + b), one factor an output (IA3: Liu et al. 2022, arXiv 2205.05638, section 3.3)."""

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Start at d = 0."""
        return {"delta": torch.zeros(shape[0])}

    def added(
        self, parameters: Parameters, read: Tensor, given: Callable[[], Tensor], weight: Callable[[], Tensor]
    ) -> Tensor:
        """Compute d x (W x + b)."""
        return given() * parameters["delta"]

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scale the rows, and the bias."""
        factor = 1 + parameters["delta"]
        return weight * factor[:, None], None if bias is None else bias * factor


@dataclass(frozen=True)
class ScaledInputs:
    """W ((1 + d) x), one factor an input (IA3, as it treats the second matrix of an MLP)."""

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Start at d = 0."""
        return {"delta": torch.zeros(shape[1])}

    def added(
        self, parameters: Parameters, read: Tensor, given: Callable[[], Tensor], weight: Callable[[], Tensor]
    ) -> Tensor:
        """Compute W (d x)."""
        scaled = read * parameters["delta"]
        return functional.linear(scaled, weight().to(scaled.dtype))

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scale the columns."""
        return weight * (1 + parameters["delta"]), bias
