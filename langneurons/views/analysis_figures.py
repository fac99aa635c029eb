"""Figures of analyses: ablation beside matched controls, what neurons carry, and validity checks."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.polysemanticity import Polysemanticity
from langneurons.analysis.validity.checks import Check, ValidityTable
from langneurons.corpora.languages import distinct
from langneurons.effects.table import span
from langneurons.errors import EffectError, StatisticsError, check_kind
from langneurons.storage import Column
from langneurons.views import style
from langneurons.views.effect_figures import MARKS, SYMBOLS, provenance_of
from langneurons.views.looks import COLOURS, FAINT, PAPER, RULE, colour_of, lines_of
from langneurons.views.style import error_bars, panels, styled

CLOSE = 0.6  # share of the margin: smaller effects are drawn on a scale of their own
SPREAD = 0.62  # share of a neuron's line over which its languages are spread
PANELS, CROWDED = 3, 6  # panels side by side; labels of an axis in one of them
CONTROL = "one more matched control"
SCALED = ("effect", "low", "high", "detectable", "control_low", "control_high")
EFFECT, FINE = Column(signed=True), Column(digits=2)


def ablation(result: Ablation, top: int = 30, languages: list[str] | None = None) -> go.Figure:
    """Draw what ablating neurons changes.

    Neurons alone: one line each, the largest effects on top, an open circle where the verdict is inconclusive, grey
    bars for the controls that the neuron stands among. Neurons together: a line per label. Neurons added one by one: a
    panel per measured language, in it a curve per label, over the number of ablated neurons.

    Args:
        result: What ``ln.ablate`` returned.
        top: Number of neurons to draw, those with the largest effects.
        languages: Measured languages to draw; by default all.

    Raises:
        EffectError: If the result has no such language.

    Example:
        >>> neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 2)]}, (model.cfg.n_layers, model.cfg.d_mlp), "act")
        >>> text = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> effects = ln.ablate(model, neurons, text, resamples=200, progress=False)
        >>> ln.plot.ablation(effects).data[0].name
        'en'
    """
    check_kind(result, Ablation, "This figure is of what ln.ablate() returns", EffectError)
    measured_in = list(dict.fromkeys(result.rows["language"]))
    languages = sorted(measured_in if languages is None else distinct(languages, measured_in))
    rows = result.rows.loc[result.rows["language"].isin(languages)]
    rows = rows.assign(**{name: result.scale * rows[name] for name in SCALED if name in rows.columns})
    if result.settings["each"] == "cumulative":
        return _curves(result, rows, languages)
    return style.legend_above(_lines(result, rows, languages, top))


def _lines(result: Ablation, rows: pd.DataFrame, languages: list[str], top: int) -> go.Figure:
    alone = result.settings["each"] == "neuron"
    keys, name = (["label", "layer", "neuron"], "{}: layer {}, {}") if alone else (["label", "neurons"], "{}: {}")
    sizes: Any = rows.assign(size=rows["effect"].abs()).groupby(keys)["size"].max()
    lines = sizes.nlargest(top).index.to_frame(index=False)
    names = [name.format(*line) for line in lines.itertuples(index=False)]
    rows = rows.merge(lines.assign(line=range(len(lines)), name=names), on=keys)
    shifts = dict(zip(languages, SPREAD * ((np.arange(len(languages)) + 0.5) / len(languages) - 0.5), strict=True))
    rows = rows.assign(place=rows["line"] + [shifts[language] for language in rows["language"]])
    figure = go.Figure()
    for language in languages:
        part, colour = rows.loc[rows["language"] == language], colour_of(language)
        figure.add_scatter(
            x=part["effect"],
            y=part["place"],
            error_x=error_bars(part, "effect", color=colour, thickness=1.5, width=2),
            mode="markers",
            name=language,
            marker={"color": colour, "size": 7, "symbol": [SYMBOLS[verdict] for verdict in part["verdict"]]},
            customdata=part["name"] + f", measured in {language}<br>" + _hovers(part),
            hovertemplate="%{customdata}<extra></extra>",
        )
    if result.controls is not None:
        _add_controls(figure, rows, len(languages))
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6], tickfont={"size": 12}
    )
    axis, margin = _axis(result)
    figure.update_xaxes(title=axis)
    ends = rows[[name for name in ("low", "high", "control_low", "control_high") if name in rows.columns]]
    reach = max(float(np.nanmax(np.abs(ends.to_numpy(float)), initial=0)), 1e-6)  # the farthest end of an interval
    if reach > CLOSE * margin:
        figure.add_vrect(x0=-margin, x1=margin, **style.BAND)
        band = f"grey band: ±{margin:g} counts as no change"
    else:
        figure.update_xaxes(range=[-1.08 * reach, 1.08 * reach])
        band = f"everything shown lies within ±{margin:g}, which counts as no change"
    figure.add_vline(x=0, line_width=1, line_color=RULE)
    title = "Each neuron ablated by itself" if alone else "Each label's neurons ablated together"
    if alone and len(names) < len(sizes):
        title += f": the {len(names)} largest effects of {len(sizes)}"
    height = 170 + max(24, 8 + 13 * len(languages)) * len(names)
    return _titled(figure, result, rows, title, height, band, style.label_room(names))


def _add_controls(figure: go.Figure, rows: pd.DataFrame, languages: int) -> None:
    """The 95 % prediction interval of one more control, behind each effect."""
    part = rows.loc[rows["control_low"].notna()]
    ends = part[["control_low", "control_high"]].to_numpy(float)
    figure.add_scatter(
        x=np.column_stack([ends, np.full(len(part), np.nan)]).ravel(),
        y=np.repeat(part["place"].to_numpy(float), 3),
        mode="lines",
        name=CONTROL,
        line={"color": "#777777", "width": 6 if languages < 4 else 4},
        opacity=0.35,
        hoverinfo="skip",
        zorder=-1,
    )


def _curves(result: Ablation, rows: pd.DataFrame, languages: list[str]) -> go.Figure:
    labels = sorted(set(rows["label"]))
    lines, names = lines_of(labels), [f"measured in {language}" for language in languages]
    figure, places = panels(names, PANELS, "neurons ablated")
    for language, (row, column) in zip(languages, places, strict=True):
        for label in labels:
            part = rows.loc[(rows["language"] == language) & (rows["label"] == label)]
            figure.add_scatter(
                x=part["neurons"],
                y=part["effect"],
                error_y=error_bars(part, "effect", thickness=1),
                mode="lines+markers",
                name=language if len(labels) == 1 else label,
                legendgroup=label,
                showlegend=len(labels) > 1 and language == languages[0],
                line=lines[label] if len(labels) > 1 else {"color": colour_of(language)},
                marker={"symbol": [SYMBOLS[verdict] for verdict in part["verdict"]], "size": 8},
                customdata=_hovers(part),
                hovertemplate=f"{label} measured in {language}<br>%{{x}} neurons<br>%{{customdata}}<extra></extra>",
                row=row,
                col=column,
            )
    axis, margin = _axis(result)
    counts = sorted(set(rows["neurons"].tolist()))
    shown = counts if len(counts) < CROWDED else [*counts[::2], counts[-1]]
    figure.update_xaxes(type="log", tickvals=shown, ticktext=shown)
    figure.update_yaxes(title=axis, row=1, col=1)
    ends = rows[["low", "high"]].to_numpy(float)
    band = f"everything shown lies within ±{margin:g}, which counts as no change"
    if max(np.nanmax(np.abs(ends), initial=0), 1e-6) > CLOSE * margin:
        figure.add_hrect(y0=-margin, y1=margin, **style.BAND)
        band = f"grey band: ±{margin:g} counts as no change"
    low, high = np.nanmin(ends, initial=0), np.nanmax(ends, initial=0)
    figure.update_yaxes(range=[low - 0.1 * (high - low), high + 0.1 * (high - low)])
    figure.add_hline(y=0, line_width=1, line_color=RULE)
    whose = f" of {labels[0]}" if len(labels) == 1 else ""
    height = 130 + 190 * -(-len(languages) // PANELS)
    titled = _titled(figure, result, rows, f"Neurons{whose} ablated one after the other", height, band)
    return style.legend_above(titled) if len(labels) > 1 else titled.update_layout(showlegend=False)


def _titled(
    figure: go.Figure, result: Ablation, rows: pd.DataFrame, title: str, height: int, band: str, left: int = style.LEFT
) -> go.Figure:
    clusters = span(rows["clusters"])
    subtitle = f"{result.settings['patch']}; n = {clusters} clusters per effect; {band}; {MARKS}"
    return styled(figure, title, height, subtitle, result.caption, provenance_of(result.settings), left=left)


def _axis(result: Ablation) -> tuple[str, float]:
    """Title of the axis of effects, and the margin in its unit."""
    return f"change of {result.settings['metric']}, {result.unit}", result.scale * float(result.settings["margin"])


def _hovers(rows: pd.DataFrame) -> list[str]:
    """What hovering shows of each effect."""
    texts = []
    for row in rows.to_dict("records"):
        text = f"{EFFECT.text(row['effect'], row['low'], row['high'])}, {row['verdict']}<br>"
        text += f"p (BH) {FINE.text(row['p_adjusted'])}, minimal detectable {FINE.text(row['detectable'])}"
        if not np.isnan(position := row.get("control_position", np.nan)):
            text += f"<br>above {100 * position:.0f} % of {row['control_draws']:.0f} matched controls"
        texts.append(text)
    return texts


COLOUR_OF = {"language": COLOURS[0], "task": COLOURS[1], "both": COLOURS[2], "neither": FAINT}
SYMBOL_OF = {"language": "circle", "task": "diamond", "both": "square", "neither": "x"}
BACKGROUND = 2000  # more points of other neurons would show nothing and make a page heavy


def selectivity(result: Polysemanticity, seed: int = 0) -> go.Figure:
    """Draw how much of each neuron's variance language explains, against how much the task does.

    Args:
        result: What ``ln.polysemanticity`` returned.
        seed: Seed for drawing the neurons outside the set.

    Returns:
        A scatter of partial shares (language across; task up, the label's and its interaction's together), a colour for
        each verdict; behind them, in grey, at most 2000 neurons outside the set, drawn at random. The dotted line is
        what a label must explain to be found with 80 % power, in the median neuron.

    Example:
        >>> from langneurons.analysis.probing import polysemanticity
        >>> from langneurons.analysis.texts import LabelledTexts
        >>> texts = {"en": ["It rains.", "Dry.", "Rain.", "Sun."], "fr": ["Il pleut.", "Sec.", "Pluie.", "Soleil."]}
        >>> task = LabelledTexts.parallel(texts, ["wet", "dry", "wet", "dry"], name="weather")
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> carried = polysemanticity(
        ...     model, neurons, task, controls=0, permutations=100, probe_sizes=(), progress=False
        ... )
        >>> selectivity(carried).data[0].name
        'other neurons'
    """
    check_kind(result, Polysemanticity, "This figure is of what ln.polysemanticity() returns", StatisticsError)
    decomposition = result.decomposition
    own = result.rows["layer"] * decomposition.shape[1] + result.rows["neuron"]
    others = np.setdiff1d(np.arange(np.prod(decomposition.shape)), own)
    others = np.random.default_rng(seed).permutation(others)[:BACKGROUND]
    language, task, interaction = (
        decomposition.partial(source).numpy().ravel()[others] for source in ("language", "task", "interaction")
    )
    behind = {"color": "#bbbbbb", "size": 3}
    figure = go.Figure()
    figure.add_scatter(
        x=language, y=task + interaction, name="other neurons", mode="markers", marker=behind, hoverinfo="skip"
    )
    rows = result.rows.assign(task=result.rows["task_partial"] + result.rows["interaction_partial"])
    for verdict, colour in COLOUR_OF.items():
        part = rows[rows["verdict"] == verdict]
        figure.add_scatter(
            x=part["language_partial"],
            y=part["task"],
            name=f"{verdict} ({len(part)})",
            mode="markers",
            marker={"color": colour, "size": 8, "symbol": SYMBOL_OF[verdict], "line": {"color": PAPER, "width": 1}},
            customdata=part[["language", "layer", "neuron", "language_p_adjusted", "task_p_adjusted", "task_bits"]],
            hovertemplate="%{customdata[0]}: layer %{customdata[1]}, neuron %{customdata[2]}<br>"
            "language %{x:.1%} (adjusted p %{customdata[3]:.2g})<br>task %{y:.1%} (adjusted p %{customdata[4]:.2g}, "
            "%{customdata[5]:.2g} bits)<extra></extra>",
        )
    detectable = rows["task_detectable"].replace(np.inf, np.nan).median()
    power = "No task is found with 80 % power in the median neuron: there are too few clusters."
    if np.isfinite(detectable):
        power = (
            f"Dotted: what the task must explain in the median neuron to be found with 80 % power ({detectable:.2%})."
        )
        figure.add_hline(y=detectable, line=style.DOTTED)  # pyright: ignore[reportArgumentType] (their stub says str)
    settings, neurons = result.settings, len(rows[["layer", "neuron"]].drop_duplicates())
    figure.update_xaxes(
        title="share of variance explained by language (partial)", tickformat=".0%", range=[-0.02, 1.02]
    )
    figure.update_yaxes(title=f"share explained by {settings['task']} (partial)", tickformat=".3~%", rangemode="tozero")
    styled(
        figure,
        f"What neurons at {settings['site']} carry: language and {settings['task']}",
        500,
        f"n = {len(rows)} labels of {neurons} neurons, read on {settings['items']:,} items in "
        f"{len(decomposition.languages)} languages; grey: {len(others):,} other neurons of the model",
        "Partial shares: of the variance over texts that the other sources leave. The task's share is the label's and "
        "its interaction's with language together. Verdicts at a false discovery rate of 5 % within each language's "
        f"neurons. {power}",
        provenance_of(settings),
    )
    return style.legend_above(figure)


FAILED, PASSED = COLOURS[4], COLOURS[5]
COLUMN = 92  # pixels


def validity(table: ValidityTable) -> go.Figure:
    """Draw which method passes which check, and by how much.

    Args:
        table: A table that ``langneurons.analysis.validity.validity_table`` returned.

    Returns:
        A cell for every method and check that was measured: its value, blue with a tick where it passes the bar above
        its column, orange with a cross where it fails, white with a dash where it was not measured.

    Raises:
        StatisticsError: If nothing was measured.

    Example:
        >>> from langneurons.analysis.validity import Evidence, validity_table
        >>> table = validity_table([Evidence("good", recall=1.0, fdr=0.0), Evidence("bad", recall=0.2, fdr=0.0)])
        >>> ln.plot.validity(table).data[0].z.tolist()
        [[1.0, 1.0], [0.0, 1.0]]
    """
    check_kind(
        table, ValidityTable, "This figure is of a ValidityTable, such as validity_table() gives", StatisticsError
    )
    checks = table.measured
    if not checks:
        raise StatisticsError("The validity table holds no check that was measured: there is nothing to draw.")
    methods = table.rows["method"].tolist()
    columns = {check.column: f"{check.column}_passes" for check in checks}
    passes = table.rows[list(columns.values())].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    cells = zip(table.rows[list(columns)].to_numpy(float), passes, strict=True)
    figure = style.heatmap(
        passes,
        methods,
        [_heading(check) for check in checks],
        text=[[_in_cell(*cell) for cell in zip(*row, strict=True)] for row in cells],
        texttemplate="%{text}",
        textfont={"color": "black"},
        colorscale=[[0, FAILED], [1, PASSED]],
        showscale=False,
        hovertemplate="%{y}<br>%{x}<br>%{text}<extra></extra>",
    )
    figure.update_xaxes(side="top", tickfont={"size": 11}, tickangle=0)
    left = style.label_room(methods)
    whole = int((np.nan_to_num(passes, nan=1.0) == 1).all(1).sum())
    styled(
        figure,
        "Is each method's score real? What every check says",
        180 + 40 * len(methods),
        f"n = {len(methods)} methods; ✓ passes the bar above its column, ✗ fails, – not measured; "
        f"{whole} of {len(methods)} fail none",
        "Bars: " + "; ".join(map(str, checks)) + ".",
        "checks of langneurons.analysis.validity on one recording",
        max(style.WIDTH, left + 40 + COLUMN * len(checks)),
        left,
    )
    return figure.update_layout(margin={"t": style.layout_of(figure).margin.t + 70, "b": 30})


def _heading(check: Check) -> str:
    words = check.title.replace(", ", ",<br>").replace(": ", ":<br>").split(" ")
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 11 and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join([*lines, f"<b>{'≥' if check.least else '≤'} {check.bar:g}</b>"])


def _in_cell(value: float, passes: float) -> str:
    if np.isnan(value) or np.isnan(passes):
        return "–"
    return f"{style.signed(value).removeprefix('+')} {'✓' if passes else '✗'}"
