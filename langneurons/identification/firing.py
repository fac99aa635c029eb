"""How often a neuron counts as active, at sites where the sign means something and, by magnitude, where it does not."""

import re
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.recording.records import weighted_mean
from langneurons.recording.statistics import ActivationStats

# What an entropy-like score needs to know of the other languages: sum of p, sum of p log p, largest p.
Others = tuple[Tensor, Tensor, Tensor]
ScoreOfOne = Callable[[Others, Tensor], Tensor]
SIGNLESS = ("up", "q", "k", "v", "head", "resid_post")
POOLED_QUANTILE = re.compile(r"pooled-p(\d{1,2}(?:\.\d+)?)")


def check_sign_means_something(stats: ActivationStats) -> None:
    """Refuse sites where x > 0 does not mean that the neuron is active.

    Raises:
        StatisticsError: At ``post`` of a gated MLP (the sign is that of act x up), ``up``, ``q``, ``k``, ``v`` (turning
            the sign of the weights around them gives the same model), ``head``, ``resid_post``, and where features of
            a dictionary can be negative.
    """
    if not sign_means_something(stats):
        raise StatisticsError(
            f"At site {stats.site!r} the sign does not say whether a neuron is active: use statistics of 'act' or "
            "'pre', or give magnitude_threshold= to count |activation| > threshold."
        )


def sign_means_something(stats: ActivationStats) -> bool:
    """Whether x > 0 means, at the site, that a unit is active."""
    signless = stats.site in SIGNLESS or (stats.site == "post" and stats.model.gated)
    signed_features = stats.site in stats.of_features and bool((stats.pooled().minimum().values < 0).any())
    return not signless and not signed_features


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
                "magnitude_threshold must be a number above 0, 'pooled-pNN' such as 'pooled-p75', or None, given "
                f"{threshold!r:.100}."
            )
    elif threshold is not None and not threshold > 0:
        raise StatisticsError(f"magnitude_threshold must be a number above 0, or None, given {threshold}.")


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
        stats: The statistics that hold the folds.
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
            variance += jackknife_variance(score(others, p[i]), without)
        else:
            variance += _slope(score, others, p[i]) ** 2 * approximate_variance_of_share(stats, language, p[i])
    return variance.sqrt()


def _slope(score: ScoreOfOne, others: Others, p: Tensor) -> Tensor:
    with torch.enable_grad():
        at = p.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(score(others, at).sum(), at)
    return slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # p log p has no slope at 0, where the variance is 0 too


JACKKNIFE = "jackknife over document folds"
DESIGN_EFFECT = "approximate: variance of independent tokens x design effect of the documents"


def filled_folds(stats: ActivationStats, language: str) -> Int[Tensor, " fold"]:
    """Indices of the folds that hold tokens.

    Raises:
        StatisticsError: If there are fewer than two.
    """
    tokens = stats.fold_tokens(language)
    if len(tokens) == 1:
        raise StatisticsError(
            "Published counts carry no document folds, so no standard error follows from them: record the model."
        )
    filled = tokens.nonzero().flatten()
    if len(filled) < 2:
        raise StatisticsError(
            f"All documents of {language!r} fell into one fold: a standard error needs more documents."
        )
    return filled


def degrees_of_freedom(stats: ActivationStats) -> int:
    """Document folds with tokens - 1, of the language that has fewest."""
    return min(int((stats.fold_tokens(language) > 0).sum()) for language in stats.languages) - 1


def jackknife_variance(
    whole: Float[Tensor, "layer neuron"], without: Iterable[Float[Tensor, "layer neuron"]]
) -> Float[Tensor, "layer neuron"]:
    """Variance of a statistic from its values without each fold.

    Every fold counts by how far it moves the statistic. Weighting folds as if their variance fell with their tokens
    (Busing et al. 1999) gives too little where documents differ in length: a long document is as much of one mind as a
    short one.

    Args:
        whole: The statistic of all folds.
        without: The statistic with one fold left out, fold by fold; consumed one at a time.

    Example:
        >>> values = torch.tensor([1.0, 2.0, 4.0, 5.0])
        >>> left_out = [((values.sum() - value) / 3).view(1, 1) for value in values]
        >>> variance = jackknife_variance(values.mean().view(1, 1), left_out)
        >>> bool(torch.isclose(variance[0, 0], values.var() / 4))
        True
    """
    squares, folds = torch.zeros_like(whole), 0
    for left_out in without:
        squares += (whole - left_out) ** 2
        folds += 1
    return squares * (folds - 1) / folds


def left_out(
    per_fold: Float[Tensor, "fold layer neuron"], tokens: Int[Tensor, " fold"]
) -> Iterable[Float[Tensor, "layer neuron"]]:
    """A share or mean without each fold in turn, from its values in every fold."""
    total = sum(value * int(count) for value, count in zip(per_fold, tokens, strict=True))
    for value, count in zip(per_fold, tokens.tolist(), strict=True):
        yield ((total - value * count) / (int(tokens.sum()) - count)).clamp(*_range_of(per_fold))


def _range_of(per_fold: Tensor) -> tuple[float, float]:
    return float(per_fold.min()), float(per_fold.max())


def probabilities_left_out(stats: ActivationStats, language: str) -> Iterable[Float[Tensor, "layer neuron"]]:
    """P(activation > 0) of one language without each of its filled folds."""
    filled = filled_folds(stats, language)
    return left_out(stats.fold_probability(language)[filled], stats.fold_tokens(language)[filled])


def _variance(stats: ActivationStats, language: str, of_folds: Callable[[str], Tensor]) -> Tensor:
    filled = filled_folds(stats, language)
    per_fold, tokens = of_folds(language)[filled], stats.fold_tokens(language)[filled]
    return jackknife_variance(weighted_mean(per_fold, tokens), left_out(per_fold, tokens))


def variance_of_probability(stats: ActivationStats, language: str) -> Float[Tensor, "layer neuron"]:
    """Jackknife variance of P(activation > 0) in one language."""
    return _variance(stats, language, stats.fold_probability)


def variance_of_mean(stats: ActivationStats, language: str) -> Float[Tensor, "layer neuron"]:
    """Jackknife variance of the mean activation in one language."""
    return _variance(stats, language, stats.fold_mean)


def variance_of_relevance(stats: ActivationStats, language: str) -> Float[Tensor, "layer neuron"]:
    """Jackknife variance of the mean relevance in one language."""
    return _variance(stats, language, stats.fold_relevance)


def design_effect(stats: ActivationStats, language: str) -> Float[Tensor, "layer neuron"]:
    """How many times larger the documents make a variance than independent tokens would.

    The larger of the two that can be measured, at least 1: that of P(activation > 0) and that of the mean, each its
    jackknife variance over the variance that independent tokens would give. Folds have no histograms, so scores that
    need a histogram borrow this.
    """
    tokens = stats.fold_tokens(language).sum()
    p = stats.select([language]).probability(0.0)[0]
    of_probability = variance_of_probability(stats, language) / (p * (1 - p) / tokens)
    of_mean = variance_of_mean(stats, language) / (stats[language].std().values.double() ** 2 / tokens)
    effects = torch.stack([of_probability, of_mean, torch.ones_like(p)])
    return effects.nan_to_num(nan=1.0, posinf=1.0).amax(0)


def approximate_variance_of_share(
    stats: ActivationStats, language: str, share: Float[Tensor, "layer neuron"]
) -> Float[Tensor, "layer neuron"]:
    """Variance of a share of tokens that only the histogram knows: share (1 - share) / n x design effect."""
    return share * (1 - share) / stats.fold_tokens(language).sum() * design_effect(stats, language)
