"""Figures of effects: the perplexity matrix, and any table of effects as a forest plot."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from langneurons.effects.table import EffectTable, span
from langneurons.errors import EffectError, check_kind, warn_user
from langneurons.storage import Column, Result
from langneurons.views import style
from langneurons.views.looks import COLOURS, DIVERGING, FAINT, INK, LANGUAGES, RULE, colour_of
from langneurons.views.style import interval, signed, styled

STARS = {
    "worse": "*",
    "better": "*",
    "slightly worse": "°",
    "slightly better": "°",
    "no effect": "",
    "inconclusive": "?",
}
CELL, NARROW_CELL = 94, 62  # pixels across, with and without an interval of two decimals
FEW = 4  # languages; with more, intervals in the cells could not be read in print
WIDTH = Column(digits=2)
SCALED = ("estimate", "low", "high", "minimal_detectable", "control_low", "control_high")
PLACES = ("measured", "language", "target")  # key columns that say where an effect was measured
STORED = {
    "model": "model {}",
    "neurons": "{}",
    "text": "text {}",
    "texts": "texts {}",
    "seed": "seed {}",
    "resamples": "{} resamples",
    "permutations": "{} permutations",
}
PATCHED_SET = re.compile(r"\(NeuronSet of .*?, (?=\w+=)")  # in a patch; every row of a matrix has its own set
DETECTABLE = Column(digits=2)
OPTIONS = re.compile(r"\b([A-Z]\w+)\((?:[^()]|\([^()]*\))*\)")  # of a method
FINGERPRINT = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24}\b")


def perplexity_matrix(table: EffectTable) -> go.Figure:
    """Draw a perplexity matrix: which language's neurons were patched, which language's loss changed, by how much.

    Args:
        table: A table that ``ln.perplexity_matrix`` returned.

    Returns:
        A heatmap in per cent of the measured language's own loss, with the interval in every cell of up to four
        languages, and the widest interval in the text above for more. A star marks a
        change that is significant in its family (Holm), a small circle one that is significant but within the margin, a
        question mark an inconclusive one; unmarked cells have no effect: not significant, and within the margin.
        Hovering shows the verdict, the minimal detectable effect and what the controls did.

    Raises:
        EffectError: If the table is not a matrix of patched and measured languages.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> text = ln.HeldoutText.of(model, ln.load_corpus("babel", ["en", "hi"]).take(20), context_length=64)
        >>> table = ln.perplexity_matrix(model, text, neurons, controls=0, resamples=400, progress=False)
        >>> ln.plot.perplexity_matrix(table).data[0].type
        'heatmap'
    """
    check_kind(table, EffectTable, "This figure is of what ln.perplexity_matrix() returns", EffectError)
    if table.keys != ["patched", "measured"]:
        raise EffectError("This table has no columns patched and measured: ln.perplexity_matrix makes one that has.")
    rows, columns = (sorted(dict.fromkeys(table.rows[key])) for key in table.keys)
    estimate = table.scale * table.matrix("estimate").loc[rows, columns]
    many = len(columns) > FEW
    texts = replace(table, rows=table.rows.assign(text=_in_cells(table, not many), hover=_hovers(table)))
    margin, level = table.scale * float(table.settings["margin"]), 100 * float(table.settings["level"])
    limit = max(float(np.nanmax(np.abs(estimate.to_numpy()))), margin)
    figure = style.heatmap(
        estimate.to_numpy(),
        estimate.index,
        estimate.columns,
        ("patched neurons of", "measured in"),
        text=texts.matrix("text").loc[rows, columns].fillna("").to_numpy(),
        texttemplate="%{text}",
        textfont={"size": 13 if many else 11},
        customdata=texts.matrix("hover").loc[rows, columns].fillna("not measured").to_numpy(),
        hovertemplate="patched %{y}, measured in %{x}<br>%{customdata}<extra></extra>",
        colorscale=DIVERGING,
        zmin=-limit,
        zmax=limit,
        colorbar={"title": f"change of loss, {table.unit}"},
    )
    widths: Any = table.scale * (table.rows["high"] - table.rows["low"]) / 2
    intervals = f"{level:g} % intervals of at most ±{WIDTH.text(widths.max())}" if many else f"{level:g} % intervals"
    patch = f"{PATCHED_SET.sub('(', str(table.settings['patch']))}; " if "patch" in table.settings else ""
    return styled(
        figure,
        "Change of each language's loss when each language's neurons are patched",
        150 + (36 if many else 46) * len(estimate),
        f"{patch}{table.unit} of the measured language's own loss, with {intervals}; * better or worse, "
        f"° slightly (within ±{margin:g} {table.unit}), ? inconclusive, unmarked: no effect; {_sizes(table)}",
        table.table().caption,
        provenance_of(table.settings),
        max(style.WIDTH, 190 + (NARROW_CELL if many else CELL) * len(estimate.columns)),
    )


def effects(table: EffectTable | Result) -> go.Figure:
    """Draw effects with their intervals and verdicts: a line for each, beside what its controls did.

    Args:
        table: A table of effects, such as ``Evaluation.effects(...)`` returns. Other results draw themselves, by their
            ``plot()``.

    Returns:
        A forest plot, in points or in per cent of the unpatched level, the verdict beside each line. The grey band is
        what counts as no difference; grey ticks are what the same patch did to matched controls. Hovering shows the
        minimal detectable effect and sizes.

    Example:
        >>> before = pd.DataFrame({"item": range(40), "cluster": range(40), "accuracy": [0.0, 1.0] * 20})
        >>> change = ln.effects.effect(before, before, "accuracy", "row")
        >>> table = ln.effects.EffectTable.of({("zero", "hi"): change}, ("patch", "language"), "1 effect")
        >>> ln.plot.effects(table).data[0].name
        'zero'
    """
    if isinstance(table, Result) and not isinstance(table, EffectTable):
        warn_user("ln.plot.effects takes a table of effects; draw results by .plot().")
        return table.plot()
    check_kind(
        table, EffectTable, "This figure is of a table of effects, such as Evaluation.effects() gives", EffectError
    )
    settings, unit = table.settings, table.unit
    metric, trained = str(settings.get("measured", settings["value"])), table.keys[0] == "trained"
    margin, controls = table.scale * float(settings["margin"]), "random neurons" if trained else "matched controls"
    ticks = table.controls
    if ticks is not None:
        ticks = pd.DataFrame({"estimate": table.scale * ticks["estimate"], **_named(ticks, table.keys)})
    figure = forest(_lines(table), ticks, controls, f"{unit}, interval, verdict")
    figure.add_vrect(x0=-margin, x1=margin, **style.BAND)
    figure.add_vline(x=0, line_width=1, line_color=RULE)
    against = settings.get("against", "the unpatched model")
    figure.update_layout(xaxis={"title": f"change of {metric}, {unit}, against {against}"})
    marks = f"{_sizes(table)}; grey band: ±{margin:g} {unit} counts as no change; {MARKS}"
    return styled(
        figure,
        _title(table, metric),
        MARGINS + ROW * len(table),
        marks + (f"; grey ticks: {controls}" if ticks is not None else ""),
        table.table().caption,
        provenance_of(settings),
        WIDE,
    )


def provenance_of(settings: Mapping[str, object]) -> str:
    """Where a result comes from, as far as its stored settings say."""
    parts = [text.format(settings[name]) for name, text in STORED.items() if settings.get(name) is not None]
    return FINGERPRINT.sub(r"\1", OPTIONS.sub(r"\1", ", ".join(parts)))


def _title(table: EffectTable, metric: str) -> str:
    settings = table.settings
    task = ", ".join(str(settings[name]) for name in ("task", "protocol") if name in settings)
    if table.keys[0] == "trained":
        where = f"{settings['source']} itself" if "target" in table.keys else "other languages"
        return f"Trained on {settings['source']}: {metric} in {where} ({task})"
    return f"Change of {metric} under each patch" + (f" ({task})" if task else "")


def _lines(table: EffectTable) -> pd.DataFrame:
    values: Any = table.scale * table.rows[["estimate", "low", "high"]].astype(float)
    digits = 2 if float(values.abs().to_numpy().max()) < 10 else 1
    cells, verdicts = values.to_numpy().tolist(), table.rows["verdict"]
    texts = [
        f"{signed(value, digits)} {interval(low, high, digits)} {verdict}"
        for (value, low, high), verdict in zip(cells, verdicts, strict=True)
    ]
    named, symbols = _named(table.rows, table.keys), [SYMBOLS[verdict] for verdict in verdicts]
    lines = values.assign(**named, text=texts, symbol=symbols, hover=_hovers(table))
    return lines.sort_values("name" if table.keys[0] in PLACES else "group", kind="stable")


def _named(rows: pd.DataFrame, keys: list[str]) -> dict[str, Any]:
    """What stands at the left of an effect: where it was measured, and what was patched or trained."""
    place = next((key for key in PLACES if key in keys and len(keys) > 1), None)
    conditions = [rows[key].astype(str) for key in keys if key != place]
    name = conditions[0].str.cat(conditions[1:], sep=", ") if len(conditions) > 1 else conditions[0]
    return {"group": rows[place].astype(str) if place else pd.Series("", rows.index), "name": name}


def _in_cells(table: EffectTable, intervals: bool) -> list[str]:
    """What each cell of a matrix shows."""
    cells: Any = table.scale * table.rows[["estimate", "low", "high"]].astype(float)
    return [
        f"<b>{signed(value)}{STARS[verdict]}</b>" + (f"<br>{interval(low, high)}" if intervals else "")
        for (value, low, high), verdict in zip(cells.to_numpy().tolist(), table.rows["verdict"], strict=True)
    ]


def _hovers(table: EffectTable) -> list[str]:
    """What hovering shows of each effect."""
    texts = []
    for row in table.rows.to_dict("records"):
        scaled = {name: table.scale * row.get(name, np.nan) for name in SCALED}
        ends = interval(scaled["low"], scaled["high"])
        text = f"{signed(scaled['estimate'])} {ends}, {row['verdict']}<br>minimal detectable "
        text += f"{DETECTABLE.text(scaled['minimal_detectable'])}, {row['items']:,} items, {row['clusters']:,} clusters"
        if not np.isnan(scaled["control_low"]):
            text += f"<br>matched controls {interval(scaled['control_low'], scaled['control_high'])}"
        texts.append(text)
    return texts


def _sizes(table: EffectTable) -> str:
    """Items, clusters and seeds of an effect."""
    spans = [
        f"{span(table.rows[name])} {name}"
        for name in ("items", "clusters", "seeds")
        if name in table.rows.columns and not bool(table.rows[name].isna().to_numpy().any())
    ]
    return f"n = {', '.join(spans)} per effect"


# How sure, not which way: the side of zero shows that, and the verdict is written beside.
SYMBOLS = {"better": "diamond", "worse": "diamond", "slightly better": "diamond-open", "slightly worse": "diamond-open"}
SYMBOLS |= {"no effect": "circle", "inconclusive": "circle-open"}
MARKS = "◆\u00a0better or worse, ◇\u00a0slightly, ●\u00a0no effect, ○\u00a0inconclusive"
ROW, MARGINS, WIDE = 26, 190, 740  # pixels
DRAWING_END, WORDS_START = 0.66, 0.68  # shares of the width


def forest(rows: pd.DataFrame, ticks: pd.DataFrame | None = None, ticks_name: str = "", heading: str = "") -> go.Figure:
    """Draw estimates with their intervals.

    Args:
        rows: Estimates from the top, with the columns ``group`` and ``name`` (the label at the left; an empty group
            leaves the name alone), ``estimate``, ``low``, ``high`` (in the unit of the axis), ``symbol``, ``text``
            (shown at the right) and ``hover``.
        ticks: Estimates drawn as grey ticks behind the rows, with the columns group, name and estimate.
        ticks_name: Name of the ticks.
        heading: Text above the texts at the right.

    Returns:
        A figure without title: a trace for each name, in the order of their first appearance.
    """
    figure = go.Figure()
    if ticks is not None and len(ticks):
        figure.add_scatter(
            x=ticks["estimate"],
            y=places(ticks),
            mode="markers",
            name=ticks_name,
            marker={"color": FAINT, "size": 12, "symbol": "line-ns-open"},
            hovertemplate=f"%{{y}}<br>{ticks_name}: %{{x:+.2f}}<extra></extra>",
        )
    for number, name in enumerate(dict.fromkeys(rows["name"])):
        part, colour = rows.loc[rows["name"] == name], COLOURS[number % len(COLOURS)]
        colour = colour_of(str(name)) if name in LANGUAGES else colour
        figure.add_scatter(
            x=part["estimate"],
            y=places(part),
            error_x=style.error_bars(part, "estimate", color=colour),
            mode="markers",
            name=str(name),
            marker={"color": colour, "size": 9, "symbol": part["symbol"]},
            customdata=part["hover"],
            hovertemplate="%{y}<br>%{customdata}<extra></extra>",
        )
    figure.add_scatter(
        x=[0.0] * len(rows),
        y=places(rows),
        xaxis="x2",
        mode="text",
        name="in words",
        text=rows["text"],
        textposition="middle right",
        textfont={"size": 11, "color": INK},
        hoverinfo="skip",
    )
    kind = "multicategory" if _grouped(rows) else "category"
    figure.update_yaxes(type=kind, range=[len(rows) - 0.4, -0.6], showgrid=True, autorange=False)
    figure.add_annotation(
        text=heading, x=WORDS_START, xref="paper", xanchor="left", y=1, yref="paper", yanchor="bottom", showarrow=False,
        font={"size": 11, "color": FAINT},
    )  # fmt: skip
    hidden: dict[str, Any] = {"showgrid": False, "showline": False, "showticklabels": False, "fixedrange": True}
    return figure.update_layout(
        xaxis={"domain": [0, DRAWING_END]},
        xaxis2={"domain": [WORDS_START, 1], "range": [0, 1], "anchor": "y", **hidden},
        showlegend=False,
    )


def places(rows: pd.DataFrame) -> list[Any]:
    """Positions of rows on the vertical axis of their forest plot."""
    names = rows["name"].astype(str).tolist()
    return [rows["group"].astype(str).tolist(), names] if _grouped(rows) else names


def _grouped(rows: pd.DataFrame) -> bool:
    return any(rows["group"].astype(str).tolist())
