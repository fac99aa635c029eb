"""Neurons and patches as Mondal et al. 2025 choose them, from the published statistics."""

from collections.abc import Sequence

import numpy as np
import torch

from langneurons.errors import NeuronSetError, PatchError, StatisticsError, unknown, warn_user
from langneurons.identification.lape import entropy
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.selection import check_share, level, lowest
from langneurons.identification.standing import highest_in
from langneurons.patches.patch import SetTo
from langneurons.replication.statistics import ARRAYS, PublishedStatistics

EPSILON = 1e-10
NUMBERS = {"zero": 0.0, "neg1": -1.0, "neg10": -10.0, "pos1": 1.0, "pos10": 10.0}
INTERVENE_BY = (*(name for name in ARRAYS if name.startswith("mean_")), *NUMBERS)


def act_prob_90p_neurons(
    statistics: PublishedStatistics, share: float = 0.00125, languages: Sequence[str] | None = None
) -> NeuronSet:
    """Label, in each language, the neurons most often above that language's own 90th percentile.

    What is wrong: about a tenth of the tokens lie above their own 90th percentile whatever a neuron responds to, so
    this ranks neurons by how much they differ between batches of documents, and says nothing about language; the
    sound reading is ``ActivationProbability(threshold="pooled-p90")``.

    Source: github.com/soumenkm/LangSpecificNeurons, code/lang_neurons.py, ``_get_set_indep_neurons``. Of equal shares
    the first by layer and index are taken (undefined there).

    Args:
        statistics: Statistics that ``published_statistics`` returned.
        share: Share of all neurons that each language gets: round(share x layers x width).
        languages: Languages to label; by default all.

    Returns:
        The neurons, at ``act``, where the published code patches.

    Raises:
        StatisticsError: If the share is out of range, or less than one neuron.
        LanguageError: If a language is not there.

    Example:
        >>> from langneurons.replication.neurons import act_prob_90p_neurons
        >>> from langneurons.replication.statistics import published_statistics
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> published = published_statistics(model, corpus, tokens_per_language=512, context_length=64, progress=False)
        >>> neurons = act_prob_90p_neurons(published)
        >>> len(neurons["en"]) == len(neurons["hi"]) == round(0.00125 * neurons.shape[0] * neurons.shape[1])
        True
    """
    count = _count("share", share, statistics)
    scores = {
        language: statistics.values("act_prob_90p", language).values.flatten().double().numpy()
        for language in (statistics.languages if languages is None else languages)
    }
    members = {language: lowest(-score, count) for language, score in scores.items()}
    return _labelled(statistics, members, scores, scores, f"act_prob_90p, share {share}")


def lape_neurons(
    statistics: PublishedStatistics,
    languages: Sequence[str] | None = None,
    top: float = 0.01,
    filter_quantile: float = 0.95,
) -> NeuronSet:
    """Label neurons by LAPE on the published counts, as the published code does.

    What is wrong: neurons tied with the last one are kept too, so that there may be more than wanted; and where fewer
    neurons than wanted pass the filter, the cutoff is infinite, so that every neuron that passes is labelled.
    ``LAPE.mondal`` is the same rule with exactly as many neurons as wanted, on sound statistics.

    Source: github.com/soumenkm/LangSpecificNeurons, code/lang_neurons.py, ``_get_lape_neurons``; they use ``top`` 0.01
    and ``filter_quantile`` 0.95.

    Args:
        statistics: Statistics that ``published_statistics`` returned.
        languages: Languages to compare, which changes the result; by default all.
        top: Share of all neurons to keep.
        filter_quantile: A neuron belongs where its share of z > 0 exceeds this quantile of all shares.

    Returns:
        The neurons, at ``act``.

    Raises:
        StatisticsError: If a share is out of range, or there are fewer than two languages.
        LanguageError: If a language is not there.

    Example:
        >>> from langneurons.replication.neurons import lape_neurons
        >>> from langneurons.replication.statistics import published_statistics
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> published = published_statistics(model, corpus, tokens_per_language=512, context_length=64, progress=False)
        >>> lape_neurons(published).languages
        ('en', 'hi')
    """
    languages = statistics.languages if languages is None else tuple(languages)
    check_share("filter_quantile", filter_quantile, zero_allowed=True)
    count = _count("top", top, statistics)
    if len(languages) < 2:
        raise StatisticsError(f"LAPE compares two or more languages, not {', '.join(languages) or 'none'}.")
    p = statistics.array("act_prob_zero", languages).double()
    above = p > level(p, filter_quantile, "linear")
    lape = entropy(p, EPSILON).masked_fill(~above.any(0), torch.inf)
    cutoff = lape.flatten().kthvalue(count).values
    if cutoff.isinf():
        warn_user(
            f"Only {int(above.any(0).sum()):,} neurons pass the filter and {count:,} are wanted, so the published "
            "cutoff is infinite: every neuron that passes is labelled."
        )
    selected = (above & (lape <= cutoff)).flatten(1).numpy()
    members = {language: np.flatnonzero(row) for language, row in zip(languages, selected, strict=True)}
    scores = dict.fromkeys(languages, lape.flatten().numpy())
    values = dict(zip(languages, p.flatten(1).numpy(), strict=True))
    return _labelled(statistics, members, scores, values, f"published LAPE of {', '.join(languages)}, top {top}")


def published_patch(neurons: NeuronSet, statistics: PublishedStatistics, language: str, intervene_by: str) -> SetTo:
    """Describe a published intervention: the language's neurons get its own value at every position.

    What is wrong: values of z are written in the place of act_fn(z), which for SiLU never falls below -0.278, so
    that many of them, and -1 and -10, are values the neuron could never have.

    Source: github.com/soumenkm/LangSpecificNeurons, code/task_eval.py, code/xquad_eval.py, code/models.py.

    Args:
        neurons: Neurons at ``act``, labelled with the language.
        statistics: Statistics of the same model that ``published_statistics`` returned.
        language: The language that is evaluated.
        intervene_by: "mean_mu_act", "mean_p5_act", ..., "zero", "neg1", "neg10", "pos1" or "pos10".

    Raises:
        PatchError: If there is no such value, or the language has no neuron.
        LanguageError: If the neurons or the statistics lack the language.
        NeuronSetError: If the neurons do not fit the statistics.

    Example:
        >>> from langneurons.replication.neurons import act_prob_90p_neurons, published_patch
        >>> from langneurons.replication.statistics import published_statistics
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> published = published_statistics(model, corpus, tokens_per_language=512, context_length=64, progress=False)
        >>> patch = published_patch(act_prob_90p_neurons(published), published, "hi", "mean_mu_act")
        >>> patch.neurons.site, patch.values["value"].site
        ('act', 'pre')
    """
    if intervene_by not in INTERVENE_BY:
        raise PatchError(unknown("value to intervene by", intervene_by, INTERVENE_BY))
    if neurons.shape != statistics.shape or neurons.model not in (None, statistics.model):
        raise NeuronSetError(f"The neurons ({neurons!r}) are not of the model of these statistics ({statistics!r}).")
    if intervene_by in NUMBERS:
        return SetTo(neurons[language], NUMBERS[intervene_by])
    return SetTo(neurons[language], statistics.values(intervene_by, language), allow_site_mismatch=True)


def _count(name: str, share: float, statistics: PublishedStatistics) -> int:
    check_share(name, share)
    layers, width = statistics.shape
    if (count := round(share * layers * width)) == 0:
        raise StatisticsError(f"{name}={share} of {layers} layers x {width} neurons is less than one neuron.")
    return count


def _labelled(
    statistics: PublishedStatistics,
    members: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    values: dict[str, np.ndarray],
    method: str,
) -> NeuronSet:
    own_scores = {language: scores[language][flat] for language, flat in members.items()}
    highest = highest_in(members, values)
    return NeuronSet(members, statistics.shape, "act", statistics.model, method, own_scores, highest=highest)
