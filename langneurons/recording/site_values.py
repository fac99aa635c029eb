"""One value per neuron that knows where it belongs, so that it is never written where it does not."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.errors import SiteMismatchError

# Rotating the residual stream, and all weights with it, gives the same model with other coordinates. Neurons behind an
# activation function have no such freedom; a head's norm is the same however the head's own coordinates are turned.
_ANY_BASIS = ("resid_post",)


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
