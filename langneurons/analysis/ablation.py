"""Ablation: the effect of every neuron in every language, with what is needed to believe it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from langneurons.effects.estimation import LOSSES, Effect, benjamini_hochberg, current_verdicts
from langneurons.effects.pairing import BASELINE
from langneurons.effects.placement import placement_columns
from langneurons.effects.resampling import least_p
from langneurons.effects.table import (
    CONTROL_NUMBERS,
    VERDICTS,
    balance_sentence,
    check_balance,
    spreads_of,
    with_current_names,
)
from langneurons.errors import EffectError, counted
from langneurons.recording.site_values import basis_note
from langneurons.storage import Column, JsonObject, Result, Table, all_of, layout
from langneurons.storage.layouts import Layout

LEAST_CONTROLS = 19  # fewer give no rank p-value of 0.05
SHOWN = 20  # effects that are printed
COLUMNS = ["effect", "low", "high", "p", "p_adjusted", "verdict", "detectable", "unpatched", "patched"]
COLUMNS += ["items", "clusters"]
NAMES = {"estimate": "effect", "minimal_detectable": "detectable", "baseline": "unpatched", "condition": "patched"}


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result, kind="ablation", tables=("rows",), optional=("controls",)):
    """What ablating neurons changed, per label and measured language, as one family of tests (Benjamini-Hochberg).

    Two questions, two columns: ``p_adjusted`` and the verdict ask whether the effect differs from zero,
    ``control_position`` and ``control_p`` whether it differs from those of matched control neurons. A neuron can matter
    and yet matter no more than any other of its kind. ``control_p`` is of one test, not adjusted for their number.

    Attributes:
        rows: One row per condition and language: label, layer and neuron (where neurons are ablated alone or added one
            by one), neurons (how many are ablated), language (measured), effect, low, high, p, p_adjusted, verdict,
            detectable (the minimal detectable effect of one test), unpatched, patched, items, clusters; with controls
            control_position (the share of controls below the effect), control_p, control_mean, control_sd, control_low,
            control_high, control_draws, and control_pool: "layer" where the neuron stands among the controls of its own
            layer, "label" where those are fewer than 19 and all of the label's serve.
        controls: Each control's effect: label, layer, neuron (or draw), language, effect.
        settings: How it was measured.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(
            text="label language control_pool?",
            whole="items clusters layer? neuron? neurons?",
            number=f"effect low high detectable unpatched patched {CONTROL_NUMBERS}",
            share="p p_adjusted control_p? control_p_adjusted?",
            choices=VERDICTS,
        ),
        "controls": layout(text="label language", number="effect"),
        "settings": layout(
            text="model metric patch site per",
            texts="keys",
            finite="margin min_effect?",
            whole="resamples",
            flag="own_unit?",
            mapping="balance?",
            choices={"each": ("neuron", "group", "cumulative")},
        ),
    }

    rows: pd.DataFrame
    controls: pd.DataFrame | None
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        effects: Mapping[tuple, Effect],
        keys: Sequence[str],
        controls: pd.DataFrame | None,
        settings: Mapping[str, object],
    ) -> "Ablation":
        """Judge effects as one family and place them among controls.

        Args:
            effects: Values of ``keys`` -> effect.
            keys: Names of the key columns: label and language among them.
            controls: What each control changed, with the columns label, language, effect, and perhaps layer.
            settings: Settings that JSON can hold.
        """
        values = list(effects.values())
        adjusted = benjamini_hochberg([effect.p for effect in values])
        tests = max(1, sum(effect.p is not None for effect in values))
        verdict = [effect.judged(float(p)) for effect, p in zip(values, adjusted, strict=True)]
        columns = pd.DataFrame(map(vars, values)).assign(p_adjusted=adjusted, verdict=verdict)
        columns["minimal_detectable"] = [effect.detectable_in(tests) for effect in values]
        columns = columns.rename(columns=NAMES)
        keyed = pd.DataFrame(list(effects), columns=pd.Index(keys))
        rows = pd.concat([keyed, columns[COLUMNS].astype({"p": float})], axis=1)
        rows = rows if controls is None else _placed(rows, controls, spreads_of(settings))
        return cls(rows, controls, {**settings, "keys": list(keys)})

    def table(self, show: int | None = None, min_effect: float | None = None) -> Table:
        """The effects to print, the largest first.

        Args:
            show: Number of effects; by default all, of which text and HTML show twenty.
            min_effect: Smaller effects are left out: 0.01 is 1 % or one point. P-values are adjusted over all effects,
                shown or not.

        Returns:
            Effects in per cent of the unpatched loss, in points of a task's score, or in a function's own unit.

        Raises:
            EffectError: If ``min_effect`` is negative or not finite.
        """
        least = float(self.settings.get("min_effect") or 0.0) if min_effect is None else min_effect
        if not 0 <= least < np.inf:
            raise EffectError(f"min_effect is the smallest effect to print: 0 or more, given {least}.")
        rows = self.rows.loc[self.rows["effect"].abs() >= least]
        rows = rows.sort_values("effect", key=np.abs, ascending=False, kind="stable")[:show].reset_index(drop=True)
        frame = rows[[*self.settings["keys"], "effect", "low", "high", "p_adjusted", "verdict", "detectable"]].copy()
        if "control_position" in rows.columns:
            places = zip(rows["control_position"], rows["control_draws"], rows["control_pool"], strict=True)
            frame["among_controls"] = [_percentile(*place) for place in places]
        unit = "" if self.settings.get("own_unit") else "%" if self.settings["per"] == BASELINE else "points"
        p, floor = self.rows["p"].dropna().to_numpy(float), least_p(self.settings["resamples"])
        columns = {
            "effect": Column(unit=unit, scale=self.scale, signed=True, bounds=("low", "high")),
            "p_adjusted": Column("p (BH)", digits=2, floor=floor if len(p) and floor <= p.min() else None),
            "detectable": Column(unit=unit, scale=self.scale, digits=2),
        }
        return Table(frame, columns, caption=self.caption, limit=SHOWN if show is None else max(show, 1))

    @property
    def unit(self) -> str:
        """Unit in which effects are printed."""
        if self.settings.get("own_unit"):
            return "its own unit"
        return "% of the unpatched loss" if self.settings["per"] == BASELINE else "points"

    @property
    def scale(self) -> int:
        """Factor by which effects are multiplied when they are printed."""
        return 1 if self.settings.get("own_unit") else 100

    @property
    def caption(self) -> str:
        """What was measured, in which family, and what could have been found."""
        settings = self.settings
        least, most = (self.scale * float(value) for value in self.rows["detectable"].agg(["min", "max"]))
        sizes = f"{self.rows['items'].min():,} to {self.rows['items'].max():,} items per effect"
        unit = " %" if self.unit.startswith("%") else f" {self.unit}"
        note = basis_note(settings["site"])
        basis = f" Units of {settings['site']} are coordinates: {note}." if note else ""
        return (
            f"{settings['model']}: {settings['metric']} in {self.unit}, {settings['patch']}; "
            f"{counted(len(self.rows), 'effect')}, p adjusted over all of them; "
            f'"no effect" and "slightly" mean: within the margin of {self.scale * settings["margin"]:g}{unit}; '
            f"{sizes}; minimal detectable effect (in this family) {least:.2g} to {most:.2g}{unit}."
            f"{basis}{balance_sentence(settings)}"
        )

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        fields = super()._read(folder, content)
        lower_is_better = fields["settings"]["metric"] in LOSSES
        verdicts = current_verdicts(fields["rows"], lower_is_better, "effect", "p_adjusted")
        rows = fields["rows"].assign(verdict=verdicts)
        return fields | {"rows": rows, "settings": with_current_names(fields["settings"])}

    def _check_parts(self) -> None:
        placed = ["control_draws", "control_pool"] if "control_position" in self.rows.columns else []
        placed += [] if self.controls is None else ["control_low", "control_high"]
        which = ["layer", "neuron"] if self.settings["each"] == "neuron" else ["neurons"]
        all_of("mark", [*self.settings["keys"], *placed, *which]).check("the ablation", self.rows)
        check_balance(self.settings)
        if self.rows.empty or len(set(self.settings["keys"])) < len(self.settings["keys"]):
            raise ValueError("it has no rows, or a key stands there twice")


def _placed(rows: pd.DataFrame, controls: pd.DataFrame, spreads: Mapping[str, float | None]) -> pd.DataFrame:
    """Place effects among single controls, whole control sets among the draws of them."""
    cell = ["label", "language"]
    by_label = controls.groupby(cell)["effect"].agg(list).to_dict()
    by_layer = controls.groupby([*cell, "layer"])["effect"].agg(list).to_dict() if "layer" in rows.columns else {}
    pools, draws = [], []
    for row in rows.to_dict("records"):
        key = (row["label"], row["language"])
        near = by_layer.get((*key, row.get("layer")), [])
        pools.append("layer" if len(near) >= LEAST_CONTROLS else "label")
        draws.append(near if len(near) >= LEAST_CONTROLS else by_label.get(key, []))
    of_rows = [spreads.get(label, 1.0) for label in rows["label"]] if "draw" in controls.columns else None
    columns = placement_columns(rows["effect"].tolist(), draws, adjust=benjamini_hochberg, spreads=of_rows)
    return rows.assign(**columns, control_pool=pools)


def _percentile(position: float, draws: float, pool: str) -> str | None:
    return None if np.isnan(position) else f"P{np.floor(100 * position):.0f} of {draws:.0f} ({pool})"
