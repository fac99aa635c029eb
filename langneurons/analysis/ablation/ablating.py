"""ablate(): the exact effect of every neuron, beside its interval, its p-value and matched controls."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.analysis.ablation.conditions import Written, check_options, prefixes
from langneurons.analysis.ablation.measured import Metric, Numbers, check_clusters, check_languages, measured
from langneurons.analysis.ablation.result import Ablation, check_min_effect
from langneurons.analysis.ablation.running import UNPATCHED, Runner
from langneurons.effects import estimation
from langneurons.effects.estimation import many_effects
from langneurons.effects.pairing import BASELINE
from langneurons.errors import EffectError
from langneurons.identification.controls import matched_by
from langneurons.identification.neurons import NeuronSet, united
from langneurons.models import view
from langneurons.patches.patch import Value
from langneurons.recording.statistics import ActivationStats
from langneurons.run import Executor
from langneurons.settings import Controls, Testing

Tables = Mapping[str, pd.DataFrame]


def ablate(
    model: torch.nn.Module,
    neurons: NeuronSet,
    data: Any,
    metric: str | Metric = "nll",
    value: Value | str = 0.0,
    each: str = "neuron",
    controls: int = 0,
    stats: ActivationStats | None = None,
    languages: Iterable[str] | None = None,
    order: Float[Tensor, "layer neuron"] | None = None,
    rows: int = 32,
    min_effect: float = 0.0,
    delta: float = 0.01,
    seed: int = 0,
    resamples: int = 5000,
    out: str | Path | None = None,
    progress: bool = True,
    executor: str | Executor | None = None,
) -> Ablation:
    """Measure what the model loses without each neuron, exactly.

    Each neuron is written by itself in a copy of the texts, many copies a forward, and only what lies above it is run
    again: the same numbers as a whole forward inside ``ln.intervene`` for every neuron.

    Args:
        model: From ``load_model``.
        neurons: One language's, or every label of a set.
        data: Held-out text (a ``HeldoutText`` or a corpus), a task such as ``ln.XNLI``, or, for a function as metric, a
            corpus or texts with labels. A task that generates is run whole for every neuron.
        metric: ``"nll"``: the loss, relative to the unpatched model's in that language (of a task with label scores:
            of the gold label). The name of a task's score: its difference. Or a function of (logits "row position
            token", tokens "row position", mask, labels) that gives one number a row: differences of their mean; mask is
            False at padding, labels are the texts', else their language. More is better, unless the function is named
            loss.
        value: What ablated neurons are given: a number, ``"mean"`` (their mean in the measured language, from
            ``stats``), SiteValues, or a tensor, one number a neuron of the model or of the set.
        each: ``"neuron"`` by itself, ``"group"`` (a label's neurons together), or ``"cumulative"``: the first 1, 2, 4,
            ... and all of them.
        controls: Control neurons a label, of the same layers and, with ``stats``, deciles of mean magnitude x output
            norm as the label's own; fewer where so many are not there (each="group": so many whole control sets).
        stats: Statistics of the same model.
        languages: In which to measure; None is all of the data's.
        order: For ``"cumulative"``: a number a neuron, the largest are ablated first; None orders them by the size of
            their single effects in their label's language (in all languages where that is not measured).
        rows: Rows a forward, at most: neurons x texts. The logits of a forward are rows x positions x vocabulary.
        min_effect: Smaller effects are not printed; p-values are adjusted over all, printed or not.
        delta: Effects within +-delta are called equivalent to none: 0.01 is 1 % of the loss, or one point; of a
            function's numbers, 0.01 of their own unit.
        seed: Of controls and resampling.
        resamples: Bootstrap and sign-flip samples.
        out: Folder that keeps what was measured; the same call goes on there.
        progress: Show progress bars on standard error.
        executor: Where to run, as for ``ln.record``.

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
        >>> found = ablate(model, neurons, text, resamples=200, progress=False)
        >>> found.rows[["label", "layer", "neuron", "language"]].values.tolist()
        [['hi', 0, 3, 'en'], ['hi', 1, 2, 'en'], ['hi', 0, 3, 'hi'], ['hi', 1, 2, 'hi']]
    """
    check_options(neurons, each, controls, rows)
    how = Controls(draws=controls, stats=stats, seed=seed)
    check_min_effect(min_effect)
    Testing(margin=delta, resamples=resamples)
    neurons = replace(neurons, members={k: v for k, v in neurons.members.items() if len(v)}, scores={})
    written = Written.of(value, stats, neurons, controls)
    source = measured(model, data, metric)
    chosen = check_languages(source, languages)
    check_clusters(source, view(model), chosen)
    runner = Runner(model, source, written, chosen, rows, out, progress, executor)
    conditions, drawn = _measured(runner, neurons, each, how, order)
    options = {"per": source.per, "margin": delta, "resamples": resamples, "seed": seed}
    found = {
        (*key, language): one
        for language in chosen
        for key, one in zip(conditions, _effects(conditions, language, source.name, options), strict=True)
    }
    seen = view(model)
    about = {
        "model": f"{seen.name} ({seen.fingerprint[:8]}, {seen.backend})",
        "metric": source.name,
        "data": source.fingerprint,
        "patch": f"{_SAID[each]} {written.said} at {neurons.site}",
        "neurons": neurons.method,
        "site": neurons.site,
        "each": each,
        "controls": controls,
        "match": matched_by(how),
        "min_effect": min_effect,
        "own_unit": isinstance(source, Numbers),
    }
    return Ablation.of(found, [*_KEYS[each], "language"], drawn, {**options, **about})


_SAID = {
    "neuron": "each neuron alone",
    "group": "a label's neurons together",
    "cumulative": "neurons added one by one,",
}
_KEYS = {
    "neuron": ["label", "layer", "neuron"],
    "group": ["label", "neurons"],
    "cumulative": ["label", "neurons", "layer", "neuron"],
}
Conditions = dict[tuple, tuple[Tables, str]]  # values of the key columns -> the tables, and the condition's column
Found = tuple[Conditions, pd.DataFrame | None]


def _measured(runner: Runner, neurons: NeuronSet, each: str, controls: Controls, order: Tensor | None) -> Found:
    if each == "cumulative":
        return _added(runner, neurons, order), None
    return _alone(runner, neurons, controls) if each == "neuron" else _grouped(runner, neurons, controls)


def _alone(runner: Runner, neurons: NeuronSet, controls: Controls) -> Found:
    drawn = neurons.single_controls(controls)
    tables = runner.alone(united([neurons, drawn]))
    found: Conditions = {
        (label, layer, unit): (tables, str(layer * neurons.shape[1] + unit))
        for label in neurons.languages
        for layer, unit in neurons[label].indices().tolist()
    }
    parts = []
    for label, flat in drawn.members.items():
        layer, unit = np.divmod(flat, neurons.shape[1])
        for language in runner.languages:
            effect = _changes(runner, tables[language], flat)
            about = {"label": label, "layer": layer, "neuron": unit, "language": language}
            parts.append(pd.DataFrame({**about, "effect": effect}))
    return found, pd.concat(parts, ignore_index=True) if parts else None


def _grouped(runner: Runner, neurons: NeuronSet, controls: Controls) -> Found:
    sets = {label: neurons[label] for label in neurons.languages}
    draws = [neurons.matched_control(controls, draw) for draw in range(controls.draws)]
    # The first word tells what a column is, whatever labels are called.
    drawn = {f"control {draw} {label}": draws[draw][label] for label in sets for draw in range(controls.draws)}
    tables = runner.together({f"set {label}": one for label, one in sets.items()} | drawn)
    found: Conditions = {(label, len(one)): (tables, f"set {label}") for label, one in sets.items()}
    parts = []
    for label, language in product(sets, runner.languages):
        effect = _changes(runner, tables[language], [f"control {draw} {label}" for draw in range(controls.draws)])
        about = {"label": label, "draw": range(controls.draws), "language": language}
        parts.append(pd.DataFrame({**about, "effect": effect}))
    return found, pd.concat(parts, ignore_index=True) if controls.draws else None


def _added(runner: Runner, neurons: NeuronSet, order: Tensor | None) -> Conditions:
    if order is not None and tuple(order.shape) != neurons.shape:
        raise EffectError(f"order= gives one number a neuron of the model, {neurons.shape}, not {tuple(order.shape)}.")
    singles = runner.alone(united([neurons])) if order is None else {}
    sets, keys = {}, {}
    for label in neurons.languages:
        ranks = _sizes(runner, singles, neurons, label) if order is None else order
        for size, (one, layer, unit) in prefixes(neurons, label, ranks).items():
            sets[f"first {size} {label}"], keys[label, size, layer, unit] = one, f"first {size} {label}"
    tables = runner.together(sets)
    return {key: (tables, column) for key, column in keys.items()}


def _sizes(runner: Runner, tables: Tables, neurons: NeuronSet, label: str) -> Float[Tensor, "layer neuron"]:
    """How large each neuron's single effect is in its own language, or on average."""
    own = [label] if label in runner.languages else list(runner.languages)
    sizes = np.zeros(neurons.shape).ravel()
    flat = neurons.members[label]
    sizes[flat] = np.mean([np.abs(_changes(runner, tables[language], flat)) for language in own], axis=0)
    return torch.from_numpy(sizes.reshape(neurons.shape))


def _changes(runner: Runner, table: pd.DataFrame, columns: Iterable[Any]) -> Float[np.ndarray, " condition"]:
    """The estimates of effects alone, as ``difference`` gives them."""
    before = table[UNPATCHED].to_numpy()
    after = table[[str(column) for column in columns]].to_numpy()
    return (after - before[:, None]).sum(0) / (before.sum() if runner.source.per == BASELINE else len(before))


def _effects(
    conditions: Conditions, language: str, name: str, options: Mapping[str, Any]
) -> Sequence[estimation.Effect]:
    tables = next(iter(conditions.values()))[0]
    table = tables[language]
    after = table[[column for _, column in conditions.values()]].to_numpy().T
    before = table[["item", "cluster"]].assign(**{name: table[UNPATCHED]})
    return many_effects(after, before, name, **options)
