"""What a model computed before it reached some neurons, remembered, so that ablating each of them begins there.

Ablating one neuron of layer l changes nothing below l. What it changes at l itself is known without running the layer:
``post`` moves by (new - old) x up, and the residual stream by that times the neuron's row of W_out. Where the MLP's
output is normed or scaled before it is added (Gemma 2, Granite), and at every other site, layer l is run again with the
value written in it. At ``resid_post`` the value is written where the forward begins. All are exact.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.models import ModelView
from langneurons.models.sites import written

MLP_SITES = ("pre", "act", "post")
LIMIT = 2**31  # bytes that are remembered at most; texts beyond are run whole for every neuron
STEP = 100.0  # so large that what it adds to the residual stream is no rounding error, in half precision neither


@dataclass
class Known:
    """What one batch of texts gave.

    Attributes:
        residual: Layer -> the residual stream after it, "text position d_model".
        value: Layer -> the remembered neurons' own values, "text position neuron": ``post`` or ``act``.
        up: Layer -> what these are multiplied by, on gated MLPs.
    """

    residual: dict[int, Tensor] = field(default_factory=dict)
    value: dict[int, Tensor] = field(default_factory=dict)
    up: dict[int, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """How much memory it takes."""
        return sum(one.nbytes for part in (self.residual, self.value, self.up) for one in part.values())


class Remembered:
    """The texts that a model has read, as far as ablating some neurons needs them.

    Args:
        seen: The model.
        site: Where the neurons are.
        neurons: Layer -> indices of the neurons, sorted.
        limit: Bytes that are remembered at most.
    """

    def __init__(
        self, seen: ModelView, site: str, neurons: Mapping[int, Int[Tensor, " neuron"]], limit: int = LIMIT
    ) -> None:
        self._seen, self._site, self._limit = seen, site, limit
        self._neurons = {layer: units.to(seen.device) for layer, units in neurons.items()}
        self._rows = {
            layer: seen.output_weights(layer, "post")[units.to(seen.output_weights(layer, "post").device)].detach()
            for layer, units in neurons.items()
            if site in MLP_SITES and writes_directly(seen, layer)
        }
        # Where each layer's forwards begin: after it, or, where it is run again, after the one below.
        features = seen.feature_sites.get(site)
        depth = {layer: layer if features is None else features.layers[layer] for layer in neurons}
        known = [layer for layer in neurons if layer in self._rows or site == "resid_post"]
        self._begins = {layer: depth[layer] if layer in known else depth[layer] - 1 for layer in neurons}
        self._known: dict[bytes, Known] = {}
        self._held = 0

    def forget(self) -> None:
        """Forget every text."""
        self._known, self._held = {}, 0

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Remember, inside the block, what every forward computes."""
        known, key = Known(), b""

        def begin(tokens: Tensor) -> None:
            nonlocal known, key
            known, key = Known(), _key(tokens)

        def keep_residual(layer: int, values: Tensor) -> None:
            if layer in self._begins.values():
                known.residual[layer] = values
            if layer == self._seen.n_layers - 1 and self._held + known.bytes <= self._limit:
                self._held += known.bytes
                self._known[key] = known

        def keep(layer: int, values: Tensor, part: str) -> None:
            if layer in self._rows:
                getattr(known, part)[layer] = values[..., self._neurons[layer].to(values.device)]

        readers = {"resid_post": keep_residual}
        if self._rows:
            own = "post" if self._site == "post" else "act"
            readers[own] = lambda layer, values: keep(layer, values, "value")
            if own == "act" and self._seen.gated:
                readers["up"] = lambda layer, values: keep(layer, values, "up")
        with self._seen.above(-1, begin), self._seen.reading(readers):
            yield

    @contextmanager
    def ablated(self, layer: int, chosen: Int[Tensor, " chosen"], values: Float[Tensor, " chosen"]) -> Iterator[None]:
        """Write one neuron's value in each copy of a batch of texts, inside the block.

        Every forward must hold as many copies of its texts, one after the other, as there are neurons. Those of
        remembered texts begin at the layer; others are run whole.

        Args:
            layer: The neurons' layer.
            chosen: Places of the neurons among those of their layer that are remembered, in increasing order.
            values: What each is given.
        """

        def residual_of(tokens: Tensor) -> Tensor | None:
            known = self._known.get(_key(tokens[: len(tokens) // len(chosen)]))
            if known is None or begins < 0:
                return None
            residual = known.residual[begins]
            if layer in self._rows:
                return self._moved(known, layer, chosen, values, residual)
            copies = residual.repeat(len(chosen), 1, 1)
            if self._site != "resid_post":
                return copies
            index = units.to(copies.device)
            return written(copies, index, write(layer, copies[..., index]))

        def write(_: int, current: Tensor) -> Tensor:
            copies = current.unflatten(0, (len(chosen), -1))
            beyond = [1] * (copies.ndim - 4)
            own = torch.eye(len(chosen), dtype=torch.bool, device=current.device).view(len(chosen), 1, 1, -1, *beyond)
            return torch.where(own, values.to(current).view(-1, *beyond), copies).flatten(0, 1)

        units, begins = self._neurons[layer][chosen.to(self._seen.device)], self._begins[layer]
        with self._seen.above(begins, residual_of), self._seen.writing(self._site, {layer: units}, write):
            yield

    def _moved(self, known: Known, layer: int, chosen: Tensor, values: Tensor, residual: Tensor) -> Tensor:
        """The residual stream after a layer, once a neuron."""
        old = known.value[layer]
        places = chosen.to(old.device)
        new = values.to(old)
        change = (self._seen.act_fn(layer)(new) if self._site == "pre" else new) - old[..., places]
        if layer in known.up:
            change = change * known.up[layer][..., places]
        by_copy = change.movedim(-1, 0)[..., None].float()
        moved = by_copy * self._rows[layer][places][:, None, None].float()
        return moved.add_(residual.float()).to(residual.dtype).flatten(0, 1)


@torch.no_grad()
def writes_directly(seen: ModelView, layer: int) -> bool:
    """Find out whether what W_out gives is added to the residual stream as it is, not normed or scaled before.

    Args:
        seen: A model.
        layer: Which of its layers.

    Example:
        >>> from langneurons.models import view
        >>> writes_directly(view(model), 0)
        True
    """
    units = torch.arange(min(8, seen.width("post")))
    tokens = torch.arange(min(4, seen.context_length))[None]

    def after(value: float) -> Tensor:
        found: dict[int, Tensor] = {}
        writing = seen.writing("post", {layer: units}, lambda _, current: torch.full_like(current, value))
        with writing, seen.reading({"resid_post": found.__setitem__}):
            seen.forward(tokens, logits=False)
        return found[layer].float()

    weights = seen.output_weights(layer, "post")
    expected = STEP * weights[units.to(weights.device)].float().sum(0)
    moved = after(STEP) - after(0.0)
    return bool((moved - expected.to(moved.device)).norm() <= 0.05 * moved.norm())


def _key(tokens: Tensor) -> bytes:
    return repr(tuple(tokens.shape)).encode() + tokens.cpu().numpy().tobytes()
