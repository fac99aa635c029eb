"""The trained part of one projection: the rows or columns of some neurons, or all of a matrix of attention."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from langneurons.models import Projection
from langneurons.models.projections import Change, HuggingFaceModule
from langneurons.training.forms import Form

_AXES = {"gate": 0, "up": 0, "down": 1}


@dataclass(eq=False)
class Piece:
    """Parameters that change some rows (of gate, up), some columns (of down) or all of one projection's matrix.

    Attributes:
        layer: The layer.
        target: The projection.
        shape: Outputs and inputs of the projection.
        units: The neurons whose rows or columns are trained, sorted; None is the whole matrix.
        form: How they are changed.
        module: The module of the Hugging Face model.
        parameters: What is trained, only for those rows or columns.
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
        """Which axis of the matrix "out in" the neurons are on."""
        return _AXES.get(self.target, 0)

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
        """Make the change of what a projection gives that the parameters stand for."""
        return partial(self._changed, projection)

    def _changed(self, projection: Projection, read: Tensor, given: Tensor) -> Tensor:
        selected = self.selected
        units = None if selected is None else selected.to(given.device)
        of_rows = None if self.axis == 1 else units
        of_columns = None if self.axis == 0 else units
        added = self.form.added(
            self.parameters,
            read if of_columns is None else read.index_select(-1, of_columns),
            lambda: given if of_rows is None else given.index_select(-1, of_rows),
            lambda: self.part(projection.matrix()),
        ).to(given.dtype)
        return given + added if of_rows is None else given.index_add(-1, of_rows, added)

    def part(self, matrix: Tensor) -> Tensor:
        """Copy the trained rows or columns of a matrix "out in" (a bias: "out")."""
        selected = self.selected
        return matrix.clone() if selected is None else matrix.index_select(self.axis, selected.to(matrix.device))

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
