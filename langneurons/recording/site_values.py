"""How neurons respond, as one value per neuron that knows where it belongs and is never written where it does not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from langneurons.errors import SiteMismatchError, StatisticsError
from langneurons.recording.accumulation import SQUARE_UNITS, SUM_UNITS
from langneurons.recording.distributions import Histogram, ValueCdf, quantile, rank_error_bound
from langneurons.recording.records import ROUTER_SITES, TENSORS, WRITTEN, LanguageRecord, RecordedModel, check_held
from langneurons.settings import finite_number

# Rotating the residual stream, and all weights with it, gives the same model with other coordinates; so does turning a
# head's queries and keys together (with rotary embedding: within each pair), or its values. Neurons behind an
# activation function have no such freedom; a head's norm is the same however the head's own coordinates are turned.
_ANY_BASIS = ("resid_post", "q", "k", "v")


def basis_note(site: str) -> str:
    """What must be said of results for single units of a site; nothing where a unit means something by itself.

    Example:
        >>> basis_note("resid_post"), basis_note("head")
        ('basis-dependent', '')
    """
    return "basis-dependent" if site in _ANY_BASIS else ""


@dataclass(frozen=True, eq=False)
class SiteValues:
    """One value per neuron, which knows the site, language and model it belongs to; arithmetic keeps them.

    Example:
        >>> mean = stats["hi"].mean()
        >>> (2 * mean - stats["en"].mean()).site
        'act'
    """

    values: Float[Tensor, "layer neuron"]
    site: str
    model: str
    language: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and neurons."""
        return tuple(self.values.shape)  # pyright: ignore[reportReturnType]

    def __getitem__(self, index: Any) -> Tensor:
        return self.values[index]

    def __add__(self, other: "SiteValues | Tensor | float") -> "SiteValues":
        return self._with(other, torch.add)

    def __sub__(self, other: "SiteValues | Tensor | float") -> "SiteValues":
        return self._with(other, torch.sub)

    def __mul__(self, other: "SiteValues | Tensor | float") -> "SiteValues":
        return self._with(other, torch.mul)

    def __truediv__(self, other: "SiteValues | Tensor | float") -> "SiteValues":
        return self._with(other, torch.div)

    def __radd__(self, other: Tensor | float) -> "SiteValues":
        return self + other

    def __rmul__(self, other: Tensor | float) -> "SiteValues":
        return self * other

    def __rsub__(self, other: Tensor | float) -> "SiteValues":
        return -self + other

    def __neg__(self) -> "SiteValues":
        return replace(self, values=-self.values)

    def _with(self, other: "SiteValues | Tensor | float", combine: Callable[..., Tensor]) -> "SiteValues":
        if not isinstance(other, SiteValues):
            return replace(self, values=combine(self.values, other))
        if (self.site, self.model) != (other.site, other.model):
            raise SiteMismatchError(
                f"Values of site {self.site!r} of model {self.model[:8]} cannot be combined with values of site "
                f"{other.site!r} of model {other.model[:8]}: record both at one site of one model."
            )
        language = self.language if self.language == other.language else None
        return replace(self, values=combine(self.values, other.values), language=language)


Threshold = float | Tensor | SiteValues


@dataclass(frozen=True, eq=False)
class RecordedResponses:
    """How the neurons of one site respond in one language, in double precision.

    Attributes:
        record: The recorded sums and histograms.
        site: The site.
        model: What is known of the model.
    """

    record: LanguageRecord
    site: str
    model: RecordedModel

    @property
    def fingerprint(self) -> str:
        """What the values at the site come from."""
        return self.model.fingerprint_at(self.site)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and neurons per layer."""
        layers, neurons = self.tensor("active").shape[1:]
        return layers, neurons

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor.

        Raises:
            StatisticsError: If it was not recorded.
        """
        tensors = self.record.tensors
        if name not in tensors:
            check_held([TENSORS[name]] if name in TENSORS else [], tensors)
            raise StatisticsError(
                f"These statistics hold no {name} (they are published counts or single folds): "
                "they answer probability(0)" + (" and mean()." if "sum" in tensors else ".")
            )
        return tensors[name]

    def units(self) -> Float[Tensor, "layer neuron"]:
        """The power of two in which each neuron's sums are counted."""
        self.tensor("width")
        return self.record.grid().units

    def probability(self, threshold: Threshold) -> Float[Tensor, "layer neuron"]:
        """P(activation > threshold); at routers, with threshold 0, the share of tokens that an expert is chosen for."""
        values = self._threshold(threshold)
        above_zero = self.tensor("active").sum(0, dtype=torch.int64).double() / self.record.tokens.sum()
        if not bool(values.any()):
            return above_zero
        rows = [1 - self.cdf(layer)(values[layer]) for layer in range(len(values))]
        return torch.where(values == 0, above_zero, torch.stack(rows))

    def mean(self) -> Float[Tensor, "layer neuron"]:
        """Mean activation."""
        return self.tensor("sum").sum(0).double() * (self.units() * 2.0**-SUM_UNITS) / self.record.tokens.sum()

    def mean_magnitude(self) -> Float[Tensor, "layer neuron"]:
        """Mean of the activation's absolute value."""
        return self.tensor("absolute").double() * (self.units() * 2.0**-SUM_UNITS) / self.record.tokens.sum()

    def mean_written(self) -> Float[Tensor, "layer neuron"] | None:
        """Mean magnitude of what neurons hand to their output weights; None where only their activation is known.

        That is act x up at ``act`` and ``up`` of gated MLPs, which version 0.1.0 did not record.
        """
        if self.site not in ("act", "up") or not self.model.gated:
            return self.mean_magnitude()
        if WRITTEN not in self.record.tensors:
            return None
        return self.tensor(WRITTEN).double() * (self.units() * 2.0**-SUM_UNITS) / self.record.tokens.sum()

    def mean_square(self) -> Float[Tensor, "layer neuron"]:
        """Mean of the activation's square."""
        unit = self.units() ** 2 * 2.0**-SQUARE_UNITS
        return self.tensor("squares").double() * unit / self.record.tokens.sum()

    def per_fold(self, name: str, unit: Tensor | float = 1.0) -> Float[Tensor, "fold layer neuron"]:
        """A recorded sum in ``unit``, over the tokens of each document fold."""
        return self.tensor(name).double() * unit / self.record.tokens[:, None, None]

    def histogram(self, layer: int) -> Histogram:
        """The histograms of one layer."""
        names = ("histogram", "width", "first", "coordinate_minimum", "coordinate_maximum")
        return Histogram(*(self.tensor(name)[layer] for name in names))

    def cdf(self, layer: int) -> ValueCdf:
        """The cumulative distributions of one layer."""
        scale = self.record.tensors.get("scale")
        act_fn = self.model.act_fn if self.site == "act" else None
        return ValueCdf(self.histogram(layer), None if scale is None else scale[layer], act_fn)

    def _threshold(self, threshold: Threshold) -> Tensor:
        if isinstance(threshold, SiteValues):
            if (threshold.site, threshold.model) != (self.site, self.fingerprint):
                raise SiteMismatchError(
                    f"The threshold belongs to site {threshold.site!r} of model {threshold.model[:8]}, "
                    f"these statistics to site {self.site!r} of model {self.fingerprint[:8]}."
                )
            threshold = threshold.values
        if not isinstance(threshold, Tensor):
            threshold = finite_number(threshold, "threshold", StatisticsError)
        values = torch.as_tensor(threshold, dtype=torch.float64)
        if values.ndim and tuple(values.shape) != self.shape:
            raise StatisticsError(f"A threshold is a number or has shape {self.shape}, not {tuple(values.shape)}.")
        if not bool(values.isfinite().all()):
            raise StatisticsError("A threshold must be finite, given NaN or infinity.")
        return values.expand(self.shape)


class Responses:
    """How the neurons respond in one language, or in several weighted equally: ``stats["hi"]``, ``stats.pooled()``."""

    def __init__(self, records: Mapping[str, RecordedResponses]):
        self.languages, self._records = tuple(records), tuple(records.values())

    @property
    def language(self) -> str | None:
        """The language, None for several."""
        return self.languages[0] if len(self.languages) == 1 else None

    def probability(self, threshold: Threshold = 0.0) -> SiteValues:
        """P(activation > threshold)."""
        return self._labelled(self._averaged(lambda record: record.probability(threshold)))

    def mean(self) -> SiteValues:
        """Mean activation."""
        return self._labelled(self._averaged(RecordedResponses.mean))

    def mean_magnitude(self) -> SiteValues:
        """Mean of the activation's absolute value."""
        return self._labelled(self._averaged(RecordedResponses.mean_magnitude))

    def std(self) -> SiteValues:
        """Standard deviation over tokens (of the mixture, where several languages are pooled)."""
        mean = self._averaged(RecordedResponses.mean)
        square = self._averaged(RecordedResponses.mean_square)
        return self._labelled((square - mean**2).clamp(min=0).sqrt())

    def minimum(self) -> SiteValues:
        """Smallest activation that occurred."""
        return self._labelled(torch.stack([record.tensor("minimum") for record in self._records]).amin(0))

    def maximum(self) -> SiteValues:
        """Largest activation that occurred."""
        return self._labelled(torch.stack([record.tensor("maximum") for record in self._records]).amax(0))

    def quantile(self, share: float) -> SiteValues:
        """The activation below which ``share`` of the tokens lie.

        Args:
            share: Between 0 and 1.

        Returns:
            One value per neuron, from its histogram; ``rank_error(share)`` is the largest possible error of its rank.

        Raises:
            StatisticsError: If ``share`` is no probability, or no histograms were recorded.

        Example:
            >>> median = stats["hi"].quantile(0.5)
            >>> median.shape == stats.shape
            True
        """
        _check_share(share)
        for record in self._records:
            record.tensor("histogram")
        low, high = self.minimum().values, self.maximum().values
        rows = [quantile(self._cdfs(layer), low[layer], high[layer], share) for layer in range(len(low))]
        values = torch.minimum(torch.maximum(torch.stack(rows), low), high)
        return self._labelled(values.where(~self._exactly_zero(share), 0.0))

    def rank_error(self, share: float) -> SiteValues:
        """The most by which the rank of ``quantile(share)`` can differ from ``share``, whatever the bins hide."""
        values = self.quantile(share).values.double()
        rows = [rank_error_bound(self._cdfs(layer), values[layer], share) for layer in range(len(values))]
        return self._labelled(torch.stack(rows).where(~self._exactly_zero(share), 0.0))

    def _exactly_zero(self, share: float) -> Bool[Tensor, "layer neuron"]:
        """Where the quantile is known: of units that are never negative and silent on ``share`` of the tokens."""
        active = self._averaged(lambda record: record.probability(0.0))
        if self._records[0].site in ROUTER_SITES:  # an expert that is not chosen has a probability all the same
            return torch.zeros_like(active, dtype=torch.bool)
        return (self.minimum().values == 0) & (share <= 1 - active)

    def _cdfs(self, layer: int) -> list[ValueCdf]:
        return [record.cdf(layer) for record in self._records]

    def _averaged(self, ask: "Callable[[RecordedResponses], Tensor]") -> Tensor:
        first, *others = self._records
        return sum((ask(record) for record in others), ask(first)) / len(self._records)

    def _labelled(self, values: Tensor) -> SiteValues:
        first = self._records[0]
        return SiteValues(values.float(), first.site, first.fingerprint, self.language)


def _check_share(share: float) -> None:
    share = finite_number(share, "share", StatisticsError)
    if not 0 <= share <= 1:
        raise StatisticsError(f"A quantile lies between 0 and 1, not at {share}.")
