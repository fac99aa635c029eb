"""Writing the report: sections, style, script and what the script needs, in one file."""

import base64
import gzip
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from langneurons import storage
from langneurons.analysis.profiles import Profiles
from langneurons.views.pages import ANCHOR, TEMPLATES, own_file
from langneurons.views.report.answers import answers
from langneurons.views.report.findings import Findings
from langneurons.views.report.sections import sections
from langneurons.views.tokens import whole_characters

STYLES = ("base", "report", "neuron_page")


def write_report(path: str | Path, findings: Findings) -> Path:
    """Write everything that was found as one HTML file that opens anywhere, without server or network.

    Words, tables and neuron pages read without a script; the file's own script (the only one its content security
    policy lets run) sorts and filters tables, leads from the map of layers and languages to lists, shows all texts of a
    neuron and draws the figures.

    Args:
        path: The file to write.
        findings: What was found.

    Returns:
        The path.

    Raises:
        StatisticsError: If there is no result.
        StaleArtefactError: If results belong to different models or sites.

    Example:
        >>> import tempfile
        >>> neurons = {"LAPE": ln.LAPE(top=0.01).identify(stats)}
        >>> findings = ln.Findings("Whose neurons are <these>?", stats=stats, neurons=neurons)
        >>> file = ln.write_report(tempfile.mkdtemp() + "/report.html", findings)
        >>> "Whose neurons are &lt;these&gt;?" in file.read_text("utf-8")
        True
    """
    findings.check()
    made = list(sections(findings))
    script = own_file("report.js")
    carried = []
    if findings.profiles is not None:
        carried.append(("texts", packed_texts(findings.profiles)))
    if any(section.figures for section in made):
        carried.append(("plotly", packed_plotly()))
    html = TEMPLATES.get_template("report.html.jinja").render(
        title=findings.question,
        answer=list(answers(findings)),
        sections=made,
        style=Markup("".join(own_file(f"{name}.css") for name in STYLES)),  # noqa: S704 (our own files)
        script=Markup(script),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        packed=carried,
    )
    storage.write_text(Path(path), html)
    return Path(path)


LEVELS = 30  # of colour, on either side of zero
MIDDLE = 78  # the character code that stands for level 0


def packed(text: str) -> str:
    """Compress a text for a script element; ``DecompressionStream`` reads it back."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def packed_plotly() -> str:
    """The plotly that draws the figures, 4.7 MB of it in 1.9 MB."""
    return packed(get_plotlyjs())


def packed_texts(profiles: Profiles) -> str:
    """Every text of every neuron, each text once, values as levels of colour.

    Returns:
        Compressed JSON: texts, "text -> whole characters"; and examples, anchor -> scale and rows of language, kind
        (its first letter), activation, number of the text, and one character a piece for its value.
    """
    pieces: dict[int, list[str]] = {}
    examples = {}
    for neuron in profiles.neurons:
        found = profiles[neuron].examples.to_dict("records")
        finite = [abs(value) for row in found for value in row["values"] if np.isfinite(value)]
        scale = max(finite, default=0.0) or 1.0
        rows = [_row(row, pieces, profiles, scale) for row in found]
        examples[ANCHOR.format(*neuron)] = {"scale": float(f"{scale:.4g}"), "rows": rows}
    return packed(script_json({"texts": {str(text): kept for text, kept in pieces.items()}, "examples": examples}))


def script_json(content: Any) -> str:
    """JSON that can stand inside a script element, whatever text it holds."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _row(row: dict[str, Any], pieces: dict[int, list[str]], profiles: Profiles, scale: float) -> list[Any]:
    whole = whole_characters(profiles.pieces(row["text"]), list(row["values"]))
    pieces.setdefault(row["text"], [piece for piece, _ in whole])
    levels = "".join(chr(MIDDLE + (round(LEVELS * value / scale) if np.isfinite(value) else 0)) for _, value in whole)
    return [row["language"], row["kind"][0], f"{row['activation']:.3g}".replace("-", "−"), row["text"], levels]
