"""Gradient relevance: neurons on which the loss in a language depends most, to first order."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.identification.activation import PER_LANGUAGE, check_several, others_mean
from langneurons.identification.firing import JACKKNIFE, degrees_of_freedom, variance_of_relevance
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.identification.selection import best_per_language, check_share, wanted
from langneurons.recording.statistics import ActivationStats


@dataclass(frozen=True)
class GradientRelevance:
    """Neurons on which the loss in a language depends most.

    The score is the mean over the language's counted tokens of |a dL/da|, where a is the neuron's activation and L the
    summed negative log-likelihood of the block's counted tokens: to first order, how much the loss moves when the
    activation goes to zero. In each language the round(top x layers x width) neurons with the highest score are kept.
    Like the mean activation it compares no languages and finds neurons that matter everywhere; ``specific`` does.

    It needs statistics recorded with ``also=("gradient",)``, and works at every site, whole heads included.

    Source: the first-order Taylor criterion of Molchanov et al. 2017 (arXiv 1611.06440); for languages, the neuron
    awareness of LANDeRMT (Zhu et al. 2024, arXiv 2409.19523). ``specific`` is ours.

    Args:
        top: Share of all neurons to keep in each language.
        specific: Divide each language's relevance by its mean over all neurons, so that languages with a higher loss do
            not count more, and subtract the mean over the other languages.

    Example:
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> recorded = ln.record(
        ...     model, corpus, tokens_per_language=200, context_length=64, also=["gradient"], progress=False
        ... )
        >>> bool((GradientRelevance().scores(recorded).values >= 0).all())
        True
    """

    top: float = PER_LANGUAGE
    specific: bool = False

    def __post_init__(self):
        check_share("top", self.top)

    @property
    def needs(self) -> tuple[str, ...]:
        """Gradients."""
        return ("gradient",)

    def scores(self, stats: ActivationStats) -> Scores:
        """Relevance of every neuron in every language.

        Standard errors: the jackknife over document folds; with ``specific`` a language's mean is taken as known.

        Raises:
            StatisticsError: If gradients were not recorded, or ``specific`` has no other language to compare with.
        """
        if self.specific:
            check_several(stats)
        relevance = stats.relevance()
        scale = self._scale(relevance)

        def standard_error() -> Tensor:
            own = torch.stack([variance_of_relevance(stats, one) for one in stats.languages]) * scale**2
            return (own + others_mean(own) / (len(own) - 1)).sqrt() if self.specific else own.sqrt()

        return Scores(
            values=relevance * scale - others_mean(relevance * scale) if self.specific else relevance,
            languages=stats.languages,
            method=repr(self),
            uncertainty=JACKKNIFE,
            degrees_of_freedom=degrees_of_freedom(stats),
            compute_standard_error=standard_error,
            bounds=(-float("inf") if self.specific else 0.0, float("inf")),
        )

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label, in each language, the neurons with the highest score.

        Raises:
            StatisticsError: As ``scores``.
        """
        return best_per_language(stats, self.scores(stats), wanted(self.top, stats))

    def _scale(self, relevance: Float[Tensor, "language layer neuron"]) -> Float[Tensor, "language 1 1"]:
        if not self.specific:
            return torch.ones(len(relevance), 1, 1, dtype=relevance.dtype)
        mean = relevance.mean((1, 2), keepdim=True)
        return torch.where(mean > 0, 1 / mean, 0.0)
