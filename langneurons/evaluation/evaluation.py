"""Evaluation: what tasks gave, item by item, and what can be said of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from langneurons import storage
from langneurons.effects.estimation import effect
from langneurons.effects.placement import placement_columns
from langneurons.effects.table import EffectTable, with_current_names
from langneurons.errors import EffectError, unknown

SCHEMA = "langneurons/evaluation/1"
UNPATCHED = "unpatched"
TABLES = ("rows", "references", "controls")
MEASURED = ["task", "protocol", "metric"]


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Scores of one model on tasks, per language and patch, with what is needed to believe a difference.

    Attributes:
        rows: One row an item, metric, patch and language: task, protocol, patch ("unpatched" among them), language,
            item, cluster, metric, value (0 to 1), prediction, gold.
        references: What a task's main metric is worth without the model, such as chance: task, protocol, metric,
            language, reference, value.
        controls: What every draw of control neurons changed, where controls were drawn: task, protocol, metric, patch,
            language, draw, estimate.
        settings: Model, patches, fingerprints of the tasks, options of the effects.
    """

    rows: pd.DataFrame
    references: pd.DataFrame
    controls: pd.DataFrame | None
    settings: Mapping[str, Any]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score beside its references.

        Returns:
            One row a task, protocol, metric, patch and language: score, its 95 % interval (low, high), items, clusters;
            ``against_chance`` where chance is known exactly: better or worse where it lies outside the interval,
            equivalent where the interval lies within the margin around it, else inconclusive (one score at a time,
            no family); ``detectable``, the difference from any fixed value that this many items find with 80 %
            power; then one column per reference.
        """
        keys = [*MEASURED, "patch", "language"]
        return pd.DataFrame(
            [self._score(dict(zip(keys, key, strict=True)), part) for key, part in _parts(self.rows, keys)]
        )

    def effects(self, task: str | None = None, protocol: str | None = None, metric: str | None = None) -> EffectTable:
        """What each patch changed in each language, on the same items, as one family of tests.

        Args:
            task: Which task; needed where there are several.
            protocol: Which protocol; needed where the task was answered in several ways.
            metric: Which metric; None takes the task's main one.

        Returns:
            Effects by ``patch`` and ``language``, differences of scores (0.01 is one point), with the placement among
            controls where they were drawn.

        Raises:
            EffectError: If nothing was patched, the choice is not unique, or there is no such task.
        """
        rows, chosen = self._chosen(task, protocol, metric)
        name = tuple(chosen.values())
        if name not in self._tables:  # a report asks for each several times
            self._tables[name] = self._effects(rows, chosen)
        return self._tables[name]

    @cached_property
    def _tables(self) -> dict[tuple, EffectTable]:
        return {}

    def _effects(self, rows: pd.DataFrame, chosen: dict[str, str]) -> EffectTable:
        by_cell = dict(_parts(rows, ["patch", "language"]))
        effects = {
            (patch, language): effect(
                part, by_cell[UNPATCHED, language], "value", "row", lower_is_better=False, **self.settings["options"]
            )
            for (patch, language), part in by_cell.items()
            if patch != UNPATCHED
        }
        if not effects:
            raise EffectError("Nothing was patched, so there is no effect: give patches= to evaluate().")
        about = " ".join(dict.fromkeys(chosen.values()))
        family = f"{self.settings['model']}, {about}, against the unpatched model: {len(effects)} effects"
        stored = {**self.settings["options"], **chosen, "measured": chosen["metric"]}
        table = EffectTable.of(effects, ("patch", "language"), family, stored)
        return table if self.controls is None else self._beside_controls(table, chosen)

    def side_by_side(
        self, language: str, items: int = 5, task: str | None = None, protocol: str | None = None
    ) -> pd.DataFrame:
        """Predictions under every patch for the first items of a language.

        Args:
            language: Which.
            items: How many.
            task: As for ``effects``.
            protocol: As for ``effects``.

        Returns:
            One row an item: item, gold, and one column a patch.

        Raises:
            EffectError: As ``effects``, or if the language was not evaluated.
        """
        rows, _ = self._chosen(task, protocol, None)
        rows = rows.query("language == @language")
        if rows.empty:
            raise EffectError(unknown("language", language, self.rows["language"].unique()))
        wide = rows.pivot(index=["item", "gold"], columns="patch", values="prediction")
        return wide.reindex(columns=rows["patch"].unique()).rename_axis(columns=None).reset_index().head(items)

    def plot(self, task: str | None = None, protocol: str | None = None, metric: str | None = None) -> Any:
        """Draw the effects with their intervals, verdicts and controls; see ``ln.plot.effects``."""
        # The one way up: results draw themselves, so that a notebook needs one name less.
        from langneurons.views.effect_figures import effects

        return effects(self.effects(task, protocol, metric))

    def save(self, path: str | Path) -> Path:
        """Write everything to a folder: ``evaluation.json`` (settings, checksums) and one parquet file a table.

        Returns:
            The folder.
        """
        tables = {name: getattr(self, name) for name in TABLES}
        return storage.write_result(Path(path) / "evaluation.json", SCHEMA, self.settings, tables)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read a saved evaluation.

        Raises:
            StorageError: If a file is missing.
            CorruptArtefactError: If it is no evaluation, or was changed.
        """
        settings, tables = storage.read_result(Path(path) / "evaluation.json", SCHEMA, ["rows", "references"])
        options = {"options": with_current_names(settings["options"])} if "options" in settings else {}
        return cls(**{"controls": None, **tables}, settings={**settings, **options})

    def __repr__(self) -> str:
        return f"Evaluation of {self.settings['model']}\n{self._shown().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return self._shown().to_html(index=False, border=0)

    def _shown(self) -> pd.DataFrame:
        """Scores in per cent, as a reader wants them."""
        table = self.scores.copy()
        names = [name for name in dict.fromkeys(self.references["reference"]) if name in table.columns]
        for column in ("score", "low", "high", "detectable", *names):
            table[column] = (100 * table[column]).round(1)
        return table

    def _chosen(
        self, task: str | None, protocol: str | None, metric: str | None
    ) -> tuple[pd.DataFrame, dict[str, str]]:
        """The rows of one task, protocol and metric, and their names."""
        rows, chosen = self.rows, {}
        for column, given in (("task", task), ("protocol", protocol), ("metric", metric)):
            possible = rows[column].unique().tolist()
            if given is None and len(possible) > 1 and column != "metric":
                raise EffectError(f"Say which {column}: one table is one family. Possible: {', '.join(possible)}.")
            if given is not None and given not in possible:
                raise EffectError(unknown(column, given, possible))
            chosen[column] = possible[0] if given is None else given
            rows = rows.loc[rows[column] == chosen[column]]
        return rows, chosen

    def _score(self, about: dict[str, str], part: pd.DataFrame) -> dict[str, Any]:
        keys = ("task", "protocol", "metric", "language")
        same = self.references.loc[(self.references[list(keys)] == [about[key] for key in keys]).all(axis=1)]
        references = {str(one["reference"]): float(one["value"]) for one in same.to_dict("records")}
        clusters = len(part["cluster"].unique())
        score = {"score": float(part["value"].to_numpy().mean()), "low": None, "high": None}
        detectable = None
        if clusters > 1:
            # From zero: of answers right or wrong, an all-right score is then not taken for a certain one.
            options = self.settings["options"]
            found = effect(part, part.assign(value=0.0), "value", "row", lower_is_better=False, **options)
            score |= {"low": max(found.low, 0.0), "high": min(found.high, 1.0)}
            detectable = found.minimal_detectable
        against = _against(references.get("chance"), score["low"], score["high"], self.settings["options"]["margin"])
        sizes = {"items": len(part), "clusters": clusters}
        return {**about, **score, **sizes, "against_chance": against, "detectable": detectable, **references}

    def _beside_controls(self, table: EffectTable, chosen: Mapping[str, str]) -> EffectTable:
        assert self.controls is not None
        drawn = self.controls.loc[(self.controls[MEASURED] == [chosen[key] for key in MEASURED]).all(axis=1)]
        by_cell = {key: part["estimate"].tolist() for key, part in _parts(drawn, ["patch", "language"])}
        cells = zip(table.rows["patch"], table.rows["language"], strict=True)
        columns = placement_columns(table.rows["estimate"].tolist(), [by_cell[cell] for cell in cells])
        return replace(table, rows=table.rows.assign(**columns), controls=drawn.reset_index(drop=True))


def _against(chance: float | None, low: float | None, high: float | None, margin: float) -> str | None:
    if chance is None or low is None or high is None:
        return None
    if chance - margin <= low and high <= chance + margin:
        return "equivalent"
    return "better" if low > chance else "worse" if high < chance else "inconclusive"


def _parts(rows: pd.DataFrame, keys: list[str]) -> list[tuple[tuple, pd.DataFrame]]:
    return [(key, part) for key, part in rows.groupby(keys, sort=False) if isinstance(key, tuple)]
