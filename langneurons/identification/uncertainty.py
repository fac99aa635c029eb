"""How far a score would move with other documents: the jackknife over document folds.

Each language's documents were dealt to folds when they were recorded. Folds of different languages are independent, so
a score's variance is the sum over languages of the variance that leaving out that language's folds, one at a time,
shows. Folds hold different numbers of tokens: the delete-a-group jackknife for unequal groups is used (Busing, Meijer
and van der Leeden 1999, Statistics and Computing 9, 3-8), with h_j = n / m_j for a fold of m_j of n tokens and the
pseudo-value h_j t - (h_j - 1) t_(j).
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.recording.statistics import ActivationStats

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
    whole: Float[Tensor, "layer neuron"],
    without: Iterable[Float[Tensor, "layer neuron"]],
    tokens: Int[Tensor, " fold"],
) -> Float[Tensor, "layer neuron"]:
    """Variance of a statistic from its values without each fold.

    Args:
        whole: The statistic of all folds.
        without: The statistic with one fold left out, fold by fold; consumed one at a time.
        tokens: Tokens of each fold, none of them 0.

    Example:
        >>> values = torch.tensor([1.0, 2.0, 4.0, 5.0])
        >>> left_out = [((values.sum() - value) / 3).view(1, 1) for value in values]
        >>> variance = jackknife_variance(values.mean().view(1, 1), left_out, torch.ones(4, dtype=torch.long))
        >>> bool(torch.isclose(variance[0, 0], values.var() / 4))
        True
    """
    ratio = tokens.sum() / tokens.double()
    squares, weighted, shift = (torch.zeros_like(whole) for _ in range(3))
    for h, left_out in zip(ratio.tolist(), without, strict=True):
        moved = (h - 1) * (whole - left_out)
        squares += moved**2 / (h - 1)
        weighted += moved / (h - 1)
        shift += moved / h
    total_weight = float((1 / (ratio - 1)).sum())
    return ((squares - 2 * shift * weighted + shift**2 * total_weight) / len(ratio)).clamp(min=0)


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
    whole = torch.einsum("fln,f->ln", per_fold, tokens.double()) / tokens.sum()
    return jackknife_variance(whole, left_out(per_fold, tokens), tokens)


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
