"""Which weights do by themselves what patches do: each patch is a factor and a summand, which a matrix can carry.

Everything is exact but for rounding, and computed in float64; what no weight can do is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from langneurons.errors import PatchError
from langneurons.models import SITES, ModelView
from langneurons.models.experts import ROUTER_SITES
from langneurons.models.sites import LINEAR_SITES
from langneurons.patches import Add, Clamp, DiffMean, Patch, Scale, SetTo

INSTEAD = "write it while the model runs, with ln.intervene"
_TARGETS = {"pre": "gate", "act": "gate", "post": "down", "resid_post": "down", "head": "o"}
_TARGETS |= {site: site for site in LINEAR_SITES}
_BISECTIONS = 100


@dataclass(frozen=True, eq=False)
class Linear:
    """A matrix and its bias, in float64.

    Attributes:
        matrix: The matrix.
        bias: Its bias; None where it has none.
    """

    matrix: Float64[Tensor, "out in"]
    bias: Float64[Tensor, " out"] | None

    def adding(self, summand: Float64[Tensor, " out"]) -> "Linear":
        """The same with more in its bias; without a bias, nothing may be added."""
        if not summand.any():
            return self
        assert self.bias is not None
        return Linear(self.matrix, self.bias + summand)


@dataclass(frozen=True, eq=False)
class Affine:
    """What is made of each unit of a layer: factor x value + summand.

    Attributes:
        factor: The factors.
        summand: The summands.
    """

    factor: Float64[Tensor, " unit"]
    summand: Float64[Tensor, " unit"]

    @classmethod
    def unchanged(cls, width: int) -> "Affine":
        """What leaves every unit as it is."""
        return cls(torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    def then(self, units: Int[Tensor, " chosen"], factor: Tensor | float, summand: Tensor | float) -> "Affine":
        """Change some units further."""
        factors, summands = self.factor.clone(), self.summand.clone()
        factors[units] *= factor
        summands[units] = summands[units] * factor + summand
        return Affine(factors, summands)

    def of_outputs(self, linear: Linear) -> Linear:
        """The linear map that gives its outputs changed."""
        bias = None if linear.bias is None else linear.bias * self.factor
        return Linear(linear.matrix * self.factor[:, None], bias).adding(self.summand)

    def of_inputs(self, linear: Linear) -> Linear:
        """The linear map that reads its inputs changed."""
        return Linear(linear.matrix * self.factor, linear.bias).adding(linear.matrix @ self.summand)


class Folding:
    """What patches make of a model's weights.

    Patches act as in ``intervene``: site by site as a layer computes them, at one site in the order given.

    Args:
        patches: Patches to fold.
        model_view: The model.

    Raises:
        PatchError: If a patch does what no weight can.
    """

    def __init__(self, patches: Sequence[Patch], model_view: ModelView) -> None:
        self._view = model_view
        self._maps: dict[tuple[int, str], Affine] = {}
        self._constants: dict[int, tuple[Tensor, Tensor]] = {}  # neurons, and the pre-activations that give their act
        for patch in patches:
            check_weights_can(patch)
        for patch in sorted(patches, key=lambda patch: SITES.index(patch.neurons.site)):
            self._compose(patch)
        if model_view.gated:
            self._split_act()
        self._check_residual()

    @property
    def targets(self) -> set[tuple[int, str]]:
        """The layers and projections whose weights change."""
        changed = {(layer, _TARGETS[site]) for layer, site in self._maps}
        return changed | {(layer, "gate") for layer in self._constants}

    @property
    def biases(self) -> set[tuple[int, str]]:
        """The layers and projections that need a bias."""
        shifted = {(layer, _TARGETS[site]) for (layer, site), units in self._maps.items() if units.summand.any()}
        return shifted | {(layer, "gate") for layer in self._constants}

    def folded(self, layer: int, target: str, linear: Linear) -> Linear:
        """Fold the patches of a layer into one of its projections.

        Args:
            layer: The layer.
            target: The projection.
            linear: Its weights; with a bias where ``biases`` says so.
        """
        for site in SITES:
            units = self._maps.get((layer, site))
            if units is None or _TARGETS[site] != target:
                continue
            if site in ("pre", *LINEAR_SITES):
                linear = units.of_outputs(linear)
            elif site == "resid_post":
                linear = linear.adding(units.summand)
            else:
                linear = _by_column(units, linear).of_inputs(linear)
        if target == "gate" and layer in self._constants:
            units, values = self._constants[layer]
            assert linear.bias is not None
            linear = Linear(linear.matrix.index_fill(0, units, 0.0), linear.bias.index_copy(0, units, values))
        return linear

    def _compose(self, patch: Patch) -> None:
        site = patch.neurons.site
        if site == "act" and not self._view.gated:
            site = "post"
        for layer, units in patch.by_layer.items():
            before = self._maps.get((layer, site)) or Affine.unchanged(self._view.width(site))
            self._maps[layer, site] = before.then(units, *_factor_and_summand(patch, layer))

    def _split_act(self) -> None:
        """Turn what is made of ``act`` of gated MLPs into factors of ``post`` = act x up, and constants of the gate."""
        for layer in [layer for layer, site in self._maps if site == "act"]:
            act = self._maps.pop((layer, "act"))
            if bool(((act.factor != 0) & (act.summand != 0)).any()):
                raise PatchError(
                    f"No weight of {self._view.name!r} adds to act, which its MLPs multiply by up: add at pre or post "
                    f"instead, or {INSTEAD}."
                )
            units = act.summand.nonzero()[:, 0]
            if len(units):
                self._constants[layer] = (units, self._pre_giving(layer, act.summand[units]))
            factor = act.factor.index_fill(0, units, 1.0)
            after = self._maps.get((layer, "post")) or Affine.unchanged(len(factor))
            self._maps[layer, "post"] = Affine(after.factor * factor, after.summand)

    def _pre_giving(self, layer: int, act: Float64[Tensor, " chosen"]) -> Float64[Tensor, " chosen"]:
        """The pre-activations of which the activation function makes some values, on its rising side."""
        act_fn, act = self._view.act_fn(layer), act.to(self._view.device)
        grid = torch.linspace(-60, 60, 120_001).to(act)
        low, high = torch.full_like(act, float(grid[act_fn(grid).argmin()])), (2 * act.abs()).clamp(min=60)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = act_fn(middle) < act
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        missed = (act_fn(high) - act).abs() > 1e-9 * act.abs().clamp(min=1)
        if bool(missed.any()):
            least, most = self._view.act_range()
            raise PatchError(
                f"The activation function of {self._view.name!r} gives {least:.3f} to {most:.3g}, and no weight makes "
                f"it give {float(act[missed][0]):.3g}: choose a value it can give, or {INSTEAD}."
            )
        return high.cpu()

    def _check_residual(self) -> None:
        """Refuse what is made of the residual stream but a sum, and sums where the MLP's output is not added as it is.

        Raises:
            PatchError: If no weight does what is asked.
        """
        layers = sorted(layer for layer, site in self._maps if site == "resid_post")
        if any(bool((self._maps[layer, "resid_post"].factor != 1).any()) for layer in layers):
            raise PatchError(
                "No weight carries the residual stream past a layer, so SetTo and Scale at resid_post cannot be baked: "
                f"Add and DiffMean can, or {INSTEAD}."
            )
        if layers and not _adds_to_residual(self._view, layers[0]):
            raise PatchError(
                f"What the MLPs of {self._view.name!r} give is normalised or scaled before it is added to the residual "
                f"stream, so no bias adds a constant there: {INSTEAD}."
            )


def check_weights_can(patch: Patch) -> None:
    """Refuse a patch that weights cannot do, whatever the model.

    Raises:
        PatchError: If it writes at some positions only, limits what neurons do, or writes a dictionary's features.
    """
    if patch.positions != "all":
        raise PatchError(
            f"Weights are the same at every position, so {patch!r} cannot be baked: write at all positions, or "
            f"{INSTEAD}."
        )
    if patch.neurons.site in ROUTER_SITES:
        raise PatchError(
            f"No weight makes a router choose for every token as {patch!r} does: patch neurons at "
            f"{', '.join(SITES)}, or {INSTEAD}."
        )
    if patch.neurons.site not in SITES:
        raise PatchError(
            f"The features of {patch.neurons.site!r} are a dictionary's and no weights of the model: patch neurons at "
            f"{', '.join(SITES)}, or {INSTEAD}."
        )
    if not isinstance(patch, SetTo | Add | Scale | DiffMean):
        clamps = "limits what neurons do" if isinstance(patch, Clamp) else "is no SetTo, Add, Scale or DiffMean"
        raise PatchError(f"{patch!r} {clamps}, which no weight does: use SetTo, Add or Scale, or {INSTEAD}.")


def _factor_and_summand(patch: Patch, layer: int) -> tuple[Tensor | float, Tensor | float]:
    values = patch.values_of(layer)
    [value] = [value.detach().double().cpu() if isinstance(value, Tensor) else value for value in values.values()]
    if isinstance(patch, Scale):
        return value, 0.0
    return (0.0 if isinstance(patch, SetTo) else 1.0), value


def _by_column(units: Affine, linear: Linear) -> Affine:
    """What is made of units, for each of the numbers that a unit hands on: neurons one, heads d_head."""
    columns = linear.matrix.shape[1] // len(units.factor)
    return Affine(units.factor.repeat_interleave(columns), units.summand.repeat_interleave(columns))


@torch.no_grad()
def _adds_to_residual(model_view: ModelView, layer: int) -> bool:
    """Whether what is added to the output of a layer's MLP is added to the residual stream, and nothing else."""
    tokens = torch.arange(min(4, model_view.context_length))[None]

    def residual(change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        streams: list[Tensor] = []
        keep = {"resid_post": lambda index, values: streams.append(values.double()) if index == layer else None}
        with model_view.reading(keep), model_view.projection(layer, "down").changed(change):
            model_view.forward(tokens, logits=False)
        return streams[0]

    before = residual(lambda read, output: output)
    push = float(before.std())
    added = residual(lambda read, output: output + push) - before
    return bool((added - push).abs().max() < 0.1 * push)
