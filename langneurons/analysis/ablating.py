"""ablate(): the exact effect of every neuron, beside its interval, its p-value and matched controls."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.analysis import metrics
from langneurons.analysis.ablation import Ablation
from langneurons.analysis.metrics import AblationValue, MetricFunction
from langneurons.analysis.running import UNPATCHED, Runner
from langneurons.corpora.languages import spelled
from langneurons.effects.estimation import many_effects
from langneurons.effects.pairing import BASELINE
from langneurons.errors import EffectError, NeuronSetError, unknown, warn_user
from langneurons.identification import NeuronSet
from langneurons.identification.controls import matched_by, statistics_at
from langneurons.identification.neurons import check_neurons, report_balance, united
from langneurons.models import view
from langneurons.patches.patch import Value
from langneurons.run import alone_in_out
from langneurons.settings import ControlledOptions, Controls, Run, Testing, controls_of, with_options

EACH = {  # what is ablated -> the key columns of its effects, and what it is called
    "neuron": (["label", "layer", "neuron", "language"], "each neuron alone"),
    "group": (["label", "neurons", "language"], "a label's neurons together"),
    "cumulative": (["label", "neurons", "layer", "neuron", "language"], "neurons added one by one,"),
}
Tables = Mapping[str, pd.DataFrame]  # language -> one row per item, one column per condition
Conditions = dict[tuple, str]  # values of the key columns -> the condition's column
ControlColumns = list[tuple[dict[str, Any], list]]  # key columns of some controls, and their columns
EARLIER_OPTIONS = {  # options of version 0.1.0 -> what they are called
    "rows": "batch_size=",
    "order": "each=, which takes the tensor",
    "min_effect": "min_effect= of Ablation.table()",
}


@alone_in_out
def ablate(
    model: torch.nn.Module,
    neurons: NeuronSet,
    data: object,
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
            norm as the label's own; fewer where there are not enough (for groups: that number of whole control sets).
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
    current = with_current_options(options)
    each, printed = current.pop("order", each), {name: current.pop(name) for name in {"min_effect"} & set(current)}
    controls, testing, run = with_options(current, controls_of(controls), testing, run)
    order, each = (each, "cumulative") if isinstance(each, Tensor) else (None, each)
    _check(neurons, each, order, controls)
    neurons = replace(neurons, members={k: v for k, v in neurons.members.items() if len(v)}, scores={})
    ablation_value = AblationValue.of(value, statistics_at(controls, neurons.site), neurons, controls.draws)
    measured_metric = metrics.metric_of(model, data, metric)
    model_view, languages = view(model), metrics.measured_languages(measured_metric.languages, languages)
    metrics.check_clusters(measured_metric, model_view, languages)
    runner = Runner(model, measured_metric, ablation_value, languages, run)
    if each == "cumulative":
        tables, conditions, control_columns = _added(runner, neurons, order)
    else:
        tables, conditions, control_columns = (_alone if each == "neuron" else _grouped)(runner, neurons, controls)
    effects, testing = {}, testing.in_family(len(conditions) * len(languages))
    for language in languages:
        table = tables[language]
        after = table[list(conditions.values())].to_numpy().T
        before = table[["item", "cluster"]].assign(**{measured_metric.name: table[UNPATCHED]})
        effects_of_language = many_effects(after, before, measured_metric.name, measured_metric.per, testing=testing)
        effects |= {(*key, language): effect for key, effect in zip(conditions, effects_of_language, strict=True)}
    control_effects = [
        pd.DataFrame({**about, "language": language, "effect": _changes(runner, tables[language], columns)})
        for about, columns in control_columns
        for language in languages
    ]
    keys, description = EACH[each]
    settings = {
        "model": f"{model_view.name} ({model_view.fingerprint[:8]}, {model_view.backend})",
        "metric": measured_metric.name,
        "data": measured_metric.fingerprint,
        "patch": f"{description} {ablation_value} at {neurons.site}",
        "neurons": neurons.method,
        "site": neurons.site,
        "each": each,
        "controls": controls.draws,
        "match": matched_by(controls),
        **report_balance(neurons, controls),
        "per": measured_metric.per,
        **testing.model_dump(include={"margin", "level", "seed"}),
        "resamples": testing.samples,
        "own_unit": isinstance(measured_metric, metrics.FunctionMetric),
        **printed,
    }
    all_controls = pd.concat(control_effects, ignore_index=True) if control_effects else None
    return Ablation.of(effects, keys, all_controls, settings)


def with_current_options(options: Mapping[str, object]) -> dict[str, Any]:
    """Options by their current names; a warning says what those of version 0.1.0 are called."""
    for name in EARLIER_OPTIONS.keys() & options.keys():
        warn_user(f"The option {name}= is called {EARLIER_OPTIONS[name]}.")
    return {"batch_size" if name == "rows" else name: value for name, value in options.items()}


def _check(neurons: NeuronSet, each: str, order: Tensor | None, controls: Controls) -> None:
    """Refuse what cannot be ablated."""
    check_neurons(neurons)
    if not len(neurons):
        raise NeuronSetError(f"The neuron set is empty ({neurons!r}): there is nothing to ablate.")
    if each not in EACH:
        raise EffectError(unknown("each", each, EACH))
    if controls.draws and each == "cumulative":
        raise EffectError("A cumulative ablation has no controls: ask for each='group', or controls=0.")
    if order is not None and tuple(order.shape) != neurons.shape:
        raise EffectError(
            f"An order gives one number per neuron of the model, {neurons.shape}, not {tuple(order.shape)}."
        )


def _alone(runner: Runner, neurons: NeuronSet, controls: Controls) -> tuple[Tables, Conditions, ControlColumns]:
    single_controls, width = neurons.single_controls(controls), neurons.shape[1]
    conditions: Conditions = {
        (label, layer, unit): str(layer * width + unit)
        for label in neurons.languages
        for layer, unit in neurons[label].indices().tolist()
    }
    control_columns: ControlColumns = [
        ({"label": label, "layer": flat // width, "neuron": flat % width}, flat.tolist())
        for label, flat in single_controls.members.items()
    ]
    return runner.alone(united([neurons, single_controls])), conditions, control_columns


def _grouped(runner: Runner, neurons: NeuronSet, controls: Controls) -> tuple[Tables, Conditions, ControlColumns]:
    draws = [neurons.matched_control(controls, draw) for draw in range(controls.draws)]
    # The first word tells what a column is, whatever labels are called.
    sets = {f"set {label}": neurons[label] for label in neurons.languages}
    conditions: Conditions = {(label, len(neurons[label])): f"set {label}" for label in neurons.languages}
    control_columns: ControlColumns = []
    for label in neurons.languages if draws else ():
        columns = [f"control {draw} {label}" for draw in range(len(draws))]
        sets |= {column: draw[label] for column, draw in zip(columns, draws, strict=True)}
        control_columns.append(({"label": label, "draw": range(len(draws))}, columns))
    return runner.together(sets), conditions, control_columns


def _added(
    runner: Runner, neurons: NeuronSet, order: Float[Tensor, "layer neuron"] | None
) -> tuple[Tables, Conditions, ControlColumns]:
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
    return runner.together(sets), conditions, []


def _single_sizes(runner: Runner, tables: Tables, neurons: NeuronSet, label: str) -> Float[np.ndarray, " neuron"]:
    """Size of each neuron's single effect in its own language, or on average; 0 for neurons without the label."""
    own = spelled(label, runner.languages)
    languages = list(runner.languages) if own is None else [own]
    sizes, flat = np.zeros(neurons.shape).ravel(), neurons.members[label]
    sizes[flat] = np.mean([np.abs(_changes(runner, tables[language], flat)) for language in languages], axis=0)
    return sizes


def _changes(runner: Runner, table: pd.DataFrame, columns: Iterable[object]) -> Float[np.ndarray, " condition"]:
    """The estimates of effects alone, as ``difference`` gives them."""
    before = table[UNPATCHED].to_numpy()
    after = table[[str(column) for column in columns]].to_numpy()
    return (after - before[:, None]).sum(0) / (before.sum() if runner.metric.per == BASELINE else len(before))
