"""Reading and writing neurons while a model runs, in the same words on HookedTransformer and TransformerBridge.

Every model has ``pre`` (the gate's pre-activation z), ``act`` (act_fn(z)), ``post`` (what W_out reads), ``head`` (the
attention output of each head) and ``resid_post`` (the residual stream after the layer, where the field steers). Most
have ``up`` (the linear factor of ``post``, in gated MLPs) and ``q``, ``k`` and ``v`` (what attention's matrices give,
before norms of queries and keys and before rotation; coordinates of all heads in turn).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import nn

from langneurons.errors import HookSiteError
from langneurons.models import internals
from langneurons.models.internals import HookPoint

# In the order in which a layer computes those that belong together.
SITES = ("pre", "up", "act", "post", "q", "k", "v", "head", "resid_post")
ATTENTION_SITES = ("q", "k", "v")
LINEAR_SITES = ("up", *ATTENTION_SITES)  # which not every model has, or lets hooks reach
OF_MLP = ("pre", "up", "act", "post")  # what a layer has only where every token runs one MLP

Reader = Callable[[int, torch.Tensor], object]
Change = Callable[[int, torch.Tensor], torch.Tensor]
Hook = Callable[[torch.Tensor], torch.Tensor | None]
# A hook point, and the columns of its tensor that are a site's units; None is all.
Place = tuple[HookPoint, Int[torch.Tensor, " unit"] | None]

_UNIT_AXIS = 2
_ROWS = 1024  # of a matrix that are read at once where it can only be read by using it


@contextmanager
def attached(hooks: Sequence[tuple[HookPoint, Hook]]) -> Iterator[None]:
    """Attach functions to hook points inside a block; afterwards these, and no others, are gone."""
    with ExitStack() as stack:
        for point, function in hooks:
            stack.callback(internals.attach(point, function))
        yield


@dataclass(eq=False)
class Layer:
    """One layer's hook points, and what the running forward has computed of its activation.

    ``adds_bias``: the MLP adds b_in after the product act x up (HookedTransformer), not inside up (a bridge).
    ``flattened``: the MLP (OPT's) sees batch and position as one axis. ``outputs``: from "q", "k" or "v" to the places
    where that matrix hands on what it gives, of which each forward passes one. ``mlp`` is None where every token runs
    experts only, ``router`` what routes to them.
    """

    index: int
    mlp: Any
    attention: Any
    input_point: HookPoint
    output_point: HookPoint
    act_fn: Callable[[torch.Tensor], torch.Tensor]
    gated: bool
    adds_bias: bool
    n_heads: int
    outputs: Callable[[str], list[Place]]
    router: nn.Module | None = None
    flattened: bool = False
    batch_size: int = 1
    act_writers: int = 0
    pre: torch.Tensor | None = None
    up: torch.Tensor | None = None
    act: torch.Tensor | None = None

    def point(self, site: str) -> HookPoint:
        """Find the hook point whose tensor is the site's (for ``act`` on gated MLPs: its pre-activation's)."""
        if site == "head":
            return self.attention.hook_z
        if site == "resid_post":
            return self.output_point
        if site == "up":
            return self.mlp.hook_pre_linear
        if site in ATTENTION_SITES:
            return self.outputs(site)[0][0]
        reads_pre = site == "pre" or (site == "act" and self.gated)
        return self.mlp.hook_pre if reads_pre else self.mlp.hook_post

    def places(self, site: str) -> list[Place]:
        """Find every place where the site's tensor may pass; none where the layer has no such site."""
        if site in ATTENTION_SITES:
            return self.outputs(site)
        return [] if site == "up" and not self.gated else [(self.point(site), None)]

    def shaped(self, site: str, values: torch.Tensor) -> torch.Tensor:
        """View a hook point's tensor as "batch position neuron", or "batch position head d_head"."""
        if site == "head":
            return values if values.ndim == 4 else values.unflatten(-1, (self.n_heads, -1))
        if site in ATTENTION_SITES:
            return values.flatten(2)
        return values if values.ndim == 3 else values.unflatten(0, (self.batch_size, -1))

    def output_weights(self, site: str) -> Float[torch.Tensor, "unit d_model"]:
        """What the site's units write to the residual stream: W_out, or each head's rows of W_O in turn."""
        if site != "head":
            weights = internals.readable_weight(self.mlp, "W_out")
            return _matrix_by_use(self.mlp.out) if weights is None else weights
        weights = internals.readable_weight(self.attention, "W_O")
        if weights is None:
            return _matrix_by_use(self.attention.o)
        return rearrange(weights, "head d_head d_model -> (head d_head) d_model")

    @torch.no_grad()
    def output_norm(self, site: str, width: int) -> Float[torch.Tensor, " unit"]:
        """The norm of what each of the site's units writes, in float32 on CPU; ``width`` is their number."""
        if site in ("resid_post", "q", "k"):
            return torch.ones(width)
        if site == "v":
            norms = rearrange(self.output_weights("head").float().norm(dim=1), "(head d) -> head d", head=self.n_heads)
            # The heads of a group read the same values, one group after the other.
            shared = rearrange(norms, "(group head) d -> group head d", group=width // norms.shape[1])
            return shared.norm(dim=1).flatten().cpu()
        weights = self.output_weights(site).float()
        if site == "head":
            weights = rearrange(weights, "(head d_head) d_model -> head (d_head d_model)", head=self.n_heads)
        return weights.norm(dim=1).cpu()

    def post_of(self, pre: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        """Compute ``post`` from ``pre`` (and ``up`` on gated MLPs), as the MLP does."""
        act = self.act_fn(pre)
        if up is None:
            return act
        return act * up + self.mlp.b_in if self.adds_bias else act * up

    def values(
        self, site: str, values: torch.Tensor, columns: Int[torch.Tensor, " unit"] | None = None
    ) -> torch.Tensor:
        """The site's values, given its hook point's tensor, and the columns that are the site's."""
        shaped = self.shaped(site, values)
        if columns is not None:
            shaped = shaped.index_select(_UNIT_AXIS, columns.to(values.device))
        return self.act_fn(shaped) if site == "act" and self.gated else shaped

    def batch_hooks(self) -> list[tuple[HookPoint, Hook]]:
        """Remember the batch size, where the MLP does not see it."""
        return [(self.input_point, self.remember_batch)] if self.flattened else []

    def remember_batch(self, values: torch.Tensor) -> None:
        """Take the batch size from the layer's input."""
        self.batch_size = values.shape[0]

    def forget(self) -> None:
        """Let go of the tensors of the last forward."""
        self.pre = self.up = self.act = None


@torch.no_grad()
def _matrix_by_use(linear: nn.Module) -> Float[torch.Tensor, "in out"]:
    """A bridge's matrix as it acts: what it makes of each unit vector, without its bias."""
    inner = internals.wrapped_by(linear)
    units = torch.eye(inner.in_features, device=inner.weight.device)
    rows = torch.cat([inner(batch) for batch in units.split(_ROWS)])
    return rows if inner.bias is None else rows - inner.bias


@torch.no_grad()
def range_of(act_fn: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> tuple[float, float]:
    """Find the least and the largest value of an activation function; inf where it has no bound."""
    z = torch.cat([torch.linspace(-60, 60, 120_001), torch.tensor([-1e4, 1e4])]).to(device, torch.float32)
    act = act_fn(z).double()
    unbounded_below, unbounded_above = bool(act[-2] < act[:-2].min() - 1), bool(act[-1] > act[:-2].max() + 1)
    return (-math.inf if unbounded_below else float(act.min()), math.inf if unbounded_above else float(act.max()))


def reading_hooks(layers: Sequence[Layer], readers: Mapping[str, Reader]) -> list[tuple[HookPoint, Hook]]:
    """Build the hooks that hand each site's tensor of each layer to its reader, computing act_fn at most once.

    Args:
        layers: The layers.
        readers: For each site to read, a function of (layer index, values).

    Returns:
        Pairs of hook point and hook, at most one per hook point.
    """
    hooks: list[tuple[HookPoint, Hook]] = []
    for layer in layers:
        by_point: dict[int, tuple[HookPoint, list[tuple[str, torch.Tensor | None]]]] = {}
        for site in readers:
            for point, columns in layer.places(site):
                by_point.setdefault(id(point), (point, []))[1].append((site, columns))
        hooks += layer.batch_hooks()
        hooks += [(point, partial(_read, layer, sites, readers)) for point, sites in by_point.values()]
    return hooks


def _read(
    layer: Layer, sites: list[tuple[str, torch.Tensor | None]], readers: Mapping[str, Reader], values: torch.Tensor
) -> None:
    for site, columns in sites:
        readers[site](layer.index, layer.values(site, values, columns))


@contextmanager
def writing_hooks(
    layers: list[Layer],
    site: str,
    neurons: Mapping[int, Int[torch.Tensor, " unit"]],
    change: Change,
    replaces: bool = False,
) -> Iterator[None]:
    """Write new values at some neurons (or heads) during every forward inside the block, one indexed write a layer.

    Args:
        layers: The layers of the model.
        site: The site to write at.
        neurons: From layer index to sorted indices of neurons, or of heads at ``head``.
        change: From (layer index, current values) to new values of that shape.
        replaces: Whether ``change`` uses only the shape of the current values, which then need not be computed.
    """
    hooks: list[tuple[HookPoint, Hook]] = []
    gated = [layers[index] for index in neurons if site == "act" and layers[index].gated]
    try:
        for layer in gated:
            layer.act_writers += 1
        for index, units in neurons.items():
            hooks += layers[index].batch_hooks()
            if layers[index] in gated:
                hooks += _gated_act_hooks(layers[index], units, change, replaces)
            else:
                hooks += _plain_hooks(layers[index], site, units, change)
        with attached(hooks):
            yield
    finally:
        for layer in gated:
            layer.act_writers -= 1
            layer.forget()


def _plain_hooks(layer: Layer, site: str, units: torch.Tensor, change: Change) -> list[tuple[HookPoint, Hook]]:
    def writing(columns: torch.Tensor | None) -> Hook:
        places = units if columns is None else columns.to(units.device)[units]

        def write(values: torch.Tensor) -> torch.Tensor:
            shaped, index = layer.shaped(site, values), places.to(values.device)
            out = written(shaped, index, change(layer.index, shaped.index_select(_UNIT_AXIS, index)))
            if layer.act_writers and site in ("pre", "up"):
                setattr(layer, site, out)
            return out.reshape(values.shape)

        return write

    return [(point, writing(columns)) for point, columns in layer.places(site)]


def _gated_act_hooks(layer: Layer, units: torch.Tensor, change: Change, replaces: bool) -> list[tuple[HookPoint, Hook]]:
    """Write act(z) = v exactly, as v x up at what W_out reads: no hook point lies between act_fn and the product."""
    order = layer.act_writers

    def save_pre(values: torch.Tensor) -> None:
        layer.pre, layer.act = layer.shaped("act", values), None

    def save_up(values: torch.Tensor) -> None:
        layer.up = layer.shaped("act", values)

    def write(values: torch.Tensor) -> torch.Tensor:
        assert layer.up is not None
        shaped, index = layer.shaped("act", values), units.to(values.device)
        up = layer.up.index_select(_UNIT_AXIS, index)
        wanted = not replaces or order < layer.act_writers
        act = layer.act if wanted else None
        if wanted and act is None and layer.pre is not None:
            # act_fn of the whole tensor, then the columns: of gathered columns its last bits may differ.
            act = layer.act_fn(layer.pre)
        new = change(layer.index, up if act is None else act.index_select(_UNIT_AXIS, index)).to(up.dtype)
        product = new * up
        if layer.adds_bias:
            product = product + layer.mlp.b_in[index]
        # A writing entered later starts from these values; the last one lets go of the tensors.
        if order == layer.act_writers:
            layer.forget()
        elif act is not None:
            layer.act = written(act, index, new)
        return written(shaped, index, product).reshape(values.shape)

    saving = [] if replaces else [(layer.mlp.hook_pre, save_pre)]
    return [*saving, (layer.mlp.hook_pre_linear, save_up), (layer.mlp.hook_post, write)]


def written(values: torch.Tensor, index: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Copy a site's tensor with new values at some units."""
    shape = (*values.shape[:_UNIT_AXIS], len(index), *values.shape[_UNIT_AXIS + 1 :])
    return values.index_copy(_UNIT_AXIS, index, new.to(values.dtype).expand(shape))


def checked_units(
    name: str, site: str, shape: tuple[int, int], neurons: Mapping[int, Int[torch.Tensor, " unit"]]
) -> dict[int, Int[torch.Tensor, " unit"]]:
    """Refuse neurons that a site does not have, and leave layers without any out.

    Args:
        name: The model's name.
        site: The site.
        shape: Its layers, and units per layer.
        neurons: From layer index to indices of units.

    Raises:
        HookSiteError: If a layer or an index does not exist.
    """
    layers, width = shape
    neurons = {layer: units for layer, units in neurons.items() if len(units)}
    for layer, units in neurons.items():
        if not 0 <= layer < layers:
            raise HookSiteError(f"{name!r} has no layer {layer} at site {site!r}: there are 0 to {layers - 1}.")
        if (low := int(units.min())) < 0 or int(units.max()) >= width:
            index = low if low < 0 else int(units.max())
            raise HookSiteError(f"{name!r} has {width} units a layer at site {site!r}, so there is no unit {index}.")
    return neurons


@torch.no_grad()
def check_fires(
    name: str, layers: Sequence[Layer], forward: Callable[[], torch.Tensor | None], own_sites: Sequence[str] = SITES
) -> tuple[torch.Tensor, dict[str, int]]:
    """Run a model once and check that every site's tensor arrives exactly once a layer, all of one width.

    Args:
        name: The model's name.
        layers: Its layers.
        forward: Runs it.
        own_sites: The sites that it has.

    Returns:
        The logits of that run, and the width of each site that the model has.

    Raises:
        HookSiteError: If a site's hook does not fire exactly once, or widths differ between layers.
    """
    widths: dict[str, list[tuple[int, int]]] = {site: [] for site in own_sites}
    readers: dict[str, Reader] = {
        site: lambda layer, values, by_layer=by_layer: by_layer.append((layer, values.shape[2]))
        for site, by_layer in widths.items()
    }
    hooks = [hook for layer in layers for hook in _shape_hooks(layer)]
    with attached(hooks + reading_hooks(layers, readers)):
        logits = forward()
    assert logits is not None
    for site in [site for site in LINEAR_SITES if site in widths]:
        by_layer = widths[site]
        if [layer for layer, _ in by_layer] != list(range(len(layers))) or len({width for _, width in by_layer}) > 1:
            del widths[site]
    for site, by_layer in widths.items():
        if [layer for layer, _ in by_layer] != list(range(len(layers))):
            fired = sorted(layer for layer, _ in by_layer)
            raise HookSiteError(
                f"The hooks of site {site!r} of {name!r} fire at layers {fired}; each of its {len(layers)} layers "
                "should fire once."
            )
        if len(different := {width for _, width in by_layer}) != 1:
            raise HookSiteError(f"Layers of {name!r} differ in width at site {site!r}: {sorted(different)}.")
    return logits, {site: by_layer[0][1] for site, by_layer in widths.items()}


def why_missing(name: str, site: str) -> str:
    """Say why a model lacks one of the sites that not every model has."""
    if site == "up":
        return f"{name!r} has no site 'up': its MLP has no gate, so nothing multiplies act."
    return (
        f"{name!r} has no site {site!r}: no hook of TransformerLens sees what the {site} matrix of its attention gives."
    )


def _shape_hooks(layer: Layer) -> list[tuple[HookPoint, Hook]]:
    """Find out, before any site is read, whether a layer's MLP gets batch and position as one axis."""

    def batch(values: torch.Tensor) -> None:
        layer.batch_size = values.shape[0]

    def flattened(values: torch.Tensor) -> None:
        layer.flattened = values.ndim == 2

    return [(layer.input_point, batch), *([] if layer.mlp is None else [(layer.mlp.hook_pre, flattened)])]
