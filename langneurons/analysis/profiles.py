"""Profiles: what a neuron's page shows that only the model could tell, saved so that no page needs the model again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from langneurons import storage
from langneurons.errors import NeuronSetError, StaleArtefactError
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import PUBLISHED, ActivationStats

SCHEMA = "langneurons/profiles/1"
TABLES = ("texts", "examples", "outputs", "similar")
EXAMPLES = ["language", "layer", "neuron", "kind", "rank", "activation", "text", "values"]
OUTPUTS = ["layer", "neuron", "effect", "rank", "token", "script", "change"]
SIMILAR = ["layer", "neuron", "by", "rank", "other_layer", "other_neuron", "similarity"]


@dataclass(frozen=True)
class NeuronProfile:
    """The rows of one neuron, see ``Profiles``.

    Attributes:
        examples: Its texts.
        outputs: The tokens it promotes and suppresses.
        similar: The neurons like it.
    """

    examples: pd.DataFrame
    outputs: pd.DataFrame
    similar: pd.DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class Profiles:
    """What chosen neurons respond to, what they write, and which neurons are like them; ``ln.profile`` makes it.

    Attributes:
        texts: Every text shown, once: text (its number), language, document (its ordinal in the corpus) and pieces, the
            characters of each token; bytes that go on with a character give an empty piece.
        examples: One row a language, neuron, kind ("top", "median", "random") and rank: activation (the highest on the
            text), text (its number), and values, one a piece.
        outputs: One row a neuron, effect ("promoted", "suppressed") and rank: token, the script it is written in, and
            change, what a value of 1 adds to its logit by the direct path.
        similar: One row a neuron, by ("activity": correlation of activation probability over languages and document
            folds; "direction": cosine of what they write) and rank: other_layer, other_neuron, similarity.
        settings: Model, site, corpus, and how the neurons were looked at.
    """

    texts: pd.DataFrame
    examples: pd.DataFrame
    outputs: pd.DataFrame
    similar: pd.DataFrame
    settings: Mapping[str, Any]

    @property
    def site(self) -> str:
        """Which tensor of a layer is the neuron."""
        return self.settings["site"]

    @property
    def fingerprint(self) -> str:
        """What the values come from: the model's weights, at a site of features with its dictionaries."""
        return self.settings["fingerprint"]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages whose texts were read."""
        return tuple(self.settings["languages"])

    @cached_property
    def neurons(self) -> tuple[tuple[int, int], ...]:
        """Layer and index of every neuron, sorted."""
        return tuple((layer, index) for layer, index in self.settings["neurons"])

    def __len__(self) -> int:
        return len(self.neurons)

    def __contains__(self, neuron: object) -> bool:
        return neuron in self._known

    def __getitem__(self, neuron: tuple[int, int]) -> NeuronProfile:
        """What is known of one neuron.

        Raises:
            NeuronSetError: If it was not looked at.
        """
        self.check_neuron(neuron)
        return NeuronProfile(*(self._part(name, neuron) for name in TABLES[1:]))

    def check_neuron(self, neuron: tuple[int, int]) -> None:
        """Refuse a neuron that was not looked at.

        Raises:
            NeuronSetError: If it is none of these.
        """
        if neuron not in self._known:
            near = min(self.neurons, key=lambda one: (abs(one[0] - neuron[0]), abs(one[1] - neuron[1])), default=None)
            raise NeuronSetError(
                f"The {len(self):,} profiles hold no neuron {tuple(neuron)}"
                f"{f'; the nearest is {near}' if near else ''}: give it to ln.profile()."
            )

    def pieces(self, text: int | np.integer) -> list[str]:
        """The characters of each token of a text, by its number."""
        return list(self.texts["pieces"].iloc[int(text)])

    def check(self, found: ActivationStats | NeuronSet) -> None:
        """Refuse to be shown beside statistics or neurons of another model or site.

        Raises:
            StaleArtefactError: If they do not belong together.
        """
        what = "neuron set" if isinstance(found, NeuronSet) else "statistics"
        model = found.model if isinstance(found, NeuronSet) else found.fingerprint
        if found.site != self.site:
            raise StaleArtefactError(f"The profiles are of site {self.site!r}, the {what} of {found.site!r}.")
        if model not in (None, self.fingerprint, PUBLISHED):
            raise StaleArtefactError(
                f"The profiles belong to model {self.fingerprint[:8]}, the {what} to {model[:8]}: profile that model."
            )

    def __repr__(self) -> str:
        about = self.settings
        return (
            f"Profiles of {len(self):,} neurons of {about['model']} at {self.site}: {len(self.texts):,} texts in "
            f"{', '.join(self.languages)}"
        )

    def save(self, folder: str | Path) -> Path:
        """Write everything to a folder: ``profiles.json`` (settings, checksums) and one parquet file a table.

        Returns:
            The folder.
        """
        tables = {name: getattr(self, name) for name in TABLES}
        return storage.write_result(Path(folder) / "profiles.json", SCHEMA, self.settings, tables)

    @classmethod
    def load(cls, folder: str | Path) -> "Profiles":
        """Read saved profiles; no model is needed.

        Raises:
            StorageError: If a file is missing.
            CorruptArtefactError: If these are no profiles, or were changed.
        """
        settings, tables = storage.read_result(Path(folder) / "profiles.json", SCHEMA, TABLES)
        return cls(**tables, settings=settings)

    @cached_property
    def _known(self) -> frozenset[tuple[int, int]]:
        return frozenset(self.neurons)

    @cached_property
    def _parts(self) -> dict[str, dict[Any, pd.DataFrame]]:
        return {name: dict(list(getattr(self, name).groupby(["layer", "neuron"], sort=False))) for name in TABLES[1:]}

    def _part(self, name: str, neuron: Sequence[int]) -> pd.DataFrame:
        whole: pd.DataFrame = getattr(self, name)
        part = self._parts[name].get(tuple(neuron))
        return (whole.iloc[:0] if part is None else part).reset_index(drop=True)
