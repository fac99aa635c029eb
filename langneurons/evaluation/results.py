"""Evaluation: what tasks gave, item by item, and what can be said of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, get_args

import pandas as pd

from langneurons.corpora.languages import label_of
from langneurons.effects.estimation import Effect, Verdict, effect
from langneurons.effects.placement import LEVEL, beyond_columns, beyond_controls, placement_columns
from langneurons.effects.table import EffectTable, check_balance, spreads_of, with_current_names
from langneurons.errors import CorruptArtefactError, EffectError, counted, unknown
from langneurons.settings import Testing
from langneurons.storage.layouts import Layout, layout
from langneurons.storage.objects import JsonObject
from langneurons.storage.presenting import Column, Table
from langneurons.storage.result import Result

UNPATCHED = "unpatched"
MEASURED = ["task", "protocol", "metric"]
AT = " at "  # between operation and site in a patch's name
FACTORS = ("operation", "site", "protocol")
FORCING = "language forcing"  # what turning a language up is for: more of it is no better or worse answer


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Result, kind="evaluation", tables=("rows", "references"), optional=("controls", "control_means")):
    """Scores of one model on tasks, per language and patch, with what is needed to believe a difference.

    Attributes:
        rows: One row per item, metric, patch and language: task, protocol, patch ("unpatched" among them), language,
            item, cluster, metric, value (0 to 1), prediction, gold.
        references: What a task's main metric is worth without the model, such as chance: task, protocol, metric,
            language, reference, value.
        controls: What every draw of control neurons changed, where controls were drawn: task, protocol, metric, patch,
            language, draw, estimate.
        control_means: Each item's mean value over the control draws, in the columns of ``rows`` up to value.
        settings: Model, patches, fingerprints of the tasks, options of the effects.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(text="task protocol patch language metric", mark="item cluster", finite="value"),
        "references": layout(text="task protocol metric language reference", finite="value"),
        "controls": layout(text="task protocol metric patch language", whole="draw", finite="estimate"),
        "control_means": layout(text="task protocol metric patch language", mark="item cluster", finite="value"),
        "settings": layout(text="model", whole="control_draws?", mapping="options balance?"),
    }

    rows: pd.DataFrame
    references: pd.DataFrame
    controls: pd.DataFrame | None
    settings: Mapping[str, Any]
    control_means: pd.DataFrame | None = None

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score beside its references.

        Returns:
            One row per task, protocol, metric, patch and language: score, its interval (low, high; of 95 % by default),
            items, clusters; ``against_chance`` where chance is known exactly: better or worse where it lies outside the
            interval (slightly so where the interval lies within the margin around it), at chance where the interval
            holds it and lies within the margin, else inconclusive (one score at a time, no family); ``detectable``, the
            difference from any fixed value that this many items find with 80 % power; then one column per reference.
        """
        keys = [*MEASURED, "patch", "language"]
        cells = parts_of(self.rows, keys).items()
        return pd.DataFrame([self._score(dict(zip(keys, key, strict=True)), rows) for key, rows in cells])

    def effects(self, task: str | None = None, protocol: str | None = None, metric: str | None = None) -> EffectTable:
        """What each patch changed in each language, on the same items, as one family of tests.

        Args:
            task: Name of the task; needed where there are several.
            protocol: Name of the protocol; needed where the task was answered in several ways.
            metric: Name of the metric; by default the task's main one.

        Returns:
            Effects by ``patch`` and ``language``, differences of scores (0.01 is one point), with the placement among
            controls where they were drawn, and the effect beyond them.

        Raises:
            EffectError: If nothing was patched, the choice is not unique, or there is no such task.
        """
        rows, names = self._select(task, protocol, metric)
        key = tuple(names.values())
        if key not in self._effect_tables:  # a report asks for each several times
            self._effect_tables[key] = self._effects(rows, names)
        return self._effect_tables[key]

    @cached_property
    def _effect_tables(self) -> dict[tuple, EffectTable]:
        return {}

    @property
    def _testing(self) -> Testing:
        return Testing(**self.settings["options"])

    def _effects(self, rows: pd.DataFrame, names: dict[str, str]) -> EffectTable:
        by_cell = parts_of(rows, ["patch", "language"])
        testing = self._testing.in_family(sum(patch != UNPATCHED for patch, _ in by_cell))
        effects = {
            (patch, language): effect(
                part, by_cell[UNPATCHED, language], "value", "row", lower_is_better=False, testing=testing
            )
            for (patch, language), part in by_cell.items()
            if patch != UNPATCHED
        }
        if not effects:
            raise EffectError("Nothing was patched, so there is no effect: give patches= to evaluate().")
        about = " ".join(dict.fromkeys(names.values()))
        family = f"{self.settings['model']}, {about}, against the unpatched model: {counted(len(effects), 'effect')}"
        settings = {**names, "measured": names["metric"]}
        settings |= {"balance": self.settings["balance"]} if "balance" in self.settings else {}
        table = EffectTable.of(effects, ("patch", "language"), family, settings)
        if self.controls is None:
            return table
        of_metric = (self.controls[MEASURED] == [names[key] for key in MEASURED]).all(axis=1)
        controls = self.controls.loc[of_metric].reset_index(drop=True)
        table = beside_controls(table, controls, self._testing.level, spreads_of(self.settings))
        if self.control_means is None or (self.settings.get("control_draws") or 0) < 2:
            return table
        of_metric = (self.control_means[MEASURED] == [names[key] for key in MEASURED]).all(axis=1)
        return self._beyond_controls(table, by_cell, parts_of(self.control_means.loc[of_metric], ["patch", "language"]))

    def _beyond_controls(
        self, table: EffectTable, by_cell: Mapping[tuple, pd.DataFrame], means: Mapping[tuple, pd.DataFrame]
    ) -> EffectTable:
        """The table with what every patch changed beyond its controls, as they are and at equal dose."""
        assert table.controls is not None
        changes = parts_of(table.controls, table.keys)
        balance = (self.settings.get("balance") or {"rows": []})["rows"]
        ratio_of = {row["language"]: row["write_ratio"] or 1.0 for row in balance}
        spreads = spreads_of(self.settings)
        as_drawn, at_equal_dose = [], []
        for cell in table.rows[table.keys].itertuples(index=False, name=None):
            language, draws = cell[-1], changes[cell]["estimate"].tolist()
            rows = by_cell[cell], means[cell], draws, by_cell[UNPATCHED, language]
            for cells, ratio in ((as_drawn, 1.0), (at_equal_dose, ratio_of.get(language, 1.0))):
                options = {"spread": spreads.get(language, 1.0), "testing": self._testing}
                cells.append(beyond_controls(*rows, ratio, "value", "row", **options))
        columns = beyond_columns(as_drawn, lower_is_better=False)
        columns |= beyond_columns(at_equal_dose, lower_is_better=False, name="at_equal_dose")
        return replace(table, rows=table.rows.assign(**columns))

    def side_by_side(
        self, language: str, items: int = 5, task: str | None = None, protocol: str | None = None
    ) -> pd.DataFrame:
        """Predictions under every patch for the first items of a language.

        Args:
            language: The language of the items.
            items: Number of items.
            task: Name of the task; needed where there are several.
            protocol: Name of the protocol; needed where the task was answered in several ways.

        Returns:
            One row per item: item, gold, and one column per patch.

        Raises:
            EffectError: If the choice is not unique, or there is no such task.
            LanguageError: If the language was not evaluated.
        """
        rows, _ = self._select(task, protocol, None)
        language = label_of(language, rows["language"].unique())
        rows = rows.query("language == @language")
        wide = rows.pivot(index=["item", "gold"], columns="patch", values="prediction")
        return wide.reindex(columns=rows["patch"].unique()).rename_axis(columns=None).reset_index().head(items)

    def table(self) -> Table:
        """The scores to print, in per cent, beside their references."""
        scores = self.scores
        references = [name for name in dict.fromkeys(self.references["reference"]) if name in scores.columns]
        columns = {name: Column(unit="%", scale=100) for name in references}
        columns |= {"score": Column(unit="%", scale=100, bounds=("low", "high"))}
        columns |= {"detectable": Column(unit="points", scale=100)}
        return Table(scores, columns, title=f"Evaluation of {self.settings['model']}")

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        fields = super()._read(folder, content)
        settings = fields["settings"]
        return fields | {"settings": {**settings, "options": with_current_names(settings["options"])}}

    def _check_parts(self) -> None:
        check_balance(self.settings)
        _ = self._testing
        if self.rows.empty:
            raise ValueError("it has no rows")
        cell = [*MEASURED, "language"]
        check_measured(self.rows, cell, UNPATCHED, "patch")
        if self.controls is None or self.control_means is None:
            return
        _ = self.settings["control_draws"]
        unpatched = self.rows.loc[self.rows["patch"] == UNPATCHED]
        check_measured(pd.concat([unpatched, self.control_means]), cell, UNPATCHED, "patch")
        estimates, means = (set(parts_of(table, [*cell, "patch"])) for table in (self.controls, self.control_means))
        metrics = [metric for _, _, metric, *_ in estimates]
        patched = self.rows.loc[(self.rows["patch"] != UNPATCHED) & self.rows["metric"].isin(metrics)]
        if estimates != means or not set(parts_of(patched, [*cell, "patch"])) <= means:
            raise ValueError("controls were not drawn for every patch and language")

    def _select(
        self, task: str | None, protocol: str | None, metric: str | None
    ) -> tuple[pd.DataFrame, dict[str, str]]:
        """The rows of one task, protocol and metric, and their names."""
        rows, names = self.rows, {}
        for column, name in (("task", task), ("protocol", protocol), ("metric", metric)):
            possible = rows[column].unique().tolist()
            if name is None and len(possible) > 1 and column != "metric":
                raise EffectError(f"Say which {column}: one table is one family. Possible: {', '.join(possible)}.")
            if name is not None and name not in possible:
                raise EffectError(unknown(column, name, possible))
            names[column] = possible[0] if name is None else name
            rows = rows.loc[rows[column] == names[column]]
        return rows, names

    def _score(self, about: dict[str, str], rows: pd.DataFrame) -> dict[str, Any]:
        keys = ("task", "protocol", "metric", "language")
        same = self.references.loc[(self.references[list(keys)] == [about[key] for key in keys]).all(axis=1)]
        references = {str(row["reference"]): float(row["value"]) for row in same.to_dict("records")}
        size = score_from_zero(rows, self._testing)
        low, high = (None, None) if size is None else (size.low, size.high)
        return {
            **about,
            "score": float(rows["value"].to_numpy().mean()),
            "low": low,
            "high": high,
            "items": len(rows),
            "clusters": rows["cluster"].nunique(),
            "against_chance": _against(references.get("chance"), low, high, self._testing.margin),
            "detectable": None if size is None else size.minimal_detectable,
            **references,
        }


def _against(chance: float | None, low: float | None, high: float | None, margin: float) -> str | None:
    if chance is None or low is None or high is None:
        return None
    within = chance - margin <= low and high <= chance + margin
    if low <= chance <= high:
        return "at chance" if within else "inconclusive"
    return f"{'slightly ' if within else ''}{'better' if low > chance else 'worse'}"


def parts_of(rows: pd.DataFrame, keys: Sequence[str]) -> dict[tuple, pd.DataFrame]:
    """The rows of each combination of values in some columns, in the order in which they first stand there."""
    return {key: part for key, part in rows.groupby(list(keys), sort=False) if isinstance(key, tuple)}


def check_measured(rows: pd.DataFrame, cell: Sequence[str], baseline: str, column: str) -> None:
    """Refuse rows in which what was changed was not measured unchanged too, or not on the same items.

    Args:
        rows: One row per item.
        cell: Columns within which conditions are compared.
        baseline: The value of ``column`` that stands for the unchanged model.
        column: Column of the conditions.

    Raises:
        ValueError: If there is such a condition, or a condition measured an item twice.
    """
    if bool(rows.duplicated([*cell, column, "item"]).any()):
        raise ValueError("an item was measured twice")
    for key, part in parts_of(rows, cell).items():
        items = {name: set(of_name["item"]) for name, of_name in part.groupby(column)}
        if any(own != items.get(baseline) for own in items.values()):
            raise ValueError(f"{', '.join(map(str, key))} was not measured {baseline} on the same items")


def beside_controls(
    table: EffectTable,
    controls: pd.DataFrame,
    level: float = LEVEL,
    spreads: Mapping[str, float | None] | None = None,
) -> EffectTable:
    """Place every effect of a table among what its control draws changed.

    Args:
        table: Effects.
        controls: The table's key columns and ``estimate``, one row per draw.
        level: Confidence of the prediction intervals.
        spreads: Value of the last key column -> how much more one more set varies than its draws do; 1 by default.
    """
    by_cell = {key: part["estimate"].tolist() for key, part in parts_of(controls, table.keys).items()}
    cells = list(table.rows[table.keys].itertuples(index=False, name=None))
    of_cells = [(spreads or {}).get(cell[-1], 1.0) for cell in cells]
    draws = [by_cell.get(cell, []) for cell in cells]
    columns = placement_columns(table.rows["estimate"].tolist(), draws, level, spreads=of_cells)
    return replace(table, rows=table.rows.assign(**columns), controls=controls)


def score_from_zero(rows: pd.DataFrame, testing: Testing) -> Effect | None:
    """A score with its interval, within 0 and 1; None where there is only one cluster.

    As an effect from zero: of answers right or wrong, an all-right score is then not taken for a certain one.

    Args:
        rows: Rows with a ``value`` each.
        testing: The interval's level and the resampling.
    """
    if len(set(rows["cluster"])) < 2:
        return None
    size = effect(rows, rows.assign(value=0.0), "value", "row", lower_is_better=False, testing=testing)
    return replace(size, low=max(size.low, 0.0), high=min(size.high, 1.0))


@dataclass(frozen=True, eq=False, repr=False)
class Factorial(Result):
    """The effects of every operation, site and protocol; saved and loaded as its evaluation is.

    Attributes:
        evaluation: All measurements; its patches are named ``"<operation> at <site>"``.
        design: One row per patch: patch, operation, site.

    Raises:
        EffectError: If the design has other patches than the evaluation.
    """

    evaluation: Evaluation
    design: pd.DataFrame

    def __post_init__(self) -> None:
        designed, patches = sorted(self.design["patch"]), sorted(_patches(self.evaluation))
        if designed != patches:
            raise EffectError(
                f"The design of a factorial has one row for each patch that was measured, {', '.join(patches)}, not "
                f"for {', '.join(designed)}."
            )

    @property
    def effects(self) -> pd.DataFrame:
        """Every effect of every cell on the main metric of its task; families are tasks.

        Returns:
            operation, site, protocol, task, metric, language, then the columns of an effect table.
        """
        parts = []
        rows = self.evaluation.rows
        for task, protocol in rows[["task", "protocol"]].drop_duplicates().itertuples(index=False):
            table = self.evaluation.effects(task, protocol)
            about = {name: table.settings[name] for name in MEASURED}
            parts.append(table.rows.assign(**about).merge(self.design, on="patch", validate="many_to_one"))
        effects = pd.concat(parts, ignore_index=True)
        first = [*FACTORS, "task", "metric", "language"]
        return effects.reindex(columns=[*first, *(name for name in effects if name not in {*first, "patch"})])

    @property
    def summary(self) -> pd.DataFrame:
        """Each cell over its languages.

        Returns:
            operation, site, protocol, task; the mean estimate; in how many languages each verdict fell; the largest
            effect that could have gone unnoticed in a language (detectable).
        """
        keys = [*FACTORS, "task"]
        counts = {name: ("verdict", _count(name)) for name in get_args(Verdict)}
        sizes = {"estimate": ("estimate", "mean"), "detectable": ("minimal_detectable", "max")}
        return self.effects.groupby(keys, sort=False).agg(**sizes, **counts).reset_index()

    @property
    def opposites(self) -> pd.DataFrame:
        """Pairs of cells that would make two papers disagree: answers get better in one, worse in the other.

        Verdicts are those of each task's own family. Language forcing is no answer, and left out.

        Returns:
            language, better, worse (each "operation at site, task protocol") and differ, the factors they differ in,
            the task among them; the pairs that differ in fewest first. No rows: nothing in this design turns a sign
            around.
        """
        cells = [cell for cell in self.effects.to_dict("records") if cell["task"] != FORCING]
        sure = [cell for cell in cells if cell["verdict"] in ("better", "worse")]
        rows = []
        for cell, other in combinations(sure, 2):
            if cell["language"] == other["language"] and cell["verdict"] != other["verdict"]:
                better, worse = (cell, other) if cell["verdict"] == "better" else (other, cell)
                differ = [factor for factor in (*FACTORS, "task") if better[factor] != worse[factor]]
                rows.append((better["language"], _cell(better), _cell(worse), ", ".join(differ), len(differ)))
        table = pd.DataFrame(rows, columns=["language", "better", "worse", "differ", "factors"])
        return table.sort_values("factors", kind="stable", ignore_index=True).drop(columns="factors")

    def save(self, path: str | Path) -> Path:
        """Write everything to a folder, as its evaluation does.

        Args:
            path: The folder.

        Returns:
            The folder.
        """
        return self.evaluation.save(path)

    @classmethod
    def load(cls, path: str | Path) -> "Factorial":
        """Read a saved factorial.

        Args:
            path: The folder that ``save`` wrote.

        Raises:
            StorageError: If a file is missing.
            CorruptArtefactError: If it is no evaluation, none of a factorial, or was changed.
        """
        evaluation = Evaluation.load(path)
        cells = {name: name.rpartition(AT) for name in _patches(evaluation)}
        for name, (operation, _, site) in cells.items():
            if not operation or not site:
                raise CorruptArtefactError(
                    f"{path} holds an evaluation but no factorial: the patch {name!r:.60} names no operation and site."
                )
        return cls(evaluation, design_of((operation, site) for operation, _, site in cells.values()))

    def table(self) -> Table:
        """The summary to print, in points, above the conclusion."""
        points = {"estimate": Column("mean effect", "points", 100, signed=True)}
        return Table(self.summary, points | {"detectable": Column(unit="points", scale=100)}, caption=self.conclusion)

    @property
    def conclusion(self) -> str:
        """Whether cells have opposite significant signs, and in which factors they differ."""
        if self.opposites.empty:
            return "No two cells have opposite significant signs."
        differ = self.opposites["differ"].value_counts()
        counted = ", ".join(f"{count} that differ in {factors}" for factors, count in differ.items())
        return f"{len(self.opposites)} pairs of cells have opposite significant signs: {counted}."


def design_of(cells: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """The design of a factorial, from the operation and site of every patch."""
    rows = [(f"{name}{AT}{site}", name, site) for name, site in cells]
    return pd.DataFrame(rows, columns=["patch", "operation", "site"])


def _patches(evaluation: Evaluation) -> list[str]:
    return [name for name in evaluation.rows["patch"].unique() if name != UNPATCHED]


def _count(verdict: str) -> Callable[[pd.Series], int]:
    return lambda verdicts: int((verdicts == verdict).sum())


def _cell(cell: Mapping[str, object]) -> str:
    return f"{cell['operation']} at {cell['site']}, {cell['task']} {cell['protocol']}"
