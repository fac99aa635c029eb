"""Ablation: the effect of every neuron in every language, with what is needed to believe it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from langneurons import storage
from langneurons.effects.estimation import Effect, benjamini_hochberg
from langneurons.effects.pairing import BASELINE
from langneurons.effects.placement import placement_columns
from langneurons.errors import EffectError

SCHEMA = "langneurons/ablation/1"
LATEX = str.maketrans({char: f"\\{char}" for char in "%&_#$"})
LEAST_CONTROLS = 19  # fewer give no rank p-value of 0.05


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """What ablating neurons changed, per label and measured language, as one family of tests (Benjamini-Hochberg).

    Two questions, two columns: ``p_adjusted`` and the verdict ask whether the effect differs from zero,
    ``control_position`` and ``control_p`` whether it differs from those of matched control neurons. A neuron can matter
    and yet matter no more than any other of its kind. ``control_p`` is of one test, not adjusted for their number.

    Attributes:
        rows: One row a condition and language: label, layer and neuron (where neurons are ablated alone or added one
            by one), neurons (how many are ablated), language (measured), effect, low, high, p, p_adjusted, verdict,
            detectable (the minimal detectable effect of one test), unpatched, patched, items, clusters; with controls
            control_position (the share of controls below the effect), control_p, control_mean, control_sd, control_low,
            control_high, control_draws, and control_pool: "layer" where the neuron stands among the controls of its own
            layer, "label" where those are fewer than 19 and all of the label's serve.
        controls: Each control's effect: label, layer, neuron (or draw), language, effect.
        settings: How it was measured.
    """

    rows: pd.DataFrame
    controls: pd.DataFrame | None
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        effects: Mapping[tuple, Effect],
        keys: list[str],
        controls: pd.DataFrame | None,
        settings: Mapping[str, Any],
    ) -> "Ablation":
        """Judge effects as one family and place them among controls.

        Args:
            effects: Values of ``keys`` -> effect.
            keys: Names of the key columns: label and language among them.
            controls: What each control changed, with the columns label, language, effect, and perhaps layer.
            settings: What JSON can hold.
        """
        found = list(effects.values())
        adjusted = benjamini_hochberg([one.p for one in found])
        judged = {
            "effect": [one.estimate for one in found],
            "low": [one.low for one in found],
            "high": [one.high for one in found],
            "p": np.array([one.p for one in found], dtype=float),
            "p_adjusted": adjusted,
            "verdict": [one.judged(float(p)) for one, p in zip(found, adjusted, strict=True)],
            "detectable": [one.minimal_detectable for one in found],
            "unpatched": [one.baseline for one in found],
            "patched": [one.condition for one in found],
            "items": [one.items for one in found],
            "clusters": [one.clusters for one in found],
        }
        rows = pd.DataFrame(list(effects), columns=pd.Index(keys)).assign(**judged)
        stored = {**settings, "keys": keys}
        return cls(rows if controls is None else _placed(rows, controls), controls, stored)

    def table(self, top: int | None = None) -> pd.DataFrame:
        """The effects to print, the largest first.

        Args:
            top: How many; None is all whose size is ``min_effect`` or more.

        Returns:
            Effects in per cent of the unpatched loss, in points of a task's score, or in a function's own unit, with
            p-values adjusted over all rows, shown or not.
        """
        shown = self.rows.loc[self.rows["effect"].abs() >= self.settings["min_effect"]]
        shown = shown.loc[shown["effect"].abs().sort_values(ascending=False, kind="stable").index]
        shown = shown if top is None else shown.head(top)
        columns: dict[str, Any] = {key: shown[key] for key in self.settings["keys"]}
        scale = self.scale
        columns["effect"] = [f"{scale * value:+.3g}" for value in shown["effect"]]
        columns["interval"] = [
            f"[{scale * low:+.3g}, {scale * high:+.3g}]" for low, high in zip(shown["low"], shown["high"], strict=True)
        ]
        columns |= {"p (BH)": [_p(value) for value in shown["p_adjusted"]], "verdict": shown["verdict"]}
        columns["detectable"] = [f"{scale * value:.2g}" for value in shown["detectable"]]
        if "control_position" in shown.columns:
            columns["among controls"] = [_percentile(row) for row in shown.to_dict("records")]
        return pd.DataFrame(columns).reset_index(drop=True)

    def latex(self, top: int | None = None) -> str:
        """The table as LaTeX, with a caption that says what was measured."""
        return self.table(top).to_latex(index=False, escape=True, caption=self.caption.translate(LATEX))

    def save(self, path: str | Path) -> Path:
        """Write everything to a folder: ``ablation.json`` (settings, checksums) and one parquet file a table.

        Returns:
            The folder.
        """
        tables = {"rows": self.rows, "controls": self.controls}
        return storage.write_result(Path(path) / "ablation.json", SCHEMA, self.settings, tables)

    @classmethod
    def load(cls, path: str | Path) -> "Ablation":
        """Read a saved ablation.

        Raises:
            StorageError: If a file is missing.
            CorruptArtefactError: If it is no ablation, or was changed.
        """
        settings, tables = storage.read_result(Path(path) / "ablation.json", SCHEMA, ["rows"])
        return cls(tables["rows"], tables.get("controls"), settings)

    def __repr__(self) -> str:
        return f"{self.table(20).to_string(index=False)}\n{self.caption}"

    def _repr_html_(self) -> str:
        return f"{self.table(20).to_html(index=False, border=0)}<p>{self.caption}</p>"

    @property
    def unit(self) -> str:
        """What effects are printed in."""
        if self.settings.get("own_unit"):
            return "its own unit"
        return "% of the unpatched loss" if self.settings["per"] == BASELINE else "points"

    @property
    def scale(self) -> int:
        """What effects are multiplied by when they are printed."""
        return 1 if self.settings.get("own_unit") else 100

    @property
    def caption(self) -> str:
        """What was measured, in which family, and what could have been found."""
        about = self.settings
        least, most = (self.scale * float(value) for value in self.rows["detectable"].agg(["min", "max"]))
        sizes = f"{self.rows['items'].min():,} to {self.rows['items'].max():,} items an effect"
        basis = " Units of resid_post are coordinates: basis-dependent." if about["site"] == "resid_post" else ""
        return (
            f"{about['model']}: {about['metric']} in {self.unit}, {about['patch']}; {len(self.rows)} effects, p "
            f"adjusted over all of them; equivalent: within +-{self.scale * about['margin']:g}; {sizes}; minimal "
            f"detectable effect (one test) {least:.2g} to {most:.2g}.{basis}"
        )


def check_min_effect(min_effect: float) -> None:
    """Refuse a smallest effect that is no size.

    Raises:
        EffectError: If it is negative or not finite.
    """
    if not 0 <= min_effect < np.inf:
        raise EffectError(f"min_effect is the smallest effect to print: 0 or more, given {min_effect}.")


def _placed(rows: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    by_label = {key: part["effect"].tolist() for key, part in controls.groupby(["label", "language"])}
    by_layer = {}
    if "layer" in rows.columns:
        by_layer = {key: part["effect"].tolist() for key, part in controls.groupby(["label", "language", "layer"])}
    pools, drawn = [], []
    for row in rows.to_dict("records"):
        cell = (row["label"], row["language"])
        near = by_layer.get((*cell, row.get("layer")), [])
        pools.append("layer" if len(near) >= LEAST_CONTROLS else "label")
        drawn.append(near if len(near) >= LEAST_CONTROLS else by_label.get(cell, []))
    return rows.assign(**placement_columns(rows["effect"].tolist(), drawn), control_pool=pools)


def _p(value: float) -> str:
    return "none" if np.isnan(value) else f"{value:.2g}"


def _percentile(row: Mapping[str, Any]) -> str:
    if np.isnan(row["control_position"]):
        return "none"
    return f"P{np.floor(100 * row['control_position']):.0f} of {row['control_draws']:.0f} ({row['control_pool']})"
