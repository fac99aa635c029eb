"""How much each neuron matters to the loss, to first order: |a dL/da|, from one backward pass for all neurons."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from langneurons.corpora import Blocks
from langneurons.models import ModelView
from langneurons.recording.optional import relevance_unit

# row of the batch, site, layer, and |a dL/da| of shape "position unit"
Relevance = tuple[int, str, int, Tensor]


def relevance(seen: ModelView, batch: Blocks, sites: Sequence[str]) -> Iterator[Relevance]:
    """Tell every site's relevance at every position, block after block.

    L is the summed negative log-likelihood, in nats, of a block's counted tokens given those before them. The relevance
    |a dL/da| of a neuron at a position is the slope of L in a factor of 1 on its value there; a head's factor scales
    the whole head. One block a backward, so that the batch size changes neither memory nor a bit.

    Args:
        seen: The model.
        batch: Blocks of a language.
        sites: Where.

    Yields:
        Row, site, layer, and the relevance in nats, "position unit".
    """
    for row in range(len(batch.tokens)):
        with _factors(seen, sites) as factors, torch.enable_grad():
            tokens = batch.tokens[row : row + 1].to(seen.device)
            logits = seen.forward(tokens)
            assert logits is not None
            loss = _loss(logits[0], tokens[0], batch.counted[row].to(seen.device))
            slopes = torch.autograd.grad(loss, list(factors.values()))
        for (site, layer), slope in zip(factors, slopes, strict=True):
            yield row, site, layer, slope[0].flatten(1).abs().float()


def relevance_units(seen: ModelView, batch: Blocks, sites: Sequence[str]) -> dict[str, Float[Tensor, "layer neuron"]]:
    """Choose the units that relevance is counted in at every site, from a few blocks of the language."""
    totals = {site: torch.zeros(seen.shape(site), dtype=torch.float64) for site in sites}
    for row, site, layer, values in relevance(seen, batch, sites):
        totals[site][layer] += values.cpu()[batch.counted[row]].double().sum(0)
    tokens = int(batch.counted.sum())
    return {site: relevance_unit((total / tokens).nan_to_num(nan=0.0, posinf=1e30)) for site, total in totals.items()}


@contextmanager
def _factors(seen: ModelView, sites: Sequence[str]) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Multiply every site's values by factors of 1 inside the block, and give the factors of the last forward."""
    factors: dict[tuple[str, int], Tensor] = {}

    def scaled(site: str) -> Callable[[int, Tensor], Tensor]:
        def change(layer: int, values: Tensor) -> Tensor:
            factors[site, layer] = torch.ones_like(values[..., :1] if site == "head" else values, requires_grad=True)
            return values * factors[site, layer]

        return change

    with ExitStack() as stack:
        for site in sorted(sites, key=seen.sites.index):  # as a layer computes them: act before post
            layers, width = seen.shape(site)
            everything = {layer: torch.arange(width) for layer in range(layers)}
            stack.enter_context(seen.writing(site, everything, scaled(site)))
        yield factors


def _loss(
    logits: Float[Tensor, "position token"], tokens: Int[Tensor, " position"], counted: Bool[Tensor, " position"]
) -> Float[Tensor, ""]:
    predicted = counted[1:]
    return torch.nn.functional.cross_entropy(logits[:-1][predicted].float(), tokens[1:][predicted], reduction="sum")
