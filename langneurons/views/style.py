"""How every figure looks: colours, fonts, one template; and where its title, caption and provenance go."""

import html
import math
import operator
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Real
from markupsafe import Markup
from plotly.basedatatypes import BasePlotlyType
from plotly.subplots import make_subplots

from langneurons import storage
from langneurons.errors import LangNeuronsError, unknown
from langneurons.storage.presenting import MISSING
from langneurons.views.looks import COLOURS, DASHES, FAINT, FONT, SHADES, TEMPLATE

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("langneurons.views"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

WIDTH = 620
LEFT, RIGHT = 70, 30  # margins
TITLE_LETTERS, SUBTITLE_LETTERS = 0.11, 0.16  # letters per pixel of width, at sizes 17 and 12
LEGEND_LETTER, LEGEND_KEY, LEGEND_ROW = 5.7, 44, 22  # pixels, at size 12
LABEL_LETTER = 7.4  # pixels, of an axis' labels
LONGEST_LABEL = 60  # letters; longer labels lose their middle
LEAST_ACROSS = 300  # pixels left for the drawing beside long labels
MOST_LINES = 12  # of a title
OWN_TAGS = re.compile(r"(<br>|</?b>)")  # the markup that figures here write into their texts
PLAIN = {"&": "&amp;", "<": "&lt;", "$": "&#36;", "%{": "&#37;{"}
DOTTED = {"color": FAINT, "width": 1, "dash": "dot"}
BAND = {"fillcolor": "#999999", "opacity": 0.15, "line_width": 0, "layer": "below"}  # what counts as no change


def styled(
    figure: go.Figure,
    title: str,
    height: int,
    subtitle: str = "",
    caption: str = "",
    provenance: str = "",
    width: int = WIDTH,
    left: int = LEFT,
) -> go.Figure:
    """Give a figure its title, size and looks, and return it.

    Args:
        figure: The figure, changed in place.
        title: Title, broken into lines where it is long.
        height: Height in pixels, with a title of one line.
        subtitle: Smaller text under the title: sizes, and what marks mean.
        caption: What a reader must know to read the figure; kept in ``layout.meta``, shown by pages and files.
        provenance: What the figure was made from; kept in ``layout.meta`` too.
        width: Width in pixels.
        left: Left margin in pixels; ``label_room`` computes it for long labels.

    Example:
        >>> figure = styled(go.Figure(), "Neurons per layer", 300, caption="Of babel.")
        >>> figure.layout.meta
        {'caption': 'Of babel.', 'provenance': ''}
    """
    width = max(width, left + LEAST_ACROSS + RIGHT)
    across = width - left - RIGHT
    heading = [plain(line) for line in broken(title, round(across * TITLE_LETTERS))[:MOST_LINES]]
    under = [plain(line) for line in broken(subtitle, round(across * SUBTITLE_LETTERS))[:MOST_LINES]]
    _make_plain(figure)
    top = 34 + 22 * len(heading) + (6 + 16 * len(under) if under else 0)
    total = max(height, 280) + top - 60
    # plotly sets the first of several lines higher than a single one: down with the title, up with the subtitle.
    down = 18 + 16 * (len(heading) - 1)
    under = [*under, "\u00a0"] if len(under) == 1 else under
    return figure.update_layout(
        template=TEMPLATE,
        title={
            "text": "<br>".join(heading),
            "subtitle": {"text": "<br>".join(under), "font": {"size": 12, "color": FAINT}},
            "y": 1 - down / total,
            "yanchor": "top",
        },
        width=width,
        height=total,
        margin={"l": left, "r": RIGHT, "t": top, "b": 60},
        meta={"caption": caption, "provenance": provenance},
    )


def plain(text: str) -> str:
    """A text that plotly shows letter for letter: it takes tags, entities, formulas and ``%{...}`` for more than text.

    Example:
        >>> plain("<a href='https://x.org'>AT&T</a>")
        "&lt;a href='https://x.org'>AT&amp;T&lt;/a>"
    """
    for sign, entity in PLAIN.items():
        text = text.replace(sign, entity)
    return text


def title_of(figure: go.Figure) -> str:
    """The title of a figure as a reader sees it, on one line; "" where there is none."""
    return html.unescape((layout_of(figure).title.text or "").replace("<br>", " "))


def _make_plain(figure: go.Figure) -> None:
    """Show names and labels in a figure letter for letter, very long ones without their middle."""
    labels: dict[str, str] = {}
    traces: list[Any] = list(figure.select_traces())
    axes = [*figure.select_xaxes(), *figure.select_yaxes()]
    for trace in traces:
        _replace(trace, ("x", "y", "name"), labels)
        _replace(trace, ("text", "customdata", "meta"))
    for axis in axes:
        _replace(axis, ("ticktext",), labels)
    colorbars = [trace.colorbar for trace in traces if "colorbar" in trace]
    for titled in (*axes, *colorbars):
        _replace(titled.title, ("text",))
    for annotation in layout_of(figure).annotations:
        _replace(annotation, ("text",))


def _replace(properties: BasePlotlyType, names: Iterable[str], labels: dict[str, str] | None = None) -> None:
    """Put plain texts in the place of some of a plotly object's properties, as far as it has them and they hold any."""
    for name in names:
        if name in properties and (texts := _plain_values(properties[name], labels)) is not properties[name]:
            properties[name] = texts


def _plain_values(values: object, labels: dict[str, str] | None) -> object:
    """Texts in a value of a trace, letter for letter but for our own tags; the value itself where it holds none.

    Args:
        values: A text, an array or a nested list.
        labels: Labels of axes -> what is shown of them, which stay different; None where texts are no labels.
    """
    if isinstance(values, str):
        if labels is not None and values not in labels:
            labels[values] = _short_label(values, set(labels.values()))
        shown = values if labels is None else labels[values]
        return "".join(part if OWN_TAGS.fullmatch(part) else plain(part) for part in OWN_TAGS.split(shown))
    if isinstance(values, np.ndarray) and values.dtype.kind in "OU":
        values = values.tolist()
    if not isinstance(values, list | tuple):
        return values
    plain_values = [_plain_values(value, labels) for value in values]
    return values if all(map(operator.is_, plain_values, values)) else plain_values


def _short_label(label: str, others: set[str]) -> str:
    if len(label) <= LONGEST_LABEL:
        return label
    half, number, short = LONGEST_LABEL // 2 - 4, 1, ""
    while not short or short in others:
        short = f"{label[:half]} … {label[-half:]}" + (f" ({number})" if number > 1 else "")
        number += 1
    return short


def legend_above(figure: go.Figure, heading: int = 0) -> go.Figure:
    """Put the legend of a styled figure between title and drawing, with as much room as its entries need.

    Args:
        figure: A figure that ``styled`` returned.
        heading: Pixels that are left for a heading between legend and drawing.
    """
    layout = layout_of(figure)
    traces: list[Any] = list(figure.select_traces())
    names = [trace.name for trace in traces if trace.name and trace.showlegend is not False]
    entries = [LEGEND_KEY + LEGEND_LETTER * len(name) for name in names]
    across = layout.width - layout.margin.l - RIGHT
    columns = max(1, int(across / max(entries, default=1)))  # in several rows, plotly makes all entries as wide
    room = LEGEND_ROW * (1 if sum(entries) <= across else math.ceil(len(names) / columns)) + 8
    old, total = layout.margin.t, layout.height
    room += heading
    foot = 1 + heading / (total - old - layout.margin.b)
    return figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": foot, "xanchor": "left", "yanchor": "bottom"},
        height=total + room,
        margin={"t": old + room},
        title={"y": 1 - (1 - layout.title.y) * total / (total + room)},
    )


def heatmap(
    values: Real[np.ndarray, "row column"],
    rows: Iterable[str],
    columns: Iterable[str | int],
    titles: tuple[str, str] = ("", ""),
    **looks: object,
) -> go.Figure:
    """A heatmap of named rows and columns, the first row on top; shades from 0 to 1 where nothing else is said.

    Args:
        values: What the colours stand for.
        rows: Names of the rows.
        columns: Names, or numbers, of the columns.
        titles: Titles of the axes of rows and of columns.
        looks: Properties of plotly's ``Heatmap``.
    """
    shades = {"colorscale": SHADES, "zmin": 0, "zmax": 1}
    figure = go.Figure(go.Heatmap({"z": values, "x": list(columns), "y": list(rows), **shades, **looks}))
    down, across = ({"title": title, "showgrid": False, "type": "category"} for title in titles)
    return figure.update_layout(xaxis=across, yaxis=down | {"autorange": "reversed"})


def panels(names: Sequence[str], across: int, title: str) -> tuple[go.Figure, list[tuple[int, int]]]:
    """Small multiples on the same axes, each under its name.

    Args:
        names: Names of the panels.
        across: Number of panels side by side, at most.
        title: Title of the horizontal axes, under the lowest panel of each column.

    Returns:
        A figure without traces, and row and column of each panel.
    """
    across = min(across, len(names))
    rows = -(-len(names) // across)
    figure = make_subplots(
        rows,
        across,
        shared_xaxes="all",  # pyright: ignore[reportArgumentType] (its stub lacks "all")
        shared_yaxes="all",  # pyright: ignore[reportArgumentType] (its stub lacks "all")
        subplot_titles=[*names],
        horizontal_spacing=0.025,
        vertical_spacing=0.24 / rows,
    )
    places = [(place // across + 1, place % across + 1) for place in range(len(names))]
    for row, column in places[-across:]:
        figure.update_xaxes(showticklabels=True, title=title, row=row, col=column)
    figure.update_annotations(font={"size": 13})
    return figure, places


def error_bars(rows: pd.DataFrame, value: str, **looks: object) -> dict[str, object]:
    """Bars from the columns low to high around a column, with further properties of plotly's error bars."""
    return {"array": rows["high"] - rows[value], "arrayminus": rows[value] - rows["low"], **looks}


def line_of(place: int) -> dict[str, str]:
    """Colour and dash of a curve by its number among others."""
    return {"color": COLOURS[place % len(COLOURS)], "dash": DASHES[place // len(COLOURS) % len(DASHES)]}


def label_room(labels: Iterable[str], title: bool = False) -> int:
    """Left margin in pixels that labels of the vertical axis need; ``title`` says whether the axis has a title too."""
    letters = min(max(map(len, labels), default=0), LONGEST_LABEL)
    return max(LEFT, round(LABEL_LETTER * letters) + (44 if title else 20))


def broken(text: str, letters: int) -> list[str]:
    """Lines of a text; a per cent sign stays with its number."""
    return textwrap.wrap(text.replace(" %", "\u00a0%"), letters)


def layout_of(figure: go.Figure) -> Any:
    """The figure's layout; plotly's stubs do not know what it holds."""
    return figure.layout


def signed(value: float, digits: int = 2) -> str:
    """Print a number in a figure: with its sign, a true minus, and no sign at all where it rounds to zero.

    Example:
        >>> signed(0.1234), signed(-2.0, 1), signed(-0.001)
        ('+0.12', '−2.0', '0.00')
    """
    if math.isnan(value):
        return MISSING
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def interval(low: float, high: float, digits: int = 2) -> str:
    """Print an interval as ``signed`` prints numbers; nothing where it has no ends."""
    return "" if math.isnan(low) or math.isnan(high) else f"[{signed(low, digits)}, {signed(high, digits)}]"


PICTURES = (".png", ".svg", ".pdf")
KINDS = (".html", *PICTURES)
BELOW = {"x": 0, "xref": "paper", "xanchor": "left", "y": 0, "yref": "paper", "yanchor": "top"}
LINE, LETTER = 15, 5.6  # height of a line and width of a letter of the caption, in pixels
# Buttons that work on the reader's own machine; plotly's others send the figure elsewhere.
TOOLS = {"displaylogo": False, "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]]}


def save(figure: go.Figure, path: str | Path, caption: bool = True) -> Path:
    """Write a figure to a file, its caption and provenance under it.

    Args:
        figure: A figure, such as ``ln.plot.layer_heatmap(neurons)`` returns.
        path: File to write; its ending is .html (needs no network), .png (at twice the figure's size), .svg or .pdf.
        caption: Whether to print caption and provenance under the figure.

    Returns:
        The path.

    Raises:
        LangNeuronsError: If the ending is none of these, or a picture is asked for and kaleido or Chrome is missing.

    Example:
        >>> import tempfile
        >>> figure = ln.plot.layer_heatmap(ln.LAPE(top=0.01).identify(stats))
        >>> ln.plot.save(figure, tempfile.mkdtemp() + "/heatmap.html").name
        'heatmap.html'
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise LangNeuronsError(unknown("kind of file", path.suffix or path.name, KINDS))
    if kind == ".html":
        storage.write_text(path, _page(figure, caption))
        return path
    picture = _picture(_with_caption(figure) if caption else figure, kind[1:])
    with storage.replacing(path) as temporary, temporary.open("wb") as file:
        file.write(picture)
    return path


def _page(figure: go.Figure, caption: bool) -> str:
    return TEMPLATES.get_template("figure.html.jinja").render(
        title=title_of(figure) or "A figure",
        caption=texts_below(figure) if caption else [],
        figure=Markup(figure.to_html(full_html=False, include_plotlyjs=True, config=TOOLS)),  # noqa: S704
        style=Markup(f"body {{ font-family: {FONT}; }}\nfigcaption {{ color: {FAINT}; }}"),  # noqa: S704
    )


def _picture(figure: go.Figure, kind: str) -> bytes:
    try:
        return figure.to_image(format=kind, scale=2 if kind == "png" else 1)
    except (RuntimeError, ValueError) as error:
        # plotly needs several lines to say that kaleido or Chrome is missing.
        if "kaleido" not in str(error).lower() and "chrome" not in str(error).lower():
            raise
        raise LangNeuronsError(
            f"A .{kind} needs kaleido (pip install 'langneurons[figures]') and an installed Chrome or Chromium, and "
            "one of them was not found; a .html needs neither."
        ) from error


def _with_caption(figure: go.Figure) -> go.Figure:
    """A copy with caption and provenance in a margin of their own below."""
    layout = layout_of(figure)
    letters = int(((layout.width or 700) - (layout.margin.l or 80) - (layout.margin.r or 80)) / LETTER)
    lines = [line for text in texts_below(figure) for line in broken(text, letters)]
    if not lines:
        return figure
    room, bottom = LINE * len(lines) + 12, 80 if layout.margin.b is None else layout.margin.b
    copied = go.Figure(figure)
    copied.add_annotation(
        text="<br>".join(map(plain, lines)),
        font={"size": 11, "color": FAINT},
        align="left",
        showarrow=False,
        yshift=-bottom,
        **BELOW,
    )
    height = (layout.height or 450) + room
    copied.update_layout(height=height, margin={"b": bottom + room})
    if layout.title.y is not None:
        copied.update_layout(title={"y": 1 - (1 - layout.title.y) * (height - room) / height})
    return copied


def texts_below(figure: go.Figure) -> list[str]:
    """Caption and provenance, as far as the figure has them."""
    meta = layout_of(figure).meta
    texts = meta if isinstance(meta, dict) else {}
    return [text for text in (texts.get("caption"), texts.get("provenance")) if text]
