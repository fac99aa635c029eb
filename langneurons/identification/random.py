"""Methods that must not work: what they find is what chance finds."""

from dataclasses import dataclass

import torch
from torch import Tensor

from langneurons.errors import StatisticsError
from langneurons.identification.controls import random_stream
from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.identification.selection import best_per_language, check_share, wanted
from langneurons.recording.statistics import ActivationStats


@dataclass(frozen=True)
class Random:
    """Random neurons in each language: round(top x layers x width) of them, as a control for any other method.

    What is drawn for a language depends on the seed, the language and the model's shape alone, not on activations or
    on which other languages were recorded.

    Args:
        top: Share of all neurons to draw in each language.
        seed: Of the draw.

    Example:
        >>> active = torch.tensor([[[90, 50, 40, 1]], [[2, 50, 41, 1]]])
        >>> published = ActivationStats.from_counts(active, torch.tensor([100, 100]), ["en", "hi"])
        >>> len(Random(top=0.5).identify(published)["hi"])
        2
    """

    top: float = 0.01
    seed: int = 0

    def __post_init__(self):
        check_share("top", self.top)

    @property
    def needs(self) -> tuple[str, ...]:
        """No optional accumulator."""
        return ()

    def scores(self, stats: ActivationStats) -> Scores:
        """Uniform random numbers; they have no standard error."""
        rows = [
            torch.from_numpy(random_stream(self.seed, "random", one).random(stats.shape)) for one in stats.languages
        ]

        def standard_error() -> Tensor:
            raise StatisticsError("Random scores estimate nothing, so they have no standard error.")

        return Scores(torch.stack(rows), stats.languages, repr(self), "none", 1, standard_error, (0.0, 1.0))

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label, in each language, randomly drawn neurons."""
        return best_per_language(stats, self.scores(stats), wanted(self.top, stats))
