"""What is written at which neurons: SetTo, Add, Scale, Clamp and DiffMean.

A patch is a description, checked when it is made; ``intervene`` carries it out. Values know where they belong: a number
fits anywhere, SiteValues carry their site and model, a raw tensor is given with ``site=``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from numbers import Real
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.corpora.languages import label_of
from langneurons.errors import LanguageError, PatchError, SiteMismatchError, unknown
from langneurons.identification.controls import statistics_of
from langneurons.identification.neurons import NeuronSet, check_neurons, united
from langneurons.recording.site_values import SiteValues
from langneurons.recording.statistics import ActivationStats, check_statistics
from langneurons.settings import Controls, finite_number, whole_number

Positions = Literal["all", "prompt", "generated"]
POSITIONS = get_args(Positions)
Value = float | SiteValues | Tensor


@dataclass(frozen=True, eq=False)
class Patch(ABC):
    """What is written at some neurons while a model runs: the base of SetTo, Add, Scale, Clamp and DiffMean.

    Args:
        neurons: Neurons to write at; their site is the site that is written.
        site: The site that raw tensors belong to; not needed for numbers and SiteValues.
        positions: Positions to write at: ``"all"``, only the ``"prompt"``, or only what is ``"generated"``. A forward
            pass that is not part of a ``generate`` is all prompt.
        layers: Layers to write at, such as ``range(20, 32)``; by default all layers of the neurons.
        allow_site_mismatch: Write SiteValues (or a raw tensor) of another site or model all the same, as the reference
            implementation of Mondal et al. 2025 does: it writes statistics of ``pre`` at ``act``.
    """

    fingerprint_name: ClassVar[str] = ""  # of a class whose name has changed since conditions were kept under it
    value_names: ClassVar[tuple[str, ...]] = ("value",)

    neurons: NeuronSet
    _: KW_ONLY
    site: str | None = None
    positions: Positions = "all"
    layers: Iterable[int] | None = None
    allow_site_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))  # a generator could be read once only
        check_neurons(self.neurons)
        if not len(self.neurons):
            raise PatchError(f"The neuron set is empty ({self.neurons!r}): there is nothing to patch.")
        if self.positions not in POSITIONS:
            raise PatchError(unknown("positions", self.positions, POSITIONS))
        self._check_layers()
        for value in self.values.values():
            self._spread(value)

    @property
    def values(self) -> dict[str, Value]:
        """The values that are given, by the name of their field."""
        return {name: getattr(self, name) for name in self.value_names}

    @abstractmethod
    def written(self, current: Tensor, **values: Tensor | float) -> Tensor:
        """Compute the new values of some neurons from their current ones.

        Args:
            current: "batch position neuron", at ``head`` "batch position head d_head".
            values: Each of ``self.values``, one for each neuron or one for all, ready to broadcast.
        """

    @property
    def replaces(self) -> bool:
        """Whether what is written does not depend on what was there; then that need not be computed."""
        return False

    @cached_property
    def by_layer(self) -> dict[int, Int[Tensor, " unit"]]:
        """The neurons that are written, as sorted indices by layer."""
        indices = self.neurons.indices()
        by_layer = {int(layer): indices[indices[:, 0] == layer, 1] for layer in indices[:, 0].unique()}
        return {layer: units for layer, units in by_layer.items() if self.layers is None or layer in self.layers}

    def values_of(self, layer: int) -> dict[str, Float[Tensor, " unit"] | float]:
        """What is written at one layer, in the order of its neurons."""
        at_layer = self.neurons.indices()[:, 0] == layer
        spread = {name: self._spread(value) for name, value in self.values.items()}
        return {name: value[at_layer] if isinstance(value, Tensor) else value for name, value in spread.items()}

    def matched_control(self, controls: Controls, draw: int = 0, exclude: NeuronSet | None = None) -> "Patch":
        """The same patch at matched control neurons; SiteValues are read at the controls' own neurons.

        Args:
            controls: Statistics to match by, of the patch's site if any, match and seed of the draws.
            draw: Number of the draw.
            exclude: Neurons that cannot be drawn, beside those of the patch.

        Raises:
            PatchError: If the statistics or the values have nothing to say of control neurons.
            NeuronSetError: If a layer has too few neurons for a control.
        """
        site, sites = self.neurons.site, [site for stats in statistics_of(controls) for site in stats.records]
        if sites and site not in sites:
            given_sites = ", ".join(sites)
            raise PatchError(f"Controls at {site!r} need statistics of that site; given are those of {given_sites}.")
        if any(isinstance(value, Tensor) and value.ndim == 1 for value in self.values.values()):
            raise PatchError(
                "One raw value for each neuron of the set cannot be read at control neurons: give SiteValues, or "
                "values of all neurons of the model, or controls=0."
            )
        return replace(self, neurons=self.neurons.matched_control(controls, draw, exclude))

    @property
    def fingerprint(self) -> str:
        """Identify what is written where at this moment: equal for equal patches."""
        name = self.fingerprint_name or type(self).__name__
        parts: list[str | bytes] = [name, self.neurons.site, str(self.neurons.shape), self.positions]
        for layer, units in sorted(self.by_layer.items()):
            parts += [str(layer), units.numpy().tobytes()]
            for field, value in self.values_of(layer).items():
                parts += [field, repr(value.detach().double().tolist() if isinstance(value, Tensor) else value)]
        return storage.fingerprint(*parts)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={_in_words(value)}" for name, value in self.values.items())
        where = "" if self.layers is None else f", layers {min(self.layers)} to {max(self.layers)}"
        at = "" if self.positions == "all" else f", {self.positions} only"
        return f"{type(self).__name__}({self.neurons!r}, {values}{where}{at})"

    def _check_layers(self) -> None:
        depth = self.neurons.shape[0]
        if self.layers is None:
            return
        layers = [whole_number(layer, "layer", PatchError) for layer in self.layers]
        if outside := sorted(layer for layer in layers if not 0 <= layer < depth):
            raise PatchError(f"There is no layer {outside[0]}: the model has layers 0 to {depth - 1}.")
        if not self.by_layer:
            has = ", ".join(str(int(layer)) for layer in self.neurons.indices()[:, 0].unique())
            raise PatchError(f"No neuron of the set lies in layers {sorted(self.layers)}: they lie in {has}.")

    def _spread(self, value: Value) -> Float[Tensor, " n"] | float:
        """One number for all neurons, or one for each in the order of ``neurons.indices()``."""
        if isinstance(value, SiteValues):
            self._check_site_values(value)
            return self._gathered(value.values)
        if isinstance(value, Tensor):
            if value.ndim:
                self._check_site(self.site)
            return self._gathered(value if value.ndim else value.expand(len(self.neurons)))
        if isinstance(value, bool) or not isinstance(value, Real):
            raise PatchError(f"A value is a number, SiteValues or a tensor, not {type(value).__name__}.")
        if not math.isfinite(value):
            raise PatchError(f"A neuron cannot be given the value {value}: a finite number is needed.")
        return float(value)

    def _gathered(self, values: Tensor) -> Float[Tensor, " n"]:
        indices, shape = self.neurons.indices(), tuple(values.shape)
        if shape == self.neurons.shape:
            values = values[indices[:, 0], indices[:, 1]]
        elif shape != (len(indices),):
            raise PatchError(
                f"The values have shape {shape}: possible are one for each neuron of the model, {self.neurons.shape}, "
                f"or one for each neuron of the set, {(len(indices),)}."
            )
        if not bool(values.isfinite().all()):
            raise PatchError(f"{int((~values.isfinite()).sum())} of the {len(values)} values to write are not finite.")
        return values if values.is_floating_point() else values.float()

    def _check_site_values(self, values: SiteValues) -> None:
        if values.site == "head":
            raise PatchError("Statistics of 'head' are norms of heads' outputs, not values that a head could be given.")
        self._check_site(values.site)
        model = self.neurons.model
        if model and values.model != model and not self.allow_site_mismatch:
            raise SiteMismatchError(
                f"The values belong to model {values.model[:8]}, the neurons to model {model[:8]}: record the same "
                "model, or give allow_site_mismatch=True."
            )

    def _check_site(self, site: str | None) -> None:
        if site is None:
            raise PatchError(
                "A raw tensor does not say where its values belong: give site=, such as "
                f"site={self.neurons.site!r}, or SiteValues as the statistics give them."
            )
        if site != self.neurons.site and not self.allow_site_mismatch:
            raise SiteMismatchError(
                f"Values of site {site!r} would be written at site {self.neurons.site!r}: take statistics of "
                f"{self.neurons.site!r}, or give allow_site_mismatch=True."
            )


@dataclass(frozen=True, eq=False, repr=False)
class SetTo(Patch):
    """Give neurons a value, whatever they would have had.

    Args:
        value: A number, SiteValues, or a raw tensor with ``site=``: one value for each neuron of the model, or one for
            each neuron of the set, in the order of ``neurons.indices()``. A tensor may require gradients.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> with ln.intervene(model, ln.SetTo(neurons["hi"], stats["hi"].mean())):
        ...     model("Hello").shape[0]
        1
    """

    fingerprint_name: ClassVar[str] = "Set"
    value: Value = 0.0

    @property
    def replaces(self) -> bool:
        """Yes, unless some positions keep what they have."""
        return self.positions == "all"

    def written(self, current: Tensor, **values: Tensor | float) -> Tensor:
        """The value."""
        value = values["value"]
        return value.expand_as(current) if isinstance(value, Tensor) else torch.full_like(current, value)


@dataclass(frozen=True, eq=False, repr=False)
class Add(Patch):
    """Add a value to what neurons have.

    Args:
        value: The summand: a number, SiteValues, or a raw tensor with ``site=``.
    """

    value: Value = 0.0

    def written(self, current: Tensor, **values: Tensor | float) -> Tensor:
        """What they have plus the value."""
        return current + values["value"]


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Patch):
    """Multiply what neurons have.

    Args:
        factor: A number, or a raw tensor with ``site=`` that gives each neuron its own.
    """

    value_names: ClassVar[tuple[str, ...]] = ("factor",)

    factor: Value = 0.0

    def written(self, current: Tensor, **values: Tensor | float) -> Tensor:
        """What they have times the factor."""
        return current * values["factor"]


@dataclass(frozen=True, eq=False, repr=False)
class Clamp(Patch):
    """Keep neurons between two values.

    Args:
        low: Lowest value, given as the value of SetTo is; None sets no limit.
        high: Highest value; None sets no limit.
    """

    value_names: ClassVar[tuple[str, ...]] = ("low", "high")

    low: Value | None = None
    high: Value | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.values:
            raise PatchError("Clamp needs low=, high= or both.")
        if len(self.values) == 2:
            low, high = (torch.as_tensor(self._spread(value)) for value in self.values.values())
            crossed = int((low > high).expand(len(self.neurons)).sum())
            if crossed:
                raise PatchError(f"Clamp's low lies above its high for {crossed} of {len(self.neurons)} neurons.")

    @property
    def values(self) -> dict[str, Value]:
        """The limits that are given."""
        return {name: limit for name in self.value_names if (limit := getattr(self, name)) is not None}

    def written(self, current: Tensor, **values: Tensor | float) -> Tensor:
        """What they have, between the limits."""
        limits = {name: torch.as_tensor(value).to(current) for name, value in values.items()}
        above = torch.maximum(current, limits["low"]) if "low" in limits else current
        return torch.minimum(above, limits["high"]) if "high" in limits else above


@dataclass(frozen=True, eq=False, repr=False)
class DiffMean(Patch):
    """Add the difference between a language's mean activation and the mean of the other languages' means.

    At MLP sites this is the "diffmean" of Gurgurov et al. 2025 (arXiv 2507.22608). With ``everywhere`` at
    ``resid_post``, and layers to choose, it is the steering vector of the field, the baseline for patches of neurons.

    Args:
        stats: Statistics at the neurons' site.
        language: The language to move towards.
        strength: Factor of the difference.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> with ln.intervene(model, ln.DiffMean(neurons["hi"], stats, "hi", strength=2.0)):
        ...     model("Hello").shape[0]
        1
    """

    stats: ActivationStats
    language: str
    strength: float = 1.0

    @classmethod
    def everywhere(
        cls,
        stats: ActivationStats,
        language: str,
        strength: float = 1.0,
        layers: Iterable[int] | None = None,
        positions: Positions = "all",
    ) -> "DiffMean":
        """Steer every unit of the statistics' site, such as the whole residual stream at ``resid_post``.

        Args:
            stats: Statistics at that site.
            language: The language to move towards.
            strength: Factor of the difference.
            layers: Layers to write at; by default all.
            positions: Positions to write at: ``"all"``, ``"prompt"`` or ``"generated"``.
        """
        check_statistics(stats)
        units = {language: [(layer, unit) for layer in range(stats.shape[0]) for unit in range(stats.shape[1])]}
        neurons = NeuronSet.of(units, stats.shape, stats.site, stats.fingerprint, f"every unit at {stats.site}")
        return cls(neurons, stats, language, strength, layers=layers, positions=positions)

    @cached_property
    def difference(self) -> SiteValues:
        """The language's mean minus the mean of the other languages' means."""
        check_statistics(self.stats)
        stats = self.stats.at(self.neurons.site)
        own = label_of(self.language, stats.languages)
        others = [language for language in stats.languages if language != own]
        if not others:
            raise LanguageError(f"Only {own!r} was recorded: DiffMean needs another language to differ from.")
        return stats[own].mean() - stats.select(others).pooled().mean()

    @property
    def values(self) -> dict[str, Value]:
        """The difference times the strength."""
        return {"difference": self.difference * finite_number(self.strength, "strength", PatchError)}

    def written(self, current: Tensor, **values: Tensor | float) -> Tensor:
        """What they have plus the difference."""
        return current + values["difference"]


def control_patches(
    patches: Mapping[tuple[str, ...], Sequence[Patch]], controls: Controls
) -> dict[tuple[str | int, ...], list[Patch]]:
    """The same patches at matched control neurons, which no patch of any name writes.

    Args:
        patches: Name -> the patches written together.
        controls: Number of draws, and statistics to match by.

    Returns:
        Name and number of the draw -> the patches.

    Raises:
        PatchError: If a patch's values, or the statistics, have nothing to say of control neurons.
        NeuronSetError: If a layer has too few neurons for a control.
    """
    if not controls.draws:
        return {}
    neuron_sets = [patch.neurons for together in patches.values() for patch in together]
    sites = {neurons.site for neurons in neuron_sets}
    exclude = {site: united(neurons for neurons in neuron_sets if neurons.site == site) for site in sites}
    return {
        (*name, draw): [patch.matched_control(controls, draw, exclude[patch.neurons.site]) for patch in together]
        for draw in range(controls.draws)
        for name, together in patches.items()
    }


def _in_words(value: Value) -> str:
    if isinstance(value, SiteValues):
        return f"values of {value.language or 'several languages'} at {value.site}"
    if isinstance(value, Tensor) and value.ndim:
        return f"{tuple(value.shape)} values"
    return f"{float(value):g}"
