"""Writing the report: its sections, style, script and what the script needs, in one file."""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from langneurons import storage
from langneurons.analysis.ablation import Ablation
from langneurons.analysis.profiles import Profiles
from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, LangNeuronsError
from langneurons.evaluation.results import Evaluation, Factorial
from langneurons.storage.presenting import Column, Table
from langneurons.training.transfer_table import Transfer
from langneurons.views import plot
from langneurons.views.analysis_figures import Checked
from langneurons.views.pages import ANCHOR, TEMPLATES, own_file, page_content, rendered
from langneurons.views.report.findings import Findings, answers, provenance
from langneurons.views.report.tables import PageTable, neuron_map, neuron_table, table_of
from langneurons.views.tokens import whole_characters

STYLES = ("base", "report", "neuron_page")


def write_report(path: str | Path, findings: Findings) -> Path:
    """Write results as one HTML file that opens anywhere, without server or network.

    Words, tables and neuron pages read without a script; the file's own script (the only one its content security
    policy lets run) sorts and filters tables, leads from the map of layers and languages to lists, shows all texts of a
    neuron and draws the figures.

    Args:
        path: File to write.
        findings: Results, and what to say about them.

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
    parts = list(sections(findings))
    script = own_file("report.js")
    packs = []
    if findings.profiles is not None:
        packs.append(("texts", packed_texts(findings.profiles)))
    if any(section.figures for section in parts):
        packs.append(("plotly", packed_plotly()))
    html = TEMPLATES.get_template("report.html.jinja").render(
        title=findings.question,
        answer=list(answers(findings)),
        sections=parts,
        style=Markup("".join(own_file(f"{name}.css") for name in STYLES)),  # noqa: S704 (our own files)
        script=Markup(script),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        packed=packs,
    )
    storage.write_text(Path(path), html)
    return Path(path)


ACTIVATION = Column()
LEVELS = 30  # levels of colour on either side of zero
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
        rows = profiles[neuron].examples.to_dict("records")
        finite = [abs(value) for row in rows for value in row["values"] if np.isfinite(value)]
        scale = max(finite, default=0.0) or 1.0
        packed_rows = [_row(row, pieces, profiles, scale) for row in rows]
        examples[ANCHOR.format(*neuron)] = {"scale": float(f"{scale:.4g}"), "rows": packed_rows}
    texts = {str(text): whole for text, whole in pieces.items()}
    return packed(script_json({"texts": texts, "examples": examples}))


def script_json(content: Any) -> str:
    """JSON that can stand inside a script element, whatever text it holds."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _row(row: dict[str, Any], pieces: dict[int, list[str]], profiles: Profiles, scale: float) -> list[Any]:
    whole = whole_characters(profiles.pieces(row["text"]), list(row["values"]))
    pieces.setdefault(row["text"], [piece for piece, _ in whole])
    levels = "".join(chr(MIDDLE + (round(LEVELS * value / scale) if np.isfinite(value) else 0)) for _, value in whole)
    return [row["language"], row["kind"][0], ACTIVATION.text(row["activation"]), row["text"], levels]


@dataclass(frozen=True)
class Figure:
    """A plotly figure that the reader's browser draws."""

    anchor: str
    title: str
    caption: str
    height: int
    json: Markup


@dataclass
class Section:
    """A heading and what stands under it."""

    anchor: str
    short: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[PageTable] = field(default_factory=list)
    pages: list[Markup] = field(default_factory=list)
    code: str = ""

    def add(self, table: Table, anchor: str, heading: str = "") -> None:
        """Add a table; a caption that stands under a figure already is not repeated."""
        page_table = table_of(table, anchor, heading)
        repeated = any(page_table.caption and page_table.caption in figure.caption for figure in self.figures)
        self.tables.append(replace(page_table, caption="" if repeated else page_table.caption))

    def draw(self, figure: Callable[[], go.Figure]) -> None:
        """Add a figure; where it cannot be drawn, the sentence that says why."""
        try:
            content: Any = json.loads(str(figure().to_json()))
        except LangNeuronsError as error:
            self.paragraphs.append(f"No figure: {error}")
            return
        layout, meta = content["layout"], content["layout"].get("meta") or {}
        title = layout.get("title", {}).get("text", self.title).replace("<br>", " ")
        caption = " ".join(part for part in (meta.get("caption", ""), meta.get("provenance", "")) if part)
        text = Markup(json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"))  # noqa: S704 (no < is left)
        anchor = f"figure-{self.anchor}-{len(self.figures) + 1}"
        self.figures.append(Figure(anchor, title, caption, int(layout.get("height", 400)), text))


def sections(findings: Findings) -> Iterator[Section]:
    """Make a section of every kind of result, in the order of a study."""
    if findings.published:
        yield _published(findings)
    if findings.neurons:
        yield _neurons(findings)
    makers = {
        "matrix": _matrix,
        "sweep": _sweep,
        "evaluation": _evaluation,
        "factorial": _factorial,
        "transfer": _transfer,
        "ablation": _ablation,
        "polysemanticity": _polysemanticity,
        "validity": _validity,
    }
    for kind, make in makers.items():
        for number, (name, result) in enumerate(findings.each(kind).items(), start=1):
            yield _several(make(findings, result), name, number)
    if findings.profiles is not None:
        yield _pages(findings)
    yield _provenance(findings)
    if findings.config:
        yield Section("again", "Run again", "How to get the same again", code=findings.config)


def _several(section: Section, name: str, place: int) -> Section:
    """Tell the sections of several results of a kind apart: by name for the reader, by number in anchors."""
    if name:
        section.title = f"{section.title}: {name}"
    if place > 1:
        section.anchor = f"{section.anchor}-{place}"
        section.short = f"{section.short} {place}"
        section.figures = [
            replace(figure, anchor=f"figure-{section.anchor}-{number}")
            for number, figure in enumerate(section.figures, start=1)
        ]
        section.tables = [replace(table, anchor=f"{table.anchor}-of-{place}") for table in section.tables]
    return section


def _neurons(findings: Findings) -> Section:
    section = Section("which", "Neurons", "Which neurons belong to which language")
    methods = dict(findings.neurons)
    section.maps = [neuron_map(method, neurons) for method, neurons in methods.items()]
    section.draw(lambda: plot.layer_profile(methods if len(methods) > 1 else next(iter(methods.values()))))
    for method, neurons in methods.items():
        if len(neurons) and len(neurons.languages) > 1:
            section.draw(lambda neurons=neurons, method=method: _named(plot.overlap(neurons), method, len(methods)))
    if len(methods) > 1:
        section.draw(lambda: plot.methods(methods))
    section.tables.append(neuron_table(methods, findings.stats, findings.profiles))
    return section


def _named(figure: go.Figure, method: str, methods: int) -> go.Figure:
    """Name the method in a figure's title, where there are several."""
    if methods > 1:
        layout: Any = figure.layout
        figure.update_layout(title={"text": f"{method}: {layout.title.text}"})
    return figure


def _matrix(findings: Findings, matrix: EffectTable) -> Section:
    section = Section("patching", "Patching", "What patching each language's neurons does to the loss")
    section.draw(lambda: plot.perplexity_matrix(matrix))
    section.add(matrix.table(), "matrix", "Every effect")
    if matrix.selectivity is not None:
        section.add(matrix.selectivity_table(), "selectivity")
    return section


def _sweep(findings: Findings, sweep: EffectTable) -> Section:
    stats = findings.stats
    section = Section("dose", "Dose", "What values written at the neurons do")
    neurons = next(iter(findings.neurons.values()), None)
    if stats is not None and neurons is not None:
        for language in sweep.rows["patched"].unique():
            section.draw(lambda language=language: plot.dose_response(sweep, stats, neurons, str(language)))
    section.add(sweep.table(), "sweep", "Every dose")
    return section


def _evaluation(findings: Findings, evaluation: Evaluation) -> Section:
    section = Section("tasks", "Tasks", "What patches do to tasks")
    pairs = evaluation.rows[["task", "protocol"]].drop_duplicates().astype(str)
    for number, (task, protocol) in enumerate(pairs.itertuples(index=False), start=1):
        try:
            table = evaluation.effects(task, protocol)
        except EffectError:
            continue  # nothing was patched: there are scores only
        section.draw(lambda table=table: plot.effects(table))
        section.add(table.table(), f"effects-{number}", f"Effects on {task} ({protocol})")
    section.add(evaluation.table(), "scores", "Scores")
    return section


def _published(findings: Findings) -> Section:
    section = Section("published", "Published", "Published numbers beside measured ones", [*findings.published_about])
    for number, (heading, table) in enumerate(findings.published.items(), start=1):
        section.add(Table(table), f"published-{number}", heading)
    return section


def _factorial(findings: Findings, factorial: Factorial) -> Section:
    section = Section("factorial", "Factorial", "Which choices reverse the sign of an effect")
    section.paragraphs.append(factorial.conclusion)
    section.add(factorial.table(), "cells", "Each cell over its languages")
    if len(factorial.opposites):
        opposites = Table(factorial.opposites, title="Cells with opposite significant signs")
        section.add(opposites, "opposites")
    return section


def _transfer(findings: Findings, transfer: Transfer) -> Section:
    section = Section("transfer", "Transfer", "What training neurons does to other languages")
    section.draw(lambda: plot.transfer(transfer))
    if len(transfer.conditions) > 1:
        table = transfer.effects(transfer.reference)
        section.draw(lambda: plot.effects(table))
        against = f"Effects against {table.settings['against']}"
        section.add(table.table(), "transfer-effects", against)
    section.add(transfer.table(), "transfer-scores", "Scores")
    return section


def _ablation(findings: Findings, ablation: Ablation) -> Section:
    section = Section("ablation", "Ablation", "What ablating a neuron changes")
    section.draw(lambda: plot.ablation(ablation))
    section.add(ablation.table(), "ablations", "Effects, the largest first")
    return section


def _polysemanticity(findings: Findings, result: Polysemanticity) -> Section:
    section = Section("carried", "Carried", f"What else the neurons carry: {result.settings['task']}")
    section.draw(lambda: plot.selectivity(result))
    section.add(result.sets_table(), "sets", "Neurons of each set that carry it, beside controls")
    section.add(result.table(top=None), "carriers", "Neurons, those that carry most first")
    return section


def _validity(findings: Findings, validity: Checked) -> Section:
    section = Section("validity", "Validity", "Are the scores real?")
    section.draw(lambda: plot.validity(validity))
    section.add(validity.table(), "checks", "Every check")
    return section


def _pages(findings: Findings) -> Section:
    profiles = findings.profiles
    assert profiles is not None
    section = Section("pages", "Neuron pages", f"{len(profiles):,} neurons, one by one")
    results = findings.stats, findings.first("polysemanticity"), findings.first("ablation"), findings.neurons
    for neuron in profiles.neurons:
        section.pages.append(rendered(page_content(profiles, neuron, *results), brief=True))
    settings = profiles.settings
    section.paragraphs.append(
        f"Texts: the first {settings['context_length']} tokens of at most {settings['documents'] or 'all'} documents "
        "per language; each language shows its strongest text around the strongest token (marked). Output tokens: the "
        "direct path only, through the final norm's weight and the unembedding; point at one to see what a value of 1 "
        "adds to its logit." + " The gate's other factor can be negative, which reverses them." * settings["gated"]
    )
    return section


def _provenance(findings: Findings) -> Section:
    return Section("made-from", "Provenance", "What this was made from", [*provenance(findings)])
