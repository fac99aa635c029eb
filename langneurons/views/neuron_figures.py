"""Figures of neurons: where a language's neurons are, what one does in every language, what written values do."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from langneurons.corpora.languages import spelled
from langneurons.effects.table import EffectTable, span
from langneurons.errors import EffectError, NeuronSetError, check_kind, unknown
from langneurons.identification.indices import shape_text
from langneurons.identification.neurons import NeuronSet, check_neurons, sets_by_name
from langneurons.recording.statistics import ActivationStats, check_statistics
from langneurons.views.effect_figures import provenance_of
from langneurons.views.style import COLOURS, DOTTED, error_bars, heatmap, legend_above, line_of, styled

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "circle-open")
MANY_LAYERS = 24  # more, and a cell is too narrow for its number


def layer_heatmap(neurons: NeuronSet) -> go.Figure:
    """Draw how many neurons each language has in each layer.

    Args:
        neurons: A neuron set.

    Returns:
        A heatmap, languages down in the set's order, layers across; hovering shows the count, its share of the layer,
        and how many are exclusive to the language or higher in another.

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
    if isinstance(neurons, NeuronSet):
        whose, sets = "each language's", {language: neurons[language] for language in neurons.languages}
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
    layers, width = first.shape
    figure = go.Figure()
    for place, (name, members) in enumerate(sets.items()):
        counts = members.mask().sum(1).numpy()
        figure.add_scatter(
            x=list(range(layers)),
            y=counts,
            customdata=counts / width,
            name=f"{name} ({len(members):,})",
            mode="lines+markers",
            line=line_of(place),
            marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8},
            meta=name,
            hovertemplate="%{meta}, layer %{x}<br>%{y} neurons<br>%{customdata:.2%} of the layer<extra></extra>",
        )
    figure.update_xaxes(title="layer", tickmode="linear" if layers <= 40 else "auto")
    figure.update_yaxes(title=f"neurons (of {width:,} per layer)", rangemode="tozero")
    styled(
        figure,
        f"In which layers {whose} neurons are",
        400,
        caption="Number of neurons in each layer; in brackets the number in all layers together.",
        provenance="; ".join(dict.fromkeys(map(provenance_of_neurons, sets.values()))),
    )
    return legend_above(figure)


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
    stats = stats if languages is None else stats.select(languages)
    layer, index = stats.check_neuron(neuron)
    figure = go.Figure()
    for position, language in enumerate(stats.languages):
        edges, counts = (tensor.numpy() for tensor in stats.histogram(language, neuron))
        occupied = np.flatnonzero(counts)
        edges, counts = edges[occupied[0] : occupied[-1] + 2], counts[occupied[0] : occupied[-1] + 1]
        share = counts / counts.sum()
        figure.add_scatter(
            **_steps(edges, share / np.maximum(np.diff(edges), 1e-12), {**line_of(position), "width": 2}),
            customdata=share,
            name=f"{language}  {float(stats.probability()[position, layer, index]):.0%} > 0",
            meta=language,
            hovertemplate="%{meta}<br>at %{x:.3f}<br>%{customdata:.2%} of its tokens in this bin<extra></extra>",
        )
    figure.add_vline(x=0, line=DOTTED)
    quantity = "pre-activation z" if stats.site in ("pre", "act") else f"activation at {stats.site}"
    figure.update_xaxes(title=quantity)
    unit = quantity.split()[-1] if "z" in quantity else "activation"
    figure.update_yaxes(title=f"density, per unit of {unit}", rangemode="tozero")
    return styled(
        figure,
        f"Neuron {index} of layer {layer}: {quantity} in each language",
        420,
        f"{tokens_text(stats)}; beside each language the share of them with activation > 0",
        "Each curve integrates to one.",
        provenance_of_statistics(stats),
    )


def provenance_of_neurons(neurons: NeuronSet) -> str:
    """Method, site and model of a neuron set."""
    return f"{neurons.method} at {neurons.site}, model {(neurons.model or 'unknown')[:8]}"


def provenance_of_statistics(stats: ActivationStats) -> str:
    """Model, site and text of a recording."""
    model = stats.model
    about = f"{model.name} (weights {model.fingerprint[:8]}, {model.dtype}), site {stats.site}"
    return f"{about}, {tokens_text(stats)}, context {stats.context_length}"


def tokens_text(stats: ActivationStats) -> str:
    """Counted tokens per language, as one number or from the least to the most."""
    return f"{span(stats.tokens.tolist())} counted tokens per language"


def _steps(edges: np.ndarray, heights: np.ndarray, line: Mapping[str, object]) -> dict[str, object]:
    """A histogram as a stepped line."""
    return {"x": (edges[:-1] + edges[1:]) / 2, "y": heights, "mode": "lines", "line": {"shape": "hvh", **line}}


RAREST = 0.01  # share of the natural values that is left out at either end
POINTS = 8  # per bin, over which its tokens are spread
OWN, OTHER = COLOURS[1], COLOURS[0]
KIND_SYMBOLS = {"set": "circle", "quantile": "diamond-open"}
NAMES = {"set": "one constant", "quantile": "own quantiles"}


def dose_response(
    table: EffectTable,
    stats: ActivationStats,
    neurons: NeuronSet,
    language: str,
    method: str | None = None,
    layers: str = "all",
) -> go.Figure:
    """Draw what values written at a language's neurons do to losses, over what the neurons naturally do.

    Args:
        table: A table that ``ln.sweep`` returned.
        stats: Statistics at the neurons' site.
        neurons: The neuron set that was swept.
        language: Language whose neurons were patched.
        method: Method whose cells to draw; by default the only one.
        layers: Range of layers whose cells to draw.

    Returns:
        Two panels on one axis of written values: above, the change of loss (the language itself with its interval, the
        mean of the others) where every neuron is set to one constant, and where each is set to a quantile of its own;
        below, how often the neurons take which values in the language and in the others.

    Raises:
        EffectError: If the table holds no such cells.
    """
    check_kind(table, EffectTable, "This figure is of what ln.sweep() returns", EffectError)
    check_statistics(stats)
    check_neurons(neurons)
    rows = _cells(table, language, method, layers)
    natural = stats.at(neurons.site)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.06)
    own = rows.query("measured == @language").sort_values("written")
    others = rows.query("measured != @language").pivot_table("estimate", ["kind", "amount", "written"]).reset_index()
    for name, cells, colour in ((language, own, OWN), ("the others (mean)", others.sort_values("written"), OTHER)):
        for kind, symbol in KIND_SYMBOLS.items():
            if len(cells.query("kind == @kind")):
                _add_curve(figure, f"{name}, {NAMES[kind]}", cells.query("kind == @kind"), colour, symbol)
    _add_natural(figure, natural, neurons, language)
    figure.add_hline(y=0, line=DOTTED, row=1, col=1)  # pyright: ignore[reportArgumentType] (their stub says str)
    figure.update_xaxes(title=f"mean value written at {neurons.site}", row=2, col=1)
    figure.update_yaxes(title="change of loss, %", row=1, col=1)
    figure.update_yaxes(title="density", row=2, col=1)
    level, clusters = 100 * float(table.settings["level"]), span(own["clusters"])
    styled(
        figure,
        f"What values written at the neurons of {language} do to losses",
        560,
        f"{len(neurons[language]):,} neurons; loss relative to the unpatched model, {level:g} % intervals, n = "
        f"{clusters} clusters in {language}; below: values the neurons naturally take",
        "One constant: every neuron is set to the value on the axis. Own quantiles: each neuron is set to a quantile "
        "of its own values, drawn at the mean of the values written. The others: mean of the other languages, without "
        "interval.",
        f"{provenance_of(table.settings)}; neurons: {provenance_of_neurons(neurons)}",
    )
    return legend_above(figure)


def _cells(table: EffectTable, language: str, method: str | None, layers: str) -> pd.DataFrame:
    """What was written at a language's neurons and is drawn, effects in per cent."""
    if "written" not in table.rows.columns:
        raise EffectError("This table holds no written values: ln.sweep makes one that does.")
    methods = list(table.rows["method"].unique())
    if method is None and len(methods) > 1:
        raise EffectError(f"The table holds several methods: give method=, one of {', '.join(methods)}.")
    method = methods[0] if method is None else method
    for column, value in (("method", method), ("patched", language), ("layers", layers)):
        if value not in set(table.rows[column]):
            raise EffectError(unknown(f"{column} of the sweep", value, table.rows[column].unique()))
    cells = table.rows.query(
        "kind in ['set', 'quantile'] and method == @method and patched == @language and layers == @layers"
    )
    if not len(cells):
        raise EffectError(
            "No dose of this sweep writes a constant or a quantile, and only those are drawn: its doses are "
            f"{', '.join(sorted(set(table.rows['kind'])))}."
        )
    return cells.assign(**{name: 100 * cells[name] for name in ("estimate", "low", "high")})


def _add_curve(figure: go.Figure, name: str, cells: pd.DataFrame, colour: str, symbol: str) -> None:
    """Draw one kind of written value; with its interval where the cells are effects, not means of effects."""
    constants = symbol == KIND_SYMBOLS["set"]
    verdicts = ", " + cells["verdict"] if "verdict" in cells.columns else ""
    figure.add_scatter(
        x=cells["written"],
        y=cells["estimate"],
        error_y=error_bars(cells, "estimate", color=colour, thickness=1) if "low" in cells.columns else None,
        customdata=cells["kind"] + cells["amount"].map(" {:g}".format) + verdicts,
        name=name,
        mode="lines+markers",
        marker={"symbol": symbol, "size": 7},
        line={"color": colour, "width": 2 if constants else 1, "dash": "solid" if constants else "dot"},
        meta=name,
        hovertemplate="%{meta}<br>%{customdata}<br>wrote %{x:.3g}: %{y:+.2f} %<extra></extra>",
        row=1,
        col=1,
    )


def _add_natural(figure: go.Figure, stats: ActivationStats, neurons: NeuronSet, language: str) -> None:
    """Draw the distribution of the neurons' natural values, without the rarest at both ends."""
    own = spelled(language, stats.languages)
    others = [other for other in stats.languages if other != own]
    curves = [] if own is None else [(language, [own], OWN)]
    curves += [("the others", others, OTHER)] if others else []
    for name, languages, colour in curves:
        values, share = _natural(stats, neurons[language], languages)
        order = values.argsort()
        ends = np.interp([RAREST, 1 - RAREST], share[order].cumsum(), values[order])
        density, edges = np.histogram(values, bins=60, range=(ends[0], ends[1]), weights=share, density=True)
        figure.add_scatter(
            **_steps(edges, density, {"color": colour, "width": 1}),
            name=f"natural values, {name}",
            hovertemplate="%{x:.3g}: density %{y:.3g}<extra></extra>",
            row=2,
            col=1,
        )


def _natural(
    stats: ActivationStats, neurons: NeuronSet, languages: Sequence[str]
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """Points inside the bins of the neurons' histograms, and the share of each; neurons and languages weigh equally."""
    within = (np.arange(POINTS) + 0.5) / POINTS
    places = [(int(layer), int(index)) for layer, index in neurons.indices()]
    values, shares = [], []
    for language in languages:
        for place in places:
            edges, counts = (tensor.numpy() for tensor in stats.histogram(language, place))
            values.append((edges[:-1, None] + np.diff(edges)[:, None] * within).ravel())
            shares.append(np.repeat(counts / (counts.sum() * POINTS * len(places) * len(languages)), POINTS))
    points, act_fn = np.concatenate(values), stats.model.act_fn
    if stats.site == "act" and act_fn is not None:  # its histogram is one of pre-activations
        points = np.interp(points, act_fn.inputs.numpy(), act_fn.outputs.numpy())
    return points, np.concatenate(shares)
