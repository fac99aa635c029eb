"""Sweeps: the same neurons given many values, in many layers, by many methods; each cell measured once and kept.

The deactivation sweep answers an open question of Mondal et al. 2025: is "switching a neuron off" zero, a low
percentile of what it does, or a negative constant? ``plot.dose_response`` draws it over what the neurons naturally do.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Unpack, get_args

import numpy as np
import pandas as pd
import torch

from langneurons.corpora import Corpus
from langneurons.corpora.languages import distinct, label_of
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, PatchError, StatisticsError, unknown
from langneurons.evaluation.heldout_text import HeldoutText
from langneurons.evaluation.measuring import loss_effects, measure, split_by_language
from langneurons.identification.neurons import NeuronSet, sets_by_name
from langneurons.patches.intervening import unreachable
from langneurons.patches.patch import Patch, Scale, SetTo
from langneurons.recording.statistics import ActivationStats
from langneurons.run import alone_in_out
from langneurons.settings import MeasuringOptions, Run, Testing, finite_number, with_options

Kind = Literal["set", "quantile", "scale", "cumulative"]
EVERY_LAYER = "all"
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
        finite_number(self.amount, "amount", PatchError)
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
            layers: Layers to write in; by default all.

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
    by_kind: dict[str, Sequence[float]] = {
        "set": (-10, -5, -2, -1, -0.5, -0.278, 0, 0.5, 1, 2, 5, 10),
        "quantile": (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99),
        "scale": (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3),
        "cumulative": (0.125, 0.25, 0.5, 0.75, 1),
    }
    return tuple(Dose(kind, amount) for kind, amounts in by_kind.items() for amount in amounts)


@alone_in_out
def sweep(
    model: torch.nn.Module,
    text: HeldoutText | Corpus,
    neurons: NeuronSet | Mapping[str, NeuronSet],
    doses: Sequence[Dose] | None = None,
    *,
    stats: ActivationStats | None = None,
    languages: Sequence[str] | None = None,
    layers: Mapping[str, Iterable[int]] | None = None,
    testing: Testing = Testing(),
    run: Run = Run(),
    **options: Unpack[MeasuringOptions],
) -> EffectTable:
    """Measure every combination of method, language, dose and layer range.

    Args:
        model: A model returned by ``load_model``.
        text: Text the model was not trained on; a corpus is packed by ``HeldoutText.of``.
        neurons: A neuron set, or several by the name of the method that found them.
        doses: What to do to the neurons; by default ``deactivation_doses()``.
        stats: Statistics at the neurons' site, for quantiles and shares.
        languages: Languages whose neurons are patched; by default every label with neurons.
        layers: Layer ranges by name, such as ``{"first half": range(0, 16), "all": range(32)}``; by default all layers.
            A range in which a language has no neuron is left out.
        testing: The margin, as a share of the language's own baseline, the interval's level and the resampling; by
            default as many resamples as a family of this size needs.
        run: Where it runs and is kept (a larger grid adds to what is there), texts per forward pass (8 by default), and
            progress.
        options: Single fields of ``Testing`` and ``Run``, such as ``margin=0.02`` or ``out="runs/x"``.

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
        >>> text = ln.HeldoutText.of(model, ln.load_corpus("babel", ["en", "hi"]).take(20), context_length=64)
        >>> doses = [Dose("set", 0), Dose("scale", 2)]
        >>> len(ln.sweep(model, text, neurons, doses, languages=["hi"], resamples=200, progress=False).rows)
        4
    """
    testing, run = with_options(options, testing, run)
    by_method = sets_by_name(neurons, "given")
    ranges: dict[str, tuple[int, ...] | None] = (
        {EVERY_LAYER: None} if layers is None else {name: tuple(members) for name, members in layers.items()}
    )
    text = HeldoutText.of(model, text)
    by_method = {name: members.spelled_like(text.languages) for name, members in by_method.items()}
    patches = _patches(by_method, deactivation_doses() if doses is None else doses, stats, languages, ranges)
    rows = measure(model, text, {(): []} | {name: [patch] for name, patch in patches.items()}, run)
    conditions = {name: split_by_language(rows_of_all) for name, rows_of_all in rows.items()}
    baseline = conditions.pop(())
    settings = {"methods": {name: members.method for name, members in by_method.items()}}
    table = loss_effects(model, text, conditions, baseline, KEYS, settings, testing)
    described = {name: _described(model, patch) for name, patch in patches.items()}
    columns = [described[keys] for keys in table.rows[list(KEYS[:-1])].itertuples(index=False, name=None)]
    return replace(table, rows=pd.concat([table.rows, pd.DataFrame(columns, index=table.rows.index)], axis=1))


def _patches(
    by_method: Mapping[str, NeuronSet],
    doses: Sequence[Dose],
    stats: ActivationStats | None,
    languages: Sequence[str] | None,
    ranges: Mapping[str, tuple[int, ...] | None],
) -> dict[tuple, Patch]:
    patches: dict[tuple, Patch] = {}
    for method, neurons in by_method.items():
        labels = [label for label in neurons.languages if len(neurons[label])]
        for language in labels if languages is None else distinct(languages, neurons.languages):
            own = neurons[language]
            for layers_name, layers in ranges.items():
                if layers is not None and not set(own.per_layer()) & set(layers):
                    continue
                SetTo(own, 0.0, layers=layers)  # a range outside the model is an error, not an empty share
                for dose in doses:
                    try:
                        patch = dose.patch(own, language, stats, layers)
                    except PatchError:
                        if dose.kind != "cumulative" or layers is None:
                            raise
                        continue  # the few neurons of a small share all lie outside the range
                    patches[method, language, dose.kind, float(dose.amount), layers_name] = patch
    if not patches:
        raise EffectError("The sweep has no cell: no label has a neuron in any of the layer ranges.")
    return patches


def _furthest_ahead(neurons: NeuronSet, language: str, stats: ActivationStats, share: float) -> NeuronSet:
    """The share of a language's neurons whose mean activation x output norm is furthest above the other languages'."""
    recorded = label_of(language, stats.languages)
    others = stats.select([other for other in stats.languages if other != recorded]).pooled().mean().values
    ahead = (stats[language].mean().values - others).double() * stats.output_norm().double()
    flat = neurons.members[language]
    order = np.argsort(-ahead.flatten().numpy()[flat], kind="stable")
    members = np.sort(flat[order[: max(1, round(share * len(flat)))]])
    return replace(neurons, members={language: members}, scores={})


def _described(model: torch.nn.Module, patch: Patch) -> dict[str, float]:
    values = [
        torch.as_tensor(value, dtype=torch.float64).expand(len(units))
        for layer, units in patch.by_layer.items()
        for value in patch.values_of(layer).values()
    ]
    return {
        "neurons": sum(len(units) for units in patch.by_layer.values()),
        "written": float(torch.cat(values).mean()) if isinstance(patch, SetTo) else math.nan,
        "unreachable": unreachable(model, patch),
    }
