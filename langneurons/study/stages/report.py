"""The report: everything that was found in each model, and published numbers against the measured ones."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import langneurons as ln
from langneurons import storage
from langneurons.analysis.validity.checks import ValidityTable
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, StorageError
from langneurons.evaluation.results import AT, MEASURED, UNPATCHED, Evaluation, Factorial
from langneurons.replication.published import Claim, Published, TrainingRow, listed, read_published
from langneurons.study.stages import Plan, Stage, Step
from langneurons.study.tables import Part, StudyConfig
from langneurons.study.work import Work
from langneurons.training.conditions import NONE
from langneurons.training.transfer_table import Transfer
from langneurons.views.findings import of_matrix
from langneurons.views.style import interval, signed

PAGE = "report.html"
SINGLE = ("stats", "validity", "profiles")  # sections that show one result
DEEPEST = 4  # folders below the one that is read
# Kind of result -> the section of a report that shows it.
SECTIONS = {
    "activation-statistics": "stats",
    "neuron-set": "neurons",
    "effect-table": "matrix",
    "validity-table": "validity",
    **{kind: kind for kind in ("evaluation", "transfer", "ablation", "polysemanticity", "survival", "profiles")},
}
# Columns of an effect table -> what a comparison of protocols calls them.
COMPARED = {"baseline": "base", "condition": "patched", "minimal_detectable": "detectable"}
THERE = "published protocol, here"
Row = Mapping[Hashable, Any]  # of a table


class ReportStage(Stage[Part], name="report"):
    """The pages that a study ends with: one for each model, with everything that was found in it."""

    def part_of(self, config: StudyConfig, step: Step) -> Part:
        """The whole study."""
        return config

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One, that reads all other steps."""
        config = plan.config
        settings: dict[str, Any] = {"question": config.question}
        if config.published is not None:
            names = {
                f"{table}.{name}": part.published_as
                for table in ("models", "methods", "patches")
                for name, part in getattr(config, table).items()
            }
            settings |= {"numbers": plan.source("numbers", config.published), "published_as": names}
        yield Step(self, settings, tuple(plan.steps.values()), model)

    def run(self, step: Step, part: Part, work: Work) -> Any:
        """Write the report of every model; that of the first is ``report.html``.

        Raises:
            StudyError: If no step has a result, or the published numbers cannot be read.
        """
        for number, model in enumerate(work.config.models):
            page = PAGE if number == 0 else f"report-{model}.html"
            ln.write_report(work.result(step) / page, findings_of(step, work, model))


REPORT = ReportStage()


def findings_of(report: Step, work: Work, model: str) -> ln.Findings:
    """Read everything that was found in one model.

    Args:
        report: The step of the report.
        work: Knows the study and the folder of its results.
        model: Name of the model in the study.
    """
    from langneurons.study.config import as_toml

    config = work.config
    steps = [step for step in report.inputs if step.model == model]
    finished = [step for step in steps if work.folder.is_done(step)]
    results = [(step, step.stage.load(work.result(step))) for step in finished if step.stage.section]
    sections: dict[str, Any] = {}
    for step, result in results:
        place = (step.language_set, step.method, step.entry, step.patch)
        name = ", ".join(filter(None, place if len(config.sets) > 1 else place[1:]))
        sections.setdefault(step.stage.section, {})[name] = result
    against = Against(config, read_published(config.published) if config.published else None, model, results)
    for section in ("stats", "profiles"):
        sections[section] = next(iter(sections.get(section, {"": None}).values()))
    if tables := list(sections.get("validity", {}).values()):  # methods that were checked one by one
        sections["validity"] = ValidityTable.joined(tables)
    missing = []
    for step in steps:
        if step not in finished:
            why = work.folder.failure(step)
            missing.append(f"Not done: {step.name} ({why.rstrip('.')})." if why else f"Not done: {step.name}.")
    comparisons = sections.pop("answer", {})  # of protocols
    answers = [f"{place}, {repr(result).splitlines()[0]}" for place, result in comparisons.items()]
    title = config.question or f"What was found in {model}"
    return ln.Findings(
        title if len(config.models) == 1 else f"{title} ({model})",
        answer=missing + answers,
        published=against.tables(),
        published_about=against.about,
        provenance=[f"Study {config.name}; steps {', '.join(f'{step.name} {step.key[:12]}' for step in finished)}."],
        config=as_toml(config),
        **sections,
    )


def read_folder(folder: Path, question: str) -> tuple[ln.Findings, list[str]]:
    """Read every result in a folder and the folders in it.

    Several of one kind are told apart by their folders; of statistics, profiles and validity tables, of which a report
    shows one, the first one from above is taken.

    Args:
        folder: Folder that the commands wrote to.
        question: Title of the report.

    Returns:
        Everything there is, and a sentence for each result that was left out.

    Raises:
        StorageError: If there is no such folder, or no result in it.
        CorruptArtefactError: If a result is truncated or changed.
    """
    if not folder.is_dir():
        raise StorageError(f"Cannot read {folder}: there is no such folder.")
    sections: dict[str, Any] = {}
    left_out = []
    files = [
        file for file in folder.rglob("*.json") if len(file.relative_to(folder).parts) <= DEEPEST and file.is_file()
    ]
    for file in sorted(files, key=lambda path: (len(path.parts), path)):
        kind = storage.schema_of(file).removeprefix("langneurons/").partition("/")[0]
        if kind not in SECTIONS:
            continue
        result, section, name = ln.load(file), SECTIONS[kind], file.parent.relative_to(folder).as_posix()
        if kind == "neuron-set":
            name = file.stem.removeprefix("neurons.")
        if isinstance(result, EffectTable) and result.keys != ["patched", "measured"]:
            if "kind" not in result.keys:
                continue
            section = "sweep"
        results = sections.setdefault(section, {})
        if name in results:
            left_out.append(f"{file} is left out: there is a set {name!r} already.")
        elif results and section in SINGLE:
            left_out.append(f"{file} is left out: there is another such result above or before it.")
        else:
            results[name] = result
    if not sections:
        raise StorageError(f"{folder} holds no result: give a folder that other commands wrote to.")
    alone: dict[str, Any] = {
        section: next(iter(results.values()))
        for section, results in sections.items()
        if section in SINGLE or (len(results) == 1 and section != "neurons")
    }
    return ln.Findings(question, **sections | alone), left_out


@dataclass(frozen=True)
class Against:
    """Holds published numbers against the results of one model.

    Args:
        config: The study.
        published: The numbers; None where the study names none, so that only the protocols stand side by side.
        model: Name of the model in the study.
        results: Steps that are done, and their results.
    """

    config: StudyConfig
    published: Published | None
    model: str
    results: list[tuple[Step, Any]]

    @property
    def about(self) -> list[str]:
        """Which numbers these are."""
        if self.published is None:
            return []
        name, here = self._published_model, self.config.models[self.model].name
        of_model = f" of {name}" if self.published.models else ""
        about = [
            f"Paper: {self.published.paper}; numbers{of_model} from {self.published.source}. "
            f"Here: {here}, in this study.",
        ]
        paired = "Nothing was published item by item: the paper's scores have no paired interval."
        return [*about, paired] if self.published.scores else about

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that have rows, by heading."""
        tables = {
            "Patched models": pd.DataFrame(self._scores()),
            "Trained neurons": pd.DataFrame(self._trainings()),
            "Neurons of a language": pd.DataFrame(self._counts()),
            "What was said": pd.DataFrame(self._claims()),
        }
        return {heading: table for heading, table in tables.items() if len(table)}

    @property
    def _published_model(self) -> str:
        return self.config.models[self.model].published_as or self.model

    def _scores(self) -> Iterator[dict[str, Any]]:
        tasks = self.config.tables("tasks")
        for step, comparison in self._of("protocols"):
            kind = tasks[self.config.tables("protocols")[step.entry].task].kind
            for row in comparison.rows.to_dict("records"):
                cell = _cell(step, row, kind, row["metric"])
                there = f"{_changed(row['published_base'], row['published_patched'])}, {row['published_conclusion']}"
                yield {**cell, "paper": self._paper(cell), THERE: there, **_sound(row)}
        for step, evaluation in [*self._of("evaluate"), *self._of("factorial")]:
            for table in _tables(evaluation):
                about = table.settings
                kind = tasks[step.entry].kind if step.entry else about["task"].removeprefix("mini_")
                for row in table.rows.rename(columns=COMPARED).to_dict("records"):
                    cell = _cell(step, row, kind, about["metric"])
                    shown = cell if step.entry else {**cell, "patch": f"{row['patch']}, {about['protocol']}"}
                    if paper := self._paper({**cell, "patch": row["patch"].partition(AT)[0]}):
                        yield {**shown, "paper": paper, THERE: "", **_sound(row)}

    def _paper(self, cell: Mapping[str, str]) -> str:
        patch = self._called("patches", cell["patch"])
        for row in self._rows("scores", cell):
            same = row.task == cell["task"] and row.language == cell["language"]
            if same and cell["metric"] in row.metrics and patch in row.patched:
                place = row.metrics.index(cell["metric"])
                return _changed(*(listed(scores)[place] / 100 for scores in (row.unpatched, row.patched[patch])))
        return ""

    def _trainings(self) -> Iterator[dict[str, Any]]:
        for step, transfer in self._of("transfer"):
            part, cell = self.config.tables("transfer")[step.entry], {"neurons": step.method, "set": step.language_set}
            for row in self._rows("trainings", cell):
                if row.task == part.kind:
                    for condition, score in row.trained.items():
                        shown = {**cell, "language": row.language, "trained": condition, "patch": row.patch}
                        paper = (
                            f"{score:.2f} ({signed(score - row.trained[NONE])})" if NONE in row.trained else f"{score}"
                        )
                        yield {**shown, "paper": paper, **self._trained(transfer, condition, row)}

    def _trained(self, transfer: Transfer, condition: str, row: TrainingRow) -> dict[str, str]:
        """A training's score here, and its difference to training attention and head only."""
        scores = transfer.scores(row.metric)
        same = (scores["condition"] == condition) & (scores["language"] == row.language)
        patches = [name for name in scores["patch"].unique() if self._called("patches", name) == row.patch]
        own = scores.loc[same & scores["patch"].isin(patches), "score"]
        shown = {"here": f"{100 * float(own.iloc[0]):.2f}" if len(own) else "", "difference": "", "verdict": ""}
        if row.patch != UNPATCHED or condition == NONE or NONE not in transfer.conditions:
            return shown
        effects = transfer.effects(NONE, row.metric).rows
        effects = effects.loc[(effects["trained"] == condition) & (effects["language"] == row.language)]
        for effect in effects.to_dict("records"):
            shown |= {"difference": f"{_points(effect['estimate'])} {_interval(effect)}", "verdict": effect["verdict"]}
        return shown

    def _counts(self) -> Iterator[dict[str, Any]]:
        for step, neurons in self._of("identify"):
            cell = {"neurons": step.method, "set": step.language_set}
            for row in self._rows("counts", cell):
                for language, count in row.counts.items():
                    here = len(neurons[language]) if language in neurons.languages else None
                    yield {**cell, "language": language, "paper": count, "here": here}

    def _claims(self) -> Iterator[dict[str, Any]]:
        for claim in [] if self.published is None else self.published.claims:
            for step, result in self._of(claim.step):
                here = " ".join(of_matrix(result)) if claim.step == "matrix" else self._judged(claim, result)
                if here and (claim.step != "matrix" or self._called("patches", step.patch) == claim.patch):
                    yield {"paper": claim.said, "here": here, "step": step.name}

    def _judged(self, claim: Claim, evaluation: Evaluation | Factorial) -> str:
        names = [name for name in (claim.patch, claim.against) if name is not None]
        sentences = []
        for table in _tables(evaluation):
            if str(claim.task) in table.settings["task"]:
                for name in names:
                    own = [patch for patch in table.rows["patch"].unique() if self._called("patches", patch) == name]
                    sentences += [_counted(patch, table.rows.loc[table.rows["patch"] == patch]) for patch in own]
        return "; ".join(sentences)

    def _of(self, stage: str) -> Iterator[tuple[Step, Any]]:
        return ((step, result) for step, result in self.results if step.stage.name == stage)

    def _rows(self, kind: str, cell: Mapping[str, str]) -> list[Any]:
        """Published rows of the same model and neurons; one without a language set is of any."""
        rows = [] if self.published is None else getattr(self.published, kind)
        model, method = self._published_model, self._called("methods", cell["neurons"])
        return [row for row in rows if (row.model, row.neurons) == (model, method) and row.set in (None, cell["set"])]

    def _called(self, table: str, name: str) -> str:
        part = self.config.tables(table).get(name)
        return name if part is None else part.published_as or name


def _cell(step: Step, row: Row, task: str, metric: str) -> dict[str, str]:
    about = {"task": task, "metric": metric, "neurons": step.method, "set": step.language_set}
    return {**about, "language": row["language"], "patch": row["patch"]}


def _tables(result: Evaluation | Factorial) -> Iterator[EffectTable]:
    evaluation = result.evaluation if isinstance(result, Factorial) else result
    for names in evaluation.rows[MEASURED].drop_duplicates().itertuples(index=False):
        with suppress(EffectError):  # nothing was patched
            yield evaluation.effects(*names)


def _sound(row: Row) -> dict[str, str]:
    return {
        "sound protocol, here": f"{_changed(row['base'], row['patched'])} {_interval(row)}",
        "verdict": row["verdict"],
        "detectable": f"{100 * row['detectable']:.1f}",
    }


def _changed(base: float, patched: float) -> str:
    return f"{100 * base:.1f} → {100 * patched:.1f} ({_points(patched - base)})"


def _points(change: float) -> str:
    return signed(100 * change, 1)


def _interval(row: Row) -> str:
    return interval(100 * row["low"], 100 * row["high"], 1)


def _counted(patch: str, rows: pd.DataFrame) -> str:
    counts = rows["verdict"].value_counts().to_dict()
    verdicts = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    mean = _points(float(rows["estimate"].to_numpy().mean()))
    return f"{patch}: {mean} points on average; of {len(rows)} languages {verdicts}"
