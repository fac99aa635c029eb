"""What ``ln.polysemanticity`` found: tables of neurons, sets and probes, and the decomposition of every neuron."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from langneurons import storage
from langneurons.analysis.selectivity.decomposition import Decomposition
from langneurons.analysis.selectivity.verdicts import TESTS_A_TASK
from langneurons.errors import LanguageError, unknown
from langneurons.evaluation.resampling import SIGNIFICANCE

SCHEMA = "langneurons/polysemanticity/1"
SHOWN = ["language", "layer", "neuron", "language_share", "task_share", "interaction_share"]
SHOWN += ["language_p_adjusted", "task_p_adjusted", "task_detectable", "task_bits", "verdict"]
TABLES = ("rows", "sets", "probes", "auroc")


@dataclass(frozen=True, eq=False, repr=False)
class Polysemanticity:
    """What neurons carry.

    Attributes:
        rows: One row a label (column language) and neuron of the set. Of the variance over texts, language_share,
            task_share and interaction_share are what language, label and their interaction explain (type II);
            language_first_share and task_first_share what language and label explain entered first, which differs where
            cells are unbalanced; and partial shares, of what the other sources leave. Then p-values, excess, detectable
            and bits, as ``neuron_evidence`` says; and p-values adjusted within the label's neurons, and verdict
            (language, task, both, neither), as ``judged`` says.
        sets: One row a label and what is carried (language, task, both): how many of its neurons do, beside matched
            controls: difference, p (Holm over the table), and the difference that would be found with 80 % power.
        probes: One row a label, factor predicted and number of neurons: balanced accuracy on items left out, chance,
            and the same beside matched controls; empty without probes.
        auroc: One row a label, neuron, factor and level: how well the neuron tells the level from the others.
        decomposition: Of every neuron of the model.
        settings: How it was measured: task, items, clusters, position, draws, ...
    """

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

    def table(self, language: str | None = None, top: int | None = 20) -> pd.DataFrame:
        """The neurons that carry most of the task, in few columns.

        Args:
            language: Of this label only.
            top: How many; None is all.

        Raises:
            LanguageError: If there is no such label.
        """
        if language is not None and language not in self.languages:
            raise LanguageError(unknown("language", language, self.languages))
        rows = self.rows if language is None else self.rows.loc[self.rows["language"] == language]
        carried = rows["task_excess"] + rows["interaction_excess"]
        ordered = rows.iloc[np.argsort(-carried.to_numpy(), kind="stable")]
        return ordered.reindex(columns=SHOWN).head(len(rows) if top is None else top).reset_index(drop=True)

    def __repr__(self) -> str:
        about = self.settings
        read = (
            f"{about['items']:,} items in {about['clusters']:,} clusters, {len(self.decomposition.languages)} languages"
        )
        columns = ["language", "carries", "neurons", "count", "share"]
        if about["controls"]:
            columns += ["control_mean", "control_low", "control_high", "p_adjusted", "detectable", "verdict"]
        read += f", {about['cut']:,} texts cut" if about["cut"] else ""
        return (
            f"What neurons at {about['site']} carry of language and {about['task']} ({read}; FDR 5 % within a set, at "
            f"least {about['least_share']:.2g} of the variance)\n{self.sets[columns].round(3).to_string(index=False)}\n"
            f"{self._limits()}"
        )

    def _limits(self) -> str:
        """What could not have been found: too small an effect, or too few neurons for the number of exchanges."""
        found = float(np.median(self.rows["task_detectable"].to_numpy(float)))
        said = (
            f"To be found with 80 % power, a label must explain {found:.2g} of what language leaves (median neuron)."
            if np.isfinite(found)
            else "With so few clusters no effect of a label is found with 80 % power (median neuron)."
        )
        largest = max(map(len, self.rows.groupby("language").groups.values()))
        least = np.ceil(TESTS_A_TASK * largest / (SIGNIFICANCE * (1 + self.settings["finest"])))
        if least > 1:
            said += (
                f"\nWith {self.settings['finest']:,} exchanges, fewer than {least:.0f} of {largest:,} neurons that "
                "carry the task cannot be found: raise permutations."
            )
        return said

    def save(self, folder: str | Path) -> Path:
        """Write everything into a folder: parquet, safetensors and JSON.

        Returns:
            The folder.
        """
        folder, whole = Path(folder), self.decomposition
        tensors = {name: torch.from_numpy(values) for name, values in whole.squares.items()}
        about = {
            "languages": list(whole.languages),
            "labels": list(whole.labels),
            "counts": whole.counts.tolist(),
            "checksum": storage.write_tensors(folder / "decomposition.safetensors", tensors),
        }
        settings = {**self.settings, "decomposition": about}
        tables = {name: getattr(self, name) for name in TABLES}
        return storage.write_result(folder / "polysemanticity.json", SCHEMA, settings, tables)

    @classmethod
    def load(cls, folder: str | Path) -> "Polysemanticity":
        """Read what ``save`` wrote.

        Raises:
            StorageError: If a file is missing.
            CorruptArtefactError: If one is truncated or changed.
        """
        folder = Path(folder)
        settings, tables = storage.read_result(folder / "polysemanticity.json", SCHEMA, TABLES)
        with storage.understood(folder / "polysemanticity.json"):
            about = settings.pop("decomposition")
            tensors = storage.read_tensors(folder / "decomposition.safetensors", about["checksum"])
            squares = {name: tensor.numpy() for name, tensor in tensors.items()}
            levels = tuple(about["languages"]), tuple(about["labels"])
            whole = Decomposition(*levels, np.array(about["counts"], np.int64), settings["site"], squares)
            return cls(decomposition=whole, settings=settings, **{name: tables[name] for name in TABLES})
