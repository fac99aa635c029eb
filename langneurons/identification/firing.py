"""How often a neuron counts as active, at sites where the sign means something and, by magnitude, where it does not."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.identification.uncertainty import (
    DESIGN_EFFECT,
    JACKKNIFE,
    approximate_variance_of_share,
    filled_folds,
    jackknife_variance,
    probabilities_left_out,
)
from langneurons.recording.statistics import ActivationStats

# What an entropy-like score needs to know of the other languages: sum of p, sum of p log p, largest p.
Others = tuple[Tensor, Tensor, Tensor]
ScoreOfOne = Callable[[Others, Tensor], Tensor]


def check_sign_means_something(stats: ActivationStats) -> None:
    """Refuse sites where x > 0 does not mean that the neuron is active.

    Raises:
        StatisticsError: At ``post`` of a gated MLP (the sign is that of act x up), ``head`` and ``resid_post``.
    """
    if stats.site in ("head", "resid_post") or (stats.site == "post" and stats.model.gated):
        raise StatisticsError(
            f"At site {stats.site!r} the sign does not say whether a neuron is active: use statistics of 'act' or "
            "'pre', or give magnitude_threshold= to count |activation| > threshold."
        )


def check_magnitude_threshold(threshold: float | None) -> None:
    """Refuse thresholds on |activation| that are not positive.

    Raises:
        StatisticsError: If it is not.
    """
    if threshold is not None and not threshold > 0:
        raise StatisticsError(f"A threshold on |activation| is a positive number or None, not {threshold}.")


def firing_probability(
    stats: ActivationStats, magnitude_threshold: float | None
) -> Float[Tensor, "language layer neuron"]:
    """P(activation > 0), or P(|activation| > threshold) where one is given."""
    if magnitude_threshold is None:
        check_sign_means_something(stats)
        return stats.probability(0.0)
    above, above_negative = stats.probability(magnitude_threshold), stats.probability(-magnitude_threshold)
    return (above + 1 - above_negative).clamp(0, 1)


def how_uncertain(magnitude_threshold: float | None) -> str:
    """The description of the standard errors below."""
    return JACKKNIFE if magnitude_threshold is None else DESIGN_EFFECT


def standard_error_across_languages(
    stats: ActivationStats,
    p: Float[Tensor, "language layer neuron"],
    magnitude_threshold: float | None,
    score: ScoreOfOne,
) -> Float[Tensor, "layer neuron"]:
    """Standard error of a score of all languages' firing probabilities.

    Args:
        stats: Where the folds are.
        p: The firing probabilities.
        magnitude_threshold: None where ``p`` is P(activation > 0): then the score is recomputed without every fold of
            every language. Otherwise the folds do not know ``p``, and the delta method carries its approximate
            variance (see ``approximate_variance_of_share``).
        score: The score from what the other languages contribute and one language's p.
    """
    log_terms = torch.special.xlogy(p, p)
    variance = torch.zeros_like(p[0])
    for i, language in enumerate(stats.languages):
        rest = [j for j in range(len(p)) if j != i]
        others = (p[rest].sum(0), log_terms[rest].sum(0), p[rest].amax(0))
        if magnitude_threshold is None:
            without = (score(others, changed) for changed in probabilities_left_out(stats, language))
            tokens = stats.fold_tokens(language)[filled_folds(stats, language)]
            variance += jackknife_variance(score(others, p[i]), without, tokens)
        else:
            variance += _slope(score, others, p[i]) ** 2 * approximate_variance_of_share(stats, language, p[i])
    return variance.sqrt()


def _slope(score: ScoreOfOne, others: Others, p: Tensor) -> Tensor:
    with torch.enable_grad():
        at = p.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(score(others, at).sum(), at)
    return slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # p log p has no slope at 0, where the variance is 0 too
