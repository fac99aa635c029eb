"""Figures of ablations: every neuron's effect with its interval, over what matched controls do."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.errors import EffectError, StatisticsError, unknown
from langneurons.views.effect_figures import MARKS, SYMBOLS, provenance_of
from langneurons.views.style import (
    COLOURS,
    DASHES,
    FAINT,
    LEFT,
    WIDTH,
    label_room,
    layout_of,
    legend_above,
    span,
    styled,
)

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
    return f"change of {result.settings['metric']}, {result.unit}", result.scale * float(result.settings["margin"])


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


COLOUR_OF = {"language": COLOURS[0], "task": COLOURS[1], "both": COLOURS[2], "neither": "#666666"}
SYMBOL_OF = {"language": "circle", "task": "diamond", "both": "square", "neither": "x"}
BACKGROUND = 2000  # more points of other neurons would show nothing and make a page heavy


def selectivity(found: Polysemanticity, seed: int = 0) -> go.Figure:
    """Draw how much of each neuron's variance language explains, against how much the task does.

    Args:
        found: From ``ln.polysemanticity``.
        seed: Of the draw of other neurons.

    Returns:
        A scatter of partial shares (language across; task up, the label's and its interaction's together), a colour for
        each verdict; behind them, in grey, neurons outside the set, at most 3000 drawn at random. The dotted line is
        what a label must explain to be found with 80 % power, in the median neuron.

    Example:
        >>> from langneurons.analysis.selectivity.polysemanticity import polysemanticity
        >>> from langneurons.analysis.selectivity.texts import LabelledTexts
        >>> texts = {"en": ["It rains.", "Dry.", "Rain.", "Sun."], "fr": ["Il pleut.", "Sec.", "Pluie.", "Soleil."]}
        >>> task = LabelledTexts.parallel(texts, ["wet", "dry", "wet", "dry"], name="weather")
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> found = polysemanticity(model, neurons, task, controls=0, permutations=100, probe_sizes=(), progress=False)
        >>> selectivity(found).data[0].name
        'other neurons'
    """
    figure = go.Figure()
    others = _add_others(figure, found, seed)
    rows = found.rows.assign(task=found.rows["task_partial"] + found.rows["interaction_partial"])
    for verdict, colour in COLOUR_OF.items():
        chosen = rows[rows["verdict"] == verdict]
        figure.add_scatter(
            x=chosen["language_partial"],
            y=chosen["task"],
            name=f"{verdict} ({len(chosen)})",
            mode="markers",
            marker={"color": colour, "size": 8, "symbol": SYMBOL_OF[verdict], "line": {"color": "white", "width": 1}},
            customdata=chosen[["language", "layer", "neuron", "language_p_adjusted", "task_p_adjusted", "task_bits"]],
            hovertemplate="%{customdata[0]}: layer %{customdata[1]}, neuron %{customdata[2]}<br>"
            "language %{x:.1%} (adjusted p %{customdata[3]:.2g})<br>task %{y:.1%} (adjusted p %{customdata[4]:.2g}, "
            "%{customdata[5]:.2g} bits)<extra></extra>",
        )
    detectable = found.rows["task_detectable"].replace(np.inf, np.nan).median()
    if np.isfinite(detectable):
        grey = {"color": FAINT, "width": 1, "dash": "dot"}
        figure.add_hline(y=detectable, line=grey)  # pyright: ignore[reportArgumentType] (their stub says str)
    about, distinct = found.settings, len(rows[["layer", "neuron"]].drop_duplicates())
    figure.update_xaxes(
        title="share of variance explained by language (partial)", tickformat=".0%", range=[-0.02, 1.02]
    )
    figure.update_yaxes(title=f"share explained by {about['task']} (partial)", tickformat=".3~%", rangemode="tozero")
    styled(
        figure,
        f"What neurons at {about['site']} carry: language and {about['task']}",
        500,
        f"n = {len(rows)} labels of {distinct} neurons, read on {about['items']:,} items in "
        f"{len(found.decomposition.languages)} languages; "
        f"grey: {others:,} other neurons of the model",
        "Partial shares: of the variance over texts that the other sources leave. The task's share is the label's and "
        "its interaction's with language together. Verdicts at a false discovery rate of 5 % within each language's "
        f"neurons. Dotted: what the task must explain in the median neuron to be found with 80 % power "
        f"({detectable:.2%}).",
        provenance_of(about),
    )
    return legend_above(figure)


def _add_others(figure: go.Figure, found: Polysemanticity, seed: int) -> int:
    """Draw some neurons outside the set; how many."""
    own = found.rows["layer"] * found.decomposition.shape[1] + found.rows["neuron"]
    others = np.setdiff1d(np.arange(np.prod(found.decomposition.shape)), own)
    drawn = np.random.default_rng(seed).permutation(others)[:BACKGROUND]
    language, task, interaction = (
        found.decomposition.partial(source).numpy().ravel()[drawn] for source in ("language", "task", "interaction")
    )
    figure.add_scatter(
        x=language,
        y=task + interaction,
        name="other neurons",
        mode="markers",
        marker={"color": "#bbbbbb", "size": 3},
        hoverinfo="skip",
    )
    return len(drawn)


FAILED, PASSED = COLOURS[4], COLOURS[5]
COLUMN = 92  # pixels


@runtime_checkable
class Checked(Protocol):
    """Methods and checks, such as ``validity_table`` and ``ValidityTable.load`` give."""

    @property
    def rows(self) -> pd.DataFrame:
        """One row a method: every figure, and ``<column>_passes`` for every check."""
        ...

    @property
    def checks(self) -> Sequence[Any]:
        """What passes: column, title, bar, least."""
        ...


def validity(table: Checked) -> go.Figure:
    """Draw which method passes which check, and by how much.

    Args:
        table: From ``langneurons.analysis.validity.validity_table``, or ``ValidityTable.load``.

    Returns:
        A cell for every method and check that was measured: the figure, blue with a tick where it passes the bar that
        stands over the column, orange with a cross where it fails, white with a dash where it was not measured.

    Raises:
        StatisticsError: If nothing was measured.

    Example:
        >>> from langneurons.analysis.validity import Evidence, validity_table
        >>> table = validity_table([Evidence("good", recall=1.0, fdr=0.0), Evidence("bad", recall=0.2, fdr=0.0)])
        >>> ln.plot.validity(table).data[0].z.tolist()
        [[1.0, 1.0], [0.0, 1.0]]
    """
    checks = [check for check in table.checks if bool(table.rows[check.column].notna().to_numpy().any())]
    if not checks:
        raise StatisticsError("The validity table holds no check that was measured: there is nothing to draw.")
    methods = table.rows["method"].tolist()
    verdicts = table.rows[[f"{check.column}_passes" for check in checks]].astype("Float64")
    passes = verdicts.to_numpy(dtype=float, na_value=np.nan)
    figure = go.Figure(
        go.Heatmap(
            z=passes,
            x=[_heading(check) for check in checks],
            y=methods,
            text=[[_in_cell(row, check) for check in checks] for row in table.rows.to_dict("records")],
            texttemplate="%{text}",
            textfont={"color": "black"},
            colorscale=[[0, FAILED], [1, PASSED]],
            zmin=0,
            zmax=1,
            showscale=False,
            hovertemplate="%{y}<br>%{x}<br>%{text}<extra></extra>",
        )
    )
    figure.update_xaxes(side="top", showgrid=False, tickfont={"size": 11}, type="category", tickangle=0)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    left = label_room(methods)
    whole = int((np.nan_to_num(passes, nan=1.0) == 1).all(1).sum())
    styled(
        figure,
        "Is each method's score real? What every check says",
        180 + 40 * len(methods),
        f"n = {len(methods)} methods; ✓ passes the bar over its column, ✗ fails, – not measured; "
        f"{whole} of {len(methods)} fail none",
        "Bars: " + "; ".join(map(str, checks)) + ".",
        "checks of langneurons.analysis.validity on one recording",
        max(WIDTH, left + 40 + COLUMN * len(checks)),
        left,
    )
    return figure.update_layout(margin={"t": layout_of(figure).margin.t + 70, "b": 30})


def _heading(check: Any) -> str:
    words = str(check.title).replace(", ", ",<br>").replace(": ", ":<br>").split(" ")
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 11 and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join([*lines, f"<b>{'≥' if check.least else '≤'} {check.bar:g}</b>"])


def _in_cell(row: dict[Any, Any], check: Any) -> str:
    value, passes = row[check.column], row[f"{check.column}_passes"]
    if pd.isna(value) or pd.isna(passes):
        return "–"
    number = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
    return f"{number} {'✓' if passes else '✗'}"
