"""Neurons that are active on random tokens: what they respond to is no language."""

from dataclasses import replace

from langneurons.errors import LanguageError, StatisticsError
from langneurons.identification.firing import check_sign_means_something
from langneurons.identification.neurons import NeuronSet, check_neurons
from langneurons.recording.statistics import ActivationStats, check_statistics

SHARE = 0.5


def without_active_on(
    neurons: NeuronSet, stats: ActivationStats, random: ActivationStats, share: float = SHARE
) -> NeuronSet:
    """Leave out the neurons of each language that are also active on random tokens.

    Source: the random-token filter of LangFIR (arXiv 2604.03532), there for features of a dictionary, which are seldom
    active; a neuron of a gated MLP always is now and then, so it is compared with itself in its language.

    Args:
        neurons: A neuron set.
        stats: Statistics of the set's languages.
        random: Statistics of random tokens, under one label; see ``langneurons.corpora.altered.random_tokens``.
        share: A neuron goes if its P(active) on random tokens is at least this many times that in its language.

    Returns:
        The neurons that stay, with their scores.

    Raises:
        StatisticsError: If the random tokens have several labels, the recordings are of different models or sites, or
            zero means nothing at the site.

    Example:
        >>> from langneurons.identification.random_tokens import without_active_on
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> len(without_active_on(neurons, stats, stats.select(["en"]))["en"])
        0
    """
    check_neurons(neurons)
    for recording in (stats, random):
        check_statistics(recording)
        check_sign_means_something(recording)
    if len(random.languages) != 1:
        raise StatisticsError(f"Random tokens are recorded under one label, not under {', '.join(random.languages)}.")
    if stats.shape != random.shape or stats.site != random.site or neurons.shape != stats.shape:
        raise StatisticsError(
            f"The neurons, their languages and the random tokens must be of one model and site, not {neurons!r:.80}, "
            f"{stats!r:.80} and {random!r:.80}."
        )
    if missing := [language for language in neurons.languages if language not in stats.languages]:
        raise LanguageError(f"The statistics have no {missing[0]!r}, only {', '.join(stats.languages)}.")
    on_random = random.probability()[0].flatten().numpy()
    in_language = dict(zip(stats.languages, stats.probability().flatten(1).numpy(), strict=True))
    stays = {
        language: on_random[flat] < share * in_language[language][flat] for language, flat in neurons.members.items()
    }
    members = {language: flat[stays[language]] for language, flat in neurons.members.items()}
    scores = {language: values[stays[language]] for language, values in neurons.scores.items()}
    return replace(neurons, members=members, scores=scores)
