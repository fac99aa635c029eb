"""One HTML page of sentences, tables and figures that opens anywhere, without server or network."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from langneurons import storage

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("langneurons.views"), autoescape=True, undefined=jinja2.StrictUndefined
)


def write_page(
    path: str | Path,
    title: str,
    introduction: Sequence[str],
    tables: Sequence[tuple[str, pd.DataFrame]],
    figures: Sequence[tuple[go.Figure, str]],
    provenance: Sequence[str],
) -> Path:
    """Write a page; every text is escaped.

    Args:
        path: The file to write.
        title: Its heading.
        introduction: Paragraphs.
        tables: Pairs of heading and table.
        figures: Pairs of figure and caption.
        provenance: Lines that say what the page was made from.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> file = write_page(tempfile.mkdtemp() + "/page.html", "A <b>title</b>", ["One."], [], [], [])
        >>> "A &lt;b&gt;title" in file.read_text()
        True
    """
    drawn = [
        (
            figure.to_html(
                full_html=False, include_plotlyjs=False, div_id=f"figure-{number}", config={"displaylogo": False}
            ),
            caption,
        )
        for number, (figure, caption) in enumerate(figures, start=1)
    ]
    html = _TEMPLATES.get_template("page.html.jinja").render(
        title=title,
        introduction=introduction,
        tables=tables,
        figures=drawn,
        provenance=provenance,
        plotly=get_plotlyjs() if drawn else "",
    )
    storage.write_text(Path(path), html)
    return Path(path)
