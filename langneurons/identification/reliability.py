"""Whether a recording holds enough text: how much of what differs between its languages is chance."""

import torch

from langneurons.errors import warn_user
from langneurons.identification.firing import sign_means_something, variance_of_probability
from langneurons.recording.accumulation import FOLDS
from langneurons.recording.statistics import ActivationStats

# Where single cases are chosen by a measurement, nine tenths of its variance should be real (Nunnally 1978).
RELIABLE = 0.9
LEAST = 0.1  # of a reliability by which the tokens that are needed are foretold


def reliability(stats: ActivationStats) -> float:
    """The share of the differences between languages, in how often neurons fire, that is no chance.

    One minus the variance that chance gives P(activation > 0), over the variance of P(activation > 0) between
    languages, both averaged over neurons (and languages). Chance is what the jackknife over document folds says, and
    at least that of independent tokens.

    Args:
        stats: Statistics of at least two languages.

    Returns:
        At most 1; 0 or less where nothing but chance differs.

    Source: the reliability of classical test theory, the ratio of true to observed variance (Lord & Novick 1968).

    Example:
        >>> from langneurons.identification.reliability import reliability
        >>> 0.9 < reliability(stats) < 1
        True
    """
    p = stats.probability(0.0)
    by_chance = [_chance(stats, language, p[i]) for i, language in enumerate(stats.languages)]
    between = float(p.var(0).mean())
    return 1 - sum(by_chance) / len(by_chance) / between if between else 0.0


def _chance(stats: ActivationStats, language: str, p: torch.Tensor) -> float:
    tokens = int(stats.fold_tokens(language).sum())
    independent = float((p * (1 - p)).mean()) / max(tokens - 1, 1)
    if _filled(stats, language) < 2:
        return independent
    return max(independent, float(variance_of_probability(stats, language).mean()))


def _filled(stats: ActivationStats, language: str) -> int:
    return int((stats.fold_tokens(language) > 0).sum())


def warn_of_noise(stats: ActivationStats) -> None:
    """Warn where so little text was recorded that scores are mostly of these texts, not of their languages.

    That is where less than ``RELIABLE`` of the differences between languages is no chance, or a language's tokens are
    all of one document, so that what documents bring cannot be told from what languages do. The tokens that are needed
    follow from the reliability by the formula of Spearman and Brown. Published counts, which know no documents, are
    judged by their tokens alone; sites whose sign means nothing, such as heads, by the number of documents alone.

    Args:
        stats: Statistics that neurons are identified in.
    """
    if len(stats.languages) < 2:
        return
    counts = {language: int(stats.fold_tokens(language).sum()) for language in stats.languages}
    folds = {language: _filled(stats, language) for language in counts}
    fewest = min(counts, key=lambda language: (folds[language] > 1, counts[language]))
    has = f"of {fewest!r} only {counts[fewest]:,} tokens were counted"
    if folds[fewest] < 2 and len(stats.fold_tokens(fewest)) > 1:
        warn_user(
            f"These scores are noise: {has}, all in one of {FOLDS} folds of documents, and about "
            f"{counts[fewest] * FOLDS:,} of at least {FOLDS} documents are needed to tell a language from its texts."
        )
        return
    if sign_means_something(stats) and (real := reliability(stats)) < RELIABLE:
        bounded = max(real, LEAST)
        needed = counts[fewest] * RELIABLE * (1 - bounded) / (bounded * (1 - RELIABLE))
        warn_user(
            f"These scores are noise: {has}, where about {needed:,.0f} are needed, because {1 - max(real, 0):.0%} of "
            f"what differs between languages in how often neurons fire is chance; at most {1 - RELIABLE:.0%} should be."
        )
