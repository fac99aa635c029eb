"""EffectTable: one printed table of effects, which is one family of tests, with what is needed to believe it."""

import html
import json
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from langneurons import storage
from langneurons.effects.estimation import Effect, holm
from langneurons.effects.resampling import SIGNIFICANCE
from langneurons.errors import EffectError, LangNeuronsWarning, unknown

SCHEMA = "langneurons/effect-table/1"
TABLES = ("rows", "controls", "selectivity")
COMMON = ("value", "per", "delta", "level", "resamples", "seed", "lower_is_better")
CONTROL_INTERVAL = ("control_mean", "control_low", "control_high")
COLUMNS = (
    "estimate",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "minimal_detectable",
    "standard_error",
    "items",
    "clusters",
    "baseline",
    "condition",
)


@dataclass(frozen=True, eq=False, repr=False)
class EffectTable:
    """Effects of one model, task and metric; verdicts follow p-values adjusted over all of them (Holm).

    Attributes:
        rows: One effect a row: the key columns, estimate, low, high, p, p_holm, verdict, minimal_detectable,
            standard_error, items, clusters, baseline, condition; seeds and seed_sd where something was trained;
            where controls were drawn, their placement (control_mean, control_low, control_high, ...).
        settings: How it was measured, with ``keys`` (the key columns) and ``family`` (what was adjusted over).
        controls: What each control draw gave: key columns, ``control`` (its kind), ``draw``, ``estimate``.
        selectivity: Diagonal against off-diagonal, where the table is a matrix of languages.

    Example:
        >>> from langneurons.effects.estimation import effect
        >>> before = pd.DataFrame({"item": range(40), "cluster": range(40), "nll": 2.0})
        >>> after = before.assign(nll=[2.2 + 0.01 * (i % 7) for i in range(40)])
        >>> effects = {("hi", "hi"): effect(after, before), ("hi", "en"): effect(before, before)}
        >>> table = EffectTable.of(effects, ("patched", "measured"), "an example: 2 effects")
        >>> table.matrix("verdict").loc["hi"].tolist()
        ['worse', 'equivalent']
    """

    rows: pd.DataFrame
    settings: Mapping[str, Any]
    controls: pd.DataFrame | None = None
    selectivity: pd.DataFrame | None = None

    @classmethod
    def of(
        cls,
        effects: Mapping[Any, Effect],
        keys: Sequence[str],
        family: str,
        settings: Mapping[str, Any] | None = None,
        controls: pd.DataFrame | None = None,
        selectivity: pd.DataFrame | None = None,
    ) -> "EffectTable":
        """Put effects in one table and judge them as one family.

        Args:
            effects: Key -> effect; a key is a tuple with one value for each of ``keys``, or that value itself.
            keys: Names of the key columns.
            family: One sentence on what was tested, printed and stored with the table.
            settings: What else to store; numbers, texts, lists and mappings of them.
            controls: Estimates of control draws.
            selectivity: Of a matrix.

        Raises:
            EffectError: If there is no effect, a key does not fit, the effects measure different things, or a setting
                cannot be stored.
        """
        if not effects:
            raise EffectError("An effect table needs at least one effect, none was given.")
        common = _common(list(effects.values()))
        stored = _storable({**(settings or {}), **common, "keys": list(keys), "family": family})
        table = pd.DataFrame([_key(key, keys) for key in effects], columns=list(keys))
        return cls(pd.concat([_plain(table), _judged(list(effects.values()))], axis=1), stored, controls, selectivity)

    @property
    def keys(self) -> list[str]:
        """Names of the key columns."""
        return list(self.settings["keys"])

    @property
    def family(self) -> str:
        """What p-values are adjusted over, in one sentence."""
        return self.settings["family"]

    def __len__(self) -> int:
        return len(self.rows)

    def matrix(self, value: str = "estimate") -> pd.DataFrame:
        """One column of a table with two keys: the first key down, the second across, in the order of the rows.

        Raises:
            EffectError: If there is no such column, or the table has not two keys.
        """
        if value not in self.rows.columns:
            raise EffectError(unknown("column", value, self.rows.columns))
        if len(self.keys) != 2:
            raise EffectError(f"A matrix needs two keys; this table has {len(self.keys)}: {', '.join(self.keys)}.")
        return self._wide(self.rows.assign(shown=self.rows[value]))

    def to_markdown(self, percent: bool = True) -> str:
        """A table for a README: estimate [low, high] and verdict, under it the family, sizes and detectable effects.

        A table with two keys becomes a matrix, any other one line an effect.

        Args:
            percent: Show estimates times 100.
        """
        shown = self._matrix_of_texts(percent) if len(self.keys) == 2 else self._lines_of_texts(percent)
        lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
        table = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"{table}\n\n{self._caption(percent)}"

    def __repr__(self) -> str:
        table = self._lines_of_texts(percent=True).to_string(index=False, max_rows=60)
        return f"{table}\n{self._caption(percent=True)}"

    def _repr_html_(self) -> str:
        table = self._lines_of_texts(percent=True).to_html(index=False, border=0, max_rows=100)
        return f"{table}<p>{html.escape(self._caption(percent=True))}</p>"

    def save(self, path: str | Path) -> Path:
        """Write the table to a folder: ``effects.json`` (settings, checksums) and one parquet file a table.

        Returns:
            The folder.
        """
        tables = {name: getattr(self, name) for name in TABLES}
        return storage.write_result(Path(path) / "effects.json", SCHEMA, self.settings, tables)

    @classmethod
    def load(cls, path: str | Path) -> "EffectTable":
        """Read a saved table.

        Raises:
            StorageError: If a file is missing.
            CorruptArtefactError: If it is no effect table, or was changed.
        """
        settings, tables = storage.read_result(Path(path) / "effects.json", SCHEMA, ["rows"])
        return cls(settings=settings, **tables)

    def _wide(self, rows: pd.DataFrame) -> pd.DataFrame:
        down, across = self.keys
        wide = rows.pivot(index=down, columns=across, values="shown")
        return wide.reindex(index=rows[down].unique(), columns=rows[across].unique())

    def _matrix_of_texts(self, percent: bool) -> pd.DataFrame:
        down, across = self.keys
        texts = [
            f"{text} {verdict}"
            for text, verdict in zip(_intervals(self.rows, percent), self.rows["verdict"], strict=True)
        ]
        wide = self._wide(self.rows.assign(shown=texts)).fillna("")
        return wide.rename_axis(columns=None).reset_index(names=f"{down} \\ {across}")

    def _lines_of_texts(self, percent: bool) -> pd.DataFrame:
        lines = self.rows.loc[:, self.keys].copy()
        lines["effect" + " (%)" * percent] = _intervals(self.rows, percent)
        lines["p (Holm)"] = ["none" if math.isnan(p) else f"{p:.2g}" for p in self.rows["p_holm"]]
        lines["verdict"] = self.rows["verdict"]
        lines["detectable"] = [_number(value, percent, sign="") for value in self.rows["minimal_detectable"]]
        if set(CONTROL_INTERVAL) <= set(self.rows.columns):
            lines["controls"] = _intervals(self.rows, percent, CONTROL_INTERVAL)
        for name in ("items", "clusters", "seeds"):
            if name in self.rows.columns:
                lines[name] = self.rows[name]
        return lines

    def _caption(self, percent: bool) -> str:
        unit = " %" if percent else ""
        least, most = (_number(found, percent, "") for found in self.rows["minimal_detectable"].agg(["min", "max"]))
        delta, level = _number(self.settings["delta"], percent, ""), f"{100 * self.settings['level']:g} %"
        return (
            f"Family: {self.family} (Holm). {self.settings['value']} per {self.settings['per']}{', in %' * percent}, "
            f"[{level} interval]; equivalent: within +-{delta}{unit}. {_span(self.rows['items'].tolist())} items in "
            f"{_span(self.rows['clusters'].tolist())} clusters an effect; minimal detectable effect (one test) "
            f"{least}{unit} to {most}{unit}."
        )


def _common(effects: Sequence[Effect]) -> dict[str, Any]:
    """The options that all effects share."""
    for name in COMMON:
        values = list(dict.fromkeys(getattr(one, name) for one in effects))
        if len(values) > 1:
            raise EffectError(
                f"One table is one family of one metric, but its effects differ in {name}: "
                f"{values[0]!r} and {values[1]!r}."
            )
    return {name: getattr(effects[0], name) for name in COMMON}


def _judged(effects: Sequence[Effect]) -> pd.DataFrame:
    adjusted = holm([one.p for one in effects])
    _check_resamples(effects)
    trained = ["seeds", "seed_sd"] if any(one.seeds is not None for one in effects) else []
    rows = pd.DataFrame([asdict(one) for one in effects]).assign(p_holm=adjusted)
    rows["verdict"] = [one.judged(float(p)) for one, p in zip(effects, adjusted, strict=True)]
    return rows.loc[:, [*COLUMNS, *trained]].astype({"p": "float64", **dict.fromkeys(trained, "float64")})


def _check_resamples(effects: Sequence[Effect]) -> None:
    tests, resamples = sum(one.p is not None for one in effects), effects[0].resamples
    if tests > SIGNIFICANCE * (resamples + 1):
        warnings.warn(
            f"{resamples} resamples give no p-value below {1 / (resamples + 1):.1g}, so that none of {tests} effects "
            f"can be significant after Holm: take at least {round(tests / SIGNIFICANCE):,} resamples.",
            LangNeuronsWarning,
            stacklevel=4,
        )


def _key(key: Hashable, keys: Sequence[str]) -> tuple:
    values = key if isinstance(key, tuple) else (key,)
    if len(values) != len(keys):
        raise EffectError(f"The key {key!r} has {len(values)} parts, but the columns are {', '.join(keys)}.")
    return values


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Key columns of mixed types as text: a parquet column has one type."""
    mixed = [column for column in table.columns if len(set(map(type, table[column]))) > 1]
    return table.assign(**{column: table[column].map(str) for column in mixed})


def _storable(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise EffectError(f"The settings of a table are stored as JSON: {error}.") from error


def _intervals(rows: pd.DataFrame, percent: bool, names: Sequence[str] = ("estimate", "low", "high")) -> list[str]:
    values = rows[list(names)].to_numpy(dtype=float, na_value=math.nan)
    numbers = ([_number(value, percent) for value in row] for row in values)
    return [f"{middle} [{low}, {high}]" for middle, low, high in numbers]


def _number(value: float, percent: bool, sign: str = "+") -> str:
    if math.isnan(value):
        return "none"
    shown = 100 * value if percent else value
    return f"{shown:{sign}.3g}" if abs(shown) < 1000 else f"{shown:{sign},.0f}"


def _span(counts: list[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
