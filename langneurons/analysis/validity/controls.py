"""Methods that must fail: each is caught by one check, so that a table of checks shows that they can be failed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.identification.activation import PER_LANGUAGE
from langneurons.identification.firing import design_effect
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.identification.selection import best_per_language, check_share, wanted
from langneurons.recording.statistics import ActivationStats


@dataclass(frozen=True)
class RedrawnRandom:
    """Random neurons, drawn anew for every recording: agrees with itself no more than chance does.

    ``Random`` draws the same neurons whatever was recorded; it is perfectly reliable, and caught by the nulls.

    Args:
        top: Share of all neurons to draw in each language.

    Example:
        >>> RedrawnRandom(top=0.01).identify(stats).languages
        ('en', 'hi', 'zh')
    """

    top: float = PER_LANGUAGE

    def __post_init__(self):
        check_share("top", self.top)

    @property
    def needs(self) -> tuple[str, ...]:
        """No optional accumulator."""
        return ()

    def scores(self, stats: ActivationStats) -> Scores:
        """Uniform random numbers that depend on the recording."""
        recorded = stats.probability().numpy()
        generator = np.random.default_rng(np.frombuffer(recorded.tobytes(), np.uint32))
        return _scores(self, stats, torch.from_numpy(generator.random(recorded.shape)))

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label, in each language, randomly drawn neurons."""
        return best_per_language(stats, self.scores(stats), wanted(self.top, stats))


@dataclass(frozen=True)
class OwnQuantile:
    """Neurons that exceed their own quantile in the same language most often: all do equally, so this is rounding.

    What "Act Prob 90p" of Mondal et al. 2025 (arXiv 2503.17456) is but for its batches.

    Args:
        share: The quantile, between 0 and 1.
        top: Share of all neurons to keep in each language.

    Example:
        >>> scores = OwnQuantile().scores(stats).values
        >>> bool((scores.median() - 0.1).abs() < 0.01)
        True
    """

    share: float = 0.9
    top: float = PER_LANGUAGE

    def __post_init__(self):
        check_share("top", self.top)

    @property
    def needs(self) -> tuple[str, ...]:
        """No optional accumulator."""
        return ()

    def scores(self, stats: ActivationStats) -> Scores:
        """P(activation > the language's own quantile)."""
        alone = [stats.select([language]) for language in stats.languages]
        return _scores(self, stats, torch.cat([one.probability(one.quantile(self.share)[0]) for one in alone]))

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label, in each language, the neurons with the highest score."""
        return best_per_language(stats, self.scores(stats), wanted(self.top, stats))


@dataclass(frozen=True)
class DocumentHeterogeneity:
    """Neurons that differ most between documents of the language: topic detectors, in parts of one language as well.

    The score is the design effect of the documents: how many times more the documents make a neuron's mean vary than
    independent tokens would.

    Args:
        top: Share of all neurons to keep in each language.

    Example:
        >>> DocumentHeterogeneity(top=0.01).identify(stats).languages
        ('en', 'hi', 'zh')
    """

    top: float = PER_LANGUAGE

    def __post_init__(self):
        check_share("top", self.top)

    @property
    def needs(self) -> tuple[str, ...]:
        """No optional accumulator."""
        return ()

    def scores(self, stats: ActivationStats) -> Scores:
        """The design effect of every neuron in every language."""
        return _scores(self, stats, torch.stack([design_effect(stats, language) for language in stats.languages]))

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label, in each language, the neurons with the highest score."""
        return best_per_language(stats, self.scores(stats), wanted(self.top, stats))


def _scores(method: object, stats: ActivationStats, values: Tensor) -> Scores:
    def standard_error() -> Tensor:
        raise StatisticsError(f"{method!r} is a control that must fail, so its scores have no standard error.")

    return Scores(values, stats.languages, repr(method), "none", 1, standard_error)
