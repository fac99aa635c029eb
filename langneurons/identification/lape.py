"""Methods that look for neurons whose activity is concentrated in few languages: LAPE, and entropy with a penalty."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from langneurons.errors import StatisticsError, warn_user
from langneurons.identification.firing import (
    Others,
    check_magnitude_threshold,
    degrees_of_freedom,
    firing_probability,
    how_uncertain,
    standard_error_across_languages,
)
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.identification.selection import check_options, labelled, level, lowest, option, share, wanted
from langneurons.recording.statistics import ActivationStats, check_statistics

Interpolation = Literal["kthvalue", "linear"]
Ties = Literal["exact", "keep"]


@dataclass(frozen=True)
class LAPE:
    """Language activation probability entropy: neurons active in few languages, and often in at least one.

    With p_l = P(activation > 0) in language l and q_l = p_l / sum_m p_m, the score is -sum_l q_l ln q_l
    (0 ln 0 = 0), small for language-specific neurons. Neurons whose p exceeds the ``filter_quantile`` of all p
    (every language, layer and neuron) in no language are left out; of the rest the round(top x layers x width) with the
    smallest score are kept, ties broken by layer and then index, and each belongs to every language where its p
    exceeds the ``bar_quantile`` of all p. So the union has exactly the number asked for, unless fewer neurons pass the
    filter or (with another bar than filter) some exceed the bar nowhere: those get no language, with a warning.

    Source: Tang et al. 2024 (arXiv 2402.16438) and their identify.py, of which the defaults are exact (p is computed in
    float64 here, float32 there; their tie-break is undefined).

    Args:
        top: Share of all neurons to keep.
        filter_quantile: A neuron must exceed this quantile of all p in at least one language.
        bar_quantile: A kept neuron belongs to the languages where it exceeds this one; None = ``filter_quantile``.
        interpolation: ``"kthvalue"``: a quantile is the round(n x quantile)-th smallest p; ``"linear"``: interpolated.
        epsilon: Added to sum_m p_m and inside the logarithm.
        ties: ``"exact"``, or ``"keep"`` to keep also the neurons that tie with the last one kept.
        magnitude_threshold: Count |activation| > this instead of activation > 0; for sites without a meaningful sign.
            ``"pooled-pNN"`` is each neuron's own NN % quantile over the pooled languages, for whole heads, whose norms
            differ in scale.

    Example:
        >>> active = torch.tensor([[[90, 50, 40, 1]], [[2, 50, 41, 1]]])
        >>> published = ActivationStats.from_counts(active, torch.tensor([100, 100]), ["en", "hi"])
        >>> LAPE(top=0.25, filter_quantile=0.5).identify(published)
        NeuronSet of 1 neurons at act (1 layers x 4): en 1, hi 0
    """

    needs: ClassVar[tuple[str, ...]] = ()

    top: float = share(0.01)
    filter_quantile: float = option(Field(0.95, ge=0, le=1))
    bar_quantile: float | None = option(Field(None, ge=0, le=1))
    interpolation: Interpolation = "kthvalue"
    epsilon: float = option(Field(0.0, ge=0, lt=1))
    ties: Ties = "exact"
    magnitude_threshold: float | str | None = None

    def __post_init__(self) -> None:
        check_options(self)
        check_magnitude_threshold(self.magnitude_threshold)

    @classmethod
    def mondal(cls, top: float = 0.01, ties: Ties = "exact") -> "LAPE":
        """LAPE as Mondal et al. 2025 (arXiv 2503.17456) compute it: interpolated thresholds, epsilon 1e-10.

        Their code keeps ties (``ties="keep"``), and where fewer neurons pass the filter than are wanted its cutoff is
        infinite and selects every neuron; that is not reproduced: only neurons that pass are ever kept.
        """
        return cls(top=top, interpolation="linear", epsilon=1e-10, ties=ties)

    def scores(self, stats: ActivationStats) -> Scores:
        """Entropy in nats of every neuron, whether it passes the filter or not; of a silent one the largest there is.

        Standard errors: the entropy is recomputed without each document fold of each language (with a
        ``magnitude_threshold``: delta method and design effect, an approximation); ``epsilon`` is left out of them.
        """
        return self._scores(stats, _probabilities(stats, self.magnitude_threshold))

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label the neurons with the smallest entropy.

        Raises:
            StatisticsError: If there are fewer than two languages, or the site's sign means nothing.
        """
        p = _probabilities(stats, self.magnitude_threshold)
        scores = self._scores(stats, p)
        count = wanted(self.top, stats)
        threshold = level(p, self.filter_quantile, self.interpolation)
        passing = np.flatnonzero((p > threshold).any(0).flatten().numpy())
        flat = passing[lowest(scores.values.flatten().numpy()[passing], count, self.ties)]
        if len(flat) < count:
            warn_user(f"Only {len(flat):,} neurons exceed the filter in some language; {count:,} were asked for.")
        same_bar = self.bar_quantile in (None, self.filter_quantile)
        bar = threshold if same_bar else level(p, self.bar_quantile or 0.0, self.interpolation)
        return _assigned(stats, scores, p, flat, bar)

    def _scores(self, stats: ActivationStats, p: Tensor) -> Scores:
        largest = math.log(len(p))

        def entropy_of(others: Others, p_of_one: Tensor) -> Tensor:
            return torch.where(others[0] + p_of_one > 0, _entropy_of_one(others, p_of_one), largest)

        return Scores(
            values=torch.where(p.sum(0) > 0, entropy(p, self.epsilon), largest),
            languages=None,
            method=repr(self),
            uncertainty=how_uncertain(self.magnitude_threshold),
            degrees_of_freedom=degrees_of_freedom(stats),
            compute_standard_error=lambda: standard_error_across_languages(
                stats, p, self.magnitude_threshold, entropy_of
            ),
            bounds=(0.0, largest),
        )


@dataclass(frozen=True)
class EntropyLambda:
    """Entropy with a penalty on activity: neurons active in few languages and, preferably, strongly so.

    With p and q as in LAPE and K languages, the score is (-sum_l q_l ln q_l) / ln K - penalty x max_l p_l / norm,
    where norm = (1 + 1/2 + ... + 1/K) / K; a silent neuron's entropy counts as 1. The round(top x layers x width)
    neurons with the smallest score are kept, without a filter, ties broken by layer and then index; each belongs to
    every language where its p exceeds the ``bar_quantile`` of all p (the round(n x quantile)-th smallest), and those
    that exceed it nowhere get no language, with a warning.

    Source: "How does Alignment Enhance LLMs' Multilingual Capabilities?" (AAAI 2026),
    github.com/NJUNLP/Language-Neurons-Alignment, identify.py. Departures: their p leaves out the tokens of a task
    prompt (here p is that of the recorded tokens), and their penalty is found by bisection so that no kept neuron
    belongs to all languages (here it is given).

    Args:
        top: Share of all neurons to keep.
        penalty: Weight of the largest p; their lambda.
        bar_quantile: A kept neuron belongs to the languages where its p exceeds this quantile of all p.
        magnitude_threshold: Count |activation| > this instead of activation > 0; for sites without a meaningful sign.

    Example:
        >>> active = torch.tensor([[[90, 50, 40, 1]], [[2, 50, 41, 1]]])
        >>> published = ActivationStats.from_counts(active, torch.tensor([100, 100]), ["en", "hi"])
        >>> EntropyLambda(top=0.25, bar_quantile=0.5).identify(published)
        NeuronSet of 1 neurons at act (1 layers x 4): en 1, hi 0
    """

    needs: ClassVar[tuple[str, ...]] = ()

    top: float = share(0.01)
    penalty: float = option(Field(0.109375, ge=0, allow_inf_nan=False))
    bar_quantile: float = option(Field(0.95, ge=0, le=1))
    magnitude_threshold: float | str | None = None

    def __post_init__(self) -> None:
        check_options(self)
        check_magnitude_threshold(self.magnitude_threshold)

    def scores(self, stats: ActivationStats) -> Scores:
        """The penalised entropy of every neuron; standard errors as for LAPE."""
        return self._scores(stats, _probabilities(stats, self.magnitude_threshold))

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label the neurons with the smallest score.

        Raises:
            StatisticsError: If there are fewer than two languages, or the site's sign means nothing.
        """
        p = _probabilities(stats, self.magnitude_threshold)
        scores = self._scores(stats, p)
        flat = lowest(scores.values.flatten().numpy(), wanted(self.top, stats))
        return _assigned(stats, scores, p, flat, level(p, self.bar_quantile, "kthvalue"))

    def _scores(self, stats: ActivationStats, p: Tensor) -> Scores:
        languages = len(p)
        log_terms = torch.special.xlogy(p, p)
        everything = (p[1:].sum(0), log_terms[1:].sum(0), p[1:].amax(0))

        def score(others: Others, p_of_one: Tensor) -> Tensor:
            entropies = _entropy_of_one(others, p_of_one) / math.log(languages)
            largest = torch.maximum(others[2], p_of_one)
            norm = sum(1 / k for k in range(1, languages + 1)) / languages
            return torch.where(largest > 0, entropies, 1.0) - self.penalty * largest / norm

        return Scores(
            values=score(everything, p[0]),
            languages=None,
            method=repr(self),
            uncertainty=how_uncertain(self.magnitude_threshold),
            degrees_of_freedom=degrees_of_freedom(stats),
            compute_standard_error=lambda: standard_error_across_languages(stats, p, self.magnitude_threshold, score),
        )


def entropy(p: Float[Tensor, "language layer neuron"], epsilon: float = 0.0) -> Float[Tensor, "layer neuron"]:
    """Entropy in nats of p normalised over languages; 0 for a silent neuron.

    Example:
        >>> entropy(torch.tensor([[[0.2, 0.3]], [[0.2, 0.0]]])).tolist()
        [[0.693..., 0.0]]
    """
    total = p.sum(0) + epsilon
    total[total == 0] = 1.0
    values = torch.zeros_like(total)
    for p_of_one in p:
        q = p_of_one / total
        values -= torch.special.xlogy(q, q + epsilon)
    return values


def _entropy_of_one(others: Others, p_of_one: Tensor) -> Tensor:
    """The entropy where one language's p changes: ln S - (sum of p ln p) / S, with S the sum of p."""
    total = others[0] + p_of_one
    log_terms = others[1] + torch.special.xlogy(p_of_one, p_of_one)
    safe = torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, (safe.log() - log_terms / safe).clamp(min=0), 0.0)


def _probabilities(stats: ActivationStats, magnitude_threshold: float | str | None) -> Tensor:
    check_statistics(stats)
    if len(stats.languages) < 2:
        raise StatisticsError(
            f"Entropy over languages needs two or more; these statistics hold {', '.join(stats.languages)}."
        )
    return firing_probability(stats, magnitude_threshold)


def _assigned(stats: ActivationStats, scores: Scores, p: Tensor, flat: np.ndarray, bar: float) -> NeuronSet:
    above = p.flatten(1)[:, torch.from_numpy(flat)].numpy() > bar
    homeless = int((~above.any(0)).sum())
    if homeless:
        warn_user(f"{homeless:,} of {len(flat):,} kept neurons exceed the bar in no language and belong to none.")
    members = {language: flat[above[i]] for i, language in enumerate(stats.languages)}
    return labelled(stats, scores, members, p)
