"""Figures of neuron sets, activation statistics and effects (plotly, no network).

Every function returns a ``plotly.graph_objects.Figure``: show it in a notebook, or write it with ``write_html``.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from langneurons.errors import NeuronSetError
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.views.ablation_figures import ablation
from langneurons.views.effect_figures import dose_response, effects, perplexity_matrix
from langneurons.views.selectivity_figures import selectivity
from langneurons.views.style import COLOURS, DASHES, styled
from langneurons.views.training_figures import training, transfer

__all__ = [
    "ablation",
    "dose_response",
    "effects",
    "histogram",
    "layer_heatmap",
    "overlap",
    "perplexity_matrix",
    "selectivity",
    "training",
    "transfer",
]

SHADES = "Blues"


def layer_heatmap(neurons: NeuronSet) -> go.Figure:
    """Draw how many neurons each language has in each layer.

    Args:
        neurons: A neuron set.

    Returns:
        A heatmap, languages down and layers across; hovering shows count and share of the layer.

    Raises:
        NeuronSetError: If the set is empty.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> ln.plot.layer_heatmap(neurons).data[0].type
        'heatmap'
    """
    if not len(neurons):
        raise NeuronSetError("The neuron set is empty: there is nothing to draw.")
    layers, width = neurons.shape
    counts = np.stack([neurons.mask(language).sum(1).numpy() for language in neurons.languages])
    figure = go.Figure(
        go.Heatmap(
            z=counts,
            x=list(range(layers)),
            y=list(neurons.languages),
            customdata=counts / width,
            colorscale=SHADES,
            zmin=0,
            xgap=1,
            ygap=1,
            text=counts if layers <= 24 else None,
            texttemplate="%{text}" if layers <= 24 else None,
            hovertemplate="%{y}, layer %{x}<br>%{z} neurons<br>%{customdata:.2%} of the layer<extra></extra>",
            colorbar={"title": "neurons"},
        )
    )
    figure.update_xaxes(title="layer", tickmode="linear" if layers <= 40 else "auto", showgrid=False)
    figure.update_yaxes(title="language", autorange="reversed", showgrid=False)
    return styled(
        figure, f"Neurons per language and layer ({len(neurons):,} of {layers * width:,})", 110 + 46 * len(counts)
    )


def overlap(neurons: NeuronSet, other: NeuronSet | None = None, names: tuple[str, str] = ("", "")) -> go.Figure:
    """Draw the Jaccard overlap between languages, or between two neuron sets.

    Args:
        neurons: A neuron set (rows).
        other: Another one (columns); None compares ``neurons`` with itself.
        names: What to call the two sets on the axes.

    Returns:
        A heatmap of Jaccard similarities from 0 to 1; hovering shows the shared count.

    Example:
        >>> ln.plot.overlap(ln.LAPE(top=0.01).identify(stats)).data[0].zmax
        1
    """
    columns = neurons if other is None else other
    jaccard = neurons.jaccard(other).to_numpy(dtype=float)
    shared = np.array(
        [[int((neurons.mask(a) & columns.mask(b)).sum()) for b in columns.languages] for a in neurons.languages]
    )
    figure = go.Figure(
        go.Heatmap(
            z=jaccard,
            x=list(columns.languages),
            y=list(neurons.languages),
            customdata=shared,
            colorscale=SHADES,
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=1,
            texttemplate="%{z:.2f}",
            hovertemplate="%{y} and %{x}<br>Jaccard %{z:.3f}<br>%{customdata} shared neurons<extra></extra>",
            colorbar={"title": "Jaccard"},
        )
    )
    figure.update_xaxes(title=names[1] or "language", showgrid=False)
    figure.update_yaxes(title=names[0] or "language", autorange="reversed", showgrid=False)
    title = (
        "Overlap between the languages' neurons"
        if other is None
        else f"Overlap of {names[0] or 'one set'} and {names[1] or 'the other'}"
    )
    return styled(figure, title, 140 + 46 * len(jaccard))


def histogram(stats: ActivationStats, neuron: tuple[int, int], languages: Sequence[str] | None = None) -> go.Figure:
    """Draw one neuron's distribution in every language on shared axes.

    Args:
        stats: Activation statistics.
        neuron: Layer and index.
        languages: Which to draw; None draws all.

    Returns:
        Densities: of z at the sites pre and act, of the activation value at post and head; the share of tokens with an
        activation above zero stands beside each language.

    Raises:
        StatisticsError: If the model has no such neuron, or histograms were not recorded.

    Example:
        >>> figure = ln.plot.histogram(stats, (0, 5))
        >>> len(figure.data) == len(stats.languages)
        True
    """
    stats = stats if languages is None else stats.select(languages)
    layer, index = stats.check_neuron(neuron)
    figure = go.Figure()
    for position, language in enumerate(stats.languages):
        edges, counts = (tensor.numpy() for tensor in stats.histogram(language, (layer, index)))
        occupied = np.flatnonzero(counts)
        kept = slice(occupied[0], occupied[-1] + 1)
        edges, counts = edges[occupied[0] : occupied[-1] + 2], counts[kept]
        share = counts / counts.sum()
        density = share / np.maximum(np.diff(edges), 1e-12)
        above = float(stats.probability()[position, layer, index])
        figure.add_scatter(
            x=(edges[:-1] + edges[1:]) / 2,
            y=density,
            customdata=share,
            name=f"{language}  {above:.0%} > 0",
            mode="lines",
            line={
                "shape": "hvh",
                "color": COLOURS[position % len(COLOURS)],
                "dash": DASHES[position // len(COLOURS) % len(DASHES)],
                "width": 2,
            },
            hovertemplate=language + "<br>at %{x:.3f}<br>%{customdata:.2%} of its tokens in this bin<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": "#888888", "width": 1, "dash": "dot"})
    quantity = "pre-activation z" if stats.site in ("pre", "act") else f"activation at {stats.site}"
    figure.update_xaxes(title=quantity)
    figure.update_yaxes(title="density", rangemode="tozero")
    return styled(figure, f"Neuron {index} of layer {layer}: {quantity} in each language", 420)
