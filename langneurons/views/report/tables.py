"""Tables of the report: a DataFrame as rows of formatted cells, and the map of layers and languages."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from langneurons.analysis.profiles import Profiles
from langneurons.effects.table import EffectTable
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.views.neuron_numbers import numbers
from langneurons.views.pages import ANCHOR
from langneurons.views.style import interval, signed

MOST_ROWS = 2000
DENSE = 0.55  # above this share of the largest count, text on a cell is light


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What it shows.
        numeric: Whether that is a number.
        verdict: Whether it is a verdict.
        link: Where it leads, an anchor; "" nowhere.
        foreign: Whether it may be text of any language and direction.
    """

    text: str
    numeric: bool = False
    verdict: bool = False
    link: str = ""
    foreign: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a table; rows of one cell of the map share a key, and the first of them is its anchor."""

    cells: list[Cell]
    key: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """A table that readers sort and filter."""

    anchor: str
    heading: str
    caption: str
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)


def table_of(frame: pd.DataFrame, anchor: str, heading: str, caption: str = "") -> Table:
    """Show a DataFrame, at most 2,000 rows of it."""
    numeric = {name: pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns}
    columns = [Column(str(name).replace("_", " "), is_number) for name, is_number in numeric.items()]
    rows = [
        Row([_cell(name, value, numeric[name]) for name, value in zip(frame.columns, row, strict=True)])
        for row in frame.head(MOST_ROWS).itertuples(index=False)
    ]
    if len(frame) > MOST_ROWS:
        caption = f"{caption} The first {MOST_ROWS:,} of {len(frame):,} rows.".strip()
    return Table(anchor, heading, caption, columns, rows)


def effects_table(table: EffectTable, anchor: str, heading: str) -> Table:
    """Show effects with intervals, p-values, verdicts, detectable effects and controls."""
    rows, unit = table.rows, "%" if table.settings["per"] == "baseline" else "points"
    shown = rows.loc[:, table.keys].astype(str)
    shown[f"effect, {unit}"] = [signed(100 * value, 3) for value in rows["estimate"]]
    shown["interval"] = [interval(100 * low, 100 * high) for low, high in zip(rows["low"], rows["high"], strict=True)]
    shown["p (Holm)"] = ["none" if np.isnan(p) else f"{p:.2g}" for p in rows["p_holm"]]
    shown["verdict"] = rows["verdict"]
    shown["detectable"] = [f"{100 * value:.2g}" for value in rows["minimal_detectable"]]
    if "control_mean" in rows.columns:
        shown["controls"] = ["" if np.isnan(value) else signed(100 * value, 3) for value in rows["control_mean"]]
    for name in ("items", "clusters", "seeds"):
        if name in rows.columns:
            shown[name] = rows[name]
    caption = f"Family of tests (Holm): {table.family}. Equivalent: within ±{100 * table.settings['margin']:g} {unit}."
    return table_of(shown, anchor, heading, caption)


def neuron_map(method: str, neurons: NeuronSet) -> dict[str, Any]:
    """The map of layers and languages of one method: counts, shaded, each leading to its neurons."""
    counts, width = neurons.counts(), neurons.shape[1]
    most = max(int(counts.to_numpy().max()), 1)
    rows = []
    for language in neurons.languages:
        cells = [
            {
                "count": int(count),
                "layer": layer,
                "key": cell_key(method, language, layer),
                "share": f"{int(count) / width:.2%}",
                "depth": f"{0.08 + 0.92 * int(count) / most:.2f}",
                "dense": int(count) / most > DENSE,
            }
            for layer, count in enumerate(counts.loc[language])
        ]
        rows.append({"language": language, "cells": cells})
    caption = f"{method}: {len(neurons):,} neurons by language and layer. A count leads to the list of its neurons."
    return {"method": method, "caption": caption, "layers": list(range(neurons.shape[0])), "rows": rows}


def neuron_table(neurons: Mapping[str, NeuronSet], stats: ActivationStats | None, profiles: Profiles | None) -> Table:
    """List the neurons of every method, those that have a page first, then those of the largest scores."""
    ordered = sorted(_listed(neurons, stats, profiles), key=lambda one: (not one["page"], one["rank"]))
    shown = sorted(ordered[:MOST_ROWS], key=lambda one: one["place"])
    scored = any(one["score"] is not None for one in shown)
    names = ["method", "language", "layer", "neuron"] + ["score"] * scored
    names += ["active in it, %", "most elsewhere, %", "where"] * (stats is not None)
    columns = [Column(name, name not in ("method", "language", "where", "neuron")) for name in names]
    rows, anchored = [], set()
    for one in shown:
        anchor = "" if one["key"] in anchored else one["key"]
        anchored.add(one["key"])
        rows.append(Row(_neuron_cells(one, scored, stats is not None), one["key"], anchor))
    caption = "Score: the method's own. Active: share of counted tokens with a value above zero."
    if len(ordered) > MOST_ROWS:
        caption += f" {MOST_ROWS:,} of {len(ordered):,} neurons: those with a page, then those of the largest scores."
    return Table("neurons", "Neurons", caption, columns, rows)


def cell_key(method: str, language: str, layer: int) -> str:
    """The anchor of a cell's list."""
    return re.sub(r"[^\w-]+", "-", f"{method}-{language}-{layer}")


def _listed(
    neurons: Mapping[str, NeuronSet], stats: ActivationStats | None, profiles: Profiles | None
) -> Iterable[dict[str, Any]]:
    place = 0
    for method, found in neurons.items():
        table = found.to_dataframe()
        scores = table["score"].tolist() if "score" in table.columns else [None] * len(table)
        best = (-pd.Series(scores, dtype=float)).rank(method="first", na_option="bottom")
        known = None if stats is None or found.site not in stats.sites else stats
        keys = zip(table["language"], table["layer"], table["neuron"], scores, best, strict=True)
        for language, layer, index, score, rank in keys:
            anchor = ANCHOR.format(layer, index)
            page = profiles is not None and profiles.site == found.site and (layer, index) in profiles
            one = {"method": method, "language": str(language), "layer": layer, "index": index, "score": score}
            one |= {"key": cell_key(method, str(language), layer), "anchor": anchor, "page": page}
            one |= {"rank": rank, "place": place, "stats": known, "site": found.site}
            yield one
            place += 1


def _activity(stats: ActivationStats | None, site: str, language: str, layer: int, index: int) -> list[str]:
    """Active in the language, most elsewhere, and where that is; empty where it was not recorded."""
    if stats is None or language not in stats.languages:
        return ["", "", ""]
    shares = numbers(stats, site).probability[:, layer, index].tolist()
    own = shares.pop(stats.languages.index(language))
    if not shares:
        return [f"{100 * own:.1f}", "", ""]
    others = [one for one in stats.languages if one != language]
    most = max(range(len(shares)), key=shares.__getitem__)
    return [f"{100 * own:.1f}", f"{100 * shares[most]:.1f}", others[most]]


def _neuron_cells(one: Mapping[str, Any], scored: bool, recorded: bool) -> list[Cell]:
    cells = [Cell(one["method"]), Cell(one["language"]), Cell(str(one["layer"]), numeric=True)]
    cells.append(Cell(one["anchor"], link=one["anchor"] if one["page"] else ""))
    if scored:
        known = one["score"] is not None and np.isfinite(one["score"])
        cells.append(Cell(f"{one['score']:.4g}" if known else "", numeric=True))
    own, most, where = _activity(one["stats"], one["site"], one["language"], one["layer"], one["index"])
    return [*cells, Cell(own, True), Cell(most, True), Cell(where)] if recorded else cells


def _cell(name: Any, value: Any, numeric: bool) -> Cell:
    if numeric:
        return Cell(_formatted(value), numeric=True)
    text = "" if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else str(value)
    return Cell(text, verdict="verdict" in str(name), foreign=True)


def _formatted(value: Any) -> str:
    if value is pd.NA or pd.isna(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:.4g}".replace("-", "−")
