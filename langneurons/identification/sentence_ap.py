"""Sentence average precision: neurons whose mean over a sentence tells its language, high or low."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.identification.activation import PER_LANGUAGE, check_several
from langneurons.identification.detection import average_precision, detection, first_order_variances, joined_ties
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.identification.selection import check_amount, extremes, labelled, wanted
from langneurons.recording.statistics import ActivationStats

DOCUMENTS = "first order: sampling variance of independent documents"
NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class SentenceAP:
    """Neurons whose mean activation over a sentence detects a language's sentences, with high or low average precision.

    Every recorded document is a sentence and has one value a neuron, its mean over the document's counted tokens. The
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

    top: float | int = PER_LANGUAGE
    bottom: float | int = PER_LANGUAGE

    def __post_init__(self):
        for name in ("top", "bottom"):
            check_amount(name, getattr(self, name), zero_allowed=True)
        if not self.top and not self.bottom:
            raise StatisticsError("top and bottom are both 0: there is nothing to keep.")

    @property
    def needs(self) -> tuple[str, ...]:
        """Sentences."""
        return ("sentence",)

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
            StatisticsError: As ``scores``; or if ``top`` and ``bottom`` ask for more neurons than there are.
        """
        high, low = (wanted(amount, stats) if amount else 0 for amount in (self.top, self.bottom))
        scores = self.scores(stats)
        members = {one: extremes(scores[one].flatten().numpy(), high, low) for one in stats.languages}
        return labelled(stats, scores, members)


def _by_layer(stats: ActivationStats, of_cells: Callable[[Tensor], Tensor]) -> Float[Tensor, "language layer neuron"]:
    layers = [torch.cat([of_cells(cells) for cells in _cells(stats, n)], dim=1) for n in range(stats.shape[0])]
    return torch.stack(layers, dim=1)


def _cells(stats: ActivationStats, layer: int) -> Iterator[Float[Tensor, "language neuron cell"]]:
    """Share of each language's sentences at every value that occurs, in increasing order, some neurons at a time."""
    means = [stats.sentence_means(language, layer) for language in stats.languages]
    sizes = torch.tensor([len(one) for one in means])
    owner = torch.repeat_interleave(torch.arange(len(means)), sizes)
    every = torch.cat(means).T
    for values in every.split(max(1, NUMBERS_AT_ONCE // (len(means) * len(owner)))):
        values, order = values.sort(dim=1)
        owners = owner[order]
        shares = torch.stack([(owners == i).double() / int(size) for i, size in enumerate(sizes)])
        yield joined_ties(shares, values)
