"""Language or script, language or words: how many of a method's neurons stay when the text lacks one of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

from langneurons.analysis.validity.reliability import EVERY, selections
from langneurons.errors import StatisticsError
from langneurons.identification import Method
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.random_tokens import SHARE, without_active_on
from langneurons.recording.statistics import ActivationStats
from langneurons.storage import Column, Result, Table, layout
from langneurons.storage.layouts import Layout

RANDOM = "random"
LEVEL = 0.95
FIGURES = ("stays", "again", "change")

Choice = Mapping[str, np.ndarray]
Values = Sequence[np.ndarray]
Parts = Sequence[ActivationStats]


@dataclass(frozen=True)
class AlteredRecordings:
    """Recorded parts of two halves of the documents, the second also altered.

    Attributes:
        first: Parts of the half in which neurons are named.
        second: Parts of the other half, as it is.
        altered: Condition -> parts of the other half, altered: of the languages that can be; of random tokens, under
            the label "random".
    """

    first: Parts
    second: Parts
    altered: Mapping[str, Parts]


@dataclass(frozen=True, eq=False, repr=False)
class Survival(Result, kind="survival", tables=("rows",)):
    """How many of each method's neurons stay when text is altered.

    Attributes:
        rows: One row per method, condition and language, and one for all languages of the condition together,
            "overall". ``neurons``: how many the method names in one half of the documents. ``stays``: share of these
            that it names again for the same language in the other half, altered; ``again``: in the other half as it is;
            ``change``: the difference; each with ``_low`` and ``_high``, the ends of a 95 % interval.
        settings: The number of parts, the level, and the share for random tokens.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(
            text="method condition",
            mark="language",
            number="neurons " + " ".join(f"{name} {name}_low {name}_high" for name in FIGURES),
        ),
        "settings": layout(whole="parts", share="level random_share"),
    }

    rows: pd.DataFrame
    settings: Mapping[str, Any]

    @classmethod
    def joined(cls, tables: "Sequence[Survival]") -> "Survival":
        """One table of methods that were asked one by one, in the same text."""
        return cls(pd.concat([table.rows for table in tables], ignore_index=True), tables[0].settings)

    def table(self) -> Table:
        """One line per method, condition and language: what stays, and what stays in other text as it is."""
        headings = {"stays": ("stays", "%"), "again": ("stays in text as it is", "%"), "change": ("change", "points")}
        columns = {
            name: Column(*heading, 100, 3, name == "change", (f"{name}_low", f"{name}_high"))
            for name, heading in headings.items()
        }
        caption = (
            "Named in one half of the documents, and again in the other, altered and as it is; "
            f"{self.settings['level']:.0%} intervals over {self.settings['parts']} parts of the documents, and over "
            "neurons."
        )
        return Table(self.rows, columns, "Neurons that stay when text is altered", caption)


def survival_of(methods: Mapping[str, Method], recordings: AlteredRecordings, random_share: float = SHARE) -> Survival:
    """How many of some methods' neurons stay, in text that has been recorded.

    Intervals hold how far a figure would move with other documents (a jackknife over parts, the same of every language
    and condition, so that the change is paired) and with other neurons like these, by Student's t.

    Args:
        methods: Methods by name.
        recordings: What ``record_altered`` returned.
        random_share: A neuron is active on random tokens if it is active at least this many times as often as in its
            language.

    Returns:
        The shares that stay.

    Raises:
        StatisticsError: If there is no method, or parts are fewer than three.

    Example:
        >>> from langneurons.analysis.validity import AlteredRecordings, survival_of
        >>> size = {"tokens_per_language": 600, "context_length": 64, "progress": False}
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> parts = [ln.record(model, corpus, shard=(place, 3), **size) for place in range(3)]
        >>> recordings = AlteredRecordings(parts, parts, {"words": parts})
        >>> bool((survival_of({"lape": ln.LAPE(top=0.01)}, recordings).rows["stays"] == 1).all())
        True
    """
    if not methods or len(recordings.first) < 3:
        raise StatisticsError(
            f"Give at least one method and three parts, not {len(methods)} and {len(recordings.first)}."
        )
    choices = {
        "first": _choices(methods, _left_out(recordings.first)),
        "second": _choices(methods, _left_out(recordings.second)),
        **{name: _choices(methods, _altered(name, recordings)) for name in recordings.altered if name != RANDOM},
    }
    rows = [
        row
        for name in methods
        for condition, parts in recordings.altered.items()
        for row in _rows(name, condition, {label: of[name] for label, of in choices.items()}, recordings, random_share)
    ]
    settings = {"parts": len(recordings.first), "level": LEVEL, "random_share": random_share}
    return Survival(pd.DataFrame(rows), settings)


def _left_out(parts: Parts) -> Iterator[ActivationStats]:
    """The sum of all parts, then the sums without each in turn."""
    yield reduce(add, parts)
    for place in range(len(parts)):
        yield reduce(add, [part for other, part in enumerate(parts) if other != place])


def _altered(condition: str, recordings: AlteredRecordings) -> Iterator[ActivationStats]:
    """Statistics in which the altered languages stand for their originals, without each part in turn."""
    for whole, altered in zip(_left_out(recordings.second), _left_out(recordings.altered[condition]), strict=True):
        rest = [language for language in whole.languages if language not in altered.languages]
        yield (whole.select(rest) + altered if rest else altered).select(whole.languages)


def _choices(methods: Mapping[str, Method], several: Iterable[ActivationStats]) -> dict[str, list[Choice]]:
    """What each method names in several recordings."""
    choices: dict[str, list[Choice]] = {name: [] for name in methods}
    for stats in several:
        for name, method in methods.items():
            by_language = selections(method, stats)
            choices[name].append({language: selection.neurons for language, selection in by_language.items()})
    return choices


def _rows(
    method: str,
    condition: str,
    choices: Mapping[str, list[Choice]],
    recordings: AlteredRecordings,
    random_share: float,
) -> Iterator[dict[str, object]]:
    first, again = choices["first"], choices["second"]
    if condition == RANDOM:
        languages, stays = recordings.second[0].languages, _without_random(again, recordings, random_share)
    else:
        languages, stays = recordings.altered[condition][0].languages, choices[condition]
    for language in (*languages, EVERY):
        members = languages if language == EVERY else (language,)
        neurons = sum(len(first[0][member]) for member in members)
        row: dict[str, object] = {"method": method, "condition": condition, "language": language, "neurons": neurons}
        staying, control = (
            [_named_again(*pair, members) for pair in zip(first, others, strict=True)] for others in (stays, again)
        )
        yield row | _figures(staying, control)


def _without_random(choices: list[Choice], recordings: AlteredRecordings, share: float) -> list[Choice]:
    """What was named, without what is active on random tokens."""
    staying = []
    recorded = zip(_left_out(recordings.second), _left_out(recordings.altered[RANDOM]), strict=True)
    for of, (stats, random) in zip(choices, recorded, strict=True):
        neurons = NeuronSet({language: flat.copy() for language, flat in of.items()}, stats.shape, stats.site)
        staying.append(without_active_on(neurons, stats, random, share).members)
    return staying


def _named_again(first: Choice, other: Choice, languages: tuple[str, ...]) -> Float[np.ndarray, " neuron"]:
    """Of every neuron of some languages, 1 if it is among the others for the same language, else 0."""
    named = [np.isin(first[language], other[language]) for language in languages]
    return np.concatenate(named).astype(float)


def _figures(stays: Values, again: Values) -> dict[str, float]:
    """Shares, their difference and intervals, from each neuron's values with all parts and without each in turn."""
    change = [of_neurons - others for of_neurons, others in zip(stays, again, strict=True)]
    return _interval("stays", stays, 0.0) | _interval("again", again, 0.0) | _interval("change", change, -1.0)


def _interval(name: str, values: Values, least: float) -> dict[str, float]:
    """The mean over neurons, and how far it would move with other documents, and with other neurons like these.

    Variance by documents is the jackknife's. Two neurons at either end are added to the variance by neurons, as Agresti
    and Coull (1998) do to a share, so that an interval has a width also where all neurons agree.
    """
    if not len(values[0]):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
    whole, *without = (float(np.mean(of_neurons)) if len(of_neurons) else np.nan for of_neurons in values)
    parts = len(without)
    by_documents = (parts - 1) * np.nanvar(without)
    ends = np.concatenate([values[0], [least, least, 1.0, 1.0]])
    by_neurons = np.var(ends) / len(ends)
    reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, parts - 1) * np.sqrt(by_documents + by_neurons))
    return {name: whole, f"{name}_low": max(whole - reach, least), f"{name}_high": min(whole + reach, 1.0)}
