"""Figures of effects: the perplexity matrix, and any table of effects as a forest plot."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError
from langneurons.evaluation.evaluation import Evaluation
from langneurons.training.transfer_table import Transfer
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
WHOSE = re.compile(r"\(NeuronSet of .*?, (?=\w+=)")  # in a patch; a matrix has a set for each row
FINGERPRINT = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24}\b")


def perplexity_matrix(table: EffectTable) -> go.Figure:
    """Draw a perplexity matrix: which language's neurons were patched, which language's loss changed, by how much.

    Args:
        table: From ``ln.perplexity_matrix``.

    Returns:
        A heatmap in per cent of the measured language's own loss, with the interval in every cell. A star marks a
        change that is significant in its family (Holm) and not equivalent to none, a question mark an inconclusive one;
        unmarked cells are equivalent to no change. Hovering shows verdict, minimal detectable effect and what the
        controls did.

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
    estimate = 100 * table.matrix("estimate")
    cells = {(cell["patched"], cell["measured"]): cell for cell in table.rows.to_dict("records")}
    wide = [[cells.get((patched, measured), {}) for measured in estimate.columns] for patched in estimate.index]
    delta, level = 100 * float(table.settings["margin"]), 100 * float(table.settings["level"])
    limit = max(float(np.nanmax(np.abs(estimate.to_numpy()))), delta)
    figure = go.Figure(
        go.Heatmap(
            z=estimate.to_numpy(),
            x=list(estimate.columns),
            y=list(estimate.index),
            text=[[_in_cell(cell) for cell in row] for row in wide],
            texttemplate="%{text}",
            textfont={"size": 11},
            customdata=[[_hover(cell) for cell in row] for row in wide],
            hovertemplate="patched %{y}, measured in %{x}<br>%{customdata}<extra></extra>",
            colorscale=DIVERGING,
            zmin=-limit,
            zmax=limit,
            colorbar={"title": "change of loss, %"},
        )
    )
    figure.update_xaxes(title="measured in", showgrid=False, type="category")
    figure.update_yaxes(title="patched neurons of", autorange="reversed", showgrid=False, type="category")
    return styled(
        figure,
        "Change of each language's loss when each language's neurons are patched",
        150 + 46 * len(estimate),
        f"{_written(table.settings)}% of the measured language's own loss, {level:g} % interval below; "
        "* better or worse, ? inconclusive, "
        f"unmarked: equivalent to none (±{delta:g} %); {_sizes(table)}",
        caption_of(table),
        provenance_of(table.settings),
        max(WIDTH, 190 + CELL * len(estimate.columns)),
    )


def effects(table: EffectTable | Evaluation | Transfer) -> go.Figure:
    """Draw effects with their intervals and verdicts: a line for each, beside what its controls did.

    Args:
        table: Any table of effects, such as ``Evaluation.effects(...)`` gives; or an Evaluation of one task, or a
            Transfer (against attention and head alone where that was trained), whose effects are then drawn.

    Returns:
        A forest plot, in points or in per cent of the unpatched level, the verdict beside each line. The grey band is
        what counts as no difference; grey ticks are what the same patch did to matched controls. Hovering shows minimal
        detectable effect and sizes.

    Raises:
        EffectError: If there is no effect to draw, or the evaluation holds several tasks.

    Example:
        >>> before = pd.DataFrame({"item": range(40), "cluster": range(40), "accuracy": [0.0, 1.0] * 20})
        >>> found = ln.effects.effect(before, before, "accuracy", "row")
        >>> ln.plot.effects(EffectTable.of({("zero", "hi"): found}, ("patch", "language"), "1 effect")).data[0].name
        'zero'
    """
    if isinstance(table, Transfer):
        table = table.effects(table.reference)
    elif isinstance(table, Evaluation):
        found = table.effects()
        table = replace(found, settings={"model": table.settings["model"], **found.settings})
    about = table.settings
    measured, trained = about.get("measured", about["value"]), table.keys[0] == "trained"
    delta, unit = 100 * float(about["margin"]), "%" if about["per"] == "baseline" else "points"
    controls = "random neurons" if trained else "matched controls"
    figure = forest(
        _lines(table), None if table.controls is None else _beside(table), controls, f"{unit}, interval, verdict"
    )
    figure.add_vrect(x0=-delta, x1=delta, fillcolor="#999999", opacity=0.15, line_width=0, layer="below")
    figure.add_vline(x=0, line_width=1, line_color="#555555")
    against = about.get("against", "the unpatched model")
    figure.update_layout(xaxis={"title": f"change of {measured}, {unit}, against {against}"})
    marks = f"{_sizes(table)}; grey band: ±{delta:g} {unit} counts as none; {MARKS}"
    return styled(
        figure,
        _title(about, str(measured), trained),
        MARGINS + ROW * len(table),
        marks + (f"; grey ticks: {controls}" if table.controls is not None else ""),
        caption_of(table),
        provenance_of(about),
    )


def caption_of(table: EffectTable) -> str:
    """What a reader must know of a table of effects: the family, what counts as none, what could have been found."""
    about, least, most = table.settings, *(100 * table.rows["minimal_detectable"]).agg(["min", "max"])
    unit = "%" if about["per"] == "baseline" else "points"
    found = f"{least:.2g}" if f"{least:.2g}" == f"{most:.2g}" else f"{least:.2g} to {most:.2g}"
    return (
        f"Family of tests (Holm): {table.family}. {100 * about['level']:g} % intervals; equivalent: within "
        f"±{100 * about['margin']:g} {unit}; minimal detectable effect (one test, 80 % power) {found} {unit}."
    )


def provenance_of(settings: Mapping[str, Any]) -> str:
    """What the stored settings of a result say of where it comes from."""
    said = [text.format(settings[name]) for name, text in STORED.items() if settings.get(name) is not None]
    return FINGERPRINT.sub(r"\1", ", ".join(said))


def _title(about: Mapping[str, Any], measured: str, trained: bool) -> str:
    task = ", ".join(str(about[name]) for name in ("task", "protocol") if name in about)
    if trained and "target" in about["keys"]:
        return f"Trained on {about['source']}: {measured} in {about['source']} itself ({task})"
    if trained:
        return f"Trained on {about['source']}: {measured} in other languages ({task})"
    return f"Change of {measured} under each patch" + (f" ({task})" if task else "")


def _lines(table: EffectTable) -> pd.DataFrame:
    rows = table.rows
    values: Any = 100 * rows[["estimate", "low", "high"]].astype(float)
    digits = 2 if float(values.abs().to_numpy().max()) < 10 else 1
    words = [
        f"{signed(cell['estimate'], digits)} {interval(cell['low'], cell['high'], digits)} {verdict}"
        for cell, verdict in zip(values.to_dict("records"), rows["verdict"], strict=True)
    ]
    lines = values.assign(
        **_named(rows, table.keys), text=words, symbol=[SYMBOLS[verdict] for verdict in rows["verdict"]]
    )
    lines["hover"] = [_hover(cell) for cell in rows.to_dict("records")]
    return lines.sort_values("group", key=lambda groups: pd.factorize(groups)[0], kind="stable")


def _beside(table: EffectTable) -> pd.DataFrame:
    assert table.controls is not None
    values = 100 * table.controls["estimate"].astype(float)
    return pd.DataFrame({"estimate": values, **_named(table.controls, table.keys)})


def _named(rows: Any, keys: list[str]) -> dict[str, Any]:
    """What stands at the left of an effect: where it was measured, and what was done."""
    place = next((key for key in PLACES if key in keys and len(keys) > 1), None)
    done = [rows[key].astype(str) for key in keys if key != place]
    name = done[0].str.cat(done[1:], sep=", ") if len(done) > 1 else done[0]
    return {"group": rows[place].astype(str) if place else pd.Series("", rows.index), "name": name}


def _written(settings: Mapping[str, Any]) -> str:
    return f"{WHOSE.sub('(', str(settings['patch']))}; " if "patch" in settings else ""


def _in_cell(cell: Mapping[str, Any]) -> str:
    if not cell:
        return ""
    text = f"<b>{signed(100 * cell['estimate'])}{STARS[cell['verdict']]}</b>"
    return f"{text}<br>{interval(100 * cell['low'], 100 * cell['high'])}"


def _hover(cell: Mapping[str, Any]) -> str:
    if not cell:
        return "not measured"
    lines = [
        f"{100 * cell['estimate']:+.2f} [{100 * cell['low']:+.2f}, {100 * cell['high']:+.2f}], {cell['verdict']}",
        f"minimal detectable {100 * cell['minimal_detectable']:.2f}, {cell['items']:,} items, "
        f"{cell['clusters']:,} clusters",
    ]
    if not np.isnan(low := cell.get("control_low", np.nan)):
        lines.append(f"matched controls [{100 * low:+.2f}, {100 * cell['control_high']:+.2f}]")
    return "<br>".join(lines)


def _sizes(table: EffectTable) -> str:
    """How many items and clusters an effect has, and over how many seeds."""
    spans = [
        f"{span(table.rows[name])} {name}"
        for name in ("items", "clusters", "seeds")
        if name in table.rows.columns and not bool(table.rows[name].isna().to_numpy().any())
    ]
    return f"n = {', '.join(spans)} an effect"


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
