"""Running sums of one language at its sites: where the bins go, adding what a forward shows, storing half-done work."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.corpora import Blocks
from langneurons.models import ModelView
from langneurons.models.experts import CHOSEN, ROUTER_SITES
from langneurons.models.sites import Reader
from langneurons.recording.accumulation import Accumulators, Grid, GroupedSums
from langneurons.recording.distributions import ActivationFunction
from langneurons.recording.records import (
    GRADIENT,
    OPTIONAL,
    SENTENCE,
    LanguageRecord,
    RecordedModel,
    Sentences,
    relevance_unit,
)

CALIBRATION_TOKENS = 2048
OPEN_ENDS = 0.0025  # share of the calibration tokens beyond each end of the grid
LINEAR_PART = 0.05  # asinh coordinates are about linear below this share of the mean magnitude
SILENT = 0.5  # a unit with more exact zeros than this is sparse: a sample shows too little of it
SPARSE_LINEAR_PART = 1e-3  # of its peak
FACTORS = {"act", "up"}  # of what neurons of gated MLPs write
LEAST_PEAK = 0.1  # of the layer's: a sparse unit may fire later as strongly as others do now

Observe = Callable[[str, int, Tensor, Tensor], None]
ObserveWritten = Callable[[int, Tensor], None]


@contextmanager
def observing(
    model_view: ModelView, sites: Sequence[str], observe: Observe, observe_written: ObserveWritten | None = None
) -> Iterator[None]:
    """Call ``observe(site, layer, values, z)`` with every site's values of each forward inside.

    Values have shape "token unit": batch and position are joined, a head's output is reduced to its norm. ``z`` is the
    pre-activation at ``pre`` and ``act``, at routers 1 where an expert is chosen and 0 elsewhere, and the values
    themselves at other sites. ``observe_written(layer, values)`` is called with the values at ``post`` where one of its
    two factors is observed in a gated MLP.
    """
    pre: dict[int, Tensor] = {}
    choices: dict[int, Tensor] = {}

    def on_router(site: str, layer: int, values: Tensor) -> None:
        observe(site, layer, values.flatten(0, 1), choices[layer].flatten(0, 1))

    def on_pre(layer: int, z: Tensor) -> None:
        if "act" in sites:
            pre[layer] = z
        if "pre" in sites:
            observe("pre", layer, z.flatten(0, 1), z.flatten(0, 1))

    def on_act(layer: int, act: Tensor) -> None:
        observe("act", layer, act.flatten(0, 1), pre.pop(layer).flatten(0, 1))

    def on_values(site: str, layer: int, values: Tensor) -> None:
        observe(site, layer, values.flatten(0, 1), values.flatten(0, 1))

    def on_head(layer: int, outputs: Tensor) -> None:
        norms = torch.linalg.vector_norm(outputs.float(), dim=-1).flatten(0, 1)
        observe("head", layer, norms, norms)

    def on_post(layer: int, values: Tensor) -> None:
        if observe_written is not None:
            observe_written(layer, values.flatten(0, 1))
        if "post" in sites:
            on_values("post", layer, values)

    functions: dict[str, Reader] = {"pre": on_pre, "act": on_act, "head": on_head, CHOSEN: choices.__setitem__}
    functions |= {site: partial(on_router, site) for site in ROUTER_SITES}
    wanted = ("pre", *sites) if "act" in sites else sites
    wanted = (CHOSEN, *wanted) if set(sites) & set(ROUTER_SITES) else wanted
    if observe_written is not None and writes_otherwise(model_view, sites):
        wanted, functions = (*wanted, "post"), {**functions, "post": on_post}
    with model_view.reading({site: functions.get(site, partial(on_values, site)) for site in wanted}):
        yield


def writes_otherwise(model_view: ModelView, sites: Sequence[str]) -> bool:
    """Whether neurons are observed at ``act`` or ``up`` that hand something else, act x up, to their output weights."""
    return model_view.gated and not FACTORS.isdisjoint(sites)


def observing_caches(
    model_view: ModelView,
    caches: Sequence[Any],
    sites: Sequence[str],
    observe: Observe,
    observe_written: ObserveWritten | None = None,
) -> None:
    """Call the functions as one forward would, with what TransformerLens caches hold, one after the other."""

    def joined(site: str, layer: int) -> Tensor:
        return torch.cat([model_view.cached(cache, site, layer).flatten(0, 1) for cache in caches])

    for site in sites:
        for layer in range(model_view.shape(site)[0]):
            values = joined(site, layer)
            if site == "head":
                values = torch.linalg.vector_norm(values.float(), dim=-1)
            observe(site, layer, values, joined("pre", layer) if site == "act" else values)
    if observe_written is not None and writes_otherwise(model_view, sites):
        for layer in range(model_view.n_layers):
            observe_written(layer, joined("post", layer))


@dataclass
class LanguageSums:
    """The sums of one language at all sites, and the next block to add; ``grouped`` by optional name and site."""

    accumulators: dict[str, Accumulators]
    grids: dict[str, Grid]
    next_block: int = 0
    grouped: dict[tuple[str, str], GroupedSums] = field(default_factory=dict)

    @classmethod
    def empty(
        cls, model_view: ModelView, grids: Mapping[str, Grid], tokens: int, next_block: int = 0, written: bool = True
    ) -> "LanguageSums":
        """Sums of nothing, on the model's device, wide enough for ``tokens`` tokens; nothing optional.

        ``written`` is False where it is not known what gated neurons write.
        """
        device = model_view.device
        of_written = {site for site in grids if written and writes_otherwise(model_view, [site])}
        accumulators = {
            site: Accumulators.zeros(*model_view.shape(site), tokens, device, site in of_written) for site in grids
        }
        return cls(accumulators, {site: grid.to(device) for site, grid in grids.items()}, next_block)

    @contextmanager
    def adding(
        self, model_view: ModelView, folds: Int[Tensor, " token"], sentences: Int[Tensor, " token"] | None = None
    ) -> Iterator[None]:
        """Add what one forward inside shows.

        Args:
            model_view: The model.
            folds: The fold of each token's document, -1 where a token is not counted.
            sentences: The sentence of each token, -1 where it is in none of those; None adds no sentences.
        """

        def add(site: str, layer: int, values: Tensor, z: Tensor) -> None:
            self.add(site, layer, values, z, folds)
            if sentences is not None:
                self.grouped[SENTENCE, site].add(layer, values.float(), sentences)

        with observing(model_view, tuple(self.accumulators), add, partial(self.add_written, folds=folds)):
            yield

    def add(self, site: str, layer: int, values: Tensor, z: Tensor, folds: Int[Tensor, " token"]) -> None:
        """Add one layer's values."""
        grid, active = self.grids[site], self.accumulators[site].active[:, layer]
        values, before = values.float(), active.clone() if site in ROUTER_SITES else None
        coordinate = z.float() if grid.scale is None else grid.coordinate(layer, values)
        self.accumulators[site].add(layer, coordinate, values, folds, grid)
        if before is not None:  # an expert is active where it is chosen, whatever its probability
            active.copy_(before.index_add_(0, folds[folds >= 0], z[folds >= 0].to(before.dtype)))

    def add_written(self, layer: int, values: Tensor, folds: Int[Tensor, " token"]) -> None:
        """Add the magnitudes of what one layer's neurons hand to their output weights."""
        for site in FACTORS & self.accumulators.keys():
            self.accumulators[site].add_written(layer, values, folds, self.grids[site])

    def add_relevance(self, model_view: ModelView, batch: Blocks, folds: Int[Tensor, "block position"]) -> None:
        """Run a batch forward and backward, and add the relevance of every neuron."""
        for row, site, layer, values in relevance(model_view, batch, tuple(self.accumulators)):
            self.grouped[GRADIENT, site].add(layer, values, folds[row])

    def records(
        self,
        tokens: Int[Tensor, " fold"],
        sources: Mapping[str, tuple[tuple[int, int], ...]],
        sentences: tuple[Sentences, Int[Tensor, " sentence"]] | None = None,
    ) -> dict[str, LanguageRecord]:
        """The finished record of each site.

        Args:
            tokens: Counted tokens of each fold.
            sources: The blocks that were added.
            sentences: The sentences that are kept by themselves, and the tokens of each.
        """
        cpu = torch.device("cpu")
        return {
            site: LanguageRecord.of(sums, self.grids[site].to(cpu), tokens, sources, self._optional(site, sentences))
            for site, sums in self.accumulators.items()
        }

    def _optional(self, site: str, sentences: tuple[Sentences, Tensor] | None) -> dict[str, Tensor]:
        tensors = {}
        if sentences is not None:
            documents, tokens = sentences
            tensors |= documents.tensors(tokens, self.grouped[SENTENCE, site].sum.cpu())
        if (sums := self.grouped.get((GRADIENT, site))) is not None:
            tensors |= {"relevance_sum": sums.sum.cpu(), "relevance_unit": sums.unit.cpu()}
        return tensors

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, to be stored."""
        named = {
            f"{s}/{name}": value.cpu() for s, sums in self.accumulators.items() for name, value in vars(sums).items()
        }
        for (name, site), sums in self.grouped.items():
            named |= {f"{site}/{name}/{part}": value.cpu() for part, value in vars(sums).items()}
        for site, grid in self.grids.items():
            parts = {"width": grid.width, "first": grid.first, "scale": grid.scale}
            named |= {f"{site}/grid/{name}": value.cpu() for name, value in parts.items() if value is not None}
        return {**named, "next_block": torch.tensor(self.next_block)}

    @classmethod
    def of(cls, stored: Mapping[str, Tensor], sites: Sequence[str], device: torch.device) -> "LanguageSums":
        """Rebuild them from what was stored."""
        fields = Accumulators.__dataclass_fields__
        sums = {s: Accumulators(**{name: stored[f"{s}/{name}"].clone().to(device) for name in fields}) for s in sites}
        grids = {
            s: Grid(stored[f"{s}/grid/width"], stored[f"{s}/grid/first"], stored.get(f"{s}/grid/scale")).to(device)
            for s in sites
        }
        grouped = {
            (name, s): GroupedSums(*(stored[f"{s}/{name}/{part}"].clone().to(device) for part in ("unit", "sum")))
            for name in OPTIONAL
            for s in sites
            if f"{s}/{name}/sum" in stored
        }
        return cls(sums, grids, int(stored["next_block"]), grouped)


class Calibration:
    """Sees a few blocks of a language and says where each neuron's bins go."""

    def __init__(self, model_view: ModelView, sites: Sequence[str], counted: Int[Tensor, " token"]):
        """Look at no more than about 2,000 of the ``counted`` token positions, evenly spread."""
        self.model_view, self.sites = model_view, tuple(sites)
        step = max(1, len(counted) // CALIBRATION_TOKENS)
        self.tokens = counted[::step]
        self.lows, self.highs, self.scales = ({site: [] for site in sites} for _ in range(3))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at one forward."""
        with observing(self.model_view, self.sites, self.see):
            yield

    def see(self, site: str, layer: int, values: Tensor, z: Tensor) -> None:
        """Look at one layer's values."""
        sample = (values if site in ROUTER_SITES else z)[self.tokens.to(z.device)].float()
        if site in ("pre", "act"):
            scale, (low, high) = None, _ends(sample)
        else:
            sparse = (sample == 0).float().mean(0) > SILENT
            peak = _peak(sample)
            scale = (sample.abs().mean(0) * LINEAR_PART).clamp(min=1e-12)
            scale = torch.where(sparse, scale.maximum(SPARSE_LINEAR_PART * peak), scale)
            low, high = _ends(torch.asinh(sample / scale))
            low = torch.where(sparse, torch.asinh(sample.amin(0).clamp(max=0) / scale), low)
            high = torch.where(sparse, torch.asinh(peak / scale), high)
        self.lows[site].append(low.cpu())
        self.highs[site].append(high.cpu())
        self.scales[site].append(scale if scale is None else scale.cpu())

    def grids(self) -> dict[str, Grid]:
        """The bins of every site."""
        return {
            site: Grid.covering(
                _finite(torch.stack(self.lows[site])),
                _finite(torch.stack(self.highs[site])),
                None if self.scales[site][0] is None else torch.stack(self.scales[site]),
            )
            for site in self.sites
        }


def _ends(sample: Float[Tensor, "token neuron"]) -> tuple[Tensor, Tensor]:
    """Where the open end bins begin."""
    beyond = max(1, math.ceil(OPEN_ENDS * len(sample)))
    columns = sample.t().contiguous()
    return columns.topk(beyond, largest=False).values[:, -1], columns.topk(beyond).values[:, -1]


def _peak(sample: Float[Tensor, "token neuron"]) -> Float[Tensor, " neuron"]:
    """How far each sparse unit goes, at least about as far as others of its layer; 1 where all were silent."""
    peak = sample.abs().amax(0)
    return peak.clamp(min=LEAST_PEAK * float(peak.max()) or 1.0)


def _finite(edges: Float[Tensor, "layer neuron"]) -> Float[Tensor, "layer neuron"]:
    return torch.nan_to_num(edges, nan=0.0, posinf=1e30, neginf=-1e30)


def recorded_model(model_view: ModelView, sites: Sequence[str]) -> RecordedModel:
    """What statistics keep of the model."""
    return RecordedModel(
        name=model_view.name,
        fingerprint=model_view.fingerprint,
        dtype=str(model_view.dtype).removeprefix("torch."),
        gated=model_view.gated,
        output_norm={site: model_view.output_norm(site).cpu() for site in sites},
        of_features=features_recorded(model_view, sites),
        act_fn=ActivationFunction.of(model_view.act_fn(0)) if "act" in model_view.sites else None,
    )


def features_recorded(model_view: ModelView, sites: Sequence[str]) -> dict[str, str]:
    """Which weights and dictionaries the features among the sites come from."""
    return {site: model_view.fingerprint_at(site) for site in sites if site in model_view.feature_sites}


# row of the batch, site, layer, and |a dL/da| of shape "position unit"
Relevance = tuple[int, str, int, Tensor]


def relevance(model_view: ModelView, batch: Blocks, sites: Sequence[str]) -> Iterator[Relevance]:
    """Compute the relevance of every unit at every position, block after block.

    L is the summed negative log-likelihood, in nats, of a block's counted tokens given those before them. The relevance
    |a dL/da| of a neuron at a position is the slope of L in a factor of 1 on its value there; a head's factor scales
    the whole head. One block per backward pass, so that the batch size changes neither memory nor a bit.

    Args:
        model_view: The model.
        batch: Blocks of a language.
        sites: Sites to read.

    Yields:
        Row, site, layer, and the relevance in nats, "position unit".
    """
    for row in range(len(batch.tokens)):
        with _factors(model_view, sites) as factors, torch.enable_grad():
            tokens, predicted = batch.tokens[row : row + 1], batch.counted[row : row + 1].clone()
            predicted[:, 0] = False
            loss = model_view.predictions(tokens, predicted).losses(tokens[predicted]).sum()
            slopes = torch.autograd.grad(loss, list(factors.values()))
        for (site, layer), slope in zip(factors, slopes, strict=True):
            yield row, site, layer, slope[0].flatten(1).abs().float()


def relevance_units(
    model_view: ModelView, batch: Blocks, sites: Sequence[str]
) -> dict[str, Float[Tensor, "layer neuron"]]:
    """Choose the units that relevance is counted in at every site, from a few blocks of the language."""
    totals = {site: torch.zeros(model_view.shape(site), dtype=torch.float64) for site in sites}
    for row, site, layer, values in relevance(model_view, batch, sites):
        totals[site][layer] += values.cpu()[batch.counted[row]].double().sum(0)
    tokens = int(batch.counted.sum())
    return {site: relevance_unit((total / tokens).nan_to_num(nan=0.0, posinf=1e30)) for site, total in totals.items()}


@contextmanager
def _factors(model_view: ModelView, sites: Sequence[str]) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Multiply every site's values by factors of 1 inside the block, and give the factors of the last forward."""
    factors: dict[tuple[str, int], Tensor] = {}

    def scaled(site: str) -> Callable[[int, Tensor], Tensor]:
        def change(layer: int, values: Tensor) -> Tensor:
            factors[site, layer] = torch.ones_like(values[..., :1] if site == "head" else values, requires_grad=True)
            return values * factors[site, layer]

        return change

    with ExitStack() as stack:
        for site in sorted(sites, key=model_view.sites.index):  # as a layer computes them: act before post
            layers, width = model_view.shape(site)
            everything = {layer: torch.arange(width) for layer in range(layers)}
            stack.enter_context(model_view.writing(site, everything, scaled(site)))
        yield factors
