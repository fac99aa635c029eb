"""Contrast: neurons that are active in a language and silent in every other."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.identification.activation import check_several
from langneurons.identification.firing import (
    approximate_variance_of_share,
    check_magnitude_threshold,
    degrees_of_freedom,
    firing_probability,
    how_uncertain,
    variance_of_probability,
)
from langneurons.identification.scores import Scores
from langneurons.identification.selection import PER_LANGUAGE, Ranking, share
from langneurons.recording.statistics import ActivationStats


@dataclass(frozen=True)
class Contrast(Ranking):
    """Neurons active in a language and silent elsewhere.

    With p_l = P(activation > 0), the score is p_l - max_{m != l} p_m: 1 for a neuron that is always active in l and
    never elsewhere, at most 0 where another language has it at least as often. A neuron of two languages scores about
    0 in both. In each language the round(top x layers x width) neurons with the highest score are kept.

    Source: the idea is the class selectivity of Morcos et al. 2018 (arXiv 1803.06959), (a - b) / (a + b) of the class's
    mean a and the others' mean b. Departures: shares of active tokens take the place of means, whose scale differs
    between neurons; the most active other language that of the others' mean, so that one exception counts; and nothing
    is divided, which would let neurons that hardly ever fire win.

    Args:
        top: Share of all neurons to keep in each language.
        magnitude_threshold: Count |activation| > this instead of activation > 0, or ``"pooled-pNN"``; see ``LAPE``.

    Example:
        >>> active = torch.tensor([[[90, 50, 40, 1]], [[2, 50, 60, 1]]])
        >>> published = ActivationStats.from_counts(active, torch.tensor([100, 100]), ["en", "hi"])
        >>> Contrast(top=0.25).identify(published)["hi"].indices().tolist()
        [[0, 2]]
    """

    top: float = share(PER_LANGUAGE)
    magnitude_threshold: float | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_magnitude_threshold(self.magnitude_threshold)

    def scores(self, stats: ActivationStats) -> Scores:
        """The contrast of every neuron in every language.

        Standard errors: those of the two probabilities, by the jackknife over document folds (with a
        ``magnitude_threshold`` an approximation); which other language comes first is taken as known.
        """
        check_several(stats)
        p = firing_probability(stats, self.magnitude_threshold)
        values, rival = _against_the_best_other(p)

        def standard_error() -> Tensor:
            own = torch.stack([self._variance(stats, language, p[i]) for i, language in enumerate(stats.languages)])
            return (own + own.gather(0, rival)).sqrt()

        return Scores(
            values=values,
            languages=stats.languages,
            method=repr(self),
            uncertainty=how_uncertain(self.magnitude_threshold),
            degrees_of_freedom=degrees_of_freedom(stats),
            compute_standard_error=standard_error,
            bounds=(-1.0, 1.0),
        )

    def _variance(self, stats: ActivationStats, language: str, p: Tensor) -> Tensor:
        if self.magnitude_threshold is None:
            return variance_of_probability(stats, language)
        return approximate_variance_of_share(stats, language, p)


def _against_the_best_other(
    p: Float[Tensor, "language layer neuron"],
) -> tuple[Float[Tensor, "language layer neuron"], Int[Tensor, "language layer neuron"]]:
    """Each p minus the largest of the other languages, and which language that is."""
    values, rival = torch.empty_like(p), torch.empty(p.shape, dtype=torch.int64)
    for i in range(len(p)):
        others = p.clone()
        others[i] = -1.0
        best, rival[i] = others.max(0)
        values[i] = p[i] - best
    return values, rival
