"""Figures of neurons: where a language's neurons are, and what one does in every language."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from langneurons.effects.table import span
from langneurons.errors import NeuronSetError
from langneurons.identification.indices import shape_text
from langneurons.identification.neurons import NeuronSet, check_neurons, sets_by_name
from langneurons.recording.statistics import ActivationStats, check_statistics
from langneurons.views.looks import colour_of, lines_of
from langneurons.views.style import DOTTED, heatmap, legend_above, line_of, panels, styled

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "circle-open")
MANY_LAYERS = 24  # more, and a cell is too narrow for its number
PANELS = 4  # side by side
STRIP = 62  # pixels down for each language of a histogram
RARE = 0.001  # share of the tokens in a bin that does not raise the scale, however narrow the bin is


def layer_heatmap(neurons: NeuronSet) -> go.Figure:
    """Draw how many neurons each language has in each layer.

    Args:
        neurons: A neuron set.

    Returns:
        A heatmap, languages down by their codes, layers across; hovering shows the count, its share of the layer, and
        how many are exclusive to the language or higher in another.

    Raises:
        NeuronSetError: If the set is empty.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> ln.plot.layer_heatmap(neurons).data[0].type
        'heatmap'
    """
    check_neurons(neurons)
    if not len(neurons):
        raise NeuronSetError("The neuron set is empty: there is nothing to draw.")
    neurons = neurons.select(sorted(neurons.languages))
    layers, width = neurons.shape
    counts = neurons.counts().to_numpy()
    figure = heatmap(
        counts,
        neurons.languages,
        range(layers),
        ("language", "layer"),
        customdata=counts / width,
        zmax=None,
        text=_parts_by_layer(neurons),
        texttemplate="%{z}" if layers <= MANY_LAYERS else None,
        hovertemplate="%{y}, layer %{x}<br>%{z} neurons<br>%{customdata:.2%} of the layer<br>%{text}<extra></extra>",
        colorbar={"title": "neurons"},
    )
    figure.update_xaxes(type="linear", tickmode="linear" if layers <= 40 else "auto")
    return styled(
        figure,
        f"Neurons per language and layer ({len(neurons):,} of {layers * width:,})",
        110 + 46 * len(counts),
        f"{', '.join(f'{label} {len(neurons[label]):,}' for label in neurons.languages)}{standing(neurons)}",
        "Number of a layer's neurons that each language has; a neuron can belong to several languages.",
        provenance_of_neurons(neurons),
    )


def standing(neurons: NeuronSet) -> str:
    """How many labels are exclusive and how many sit on neurons that are higher in another language, for a subtitle."""
    labels = sum(map(len, neurons.members.values()))
    exclusive, elsewhere = neurons.exclusive().members, neurons.highest_elsewhere()
    text = f"; of {labels:,} labels {sum(map(len, exclusive.values())):,} are exclusive"
    higher = f", {sum(map(len, elsewhere.values())):,} sit on neurons that are higher in another language"
    return text + (higher if neurons.highest else "")


def _parts_by_layer(neurons: NeuronSet) -> list[list[str]]:
    """What hovering says of each language's neurons in each layer."""
    exclusive = neurons.exclusive().counts().to_numpy()
    texts = np.char.add(exclusive.astype(str), " exclusive")
    if neurons.highest:
        elsewhere = replace(neurons, members=neurons.highest_elsewhere(), scores={}).counts().to_numpy()
        texts = np.char.add(np.char.add(texts, ", "), np.char.add(elsewhere.astype(str), " higher in another language"))
    return texts.tolist()


def layer_profile(neurons: NeuronSet | Mapping[str, NeuronSet]) -> go.Figure:
    """Draw how neurons are spread over the layers: a panel for each language, or a curve for each of several sets.

    Args:
        neurons: A neuron set, or several by name, of one model and site.

    Returns:
        Bars over layers, in a panel for each language, on the same axes; for several sets curves. Each is named with
        its number of neurons in all layers.

    Raises:
        NeuronSetError: If there is no neuron, or the sets belong to different shapes.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> [trace.name.split()[0] for trace in ln.plot.layer_profile(neurons).data]
        ['en', 'hi', 'zh']
    """
    if isinstance(neurons, NeuronSet):
        whose, sets = "each language's", {language: neurons[language] for language in sorted(neurons.languages)}
    else:
        whose, sets = "each set's", sets_by_name(neurons, "")
    if not sets or not any(map(len, sets.values())):
        raise NeuronSetError("The neuron sets are empty: there is nothing to draw.")
    first = next(iter(sets.values()))
    if other := next((other for other in sets.values() if other.shape != first.shape), None):
        raise NeuronSetError(
            "Profiles are drawn of sets of one shape; "
            f"these have different ones: {shape_text(first.shape)} and {shape_text(other.shape)}."
        )
    if isinstance(neurons, NeuronSet):
        figure, height = _bars(sets), 70 + 120 * -(-len(sets) // PANELS)
    else:
        figure, height = _curves(sets), 400
    layers, width = first.shape
    figure.update_xaxes(tickmode="linear" if layers <= MANY_LAYERS // 2 else "auto")
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(yaxis_title=f"neurons of {width:,}")
    styled(
        figure,
        f"In which layers {whose} neurons are",
        height,
        caption="Number of neurons in each layer; in brackets the number in all layers together.",
        provenance="; ".join(dict.fromkeys(map(provenance_of_neurons, sets.values()))),
    )
    return figure if isinstance(neurons, NeuronSet) else legend_above(figure)


def _bars(sets: Mapping[str, NeuronSet]) -> go.Figure:
    """A panel of bars over layers for each language."""
    names = [f"{language} ({len(members):,})" for language, members in sets.items()]
    figure, places = panels(names, PANELS, "layer")
    for name, (language, members), (row, column) in zip(names, sets.items(), places, strict=True):
        figure.add_bar(
            **_per_layer(members, language), name=name, marker_color=colour_of(language), row=row, col=column
        )
    return figure.update_layout(showlegend=False, bargap=0.15)


def _curves(sets: Mapping[str, NeuronSet]) -> go.Figure:
    """A curve over layers for each set."""
    figure = go.Figure()
    for place, (name, members) in enumerate(sets.items()):
        figure.add_scatter(
            **_per_layer(members, name),
            name=f"{name} ({len(members):,})",
            mode="lines+markers",
            line=line_of(place),
            marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8},
        )
    return figure.update_xaxes(title="layer")


def _per_layer(members: NeuronSet, name: str) -> dict[str, object]:
    """Number of neurons in each layer, and what hovering shows of it."""
    counts = members.mask().sum(1).numpy()
    return {
        "x": list(range(len(counts))),
        "y": counts,
        "customdata": counts / members.shape[1],
        "meta": name,
        "hovertemplate": "%{meta}, layer %{x}<br>%{y} neurons<br>%{customdata:.2%} of the layer<extra></extra>",
    }


def histogram(stats: ActivationStats, neuron: tuple[int, int], languages: Sequence[str] | None = None) -> go.Figure:
    """Draw one neuron's distribution in every language on shared axes.

    Args:
        stats: Activation statistics.
        neuron: Layer and index.
        languages: Languages to draw; by default all.

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
    check_statistics(stats)
    stats = stats.select(sorted(stats.languages if languages is None else languages))
    layer, index = stats.check_neuron(neuron)
    figure = make_subplots(
        rows=len(stats.languages),
        cols=1,
        shared_xaxes=True,
        shared_yaxes="all",  # pyright: ignore[reportArgumentType] (its stub lacks "all")
        vertical_spacing=0.02,
    )
    lines, highest = lines_of(stats.languages), 0.0
    for position, language in enumerate(stats.languages):
        edges, counts = (tensor.numpy() for tensor in stats.histogram(language, neuron))
        occupied = np.flatnonzero(counts)
        edges, counts = edges[occupied[0] : occupied[-1] + 2], counts[occupied[0] : occupied[-1] + 1]
        share, row = counts / counts.sum(), position + 1
        widths = np.maximum(np.diff(edges), 1e-12)
        # The outermost bins end at the extreme values, so they can be too narrow for a density.
        widths[[0, -1]] = np.maximum(widths[[0, -1]], widths[[1, -2]]) if len(widths) > 1 else widths
        heights = share / widths
        highest = max(highest, float(heights[share > RARE].max(initial=0)))
        name = f"{language}  {float(stats.probability()[position, layer, index]):.0%} > 0"
        figure.add_scatter(
            **steps(edges, heights, {**lines[language], "width": 1.5}),
            fill="tozeroy",
            customdata=share,
            name=name,
            meta=language,
            hovertemplate="%{meta}<br>at %{x:.3f}<br>%{customdata:.2%} of its tokens in this bin<extra></extra>",
            row=row,
            col=1,
        )
        low, high = next(iter(figure.select_yaxes(row=row, col=1))).domain
        figure.add_annotation(
            text=name, x=1, xref="paper", xanchor="right", y=(low + 2 * high) / 3, yref="paper", showarrow=False,
        )  # fmt: skip
    figure.add_vline(x=0, line=DOTTED)
    quantity = "pre-activation z" if stats.site in ("pre", "act") else f"activation at {stats.site}"
    figure.update_xaxes(title=quantity, row=len(stats.languages))
    figure.update_yaxes(range=[0, 1.1 * highest], showticklabels=False, showgrid=False)
    unit = quantity.split()[-1] if "z" in quantity else "activation"
    return styled(
        figure,
        f"Neuron {index} of layer {layer}: {quantity} in each language",
        90 + STRIP * len(stats.languages),
        f"{tokens_text(stats)}; at the right the share with activation\u00a0>\u00a00",
        f"Upwards: density, per unit of {unit}, on one scale; each curve integrates to one.",
        provenance_of_statistics(stats),
    ).update_layout(showlegend=False)


def provenance_of_neurons(neurons: NeuronSet) -> str:
    """Method, site and model of a neuron set."""
    return f"{neurons.method.partition('(')[0]} at {neurons.site}, model {(neurons.model or 'unknown')[:8]}"


def provenance_of_statistics(stats: ActivationStats) -> str:
    """Model, site and text of a recording."""
    model = stats.model
    about = f"{model.name} (weights {model.fingerprint[:8]}, {model.dtype}), site {stats.site}"
    return f"{about}, {tokens_text(stats)}, context {stats.context_length}"


def tokens_text(stats: ActivationStats) -> str:
    """Counted tokens per language, as one number or from the least to the most."""
    return f"{span(stats.tokens.tolist())} counted tokens per language"


def steps(edges: np.ndarray, heights: np.ndarray, line: Mapping[str, object]) -> dict[str, object]:
    """A histogram as a stepped line."""
    return {"x": (edges[:-1] + edges[1:]) / 2, "y": heights, "mode": "lines", "line": {"shape": "hvh", **line}}
