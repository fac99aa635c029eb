"""Figures of ablations: every neuron's effect with its interval, over what matched controls do."""

from typing import Any

import plotly.graph_objects as go

from langneurons.analysis.ablation.result import Ablation
from langneurons.errors import EffectError, unknown
from langneurons.views.style import COLOURS, styled

CONTROLS = "#777777"


def ablation(result: Ablation, top: int = 30, languages: list[str] | None = None) -> go.Figure:
    """Draw what ablating neurons changes.

    Neurons alone: one line each, the largest effects on top, an open circle where the verdict is inconclusive, grey
    ticks for the controls that the neuron stands among. Neurons together: a bar a label. Neurons added one by one: a
    curve a label and language, over how many are ablated.

    Args:
        result: From ``ln.ablate``.
        top: How many neurons to draw, those of the largest effects.
        languages: Measured languages to draw; None draws all.

    Raises:
        EffectError: If the result has no such language.

    Example:
        >>> neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 2)]}, (model.cfg.n_layers, model.cfg.d_mlp), "act")
        >>> text = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> from langneurons.analysis.ablation.ablating import ablate
        >>> ablation(ablate(model, neurons, text, resamples=200, progress=False)).data[0].name
        'en'
    """
    known = list(dict.fromkeys(result.rows["language"]))
    chosen = known if languages is None else languages
    for language in chosen:
        if language not in known:
            raise EffectError(unknown("language of the ablation", language, known))
    rows = result.rows.loc[result.rows["language"].isin(chosen)]
    draw = _curves if result.settings["each"] == "cumulative" else _forest
    figure = draw(result, rows, chosen, top)
    delta = 100 * float(result.settings["delta"])
    unit = "% of its own unpatched loss" if result.settings["per"] == "baseline" else "points"
    axis = f"change of {result.settings['metric']}, {unit}"
    band: dict[str, Any] = {"fillcolor": "#999999", "opacity": 0.15, "line_width": 0, "layer": "below"}
    if draw is _curves:
        figure.add_hrect(y0=-delta, y1=delta, **band)
        figure.update_yaxes(title=axis)
    else:
        figure.add_vrect(x0=-delta, x1=delta, **band)
        figure.update_xaxes(title=axis)
    return figure


def _forest(result: Ablation, rows: Any, languages: list[str], top: int) -> go.Figure:
    alone = result.settings["each"] == "neuron"
    keys = ["label", "layer", "neuron"] if alone else ["label", "neurons"]
    strongest = rows.assign(size=rows["effect"].abs()).groupby(keys)["size"].max().nlargest(top)
    shown = rows.set_index(keys).loc[strongest.index].reset_index()
    shown["name"] = [_name(row, alone) for row in shown.to_dict("records")]
    figure = go.Figure()
    for number, language in enumerate(languages):
        part = shown.loc[shown["language"] == language]
        colour = COLOURS[number % len(COLOURS)]
        figure.add_scatter(
            x=100 * part["effect"],
            y=part["name"],
            error_x={
                "array": 100 * (part["high"] - part["effect"]),
                "arrayminus": 100 * (part["effect"] - part["low"]),
                "color": colour,
                "thickness": 1,
            },
            mode="markers",
            name=language,
            marker={"color": colour, "size": 8, "symbol": _symbols(part)},
            customdata=[_hover(row) for row in part.to_dict("records")],
            hovertemplate="%{y}, measured in " + language + "<br>%{customdata}<extra></extra>",
        )
    if result.controls is not None:
        _add_controls(figure, result, shown, languages)
    figure.update_yaxes(autorange="reversed", type="category")
    title = "Each neuron ablated by itself" if alone else "Each label's neurons ablated together"
    return styled(figure, title, 170 + 24 * len(strongest))


def _add_controls(figure: go.Figure, result: Ablation, shown: Any, languages: list[str]) -> None:
    """The 95 % prediction interval of one more control, behind each neuron."""
    part = shown.loc[shown["language"].isin(languages) & shown["control_low"].notna()]
    for place, row in enumerate(part.to_dict("records")):
        figure.add_scatter(
            x=[100 * row["control_low"], 100 * row["control_high"]],
            y=[row["name"]] * 2,
            mode="lines",
            name="one more matched control",
            legendgroup="controls",
            showlegend=place == 0,
            line={"color": CONTROLS, "width": 5},
            opacity=0.35,
            hoverinfo="skip",
        )


def _curves(result: Ablation, rows: Any, languages: list[str], top: int) -> go.Figure:
    figure = go.Figure()
    labels = list(dict.fromkeys(rows["label"]))
    for number, language in enumerate(languages):
        for place, label in enumerate(labels):
            part = rows.loc[(rows["language"] == language) & (rows["label"] == label)]
            figure.add_scatter(
                x=part["neurons"],
                y=100 * part["effect"],
                error_y={
                    "array": 100 * (part["high"] - part["effect"]),
                    "arrayminus": 100 * (part["effect"] - part["low"]),
                    "thickness": 1,
                },
                mode="lines+markers",
                name=language if len(labels) == 1 else f"{label} measured in {language}",
                line={"color": COLOURS[number % len(COLOURS)], "dash": ("solid", "dash", "dot", "dashdot")[place % 4]},
                marker={"symbol": _symbols(part)},
                customdata=[_hover(row) for row in part.to_dict("records")],
                hovertemplate="%{x} neurons<br>%{customdata}<extra></extra>",
            )
    figure.update_xaxes(title="neurons ablated, from the top", type="log")
    return styled(figure, "Neurons ablated one after the other", 460)


def _symbols(rows: Any) -> list[str]:
    return ["circle-open" if verdict == "inconclusive" else "circle" for verdict in rows["verdict"]]


def _name(row: dict[str, Any], alone: bool) -> str:
    return f"{row['label']}: layer {row['layer']}, {row['neuron']}" if alone else f"{row['label']}: {row['neurons']}"


def _hover(row: dict[str, Any]) -> str:
    interval = f"{100 * row['effect']:+.3g} [{100 * row['low']:+.3g}, {100 * row['high']:+.3g}], {row['verdict']}"
    lines = [interval, f"p (BH) {row['p_adjusted']:.2g}, minimal detectable {100 * row['detectable']:.2g}"]
    if (draws := row.get("control_draws", 0)) and draws == draws:
        lines.append(f"above {100 * row['control_position']:.0f} % of {draws:.0f} matched controls")
    return "<br>".join(lines)
