"""Figures of everything that langneurons finds (plotly, no network), in one look.

Every function returns a ``plotly.graph_objects.Figure`` with its caption and provenance in ``layout.meta``: show it in
a notebook, or write it to a file with ``ln.plot.save``.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import plotly.graph_objects as go

from langneurons.effects.table import EffectTable
from langneurons.evaluation.results import Evaluation
from langneurons.views.analysis_figures import ablation, selectivity, validity
from langneurons.views.attribution_figure import attribution
from langneurons.views.dose_figures import dose_response
from langneurons.views.effect_figures import effects, perplexity_matrix
from langneurons.views.neuron_figures import histogram, layer_heatmap, layer_profile
from langneurons.views.overlap_figures import methods, overlap, sets
from langneurons.views.style import save
from langneurons.views.tokens import tokens
from langneurons.views.training_figures import training, transfer


def _effect_table(table: EffectTable) -> go.Figure:
    return perplexity_matrix(table) if table.keys == ["patched", "measured"] else effects(table)


def _evaluation(evaluation: Evaluation, *which: str | None, **options: str | None) -> go.Figure:
    table = evaluation.effects(*which, **options)
    return effects(replace(table, settings={"model": evaluation.settings["model"], **table.settings}))


# Name of a result's class -> the figure that its ``plot`` draws.
FIGURES: Mapping[str, Callable[..., go.Figure]] = {
    "Ablation": ablation,
    "ActivationStats": histogram,
    "Attribution": attribution,
    "EffectTable": _effect_table,
    "Evaluation": _evaluation,
    "Finetuned": lambda tuned: training(tuned.history, tuned.about),
    "NeuronSet": layer_heatmap,
    "Polysemanticity": selectivity,
    "TaskGradient": lambda result: layer_heatmap(result.neurons),
    "Transfer": transfer,
    "ValidityTable": validity,
}

__all__ = [
    "ablation",
    "attribution",
    "dose_response",
    "effects",
    "histogram",
    "layer_heatmap",
    "layer_profile",
    "methods",
    "overlap",
]
__all__ += ["perplexity_matrix", "save", "selectivity", "sets", "tokens", "training", "transfer", "validity"]
