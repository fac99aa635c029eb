"""How much a patch writes, so that patches can be compared at equal dose and not only at equal name."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import pandas as pd
import scipy.optimize
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.corpora import Blocks
from langneurons.corpora.languages import label_of
from langneurons.errors import EffectError, PatchError, unknown
from langneurons.evaluation.heldout_text import HeldoutText
from langneurons.evaluation.measuring import check_reads_text
from langneurons.models import ModelView, view
from langneurons.models.finite import check_finite
from langneurons.models.running import Predictions
from langneurons.models.sites import ATTENTION_SITES
from langneurons.patches.intervening import check_fits, patching, reachable_range
from langneurons.patches.patch import Add, DiffMean, Patch

Measure = Literal["write_norm", "relative_write_norm", "kl"]
MLP_SITES = ("pre", "up", "act", "post")
DOSE_PRECISION = 0.01  # of a patch that is scaled to the dose of another


def dose(
    model: torch.nn.Module, patches: Patch | Sequence[Patch], text: HeldoutText, batch_size: int = 4
) -> pd.DataFrame:
    """Measure how much patches write on a text, and how far they move the model's predictions.

    Args:
        model: A model returned by ``load_model``.
        patches: One patch, or several that are written together.
        text: Text that the model reads.
        batch_size: Blocks per forward pass.

    Returns:
        One row per language, means over its counted tokens: write_norm (norm of what the patches change in what their
        layers add to the residual stream, root of the sum of squares over layers), relative_write_norm (the same with
        each layer's change divided by the norm of the residual stream after it), kl (of the patched predictions from
        the unpatched ones, in nats; off target in the languages that the patch does not mean), unreachable (share of
        written values that the activation function cannot give).

    Raises:
        PatchError: If no patch is given, one does not fit the model or is of generated positions only, or something
            else is attached to the model, whose dose would be counted too.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> text = ln.HeldoutText.of(model, ln.load_corpus("babel", ["en", "hi"]).take(10), context_length=64)
        >>> table = ln.evaluation.dose(model, ln.Scale(neurons["hi"], 1.0), text)
        >>> table["write_norm"].tolist(), table["kl"].tolist()
        ([0.0, 0.0], [0.0, 0.0])
    """
    patches = (patches,) if isinstance(patches, Patch) else tuple(patches)
    if not patches:
        raise PatchError("No patch was given: there is no dose to measure.")
    model_view = view(model)
    if model_view.hooked:
        raise PatchError(
            f"Something is attached to {model_view.name!r} already, such as a patch: leave that block first."
        )
    for patch in patches:
        check_fits(patch, model_view)
        check_reads_text(patch)
        if patch.neurons.site in model_view.feature_sites:
            raise PatchError(
                f"{patch.neurons.site!r} is a site of features: the dose of what a dictionary decodes is not measured."
            )
        if patch.neurons.site in ATTENTION_SITES:
            raise PatchError(
                f"What coordinates of {patch.neurons.site!r} write depends on what attention makes of them, so their "
                "dose is not measured."
            )
        if patch.neurons.site in model_view.routers:
            raise PatchError(f"{patch.neurons.site!r} writes no direction of its own, so that it has no dose.")
    with torch.inference_mode(), model_view.native_attention():
        doses = {language: _dose(model_view, patches, text, language, batch_size) for language in text.languages}
    return pd.DataFrame([{"language": language, **of_language} for language, of_language in doses.items()])


def equal_dose(
    model: torch.nn.Module,
    make: Callable[[float], Patch | Sequence[Patch]],
    text: HeldoutText,
    target: float,
    measure: str = "write_norm",
    language: str | None = None,
    between: tuple[float, float] = (0.0, 10.0),
    tolerance: float = 0.01,
) -> float:
    """Find the amount at which a patch has the dose of another.

    Args:
        model: A model returned by ``load_model``.
        make: Makes the patch of an amount, such as a strength or a factor.
        text: Text that the model reads.
        target: The dose to reach, such as another patch's write_norm.
        measure: Name of the dose: "write_norm", "relative_write_norm" or "kl".
        language: Language of the text to measure the dose in; by default the mean over all.
        between: Two amounts to look between; the dose must be too small at one of them and too large at the other.
        tolerance: Precision of the amount, as a share of the distance between the two.

    Raises:
        LanguageError: If the text has no such language.
        EffectError: If the target does not lie between the doses at the two amounts.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> text = ln.HeldoutText.of(model, ln.load_corpus("babel", ["hi"]).take(10), context_length=64)
        >>> zero = ln.evaluation.dose(model, ln.SetTo(neurons["hi"], 0.0), text)["write_norm"].item()
        >>> amount = ln.equal_dose(model, lambda k: ln.DiffMean(neurons["hi"], stats, "hi", strength=k), text, zero)
        >>> 0 < amount < 10
        True
    """
    if measure not in get_args(Measure):
        raise EffectError(unknown("measure of dose", measure, get_args(Measure)))
    if language is not None:
        language = label_of(language, text.languages)

    def excess(amount: float) -> float:
        table = dose(model, make(float(amount)), text)
        rows = table if language is None else table.query("language == @language")
        return float(rows[measure].to_numpy().mean()) - target

    low, high = float(between[0]), float(between[1])
    at_low, at_high = excess(low), excess(high)
    if at_low * at_high > 0:
        raise EffectError(
            f"A {measure} of {target:.4g} does not lie between those at {low:g} and {high:g}, which are "
            f"{at_low + target:.4g} and {at_high + target:.4g}: give other amounts as between=."
        )
    amount: Any = scipy.optimize.brentq(excess, low, high, xtol=tolerance * abs(high - low))
    return float(amount)


def at_dose_of(
    model: torch.nn.Module,
    patches: Patch | Sequence[Patch],
    others: Patch | Sequence[Patch],
    text: HeldoutText,
) -> list[Patch]:
    """Scale what patches add, so that they write as much as other patches do.

    Args:
        model: A model returned by ``load_model``.
        patches: Patches that add something, together: Add or DiffMean.
        others: The patches whose dose to reach, of any kind.
        text: Text to measure doses on: write_norm, the mean over its languages.

    Returns:
        The patches with other values or strengths, such that their dose is that of the others within about 1 %.

    Raises:
        PatchError: If a patch does not add, or ``dose`` would refuse one.
        EffectError: If one of the two has no dose, or no factor up to twice the expected one reaches the other's.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> text = ln.HeldoutText.of(model, ln.load_corpus("babel", ["hi"]).take(10), context_length=64)
        >>> added, zero = ln.Add(neurons["hi"], stats["hi"].mean()), ln.SetTo(neurons["hi"], 0.0)
        >>> scaled = ln.evaluation.at_dose_of(model, added, zero, text)
        >>> doses = [ln.evaluation.dose(model, each, text)["write_norm"].item() for each in (scaled, zero)]
        >>> abs(doses[0] / doses[1] - 1) < 0.02
        True
    """
    patches = (patches,) if isinstance(patches, Patch) else tuple(patches)
    scaled = partial(_scaled, patches)

    def mean_dose(together: Patch | Sequence[Patch]) -> float:
        return float(dose(model, together, text)["write_norm"].to_numpy().mean())

    own, target = mean_dose(scaled(1.0)), mean_dose(others)
    if not (target > 0 and own > 0):
        idle = "what is to be scaled" if target > 0 else "the other"
        raise EffectError(f"Two patches cannot have the same dose, because {idle} writes nothing on the text.")
    factor = target / own  # exact where what is written does not change what is written later
    if abs(mean_dose(scaled(factor)) / target - 1) > DOSE_PRECISION:
        between = (0.0, 2 * factor)
        factor = equal_dose(model, scaled, text, target, between=between, tolerance=DOSE_PRECISION / 2)
    return scaled(factor)


def _scaled(patches: Sequence[Patch], factor: float) -> list[Patch]:
    """Patches that add so many times as much.

    Raises:
        PatchError: If one does not add.
    """
    scaled: list[Patch] = []
    for patch in patches:
        if isinstance(patch, DiffMean):
            scaled.append(replace(patch, strength=patch.strength * factor))
        elif isinstance(patch, Add):
            scaled.append(replace(patch, value=patch.value * factor))
        else:
            raise PatchError(
                f"Only what is added can be scaled, by Add or DiffMean; {type(patch).__name__} does not add."
            )
    return scaled


def _dose(
    model_view: ModelView, patches: Sequence[Patch], text: HeldoutText, language: str, batch_size: int
) -> dict[str, float]:
    sums = {"write_norm": 0.0, "relative_write_norm": 0.0, "kl": 0.0}
    tokens, values_written, outside = 0, 0, 0
    ranges = {id(patch): reachable_range(model_view, patch.neurons.site) for patch in patches}
    for _, batch in text.batches(language, batch_size):
        counted, values = batch.counted.to(model_view.device), []
        predicted = model_view.predictions(batch.tokens, batch.counted)
        with _writes(model_view, patches, lambda patch, new, values=values: values.append((patch, new))) as squares:
            changed = model_view.predictions(batch.tokens, batch.counted)
            sums["kl"] += _divergence(model_view, batch, predicted, changed)
        for name, of_layers in squares.items():
            sums[name] += float(torch.stack(of_layers).sum(0)[counted].sqrt().sum())
        tokens += int(counted.sum())
        for patch, new in values:
            (low, high), of_tokens = ranges[id(patch)], new[counted.to(new.device)]
            values_written += of_tokens.numel()
            outside += int(((of_tokens < low) | (of_tokens > high)).sum())
    means = {name: total / tokens for name, total in sums.items()}
    return {**means, "unreachable": outside / values_written if values_written else math.nan, "tokens": tokens}


def _divergence(model_view: ModelView, batch: Blocks, predicted: Predictions, changed: Predictions) -> float:
    """The sum over a batch's counted tokens of the divergence of one prediction from the other, in nats."""
    total = 0.0
    for logits, other_logits in zip(predicted.logits(), changed.logits(), strict=True):
        before, after = logits.log_softmax(-1), other_logits.log_softmax(-1)
        for log_probabilities in (before, after):  # NaN where one of a token's numbers is
            check_finite(model_view, log_probabilities.amin(-1), batch.tokens)
        total += float((before.exp() * (before - after)).sum(-1).clamp(min=0).double().sum())
    return total


@contextmanager
def _writes(
    model_view: ModelView, patches: Sequence[Patch], watch: Callable[[Patch, Tensor], object]
) -> Iterator[dict[str, list[Float[Tensor, "block position"]]]]:
    """Collect, of one patched forward inside, the squared norm of each patched layer's change; plain and relative."""
    neurons = _written_neurons(patches)
    before: dict[tuple[str, int], Tensor] = {}
    changes: dict[int, Tensor] = {}
    squares: dict[str, list[Tensor]] = {"write_norm": [], "relative_write_norm": []}

    def keep(site: str) -> Callable[[int, Tensor], None]:
        return lambda layer, values: before.__setitem__((site, layer), values) if layer in neurons else None

    def add(layer: int, change: Tensor) -> None:
        changes[layer] = changes.get(layer, 0) + change

    def after_post(layer: int, post: Tensor) -> None:
        if (units := neurons.get(layer, {}).get("mlp")) is not None:
            up = before.pop(("up", layer), None)
            plain = model_view.post_of(layer, before.pop(("pre", layer)), up)
            add(layer, (post - plain)[..., units].float() @ model_view.output_weights(layer, "post")[units].float())

    def after_head(layer: int, outputs: Tensor) -> None:
        if "head" in neurons.get(layer, {}):
            change = (outputs - before.pop(("head", layer))).float()
            change = rearrange(change, "block position head d_head -> block position (head d_head)")
            add(layer, change @ model_view.output_weights(layer, "head").float())

    def after_residual(layer: int, residual: Tensor) -> None:
        if layer not in neurons:
            return
        plain = before.pop(("resid_post", layer))
        if "resid_post" in neurons[layer]:
            add(layer, (residual - plain).float())
        square = changes.pop(layer).double().square().sum(-1).to(model_view.device)
        squares["write_norm"].append(square)
        squares["relative_write_norm"].append(
            square / residual.double().square().sum(-1).clamp(min=1e-30).to(model_view.device)
        )

    sites = ["pre", "head", "resid_post", *(["up"] if model_view.gated else [])]
    with ExitStack() as stack:
        stack.enter_context(model_view.reading({site: keep(site) for site in sites}))
        stack.enter_context(patching(model_view, patches, watch))
        stack.enter_context(model_view.reading({"post": after_post, "head": after_head, "resid_post": after_residual}))
        yield squares


def _written_neurons(patches: Sequence[Patch]) -> dict[int, dict[str, Int[Tensor, " unit"]]]:
    """By layer, the units that patches write: ``mlp`` for its three sites, ``head``, ``resid_post``."""
    by_layer: dict[int, dict[str, Tensor]] = {}
    for patch in patches:
        kind = "mlp" if patch.neurons.site in MLP_SITES else patch.neurons.site
        for layer, units in patch.by_layer.items():
            of_layer = by_layer.setdefault(layer, {})
            of_layer[kind] = torch.cat([of_layer[kind], units]).unique() if kind in of_layer else units
    return by_layer
