"""Figures of neurons: where a language's neurons are, and what one neuron does in every language."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from langneurons.errors import NeuronSetError
from langneurons.identification.indices import shape_text
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.views.style import COLOURS, DASHES, FAINT, SHADES, legend_above, span, styled

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "circle-open")
MANY_LAYERS = 24  # more, and a cell is too narrow for its number


def layer_heatmap(neurons: NeuronSet) -> go.Figure:
    """Draw how many neurons each language has in each layer.

    Args:
        neurons: A neuron set.

    Returns:
        A heatmap, languages down in the set's order, layers across; hovering shows the count and its share of the
        layer.

    Raises:
        NeuronSetError: If the set is empty.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> ln.plot.layer_heatmap(neurons).data[0].type
        'heatmap'
    """
    _check_some(neurons)
    layers, width = neurons.shape
    counts = neurons.counts().to_numpy()
    labels = list(neurons.languages)
    figure = go.Figure(
        go.Heatmap(
            z=counts,
            x=list(range(layers)),
            y=labels,
            customdata=counts / width,
            colorscale=SHADES,
            zmin=0,
            text=counts if layers <= MANY_LAYERS else None,
            texttemplate="%{text}" if layers <= MANY_LAYERS else None,
            hovertemplate="%{y}, layer %{x}<br>%{z} neurons<br>%{customdata:.2%} of the layer<extra></extra>",
            colorbar={"title": "neurons"},
        )
    )
    figure.update_xaxes(title="layer", tickmode="linear" if layers <= 40 else "auto", showgrid=False)
    figure.update_yaxes(title="language", autorange="reversed", showgrid=False)
    return styled(
        figure,
        f"Neurons per language and layer ({len(neurons):,} of {layers * width:,})",
        110 + 46 * len(counts),
        ", ".join(f"{label} {len(neurons[label]):,}" for label in labels),
        "How many of a layer's neurons each language has; a neuron can belong to several languages.",
        provenance_of_neurons(neurons),
    )


def layer_profile(neurons: NeuronSet | Mapping[str, NeuronSet]) -> go.Figure:
    """Draw how neurons are spread over the layers: a curve for each language, or for each of several sets.

    Args:
        neurons: A neuron set, or several by name, of one model and site.

    Returns:
        Curves over layers; the legend says how many neurons each has in all.

    Raises:
        NeuronSetError: If there is no neuron, or the sets belong to different shapes.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> [trace.name.split()[0] for trace in ln.plot.layer_profile(neurons).data]
        ['en', 'hi', 'zh']
    """
    sets = _by_language(neurons) if isinstance(neurons, NeuronSet) else dict(neurons)
    if not sets or not any(map(len, sets.values())):
        raise NeuronSetError("The neuron sets are empty: there is nothing to draw.")
    first = next(iter(sets.values()))
    if other := next((one for one in sets.values() if one.shape != first.shape), None):
        raise NeuronSetError(
            "Profiles are drawn of sets of one shape; "
            f"these have different ones: {shape_text(first.shape)} and {shape_text(other.shape)}."
        )
    layers, width = first.shape
    figure = go.Figure()
    for place, (name, one) in enumerate(sets.items()):
        counts = one.mask().sum(1).numpy()
        figure.add_scatter(
            x=list(range(layers)),
            y=counts,
            customdata=counts / width,
            name=f"{name} ({len(one):,})",
            mode="lines+markers",
            line={"color": COLOURS[place % len(COLOURS)], "dash": DASHES[place // len(COLOURS) % len(DASHES)]},
            marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8},
            hovertemplate=f"{name}, layer %{{x}}<br>%{{y}} neurons<br>%{{customdata:.2%}} of the layer<extra></extra>",
        )
    figure.update_xaxes(title="layer", tickmode="linear" if layers <= 40 else "auto")
    figure.update_yaxes(title=f"neurons (of {width:,} a layer)", rangemode="tozero")
    whose = "each language's" if isinstance(neurons, NeuronSet) else "each set's"
    styled(
        figure,
        f"In which layers {whose} neurons are",
        400,
        caption="How many neurons of each layer belong; in brackets how many in all layers together.",
        provenance="; ".join(dict.fromkeys(map(provenance_of_neurons, sets.values()))),
    )
    return legend_above(figure)


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
        _add_density(figure, stats, position, language, (layer, index))
    figure.add_vline(x=0, line={"color": FAINT, "width": 1, "dash": "dot"})
    quantity = "pre-activation z" if stats.site in ("pre", "act") else f"activation at {stats.site}"
    figure.update_xaxes(title=quantity)
    figure.update_yaxes(title=f"density, per unit of {quantity.split()[-1] if 'z' in quantity else 'activation'}")
    figure.update_yaxes(rangemode="tozero")
    return styled(
        figure,
        f"Neuron {index} of layer {layer}: {quantity} in each language",
        420,
        f"{tokens_text(stats)} counted tokens a language; beside each language the share of them with activation > 0",
        "Each curve integrates to one.",
        provenance_of_statistics(stats),
    )


def provenance_of_neurons(neurons: NeuronSet) -> str:
    """How a set was found, at which site of which model."""
    return f"{neurons.method} at {neurons.site}, model {(neurons.model or 'unknown')[:8]}"


def provenance_of_statistics(stats: ActivationStats) -> str:
    """What was recorded."""
    model = stats.model
    return (
        f"{model.name} (weights {model.fingerprint[:8]}, {model.dtype}), site {stats.site}, {tokens_text(stats)} "
        f"counted tokens a language, context {stats.context_length}"
    )


def tokens_text(stats: ActivationStats) -> str:
    """How many counted tokens a language has, as one number or from the least to the most."""
    return span(stats.tokens.tolist())


def _add_density(
    figure: go.Figure, stats: ActivationStats, position: int, language: str, neuron: tuple[int, int]
) -> None:
    edges, counts = (tensor.numpy() for tensor in stats.histogram(language, neuron))
    occupied = np.flatnonzero(counts)
    edges, counts = edges[occupied[0] : occupied[-1] + 2], counts[occupied[0] : occupied[-1] + 1]
    share = counts / counts.sum()
    above = float(stats.probability()[(position, *neuron)])
    figure.add_scatter(
        x=(edges[:-1] + edges[1:]) / 2,
        y=share / np.maximum(np.diff(edges), 1e-12),
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


def _by_language(neurons: NeuronSet) -> dict[str, NeuronSet]:
    return {language: neurons[language] for language in neurons.languages}


def _check_some(neurons: NeuronSet) -> None:
    if not len(neurons):
        raise NeuronSetError("The neuron set is empty: there is nothing to draw.")
