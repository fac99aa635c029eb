"""Neuron sets: which neurons belong to which language, and what can be done with such a labelling.

A set stores, per label, sorted flat indices (layer x width + neuron): algebra on them costs what the set is large,
not what the model is large.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from langneurons import storage
from langneurons.errors import LanguageError, NeuronSetError, SiteMismatchError, unknown
from langneurons.identification.controls import (
    choose_neutral,
    draw_matched,
    draw_seed,
    fitting_statistics,
    matched_by,
    random_stream,
    statistics_at,
    strata,
)
from langneurons.identification.indices import Shape, check_flat, checked_shape, flat_indices, overlap, shape_text
from langneurons.identification.published import read_rucaibox
from langneurons.identification.scores import Scores
from langneurons.recording.site_values import basis_note
from langneurons.recording.statistics import ActivationStats
from langneurons.settings import Controls

SCHEMA = "langneurons/neuron-set/1"
COLUMNS = ("language", "layer", "neuron")


@dataclass(frozen=True, eq=False, repr=False)
class NeuronSet:
    """Neurons labelled with the language they belong to; a neuron may belong to several.

    Attributes:
        members: Label -> flat indices (layer x width + neuron), strictly increasing.
        shape: Layers and neurons a layer of the model.
        site: Which tensor of a layer is the neuron.
        model: Fingerprint of the model's weights, None where unknown.
        method: How the set was found.
        scores: Label -> each member's score, where the method gave one.

    Example:
        >>> neurons = NeuronSet.of({"hi": [(0, 3), (1, 2)], "ur": [(1, 2)]}, shape=(2, 8), site="act")
        >>> neurons
        NeuronSet of 2 neurons at act (2 layers x 8): hi 2, ur 1
        >>> (neurons["hi"] & neurons["ur"]).indices().tolist()
        [[1, 2]]
    """

    members: Mapping[str, Int[np.ndarray, " n"]]
    shape: Shape
    site: str
    model: str | None = None
    method: str = "given"
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        for label, flat in self.members.items():
            check_flat(label, flat, self.shape)
            if label in self.scores and len(self.scores[label]) != len(flat):
                raise NeuronSetError(f"{label!r} has {len(flat)} neurons but {len(self.scores[label])} scores.")
            flat.flags.writeable = False

    @classmethod
    def of(
        cls,
        neurons: Mapping[str, Iterable[Sequence]],
        shape: Shape,
        site: str,
        model: str | None = None,
        method: str = "given",
    ) -> "NeuronSet":
        """Label neurons by hand.

        Args:
            neurons: Language -> (layer, neuron) pairs, in any order.
            shape: Layers and neurons a layer of the model.
            site: Which tensor of a layer is the neuron.
            model: Fingerprint of the model's weights, if known.
            method: How they were found.

        Raises:
            NeuronSetError: If something is no pair, or no neuron of that shape.

        Example:
            >>> len(NeuronSet.of({"hi": [(21, 431)]}, shape=(32, 14336), site="act"))
            1
        """
        shape = checked_shape(shape)
        members = {label: flat_indices(label, pairs, shape) for label, pairs in neurons.items()}
        return cls(members, shape, site, model, method)

    @classmethod
    def from_dataframe(cls, table: pd.DataFrame, shape: Shape | None = None, site: str | None = None) -> "NeuronSet":
        """Make a set of a table with the columns ``language``, ``layer`` and ``neuron``.

        Args:
            table: Such as ``to_dataframe`` gives; one of those remembers its shape and site.
            shape: Layers and neurons a layer, where the table does not remember.
            site: Where the table does not remember.

        Raises:
            NeuronSetError: If a column, the shape or the site is missing.

        Example:
            >>> table = pd.DataFrame({"language": ["hi", "ur"], "layer": [0, 1], "neuron": [3, 2]})
            >>> NeuronSet.from_dataframe(table, shape=(2, 8), site="act").languages
            ('hi', 'ur')
        """
        missing = [column for column in COLUMNS if column not in table.columns]
        if missing:
            raise NeuronSetError(f"The table has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}.")
        shape, site = shape or table.attrs.get("shape"), site or table.attrs.get("site")
        if shape is None or site is None:
            raise NeuronSetError("The table does not say its model's shape or site: give shape=(layers, width), site=.")
        labels = dict.fromkeys((*table.attrs.get("languages", ()), *table["language"]))
        if odd := [label for label in labels if not isinstance(label, str)]:
            raise NeuronSetError(f"The column 'language' holds languages' names, but one is {odd[0]!r:.40}.")
        rows = {label: table.loc[table["language"] == label, ["layer", "neuron"]].to_numpy() for label in labels}
        shape = checked_shape(shape)
        members = {label: flat_indices(label, pairs, shape) for label, pairs in rows.items()}
        return cls(members, shape, site, table.attrs.get("model"), table.attrs.get("method", "given"))

    @classmethod
    def from_rucaibox(cls, path: str | Path, languages: Sequence[str], shape: Shape | None = None) -> "NeuronSet":
        """Read a mask published by Tang et al. 2024 (github.com/RUCAIBox/Language-Specific-Neurons).

        Args:
            path: A ``.neuron.pth`` file: a list over languages of a list over layers of index tensors.
            languages: What the lists stand for, in the file's order: their README says en zh fr es vi id ja.
            shape: Layers and neurons a layer; without it the width is the largest index + 1, with a warning.

        Raises:
            StorageError: If the file cannot be read, or holds anything but tensors (nothing in it is executed).
            NeuronSetError: If it is no such list, or for other languages or another shape.
        """
        flat, shape = read_rucaibox(Path(path), languages, shape)
        members = {language: np.unique(indices) for language, indices in zip(languages, flat, strict=True)}
        return cls(members, shape, "act", None, f"published mask {Path(path).name}")

    @property
    def languages(self) -> tuple[str, ...]:
        """The labels."""
        return tuple(self.members)

    def __len__(self) -> int:
        return len(self._union())

    def __repr__(self) -> str:
        counted = ", ".join(f"{label} {len(flat):,}" for label, flat in self.members.items())
        text = (
            f"NeuronSet of {len(self):,} neurons at {self.site} ({shape_text(self.shape)}): {counted or 'no language'}"
        )
        return f"{text} ({note})" if (note := basis_note(self.site)) else text

    def __eq__(self, other: object) -> bool:
        """Whether the same neurons of the same model and site carry the same labels, however they were found."""
        return isinstance(other, NeuronSet) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __getitem__(self, language: str) -> "NeuronSet":
        """The neurons of one label.

        Raises:
            LanguageError: If there is no such label.
        """
        return self.select([language])

    def select(self, languages: Iterable[str]) -> "NeuronSet":
        """Keep some labels, in the order given.

        Raises:
            LanguageError: If one is not there.
        """
        chosen = list(languages)
        for language in chosen:
            self._check_label(language)
        scores = {language: self.scores[language] for language in chosen if language in self.scores}
        return replace(self, members={language: self.members[language] for language in chosen}, scores=scores)

    def __and__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combined(other, "&", lambda mine, theirs: np.intersect1d(mine, theirs, assume_unique=True))

    def __or__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combined(other, "|", np.union1d)

    def __sub__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combined(other, "-", lambda mine, theirs: np.setdiff1d(mine, theirs, assume_unique=True))

    def __xor__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combined(other, "^", lambda mine, theirs: np.setxor1d(mine, theirs, assume_unique=True))

    def mask(self, language: str | None = None) -> Bool[Tensor, "layer neuron"]:
        """True at the neurons of one label, or of any.

        Raises:
            LanguageError: If there is no such label.
        """
        if language is not None:
            self._check_label(language)
        flat = self._union() if language is None else self.members[language]
        mask = torch.zeros(self.shape, dtype=torch.bool)
        mask.view(-1)[torch.from_numpy(flat.copy())] = True
        return mask

    def indices(self) -> Int[Tensor, "n 2"]:
        """(layer, neuron) of every neuron with any label, sorted."""
        return torch.from_numpy(np.stack(np.divmod(self._union(), self.shape[1]), axis=1))

    def per_layer(self) -> dict[int, Int[Tensor, " n"]]:
        """Layer -> its neurons with any label, sorted; layers without such neurons are left out."""
        layers, neurons = np.divmod(self._union(), self.shape[1])
        present, starts = np.unique(layers, return_index=True)
        pieces = np.split(neurons, starts[1:])
        return {int(layer): torch.from_numpy(piece.copy()) for layer, piece in zip(present, pieces, strict=False)}

    def counts(self) -> pd.DataFrame:
        """The layer profile: how many neurons each label has in each layer (language x layer).

        Example:
            >>> NeuronSet.of({"hi": [(0, 3), (1, 2)]}, shape=(2, 8), site="act").counts().loc["hi"].tolist()
            [1, 1]
        """
        layers, width = self.shape
        rows = {label: np.bincount(flat // width, minlength=layers) for label, flat in self.members.items()}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=range(layers), dtype="int64")
        return table.rename_axis(index="language", columns="layer")

    def jaccard(self, other: "NeuronSet | None" = None) -> pd.DataFrame:
        """Overlap of every pair of labels: shared neurons / neurons in either; NaN where both are empty.

        Args:
            other: Whose labels are the columns; default this set's own.

        Raises:
            NeuronSetError: If the two sets belong to different shapes or models.
        """
        columns = self if other is None else other
        self._check_comparable(columns)
        table = pd.DataFrame(index=list(self.languages), columns=list(columns.languages), dtype="float64")
        for row, mine in self.members.items():
            for column, theirs in columns.members.items():
                table.loc[row, column] = overlap(mine, theirs)
        return table

    def to_dataframe(self, scores: Scores | None = None, level: float = 0.95) -> pd.DataFrame:
        """One row per label and neuron.

        Args:
            scores: Adds each neuron's score with its interval; default the score the method left, if any.
            level: Of the interval.

        Returns:
            Columns language, layer, neuron; score where known; low and high where ``scores`` is given; ``basis`` at a
            site whose single units depend on the basis.
        """
        pieces = [self._rows(label) for label in self.languages]
        empty = pd.DataFrame({"language": pd.Series(dtype="str"), "layer": [], "neuron": []})
        table = pd.concat([piece for piece in pieces if len(piece)] or [empty], ignore_index=True)
        table = table.astype({"layer": "int64", "neuron": "int64"})
        if scores is not None:
            low, high = scores.interval(level)
            for name, values in {"score": scores.values, "low": low, "high": high}.items():
                table[name] = scores.looked_up(values, table["language"], table["layer"], table["neuron"])
        if note := basis_note(self.site):
            table["basis"] = note
        table.attrs = {
            "shape": list(self.shape),
            "site": self.site,
            "languages": list(self.languages),
            "model": self.model,
            "method": self.method,
        }
        return table

    def matched_control(
        self,
        controls: Controls | ActivationStats | None = None,
        draw: int = 0,
        exclude: "NeuronSet | None" = None,
    ) -> "NeuronSet":
        """Draw neurons that belong to no label but are otherwise like each label's neurons.

        As many per label and layer as the label has and, with statistics, per decile (within the layer) of mean
        |activation| x norm of the output weights, read in the label's own language. Labels are drawn independently,
        so controls of two labels may share neurons, and a label's draw does not depend on the other labels' names.

        Args:
            controls: How to draw: statistics to match by, match, seed. Statistics alone stand for
                ``Controls(stats=...)``; without any, only layers match.
            draw: Number of the draw; different draws are independent.
            exclude: Neurons that cannot be drawn either, such as those of labels that this set was taken from.

        Raises:
            NeuronSetError: If a layer (or a decile of it) has too few neurons left: nothing is padded.
            LanguageError: If a label was not recorded and the magnitude must match.
            SiteMismatchError: If the statistics hold another site or model.

        Example:
            >>> neurons = ln.LAPE(top=0.01).identify(stats)
            >>> control = neurons.matched_control(ln.Controls(stats=stats, seed=1), draw=2)
            >>> len(control & neurons)
            0
        """
        if not isinstance(controls, Controls):
            controls = Controls(stats=controls)
        stats, match, seed = statistics_at(controls, self.site), matched_by(controls), draw_seed(controls, draw)
        if stats is not None:
            stats = fitting_statistics(stats, self.shape, self.site, self.model)
        taken = self if exclude is None else united([self, exclude])
        members = {
            label: draw_matched(label, flat, taken._union(), strata(label, self.shape, stats, match), seed, match)
            for label, flat in self.members.items()
        }
        return replace(
            self, members=members, scores={}, method=f"control matched by {match}, seed {seed}: {self.method}"
        )

    def single_controls(self, controls: Controls) -> "NeuronSet":
        """Draw ``controls.draws`` single neurons for each label, from as many whole controls as that takes.

        Args:
            controls: How to draw, and how many neurons; where draws coincide there are fewer.

        Raises:
            NeuronSetError: If a layer (or a decile of it) has too few neurons left: nothing is padded.
        """
        members = {}
        for label, flat in self.members.items() if controls.draws else ():
            draws = range(-(-controls.draws // len(flat)))
            sets = [self[label].matched_control(controls, draw, exclude=self) for draw in draws]
            order = random_stream(controls.seed, "pooled controls", label).permutation(united(sets)._union())
            members[label] = np.sort(order[: controls.draws])
        return replace(self, members=members, scores={}, method=f"single controls: {self.method}")

    def neutral_control(self, stats: ActivationStats) -> "NeuronSet":
        """Choose neurons that fire often, and about as often in every language, in place of each label's neurons.

        As many per label and layer as the label has: of the quarter of the layer's neurons that are most often active
        over all languages and belong to no label, those whose activation probabilities have the highest entropy.

        Args:
            stats: Statistics of the same model, at a site where the sign means something.

        Raises:
            NeuronSetError: If a layer has too few such neurons.
            StatisticsError: At sites where the sign means nothing.
        """
        stats = fitting_statistics(stats, self.shape, self.site, self.model)
        chosen = {label: choose_neutral(label, flat, self._union(), stats) for label, flat in self.members.items()}
        return replace(self, members=chosen, scores={}, method=f"frequent neutral neurons: {self.method}")

    def save(self, path: str | Path) -> Path:
        """Write the set as one JSON file; equal sets give equal bytes.

        Returns:
            The path.
        """
        storage.write_json(Path(path), SCHEMA, self._content())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "NeuronSet":
        """Read a saved set.

        Raises:
            StorageError: If the file is missing.
            CorruptArtefactError: If it is no neuron set, or was changed.
        """
        content = storage.read_json(Path(path), SCHEMA)
        with storage.understood(Path(path)):
            arrays = {label: np.array(flat, dtype=np.int64) for label, flat in content["members"]}
            scores = {label: np.array(values, dtype=np.float64) for label, values in content["scores"]}
            layers, width = content["shape"]
            return cls(arrays, (layers, width), content["site"], content["model"], content["method"], scores)

    def _content(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "site": self.site,
            "model": self.model,
            "method": self.method,
            "members": [[label, flat.tolist()] for label, flat in self.members.items()],
            "scores": [[label, values.tolist()] for label, values in self.scores.items()],
        }

    def _identity(self) -> tuple[Any, ...]:
        members = tuple(sorted((label, flat.tobytes()) for label, flat in self.members.items()))
        return self.shape, self.site, self.model, members

    def _union(self) -> np.ndarray:
        if len(self.members) == 1:
            return next(iter(self.members.values()))
        return np.unique(np.concatenate([np.empty(0, np.int64), *self.members.values()]))

    def _rows(self, label: str) -> pd.DataFrame:
        layers, neurons = np.divmod(self.members[label], self.shape[1])
        scored = {"score": self.scores[label]} if label in self.scores else {}
        return pd.DataFrame({"language": label, "layer": layers, "neuron": neurons, **scored})

    def _combined(self, other: "NeuronSet", sign: str, combine: Callable[..., np.ndarray]) -> "NeuronSet":
        if not isinstance(other, NeuronSet):
            return NotImplemented
        self._check_comparable(other)
        if set(self.languages) == set(other.languages):
            members = {label: combine(flat, other.members[label]) for label, flat in self.members.items()}
        elif len(self.members) == len(other.members) == 1:
            label = f"{self.languages[0]}{sign}{other.languages[0]}"
            members = {label: combine(self._union(), other._union())}
        else:
            raise NeuronSetError(
                f"Sets labelled {', '.join(self.languages)} and {', '.join(other.languages)} cannot be combined: "
                'possible: the same labels on both sides, or one label each, as in neurons["hi"] & neurons["ur"].'
            )
        return replace(
            self,
            members=members,
            scores={},
            model=self.model or other.model,
            method=f"({self.method}) {sign} ({other.method})",
        )

    def _check_comparable(self, other: "NeuronSet") -> None:
        if self.shape != other.shape:
            raise NeuronSetError(
                f"These sets belong to different models: {shape_text(self.shape)} and {shape_text(other.shape)}."
            )
        if self.site != other.site:
            raise SiteMismatchError(f"These sets belong to different sites: {self.site!r} and {other.site!r}.")
        if self.model and other.model and self.model != other.model:
            raise NeuronSetError(f"These sets belong to different models: {self.model[:8]} and {other.model[:8]}.")

    def _check_label(self, language: str) -> None:
        if language not in self.members:
            raise LanguageError(unknown("language", language, self.languages))


def united(neuron_sets: Iterable[NeuronSet], label: str = "all") -> NeuronSet:
    """All neurons of several sets of one model and site, under one label.

    Raises:
        NeuronSetError: If the sets belong to different models.
        SiteMismatchError: If they belong to different sites.

    Example:
        >>> neurons = NeuronSet.of({"hi": [(0, 3), (1, 2)], "ur": [(1, 2)]}, shape=(2, 8), site="act")
        >>> united([neurons["hi"], neurons["ur"]], "Hindustani")
        NeuronSet of 2 neurons at act (2 layers x 8): Hindustani 2
    """
    first, *others = neuron_sets
    for other in others:
        first._check_comparable(other)
    flat = np.unique(np.concatenate([neurons._union() for neurons in (first, *others)]))
    return replace(first, members={label: flat}, scores={})
