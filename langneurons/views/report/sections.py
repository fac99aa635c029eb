"""The sections of a report, one for each kind of result."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, LangNeuronsError
from langneurons.evaluation.evaluation import Evaluation
from langneurons.evaluation.factorial_table import Factorial
from langneurons.training.transfer_table import Transfer
from langneurons.views import plot
from langneurons.views.analysis_figures import Checked
from langneurons.views.pages import page_content, rendered
from langneurons.views.report.findings import Findings
from langneurons.views.report.tables import Table, effects_table, neuron_map, neuron_table, table_of


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
    tables: list[Table] = field(default_factory=list)
    pages: list[Markup] = field(default_factory=list)
    code: str = ""

    def draw(self, figure: Callable[[], go.Figure]) -> None:
        """Add a figure; where it cannot be drawn, the sentence that says why."""
        try:
            drawn = figure()
        except LangNeuronsError as error:
            self.paragraphs.append(f"No figure: {error}")
            return
        content: Any = json.loads(str(drawn.to_json()))
        layout, meta = content["layout"], content["layout"].get("meta") or {}
        title = layout.get("title", {}).get("text", self.title).replace("<br>", " ")
        caption = " ".join(part for part in (meta.get("caption", ""), meta.get("provenance", "")) if part)
        text = Markup(json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"))  # noqa: S704 (no < is left)
        anchor = f"figure-{self.anchor}-{len(self.figures) + 1}"
        self.figures.append(Figure(anchor, title, caption, int(layout.get("height", 400)), text))


def sections(findings: Findings) -> Iterator[Section]:
    """Make the sections of what there is, in the order of a study."""
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
        yield Section("again", "Run again", "To get the same again", code=findings.config)


def _several(section: Section, name: str, number: int) -> Section:
    """Tell the sections of several results of a kind apart: by name for the reader, by number in anchors."""
    if name:
        section.title = f"{section.title}: {name}"
    if number > 1:
        section.anchor = f"{section.anchor}-{number}"
        section.short = f"{section.short} {number}"
        section.figures = [
            replace(one, anchor=f"figure-{section.anchor}-{place}")
            for place, one in enumerate(section.figures, start=1)
        ]
        section.tables = [replace(one, anchor=f"{one.anchor}-of-{number}") for one in section.tables]
    return section


def _neurons(findings: Findings) -> Section:
    section = Section("which", "Neurons", "Which neurons belong to which language")
    methods = dict(findings.neurons)
    section.maps = [neuron_map(method, found) for method, found in methods.items()]
    section.draw(lambda: plot.layer_profile(methods if len(methods) > 1 else next(iter(methods.values()))))
    for method, found in methods.items():
        if len(found) and len(found.languages) > 1:
            section.draw(lambda found=found, method=method: _named(plot.overlap(found), method, len(methods)))
    if len(methods) > 1:
        section.draw(lambda: plot.methods(methods))
    section.tables.append(neuron_table(methods, findings.stats, findings.profiles))
    return section


def _named(figure: go.Figure, method: str, methods: int) -> go.Figure:
    """Say in a figure's title which of several methods it is about."""
    if methods > 1:
        layout: Any = figure.layout
        figure.update_layout(title={"text": f"{method}: {layout.title.text}"})
    return figure


def _matrix(findings: Findings, matrix: EffectTable) -> Section:
    section = Section("patching", "Patching", "What patching each language's neurons does to the loss")
    section.draw(lambda: plot.perplexity_matrix(matrix))
    section.tables.append(effects_table(matrix, "matrix", "Every effect"))
    if matrix.selectivity is not None:
        caption = "Change of the patched language's loss minus the others' mean, beside matched controls."
        section.tables.append(table_of(matrix.selectivity, "selectivity", "Selectivity", caption))
    return section


def _sweep(findings: Findings, sweep: EffectTable) -> Section:
    stats = findings.stats
    section = Section("dose", "Dose", "What values written at the neurons do")
    neurons = next(iter(findings.neurons.values()), None)
    if stats is not None and neurons is not None:
        for language in sweep.rows["patched"].unique():
            section.draw(lambda language=language: plot.dose_response(sweep, stats, neurons, str(language)))
    section.tables.append(effects_table(sweep, "sweep", "Every dose"))
    return section


def _evaluation(findings: Findings, evaluation: Evaluation) -> Section:
    section = Section("tasks", "Tasks", "What patches do to tasks")
    scores = table_of(evaluation.scores.round(4), "scores", "Scores", "Shares from 0 to 1, with 95 % intervals.")
    for number, (task, protocol) in enumerate(_tasks(evaluation), start=1):
        try:
            table = evaluation.effects(task, protocol)
        except EffectError:
            continue  # nothing was patched: there are scores only
        section.draw(lambda table=table: plot.effects(table))
        section.tables.append(effects_table(table, f"effects-{number}", f"Effects on {task} ({protocol})"))
    section.tables.append(scores)
    return section


def _published(findings: Findings) -> Section:
    section = Section("published", "Published", "Published against measured", list(findings.published_about))
    for number, (heading, table) in enumerate(findings.published.items(), start=1):
        section.tables.append(table_of(table, f"published-{number}", heading))
    return section


def _factorial(findings: Findings, factorial: Factorial) -> Section:
    section = Section("factorial", "Factorial", "Which choice turns the sign of an effect around")
    section.paragraphs.append(factorial.conclusion)
    caption = "Estimates are differences of scores, 0.01 is one point; the effects of every cell are one family a task."
    section.tables.append(table_of(factorial.summary.round(4), "cells", "Each cell over its languages", caption))
    if len(factorial.opposites):
        section.tables.append(table_of(factorial.opposites, "opposites", "Cells with opposite significant signs"))
    return section


def _tasks(evaluation: Evaluation) -> list[tuple[str, str]]:
    pairs = evaluation.rows[["task", "protocol"]].drop_duplicates()
    return [(str(task), str(protocol)) for task, protocol in pairs.itertuples(index=False)]


def _transfer(findings: Findings, transfer: Transfer) -> Section:
    section = Section("transfer", "Transfer", "What training neurons is worth in other languages")
    section.draw(lambda: plot.transfer(transfer))
    if len(transfer.conditions) > 1:
        table = transfer.effects(transfer.reference)
        section.draw(lambda: plot.transfer(table))
        section.tables.append(effects_table(table, "transfer-effects", f"Effects against {table.settings['against']}"))
    caption = "Means over training seeds, with 95 % intervals."
    section.tables.append(table_of(transfer.scores(), "transfer-scores", "Scores", caption))
    return section


def _ablation(findings: Findings, ablation: Ablation) -> Section:
    section = Section("ablation", "Ablation", "What is lost without a neuron")
    section.draw(lambda: plot.ablation(ablation))
    section.tables.append(
        table_of(ablation.table().texts(), "ablations", "Effects, the largest first", ablation.caption)
    )
    return section


def _polysemanticity(findings: Findings, found: Polysemanticity) -> Section:
    section = Section("carried", "Carried", f"What else the neurons carry: {found.settings['task']}")
    section.draw(lambda: plot.selectivity(found))
    section.tables.append(table_of(found.sets.round(4), "sets", "How many neurons of each set", "Beside controls."))
    section.tables.append(
        table_of(found.table(top=None).frame.round(4), "carriers", "Neurons, those that carry most first")
    )
    return section


def _validity(findings: Findings, validity: Checked) -> Section:
    section = Section("validity", "Validity", "Are the scores real?")
    section.draw(lambda: plot.validity(validity))
    measured = validity.rows.dropna(axis="columns", how="all")
    bars = "; ".join(str(check) for check in validity.checks)
    section.tables.append(table_of(measured.round(3), "checks", "Every check", f"Bars: {bars}."))
    return section


def _pages(findings: Findings) -> Section:
    profiles = findings.profiles
    assert profiles is not None
    section = Section("pages", "Neuron pages", f"{len(profiles):,} neurons, one by one")
    given = findings.stats, findings.first("polysemanticity"), findings.first("ablation"), findings.neurons
    for neuron in profiles.neurons:
        section.pages.append(rendered(page_content(profiles, neuron, *given), brief=True))
    about = profiles.settings
    section.paragraphs.append(
        f"Texts: the first {about['context_length']} tokens of at most {about['documents'] or 'all'} documents a "
        f"language; each language shows its strongest text around the strongest token (marked). Output tokens: the "
        "direct path only, through the final norm's weight and the unembedding; rest on one to see what a value of 1 "
        "adds to its logit." + " The gate's other factor can be negative and then turns them round." * about["gated"]
    )
    return section


def _provenance(findings: Findings) -> Section:
    section = Section("made-from", "Provenance", "What this was made from")
    section.paragraphs = list(provenance(findings))
    return section


def provenance(findings: Findings) -> Iterator[str]:
    """Say what everything was made from."""
    if (stats := findings.stats) is not None:
        counted = ", ".join(f"{name} {int(n):,}" for name, n in zip(stats.languages, stats.tokens, strict=True))
        yield (
            f"Statistics: {stats.model.name}, weights {stats.model.fingerprint}, {stats.model.dtype}; site "
            f"{', '.join(stats.sites)}; counted tokens {counted}; context {stats.context_length}."
        )
    for method, found in findings.neurons.items():
        yield f"Neurons, {method}: {found.method}; site {found.site}; model {found.model or 'unknown'}."
    if (profiles := findings.profiles) is not None:
        about = profiles.settings
        yield f"Profiles: weights {profiles.fingerprint}; corpus {about['corpus']}; seed {about['seed']}."
    for kind in ("matrix", "sweep", "evaluation", "transfer", "ablation"):
        for name, result in findings.each(kind).items():
            yield f"{kind.capitalize()}{f' {name}' if name else ''}: {_settings(result.settings)}."
    yield from findings.provenance
    yield f"langneurons {version('langneurons')}."


def _settings(settings: Any) -> str:
    """Settings that are one word or number, as a line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items() if isinstance(value, str | int | float))
