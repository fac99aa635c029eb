"""Methods that need optional statistics, see ``record(also=...)``: sentence average precision, gradient relevance."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.identification.activation import check_several, others_mean
from langneurons.identification.detection import average_precision, detection, first_order_variances, joined_ties
from langneurons.identification.firing import JACKKNIFE, degrees_of_freedom, variance_of_relevance
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.identification.selection import (
    PER_LANGUAGE,
    Ranking,
    check_options,
    extremes,
    labelled,
    option,
    share,
    wanted,
)
from langneurons.recording.statistics import ActivationStats, check_statistics

DOCUMENTS = "first order: sampling variance of independent documents"
NUMBERS_AT_ONCE = 2**22
AMOUNT = "a share from 0 to 1, or a whole number of neurons"


@dataclass(frozen=True)
class SentenceAP:
    """Neurons whose mean activation over a sentence detects a language's sentences, with high or low average precision.

    Every recorded document is a sentence and has one value per neuron, its mean over the document's counted tokens. The
    score is the average precision (scikit-learn's, ties right) of that value as a detector of language l among the
    sentences of all languages, each language weighted equally: a random neuron scores 1 / k with k languages. In each
    language the ``top`` neurons with the highest and the ``bottom`` ones with the lowest score are kept: the latter are
    low in the language and nowhere else.

    It needs statistics recorded with ``also=("sentence",)``.

    Source: Kojima et al. 2024 (arXiv 2404.02431), who keep the 1000 highest and the 1000 lowest (``top=1000,
    bottom=1000``) of all outputs of linear layers, each sentence read alone. Here the units are one site's, and a
    document is read after those before it in its block; record a corpus with a sentence a document to come near.

    Args:
        top: Share of all neurons to keep in each language for the highest scores, or their number.
        bottom: Share, or number, to keep for the lowest; 0 keeps none.

    Example:
        >>> corpus = ln.load_corpus("babel", ["en", "hi"])
        >>> recorded = ln.record(
        ...     model, corpus, tokens_per_language=500, context_length=64, also=["sentence"], progress=False
        ... )
        >>> len(SentenceAP(top=3, bottom=2).identify(recorded)["hi"])
        5
    """

    needs: ClassVar[tuple[str, ...]] = ("sentence",)

    top: float | int = option(Field(PER_LANGUAGE, ge=0, json_schema_extra={"possible": AMOUNT}))
    bottom: float | int = option(Field(PER_LANGUAGE, ge=0, json_schema_extra={"possible": AMOUNT}))

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("top", "bottom"):
            if isinstance(amount := getattr(self, name), float) and amount > 1:
                raise StatisticsError(f"{name} must be {AMOUNT}, given {amount}.")
        if not self.top and not self.bottom:
            raise StatisticsError("top and bottom are both 0: there is nothing to keep.")

    def scores(self, stats: ActivationStats) -> Scores:
        """Average precision of every neuron in every language.

        Standard errors: the sampling variance of the sentences, as independent documents, carried to first order.

        Raises:
            StatisticsError: If there are fewer than two languages, or sentences were not recorded.
        """
        check_several(stats)
        sentences = [len(stats.sentence_means(language, 0)) for language in stats.languages]
        if not min(sentences):
            empty = stats.languages[sentences.index(0)]
            raise StatisticsError(f"No sentence of {empty!r} was recorded here: average precision needs one or more.")
        detect = partial(average_precision, prior=1 / len(sentences), tied=1.0)
        per_sentence = (1 / torch.tensor(sentences).double())[:, None]

        def variances(cells: Tensor) -> Tensor:
            return first_order_variances(cells, per_sentence, detect)

        return Scores(
            values=_by_layer(stats, lambda cells: detection(cells, detect)),
            languages=stats.languages,
            method=repr(self),
            uncertainty=DOCUMENTS,
            degrees_of_freedom=min(sentences) - 1,
            compute_standard_error=lambda: _by_layer(stats, variances).sqrt(),
            bounds=(0.0, 1.0),
        )

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label, in each language, the best and the worst detectors.

        Raises:
            StatisticsError: If the statistics do not hold what the scores need, or ``top`` and ``bottom`` ask for more
                neurons than there are.
        """
        high, low = (wanted(amount, stats) if amount else 0 for amount in (self.top, self.bottom))
        scores = self.scores(stats)
        members = {language: extremes(scores[language].flatten().numpy(), high, low) for language in stats.languages}
        return labelled(stats, scores, members)


def _by_layer(stats: ActivationStats, of_cells: Callable[[Tensor], Tensor]) -> Float[Tensor, "language layer neuron"]:
    layers = [torch.cat([of_cells(cells) for cells in _cells(stats, n)], dim=1) for n in range(stats.shape[0])]
    return torch.stack(layers, dim=1)


def _cells(stats: ActivationStats, layer: int) -> Iterator[Float[Tensor, "language neuron cell"]]:
    """Share of each language's sentences at every value that occurs, in increasing order, some neurons at a time."""
    means = [stats.sentence_means(language, layer) for language in stats.languages]
    sizes = torch.tensor([len(of_language) for of_language in means])
    owner = torch.repeat_interleave(torch.arange(len(means)), sizes)
    every = torch.cat(means).T
    for values in every.split(max(1, NUMBERS_AT_ONCE // (len(means) * len(owner)))):
        values, order = values.sort(dim=1)
        owners = owner[order]
        shares = torch.stack([(owners == i).double() / int(size) for i, size in enumerate(sizes)])
        yield joined_ties(shares, values)


@dataclass(frozen=True)
class GradientRelevance(Ranking):
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

    needs: ClassVar[tuple[str, ...]] = ("gradient",)

    top: float = share(PER_LANGUAGE)
    specific: bool = False

    def scores(self, stats: ActivationStats) -> Scores:
        """Relevance of every neuron in every language.

        Standard errors: the jackknife over document folds; with ``specific`` a language's mean is taken as known.

        Raises:
            StatisticsError: If gradients were not recorded, or ``specific`` has no other language to compare with.
        """
        check_statistics(stats)
        if self.specific:
            check_several(stats)
        relevance = stats.relevance()
        scale = self._scale(relevance)

        def standard_error() -> Tensor:
            own = torch.stack([variance_of_relevance(stats, language) for language in stats.languages]) * scale**2
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

    def _scale(self, relevance: Float[Tensor, "language layer neuron"]) -> Float[Tensor, "language 1 1"]:
        if not self.specific:
            return torch.ones(len(relevance), 1, 1, dtype=relevance.dtype)
        mean = relevance.mean((1, 2), keepdim=True)
        return torch.where(mean > 0, 1 / mean, 0.0)
