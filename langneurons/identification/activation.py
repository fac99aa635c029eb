"""Methods that rank neurons in each language: how often or strongly active, how much more than elsewhere, at random."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.identification.controls import random_stream
from langneurons.identification.firing import (
    DESIGN_EFFECT,
    JACKKNIFE,
    approximate_variance_of_share,
    check_sign_means_something,
    degrees_of_freedom,
    firing_probability,
    how_uncertain,
    pooled_share,
    variance_of_mean,
    variance_of_probability,
)
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.identification.selection import PER_LANGUAGE, Ranking, option, share
from langneurons.recording.statistics import ActivationStats, check_statistics

DENSITY_STEP = 0.02


@dataclass(frozen=True)
class ActivationProbability(Ranking):
    """Neurons that are active most often in a language.

    The score is P(activation > threshold) in language l; in each language the round(top x layers x width) neurons with
    the highest score are kept, ties broken by layer and then index.

    Source: the "Act Prob" family of Mondal et al. 2025 (arXiv 2503.17456). Their own "Act Prob 90p" compares a language
    with its own 90 % quantile, which makes every score 0.1; ``"pooled-p90"`` compares it with the 90 % quantile of all
    languages, each weighted equally.

    Args:
        threshold: A number, or ``"pooled-pNN"``: each neuron's NN % quantile over the pooled languages.
        top: Share of all neurons to keep in each language.
        magnitude_threshold: Count |activation| > this instead; for sites without a meaningful sign.

    Example:
        >>> active = torch.tensor([[[90, 50, 40, 1]], [[2, 50, 60, 1]]])
        >>> published = ActivationStats.from_counts(active, torch.tensor([100, 100]), ["en", "hi"])
        >>> ActivationProbability(top=0.25).identify(published)["hi"].indices().tolist()
        [[0, 2]]
    """

    threshold: float | str = 0.0
    top: float = share(PER_LANGUAGE)
    magnitude_threshold: float | None = option(Field(None, gt=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        is_quantile = isinstance(self.threshold, str) and pooled_share(self.threshold) is not None
        if not is_quantile and not (isinstance(self.threshold, float | int) and math.isfinite(self.threshold)):
            possible = "a finite number, or 'pooled-pNN' such as 'pooled-p90'"
            raise StatisticsError(f"threshold must be {possible}, given {self.threshold!r:.100}.")
        if self.magnitude_threshold is not None and self.threshold != 0:
            raise StatisticsError("Give threshold= or magnitude_threshold=, not both.")

    def scores(self, stats: ActivationStats) -> Scores:
        """P(activation > threshold) of every neuron in every language.

        Standard errors: at threshold 0 the jackknife over document folds; at others, which only the histogram knows,
        p (1 - p) / n times the design effect of the documents, an approximation. A pooled threshold moves with the
        documents too, which is taken into account to first order.
        """
        check_statistics(stats)
        p = self._probabilities(stats)

        def standard_error() -> Tensor:
            if self.threshold == 0 and self.magnitude_threshold is None:
                return torch.stack([variance_of_probability(stats, language) for language in stats.languages]).sqrt()
            own = torch.stack(
                [approximate_variance_of_share(stats, language, p[i]) for i, language in enumerate(stats.languages)]
            )
            return (self._with_moving_threshold(stats, own) if isinstance(self.threshold, str) else own).sqrt()

        return Scores(
            values=p,
            languages=stats.languages,
            method=repr(self),
            uncertainty=how_uncertain(self.magnitude_threshold) if self.threshold == 0 else DESIGN_EFFECT,
            degrees_of_freedom=degrees_of_freedom(stats),
            compute_standard_error=standard_error,
            bounds=(0.0, 1.0),
        )

    def _share(self) -> float:
        return pooled_share(str(self.threshold)) or 0.0

    def _with_moving_threshold(self, stats: ActivationStats, own: Tensor) -> Tensor:
        """Variances of P_l(x > t) where t keeps the mean of P over languages fixed.

        To first order P_l then moves by its own deviation minus w_l times the sum of all languages' deviations, with
        w_l the share of language l in the density at t.
        """
        middle = self._share()
        step = min(DENSITY_STEP, middle / 2, (1 - middle) / 2)
        below, above = stats.pooled().quantile(middle - step), stats.pooled().quantile(middle + step)
        density = stats.probability(below) - stats.probability(above)
        weight = (density / density.sum(0)).nan_to_num(nan=0.0)
        return (1 - weight) ** 2 * own + weight**2 * (own.sum(0) - own)

    def _probabilities(self, stats: ActivationStats) -> Float[Tensor, "language layer neuron"]:
        if isinstance(self.threshold, str):
            return stats.probability(stats.pooled().quantile(self._share()))
        if self.threshold == 0:
            return firing_probability(stats, self.magnitude_threshold)
        check_sign_means_something(stats)
        return stats.probability(self.threshold)


@dataclass(frozen=True)
class MeanActivation(Ranking):
    """Neurons with the highest mean activation in a language.

    In each language the round(top x layers x width) neurons with the highest mean are kept. A control more than a
    method: nothing in it compares languages, so it finds neurons that are strong everywhere.

    Args:
        top: Share of all neurons to keep in each language.

    Example:
        >>> MeanActivation(top=0.01)
        MeanActivation(top=0.01)
    """

    top: float = share(PER_LANGUAGE)

    def scores(self, stats: ActivationStats) -> Scores:
        """Mean activation of every neuron in every language; standard errors by the jackknife over document folds."""
        check_statistics(stats)
        return Scores(
            values=stats.mean(),
            languages=stats.languages,
            method=repr(self),
            uncertainty=JACKKNIFE,
            degrees_of_freedom=degrees_of_freedom(stats),
            compute_standard_error=lambda: _variances_of_means(stats).sqrt(),
        )


@dataclass(frozen=True)
class MeanDifference(Ranking):
    """Neurons whose mean activation in a language most exceeds that in the others.

    The score is mean_l - (mean over the other languages m of mean_m), each language weighted equally; standardised,
    it is divided by the neuron's standard deviation over the pooled languages (0 where that is 0). In each language the
    round(top x layers x width) neurons with the highest score are kept.

    Source: the feature score of Deng et al. 2025 (arXiv 2505.05111), applied to neurons.

    Args:
        top: Share of all neurons to keep in each language.
        standardised: Divide by the pooled standard deviation, so that neurons of different scale compare.

    Example:
        >>> MeanDifference(top=0.01, standardised=True)
        MeanDifference(top=0.01, standardised=True)
    """

    top: float = share(PER_LANGUAGE)
    standardised: bool = False

    def scores(self, stats: ActivationStats) -> Scores:
        """The difference of every neuron in every language.

        Standard errors: the jackknife over document folds; the pooled standard deviation is taken as known.
        """
        check_several(stats)
        scale = _inverse(stats.pooled().std().values.double()) if self.standardised else torch.ones(stats.shape)

        def standard_error() -> Tensor:
            own = _variances_of_means(stats)
            return (own + others_mean(own) / (len(own) - 1)).sqrt() * scale

        means = stats.mean()
        return Scores(
            values=(means - others_mean(means)) * scale,
            languages=stats.languages,
            method=repr(self),
            uncertainty=JACKKNIFE,
            degrees_of_freedom=degrees_of_freedom(stats),
            compute_standard_error=standard_error,
        )


@dataclass(frozen=True)
class Random(Ranking):
    """Random neurons in each language: round(top x layers x width) of them, as a control for any other method.

    What is drawn for a language depends on the seed, the language and the model's shape alone, not on activations or
    on which other languages were recorded.

    Args:
        top: Share of all neurons to draw in each language.
        seed: Seed for the draw.

    Example:
        >>> active = torch.tensor([[[90, 50, 40, 1]], [[2, 50, 41, 1]]])
        >>> published = ActivationStats.from_counts(active, torch.tensor([100, 100]), ["en", "hi"])
        >>> len(Random(top=0.5).identify(published)["hi"])
        2
    """

    top: float = share(0.01)
    seed: int = option(Field(0, ge=0, le=2**32 - 1))

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label random neurons; where they are highest, random numbers do not say.

        Raises:
            StatisticsError: If ``top`` is less than one neuron.
        """
        return replace(super().identify(stats), highest={})

    def scores(self, stats: ActivationStats) -> Scores:
        """Uniform random numbers; they have no standard error."""
        check_statistics(stats)
        streams = [random_stream(self.seed, "random", language) for language in stats.languages]
        rows = [torch.from_numpy(stream.random(stats.shape)) for stream in streams]

        def standard_error() -> Tensor:
            raise StatisticsError("Random scores estimate nothing, so they have no standard error.")

        return Scores(torch.stack(rows), stats.languages, repr(self), "none", 1, standard_error, (0.0, 1.0))


def check_several(stats: ActivationStats) -> None:
    """Refuse statistics of one language where languages are compared.

    Raises:
        StatisticsError: If there is only one.
    """
    check_statistics(stats)
    if len(stats.languages) < 2:
        raise StatisticsError(
            f"Comparing languages needs two or more; these statistics hold {', '.join(stats.languages)}."
        )


def others_mean(per_language: Float[Tensor, "language layer neuron"]) -> Float[Tensor, "language layer neuron"]:
    """For each language, the mean over the other languages."""
    return (per_language.sum(0) - per_language) / (len(per_language) - 1)


def _variances_of_means(stats: ActivationStats) -> Tensor:
    return torch.stack([variance_of_mean(stats, language) for language in stats.languages])


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0.0)
