"""EffectTable: one printed table of effects, which is one family of tests, with what is needed to believe it."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import numpy as np
import pandas as pd

from langneurons.effects.estimation import LOSSES, Effect, Verdict, current_verdicts, holm
from langneurons.effects.pairing import BASELINE
from langneurons.effects.placement import draws_needed
from langneurons.effects.resampling import SIGNIFICANCE, least_p
from langneurons.errors import EffectError, in_short, unknown, warn_user
from langneurons.settings import Testing
from langneurons.storage.layouts import Layout, all_of, layout
from langneurons.storage.objects import JsonObject
from langneurons.storage.presenting import P_VALUE, Column, Table
from langneurons.storage.result import Result

Key = TypeVar("Key", bound=Hashable)
BEYOND_COLUMNS = ("beyond", "beyond_low", "beyond_high", "beyond_verdict")
LARGE_SHARE = 0.25  # of an effect's weight in one cluster, above which a table says so
COMMON = ("value", "per", "margin", "level", "resamples", "seed", "lower_is_better")
COLUMNS = (
    "estimate",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "minimal_detectable",
    "standard_error",
    "largest_cluster",
    "items",
    "clusters",
    "unit",
    "baseline",
    "condition",
)
CONTROL_NUMBERS = "control_mean? control_sd? control_low? control_high? control_position? control_draws?"
VERDICTS = {"verdict": get_args(Verdict)}


@dataclass(frozen=True, eq=False, repr=False)
class EffectTable(Result, kind="effect-table", file="effects", tables=("rows",), optional=("controls", "selectivity")):
    """Effects of one model, task and metric; verdicts follow p-values adjusted over all of them (Holm).

    Attributes:
        rows: One effect per row: the key columns, estimate, low, high, p, p_holm, verdict, minimal_detectable,
            standard_error, largest_cluster, items, clusters, baseline, condition; seeds and seed_sd where something was
            trained; where controls were drawn, their placement (control_mean, control_low, control_high, ...), and the
            effect beyond them (beyond, ...; at_equal_dose, ..., where their effects are scaled to what the set writes).
            The minimal detectable effect is that of a test in this family.
        settings: How it was measured, with ``keys`` (the key columns) and ``family`` (what was adjusted over).
        controls: Effect of each control draw: key columns, ``control`` (its kind), ``draw``, ``estimate``.
        selectivity: Diagonal against off-diagonal, where the table is a matrix of languages.

    Example:
        >>> from langneurons.effects.estimation import effect
        >>> before = pd.DataFrame({"item": range(40), "cluster": range(40), "nll": 2.0})
        >>> after = before.assign(nll=[2.2 + 0.01 * (i % 7) for i in range(40)])
        >>> effects = {("hi", "hi"): effect(after, before), ("hi", "en"): effect(before, before)}
        >>> table = EffectTable.of(effects, ("patched", "measured"), "an example: 2 effects")
        >>> table.matrix("verdict").loc["hi"].tolist()
        ['worse', 'no effect']
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(
            number="estimate low high minimal_detectable seeds? seed_sd? beyond? beyond_low? beyond_high? "
            + CONTROL_NUMBERS,
            share="p p_holm largest_cluster? control_p? control_p_adjusted?",
            whole="items clusters",
            note="beyond_verdict? unit?",
            choices=VERDICTS,
        ),
        "settings": layout(
            text="family value per model? source? measured? against?",
            texts="keys",
            finite="margin",
            share="level",
            whole="resamples",
            flag="lower_is_better",
            mapping="nats_per_token? balance?",
        ),
        "controls": layout(number="estimate"),
        "selectivity": layout(number=f"selectivity low high {CONTROL_NUMBERS}", share="control_p? control_p_adjusted?"),
    }

    rows: pd.DataFrame
    settings: Mapping[str, Any]
    controls: pd.DataFrame | None = None
    selectivity: pd.DataFrame | None = None

    @classmethod
    def of(
        cls,
        effects: Mapping[Key, Effect],
        keys: Sequence[str],
        family: str,
        settings: Mapping[str, object] | None = None,
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
            selectivity: Diagonal against off-diagonal of a matrix of languages.

        Raises:
            EffectError: If there is no effect, a key does not fit, the effects measure different things, or a setting
                cannot be stored.
        """
        if not effects:
            raise EffectError("An effect table needs at least one effect, none was given.")
        common = _common(list(effects.values()))
        stored = _storable({**(settings or {}), **common, "keys": list(keys), "family": family})
        rows = pd.concat([_key_columns(effects, keys), _judged(list(effects.values()))], axis=1)
        return cls(rows, stored, controls, selectivity)

    @property
    def keys(self) -> list[str]:
        """Names of the key columns."""
        return list(self.settings["keys"])

    @property
    def family(self) -> str:
        """What p-values are adjusted over, in one sentence."""
        return self.settings["family"]

    @property
    def unit(self) -> str:
        """Unit in which effects are printed: "%" of the baseline, "points" of a score, or what a loss is divided by."""
        value, per = self.settings["value"], self.settings["per"]
        return "%" if per == BASELINE else f"{value} per {per}" if value in LOSSES else "points"

    @property
    def scale(self) -> int:
        """Factor from estimates to the unit in which they are printed."""
        return 100 if self.unit in ("%", "points") else 1

    def __len__(self) -> int:
        return len(self.rows)

    def matrix(self, value: str = "estimate") -> pd.DataFrame:
        """One column of a table with two keys: the first key down, the second across, in the order of the rows.

        Args:
            value: Name of the column.

        Raises:
            EffectError: If there is no such column, or the table has not two keys.
        """
        if value not in self.rows.columns:
            raise EffectError(unknown("column", value, self.rows.columns))
        if len(self.keys) != 2:
            raise EffectError(f"A matrix needs two keys; this table has {len(self.keys)}: {', '.join(self.keys)}.")
        return self._wide(self.rows.assign(shown=self.rows[value]))

    def table(self, percent: bool = True) -> Table:
        """The table to print: every effect with its interval, p-value, verdict, detectable effect and controls.

        Args:
            percent: Whether to print effects in per cent or points, not as shares.
        """
        names = ("estimate", "low", "high", "p_holm", "verdict", "minimal_detectable")
        names += ("control_mean", "control_low", "control_high", "control_p_adjusted", *BEYOND_COLUMNS)
        names += ("items", "clusters", "seeds")
        frame = self.rows.loc[:, [*self.keys, *(name for name in names if name in self.rows.columns)]]
        unit, scale = (self.unit, self.scale) if percent else ("", 1)
        columns = {
            "estimate": Column("effect", unit, scale, signed=True, bounds=("low", "high")),
            "p_holm": Column("p (Holm)", digits=P_VALUE.digits, floor=self._least_p()),
            "minimal_detectable": Column("detectable", unit, scale),
            "control_mean": Column("controls", unit, scale, signed=True, bounds=("control_low", "control_high")),
            "control_p_adjusted": Column("p among controls (Holm)", digits=P_VALUE.digits),
            "beyond": Column("beyond controls", unit, scale, signed=True, bounds=("beyond_low", "beyond_high")),
            "beyond_verdict": Column("verdict beyond controls"),
            "seeds": Column(index=True),
        }
        return Table(frame, columns, caption=self._caption(unit, scale))

    def selectivity_table(self) -> Table:
        """The table of selectivity to print, in points: by how much patching hurts a language more than the others."""
        points = {"unit": "points", "scale": 100, "signed": True}
        columns = {
            "selectivity": Column(**points, bounds=("low", "high")),
            "control_mean": Column("controls", **points, bounds=("control_low", "control_high")),
            "control_p_adjusted": Column("p among controls (Holm)", digits=P_VALUE.digits),
        }
        frame = pd.DataFrame() if self.selectivity is None else self.selectivity
        caption_of_ranks = draws_needed(frame)
        frame = frame.drop(columns=["control_sd", "control_position", "control_p", "control_draws"], errors="ignore")
        caption = (
            f"Change of a language's own loss minus the mean change of the others' [{self._level} interval]; controls: "
            f"the same with matched neurons.{caption_of_ranks}"
        )
        return Table(frame, columns, title="Selectivity", caption=caption)

    def to_markdown(self, percent: bool = True) -> str:
        """A table for a README: estimate [low, high] and verdict, under it the family, sizes and detectable effects.

        A table with two keys becomes a matrix, any other one line per effect.

        Args:
            percent: Whether to print effects in per cent or points, not as shares.
        """
        table = self.table(percent)
        if len(self.keys) != 2:
            return table.to_markdown()
        down, across = self.keys
        texts = table.texts().iloc[:, 2].set_axis(self.rows.index) + " " + self.rows["verdict"]
        matrix = (
            self._wide(self.rows.assign(shown=texts))
            .fillna("")
            .rename_axis(columns=None)
            .reset_index(names=f"{down} \\ {across}")
        )
        return Table(matrix, caption=table.caption).to_markdown()

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        fields = super()._read(folder, content)
        rows = fields["rows"].assign(verdict=current_verdicts(fields["rows"], fields["settings"]["lower_is_better"]))
        return fields | {"rows": rows, "settings": with_current_names(fields["settings"])}

    def _check_parts(self) -> None:
        for table in (self.rows, self.controls):
            if table is not None:
                all_of("mark", self.keys).check("the effect table", table)
        if len(set(self.keys)) < len(self.keys):
            raise ValueError("a key stands there twice")
        if not self.keys or self.rows.empty or bool(self.rows.duplicated(self.keys).any()):
            raise ValueError(f"one effect for each value of {', '.join(self.keys) or 'its keys'} is needed")
        nats = self.settings.get("nats_per_token") or {}
        all_of("finite", nats).check("the settings", nats)
        check_balance(self.settings)

    @property
    def _unit(self) -> str:
        """What was resampled, in one word; version 0.1.0 knew clusters only."""
        units = set(self.rows["unit"]) if "unit" in self.rows.columns else {"cluster"}
        return units.pop() if len(units) == 1 else "cluster"

    @property
    def _level(self) -> str:
        return f"{100 * self.settings['level']:g} %"

    def _least_p(self) -> float | None:
        """The smallest adjusted p-value, where no number of resamples as large as this one gives a smaller one."""
        p, adjusted = (self.rows[name].to_numpy(float) for name in ("p", "p_holm"))
        at_floor = np.isclose(p, least_p(self.settings["resamples"]), rtol=1e-9)
        return float(adjusted[at_floor].min()) if at_floor.any() and np.nanmin(p) == p[at_floor].min() else None

    def _wide(self, rows: pd.DataFrame) -> pd.DataFrame:
        down, across = self.keys
        wide = rows.pivot(index=down, columns=across, values="shown")
        return wide.reindex(index=rows[down].unique(), columns=rows[across].unique())

    def _caption(self, unit: str, scale: int) -> str:
        if not len(self.rows):
            return f"Family: {self.family} (Holm). None of its effects is shown."
        size, column = Column(scale=scale), f" {unit}" if unit else ""
        bounds = dict.fromkeys(size.text(bound) for bound in self.rows["minimal_detectable"].agg(["min", "max"]))
        metric = self.settings.get("measured", self.settings["value"])
        clusters = f"{span(self.rows['clusters'])} {self._unit}s"
        alone = " of each effect alone; p and verdict are adjusted for the family" if len(self.rows) > 1 else ""
        return (
            f"Family: {self.family} (Holm). Change of {metric}{f' in {unit}' if unit else ''} "
            f"[{self._level} interval{alone}]. {self._margin(size, column)} {span(self.rows['items'])} items in "
            f"{clusters} per effect; minimal detectable effect (in this family) "
            f"{' to '.join(f'{bound}{column}' for bound in bounds)}.{dominance(self.rows)}{draws_needed(self.rows)}"
            f"{balance_sentence(self.settings)}"
        )

    def _margin(self, size: Column, unit: str) -> str:
        """The margin, in the unit of the table and in nats per token where that is known."""
        margin, losses = self.settings["margin"], self.settings.get("nats_per_token") or {}
        nats = [Column(digits=2).text(margin * loss) for loss in sorted(losses.values())]
        in_nats = f" ({' to '.join(dict.fromkeys((nats[0], nats[-1])))} nats per token)" if nats else ""
        default = ", the default" if margin == Testing().margin else ""
        number = size.text(margin)
        unit = unit.removesuffix("s") if number == "1" else unit
        return f'"No effect" and "slightly" mean: within the margin of {number}{unit}{in_nats}{default}.'


def balance_sentence(settings: Mapping[str, Any]) -> str:
    """What a result's settings say of its controls' balance, to end a caption; nothing where there were none."""
    balance = settings.get("balance")
    return f" {balance['sentence']}" if balance else ""


def spreads_of(settings: Mapping[str, Any]) -> dict[str, float | None]:
    """How much more one more set varies than its control draws do, by label, from the settings of a result.

    Args:
        settings: Settings with what ``reported_balance`` gave, if controls were drawn.
    """
    rows = (settings.get("balance") or {"rows": []})["rows"]
    return {row["language"]: row.get("spread", 1.0) for row in rows}


def check_balance(settings: Mapping[str, object]) -> None:
    """Refuse stored settings whose balance of controls has no sentence or no rows.

    Raises:
        CorruptArtefactError: If it has none.
    """
    balance: Any = settings.get("balance")
    if balance:
        layout(text="sentence").check("the controls' balance", balance)
        rows = layout(text="language", number="write_ratio? spread?")
        for row in balance["rows"]:
            rows.check("the controls' balance", row)
            _ = row["write_ratio"]


def dominance(rows: pd.DataFrame) -> str:
    """A sentence where one cluster carries more than a quarter of the weight of an effect with a test; else nothing."""
    shares = rows.loc[rows["p"].notna(), "largest_cluster"] if "largest_cluster" in rows.columns else pd.Series([])
    if not (count := int((shares > LARGE_SHARE).sum())):
        return ""
    where = f"{count} of {len(rows)} effects one cluster carries" if len(rows) > 1 else "the effect one cluster carries"
    return f" In {where} more than a quarter of the weight, up to {shares.max():.0%}."


def with_current_names(settings: Mapping[str, object]) -> dict[str, Any]:
    """Settings stored with a result, in which options of version 0.1.0 have their current names.

    Example:
        >>> with_current_names({"delta": 0.01, "seed": 0})
        {'margin': 0.01, 'seed': 0}
    """
    return {Testing.old_names.get(name, name): value for name, value in settings.items()}


def _common(effects: Sequence[Effect]) -> dict[str, Any]:
    """The options that all effects share."""
    for name in COMMON:
        values = list(dict.fromkeys(getattr(change, name) for change in effects))
        if len(values) > 1:
            raise EffectError(
                f"One table is one family of one metric, but its effects differ in {name}: "
                f"{values[0]!r} and {values[1]!r}."
            )
    return {name: getattr(effects[0], name) for name in COMMON}


def _judged(effects: Sequence[Effect]) -> pd.DataFrame:
    adjusted = holm([change.p for change in effects])
    _check_resamples(effects)
    trained = ["seeds", "seed_sd"] if any(change.seeds is not None for change in effects) else []
    tests = max(1, sum(change.p is not None for change in effects))
    rows = pd.DataFrame([asdict(change) for change in effects]).assign(
        p_holm=adjusted, minimal_detectable=[change.detectable_in(tests) for change in effects]
    )
    if sentence := dominance(rows):
        warn_user(sentence.strip())
    rows["verdict"] = [change.judged(float(p)) for change, p in zip(effects, adjusted, strict=True)]
    return rows.loc[:, [*COLUMNS, *trained]].astype({"p": "float64", **dict.fromkeys(trained, "float64")})


def _check_resamples(effects: Sequence[Effect]) -> None:
    tests, resamples = sum(change.p is not None for change in effects), effects[0].resamples
    if tests * least_p(resamples) > SIGNIFICANCE:
        warn_user(
            f"{resamples} resamples give no p-value below {least_p(resamples):.1g}, so that none of {tests} effects "
            f"can be significant after Holm: take at least {round(2 * tests / SIGNIFICANCE):,} resamples."
        )


def _key_columns(effects: Iterable[Hashable], keys: Sequence[str]) -> pd.DataFrame:
    """Key columns, those of mixed types as text: a parquet column has one type."""
    rows = [key if isinstance(key, tuple) else (key,) for key in effects]
    for key in rows:
        if len(key) != len(keys):
            raise EffectError(f"The key {key!r} has {len(key)} parts, but the columns are {', '.join(keys)}.")
    table = pd.DataFrame(rows, columns=list(keys))
    mixed = [column for column in table.columns if len(set(map(type, table[column]))) > 1]
    return table.assign(**{column: table[column].map(str) for column in mixed})


def _storable(settings: Mapping[str, object]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise EffectError(f"The settings of a table are stored as JSON: {in_short(error)}.") from error


def span(counts: Iterable[float]) -> str:
    """Counts as one number, or from the least to the most.

    Example:
        >>> span([1200, 1200]), span([3, 1])
        ('1,200', '1 to 3')
    """
    least, most = int(min(counts)), int(max(counts))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
