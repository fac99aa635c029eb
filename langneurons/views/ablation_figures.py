"""Figures of ablations: every neuron's effect with its interval, over what matched controls do."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from langneurons.analysis.ablation.result import Ablation
from langneurons.errors import EffectError, unknown
from langneurons.views.effect_figures import provenance_of
from langneurons.views.forest import MARKS, SYMBOLS
from langneurons.views.style import COLOURS, DASHES, LEFT, label_room, legend_above, span, styled

CLOSE = 0.6  # of what counts as none: effects smaller than this are drawn at their own scale
SPREAD = 0.62  # of a neuron's line, over which its languages are spread
CONTROL = "one more matched control"

SCALED = ("effect", "low", "high", "detectable", "control_low", "control_high")


def ablation(result: Ablation, top: int = 30, languages: list[str] | None = None) -> go.Figure:
    """Draw what ablating neurons changes.

    Neurons alone: one line each, the largest effects on top, an open circle where the verdict is inconclusive, grey
    bars for the controls that the neuron stands among. Neurons together: a line a label. Neurons added one by one: a
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
        >>> found = ln.ablate(model, neurons, text, resamples=200, progress=False)
        >>> ln.plot.ablation(found).data[0].name
        'en'
    """
    known = list(dict.fromkeys(result.rows["language"]))
    chosen = known if languages is None else languages
    for language in chosen:
        if language not in known:
            raise EffectError(unknown("language of the ablation", language, known))
    rows = result.rows.loc[result.rows["language"].isin(chosen)]
    rows = rows.assign(**{name: result.scale * rows[name] for name in SCALED if name in rows.columns})
    draw = _curves if result.settings["each"] == "cumulative" else _lines
    return legend_above(draw(result, rows, chosen, top))


def _lines(result: Ablation, rows: Any, languages: list[str], top: int) -> go.Figure:
    alone = result.settings["each"] == "neuron"
    keys = ["label", "layer", "neuron"] if alone else ["label", "neurons"]
    strongest = rows.assign(size=rows["effect"].abs()).groupby(keys)["size"].max().nlargest(top)
    lines = strongest.index.to_frame(index=False).assign(line=range(len(strongest)))
    shown = rows.merge(lines, on=keys)
    shift = dict(zip(languages, _shifts(len(languages)), strict=True))
    shown = shown.assign(place=shown["line"] + [shift[language] for language in shown["language"]])
    figure = go.Figure()
    for number, language in enumerate(languages):
        figure.add_trace(_language(shown.loc[shown["language"] == language], language, number, alone))
    if result.controls is not None:
        _add_controls(figure, shown, len(languages))
    names = [_name(dict(zip(keys, values, strict=True)), alone) for values in strongest.index]
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6], tickfont={"size": 12}
    )
    axis, delta = _axis(result)
    figure.update_xaxes(title=axis)
    reach = _reach(shown)
    if reach > CLOSE * delta:
        figure.add_vrect(x0=-delta, x1=delta, fillcolor="#999999", opacity=0.15, line_width=0, layer="below")
        band = f"grey band: ±{delta:g} counts as none"
    else:
        figure.update_xaxes(range=[-1.08 * reach, 1.08 * reach])
        band = f"all shown lies within ±{delta:g}, which counts as none"
    figure.add_vline(x=0, line_width=1, line_color="#555555")
    all_in_all = rows[keys].drop_duplicates()
    title = (
        f"Each neuron ablated by itself: the {len(names)} largest effects of {len(all_in_all)}"
        if alone and len(names) < len(all_in_all)
        else "Each neuron ablated by itself"
        if alone
        else "Each label's neurons ablated together"
    )
    height = 170 + max(24, 8 + 13 * len(languages)) * len(names)
    return _titled(figure, result, rows, title, height, band, label_room(names))


def _language(part: Any, language: str, number: int, alone: bool) -> go.Scatter:
    colour = COLOURS[number % len(COLOURS)]
    return go.Scatter(
        x=part["effect"],
        y=part["place"],
        error_x={
            "array": part["high"] - part["effect"],
            "arrayminus": part["effect"] - part["low"],
            "color": colour,
            "thickness": 1.5,
            "width": 2,
        },
        mode="markers",
        name=language,
        marker={"color": colour, "size": 7, "symbol": [SYMBOLS[verdict] for verdict in part["verdict"]]},
        customdata=[f"{_name(row, alone)}, measured in {language}<br>{_hover(row)}" for row in part.to_dict("records")],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _add_controls(figure: go.Figure, shown: Any, languages: int) -> None:
    """The 95 % prediction interval of one more control, behind each effect."""
    part = shown.loc[shown["control_low"].notna()]
    ends = part[["control_low", "control_high"]].to_numpy(float)
    x = np.column_stack([ends, np.full(len(part), np.nan)]).ravel()
    figure.add_scatter(
        x=x,
        y=np.repeat(part["place"].to_numpy(float), 3),
        mode="lines",
        name=CONTROL,
        line={"color": "#777777", "width": 6 if languages < 4 else 4},
        opacity=0.35,
        hoverinfo="skip",
        zorder=-1,
    )


def _curves(result: Ablation, rows: Any, languages: list[str], top: int) -> go.Figure:
    figure = go.Figure()
    labels = list(dict.fromkeys(rows["label"]))
    for number, language in enumerate(languages):
        for place, label in enumerate(labels):
            part = rows.loc[(rows["language"] == language) & (rows["label"] == label)]
            figure.add_scatter(
                x=part["neurons"],
                y=part["effect"],
                error_y={
                    "array": part["high"] - part["effect"],
                    "arrayminus": part["effect"] - part["low"],
                    "thickness": 1,
                },
                mode="lines+markers",
                name=language if len(labels) == 1 else f"{label} measured in {language}",
                line={"color": COLOURS[number % len(COLOURS)], "dash": DASHES[place % len(DASHES)]},
                marker={"symbol": [SYMBOLS[verdict] for verdict in part["verdict"]], "size": 8},
                customdata=[_hover(row) for row in part.to_dict("records")],
                hovertemplate="%{x} neurons<br>%{customdata}<extra></extra>",
            )
    axis, delta = _axis(result)
    counts = sorted(set(rows["neurons"].tolist()))
    figure.update_xaxes(title="neurons ablated, from the top", type="log", tickvals=counts, ticktext=counts)
    figure.update_yaxes(title=axis)
    figure.add_hrect(y0=-delta, y1=delta, fillcolor="#999999", opacity=0.15, line_width=0, layer="below")
    whose = f" of {labels[0]}" if len(labels) == 1 else ""
    band = f"grey band: ±{delta:g} counts as none"
    return _titled(figure, result, rows, f"Neurons{whose} ablated one after the other", 460, band)


def _titled(
    figure: go.Figure, result: Ablation, rows: Any, title: str, height: int, band: str, left: int = LEFT
) -> go.Figure:
    clusters = span(rows["clusters"])
    subtitle = f"{result.settings['patch']}; n = {clusters} clusters an effect; {band}; {MARKS}"
    return styled(figure, title, height, subtitle, result.caption, provenance_of(result.settings), left=left)


def _axis(result: Ablation) -> tuple[str, float]:
    """What the axis of effects says, and what counts as no effect."""
    return f"change of {result.settings['metric']}, {result.unit}", result.scale * float(result.settings["delta"])


def _reach(shown: Any) -> float:
    """How far from zero an interval, or a control's, goes; never nothing."""
    ends = shown[[name for name in ("low", "high", "control_low", "control_high") if name in shown.columns]]
    return max(float(np.nanmax(np.abs(ends.to_numpy(float)), initial=0)), 1e-6)


def _shifts(languages: int) -> list[float]:
    """Where the languages of one neuron stand beside its line, from the top."""
    return [SPREAD * ((place + 0.5) / languages - 0.5) for place in range(languages)]


def _name(row: dict[str, Any], alone: bool) -> str:
    return f"{row['label']}: layer {row['layer']}, {row['neuron']}" if alone else f"{row['label']}: {row['neurons']}"


def _hover(row: dict[str, Any]) -> str:
    interval = f"{row['effect']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}], {row['verdict']}"
    lines = [interval, f"p (BH) {row['p_adjusted']:.2g}, minimal detectable {row['detectable']:.2g}"]
    if (draws := row.get("control_draws", 0)) and draws == draws:
        lines.append(f"above {100 * row['control_position']:.0f} % of {draws:.0f} matched controls")
    return "<br>".join(lines)
