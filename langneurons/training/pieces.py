"""The trained part of one projection: the rows or columns of some neurons, or all of a matrix of attention."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from langneurons.models import Projection
from langneurons.models.projections import Change, HuggingFaceModule

Parameters = Mapping[str, Tensor]
Lazy = Callable[[], Tensor]  # computes a tensor where it is needed


@runtime_checkable
class Form(Protocol):
    """A way to change a matrix "out in" by parameters; with those that it starts from, nothing changes."""

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the first parameters for a matrix of some outputs and inputs."""
        ...

    def added(self, parameters: Parameters, read: Tensor, output: Lazy, weight: Lazy) -> Tensor:
        """Compute what is added to what the matrix gives.

        Args:
            parameters: The parameters.
            read: Input of the matrix, "... in".
            output: Returns its output, "... out", bias included.
            weight: Returns the matrix.
        """
        ...

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute the matrix and the bias that do the same by themselves."""
        ...

    def of_neurons(self, axis: int) -> tuple[str, int]:
        """The parameter with an entry for every row (axis 0) or column of the matrix that changes it alone; its axis.

        Where the entry is zero, its row or column does not change.
        """
        ...


@dataclass(frozen=True)
class LowRank:
    """W + alpha / rank x B A (Hu et al. 2021, arXiv 2106.09685, section 4.1), A drawn as peft draws it, B zero."""

    rank: int
    alpha: float

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Draw A "rank in" uniformly within 1 / sqrt(in), which is Kaiming's bound for a = sqrt(5)."""
        outputs, inputs = shape
        uniform = torch.rand(self.rank, inputs, generator=generator, dtype=torch.float64)
        return {"lora_A": (2 * uniform - 1) / math.sqrt(inputs), "lora_B": torch.zeros(outputs, self.rank)}

    def added(self, parameters: Parameters, read: Tensor, output: Lazy, weight: Lazy) -> Tensor:
        """Compute alpha / rank x B A x."""
        reduced = functional.linear(read.to(parameters["lora_A"].dtype), parameters["lora_A"])
        return functional.linear(self.alpha / self.rank * reduced, parameters["lora_B"])

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute W + alpha / rank x B A."""
        return weight + self.alpha / self.rank * (parameters["lora_B"] @ parameters["lora_A"]), bias

    def of_neurons(self, axis: int) -> tuple[str, int]:
        """B has the rows, A the columns."""
        return ("lora_B", 0) if axis == 0 else ("lora_A", 1)


@dataclass(frozen=True)
class Direct:
    """W + D: every weight is trained by itself."""

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Start at D = 0."""
        return {"delta": torch.zeros(shape)}

    def added(self, parameters: Parameters, read: Tensor, output: Lazy, weight: Lazy) -> Tensor:
        """Compute D x."""
        return functional.linear(read.to(parameters["delta"].dtype), parameters["delta"])

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute W + D."""
        return weight + parameters["delta"], bias

    def of_neurons(self, axis: int) -> tuple[str, int]:
        """D has both."""
        return "delta", axis


@dataclass(frozen=True)
class ScaledOutputs:
    """(1 + d) x (W x + b), one factor per output (IA3: Liu et al. 2022, arXiv 2205.05638, section 3.3)."""

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Start at d = 0."""
        return {"delta": torch.zeros(shape[0])}

    def added(self, parameters: Parameters, read: Tensor, output: Lazy, weight: Lazy) -> Tensor:
        """Compute d x (W x + b)."""
        return output() * parameters["delta"]

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scale the rows, and the bias."""
        factor = 1 + parameters["delta"]
        return weight * factor[:, None], None if bias is None else bias * factor

    def of_neurons(self, axis: int) -> tuple[str, int]:
        """One factor per row."""
        return "delta", 0


@dataclass(frozen=True)
class ScaledInputs:
    """W ((1 + d) x), one factor per input (IA3, as it treats the second matrix of an MLP)."""

    def start(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Start at d = 0."""
        return {"delta": torch.zeros(shape[1])}

    def added(self, parameters: Parameters, read: Tensor, output: Lazy, weight: Lazy) -> Tensor:
        """Compute W (d x)."""
        scaled = read * parameters["delta"]
        return functional.linear(scaled, weight().to(scaled.dtype))

    def merged(self, parameters: Parameters, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scale the columns."""
        return weight * (1 + parameters["delta"]), bias

    def of_neurons(self, axis: int) -> tuple[str, int]:
        """One factor per column."""
        return "delta", 0


@dataclass(eq=False)
class Piece:
    """Parameters that change some rows, some columns (of down) or all of one projection's matrix.

    Attributes:
        layer: The layer.
        target: The projection.
        shape: Outputs and inputs of the projection.
        units: The neurons whose rows or columns are trained, sorted; None is the whole matrix.
        form: The form of the change, such as low rank.
        module: The module of the Hugging Face model.
        parameters: The trained parameters, only for those rows or columns.
    """

    layer: int
    target: str
    shape: tuple[int, int]
    units: Tensor | None
    form: Form
    module: HuggingFaceModule
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Layer and projection, such as ``"3.gate"``."""
        return f"{self.layer}.{self.target}"

    @property
    def axis(self) -> int:
        """The axis of the matrix "out in" along which the neurons lie."""
        return 1 if self.target == "down" else 0

    @property
    def selected(self) -> Tensor | None:
        """The units, where they are fewer than the matrix has."""
        return None if self.units is None or len(self.units) == self.shape[self.axis] else self.units

    @property
    def selected_shape(self) -> tuple[int, int]:
        """Outputs and inputs of what is trained."""
        outputs, inputs = self.shape
        if self.units is None:
            return self.shape
        return (len(self.units), inputs) if self.axis == 0 else (outputs, len(self.units))

    def begin(self, generator: torch.Generator, like: Tensor) -> None:
        """Create the parameters on a weight's device, in float32, or float64 where the weight is."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        values = self.form.start(self.selected_shape, generator)
        self.parameters = {name: nn.Parameter(value.to(like.device, dtype)) for name, value in values.items()}

    def move(self, device: torch.device) -> None:
        """Put the parameters on a device; they stay the same objects, so an optimizer keeps them."""
        for parameter in self.parameters.values():
            parameter.data = parameter.data.to(device)

    def change_of(self, projection: Projection) -> Change:
        """The change of a projection's output that the parameters stand for."""
        return partial(self._changed, projection)

    def _changed(self, projection: Projection, read: Tensor, output: Tensor) -> Tensor:
        selected = self.selected
        units = None if selected is None else selected.to(output.device)
        of_rows = None if self.axis == 1 else units
        of_columns = None if self.axis == 0 else units
        added = self.form.added(
            self.parameters,
            read if of_columns is None else read.index_select(-1, of_columns),
            lambda: output if of_rows is None else output.index_select(-1, of_rows),
            lambda: self.part(projection.matrix()),
        ).to(output.dtype)
        return output + added if of_rows is None else output.index_add(-1, of_rows, added)

    def part(self, matrix: Tensor) -> Tensor:
        """Copy the trained rows or columns of a matrix "out in" (a bias: "out")."""
        selected = self.selected
        return matrix.clone() if selected is None else matrix.index_select(self.axis, selected.to(matrix.device))

    @torch.no_grad()
    def put_back(self, neurons: Tensor) -> None:
        """Set parameters such that the rows or columns of some of its neurons do not change."""
        name, axis = self.form.of_neurons(self.axis)
        own = torch.arange(self.shape[self.axis]) if self.units is None else self.units
        places = torch.isin(own, neurons).nonzero().flatten()
        parameter = self.parameters[name]
        parameter.index_fill_(axis, places.to(parameter.device), 0.0)

    @torch.no_grad()
    def distance(self, projection: Projection) -> tuple[float, float]:
        """Squared norms of the change of the trained rows or columns, and of what they were before."""
        weight, bias = projection.matrix(), projection.bias()
        before = self.part(weight).double()
        own_bias = None if bias is None or self.axis == 1 else self.part(bias).double()
        parameters = {name: value.double() for name, value in self.parameters.items()}
        after, _ = self.form.merged(parameters, before, own_bias)
        return float((after - before).square().sum()), float(before.square().sum())

    @torch.no_grad()
    def merged(self, matrix: Tensor, bias: Tensor | None, own: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the whole matrix and bias that give what the attached change gives, in the dtype of the matrix.

        Args:
            matrix: The matrix "out in", with what other updates make of it.
            bias: The bias "out".
            own: The matrix as the model has it: of it alone, factors of inputs scale the columns.
        """
        parameters = {name: parameter.detach().to(matrix) for name, parameter in self.parameters.items()}
        before = self.part(own if isinstance(self.form, ScaledInputs) else matrix)
        bias_before = None if bias is None or self.axis == 1 else self.part(bias)
        new, new_bias = self.form.merged(parameters, before, bias_before)
        if new_bias is not None and bias is not None:
            bias = self._replaced(bias, new_bias)
        return self._replaced(matrix, self.part(matrix) + (new - before)), bias

    @torch.no_grad()
    def merge(self, projection: Projection) -> dict[str, Tensor]:
        """Write the change into the weights; returns the rows or columns, and the bias, that stood there."""
        weight, bias = projection.matrix(), projection.bias()
        before = {"weight": self.part(weight)}
        exact = next(iter(self.parameters.values())).dtype
        if bias is not None and self.axis == 0:
            before["bias"] = self.part(bias)
        new, new_bias = self.form.merged(
            self.parameters, before["weight"].to(exact), before["bias"].to(exact) if "bias" in before else None
        )
        self.write(projection, {"weight": new} | ({"bias": new_bias} if new_bias is not None else {}))
        return before

    def write(self, projection: Projection, values: Mapping[str, Tensor]) -> None:
        """Write the trained rows or columns, and the bias, and nothing else."""
        projection.set_matrix(self._replaced(projection.matrix(), values["weight"]))
        if "bias" in values and (bias := projection.bias()) is not None:
            projection.set_bias(self._replaced(bias, values["bias"]))

    def _replaced(self, whole: Tensor, part: Tensor) -> Tensor:
        selected = self.selected
        part = part.to(whole)
        return part if selected is None else whole.index_copy(self.axis, selected.to(whole.device), part)
