"""What a method says of one recording: every neuron's score, and which neurons it chooses for whom."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from langneurons.errors import LangNeuronsWarning
from langneurons.identification.methods import Method
from langneurons.recording.statistics import ActivationStats

ONE_SIDED = 0.9  # share of the choice on one side of the median score, from which on the other side is an accident
EVERY = "overall"  # stands in tables for all languages together

Halves = tuple[ActivationStats, ActivationStats]


@dataclass(frozen=True, eq=False)
class Selection:
    """The neurons a method chose under one label, and the scores it chose by.

    Attributes:
        scores: Of every neuron, flat (layer x width + neuron).
        chosen: Flat indices of the chosen ones, increasing.
    """

    scores: Float[np.ndarray, " neuron"]
    chosen: Int[np.ndarray, " chosen"]


def selections(method: Method, stats: ActivationStats) -> dict[str, Selection]:
    """Every language's selection.

    What the method warns of is not passed on: halves and nulls are scored many times, and whoever identifies neurons
    on the whole recording is told there.
    """
    return _selected(method, stats)[0]


def deciding(method: Method, stats: ActivationStats) -> dict[str, Selection]:
    """The selections by which the method decides: one a language, or one in all where its score knows no language."""
    found, knows_languages = _selected(method, stats)
    if knows_languages:
        return found
    members = [one.chosen for one in found.values()]
    return {EVERY: Selection(next(iter(found.values())).scores, np.unique(np.concatenate(members)))}


def _selected(method: Method, stats: ActivationStats) -> tuple[dict[str, Selection], bool]:
    """Every language's selection, and whether the score knows languages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangNeuronsWarning)
        scores, neurons = method.scores(stats), method.identify(stats)
    empty = np.empty(0, np.int64)
    found = {
        language: Selection(scores[language].double().flatten().numpy(), neurons.members.get(language, empty))
        for language in stats.languages
    }
    return found, scores.languages is not None


def high_ones(selection: Selection) -> Bool[np.ndarray, " chosen"]:
    """Which of the chosen neurons were chosen for a high score: all, none, or those above the median of all scores.

    Where less than a tenth of the choice lies on one side of the median, that is an accident.
    """
    upper = selection.scores[selection.chosen] > np.median(selection.scores)
    if not len(upper):
        return upper
    if upper.mean() >= ONE_SIDED:
        upper[:] = True
    elif upper.mean() <= 1 - ONE_SIDED:
        upper[:] = False
    return upper


def whole(recording: ActivationStats | Halves) -> ActivationStats:
    """The sum of two halves, or the recording itself."""
    return recording[0] + recording[1] if isinstance(recording, tuple) else recording
