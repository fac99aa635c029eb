"""Neurons as flat indices (layer x width + neuron, sorted, each once), under labels.

Algebra on flat indices costs what a set is large, not what the model is large.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from langneurons.corpora.languages import label_of, spelled
from langneurons.errors import LanguageError, NeuronSetError, SiteMismatchError, check_text
from langneurons.identification.standing import NO_NEURONS, ByLanguage, as_texts, neurons_of
from langneurons.settings import whole_number

Shape = tuple[int, int]
MOST_LAYERS, MOST_NEURONS = 4096, 2**28  # no model has so many, and a mask of them would fill the memory
OF_HEADS = ("q", "k", "v")  # sites whose units are the coordinates of all heads in turn
Labelled = TypeVar("Labelled", bound="LabelledNeurons")


def checked_shape(shape: Sequence[int]) -> Shape:
    """Layers and neurons per layer.

    Raises:
        NeuronSetError: If they are not two positive numbers.
    """
    shape = tuple(whole_number(size, "A size in shape", NeuronSetError) for size in shape)
    if len(shape) != 2 or min(shape) < 1 or shape[0] > MOST_LAYERS or shape[0] * shape[1] > MOST_NEURONS:
        raise NeuronSetError(f"A shape is (layers, neurons per layer), such as (32, 14336), not {shape!r:.100}.")
    return shape


def shape_text(shape: Shape) -> str:
    """The shape in words."""
    return f"{shape[0]} layers x {shape[1]}"


def flat_indices(label: str, pairs: Iterable[Sequence[int]] | np.ndarray, shape: Shape) -> Int[np.ndarray, " n"]:
    """(layer, neuron) pairs as flat indices, sorted, each once.

    Raises:
        NeuronSetError: If something is no pair, or no neuron of that shape.

    Example:
        >>> flat_indices("hi", [(1, 2), (0, 3), (1, 2)], (2, 8)).tolist()
        [3, 10]
    """
    try:
        rows = np.asarray(pairs if isinstance(pairs, np.ndarray) else [tuple(pair) for pair in pairs])
    except (TypeError, ValueError):
        rows = np.array([None])
    if rows.size == 0:
        return np.empty(0, np.int64)
    if rows.ndim != 2 or rows.shape[1] != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise NeuronSetError(f"The neurons of {label!r} must be (layer, neuron) pairs of whole numbers.")
    outside = ((rows < 0) | (rows >= np.array(shape))).any(axis=1)
    if outside.any():
        layer, neuron = rows[outside][0].tolist()
        raise NeuronSetError(f"{label!r} holds neuron ({layer}, {neuron}), but there are {shape_text(shape)} neurons.")
    return np.unique(rows[:, 0].astype(np.int64) * shape[1] + rows[:, 1])


def check_flat(label: str, flat: Int[np.ndarray, " n"], shape: Shape) -> None:
    """Refuse flat indices that are out of order or out of range.

    Raises:
        NeuronSetError: If they are.
    """
    if len(flat) and (flat[0] < 0 or flat[-1] >= shape[0] * shape[1]):
        raise NeuronSetError(
            f"{label!r} holds a flat index outside 0 to {shape[0] * shape[1] - 1}: {shape_text(shape)}."
        )
    if bool((np.diff(flat) <= 0).any()):
        raise NeuronSetError(f"The flat indices of {label!r} must increase: build the set with NeuronSet.of.")


@dataclass(frozen=True, eq=False, repr=False)
class LabelledNeurons:
    """Neurons under labels, as flat indices: looking them up, counting them, and the algebra of sets.

    ``NeuronSet`` says what the fields hold. ``above`` outlives the choice of labels: ``neurons["hi"]`` still says which
    of Hindi's neurons are above the bar in Urdu too. ``highest`` is about P(active) for LAPE, and about the score for
    methods with one per language.
    """

    members: ByLanguage
    shape: Shape
    site: str
    model: str | None = None
    method: str = "given"
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    above: ByLanguage = field(default_factory=dict)
    highest: ByLanguage = field(default_factory=dict)

    def __post_init__(self):
        if not self.above:
            object.__setattr__(self, "above", dict(self.members))
        for label, flat in self.members.items():
            check_text(label, "label", NeuronSetError)
            check_flat(label, flat, self.shape)
            if label in self.scores and len(self.scores[label]) != len(flat):
                raise NeuronSetError(f"{label!r} has {len(flat)} neurons but {len(self.scores[label])} scores.")
            flat.flags.writeable = False
        for label, flat in (*self.above.items(), *self.highest.items()):
            check_flat(label, flat, self.shape)
            flat.flags.writeable = False

    @property
    def languages(self) -> tuple[str, ...]:
        """The labels."""
        return tuple(self.members)

    def __len__(self) -> int:
        return len(self.union())

    def _identity(self) -> tuple[Any, ...]:
        members = tuple(sorted((label, flat.tobytes()) for label, flat in self.members.items()))
        return self.shape, self.site, self.model, members

    def __getitem__(self: Labelled, language: str) -> Labelled:
        """The neurons of one label.

        Raises:
            LanguageError: If there is no such label.
        """
        return self.select([language])

    def select(self: Labelled, languages: Iterable[str]) -> Labelled:
        """Keep some labels, in the order given.

        Raises:
            LanguageError: If one is not there.
        """
        labels = [label_of(language, self.members) for language in languages]
        scores = {label: self.scores[label] for label in labels if label in self.scores}
        return replace(self, members={label: self.members[label] for label in labels}, scores=scores)

    def spelled_like(self: Labelled, languages: Iterable[str]) -> Labelled:
        """Call each label as the language that it means is called elsewhere; other labels stay as they are.

        Args:
            languages: Languages as a text, a task or statistics spell them.

        Raises:
            LanguageError: If two labels mean the same of them.

        Example:
            >>> neurons = ln.NeuronSet.of({"hin": [(0, 3)], "all": [(1, 2)]}, shape=(2, 8), site="act")
            >>> neurons.spelled_like(["en", "hi"]).languages
            ('hi', 'all')
        """
        languages = list(languages)
        names = {label: spelled(label, languages) or label for label in self.members}
        if len(set(names.values())) < len(names):
            twice = [label for label, name in names.items() if list(names.values()).count(name) > 1]
            raise LanguageError(f"The labels {twice[0]!r:.60} and {twice[1]!r:.60} are both {names[twice[0]]!r:.60}.")
        members = {names[label]: flat for label, flat in self.members.items()}
        scores = {names[label]: values for label, values in self.scores.items()}
        above, highest = (
            {spelled(language, languages) or language: flat for language, flat in of_all.items()}
            for of_all in (self.above, self.highest)
        )
        return replace(self, members=members, scores=scores, above=above, highest=highest)

    def exclusive(self: Labelled) -> Labelled:
        """Keep, under each label, the neurons that are above the method's bar in one language only.

        Together with ``shared()`` these are all. The languages are those that the method compared, whichever labels
        were selected since, see ``above``: for a method's set this is the same as being labelled with one of them.

        Example:
            >>> neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 2)], "ur": [(1, 2)]}, shape=(2, 8), site="act")
            >>> neurons["hi"].exclusive().indices().tolist()
            [[0, 3]]
        """
        return self._kept(self._in_several(), inside=False)

    def shared(self: Labelled, *languages: str) -> Labelled:
        """Keep, under each label, the neurons that are above the method's bar in several languages.

        For a method's set this is the same as being labelled with all of them: LAPE labels what it keeps with every
        language where P(active) exceeds its bar, and a ranking's bar is the lowest score that it keeps in a language.

        Args:
            languages: Languages in all of which a neuron must be above the bar, whatever it is in others; by default,
                any two.

        Raises:
            LanguageError: If the method did not compare a language.

        Example:
            >>> neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 2)], "ur": [(1, 2)]}, shape=(2, 8), site="act")
            >>> neurons.shared("hi", "ur")
            NeuronSet of 1 neurons at act (2 layers x 8): hi 1, ur 1
        """
        if not languages:
            return self._kept(self._in_several(), inside=True)
        in_all = [self.above[label_of(language, self.above)] for language in languages]
        return self._kept(reduce(np.intersect1d, in_all), inside=True)

    def _in_several(self) -> np.ndarray:
        """The neurons that are above the bar in two languages or more."""
        flat, languages = np.unique(np.concatenate([NO_NEURONS, *self.above.values()]), return_counts=True)
        return flat[languages > 1]

    def _kept(self: Labelled, flat: np.ndarray, inside: bool) -> Labelled:
        """Each label's neurons inside some, or outside of them, with their scores."""
        masks = {label: np.isin(own, flat) == inside for label, own in self.members.items()}
        return replace(
            self,
            members={label: self.members[label][mask] for label, mask in masks.items()},
            scores={label: values[masks[label]] for label, values in self.scores.items()},
        )

    def highest_elsewhere(self) -> ByLanguage:
        """Label -> those of its neurons that are higher in another language; none of a label that is no language."""
        compared = {*self.above, *self.highest}
        elsewhere = {
            label: np.setdiff1d(neurons_of(self.highest), self.highest.get(label, NO_NEURONS)) for label in compared
        }
        return {label: np.intersect1d(flat, elsewhere.get(label, NO_NEURONS)) for label, flat in self.members.items()}

    def languages_above(self, flat: Int[np.ndarray, " row"]) -> list[str]:
        """The languages in which each of some neurons is above the bar, as a table's cells name them."""
        return as_texts(self.above, flat)

    def languages_highest(self, flat: Int[np.ndarray, " row"]) -> list[str]:
        """The language in which each of some neurons is highest, several where it is equally high; else ""."""
        return as_texts(self.highest, flat)

    def _joined_with(self, other: "LabelledNeurons") -> dict[str, ByLanguage]:
        """What two sets say of neurons: above a bar where either says so, highest as both agree or one alone says."""
        mine, theirs = neurons_of(self.highest), neurons_of(other.highest)
        highest: dict[str, np.ndarray] = {}
        for language in dict.fromkeys((*self.highest, *other.highest)):
            of_mine, of_theirs = self.highest.get(language, NO_NEURONS), other.highest.get(language, NO_NEURONS)
            alone = np.union1d(np.setdiff1d(of_mine, theirs), np.setdiff1d(of_theirs, mine))
            highest[language] = np.union1d(np.intersect1d(of_mine, of_theirs), alone)
        above = {
            language: np.union1d(self.above.get(language, NO_NEURONS), other.above.get(language, NO_NEURONS))
            for language in dict.fromkeys((*self.above, *other.above))
        }
        return {"above": above, "highest": highest}

    def __and__(self: Labelled, other: Labelled) -> Labelled:
        return self._combined(other, "&", lambda mine, theirs: np.intersect1d(mine, theirs, assume_unique=True))

    def __or__(self: Labelled, other: Labelled) -> Labelled:
        return self._combined(other, "|", np.union1d)

    def __sub__(self: Labelled, other: Labelled) -> Labelled:
        return self._combined(other, "-", lambda mine, theirs: np.setdiff1d(mine, theirs, assume_unique=True))

    def __xor__(self: Labelled, other: Labelled) -> Labelled:
        return self._combined(other, "^", lambda mine, theirs: np.setxor1d(mine, theirs, assume_unique=True))

    def merge(self: Labelled, *others: Labelled) -> Labelled:
        """Put the labels of several sets into one; a label that several have holds the neurons of all of them.

        Args:
            others: Sets of the same model and site.

        Raises:
            NeuronSetError: If the sets belong to different models.
            SiteMismatchError: If they belong to different sites.

        Example:
            >>> hi = ln.NeuronSet.of({"hi": [(0, 3)]}, shape=(2, 8), site="act")
            >>> ur = ln.NeuronSet.of({"ur": [(1, 2)], "hi": [(1, 2)]}, shape=(2, 8), site="act")
            >>> hi.merge(ur)
            NeuronSet of 2 neurons at act (2 layers x 8): hi 2, ur 1
        """
        merged = self
        for other in others:
            merged.check_comparable(other)
            both = (merged, other)
            members = dict(merged.members)
            for label, flat in other.members.items():
                members[label] = np.union1d(members[label], flat) if label in members else flat
            listed = [item for each in both for item in each.scores.items()]
            scores = {label: values for label, values in listed if len(values) == len(members[label])}
            method = " and ".join(dict.fromkeys(each.method for each in both))
            about: dict[str, Any] = {"model": merged.model or other.model, "method": method}
            merged = replace(self, members=members, scores=scores, **about, **merged._joined_with(other))
        return merged

    def mask(self, language: str | None = None) -> Bool[Tensor, "layer neuron"]:
        """True at the neurons of one label, or of any.

        Raises:
            LanguageError: If there is no such label.
        """
        flat = self.union() if language is None else self.members[label_of(language, self.members)]
        mask = torch.zeros(self.shape, dtype=torch.bool)
        mask.view(-1)[torch.from_numpy(flat.copy())] = True
        return mask

    def indices(self) -> Int[Tensor, "n 2"]:
        """(layer, neuron) of every neuron with any label, sorted."""
        return torch.from_numpy(np.stack(np.divmod(self.union(), self.shape[1]), axis=1))

    def per_layer(self) -> dict[int, Int[Tensor, " n"]]:
        """Layer -> its neurons with any label, sorted; layers without such neurons are left out."""
        layers, neurons = np.divmod(self.union(), self.shape[1])
        present, starts = np.unique(layers, return_index=True)
        pieces = np.split(neurons, starts[1:])
        return {int(layer): torch.from_numpy(piece.copy()) for layer, piece in zip(present, pieces, strict=False)}

    def counts(self) -> pd.DataFrame:
        """The layer profile: number of neurons of each label in each layer (language x layer).

        Example:
            >>> ln.NeuronSet.of({"hi": [(0, 3), (1, 2)]}, shape=(2, 8), site="act").counts().loc["hi"].tolist()
            [1, 1]
        """
        layers, width = self.shape
        rows = {label: np.bincount(flat // width, minlength=layers) for label, flat in self.members.items()}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=range(layers), dtype="int64")
        return table.rename_axis(index="language", columns="layer")

    def by_head(self, d_head: int) -> pd.DataFrame:
        """Count each label's coordinates in every head that has any, at ``q``, ``k`` or ``v``.

        Args:
            d_head: Coordinates per head, such as ``model.cfg.d_head``.

        Returns:
            One row per label, layer and head: language, layer, head, coordinates.

        Raises:
            NeuronSetError: If the site has no heads' coordinates, or its width is no multiple of ``d_head``.

        Example:
            >>> neurons = ln.NeuronSet.of({"hi": [(0, 3), (0, 2), (1, 7)]}, shape=(2, 8), site="k")
            >>> neurons.by_head(4).to_numpy().tolist()
            [['hi', 0, 0, 2], ['hi', 1, 1, 1]]
        """
        heads = self._heads(d_head)
        rows = [
            (label, *divmod(int(head), heads), int(count))
            for label, flat in self.members.items()
            for head, count in zip(*np.unique(flat // d_head, return_counts=True), strict=True)
        ]
        return pd.DataFrame(rows, columns=["language", "layer", "head", "coordinates"])

    def whole_heads(self: Labelled, d_head: int) -> Labelled:
        """Widen each label to every coordinate of the heads in which it has one, at ``q``, ``k`` or ``v``.

        Args:
            d_head: Coordinates per head, such as ``model.cfg.d_head``.

        Raises:
            NeuronSetError: If the site has no heads' coordinates, or its width is no multiple of ``d_head``.

        Example:
            >>> neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 7)]}, shape=(2, 8), site="k")
            >>> neurons.whole_heads(4).indices().tolist()
            [[0, 0], [0, 1], [0, 2], [0, 3], [1, 4], [1, 5], [1, 6], [1, 7]]
        """
        self._heads(d_head)
        members = {
            label: (np.unique(flat // d_head)[:, None] * d_head + np.arange(d_head)).ravel()
            for label, flat in self.members.items()
        }
        return replace(self, members=members, scores={}, method=f"whole heads of: {self.method}")

    def _heads(self, d_head: int) -> int:
        """The number of heads whose coordinates a layer has."""
        width = self.shape[1]
        if self.site not in OF_HEADS:
            raise NeuronSetError(
                f"Units at {self.site!r} are no coordinates of heads: those of {', '.join(OF_HEADS)} are."
            )
        if d_head < 1 or width % d_head:
            raise NeuronSetError(f"{width} coordinates a layer are no whole number of heads of {d_head}.")
        return width // d_head

    def jaccard(self, other: "LabelledNeurons | None" = None) -> pd.DataFrame:
        """Overlap of every pair of labels: shared neurons / neurons in either; NaN where both are empty.

        Args:
            other: The set whose labels are the columns; by default this one.

        Raises:
            NeuronSetError: If the two sets belong to different shapes or models.
        """
        columns = self if other is None else other
        self.check_comparable(columns)
        table = pd.DataFrame(index=list(self.languages), columns=list(columns.languages), dtype="float64")
        for row, mine in self.members.items():
            for column, theirs in columns.members.items():
                shared = len(np.intersect1d(mine, theirs, assume_unique=True))
                either = len(mine) + len(theirs) - shared
                table.loc[row, column] = shared / either if either else np.nan
        return table

    def union(self) -> Int[np.ndarray, " n"]:
        """Flat indices of the neurons with any label, sorted."""
        if len(self.members) == 1:
            return next(iter(self.members.values()))
        return neurons_of(self.members)

    def _combined(self: Labelled, other: Labelled, sign: str, combine: Callable[..., np.ndarray]) -> Labelled:
        if not isinstance(other, LabelledNeurons):
            return NotImplemented
        self.check_comparable(other)
        if set(self.languages) == set(other.languages):
            members = {label: combine(flat, other.members[label]) for label, flat in self.members.items()}
        elif len(self.members) == len(other.members) == 1:
            label = f"{self.languages[0]}{sign}{other.languages[0]}"
            members = {label: combine(self.union(), other.union())}
        else:
            raise NeuronSetError(
                f"Sets labelled {', '.join(self.languages)} and {', '.join(other.languages)} cannot be combined: "
                'possible: the same labels on both sides, or one label each, as in neurons["hi"] & neurons["ur"]; '
                "merge() puts different labels into one set."
            )
        return replace(
            self,
            members=members,
            scores={},
            model=self.model or other.model,
            method=f"({self.method}) {sign} ({other.method})",
            **({} if sign == "-" else self._joined_with(other)),
        )

    def check_comparable(self, other: "LabelledNeurons") -> None:
        """Refuse another set of another model or site.

        Raises:
            NeuronSetError: If it belongs to another model.
            SiteMismatchError: If it belongs to another site.
        """
        if self.shape != other.shape:
            raise NeuronSetError(
                f"These sets belong to different models: {shape_text(self.shape)} and {shape_text(other.shape)}."
            )
        if self.site != other.site:
            raise SiteMismatchError(f"These sets belong to different sites: {self.site!r} and {other.site!r}.")
        if self.model and other.model and self.model != other.model:
            raise NeuronSetError(f"These sets belong to different models: {self.model[:8]} and {other.model[:8]}.")
