"""The report: everything a study found in one HTML file, without server or network."""

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
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from langneurons import storage
from langneurons.analysis.ablation import Ablation
from langneurons.analysis.polysemanticity import Polysemanticity
from langneurons.analysis.profiles import Profiles
from langneurons.analysis.validity.checks import ValidityTable
from langneurons.analysis.validity.staying import Survival
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, LangNeuronsError
from langneurons.evaluation.results import Evaluation, Factorial
from langneurons.storage import Column, Table
from langneurons.training.transfer_table import Transfer
from langneurons.views import plot
from langneurons.views.findings import Findings, answers, provenance
from langneurons.views.glossary import GLOSSARY
from langneurons.views.headline import certainty, headline, leading_kind
from langneurons.views.looks import DARK, TEMPLATE, language_class, language_styles
from langneurons.views.pages import ANCHOR, own_files
from langneurons.views.report_pages import NeuronPages, neuron_pages
from langneurons.views.report_tables import PageTable, neuron_map, neuron_table, table_of
from langneurons.views.style import TEMPLATES, layout_of, plain, title_of
from langneurons.views.tokens import whole_characters

STYLES = ("base.css", "report.css", "neuron_page.css")


def write_report(path: str | Path, findings: Findings) -> Path:
    """Write results as one HTML file that opens anywhere, without server or network.

    The first screen has the question, the answer in three sentences, the figure that shows it, and how sure it is;
    sections follow. Words, tables and the first neuron's page read without a script; the file's own script (the only
    one its content security policy lets run) sorts, filters and saves tables, unpacks the pages and texts of the other
    neurons when they are asked for, explains words and draws the figures.

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
    lead = _lead(parts, findings)
    packs: list[tuple[str, str]] = []
    if findings.profiles is not None:
        (pages,) = (section.finder for section in parts if section.finder is not None)
        packs += [(f"pages-{number}", packed(dumped(part))) for number, part in enumerate(pages.parts)]
        packs += [("neurons-index", packed(dumped(pages.listed))), ("texts", packed_texts(findings.profiles))]
    if lead is not None or any(section.figures for section in parts):
        packs += [("looks", packed(dumped(LOOKS))), ("plotly", packed_plotly())]
    script, first = own_files("report.js"), headline(findings)
    html = TEMPLATES.get_template("report.html.jinja").render(
        title=findings.question,
        answer=first,
        sure=certainty(findings),
        rest=[sentence for sentence in answers(findings) if sentence not in first],
        lead=lead,
        sections=parts,
        glossary=sorted(GLOSSARY.items(), key=lambda item: item[0].lower()),
        style=language_styles() + own_files(*STYLES),
        language_class=language_class,
        main=MAIN,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        packed=packs,
    )
    storage.write_text(Path(path), html)
    return Path(path)


ACTIVATION = Column()
LEVELS = 30  # levels of colour on either side of zero
MIDDLE = 78  # the character code that stands for level 0
MAIN = 2  # figures of a section that are open; more are folded away
# The template of all figures, which none of them carries, and what changes on dark paper.
LOOKS = {"template": TEMPLATE.to_plotly_json(), "dark": DARK}


def dumped(content: object) -> str:
    """JSON without spaces."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


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
    texts: dict[str, list[str]] = {}
    examples = {}
    for neuron in profiles.neurons:
        table, rows = profiles[neuron].examples, []
        sizes = [abs(value) for values in table["values"] for value in values if np.isfinite(value)]
        scale = max(sizes, default=0.0) or 1.0
        for row in table.to_dict("records"):
            whole = whole_characters(profiles.pieces(row["text"]), list(row["values"]))
            texts.setdefault(str(row["text"]), [piece for piece, _ in whole])
            levels = [round(LEVELS * value / scale) if np.isfinite(value) else 0 for _, value in whole]
            text = "".join(chr(MIDDLE + level) for level in levels)
            rows.append([row["language"], row["kind"][0], ACTIVATION.text(row["activation"]), row["text"], text])
        examples[ANCHOR.format(*neuron)] = {"scale": float(f"{scale:.4g}"), "rows": rows}
    return packed(dumped({"texts": texts, "examples": examples}))


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
    """A heading and what stands under it; ``number`` tells sections of several results of one kind apart.

    ``sources`` says what each figure was made from; what is ``folded`` opens when it is asked for.
    """

    anchor: str
    short: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[PageTable] = field(default_factory=list)
    finder: NeuronPages | None = None
    sources: list[str] = field(default_factory=list)
    folded: bool = False
    code: str = ""
    number: int = 1

    def __post_init__(self) -> None:
        if self.number > 1:
            self.anchor, self.short = f"{self.anchor}-{self.number}", f"{self.short} {self.number}"

    def add(self, table: Table, anchor: str, heading: str = "") -> None:
        """Add a table; a caption that stands under a figure already is not repeated."""
        page_table = table_of(table, anchor if self.number == 1 else f"{anchor}-of-{self.number}", heading)
        repeated = any(page_table.caption and page_table.caption in figure.caption for figure in self.figures)
        self.tables.append(replace(page_table, caption="" if repeated else page_table.caption))

    def draw(self, figure: Callable[[], go.Figure], name: str = "") -> None:
        """Add a figure, with a name before its title; where it cannot be drawn, the sentence that says why."""
        try:
            content = figure()
        except LangNeuronsError as error:
            self.paragraphs.append(f"No figure: {error}")
            return
        layout, meta = layout_of(content), layout_of(content).meta or {}
        if name:
            layout.title.text = f"{plain(name)}: {layout.title.text}"
        title = title_of(content) or self.title
        if meta.get("provenance"):
            self.sources.append(f"{title}: {meta['provenance']}.")
        parts = content.to_plotly_json()
        parts["layout"] = {key: part for key, part in parts["layout"].items() if key not in ("template", "meta")}
        json_text = Markup(str(to_json_plotly(parts)).replace("<", "\\u003c"))  # noqa: S704 (no < is left)
        anchor = f"figure-{self.anchor}-{len(self.figures) + 1}"
        self.figures.append(Figure(anchor, title, meta.get("caption", ""), int(layout.height or 400), json_text))


def sections(findings: Findings) -> Iterator[Section]:
    """Make a section of every kind of result, in the order of a study, and of what they were made from."""
    sources = [*provenance(findings)]
    for section in _results(findings):
        sources += section.sources
        yield section
    yield Section("made-from", "Provenance", "What this was made from", sources, folded=True)
    if findings.config:
        yield Section("again", "Run again", "How to get the same again", code=findings.config, folded=True)


def _results(findings: Findings) -> Iterator[Section]:
    if findings.published:
        section = Section("published", "Published", "Published numbers beside measured ones")
        section.paragraphs += findings.published_about
        for number, (heading, table) in enumerate(findings.published.items(), start=1):
            section.add(Table(table), f"published-{number}", heading)
        yield section
    if findings.neurons:
        yield _neurons(findings)
    for kind, (anchor, short, title, fill) in KINDS.items():
        for number, (name, result) in enumerate(findings.each(kind).items(), start=1):
            section = Section(anchor, short, title, number=number)
            fill(section, result, findings)
            section.title += f": {name}" if name else ""
            yield section
    if findings.profiles is not None:
        yield _pages(findings, findings.profiles)


def _lead(parts: list[Section], findings: Findings) -> Figure | None:
    """Take the figure that shows the answer out of its section; where there are only neurons, draw where they are."""
    if kind := leading_kind(findings):
        section = next(section for section in parts if section.anchor == KINDS[kind][0])
        return section.figures.pop(0) if section.figures else None
    first = next(iter(findings.neurons.values()), None)
    section = Section("first", "", "")
    if first is not None:
        section.draw(lambda: plot.layer_heatmap(first))
    return next(iter(section.figures), None)


def _neurons(findings: Findings) -> Section:
    section, methods = Section("which", "Neurons", "Which neurons belong to which language"), dict(findings.neurons)
    section.maps = [neuron_map(method, neurons) for method, neurons in methods.items()]
    section.draw(lambda: plot.layer_profile(methods if len(methods) > 1 else next(iter(methods.values()))))
    for method, neurons in methods.items():
        if len(neurons) and len(neurons.languages) > 1:
            section.draw(lambda neurons=neurons: plot.overlap(neurons), method if len(methods) > 1 else "")
    if len(methods) > 1:
        section.draw(lambda: plot.methods(methods))
    section.tables.append(neuron_table(methods, findings.stats, findings.profiles))
    return section


def _matrix(section: Section, matrix: EffectTable, _: Findings) -> None:
    section.draw(lambda: plot.perplexity_matrix(matrix))
    section.add(matrix.table(), "matrix", "Every effect")
    if matrix.selectivity is not None:
        section.add(matrix.selectivity_table(), "selectivity")


def _sweep(section: Section, sweep: EffectTable, findings: Findings) -> None:
    stats, by_method = findings.stats, {neurons.method: neurons for neurons in findings.neurons.values()}
    for name, method in (sweep.settings.get("methods") or {}).items():
        if stats is None or method not in by_method:
            continue
        for language in sweep.rows.query("method == @name")["patched"].unique():
            section.draw(
                lambda name=name, method=method, language=str(language): plot.dose_response(
                    sweep, stats, by_method[method], language, name
                )
            )
    section.add(sweep.table(), "sweep", "Every dose")


def _evaluation(section: Section, evaluation: Evaluation, _: Findings) -> None:
    pairs = evaluation.rows[["task", "protocol"]].drop_duplicates().astype(str)
    for number, (task, protocol) in enumerate(pairs.itertuples(index=False), start=1):
        try:
            table = evaluation.effects(task, protocol)
        except EffectError:
            continue  # nothing was patched: there are scores only
        section.draw(lambda table=table: plot.effects(table))
        section.add(table.table(), f"effects-{number}", f"Effects on {task} ({protocol})")
    section.add(evaluation.table(), "scores", "Scores")


def _factorial(section: Section, factorial: Factorial, _: Findings) -> None:
    section.paragraphs.append(factorial.conclusion)
    section.add(factorial.table(), "cells", "Each cell over its languages")
    if len(factorial.opposites):
        section.add(Table(factorial.opposites, title="Cells with opposite significant signs"), "opposites")


def _transfer(section: Section, transfer: Transfer, _: Findings) -> None:
    section.draw(lambda: plot.transfer(transfer))
    if len(transfer.conditions) > 1:
        table = transfer.effects(transfer.reference)
        section.draw(lambda: plot.effects(table))
        section.add(table.table(), "transfer-effects", f"Effects against {table.settings['against']}")
    section.add(transfer.table(), "transfer-scores", "Scores")


def _ablation(section: Section, ablation: Ablation, _: Findings) -> None:
    section.draw(lambda: plot.ablation(ablation))
    section.add(ablation.table(), "ablations", "Effects, the largest first")


def _polysemanticity(section: Section, result: Polysemanticity, _: Findings) -> None:
    section.title += f": {result.settings['task']}"
    section.draw(lambda: plot.selectivity(result))
    section.add(result.sets_table(), "sets", "Neurons of each set that carry it, beside controls")
    section.add(result.table(top=None), "carriers", "Neurons, those that carry most first")


def _validity(section: Section, validity: ValidityTable, _: Findings) -> None:
    section.draw(lambda: plot.validity(validity))
    section.add(validity.table(), "checks", "Every check")


def _survival(section: Section, survival: Survival, _: Findings) -> None:
    section.add(survival.table(), "survival", "Neurons that stay, by condition and language")


# Kind of result -> anchor, short and long title of its section, and what fills it.
KINDS: dict[str, tuple[str, str, str, Callable[[Section, Any, Findings], None]]] = {
    "matrix": ("patching", "Patching", "What patching each language's neurons does to the loss", _matrix),
    "sweep": ("dose", "Dose", "What values written at the neurons do", _sweep),
    "evaluation": ("tasks", "Tasks", "What patches do to tasks", _evaluation),
    "factorial": ("factorial", "Factorial", "Which choices reverse the sign of an effect", _factorial),
    "transfer": ("transfer", "Transfer", "What training neurons does to other languages", _transfer),
    "ablation": ("ablation", "Ablation", "What ablating a neuron changes", _ablation),
    "polysemanticity": ("carried", "Carried", "What else the neurons carry", _polysemanticity),
    "validity": ("validity", "Validity", "Are the scores real?", _validity),
    "survival": ("survival", "Altered text", "Language or script, language or words?", _survival),
}


def _pages(findings: Findings, profiles: Profiles) -> Section:
    section = Section("pages", "Neuron pages", f"{len(profiles):,} neurons, one by one")
    section.finder = neuron_pages(findings, profiles)
    settings = profiles.settings
    section.paragraphs.append(
        f"Texts: the first {settings['context_length']} tokens of at most {settings['documents'] or 'all'} documents "
        "per language; each language shows its strongest text around the strongest token (marked). Output tokens: the "
        "direct path only, through the final norm's weight and the unembedding; point at one to see what a value of 1 "
        "adds to its logit." + " Where up is negative, promoted and suppressed tokens swap." * settings["gated"]
    )
    return section
