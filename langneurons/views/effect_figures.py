"""Figures of effects: the perplexity matrix, and dose-response curves over what neurons naturally do."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from langneurons.errors import EffectError, unknown
from langneurons.evaluation.effect_table import EffectTable
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.views.style import COLOURS, styled

DIVERGING = "RdBu_r"
MARKS = {"worse": "*", "better": "*", "equivalent": "", "inconclusive": "?"}
NATURAL_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
OWN, OTHER = COLOURS[1], COLOURS[0]
SYMBOLS = {"set": "circle", "quantile": "diamond-open"}
NAMES = {"set": "one constant", "quantile": "own quantiles"}


def perplexity_matrix(table: EffectTable) -> go.Figure:
    """Draw a perplexity matrix: which language's neurons were patched, which language's loss changed, by how much.

    Args:
        table: From ``ln.perplexity_matrix``.

    Returns:
        A heatmap in per cent of the measured language's own loss. A star marks a change that is significant in its
        family (Holm) and not equivalent to none, a question mark an inconclusive one; unmarked cells are equivalent to
        no change. Hovering shows interval, verdict, minimal detectable effect and what the controls did.

    Raises:
        EffectError: If the table is no matrix of patched and measured languages.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> text = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> table = ln.perplexity_matrix(
        ...     model, text, neurons, controls=0, context_length=64, resamples=200, progress=False
        ... )
        >>> ln.plot.perplexity_matrix(table).data[0].type
        'heatmap'
    """
    if not {"patched", "measured"} <= set(table.rows.columns):
        raise EffectError("This table has no columns patched and measured: ln.perplexity_matrix makes one that has.")
    estimate = 100 * table.matrix("estimate")
    cells = {(cell["patched"], cell["measured"]): cell for cell in table.rows.to_dict("records")}
    hover = [[_hover(cells[patched, measured]) for measured in estimate.columns] for patched in estimate.index]
    verdicts = table.matrix("verdict")
    text = [[f"{estimate.loc[a, b]:+.2f}{MARKS[verdicts.loc[a, b]]}" for b in estimate.columns] for a in estimate.index]
    limit = max(float(np.abs(estimate.to_numpy()).max()), 100 * float(table.settings["delta"]))
    figure = go.Figure(
        go.Heatmap(
            z=estimate.to_numpy(),
            x=list(estimate.columns),
            y=list(estimate.index),
            text=text,
            texttemplate="%{text}",
            customdata=hover,
            hovertemplate="patched %{y}, measured in %{x}<br>%{customdata}<extra></extra>",
            colorscale=DIVERGING,
            zmin=-limit,
            zmax=limit,
            xgap=1,
            ygap=1,
            colorbar={"title": "loss, %"},
        )
    )
    figure.update_xaxes(title="measured in", showgrid=False)
    figure.update_yaxes(title="patched neurons of", autorange="reversed", showgrid=False)
    return styled(figure, "Change of each language's loss, % of its own", 150 + 46 * len(estimate))


def effects(table: EffectTable) -> go.Figure:
    """Draw effects with their intervals: a point for each patch and language, beside what its controls did.

    Args:
        table: With the keys ``patch`` and ``language``, from ``Evaluation.effects``.

    Returns:
        A forest plot in points. The grey band is what counts as no difference; a hollow mark is an effect that is
        neither significant in its family (Holm) nor equivalent to none; grey ticks are what the same patch did to
        matched controls. Hovering shows verdict, minimal detectable effect and sizes.

    Raises:
        EffectError: If the table has other keys.

    Example:
        >>> before = pd.DataFrame({"item": range(40), "cluster": range(40), "accuracy": [0.0, 1.0] * 20})
        >>> found = ln.effect(before, before, "accuracy", "row")
        >>> ln.plot.effects(EffectTable.of({("zero", "hi"): found}, ("patch", "language"), "1 effect")).data[0].name
        'zero'
    """
    if table.keys != ["patch", "language"]:
        raise EffectError(f"This table has the keys {', '.join(table.keys)}; drawn are those of patch and language.")
    delta, patches = 100 * float(table.settings["delta"]), list(table.rows["patch"].unique())
    figure = go.Figure()
    if table.controls is not None:
        figure.add_trace(_control_draws(table.controls))
    for number, patch in enumerate(patches):
        figure.add_trace(_forest(table.rows.query("patch == @patch"), patch, number))
    figure.add_vrect(x0=-delta, x1=delta, fillcolor="#999999", opacity=0.15, line_width=0, layer="below")
    figure.add_vline(x=0, line_width=1, line_color="#555555")
    measured = table.settings.get("measured", table.settings["value"])
    figure.update_xaxes(title=f"change of {measured} against the unpatched model, points")
    figure.update_yaxes(autorange="reversed", type="multicategory")
    title = " ".join(str(table.settings.get(name, "")) for name in ("task", "protocol")).strip() or "Effects"
    return styled(figure, f"{title}: {measured} under each patch", 170 + 26 * len(table))


def _forest(rows: pd.DataFrame, patch: str, number: int) -> go.Scatter:
    sure = [verdict != "inconclusive" for verdict in rows["verdict"]]
    colour = COLOURS[number % len(COLOURS)]
    estimate, low, high = (100 * rows[name].to_numpy(float) for name in ("estimate", "low", "high"))
    return go.Scatter(
        x=estimate,
        y=[rows["language"].tolist(), rows["patch"].tolist()],
        error_x={"type": "data", "array": high - estimate, "arrayminus": estimate - low, "color": colour},
        mode="markers",
        name=patch,
        marker={"color": colour, "size": 9, "symbol": ["circle" if one else "circle-open" for one in sure]},
        customdata=[_hover(cell) for cell in rows.to_dict("records")],
        hovertemplate="%{y}<br>%{customdata}<extra></extra>",
    )


def _control_draws(drawn: pd.DataFrame) -> go.Scatter:
    return go.Scatter(
        x=100 * drawn["estimate"].to_numpy(float),
        y=[drawn["language"].tolist(), drawn["patch"].tolist()],
        mode="markers",
        name="matched controls",
        marker={"color": "#777777", "size": 12, "symbol": "line-ns-open"},
        hovertemplate="%{y}<br>a matched control: %{x:+.2f}<extra></extra>",
    )


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
    zero = {"color": "#888888", "width": 1, "dash": "dot"}
    figure.add_hline(y=0, line=zero, row=1, col=1)  # pyright: ignore[reportArgumentType] (their stub says str)
    figure.update_xaxes(title=f"mean value written at {neurons.site}", row=2, col=1)
    figure.update_yaxes(title="change of loss, %", row=1, col=1)
    figure.update_yaxes(title="density", row=2, col=1)
    styled(figure, f"What values written at the neurons of {language} do", 560)
    return figure.update_layout(legend={"orientation": "h", "y": -0.2, "yanchor": "top"}, margin={"b": 140})


def _hover(cell: dict[str, Any]) -> str:
    lines = [
        f"{100 * cell['estimate']:+.2f} % [{100 * cell['low']:+.2f}, {100 * cell['high']:+.2f}], {cell['verdict']}",
        f"minimal detectable {100 * cell['minimal_detectable']:.2f} %, {cell['clusters']:,} clusters",
    ]
    if not np.isnan(low := cell.get("control_low", np.nan)):
        lines.append(f"matched controls [{100 * low:+.2f}, {100 * cell['control_high']:+.2f}]")
    return "<br>".join(lines)


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
    """How often the neurons take which values: the mixture of their distributions, interpolated between quantiles."""
    mask = neurons.mask(language)
    others = [other for other in stats.languages if other != language]
    shown = [(language, stats[language], OWN)] if language in stats.languages else []
    shown += [("the others", stats.select(others).pooled(), OTHER)] if others else []
    for name, responses, colour in shown:
        quantiles = np.stack([responses.quantile(share).values[mask].numpy() for share in NATURAL_SHARES])
        between = np.linspace(NATURAL_SHARES[0], NATURAL_SHARES[-1], 200)
        values = np.concatenate([np.interp(between, NATURAL_SHARES, neuron) for neuron in quantiles.T])
        density, edges = np.histogram(values, bins=60, density=True)
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
