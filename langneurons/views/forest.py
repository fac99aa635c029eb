"""The forest plot: estimates one under the other, each with its interval, in words too, for print."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from langneurons.views.style import COLOURS, FAINT, INK

# How sure, not which way: the side of zero shows that, and the verdict is written beside.
SYMBOLS = {"better": "diamond", "worse": "diamond", "equivalent": "circle", "inconclusive": "circle-open"}
MARKS = "◆\u00a0better or worse, ●\u00a0equivalent to none, ○\u00a0inconclusive"
ROW, MARGINS = 26, 190  # pixels
DRAWN, WRITTEN = 0.66, 0.68  # of the width: where the drawing ends and the words begin


def forest(
    rows: pd.DataFrame, beside: pd.DataFrame | None = None, beside_name: str = "", heading: str = ""
) -> go.Figure:
    """Draw estimates with their intervals.

    Args:
        rows: One an estimate, from the top: ``group`` and ``name`` (what stands at its left; an empty group leaves the
            name alone), ``estimate``, ``low``, ``high`` (in the unit of the axis), ``symbol``, ``text`` (what stands at
            its right) and ``hover``.
        beside: Grey ticks behind: group, name, estimate.
        beside_name: What the ticks are.
        heading: What stands over the texts at the right.

    Returns:
        A figure without title: a trace for each name, in the order of their first appearance.
    """
    figure = go.Figure()
    if beside is not None and len(beside):
        figure.add_scatter(
            x=beside["estimate"],
            y=places(beside),
            mode="markers",
            name=beside_name,
            marker={"color": FAINT, "size": 12, "symbol": "line-ns-open"},
            hovertemplate=f"%{{y}}<br>{beside_name}: %{{x:+.2f}}<extra></extra>",
        )
    for number, name in enumerate(dict.fromkeys(rows["name"])):
        figure.add_trace(_marks(rows.loc[rows["name"] == name], str(name), COLOURS[number % len(COLOURS)]))
    figure.add_trace(_words(rows))
    kind = "multicategory" if _grouped(rows) else "category"
    figure.update_yaxes(type=kind, range=[len(rows) - 0.4, -0.6], showgrid=True, autorange=False)
    figure.add_annotation(
        text=heading, x=WRITTEN, xref="paper", xanchor="left", y=1, yref="paper", yanchor="bottom", showarrow=False,
        font={"size": 11, "color": FAINT},
    )  # fmt: skip
    hidden: dict[str, Any] = {"showgrid": False, "showline": False, "showticklabels": False, "fixedrange": True}
    return figure.update_layout(
        xaxis={"domain": [0, DRAWN]},
        xaxis2={"domain": [WRITTEN, 1], "range": [0, 1], "anchor": "y", **hidden},
        showlegend=False,
    )


def places(rows: pd.DataFrame) -> list[Any]:
    """Where rows stand on the vertical axis of their forest plot."""
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
