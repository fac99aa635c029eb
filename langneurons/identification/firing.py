"""How often a neuron counts as active, at sites where the sign means something and, by magnitude, where it does not."""

import re
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
POOLED_QUANTILE = re.compile(r"pooled-p(\d{1,2}(?:\.\d+)?)")


def check_sign_means_something(stats: ActivationStats) -> None:
    """Refuse sites where x > 0 does not mean that the neuron is active.

    Raises:
        StatisticsError: At ``post`` of a gated MLP (the sign is that of act x up), ``head``, ``resid_post``, and where
            features of a dictionary can be negative.
    """
    signless = stats.site in ("head", "resid_post") or (stats.site == "post" and stats.model.gated)
    if signless or (stats.site in stats.of_features and bool((stats.pooled().minimum().values < 0).any())):
        raise StatisticsError(
            f"At site {stats.site!r} the sign does not say whether a neuron is active: use statistics of 'act' or "
            "'pre', or give magnitude_threshold= to count |activation| > threshold."
        )


def pooled_share(threshold: str) -> float | None:
    """The share that a threshold such as "pooled-p90" names: each neuron's own quantile over the pooled languages.

    Example:
        >>> pooled_share("pooled-p90"), pooled_share("p90")
        (0.9, None)
    """
    named = POOLED_QUANTILE.fullmatch(threshold)
    return float(named[1]) / 100 if named else None


def check_magnitude_threshold(threshold: float | str | None) -> None:
    """Refuse thresholds on |activation| that are neither positive nor a pooled quantile.

    Raises:
        StatisticsError: If it is neither.
    """
    if isinstance(threshold, str):
        if pooled_share(threshold) is None:
            raise StatisticsError(
                f"A threshold on |activation| is a number or 'pooled-pNN' such as 'pooled-p75', not {threshold!r}."
            )
    elif threshold is not None and not threshold > 0:
        raise StatisticsError(f"A threshold on |activation| is a positive number or None, not {threshold}.")


def firing_probability(
    stats: ActivationStats, magnitude_threshold: float | str | None
) -> Float[Tensor, "language layer neuron"]:
    """P(activation > 0), or P(|activation| > threshold) where one is given.

    Raises:
        StatisticsError: If the site's sign means nothing and no threshold is given, or the threshold is a pooled
            quantile and some activation is negative.
    """
    if magnitude_threshold is None:
        check_sign_means_something(stats)
        return stats.probability(0.0)
    if isinstance(magnitude_threshold, str):
        return _above_pooled_quantile(stats, pooled_share(magnitude_threshold) or 0.0)
    above, above_negative = stats.probability(magnitude_threshold), stats.probability(-magnitude_threshold)
    return (above + 1 - above_negative).clamp(0, 1)


def _above_pooled_quantile(stats: ActivationStats, share: float) -> Tensor:
    if bool((stats.pooled().minimum().values < 0).any()):
        raise StatisticsError(
            f"A pooled quantile of |activation| is known only where nothing is negative, as norms are at 'head'; at "
            f"{stats.site!r} give a number as magnitude_threshold=."
        )
    return stats.probability(stats.pooled().quantile(share))


def how_uncertain(magnitude_threshold: float | str | None) -> str:
    """The description of the standard errors below."""
    return JACKKNIFE if magnitude_threshold is None else DESIGN_EFFECT


def standard_error_across_languages(
    stats: ActivationStats,
    p: Float[Tensor, "language layer neuron"],
    magnitude_threshold: float | str | None,
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
