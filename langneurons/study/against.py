"""Published numbers against those that a study measured: the paper's, its protocol's here, the sound one's."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

import langneurons as ln
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError
from langneurons.evaluation.evaluation import AT, UNPATCHED
from langneurons.replication.published import Claim, Published, ScoreRow, listed
from langneurons.study.parts import StudyConfig
from langneurons.study.steps import Step
from langneurons.training.conditions import NONE
from langneurons.views.report.answers import of_matrix
from langneurons.views.style import interval, signed

Results = Mapping[str, tuple[Step, Any]]
NOT_THERE = ""


@dataclass(frozen=True)
class Against:
    """Holds published numbers against the results of one model.

    Args:
        config: The study.
        published: The numbers; None where the study names none, so that only the protocols stand side by side.
        model: What the study calls the model.
        results: Name of a step that is done -> the step and its result.
    """

    config: StudyConfig
    published: Published | None
    model: str
    results: Results

    @property
    def about(self) -> list[str]:
        """Which numbers these are."""
        if self.published is None:
            return []
        named, here = self._published_model, self.config.models[self.model].name
        of_model = f" of {named}" if self.published.models else ""
        about = [
            f"Paper: {self.published.paper}; numbers{of_model} from {self.published.source}. "
            f"Here: {here}, in this study.",
        ]
        paired = "Nothing was published item by item: the paper's scores have no paired interval."
        return [*about, paired] if self.published.scores else about

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that have rows, by heading."""
        made = {
            "Patched models": pd.DataFrame(self._scores()),
            "Trained neurons": pd.DataFrame(self._trainings()),
            "Neurons of a language": pd.DataFrame(self._counts()),
            "What was said": pd.DataFrame(self._claims()),
        }
        return {heading: table for heading, table in made.items() if len(table)}

    @property
    def _published_model(self) -> str:
        return self.config.models[self.model].published_as or self.model

    def _scores(self) -> Iterator[dict[str, Any]]:
        for step, found in self._of("protocols"):
            _, _, group, method, name = step.name.split("/")
            kind = self.config.tasks[self.config.protocols[name].task].kind
            for row in found.table.to_dict("records"):
                cell = {"task": kind, "metric": row["metric"], "neurons": method, "set": group}
                cell |= {"language": row["language"], "patch": row["patch"]}
                theirs = f"{_changed(row['published_base'], row['published_patched'])}, {row['published_conclusion']}"
                yield {**cell, "paper": self._paper(cell), "published protocol, here": theirs, **_sound(row)}
        for step, found in self._of("evaluate"):
            _, _, group, method, name = step.name.split("/")
            for metric, row in _effects(found):
                cell = {"task": self.config.tasks[name].kind, "metric": metric, "neurons": method, "set": group}
                cell |= {"language": row["language"], "patch": row["patch"]}
                if paper := self._paper(cell):
                    yield {**cell, "paper": paper, "published protocol, here": NOT_THERE, **_sound(_renamed(row))}

        yield from self._crossed()

    def _crossed(self) -> Iterator[dict[str, Any]]:
        """Cells of a factorial whose operation has a published number."""
        for step, found in self._of("factorial"):
            _, _, group, method = step.name.split("/")
            for table in _tables(found.evaluation):
                for row in table.rows.to_dict("records"):
                    about = {"task": table.settings["task"].removeprefix("mini_"), "metric": table.settings["metric"]}
                    cell = {**about, "neurons": method, "set": group, "language": row["language"]}
                    operation, _, _ = row["patch"].partition(AT)
                    if paper := self._paper({**cell, "patch": operation}):
                        told = {**cell, "patch": f"{row['patch']}, {table.settings['protocol']}", "paper": paper}
                        yield {**told, "published protocol, here": NOT_THERE, **_sound(_renamed(row))}

    def _paper(self, cell: Mapping[str, str]) -> str:
        patch = self._called("patches", cell["patch"])
        for row in self._rows("scores"):
            known = isinstance(row, ScoreRow) and self._same(row, cell) and row.task == cell["task"]
            if known and row.language == cell["language"] and cell["metric"] in row.metrics and patch in row.patched:
                place = row.metrics.index(cell["metric"])
                return _changed(*(listed(scores)[place] / 100 for scores in (row.unpatched, row.patched[patch])))
        return NOT_THERE

    def _trainings(self) -> Iterator[dict[str, Any]]:
        for step, found in self._of("transfer"):
            _, _, group, method, name = step.name.split("/")
            part, cell = self.config.transfer[name], {"neurons": method, "set": group}
            for row in self._rows("trainings"):
                if row.task == part.kind and self._same(row, cell):
                    for condition, score in row.trained.items():
                        told = {**cell, "language": row.language, "trained": condition, "patch": row.patch}
                        paper = (
                            f"{score:.2f} ({signed(score - row.trained[NONE])})" if NONE in row.trained else f"{score}"
                        )
                        yield {**told, "paper": paper, **self._trained(found, condition, row)}

    def _trained(self, found: ln.training.Transfer, condition: str, row: Any) -> dict[str, str]:
        """A training's score here, and its difference to training attention and head only."""
        scores = found.scores(row.metric)
        same = (scores["condition"] == condition) & (scores["language"] == row.language)
        patches = [name for name in scores["patch"].unique() if self._called("patches", name) == row.patch]
        mine = scores.loc[same & scores["patch"].isin(patches), "score"]
        told = {"here": f"{100 * float(mine.iloc[0]):.2f}" if len(mine) else NOT_THERE, "difference": "", "verdict": ""}
        if row.patch != UNPATCHED or condition == NONE or NONE not in found.conditions:
            return told
        effects = found.effects(NONE, row.metric).rows
        effects = effects.loc[(effects["trained"] == condition) & (effects["language"] == row.language)]
        for one in effects.to_dict("records"):
            told |= {"difference": f"{_points(one['estimate'])} {_interval(one)}", "verdict": one["verdict"]}
        return told

    def _counts(self) -> Iterator[dict[str, Any]]:
        for step, neurons in self._of("identify"):
            _, _, group, method = step.name.split("/")
            cell = {"neurons": method, "set": group}
            for row in self._rows("counts"):
                if self._same(row, cell):
                    for language, count in row.counts.items():
                        here = len(neurons[language]) if language in neurons.languages else None
                        yield {**cell, "language": language, "paper": count, "here": here}

    def _claims(self) -> Iterator[dict[str, Any]]:
        for claim in [] if self.published is None else self.published.claims:
            for step, found in self._of(claim.step):
                said = " ".join(of_matrix(found)) if claim.step == "matrix" else self._judged(claim, found)
                patched = step.kind != "matrix" or self._called("patches", step.name.split("/")[-1]) == claim.patch
                if said and patched:
                    yield {"paper": claim.said, "here": said, "step": step.name}

    def _judged(self, claim: Claim, found: Any) -> str:
        evaluation = found.evaluation if isinstance(found, ln.evaluation.Factorial) else found
        wanted = [name for name in (claim.patch, claim.against) if name is not None]
        said = []
        for table in _tables(evaluation):
            if str(claim.task) in table.settings["task"]:
                for name in wanted:
                    own = [patch for patch in table.rows["patch"].unique() if self._called("patches", patch) == name]
                    said += [_counted(patch, table.rows.loc[table.rows["patch"] == patch]) for patch in own]
        return "; ".join(said)

    def _of(self, kind: str) -> Iterator[tuple[Step, Any]]:
        return ((step, found) for step, found in self.results.values() if step.kind == kind)

    def _rows(self, kind: str) -> Iterable[Any]:
        rows = [] if self.published is None else getattr(self.published, kind)
        return [row for row in rows if row.model == self._published_model]

    def _same(self, row: Any, cell: Mapping[str, str]) -> bool:
        """Whether a published row is of the same neurons; one without a language set is of any."""
        return row.neurons == self._called("methods", cell["neurons"]) and row.set in (None, cell["set"])

    def _called(self, kind: str, name: str) -> str:
        part = getattr(self.config, kind).get(name)
        return name if part is None else part.published_as or name


def _tables(evaluation: ln.evaluation.Evaluation) -> Iterator[EffectTable]:
    for task, protocol in evaluation.rows[["task", "protocol"]].drop_duplicates().itertuples(index=False):
        rows = evaluation.rows.loc[(evaluation.rows["task"] == task) & (evaluation.rows["protocol"] == protocol)]
        for metric in rows["metric"].unique():
            try:
                yield evaluation.effects(str(task), str(protocol), str(metric))
            except EffectError:
                continue  # nothing was patched


def _effects(evaluation: ln.evaluation.Evaluation) -> Iterator[tuple[str, dict[str, Any]]]:
    for table in _tables(evaluation):
        yield from (
            (table.settings["metric"], {str(key): one for key, one in row.items()})
            for row in table.rows.to_dict("records")
        )


def _renamed(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of an effect table, named as a comparison of protocols names things."""
    names: dict[Any, str] = {"baseline": "base", "condition": "patched", "minimal_detectable": "detectable"}
    return {str(names.get(name, name)): value for name, value in row.items()}


def _sound(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "sound protocol, here": f"{_changed(row['base'], row['patched'])} {_interval(row)}",
        "verdict": row["verdict"],
        "detectable": f"{100 * row['detectable']:.1f}",
    }


def _changed(base: float, patched: float) -> str:
    return f"{100 * base:.1f} → {100 * patched:.1f} ({_points(patched - base)})"


def _points(change: float) -> str:
    return signed(100 * change, 1)


def _interval(row: Mapping[str, Any]) -> str:
    return interval(100 * row["low"], 100 * row["high"], 1)


def _counted(patch: str, rows: pd.DataFrame) -> str:
    counts = rows["verdict"].value_counts().to_dict()
    verdicts = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    mean = _points(float(rows["estimate"].to_numpy().mean()))
    return f"{patch}: {mean} points on average; of {len(rows)} languages {verdicts}"
