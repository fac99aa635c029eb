"""Writing the report: sections, style, script and what the script needs, in one file."""

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

from langneurons import storage
from langneurons.views.neuron_page import TEMPLATES, own_file
from langneurons.views.report.answers import answers
from langneurons.views.report.embedding import packed_plotly, packed_texts
from langneurons.views.report.findings import Findings
from langneurons.views.report.sections import sections

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
