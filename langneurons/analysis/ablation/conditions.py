"""Which neurons are ablated together, which are their controls, and what is written at them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.errors import EffectError, NeuronSetError, StatisticsError, unknown
from langneurons.identification.neurons import NeuronSet
from langneurons.patches.patch import SetTo, Value
from langneurons.recording.statistics import ActivationStats

EACH = ("neuron", "group", "cumulative")
MEAN = "mean"


@dataclass(frozen=True, eq=False)
class Written:
    """What ablated neurons are given.

    Args:
        value: A number, ``"mean"`` (of each neuron in the measured language), SiteValues, or numbers of all neurons of
            the model.
        stats: Statistics that ``"mean"`` is read from.
    """

    value: Value | str
    stats: ActivationStats | None

    @classmethod
    def of(cls, value: Value | str, stats: ActivationStats | None, neurons: NeuronSet, controls: int) -> "Written":
        """Check a value, and spread one number a neuron of the set over the model.

        Raises:
            StatisticsError: If the mean is asked for without statistics, or the value is another word.
            EffectError: If controls have no value.
        """
        if isinstance(value, str) and (value != MEAN or stats is None):
            lacking = "The mean is read from statistics: give stats=." if value == MEAN else ""
            raise StatisticsError(lacking or unknown("value", value, [MEAN, "a number", "SiteValues", "a tensor"]))
        if isinstance(value, Tensor) and value.ndim == 1:
            if controls:
                raise EffectError(
                    "One number a neuron of the set cannot be read at control neurons: give SiteValues, or numbers of "
                    "all neurons of the model, or controls=0."
                )
            if len(value) != len(neurons):
                raise EffectError(f"There are {len(value)} values for {len(neurons)} neurons: give one each.")
            spread = torch.zeros(neurons.shape, dtype=value.dtype)
            spread[tuple(neurons.indices().T)] = value.cpu()
            value = spread
        return cls(value, stats)

    def patch(self, neurons: NeuronSet, language: str) -> SetTo:
        """Write it at some neurons, in a measured language."""
        if isinstance(self.value, str):
            assert self.stats is not None
            return SetTo(neurons, self.stats.at(neurons.site)[language].mean())
        return SetTo(neurons, self.value, site=neurons.site)

    @property
    def said(self) -> str:
        """In a few words."""
        if isinstance(self.value, str):
            return "set to the mean of each measured language"
        return "set to given values" if isinstance(self.value, Tensor) and self.value.ndim else f"set to {self.value}"


def check_options(neurons: NeuronSet, each: str, controls: int, rows: int) -> None:
    """Refuse what cannot be ablated.

    Raises:
        NeuronSetError: If there is no neuron.
        EffectError: If an option is out of range.
    """
    if not len(neurons):
        raise NeuronSetError(f"The neuron set is empty ({neurons!r}): there is nothing to ablate.")
    if each not in EACH:
        raise EffectError(unknown("each", each, EACH))
    if controls < 0 or rows < 1:
        raise EffectError(f"controls= is 0 or more and rows= 1 or more, given {controls} and {rows}.")
    if controls and each == "cumulative":
        raise EffectError("A cumulative ablation has no controls: ask for each='group', or controls=0.")


def prefixes(
    neurons: NeuronSet, label: str, order: Float[Tensor, "layer neuron"]
) -> dict[int, tuple[NeuronSet, int, int]]:
    """Add a label's neurons from the top of an order: the first 1, 2, 4, ... and all of them.

    Returns:
        How many -> the set, and the layer and index of the neuron added last.
    """
    flat = neurons.members[label]
    ranked = flat[np.argsort(-order.flatten().double().numpy()[flat], kind="stable")]
    sizes = [2**power for power in range(len(flat).bit_length()) if 2**power < len(flat)] + [len(flat)]
    found = {}
    for size in sizes:
        layer, unit = divmod(int(ranked[size - 1]), neurons.shape[1])
        found[size] = (replace(neurons, members={label: np.sort(ranked[:size])}), layer, unit)
    return found
