"""The dose-response figure: what values written at neurons do, over what the neurons naturally do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, unknown
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.views.effect_figures import provenance_of
from langneurons.views.neuron_figures import provenance_of_neurons
from langneurons.views.style import COLOURS, FAINT, legend_above, span, styled

RAREST = 0.01  # of the natural values at either end
POINTS = 8  # a bin, over which its tokens are spread
OWN, OTHER = COLOURS[1], COLOURS[0]
SYMBOLS = {"set": "circle", "quantile": "diamond-open"}
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
        table: From ``ln.sweep``.
        stats: Statistics at the neurons' site.
        neurons: The neuron set that was swept.
        language: Whose neurons were patched.
        method: Which method's cells; None takes the only one there is.
        layers: Which layer range's cells.

    Returns:
        Two panels on one axis of written values: above, the change of loss (the language itself with its interval, the
        mean of the others) where every neuron is set to one constant, and where each is set to a quantile of its own;
        below, how often the neurons take which values in the language and in the others.

    Raises:
        EffectError: If the table holds no such cells.
    """
    rows = _cells(table, language, method, layers)
    natural = stats.at(neurons.site)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.06)
    own = rows.query("measured == @language").sort_values("written")
    others = rows.query("measured != @language").pivot_table("estimate", ["kind", "amount", "written"]).reset_index()
    for name, cells, colour in ((language, own, OWN), ("the others (mean)", others.sort_values("written"), OTHER)):
        for kind, symbol in SYMBOLS.items():
            if len(cells.query("kind == @kind")):
                _add_curve(figure, f"{name}, {NAMES[kind]}", cells.query("kind == @kind"), colour, symbol)
    _add_natural(figure, natural, neurons, language)
    zero = {"color": FAINT, "width": 1, "dash": "dot"}
    figure.add_hline(y=0, line=zero, row=1, col=1)  # pyright: ignore[reportArgumentType] (their stub says str)
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
        "of its own, drawn at the mean of what was written. The others are the mean of the other languages, without "
        "interval.",
        f"{provenance_of(table.settings)}; neurons: {provenance_of_neurons(neurons)}",
    )
    return legend_above(figure)


def _cells(table: EffectTable, language: str, method: str | None, layers: str) -> pd.DataFrame:
    if "written" not in table.rows.columns:
        raise EffectError("This table holds no written values: ln.sweep makes one that does.")
    methods = list(table.rows["method"].unique())
    if method is None and len(methods) > 1:
        raise EffectError(f"The table holds several methods: give method=, one of {', '.join(methods)}.")
    chosen = methods[0] if method is None else method
    for column, given in (("method", chosen), ("patched", language), ("layers", layers)):
        if given not in set(table.rows[column]):
            raise EffectError(unknown(f"{column} of the sweep", given, table.rows[column].unique()))
    return table.rows.query(
        "kind in ['set', 'quantile'] and method == @chosen and patched == @language and layers == @layers"
    )


def _add_curve(figure: go.Figure, name: str, cells: pd.DataFrame, colour: str, symbol: str) -> None:
    """One kind of written value; with its interval where the cells are effects, not means of effects."""
    constants = symbol == SYMBOLS["set"]
    percent = 100 * cells["estimate"]
    figure.add_scatter(
        x=cells["written"],
        y=percent,
        error_y={
            "array": 100 * cells["high"] - percent,
            "arrayminus": percent - 100 * cells["low"],
            "color": colour,
            "thickness": 1,
        }
        if "low" in cells.columns
        else None,
        customdata=[f"{one['kind']} {one['amount']:g}" + _verdict(one) for one in cells.to_dict("records")],
        name=name,
        mode="lines+markers",
        marker={"symbol": symbol, "size": 7},
        line={"color": colour, "width": 2 if constants else 1, "dash": "solid" if constants else "dot"},
        hovertemplate=name + "<br>%{customdata}<br>wrote %{x:.3g}: %{y:+.2f} %<extra></extra>",
        row=1,
        col=1,
    )


def _verdict(cell: dict[str, Any]) -> str:
    return f", {cell['verdict']}" if "verdict" in cell else ""


def _add_natural(figure: go.Figure, stats: ActivationStats, neurons: NeuronSet, language: str) -> None:
    """How often the neurons take which values, the rarest at both ends left out."""
    others = [other for other in stats.languages if other != language]
    shown = [(language, [language], OWN)] if language in stats.languages else []
    shown += [("the others", others, OTHER)] if others else []
    for name, languages, colour in shown:
        values, share = _natural(stats, neurons[language], languages)
        order = values.argsort()
        ends = np.interp([RAREST, 1 - RAREST], share[order].cumsum(), values[order])
        density, edges = np.histogram(values, bins=60, range=(ends[0], ends[1]), weights=share, density=True)
        figure.add_scatter(
            x=(edges[:-1] + edges[1:]) / 2,
            y=density,
            name=f"natural values, {name}",
            mode="lines",
            line={"shape": "hvh", "color": colour, "width": 1},
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
