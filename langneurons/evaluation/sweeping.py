"""Sweeps: the same neurons given many values, in many layers, by many methods; each cell measured once and kept.

The deactivation sweep answers an open question of Mondal et al. 2025: is "switching a neuron off" zero, a low
percentile of what it does, or a negative constant? ``plot.dose_response`` draws it over what the neurons naturally do.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch

from langneurons.corpora import Corpus
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, PatchError, StatisticsError, unknown
from langneurons.evaluation.heldout_text import HeldoutText, as_heldout_text
from langneurons.evaluation.measuring import loss_effects, measure, split_by_language
from langneurons.identification.neurons import NeuronSet
from langneurons.patches.intervening import unreachable
from langneurons.patches.patch import Patch, Scale, SetTo
from langneurons.recording.statistics import ActivationStats
from langneurons.run import Executor

Kind = Literal["set", "quantile", "scale", "cumulative"]
EVERY_LAYER = "all"
LEAST_RESAMPLES = 2000
RESAMPLES_PER_EFFECT = 25  # at 20, the smallest p-value there can be becomes 0.05 after Holm
KEYS = ("method", "patched", "kind", "amount", "layers", "measured")


@dataclass(frozen=True)
class Dose:
    """One way to change a language's neurons.

    Args:
        kind: ``"set"`` to a constant, to a ``"quantile"`` of what they do in their own language, ``"scale"`` by a
            factor, or set to zero ``"cumulative"``-ly: only a share of them, those first that are furthest ahead of the
            other languages.
        amount: The constant, the quantile (0 to 1), the factor, or the share (above 0, to 1).
    """

    kind: str
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise PatchError(unknown("kind of dose", self.kind, get_args(Kind)))
        if not math.isfinite(self.amount):
            raise PatchError(f"The amount of a dose is a finite number, not {self.amount}.")
        if self.kind == "quantile" and not 0 <= self.amount <= 1:
            raise PatchError(f"A quantile lies between 0 and 1, not at {self.amount}.")
        if self.kind == "cumulative" and not 0 < self.amount <= 1:
            raise PatchError(f"A share of neurons lies above 0 and up to 1, not at {self.amount}.")

    def patch(
        self, neurons: NeuronSet, language: str, stats: ActivationStats | None, layers: Iterable[int] | None = None
    ) -> Patch:
        """Make the patch.

        Args:
            neurons: The language's neurons.
            language: The language.
            stats: Statistics at their site, for quantiles and for shares below 1.
            layers: Only these layers.

        Raises:
            StatisticsError: If statistics are needed and not given.
        """
        if self.kind == "set":
            return SetTo(neurons, self.amount, layers=layers)
        if self.kind == "scale":
            return Scale(neurons, self.amount, layers=layers)
        if self.kind == "cumulative" and self.amount == 1:
            return SetTo(neurons, 0.0, layers=layers)
        if stats is None:
            raise StatisticsError(f"A dose of kind {self.kind!r} needs statistics: give stats=.")
        stats = stats.at(neurons.site)
        if self.kind == "quantile":
            return SetTo(neurons, stats[language].quantile(self.amount), layers=layers)
        return SetTo(_furthest_ahead(neurons, language, stats, self.amount), 0.0, layers=layers)


def deactivation_doses() -> tuple[Dose, ...]:
    """List the doses of the deactivation sweep: constants, percentiles, factors and growing shares of the neurons.

    Example:
        >>> from langneurons.evaluation.sweeping import deactivation_doses
        >>> sorted({dose.kind for dose in deactivation_doses()})
        ['cumulative', 'quantile', 'scale', 'set']
    """
    constants = (-10, -5, -2, -1, -0.5, -0.278, 0, 0.5, 1, 2, 5, 10)
    quantiles = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    factors = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3)
    shares = (0.125, 0.25, 0.5, 0.75, 1)
    by_kind: dict[str, Sequence[float]] = {
        "set": constants,
        "quantile": quantiles,
        "scale": factors,
        "cumulative": shares,
    }
    return tuple(Dose(kind, amount) for kind, amounts in by_kind.items() for amount in amounts)


def sweep(
    model: torch.nn.Module,
    heldout: Corpus | HeldoutText,
    neurons: NeuronSet | Mapping[str, NeuronSet],
    doses: Sequence[Dose] | None = None,
    stats: ActivationStats | None = None,
    languages: Sequence[str] | None = None,
    layers: Mapping[str, Iterable[int]] | None = None,
    delta: float = 0.01,
    seed: int = 0,
    resamples: int | None = None,
    tokens_per_language: int | None = None,
    context_length: int | None = None,
    batch_size: int = 8,
    out: str | Path | None = None,
    progress: bool = True,
    executor: str | Executor | None = None,
) -> EffectTable:
    """Measure every combination of method, language, dose and layer range.

    Args:
        model: From ``load_model``.
        heldout: Text the model was not trained on.
        neurons: A neuron set, or several by the name of the method that found them.
        doses: What to do to the neurons; None takes ``deactivation_doses()``.
        stats: Statistics at the neurons' site, for quantiles and shares.
        languages: Whose neurons to patch; None takes every label with neurons.
        layers: Layer ranges by name, such as ``{"first half": range(0, 16), "all": range(32)}``; None takes all layers.
            A range in which a language has no neuron is left out.
        delta: A change below this share of the language's own baseline counts as none.
        seed: Of the resampling.
        resamples: Bootstrap and sign-flip samples; None takes as many as a family of this size needs.
        tokens_per_language: Counted tokens of each language; None takes as many as the smallest language has.
        context_length: Positions a block; None takes 512, or the model's.
        batch_size: Blocks a forward.
        out: Folder that keeps every cell; the same call goes on there, and a larger grid adds to it.
        progress: Show a progress bar on standard error.
        executor: Where to run, as for ``ln.record``.

    Returns:
        Effects (change of the measured language's loss relative to its own baseline) by method, patched, kind, amount,
        layers and measured, all one Holm family; with ``neurons`` (how many were written), ``written`` (mean value
        written, NaN where it depends on the model) and ``unreachable`` (share of written values that the activation
        function cannot give).

    Raises:
        PatchError: If a dose does not fit the model.
        StatisticsError: If a dose needs statistics that are not given.

    Example:
        >>> from langneurons.evaluation.sweeping import Dose
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> table = ln.sweep(
        ...     model, ln.load_corpus("babel", ["en", "hi"]).take(20), neurons, [Dose("set", 0), Dose("scale", 2)],
        ...     languages=["hi"], context_length=64, resamples=200, progress=False,
        ... )
        >>> len(table.rows)
        4
    """
    named = {"given": neurons} if isinstance(neurons, NeuronSet) else dict(neurons)
    chosen = deactivation_doses() if doses is None else tuple(doses)
    ranges: dict[str, tuple[int, ...] | None] = (
        {EVERY_LAYER: None} if layers is None else {name: tuple(members) for name, members in layers.items()}
    )
    patches = _patches(named, chosen, stats, languages, ranges)
    text = as_heldout_text(model, heldout, tokens_per_language, context_length)
    conditions = {(): []} | {name: [patch] for name, patch in patches.items()}
    rows = measure(model, text, conditions, out, batch_size, progress, executor)
    by_language = {name: split_by_language(one) for name, one in rows.items()}
    baseline = by_language.pop(())
    needed = round(RESAMPLES_PER_EFFECT * len(patches) * len(text.languages))
    options = {"margin": delta, "seed": seed, "resamples": resamples or max(LEAST_RESAMPLES, needed)}
    settings = {"methods": {name: one.method for name, one in named.items()}}
    table = loss_effects(model, text, by_language, baseline, KEYS, settings, **options)
    described = {name: _described(model, patch) for name, patch in patches.items()}
    of_rows = [described[keys] for keys in table.rows[list(KEYS[:-1])].itertuples(index=False, name=None)]
    return replace(table, rows=pd.concat([table.rows, pd.DataFrame(of_rows, index=table.rows.index)], axis=1))


def _patches(
    named: Mapping[str, NeuronSet],
    doses: Sequence[Dose],
    stats: ActivationStats | None,
    languages: Sequence[str] | None,
    ranges: Mapping[str, tuple[int, ...] | None],
) -> dict[tuple, Patch]:
    found: dict[tuple, Patch] = {}
    for method, neurons in named.items():
        for language in languages or [label for label in neurons.languages if len(neurons[label])]:
            mine = neurons[language]
            for layers_name, layers in ranges.items():
                if layers is not None and not set(mine.per_layer()) & set(layers):
                    continue
                SetTo(mine, 0.0, layers=layers)  # a range outside the model is an error, not an empty share
                for dose in doses:
                    try:
                        patch = dose.patch(mine, language, stats, layers)
                    except PatchError:
                        if dose.kind != "cumulative" or layers is None:
                            raise
                        continue  # the few neurons of a small share all lie outside the range
                    found[method, language, dose.kind, float(dose.amount), layers_name] = patch
    if not found:
        raise EffectError("The sweep has no cell: no label has a neuron in any of the layer ranges.")
    return found


def _furthest_ahead(neurons: NeuronSet, language: str, stats: ActivationStats, share: float) -> NeuronSet:
    """The share of a language's neurons whose mean activation x output norm is furthest above the other languages'."""
    others = stats.select([other for other in stats.languages if other != language]).pooled().mean().values
    ahead = (stats[language].mean().values - others).double() * stats.output_norm().double()
    flat = neurons.members[language]
    order = np.argsort(-ahead.flatten().numpy()[flat], kind="stable")
    kept = np.sort(flat[order[: max(1, round(share * len(flat)))]])
    return replace(neurons, members={language: kept}, scores={})


def _described(model: torch.nn.Module, patch: Patch) -> dict[str, float]:
    written = [
        torch.as_tensor(value, dtype=torch.float64).expand(len(units))
        for layer, units in patch.by_layer.items()
        for value in patch.values_of(layer).values()
    ]
    return {
        "neurons": sum(len(units) for units in patch.by_layer.values()),
        "written": float(torch.cat(written).mean()) if isinstance(patch, SetTo) else math.nan,
        "unreachable": unreachable(model, patch),
    }
