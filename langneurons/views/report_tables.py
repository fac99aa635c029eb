"""Tables of the report: printed cells that readers sort and filter, and the map of layers and languages."""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from langneurons.analysis.profiles import Profiles
from langneurons.corpora.languages import spelled
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import ActivationStats
from langneurons.storage.presenting import MISSING, Column, Table
from langneurons.views.looks import language_class
from langneurons.views.pages import ANCHOR, numbers

MOST_ROWS = 2000
LANGUAGE_COLUMNS = {"language", "patched", "measured", "target", "source", "where"}
SHARE = Column(unit="%", scale=100)
NEURON_COLUMNS = {
    "score": Column(digits=4),
    "active": replace(SHARE, heading="active in it"),
    "elsewhere": replace(SHARE, heading="most elsewhere"),
}


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: Printed text.
        numeric: Whether that is a number.
        verdict: Whether it is a verdict.
        link: Anchor that it leads to, "" for none.
        language: CSS class of the language that it names, "" for none.
    """

    text: str
    numeric: bool = False
    verdict: bool = False
    link: str = ""
    language: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a table; rows of one cell of the map share a key, and the first of them is its anchor."""

    cells: list[Cell]
    key: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table that readers sort and filter."""

    anchor: str
    heading: str
    caption: str
    columns: list[Cell]
    rows: list[Row]


def table_of(table: Table, anchor: str, heading: str = "") -> PageTable:
    """Show a table, at most 2,000 rows of it and no empty columns, under a heading or its own title."""
    texts = replace(table, frame=table.frame.head(MOST_ROWS)).texts()
    bounds = {name for column in table.columns.values() for name in column.bounds or ()}
    names = [str(name) for name in table.frame.columns if name not in bounds]
    heads = [
        Cell(title, name in table.columns or pd.api.types.is_numeric_dtype(table.frame[name]), "verdict" in name)
        for title, name in zip(texts.columns, names, strict=True)
    ]
    filled = [place for place in range(len(heads)) if not texts.iloc[:, place].isin(["", MISSING]).all()]
    columns = [heads[place] for place in filled]
    named = [names[place] in LANGUAGE_COLUMNS for place in filled]
    rows = [
        Row([_cell(*cell) for cell in zip(columns, row, named, strict=True)])
        for row in texts.iloc[:, filled].to_numpy().tolist()
    ]
    title = f"{table.title}." if heading and table.title else ""
    cut = f"The first {MOST_ROWS:,} of {len(table):,} rows." if len(table) > MOST_ROWS else ""
    caption = " ".join(filter(None, [title, table.caption, cut]))
    return PageTable(anchor, heading or table.title, caption, columns, rows)


def _cell(column: Cell, text: str, names_language: bool) -> Cell:
    named = names_language and text not in ("", MISSING)
    return replace(column, text=text, language=language_class(text) if named else "")


def neuron_map(method: str, neurons: NeuronSet) -> dict[str, Any]:
    """The map of layers and languages of one method: counts, and what shades them and leads to their neurons."""
    counts = neurons.counts()
    return {
        "method": method,
        "total": f"{len(neurons):,}",
        "counts": {language: counts.loc[language].tolist() for language in sorted(neurons.languages)},
        "most": max(int(counts.to_numpy().max()), 1),
        "layers": range(neurons.shape[0]),
        "share": lambda count: f"{SHARE.text(count / neurons.shape[1])} %",
        "key": partial(cell_key, method),
    }


def neuron_table(
    neurons: Mapping[str, NeuronSet], stats: ActivationStats | None, profiles: Profiles | None
) -> PageTable:
    """List the neurons of every method, those that have a page first, then those of the largest scores."""
    members = pd.concat([_members(method, group, profiles) for method, group in neurons.items()], ignore_index=True)
    ordered = members.sort_values(["page", "rank"], ascending=[False, True], kind="stable")
    members = ordered.head(MOST_ROWS).sort_index()
    names = ["method", "language", "layer", "neuron"] + ["score"] * bool(members["score"].notna().any())
    caption = "Score: the method's own. Active: share of counted tokens with a value above zero."
    if stats is not None:
        activity = [_activity(stats, *cell) for cell in members[["site", "language", "layer", "index"]].to_numpy()]
        members[["active", "elsewhere", "where"]] = pd.DataFrame(activity, members.index, dtype=object)
        names += ["active", "elsewhere", "where"]
    if len(ordered) > MOST_ROWS:
        caption += f" {MOST_ROWS:,} of {len(ordered):,} neurons: those with a page, then those of the largest scores."
    table = table_of(Table(members.loc[:, names], NEURON_COLUMNS, caption=caption), "neurons", "Neurons")
    rows = []
    about = zip(table.rows, members["key"], members["key"].duplicated(), members["page"], strict=True)
    for row, key, repeated, has_page in about:
        *before, neuron = row.cells[:4]  # after method, language and layer
        cells = [*before, replace(neuron, link=neuron.text if has_page else ""), *row.cells[4:]]
        rows.append(Row(cells, key, "" if repeated else key))
    return replace(table, rows=rows)


def cell_key(method: str, language: str, layer: int) -> str:
    """The anchor of a cell's list."""
    return re.sub(r"[^\w-]+", "-", f"{method}-{language}-{layer}")


def _members(method: str, neurons: NeuronSet, profiles: Profiles | None) -> pd.DataFrame:
    frame = neurons.to_dataframe()
    pairs = list(zip(frame["layer"].tolist(), frame["neuron"].tolist(), strict=True))
    paged = set(profiles.neurons) if profiles is not None and profiles.site == neurons.site else set()
    scores = frame["score"].astype(float) if "score" in frame.columns else pd.Series(float("nan"), frame.index)
    return frame.assign(
        method=method,
        neuron=[ANCHOR.format(*pair) for pair in pairs],
        index=frame["neuron"],
        score=scores,
        rank=(-scores).rank(method="first", na_option="bottom"),
        page=[pair in paged for pair in pairs],
        key=[cell_key(method, *cell) for cell in zip(frame["language"].astype(str), frame["layer"], strict=True)],
        site=neurons.site,
    )


def _activity(
    stats: ActivationStats, site: str, language: str, layer: int, index: int
) -> tuple[float | None, float | None, str | None]:
    """Share active in the language, most in another one, and which one that is; None where it was not recorded."""
    label = spelled(language, stats.languages)
    if site not in stats.sites or label is None:
        return None, None, None
    shares = dict(zip(stats.languages, numbers(stats, site)[0][:, layer, index].tolist(), strict=True))
    own = shares.pop(label)
    where, elsewhere = max(shares.items(), key=operator.itemgetter(1), default=(None, None))
    return own, elsewhere, where
