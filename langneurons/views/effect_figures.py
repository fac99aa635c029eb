"""Figures of effects: the perplexity matrix, and any table of effects as a forest plot."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, LangNeuronsWarning
from langneurons.storage.presenting import Column
from langneurons.storage.result import Result
from langneurons.views.style import COLOURS, DIVERGING, FAINT, INK, WIDTH, interval, signed, span, styled

STARS = {"worse": "*", "better": "*", "equivalent": "", "inconclusive": "?"}
CELL = 94  # pixels across, for an interval of two decimals
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
FINGERPRINT = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24}\b")


def perplexity_matrix(table: EffectTable) -> go.Figure:
    """Draw a perplexity matrix: which language's neurons were patched, which language's loss changed, by how much.

    Args:
        table: A table that ``ln.perplexity_matrix`` returned.

    Returns:
        A heatmap in per cent of the measured language's own loss, with the interval in every cell. A star marks a
        change that is significant in its family (Holm) and not equivalent to none, a question mark an inconclusive one;
        unmarked cells are equivalent to no change. Hovering shows the verdict, the minimal detectable effect and what
        the controls did.

    Raises:
        EffectError: If the table is no matrix of patched and measured languages.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> text = ln.HeldoutText.of(model, ln.load_corpus("babel", ["en", "hi"]).take(20), context_length=64)
        >>> table = ln.perplexity_matrix(model, text, neurons, controls=0, resamples=200, progress=False)
        >>> ln.plot.perplexity_matrix(table).data[0].type
        'heatmap'
    """
    if table.keys != ["patched", "measured"]:
        raise EffectError("This table has no columns patched and measured: ln.perplexity_matrix makes one that has.")
    estimate = table.scale * table.matrix("estimate")
    by_pair = {(row["patched"], row["measured"]): row for row in table.rows.to_dict("records")}
    cells = [[by_pair.get((patched, language), {}) for language in estimate.columns] for patched in estimate.index]
    margin, level = table.scale * float(table.settings["margin"]), 100 * float(table.settings["level"])
    limit = max(float(np.nanmax(np.abs(estimate.to_numpy()))), margin)
    figure = go.Figure(
        go.Heatmap(
            z=estimate.to_numpy(),
            x=list(estimate.columns),
            y=list(estimate.index),
            text=[[_in_cell(cell, table.scale) for cell in row] for row in cells],
            texttemplate="%{text}",
            textfont={"size": 11},
            customdata=[[_hover(cell, table.scale) for cell in row] for row in cells],
            hovertemplate="patched %{y}, measured in %{x}<br>%{customdata}<extra></extra>",
            colorscale=DIVERGING,
            zmin=-limit,
            zmax=limit,
            colorbar={"title": f"change of loss, {table.unit}"},
        )
    )
    figure.update_xaxes(title="measured in", showgrid=False, type="category")
    figure.update_yaxes(title="patched neurons of", autorange="reversed", showgrid=False, type="category")
    patch = f"{PATCHED_SET.sub('(', str(table.settings['patch']))}; " if "patch" in table.settings else ""
    return styled(
        figure,
        "Change of each language's loss when each language's neurons are patched",
        150 + 46 * len(estimate),
        f"{patch}{table.unit} of the measured language's own loss, with {level:g} % intervals; * better or worse, "
        f"? inconclusive, unmarked: equivalent to no change (±{margin:g} {table.unit}); {_sizes(table)}",
        table.table().caption,
        provenance_of(table.settings),
        max(WIDTH, 190 + CELL * len(estimate.columns)),
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
    if not isinstance(table, EffectTable):
        warnings.warn("ln.plot.effects takes a table of effects; draw results by .plot().", LangNeuronsWarning, 2)
        return table.plot()
    settings, unit = table.settings, table.unit
    metric, trained = str(settings.get("measured", settings["value"])), table.keys[0] == "trained"
    margin, controls = table.scale * float(settings["margin"]), "random neurons" if trained else "matched controls"
    ticks = None if table.controls is None else _ticks(table, table.controls)
    figure = forest(_lines(table), ticks, controls, f"{unit}, interval, verdict")
    figure.add_vrect(x0=-margin, x1=margin, fillcolor="#999999", opacity=0.15, line_width=0, layer="below")
    figure.add_vline(x=0, line_width=1, line_color="#555555")
    against = settings.get("against", "the unpatched model")
    figure.update_layout(xaxis={"title": f"change of {metric}, {unit}, against {against}"})
    marks = f"{_sizes(table)}; grey band: ±{margin:g} {unit} counts as no change; {MARKS}"
    return styled(
        figure,
        _title(settings, metric, trained),
        MARGINS + ROW * len(table),
        marks + (f"; grey ticks: {controls}" if ticks is not None else ""),
        table.table().caption,
        provenance_of(settings),
    )


def provenance_of(settings: Mapping[str, Any]) -> str:
    """Where a result comes from, as far as its stored settings say."""
    parts = [text.format(settings[name]) for name, text in STORED.items() if settings.get(name) is not None]
    return FINGERPRINT.sub(r"\1", ", ".join(parts))


def _title(settings: Mapping[str, Any], metric: str, trained: bool) -> str:
    task = ", ".join(str(settings[name]) for name in ("task", "protocol") if name in settings)
    if trained:
        where = f"{settings['source']} itself" if "target" in settings["keys"] else "other languages"
        return f"Trained on {settings['source']}: {metric} in {where} ({task})"
    return f"Change of {metric} under each patch" + (f" ({task})" if task else "")


def _lines(table: EffectTable) -> pd.DataFrame:
    rows = table.rows
    values: Any = table.scale * rows[["estimate", "low", "high"]].astype(float)
    digits = 2 if float(values.abs().to_numpy().max()) < 10 else 1
    words = [
        f"{signed(cell['estimate'], digits)} {interval(cell['low'], cell['high'], digits)} {verdict}"
        for cell, verdict in zip(values.to_dict("records"), rows["verdict"], strict=True)
    ]
    lines = values.assign(
        **_named(rows, table.keys),
        text=words,
        symbol=[SYMBOLS[verdict] for verdict in rows["verdict"]],
        hover=[_hover(row, table.scale) for row in rows.to_dict("records")],
    )
    return lines.sort_values("group", key=lambda groups: pd.factorize(groups)[0], kind="stable")


def _ticks(table: EffectTable, controls: pd.DataFrame) -> pd.DataFrame:
    values = table.scale * controls["estimate"].astype(float)
    return pd.DataFrame({"estimate": values, **_named(controls, table.keys)})


def _named(rows: pd.DataFrame, keys: list[str]) -> dict[str, Any]:
    """What stands at the left of an effect: where it was measured, and what was patched or trained."""
    place = next((key for key in PLACES if key in keys and len(keys) > 1), None)
    conditions = [rows[key].astype(str) for key in keys if key != place]
    name = conditions[0].str.cat(conditions[1:], sep=", ") if len(conditions) > 1 else conditions[0]
    return {"group": rows[place].astype(str) if place else pd.Series("", rows.index), "name": name}


def _in_cell(cell: Mapping[Any, Any], scale: int) -> str:
    if not cell:
        return ""
    text = f"<b>{signed(scale * cell['estimate'])}{STARS[cell['verdict']]}</b>"
    return f"{text}<br>{interval(scale * cell['low'], scale * cell['high'])}"


def _hover(cell: Mapping[Any, Any], scale: int) -> str:
    if not cell:
        return "not measured"
    low, high, detectable = (scale * cell[name] for name in ("low", "high", "minimal_detectable"))
    lines = [
        f"{signed(scale * cell['estimate'])} {interval(low, high)}, {cell['verdict']}",
        f"minimal detectable {DETECTABLE.text(detectable)}, {cell['items']:,} items, {cell['clusters']:,} clusters",
    ]
    if not np.isnan(low := cell.get("control_low", np.nan)):
        lines.append(f"matched controls {interval(scale * low, scale * cell['control_high'])}")
    return "<br>".join(lines)


def _sizes(table: EffectTable) -> str:
    """Items, clusters and seeds of an effect."""
    spans = [
        f"{span(table.rows[name])} {name}"
        for name in ("items", "clusters", "seeds")
        if name in table.rows.columns and not bool(table.rows[name].isna().to_numpy().any())
    ]
    return f"n = {', '.join(spans)} per effect"


# How sure, not which way: the side of zero shows that, and the verdict is written beside.
SYMBOLS = {"better": "diamond", "worse": "diamond", "equivalent": "circle", "inconclusive": "circle-open"}
MARKS = "◆\u00a0better or worse, ●\u00a0equivalent to no change, ○\u00a0inconclusive"
ROW, MARGINS = 26, 190  # pixels
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
        figure.add_trace(_marks(rows.loc[rows["name"] == name], str(name), COLOURS[number % len(COLOURS)]))
    figure.add_trace(_words(rows))
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


def _marks(rows: pd.DataFrame, name: str, colour: str) -> go.Scatter:
    return go.Scatter(
        x=rows["estimate"],
        y=places(rows),
        error_x={
            "type": "data",
            "array": rows["high"] - rows["estimate"],
            "arrayminus": rows["estimate"] - rows["low"],
            "color": colour,
        },
        mode="markers",
        name=name,
        marker={"color": colour, "size": 9, "symbol": rows["symbol"]},
        customdata=rows["hover"],
        hovertemplate="%{y}<br>%{customdata}<extra></extra>",
    )


def _words(rows: pd.DataFrame) -> go.Scatter:
    return go.Scatter(
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


def _grouped(rows: pd.DataFrame) -> bool:
    return any(rows["group"].astype(str).tolist())
