"""Neuron sets: which neurons belong to which language; their tables, files and controls."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from langneurons.errors import NeuronSetError, check_kind
from langneurons.identification.clearest import furthest_ahead
from langneurons.identification.controls import (
    Candidates,
    balance_of,
    choose_neutral,
    draw_seed,
    fitting_statistics,
    matched_by,
    random_stream,
    reported_balance,
    statistics_at,
)
from langneurons.identification.exchange import ExchangedNeurons
from langneurons.identification.indices import Shape, checked_shape, flat_indices, shape_text
from langneurons.identification.scores import Scores
from langneurons.identification.standing import ByLanguage, from_texts
from langneurons.recording.site_values import basis_note
from langneurons.recording.statistics import ActivationStats
from langneurons.settings import Controls, whole_number
from langneurons.storage.layouts import layout
from langneurons.storage.objects import JsonObject
from langneurons.storage.presenting import Table

COLUMNS = ("language", "layer", "neuron")
LATER = ("above", "highest")  # what files of earlier versions lack


@dataclass(frozen=True, eq=False, repr=False)
class NeuronSet(ExchangedNeurons, kind="neuron-set", file=None):
    """Neurons labelled with the language they belong to; a neuron may belong to several.

    Attributes:
        members: Label -> flat indices (layer x width + neuron), strictly increasing.
        shape: Layers and neurons per layer of the model.
        site: The tensor of a layer that holds the neurons.
        model: Fingerprint of the model's weights, None where unknown.
        method: Description of how the neurons were chosen.
        scores: Label -> each member's score, where the method gave one.
        above: Language -> neurons above the method's bar there, whichever labels were selected since; by default what
            is labelled with it. ``exclusive()`` and ``shared()`` choose by it.
        highest: Language -> neurons whose value, the one that the bar is set on, is highest there; empty where no
            method said so.

    Example:
        >>> neurons = NeuronSet.of({"hi": [(0, 3), (1, 2)], "ur": [(1, 2)]}, shape=(2, 8), site="act")
        >>> neurons
        NeuronSet of 2 neurons at act (2 layers x 8): hi 2, ur 1
        >>> (neurons["hi"] & neurons["ur"]).indices().tolist()
        [[1, 2]]
    """

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
            shape: Layers and neurons per layer of the model.
            site: The tensor of a layer that holds the neurons.
            model: Fingerprint of the model's weights, if known.
            method: Description of how they were chosen.

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
            table: A table such as ``to_dataframe`` gives; those remember their shape and site. Columns ``above`` and
                ``highest`` are read where there are any.
            shape: Layers and neurons per layer, for tables that do not remember.
            site: The site, for tables that do not remember.

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
        if twice := [column for column in COLUMNS if list(table.columns).count(column) > 1]:
            raise NeuronSetError(f"The table has several columns {twice[0]!r}.")
        shape, site = shape or table.attrs.get("shape"), site or table.attrs.get("site")
        if shape is None or site is None:
            raise NeuronSetError("The table does not say its model's shape or site: give shape=(layers, width), site=.")
        labels = dict.fromkeys((*table.attrs.get("languages", ()), *table["language"]))
        if odd := [place for place, label in enumerate(table["language"]) if not isinstance(label, str)]:
            label = table["language"].iloc[odd[0]]
            raise NeuronSetError(
                f"The column 'language' holds languages' names, but {len(odd)} of its {len(table)} rows do not, "
                f"such as row {odd[0]}: {label!r:.40}."
            )
        rows = {label: table.loc[table["language"] == label, ["layer", "neuron"]].to_numpy() for label in labels}
        shape = checked_shape(shape)
        members = {label: flat_indices(label, pairs, shape) for label, pairs in rows.items()}
        flat = table["layer"].to_numpy() * shape[1] + table["neuron"].to_numpy()
        columns = {name: table[name].fillna("").astype(str) for name in LATER if name in table.columns}
        said = {name: from_texts(flat, texts, labels) for name, texts in columns.items()}
        return cls(members, shape, site, table.attrs.get("model"), table.attrs.get("method", "given"), **said)

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

    def table(self) -> Table:
        """Number of neurons of every label, how many are exclusive, how many highest elsewhere, and their layers."""
        exclusive, elsewhere = self.exclusive().members, self.highest_elsewhere()
        rows = [
            (label, len(members), len(exclusive[label]), len(elsewhere[label]), self._layers(members))
            for label, members in self.members.items()
        ]
        columns = ["language", "neurons", "of no other language", "higher in another", "layers"]
        table = pd.DataFrame(rows, columns=columns)
        return Table(table if self.highest else table.drop(columns="higher in another"), title=repr(self))

    def _layers(self, members: Int[np.ndarray, " n"]) -> str:
        return f"{members[0] // self.shape[1]} to {members[-1] // self.shape[1]}" if len(members) else ""

    def to_dataframe(self, scores: Scores | None = None, level: float = 0.95) -> pd.DataFrame:
        """One row per label and neuron.

        Args:
            scores: Scores whose values and intervals to add; by default the values that the method left, if any.
            level: Confidence of the interval.

        Returns:
            Columns language, layer, neuron; score where known; where a method said so, ``above``, the languages in
            which the neuron is above the method's bar, such as "hi, ur", and ``highest``, the one where it is highest;
            low and high where ``scores`` is given; ``basis`` at a site whose single units depend on the basis.
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

    def clearest(self, stats: ActivationStats, count: int = 1) -> "NeuronSet":
        """Keep the neurons that are furthest ahead in their own language, as many of each label as of the others.

        Args:
            stats: Statistics of the same model.
            count: Largest number of neurons to keep in all.

        Returns:
            The set: of each label those whose activation probability exceeds that of every other language most (of a
            label that was not recorded, the first ones).

        Raises:
            NeuronSetError: If ``count`` is below 1, or the statistics do not fit.

        Example:
            >>> neurons = ln.LAPE(top=0.01).identify(stats)
            >>> len(neurons.clearest(stats, 6)), len(neurons["hi"].clearest(stats))
            (6, 1)
        """
        if whole_number(count, "count", NeuronSetError) < 1:
            raise NeuronSetError(f"At least one neuron is to be looked at, not {count}.")
        fitting = fitting_statistics(stats, self.shape, self.site, self.model)
        members, method = furthest_ahead(self.members, fitting, count), f"the {count} furthest ahead of: {self.method}"
        return replace(self, members=members, scores={}, method=method)

    def matched_control(
        self,
        controls: Controls | ActivationStats | None = None,
        draw: int = 0,
        exclude: "NeuronSet | None" = None,
    ) -> "NeuronSet":
        """Draw neurons that belong to no label but are otherwise like each label's neurons.

        As many per label and layer as the label has; with statistics each writes about as much, in the label's own
        language, as the neuron that it stands for (see ``Controls.match``). Labels are drawn independently, so controls
        of two labels may share neurons, and a label's draw does not depend on the other labels' names.

        Args:
            controls: Statistics to match by, match and seed of the draws. Statistics alone stand for
                ``Controls(stats=...)``; without any, only layers match.
            draw: Number of the draw; different draws are independent.
            exclude: Neurons that cannot be drawn either, such as those of labels that this set was taken from.

        Raises:
            NeuronSetError: If a layer (or a decile of it) has too few neurons left: nothing is padded.
            LanguageError: If a label was not recorded and what neurons write must match.
            SiteMismatchError: If the statistics hold another site or model.

        Example:
            >>> neurons = ln.LAPE(top=0.01).identify(stats)
            >>> control = neurons.matched_control(ln.Controls(stats=stats, seed=1), draw=2)
            >>> len(control & neurons)
            0
        """
        if not isinstance(controls, Controls):
            controls = Controls(stats=controls)
        seed, candidates = draw_seed(controls, draw), self._candidates(controls, exclude)
        members = {label: candidates[label].draw(flat, controls, seed) for label, flat in self.members.items()}
        method = f"control matched by {matched_by(controls)}, seed {seed}: {self.method}"
        return replace(self, members=members, scores={}, above={}, highest={}, method=method)

    def balance(
        self, draws: "Sequence[NeuronSet]", controls: Controls, exclude: "NeuronSet | None" = None
    ) -> pd.DataFrame:
        """Compare what each label's neurons write, and how often they are active, with what control draws do.

        Args:
            draws: Controls that ``matched_control`` drew.
            controls: How they were drawn.
            exclude: Neurons that could not be drawn either.

        Returns:
            One row per label: neurons, eligible, write_ratio, write_difference, active_difference, without_candidate;
            see ``langneurons.identification.controls.balance_of``.

        Example:
            >>> neurons, controls = ln.LAPE(top=0.01).identify(stats), ln.Controls(stats=stats)
            >>> balance = neurons.balance([neurons.matched_control(controls, draw) for draw in range(5)], controls)
            >>> bool(balance["write_ratio"].between(0.5, 1.5).all())
            True
        """
        candidates = self._candidates(controls, exclude)
        return balance_of(self.members, [draw.members for draw in draws], candidates, controls.caliper)

    def _candidates(self, controls: Controls, exclude: "NeuronSet | None") -> dict[str, Candidates]:
        stats = statistics_at(controls, self.site)
        if stats is not None:
            stats = fitting_statistics(stats, self.shape, self.site, self.model)
        taken = (self if exclude is None else united([self, exclude])).union()
        return {label: Candidates.of(label, self.shape, taken, stats, controls) for label in self.members}

    def single_controls(self, controls: Controls) -> "NeuronSet":
        """Draw ``controls.draws`` single neurons for each label, from as many whole controls as that takes.

        Args:
            controls: Number of neurons, and statistics to match by; where draws coincide there are fewer neurons.

        Raises:
            NeuronSetError: If a layer (or a decile of it) has too few neurons left: nothing is padded.
        """
        members = {}
        for label, flat in self.members.items() if controls.draws else ():
            draws = range(-(-controls.draws // len(flat)))
            sets = [self[label].matched_control(controls, draw, exclude=self) for draw in draws]
            order = random_stream(controls.seed, "pooled controls", label).permutation(united(sets).union())
            members[label] = np.sort(order[: controls.draws])
        about: dict[str, Any] = {"above": {}, "highest": {}, "method": f"single controls: {self.method}"}
        return replace(self, members=members, scores={}, **about)

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
        members = {label: choose_neutral(label, flat, self.union(), stats) for label, flat in self.members.items()}
        about: dict[str, Any] = {"above": {}, "highest": {}, "method": f"frequent neutral neurons: {self.method}"}
        return replace(self, members=members, scores={}, **about)

    def _about(self) -> dict[str, object]:
        counts = {label: len(flat) for label, flat in self.members.items()}
        options = {"site": self.site, "shape": shape_text(self.shape), "neurons": counts}
        return {"weights": self.model, "method": self.method, "options": options}

    def _write(self, folder: Path) -> JsonObject:
        return {
            "shape": list(self.shape),
            "site": self.site,
            "model": self.model,
            "method": self.method,
            "members": [[label, flat.tolist()] for label, flat in self.members.items()],
            "scores": [[label, values.tolist()] for label, values in self.scores.items()],
            **{name: self._own(getattr(self, name)) for name in (("above", "highest") if self.highest else ("above",))},
        }

    @classmethod
    def _origin_of(cls, content: JsonObject) -> JsonObject:
        settings = content.get("settings", content)
        return {**super()._origin_of(content), "languages": list(dict(settings["members"]))}

    def _own(self, by_language: ByLanguage) -> list[list[object]]:
        """What is said of the neurons of this set, as it is written."""
        own = self.union()
        return [[language, np.intersect1d(flat, own).tolist()] for language, flat in by_language.items()]

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        layout(text="site method model?", numbers="shape").check("the neuron set", content)
        members, scores, above, highest = (
            [(label, *values) for label, *values in (content.get(name, []) if name in LATER else content[name])]
            for name in ("members", "scores", *LATER)
        )
        labelled = pd.DataFrame([*members, *scores, *above, *highest], columns=["label", "values"])
        layout(text="label", numbers="values").check("the neuron set", labelled)
        if (
            len(dict(members)) < len(members)
            or len(dict(scores)) < len(scores)
            or not dict(scores).keys() <= dict(members).keys()
        ):
            raise ValueError("a label stands there twice, or has scores but no neurons")
        indices = chain(*(flat for _, flat in (*members, *above, *highest)))
        if any(value != int(value) for value in (*content["shape"], *indices)):
            raise ValueError("a layer or an index is no whole number")
        by_language = {
            name: {label: np.array(flat, dtype=np.int64) for label, flat in rows}
            for name, rows in (("members", members), ("above", above), ("highest", highest))
        }
        return {
            **by_language,
            "shape": checked_shape(content["shape"]),
            "site": content["site"],
            "model": content["model"],
            "method": content["method"],
            "scores": {label: np.array(values, dtype=np.float64) for label, values in scores},
        }


def report_balance(
    neurons: NeuronSet, controls: Controls, exclude: NeuronSet | None = None, draws: Sequence[NeuronSet] | None = None
) -> dict[str, object]:
    """What a result's settings keep of how its controls are matched: nothing where none are drawn.

    Args:
        neurons: The neurons that controls stand for.
        controls: How they are drawn.
        exclude: Neurons that cannot be drawn either.
        draws: The controls, if they are drawn already.

    Returns:
        ``balance``, with the table's rows and a sentence for captions.
    """
    if not controls.draws:
        return {}
    if draws is None:
        draws = [neurons.matched_control(controls, draw, exclude) for draw in range(controls.draws)]
    return {"balance": reported_balance(neurons.balance(draws, controls, exclude), controls)}


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
        first.check_comparable(other)
    flat = np.unique(np.concatenate([neurons.union() for neurons in (first, *others)]))
    return replace(first.merge(*others), members={label: flat}, scores={}, model=first.model, method=first.method)


def check_neurons(neurons: object) -> None:
    """Refuse what is no neuron set.

    Raises:
        NeuronSetError: If it is something else.
    """
    check_kind(neurons, NeuronSet, "Neurons are a NeuronSet, such as a method's identify() gives", NeuronSetError)


def sets_by_name(neurons: NeuronSet | Mapping[str, NeuronSet], name: str) -> dict[str, NeuronSet]:
    """Several neuron sets as they are named, or one under a name.

    Args:
        neurons: A neuron set, or several by name.
        name: Name of a set that comes alone.

    Raises:
        NeuronSetError: If anything among them is no neuron set.
    """
    sets = dict(neurons) if isinstance(neurons, Mapping) else {name: neurons}
    for members in sets.values():
        check_neurons(members)
    return sets
