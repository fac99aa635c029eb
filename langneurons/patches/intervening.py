"""Carrying patches out: vectorised writes at hook points, for as long as a block lasts."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from langneurons.errors import PatchError, SiteMismatchError, warn_user
from langneurons.models import Following, ModelView, view
from langneurons.models.experts import ROUTER
from langneurons.patches.patch import Clamp, Patch, SetTo
from langneurons.recording.site_values import SiteValues


@contextmanager
def intervene(model: torch.nn.Module, *patches: Patch) -> Iterator[None]:
    """Write patches during everything the model does inside the block.

    Forward, ``generate`` (with or without key-value cache, batched and left-padded), ``run_with_cache``, the Hugging
    Face model inside a bridge: all see the written values. Gradients flow through. Patches act in the order given, each
    from the values the one before wrote (those of several sites in the order in which a layer computes them); so do
    nested blocks, but on gated MLPs ``act`` in an inner block overrides what an outer one wrote at ``post`` of the same
    neuron. When the block ends, also by an exception, nothing stays behind.

    Args:
        model: A model returned by ``load_model``.
        patches: Patches to carry out.

    Raises:
        PatchError: If a patch does not fit the model.
        SiteMismatchError: If neurons or values belong to another model.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> plain = model("Hello")
        >>> with ln.intervene(model, ln.SetTo(neurons["en"], 0.0), ln.SetTo(neurons["hi"], stats["hi"].quantile(0.9))):
        ...     patched = model("Hello")
        >>> bool((patched != plain).any()), bool((model("Hello") == plain).all())
        (True, True)
    """
    model_view = view(model)
    for patch in patches:
        check_fits(patch, model_view)
        _warn_of_unreachable(patch, model_view)
    with patching(model_view, patches):
        yield


@contextmanager
def patching(
    model_view: ModelView, patches: Sequence[Patch], watch: Callable[[Patch, Tensor], object] | None = None
) -> Iterator[None]:
    """Write patches inside the block, as ``intervene`` does, without checking them.

    Args:
        model_view: The model.
        patches: Patches to carry out.
        watch: A function that is called with every patch and its new values, "batch position neuron".
    """
    with ExitStack() as stack:
        follows = any(patch.positions != "all" for patch in patches)
        progress = stack.enter_context(model_view.following()) if follows else None
        # In the order in which a layer computes its sites: an act written after post would undo what post was given.
        for patch in sorted(patches, key=lambda patch: model_view.sites.index(patch.neurons.site)):
            change = _change(patch, progress) if watch is None else _watched(patch, _change(patch, progress), watch)
            stack.enter_context(model_view.writing(patch.neurons.site, patch.by_layer, change, patch.replaces))
        yield


def unreachable(model: torch.nn.Module, patch: Patch) -> float:
    """Measure the share of the values written by a patch that the site could never have by itself.

    Only ``act`` (and ``post`` where the MLP has no gate) is bounded: SiLU gives nothing below -0.278, ReLU nothing
    below 0. SetTo and the limits of Clamp are known before the model runs; ``dose`` measures every patch.

    Args:
        model: A model returned by ``load_model``.
        patch: A patch.

    Returns:
        The share of written neurons, 0 to 1; NaN where the values depend on what the model does.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> [ln.patches.unreachable(model, ln.SetTo(neurons["hi"], value)) for value in (-1.0, 0.0)]
        [1.0, 0.0]
    """
    model_view = view(model)
    if not isinstance(patch, SetTo | Clamp):
        return math.nan
    low, high = reachable_range(model_view, patch.neurons.site)
    outside = []
    for layer, units in patch.by_layer.items():
        extremes = torch.tensor([low, high], dtype=torch.float64).view(1, 2, 1).expand(1, 2, len(units))
        values = patch.written(extremes, **patch.values_of(layer))
        outside.append(((values < low) | (values > high)).flatten(0, 1).any(0))
    return float(torch.cat(outside).double().mean())


def reachable_range(model_view: ModelView, site: str) -> tuple[float, float]:
    """The values that a site can have: the range of act_fn, widened by its rounding; no bounds where it has none.

    At ``router`` a value is a probability.
    """
    if site == ROUTER:
        return 0.0, 1.0
    if site != "act" and not (site == "post" and not model_view.gated):
        return -math.inf, math.inf
    low, high = model_view.act_range()
    slack = 4 * torch.finfo(model_view.dtype).eps
    return low - slack * max(1.0, abs(low)), high + slack * max(1.0, abs(high))


def _change(patch: Patch, progress: Following | None) -> Callable[[int, Tensor], Tensor]:
    values = {layer: patch.values_of(layer) for layer in patch.by_layer}
    heads = patch.neurons.site == "head"

    def ready(value: Tensor | float, current: Tensor) -> Tensor | float:
        if not isinstance(value, Tensor):
            return value
        moved = value.to(current.device, current.dtype)
        return moved[:, None] if heads else moved

    def change(layer: int, current: Tensor) -> Tensor:
        new = patch.written(current, **{name: ready(value, current) for name, value in values[layer].items()})
        if progress is None or patch.positions == "all":
            return new
        generated = torch.arange(current.shape[1], device=current.device) >= progress.first_generated
        is_written = generated if patch.positions == "generated" else ~generated
        return torch.where(is_written.view(-1, *[1] * (current.ndim - 2)), new, current)

    return change


def _watched(
    patch: Patch, change: Callable[[int, Tensor], Tensor], watch: Callable[[Patch, Tensor], object]
) -> Callable[[int, Tensor], Tensor]:
    def watched(layer: int, current: Tensor) -> Tensor:
        new = change(layer, current)
        watch(patch, new)
        return new

    return watched


def check_fits(patch: Patch, model_view: ModelView) -> None:
    """Refuse a patch that is not of this model.

    Raises:
        PatchError: If its neurons are of a model of another shape.
        SiteMismatchError: If its neurons or values belong to a model with other weights.
    """
    neurons = patch.neurons
    fits = model_view.shape(neurons.site)
    if neurons.shape != fits:
        raise PatchError(
            f"The neuron set is of a model of {neurons.shape[0]} layers x {neurons.shape[1]} units at "
            f"{neurons.site!r}; {model_view.name!r} has {fits[0]} x {fits[1]}."
        )
    if patch.allow_site_mismatch:
        return
    models = [value.model for value in patch.values.values() if isinstance(value, SiteValues)]
    for model in filter(None, (neurons.model, *models)):
        if model != (here := model_view.fingerprint_at(neurons.site)):
            raise SiteMismatchError(
                f"The {'neurons' if model == neurons.model else 'values'} belong to model {model[:8]}, but "
                f"{model_view.name!r} is {here[:8]} at {neurons.site!r}: record this model, or give "
                "allow_site_mismatch=True."
            )


def _warn_of_unreachable(patch: Patch, model_view: ModelView) -> None:
    share = unreachable(model_view.model, patch)
    if share > 0:
        low, high = reachable_range(model_view, patch.neurons.site)
        origin = "router" if patch.neurons.site == ROUTER else "activation function"
        warn_user(
            f"{100 * share:.3g}% of the values that {patch!r} writes cannot come from this model's {origin}, which "
            f"gives {low:.3f} to {high:.3g}."
        )
