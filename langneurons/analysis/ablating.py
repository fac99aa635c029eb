"""ablate(): the exact effect of every neuron, beside its interval, its p-value and matched controls."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.metrics import (
    AblationValue,
    FunctionMetric,
    MetricFunction,
    check_clusters,
    measured_languages,
    metric_of,
)
from langneurons.analysis.running import UNPATCHED, Runner
from langneurons.effects.estimation import many_effects
from langneurons.effects.pairing import BASELINE
from langneurons.errors import EffectError, LangNeuronsWarning, NeuronSetError, unknown
from langneurons.identification.controls import matched_by, statistics_at
from langneurons.identification.neurons import NeuronSet, united
from langneurons.models import view
from langneurons.patches.patch import Value
from langneurons.settings import ControlledOptions, Controls, Run, Testing, controls_of, with_options

KEYS = {
    "neuron": ("label", "layer", "neuron"),
    "group": ("label", "neurons"),
    "cumulative": ("label", "neurons", "layer", "neuron"),
}
SAID = {
    "neuron": "each neuron alone",
    "group": "a label's neurons together",
    "cumulative": "neurons added one by one,",
}
Tables = Mapping[str, pd.DataFrame]  # language -> one row per item, one column per condition
Conditions = dict[tuple, str]  # values of the key columns -> the condition's column


def ablate(
    model: torch.nn.Module,
    neurons: NeuronSet,
    data: Any,
    metric: str | MetricFunction = "nll",
    value: Value | str = 0.0,
    *,
    each: str | Float[Tensor, "layer neuron"] = "neuron",
    controls: int | Controls = 0,
    languages: Iterable[str] | None = None,
    testing: Testing = Testing(),
    run: Run = Run(),
    **options: Unpack[ControlledOptions],
) -> Ablation:
    """Measure what the model loses without each neuron, exactly.

    Each neuron is written by itself in a copy of the texts, many copies per forward pass, and only what lies above it
    is run again: the same numbers as a whole forward pass inside ``ln.intervene`` for every neuron.

    Args:
        model: A model returned by ``load_model``.
        neurons: One language's neurons, or those of every label of a set.
        data: Held-out text (a ``HeldoutText``, or a corpus, which is packed as ``HeldoutText.of`` does), a task such as
            ``ln.XNLI``, or, for a function as metric, a corpus or texts with labels. A task that generates is run whole
            for every neuron.
        metric: ``"nll"``: the loss, relative to the unpatched model's in that language (of a task with label scores:
            of the gold label). The name of a task's score: its difference. Or a function of (logits "row position
            token", tokens "row position", mask, labels) that gives one number per row: differences of their mean; mask
            is False at padding, labels are the texts', else their language. More is better, unless the function is
            named loss.
        value: What ablated neurons are set to: a number, ``"mean"`` (their mean in the measured language, from
            ``stats``), SiteValues, or a tensor with one number per neuron of the model or of the set.
        each: ``"neuron"`` by itself, ``"group"`` (a label's neurons together), or ``"cumulative"``: the first 1, 2, 4,
            ... and all of them, ordered by the size of their single effects in their label's language (in all languages
            where that is not measured). A tensor with one number per neuron of the model is another order for
            cumulative ablation, the largest first.
        controls: Control neurons per label, of the same layers and, with ``stats``, deciles of mean magnitude x output
            norm as the label's own; fewer where so many are not there (for groups: so many whole control sets).
        languages: Languages to measure; by default all of the data's.
        testing: The margin of equivalence (0.01 is 1 % of the loss, or one point; of a function's numbers, 0.01 of
            their own unit), intervals and resampling.
        run: Where it runs and what keeps it; a batch's rows are texts with one neuron ablated, 32 by default, and their
            logits are rows x positions x vocabulary.
        options: Single fields of ``Controls``, ``Testing`` and ``Run``, such as ``stats=stats`` or ``out="runs/x"``.

    Returns:
        Effects by label, neuron and measured language, as one family (Benjamini-Hochberg).

    Raises:
        NeuronSetError: If the set is empty, or a layer has too few neurons for the controls.
        EffectError: If an option or metric is not possible, or a language's text is one document.
        LanguageError: If a language is not among the data's.
        PatchError: If neurons or values do not fit the model.

    Example:
        >>> neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 2)]}, (model.cfg.n_layers, model.cfg.d_mlp), "act")
        >>> text = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> ablation = ln.ablate(model, neurons, text, resamples=200, progress=False)
        >>> ablation.rows[["label", "layer", "neuron", "language"]].values.tolist()
        [['hi', 0, 3, 'en'], ['hi', 1, 2, 'en'], ['hi', 0, 3, 'hi'], ['hi', 1, 2, 'hi']]
    """
    renamed = in_places_of_today(options)
    each, printed = renamed.pop("order", each), {name: renamed.pop(name) for name in {"min_effect"} & set(renamed)}
    controls, testing, run = with_options(renamed, controls_of(controls), testing, run)
    order, each = (each, "cumulative") if isinstance(each, Tensor) else (None, each)
    _check(neurons, each, order, controls)
    neurons = replace(neurons, members={k: v for k, v in neurons.members.items() if len(v)}, scores={})
    ablation_value = AblationValue.of(value, statistics_at(controls, neurons.site), neurons, controls.draws)
    measured_metric = metric_of(model, data, metric)
    model_view, languages = view(model), measured_languages(measured_metric, languages)
    check_clusters(measured_metric, model_view, languages)
    runner = Runner(model, measured_metric, ablation_value, languages, run)
    if each == "cumulative":
        tables, conditions, control_effects = *_added(runner, neurons, order), None
    else:
        tables, conditions, control_effects = (_alone if each == "neuron" else _grouped)(runner, neurons, controls)
    effects = {}
    for language in languages:
        table = tables[language]
        after = table[list(conditions.values())].to_numpy().T
        before = table[["item", "cluster"]].assign(**{measured_metric.name: table[UNPATCHED]})
        judged = many_effects(after, before, measured_metric.name, measured_metric.per, testing=testing)
        effects |= {(*key, language): effect for key, effect in zip(conditions, judged, strict=True)}
    settings = {
        "model": f"{model_view.name} ({model_view.fingerprint[:8]}, {model_view.backend})",
        "metric": measured_metric.name,
        "data": measured_metric.fingerprint,
        "patch": f"{SAID[each]} {ablation_value} at {neurons.site}",
        "neurons": neurons.method,
        "site": neurons.site,
        "each": each,
        "controls": controls.draws,
        "match": matched_by(controls),
        "per": measured_metric.per,
        "margin": testing.margin,
        "level": testing.level,
        "resamples": testing.samples,
        "seed": testing.seed,
        "own_unit": isinstance(measured_metric, FunctionMetric),
        **printed,
    }
    return Ablation.of(effects, [*KEYS[each], "language"], control_effects, settings)


def in_places_of_today(options: Mapping[str, object]) -> dict[str, Any]:
    """Options, where ``rows``, ``order`` and ``min_effect`` of version 0.1.0 have the names, or places, of today."""
    places = {
        "rows": "batch_size=",
        "order": "each=, which takes the tensor",
        "min_effect": "an argument of Ablation.table()",
    }
    for name in places.keys() & options.keys():
        warnings.warn(f"The option {name}= is now {places[name]}.", LangNeuronsWarning, stacklevel=4)
    return {"batch_size" if name == "rows" else name: value for name, value in options.items()}


def _check(neurons: NeuronSet, each: str, order: Tensor | None, controls: Controls) -> None:
    """Refuse what cannot be ablated."""
    if not len(neurons):
        raise NeuronSetError(f"The neuron set is empty ({neurons!r}): there is nothing to ablate.")
    if each not in KEYS:
        raise EffectError(unknown("each", each, KEYS))
    if controls.draws and each == "cumulative":
        raise EffectError("A cumulative ablation has no controls: ask for each='group', or controls=0.")
    if order is not None and tuple(order.shape) != neurons.shape:
        raise EffectError(
            f"An order gives one number per neuron of the model, {neurons.shape}, not {tuple(order.shape)}."
        )


def _alone(runner: Runner, neurons: NeuronSet, controls: Controls) -> tuple[Tables, Conditions, pd.DataFrame | None]:
    single_controls = neurons.single_controls(controls)
    tables = runner.alone(united([neurons, single_controls]))
    conditions: Conditions = {
        (label, layer, unit): str(layer * neurons.shape[1] + unit)
        for label in neurons.languages
        for layer, unit in neurons[label].indices().tolist()
    }
    parts = []
    for label, flat in single_controls.members.items():
        layer, unit = np.divmod(flat, neurons.shape[1])
        for language in runner.languages:
            key = {"label": label, "layer": layer, "neuron": unit, "language": language}
            parts.append(pd.DataFrame({**key, "effect": _changes(runner, tables[language], flat)}))
    return tables, conditions, pd.concat(parts, ignore_index=True) if parts else None


def _grouped(runner: Runner, neurons: NeuronSet, controls: Controls) -> tuple[Tables, Conditions, pd.DataFrame | None]:
    draws = [neurons.matched_control(controls, draw) for draw in range(controls.draws)]
    # The first word tells what a column is, whatever labels are called.
    sets = {f"set {label}": neurons[label] for label in neurons.languages}
    sets |= {f"control {draw} {label}": draws[draw][label] for label in neurons.languages for draw in range(len(draws))}
    tables = runner.together(sets)
    conditions: Conditions = {(label, len(neurons[label])): f"set {label}" for label in neurons.languages}
    parts = []
    for label in neurons.languages if controls.draws else ():
        columns = [f"control {draw} {label}" for draw in range(controls.draws)]
        for language in runner.languages:
            key = {"label": label, "draw": range(controls.draws), "language": language}
            parts.append(pd.DataFrame({**key, "effect": _changes(runner, tables[language], columns)}))
    return tables, conditions, pd.concat(parts, ignore_index=True) if parts else None


def _added(
    runner: Runner, neurons: NeuronSet, order: Float[Tensor, "layer neuron"] | None
) -> tuple[Tables, Conditions]:
    """Add each label's neurons from the top of an order: the first 1, 2, 4, ... and all of them."""
    singles = runner.alone(united([neurons])) if order is None else {}
    sets, conditions = {}, {}
    for label, flat in neurons.members.items():
        sizes = _single_sizes(runner, singles, neurons, label) if order is None else order.flatten().double().numpy()
        ranked = flat[np.argsort(-sizes[flat], kind="stable")]
        for size in [*(2**power for power in range(len(flat).bit_length()) if 2**power < len(flat)), len(flat)]:
            layer, unit = divmod(int(ranked[size - 1]), neurons.shape[1])
            sets[f"first {size} {label}"] = replace(neurons, members={label: np.sort(ranked[:size])})
            conditions[label, size, layer, unit] = f"first {size} {label}"
    return runner.together(sets), conditions


def _single_sizes(runner: Runner, tables: Tables, neurons: NeuronSet, label: str) -> Float[np.ndarray, " neuron"]:
    """Size of each neuron's single effect in its own language, or on average; 0 for neurons without the label."""
    languages = [label] if label in runner.languages else list(runner.languages)
    sizes, flat = np.zeros(neurons.shape).ravel(), neurons.members[label]
    sizes[flat] = np.mean([np.abs(_changes(runner, tables[language], flat)) for language in languages], axis=0)
    return sizes


def _changes(runner: Runner, table: pd.DataFrame, columns: Iterable[object]) -> Float[np.ndarray, " condition"]:
    """The estimates of effects alone, as ``difference`` gives them."""
    before = table[UNPATCHED].to_numpy()
    after = table[[str(column) for column in columns]].to_numpy()
    return (after - before[:, None]).sum(0) / (before.sum() if runner.metric.per == BASELINE else len(before))
