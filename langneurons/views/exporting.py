"""Writing figures to files: a page that needs no network, or a picture for a paper."""

import html
from pathlib import Path

import plotly.graph_objects as go

from langneurons import storage
from langneurons.errors import LangNeuronsError, unknown
from langneurons.views.style import FAINT, FONT, broken, layout_of

PICTURES = (".png", ".svg", ".pdf")
KINDS = (".html", *PICTURES)
LINE, LETTER = 15, 5.6  # pixels a line and a letter of the caption
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 {font}; color: #222; background: #fff; margin: 1rem; }}
figure {{ margin: 0; overflow-x: auto; }}
figcaption {{ color: {faint}; font-size: .88rem; max-width: 48rem; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<figure>
{figure}
<figcaption>{caption}</figcaption>
</figure>
</body>
</html>
"""

# Only what works on the reader's own machine: nothing that sends a figure elsewhere.
TOOLS = {"displaylogo": False, "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]]}


def save(figure: go.Figure, path: str | Path, caption: bool = True) -> Path:
    """Write a figure to a file, its caption and provenance under it.

    Args:
        figure: Such as ``ln.plot.layer_heatmap(neurons)``.
        path: Its ending says what is written: .html (holds all it needs, opens without network), .png (at twice the
            figure's size), .svg or .pdf.
        caption: Whether caption and provenance stand under the figure.

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
    title = " ".join((layout_of(figure).title.text or "A figure").split("<br>"))
    below = "<br>".join(html.escape(line) for line in _said(figure)) if caption else ""
    drawn = figure.to_html(full_html=False, include_plotlyjs=True, config=TOOLS)
    return PAGE.format(title=html.escape(title), font=FONT, faint=FAINT, figure=drawn, caption=below)


def _picture(figure: go.Figure, kind: str) -> bytes:
    try:
        return figure.to_image(format=kind, scale=2 if kind == "png" else 1)
    except (RuntimeError, ValueError) as error:
        # plotly says in several lines that kaleido or Chrome is missing; other errors are not ours to explain.
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
    lines = [line for text in _said(figure) for line in broken(text, letters)]
    if not lines:
        return figure
    room, bottom = LINE * len(lines) + 12, 80 if layout.margin.b is None else layout.margin.b
    copied = go.Figure(figure)
    copied.add_annotation(
        text="<br>".join(html.escape(line, quote=False) for line in lines),
        font={"size": 11, "color": FAINT},
        align="left",
        showarrow=False,
        x=0,
        xref="paper",
        xanchor="left",
        y=0,
        yref="paper",
        yanchor="top",
        yshift=-bottom,
    )
    height = (layout.height or 450) + room
    copied.update_layout(height=height, margin={"b": bottom + room})
    if layout.title.y is not None:
        copied.update_layout(title={"y": 1 - (1 - layout.title.y) * (height - room) / height})
    return copied


def _said(figure: go.Figure) -> list[str]:
    meta = layout_of(figure).meta
    known = meta if isinstance(meta, dict) else {}
    return [text for text in (known.get("caption"), known.get("provenance")) if text]
