"""Figures of everything that langneurons finds (plotly, no network), in one look.

Every function returns a ``plotly.graph_objects.Figure`` with its caption and provenance in ``layout.meta``: show it in
a notebook, or write it to a file with ``ln.plot.save``.
"""

from langneurons.views.analysis_figures import ablation, selectivity, validity
from langneurons.views.dose_figures import dose_response
from langneurons.views.effect_figures import effects, perplexity_matrix
from langneurons.views.neuron_figures import histogram, layer_heatmap, layer_profile
from langneurons.views.overlap_figures import methods, overlap, sets
from langneurons.views.style import save
from langneurons.views.tokens import tokens
from langneurons.views.training_figures import training, transfer

# Name of a result's class -> the figure that its ``plot`` draws.
FIGURES = {
    "Ablation": ablation,
    "EffectTable": effects,
    "Evaluation": effects,
    "Finetuned": training,
    "NeuronSet": layer_heatmap,
    "Polysemanticity": selectivity,
    "Transfer": transfer,
    "ValidityTable": validity,
}

__all__ = [
    "ablation",
    "dose_response",
    "effects",
    "histogram",
    "layer_heatmap",
    "layer_profile",
    "methods",
    "overlap",
    "perplexity_matrix",
    "save",
    "selectivity",
    "sets",
    "tokens",
    "training",
    "transfer",
    "validity",
]
