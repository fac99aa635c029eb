"""The figure of doses: what written values do to losses, over what the neurons naturally do."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from langneurons.corpora.languages import spelled
from langneurons.effects.table import EffectTable, span
from langneurons.errors import EffectError, check_kind, unknown
from langneurons.identification.neurons import NeuronSet, check_neurons
from langneurons.recording.statistics import ActivationStats, check_statistics
from langneurons.views.effect_figures import provenance_of
from langneurons.views.looks import colour_of
from langneurons.views.neuron_figures import provenance_of_neurons, steps
from langneurons.views.style import DOTTED, error_bars, legend_above, signed, styled

RAREST = 0.01  # share of the natural values that is left out at either end
POINTS = 8  # per bin, over which its tokens are spread
USUAL = 0.9  # share of the natural values, by size, that the axis of written values holds at least
PAD = 1.1  # the axis ends this many times as far out as its last label
ENDS = np.array([1.0, 2.0, 5.0, 10.0])  # of an axis, times a power of ten
OTHER = "#777777"
OTHERS = "the others (mean)"
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
        below, how often the neurons take which values in the language and in the others. The axis holds the values that
        the neurons usually take; what was written beyond it is printed at its ends.

    Raises:
        EffectError: If the table holds no such cells.
    """
    check_kind(table, EffectTable, "This figure is of what ln.sweep() returns", EffectError)
    check_statistics(stats)
    check_neurons(neurons)
    rows = _cells(table, language, method, layers)
    natural = stats.at(neurons.site)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.06)
    own = rows.query("measured == @language").sort_values("written")
    others = rows.query("measured != @language").pivot_table("estimate", ["kind", "amount", "written"]).reset_index()
    colour, others = colour_of(language), others.sort_values("written")
    for name, cells, of_cells in ((language, own, colour), (OTHERS, others, OTHER)):
        for kind, symbol in KIND_SYMBOLS.items():
            if len(cells.query("kind == @kind")):
                _add_curve(figure, f"{name}, {NAMES[kind]}", cells.query("kind == @kind"), of_cells, symbol)
    end = _add_natural(figure, natural, neurons, language)
    figure.add_hline(y=0, line=DOTTED, row=1, col=1)  # pyright: ignore[reportArgumentType] (their stub says str)
    _cut_ends(figure, end, [(language, own, colour), (OTHERS, others, OTHER)])
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
        f"The axis ends where {USUAL:.0%} of the neurons' natural values in {language} are; effects of values farther "
        "out stand at its ends. One constant: every neuron is set to the value on the axis. Own quantiles: each neuron "
        "is set to a quantile of its own values, drawn at the mean of the values written. The others: mean of the "
        "other languages, without interval.",
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


def _cut_ends(figure: go.Figure, end: float, curves: Sequence[tuple[str, pd.DataFrame, str]]) -> None:
    """Show what was written up to an end on either side of zero; print what was written beyond it."""
    limit = PAD * end
    figure.update_xaxes(range=[-limit, limit])
    cells = pd.concat([cells for _, cells, _ in curves], ignore_index=True)
    inside = cells.loc[cells["written"].abs() <= limit]
    if len(inside) and len(inside) < len(cells):
        ends = inside[[name for name in ("estimate", "low", "high") if name in inside.columns]].to_numpy(float)
        low, high = min(np.nanmin(ends), 0.0), max(np.nanmax(ends), 0.0)
        figure.update_yaxes(range=[low - 0.08 * (high - low), high + 0.35 * (high - low)], row=1, col=1)
    for sign, side, arrow in ((-1, "left", "◀ {}"), (1, "right", "{} ▶")):
        for line, (name, cells, colour) in enumerate(curves):
            beyond = cells.loc[(cells["kind"] == "set") & (sign * cells["written"] > limit)].sort_values("written")
            if len(beyond):
                pairs = beyond[["written", "estimate"]].itertuples(index=False)
                values = ", ".join(f"{signed(value, 0)}: {signed(effect, 1)} %" for value, effect in pairs)
                figure.add_annotation(
                    text=arrow.format(f"{name.partition(' (')[0]} at {values}"), font={"size": 11, "color": colour},
                    x=sign * limit, xanchor=side, y=1, yref="y domain", yanchor="top", yshift=-15 * line,
                    showarrow=False,
                )  # fmt: skip


def _add_natural(figure: go.Figure, stats: ActivationStats, neurons: NeuronSet, language: str) -> float:
    """Draw the distribution of the neurons' natural values, without the rarest; return a round end for their axis."""
    own = spelled(language, stats.languages)
    others = [other for other in stats.languages if other != own]
    curves = [] if own is None else [(language, [own], colour_of(language))]
    curves += [("the others", others, OTHER)] if others else []
    end = 0.0
    for name, languages, colour in curves:
        values, share = _natural(stats, neurons[language], languages)
        end = end or _round_end(np.abs(values), share)
        order = values.argsort()
        ends = np.interp([RAREST, 1 - RAREST], share[order].cumsum(), values[order])
        density, edges = np.histogram(values, bins=60, range=(ends[0], ends[1]), weights=share, density=True)
        figure.add_scatter(
            **steps(edges, density, {"color": colour, "width": 1.5}),
            name=f"natural values, {name}",
            showlegend=False,
            hovertemplate="%{x:.3g}: density %{y:.3g}<extra></extra>",
            row=2,
            col=1,
        )
    return end


def _round_end(sizes: Float[np.ndarray, " point"], share: Float[np.ndarray, " point"]) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that ``USUAL`` of some values do not exceed."""
    order = sizes.argsort()
    usual = float(np.interp(USUAL, share[order].cumsum(), sizes[order])) or 1.0
    power = 10.0 ** np.floor(np.log10(usual))
    return float(power * ENDS[np.searchsorted(ENDS, usual / power * (1 - 1e-9))])


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
