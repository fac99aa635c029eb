"""What a method is: anything that scores neurons and labels them.

Write one as a frozen dataclass; nothing needs to be registered. Its options are its fields, so ``repr`` describes it.
"""

from typing import Protocol, runtime_checkable

from langneurons.identification.neurons import NeuronSet
from langneurons.identification.scores import Scores
from langneurons.recording.statistics import ActivationStats


@runtime_checkable
class Method(Protocol):
    """A way to find the neurons of a language in activation statistics."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Optional accumulators that must have been recorded; empty for most."""
        ...

    def scores(self, stats: ActivationStats) -> Scores:
        """Score every neuron."""
        ...

    def identify(self, stats: ActivationStats) -> NeuronSet:
        """Label the neurons that the scores select."""
        ...
