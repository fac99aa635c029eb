"""Polysemanticity: tables of neurons, sets and probes, and the decomposition of every neuron."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy import stats

from langneurons.analysis.decomposition import Decomposition
from langneurons.corpora.languages import label_of
from langneurons.effects.estimation import benjamini_hochberg, holm
from langneurons.effects.placement import placement_columns
from langneurons.effects.resampling import POWER, SIGNIFICANCE
from langneurons.effects.table import balance_sentence, check_balance
from langneurons.storage import Column, JsonObject, Result, Table, layout
from langneurons.storage.layouts import Layout

SHOWN = ["language", "layer", "neuron", "language_share", "task_share", "interaction_share"]
SHOWN += ["language_p_adjusted", "task_p_adjusted", "task_detectable", "task_bits", "verdict"]
SHARE = Column(unit="%", scale=100)
CONTROL_COLUMNS = {
    "control_mean": Column("controls", "%", 100, bounds=("control_low", "control_high")),
    "p_adjusted": Column("p (Holm)", digits=2),
    "detectable": Column(unit="points", scale=100),
}
BESIDE_CONTROLS = "control_mean? control_low? control_high? p_adjusted? detectable?"
CONTROLS = ["control_mean", "control_low", "control_high", "p_adjusted", "detectable", "verdict"]


@dataclass(frozen=True, eq=False, repr=False)
class Polysemanticity(Result, kind="polysemanticity", tables=("rows", "sets", "probes", "auroc")):
    """What neurons carry.

    Attributes:
        rows: One row per label (column language) and neuron of the set. Of the variance over texts, language_share,
            task_share and interaction_share are what language, label and their interaction explain (type II);
            language_first_share and task_first_share what language and label explain entered first, which differs where
            cells are unbalanced; and partial shares, of what the other sources leave. Then p-values, excess, detectable
            and bits, as ``neuron_evidence`` says; and p-values adjusted within the label's neurons, and verdict
            (language, task, both, neither), as ``judged`` says.
        sets: One row per label and what is carried (language, task, both): how many of its neurons do, beside matched
            controls: difference, p (Holm over the table), and the difference that would be found with 80 % power.
        probes: One row per label, factor predicted and number of neurons: balanced accuracy on items left out, chance,
            and the same beside matched controls; empty without probes.
        auroc: One row per label, neuron, factor and level: how well the neuron tells the level from the others.
        decomposition: The decomposition of every neuron of the model.
        settings: How it was measured: task, items, clusters, position, draws, ...
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(
            text="language",
            whole="layer neuron",
            number="language_share task_share interaction_share language_partial task_partial interaction_partial "
            "language_excess task_excess interaction_excess task_detectable language_bits? task_bits",
            share="language_p_adjusted task_p_adjusted",
            choices={"verdict": ("both", "language", "task", "neither")},
        ),
        "sets": layout(
            text="language carries", whole="neurons count", share="share", number=BESIDE_CONTROLS, note="verdict?"
        ),
        "probes": layout(
            text="language predicts", whole="k", number=f"accuracy chance {BESIDE_CONTROLS}", note="verdict?"
        ),
        "auroc": layout(text="language factor", mark="level", whole="layer neuron", share="auroc"),
        "settings": layout(
            text="model? site task",
            whole="items clusters cut controls finest",
            finite="least_share",
            mapping="balance?",
        ),
    }

    rows: pd.DataFrame
    sets: pd.DataFrame
    probes: pd.DataFrame
    auroc: pd.DataFrame
    decomposition: Decomposition
    settings: Mapping[str, Any]

    @property
    def languages(self) -> tuple[str, ...]:
        """The labels of the neuron set."""
        return tuple(dict.fromkeys(self.rows["language"]))

    def table(self, language: str | None = None, top: int | None = 20) -> Table:
        """The neurons that carry most of the task, in few columns.

        Args:
            language: Label of the neurons; by default every label.
            top: Number of neurons to print; all where None is given.

        Raises:
            LanguageError: If there is no such label.
        """
        if language is not None:
            language = label_of(language, self.languages)
        rows = self.rows if language is None else self.rows.loc[self.rows["language"] == language]
        carried = rows["task_excess"] + rows["interaction_excess"]
        ordered = rows.iloc[np.argsort(-carried.to_numpy(), kind="stable")]
        columns = {name: SHARE for name in SHOWN if name.endswith(("_share", "_detectable"))}
        columns |= {f"{factor}_p_adjusted": Column(f"{factor} p (BH)", digits=2) for factor in ("language", "task")}
        frame = ordered.reindex(columns=SHOWN).head(len(rows) if top is None else top).reset_index(drop=True)
        return Table(frame, columns, caption=f"Shares of a neuron's variance over texts. {self._limits()}")

    def sets_table(self) -> Table:
        """The table of how many neurons of each set carry what, beside matched controls."""
        about = self.settings
        names = ["language", "carries", "neurons", "count", "share", *(CONTROLS if about["controls"] else ())]
        cut = f", {about['cut']:,} texts cut" if about["cut"] else ""
        title = (
            f"What neurons at {about['site']} carry of language and {about['task']} ({about['items']:,} items in "
            f"{about['clusters']:,} clusters, {len(self.decomposition.languages)} languages{cut}; FDR 5 % within a "
            f"set, at least {100 * about['least_share']:.2g} % of the variance)"
        )
        below = f"{self._limits()}{balance_sentence(about)}"
        return Table(self.sets.reindex(columns=names), {"share": SHARE, **CONTROL_COLUMNS}, title, below)

    def probes_table(self) -> Table:
        """The table of what few neurons of a set predict on items left out, beside matched controls."""
        names = ["language", "predicts", "k", "accuracy", "chance", *(CONTROLS if self.settings["controls"] else ())]
        columns = {"accuracy": SHARE, "chance": SHARE, **CONTROL_COLUMNS}
        balance = balance_sentence(self.settings).strip()
        return Table(self.probes.reindex(columns=names), columns, "Probes on items left out", balance)

    def __repr__(self) -> str:
        return str(self.sets_table())

    def _repr_html_(self) -> str:
        return self.sets_table()._repr_html_()

    def _limits(self) -> str:
        """What could not have been found: too small an effect, or too few neurons for the number of exchanges."""
        share = float(np.median(self.rows["task_detectable"].to_numpy(float)))
        limits = "With so few clusters no effect of a label is found with 80 % power (median neuron)."
        if np.isfinite(share):
            explained = f"{100 * share:.2g} % of the variance that language leaves unexplained"
            limits = f"To be found with 80 % power, a label must explain {explained} (median neuron)."
        largest = max(map(len, self.rows.groupby("language").groups.values()))
        least = np.ceil(TESTS_A_TASK * largest / (SIGNIFICANCE * (1 + self.settings["finest"])))
        if least > 1:
            limits += (
                f"\nWith {self.settings['finest']:,} exchanges, fewer than {least:.0f} of {largest:,} neurons that "
                "carry the task cannot be found: raise permutations."
            )
        return limits

    def _check_parts(self) -> None:
        check_balance(self.settings)
        self.decomposition._check_parts()
        if self.settings["controls"]:
            for name in ("sets", "probes"):
                if len(table := getattr(self, name)):
                    layout(mark=" ".join(CONTROLS[:-1])).check(name, table)
        layers, width = self.decomposition.shape
        if self.rows.empty or bool((self.rows["layer"] >= layers).any() or (self.rows["neuron"] >= width).any()):
            raise ValueError(f"it has no neuron, or one outside {layers} layers x {width}")
        if self.decomposition.site != self.settings["site"]:
            raise ValueError("the decomposition is of another site")

    def _write(self, folder: Path) -> JsonObject:
        content = super()._write(folder)
        return {**content, "settings": {**self.settings, "decomposition": self.decomposition._write(folder)}}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        fields = super()._read(folder, content)
        settings = fields["settings"]
        parts = {"site": settings["site"], **settings.pop("decomposition")}
        return {**fields, "decomposition": Decomposition(**Decomposition._read(folder, parts))}


TESTS_A_TASK = 2  # of the label, and of its interaction with language
VERDICTS = ("both", "language", "task", "neither")
COUNTED = {"language": ("language", "both"), "task": ("task", "both"), "both": ("both",)}


def judged(neurons: pd.DataFrame, least_share: float) -> pd.DataFrame:
    """Say what each neuron of one family carries, at a false discovery rate of 5 % (Benjamini-Hochberg) a factor.

    A neuron carries the task if its label explains something, or what the label does differs between languages: the
    smaller p-value counts twice. What explains less than ``least_share`` beyond chance, of the variance that the other
    sources leave, is taken for nothing (its p-value for 1).

    Args:
        neurons: Columns p and excess of language, task and interaction, as ``neuron_evidence`` gives them.
        least_share: Share below which an effect is of no interest.

    Returns:
        The neurons with language_p_adjusted, task_p_adjusted and verdict.
    """
    p = {
        source: np.where(neurons[f"{source}_excess"].to_numpy() >= least_share, neurons[f"{source}_p"].to_numpy(), 1.0)
        for source in ("language", "task", "interaction")
    }
    either = np.minimum(1, TESTS_A_TASK * np.minimum(p["task"], p["interaction"]))
    language_p, task_p = benjamini_hochberg(p["language"]), benjamini_hochberg(either)
    language, task = language_p < SIGNIFICANCE, task_p < SIGNIFICANCE
    verdict = np.select([language & task, language, task], VERDICTS[:3], VERDICTS[3])
    return neurons.assign(language_p_adjusted=language_p, task_p_adjusted=task_p, verdict=verdict)


def counted(
    own: Mapping[str, pd.DataFrame],
    controls: Sequence[Mapping[str, pd.DataFrame]],
    spreads: Mapping[str, float | None] | None = None,
) -> pd.DataFrame:
    """Count what the neurons of each set carry, beside matched controls.

    Args:
        own: Set -> its neurons, judged.
        controls: Such sets of every control draw, each judged as a family of its own.
        spreads: Set -> how much more one more set varies than its draws do; 1 by default.

    Returns:
        A row per set and what is carried (language, task, both): neurons, count, share, and ``beside_controls``.
    """
    rows, control_shares, least = [], [], []
    for label, neurons in own.items():
        for carries, verdicts in COUNTED.items():
            count, size = int(np.isin(neurons["verdict"].to_numpy(), verdicts).sum()), len(neurons)
            shares = [float(np.isin(draw[label]["verdict"].to_numpy(), verdicts).mean()) for draw in controls]
            rows.append((label, carries, size, count, count / size))
            control_shares.append(shares)
            # Where no control has any, another draw of them still might: one more, and one less, among all.
            expected = (sum(shares) * size + 1) / (len(shares) * size + 2)
            least.append(float(np.sqrt(expected * (1 - expected) / size)))
    table = pd.DataFrame(rows, columns=["language", "carries", "neurons", "count", "share"])
    return beside_controls(table, "share", control_shares, least, spreads)


def beside_controls(
    table: pd.DataFrame,
    value: str,
    controls: Sequence[Sequence[float]],
    least_sd: Sequence[float],
    spreads: Mapping[str, float | None] | None = None,
) -> pd.DataFrame:
    """Add to each row where its value lies among its controls, as one family.

    Args:
        table: A row per value.
        value: The column to compare.
        controls: The same value of every control draw, for each row.
        least_sd: The least standard deviation that draws must be granted, for each row.
        spreads: Label -> how much more one more set varies than its draws do; 1 by default.

    Returns:
        The table with ``placement_columns``, whose interval knows ``least_sd`` too; difference (from the controls'
        mean), p (a t-test of one new draw), p_adjusted (Holm over the table), detectable (the difference that such a
        test finds with 80 % power) and verdict: above, below, or inconclusive. Without two draws they are missing.
    """
    if table.empty:
        return table
    of_rows = [1.0] * len(table) if spreads is None else [spreads.get(label, 1.0) for label in table["language"]]
    placements = placement_columns(table[value].tolist(), controls, spreads=of_rows)
    draws, sd = placements["control_draws"], np.maximum(placements["control_sd"], least_sd)
    widened = np.array([np.inf if spread is None else spread for spread in of_rows])
    difference, error = table[value].to_numpy(float) - placements["control_mean"], sd * np.sqrt(widened**2 + 1 / draws)
    width = stats.t.isf(SIGNIFICANCE / 2, draws - 1) * error
    mean = placements["control_mean"]
    placements |= {"control_low": mean - width, "control_high": mean + width}
    p = 2 * stats.t.sf(np.abs(difference) / error, draws - 1)
    adjusted = holm(p)
    detectable = width + stats.t.isf(1 - POWER, draws - 1) * error
    verdict = np.select([~(adjusted < SIGNIFICANCE), difference > 0], ["inconclusive", "above"], "below")
    return table.assign(
        **placements, difference=difference, p=p, p_adjusted=adjusted, detectable=detectable, verdict=verdict
    )
