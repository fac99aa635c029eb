"""Profiles: what a neuron's page shows that only the model could tell, saved so that no page needs the model again."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from langneurons.analysis.quadrants import QUADRANTS, SIGNS, mean_up
from langneurons.errors import NeuronSetError, StaleArtefactError
from langneurons.identification import NeuronSet
from langneurons.recording.statistics import PUBLISHED, ActivationStats
from langneurons.storage import Result, Table, layout
from langneurons.storage.layouts import Layout

PARTS = ("examples", "outputs", "similar")
TEXTS = ["text", "language", "document", "pieces", "cut"]
EXAMPLES = ["language", "layer", "neuron", "kind", "rank", "activation", "text", "values"]
OUTPUTS = ["layer", "neuron", "effect", "rank", "token", "script", "change"]
SHOWN = 20  # neurons that are printed
WORDS = 3  # promoted tokens that are printed of each
SIMILAR = ["layer", "neuron", "by", "rank", "other_layer", "other_neuron", "similarity"]


@dataclass(frozen=True)
class NeuronProfile:
    """The rows of one neuron, see ``Profiles``.

    Attributes:
        examples: The texts that were looked at.
        outputs: Tokens that it promotes and suppresses.
        similar: Similar neurons.
        quadrants: Signs of the gate and of ``up``; no rows where the MLP has no gate, or earlier versions read it.
    """

    examples: pd.DataFrame
    outputs: pd.DataFrame
    similar: pd.DataFrame
    quadrants: pd.DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class Profiles(Result, kind="profiles", tables=("texts", *PARTS), optional=("quadrants",)):
    """What some neurons respond to, what they write, and which neurons are similar; ``ln.profile`` makes it.

    Attributes:
        texts: Every text shown, once: text (its number), language, document (its ordinal in the corpus) and pieces, the
            characters of each token; bytes that go on with a character give an empty piece.
        examples: One row per language, neuron, kind ("top", "median", "random") and rank: activation (the highest on
            the text), text (its number), and values, one per piece.
        outputs: One row per neuron, effect ("promoted", "suppressed") and rank: token, the script it is written in, and
            change, what a value of 1 adds to its logit by the direct path.
        similar: One row per neuron, by ("activity": correlation of activation probability over languages and document
            folds; "direction": cosine of what they write) and rank: other_layer, other_neuron, similarity.
        settings: Model, site, corpus, and how the neurons were looked at.
        quadrants: One row per language, neuron, gate and up ("+" above zero, else "-"): tokens of the documents that
            were looked through, mean_up (of ``up`` on them), and the strongest of them: value (at ``post``), the text
            around it, and where it starts and ends there. None where the MLP has no gate.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "texts": layout(whole="text document", text="language", texts="pieces"),
        "examples": layout(
            text="language",
            whole="layer neuron rank text",
            finite="activation",
            numbers="values",
            choices={"kind": ("top", "median", "random")},
        ),
        "outputs": layout(
            text="token script",
            whole="layer neuron rank",
            finite="change",
            choices={"effect": ("promoted", "suppressed")},
        ),
        "similar": layout(
            whole="layer neuron rank other_layer other_neuron",
            number="similarity",
            choices={"by": ("activity", "direction")},
        ),
        "quadrants": layout(
            text="language text",
            whole="layer neuron tokens start end",
            number="mean_up value",
            choices={"gate": SIGNS, "up": SIGNS},
        ),
        "settings": layout(
            text="model fingerprint site method? corpus",
            texts="languages",
            whole="context_length documents? seed",
            flag="gated",
        ),
    }

    texts: pd.DataFrame
    examples: pd.DataFrame
    outputs: pd.DataFrame
    similar: pd.DataFrame
    settings: Mapping[str, Any]
    quadrants: pd.DataFrame | None = None

    @property
    def site(self) -> str:
        """Site of the neurons."""
        return self.settings["site"]

    @property
    def fingerprint(self) -> str:
        """A hash of the model's weights, and of its dictionaries at a site of features."""
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
        return neuron in self._own

    def __getitem__(self, neuron: tuple[int, int]) -> NeuronProfile:
        """The profile of one neuron.

        Raises:
            NeuronSetError: If it was not looked at.
        """
        self.check_neuron(neuron)
        key = tuple(neuron)
        parts = {name: of[key] if key in of else self._tables[name].iloc[:0] for name, of in self._parts.items()}
        return NeuronProfile(**{name: part.reset_index(drop=True) for name, part in parts.items()})

    def check_neuron(self, neuron: tuple[int, int]) -> None:
        """Refuse a neuron that was not looked at.

        Raises:
            NeuronSetError: If it is none of these.
        """
        if neuron not in self._own:
            near = min(self.neurons, key=lambda own: (abs(own[0] - neuron[0]), abs(own[1] - neuron[1])), default=None)
            raise NeuronSetError(
                f"The {len(self):,} profiles hold no neuron {tuple(neuron)}"
                f"{f'; the nearest is {near}' if near else ''}: give it to ln.profile()."
            )

    def pieces(self, text: int | np.integer) -> list[str]:
        """The characters of each token of a text, by its number."""
        return list(self.texts["pieces"].iloc[int(text)])

    def to_neuronpedia(
        self, neuron: tuple[int, int], stats: ActivationStats | None = None, model_id: str | None = None
    ) -> dict[str, Any]:
        """What a neuron's page shows, in the field names of Neuronpedia, ready for JSON.

        Args:
            neuron: Layer and index, one of these profiles'.
            stats: Statistics of the same model, which add ``frac_nonzero``.
            model_id: Neuronpedia's name of the model; by default the last part of its name in lower-case letters.

        Returns:
            The fields of their ``Neuron`` (modelId, layer, index, pos_str, pos_values, neg_str, neg_values,
            maxActApprox, and frac_nonzero: the share of all languages' tokens with a value above 0), and under
            ``activations`` those of their ``Activation`` for every text: tokens, values, maxValue, maxValueTokenIndex,
            minValue, dataIndex (number of the document) and dataSource (corpus, language, and how it was chosen).

        Raises:
            NeuronSetError: If the neuron was not looked at.
            StaleArtefactError: If the statistics belong to another model or site.

        Source:
            github.com/hijohnnylin/neuronpedia, apps/webapp/prisma/schema.prisma.

        Example:
            >>> neurons, texts = ln.LAPE(top=0.001).identify(stats), ln.load_corpus("babel", ["en", "hi"]).take(20)
            >>> profiles = ln.profile(model, neurons, texts, k=1, progress=False)
            >>> page = profiles.to_neuronpedia(profiles.neurons[0], stats)
            >>> page["modelId"], len(page["pos_str"]) == len(page["pos_values"])
            ('babel', True)
        """
        from langneurons.analysis.neuronpedia import neuron_record

        return neuron_record(self, neuron, stats, model_id)

    def check(self, other: ActivationStats | NeuronSet) -> None:
        """Refuse to be shown beside statistics or neurons of another model or site.

        Raises:
            StaleArtefactError: If they do not belong together.
        """
        what = "neuron set" if isinstance(other, NeuronSet) else "statistics"
        model = other.model if isinstance(other, NeuronSet) else other.fingerprint
        if other.site != self.site:
            raise StaleArtefactError(f"The profiles are of site {self.site!r}, the {what} of {other.site!r}.")
        if model not in (None, self.fingerprint, PUBLISHED):
            raise StaleArtefactError(
                f"The profiles belong to model {self.fingerprint[:8]}, the {what} to {model[:8]}: profile that model."
            )

    def table(self) -> Table:
        """One line per neuron: the language and word that activate it most, and the tokens it promotes most there."""
        rows = []
        for place in self.neurons:
            profile, language, word = self[place], None, None
            if len(profile.examples):
                top = profile.examples.loc[profile.examples["activation"].idxmax()]
                language, word = top["language"], self.pieces(top["text"])[int(np.argmax(top["values"]))].strip()
            reverses = mean_up(profile.quadrants).get(str(language), 1.0) < 0
            effect = "suppressed" if reverses else "promoted"
            words = profile.outputs.loc[profile.outputs["effect"] == effect, "token"].head(WORDS)
            rows.append((*place, language, word, ", ".join(words.str.strip()) or None))
        title = (
            f"Profiles of {len(self):,} neurons of {self.settings['model']} at {self.site}: {len(self.texts):,} texts "
            f"in {', '.join(self.languages)}"
        )
        names = ["layer", "neuron", "most active in", "at", "promotes"]
        return Table(pd.DataFrame(rows, columns=pd.Index(names)), title=title, limit=SHOWN)

    def _check_parts(self) -> None:
        neurons = pd.DataFrame(list(self.neurons), columns=pd.Index(["layer", "neuron"]))
        layout(whole="layer neuron").check("the profiled neurons", neurons)
        if list(self.texts["text"]) != list(range(len(self.texts))):
            raise ValueError("the texts are not numbered from 0 on")
        lengths = [len(pieces) for pieces in self.texts["pieces"]]
        for text, values in zip(self.examples["text"], self.examples["values"], strict=True):
            if text >= len(lengths) or not lengths[int(text)] == len(values) > 0:
                raise ValueError("an example has not one value for each token of its text")

    @cached_property
    def _own(self) -> frozenset[tuple[int, int]]:
        return frozenset(self.neurons)

    @cached_property
    def _parts(self) -> dict[str, dict[Any, pd.DataFrame]]:
        groups = {name: table.groupby(["layer", "neuron"], sort=False) for name, table in self._tables.items()}
        return {name: dict(list(of_neurons)) for name, of_neurons in groups.items()}

    @property
    def _tables(self) -> dict[str, pd.DataFrame]:
        """The tables of single neurons."""
        quadrants = pd.DataFrame(columns=pd.Index(QUADRANTS)) if self.quadrants is None else self.quadrants
        return {**{name: getattr(self, name) for name in PARTS}, "quadrants": quadrants}
