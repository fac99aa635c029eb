"""Activation statistics of raw activations that a test makes up: what record() would keep, without a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons.identification.neurons import NeuronSet
from langneurons.recording.accumulation import FOLDS, Accumulators, Grid
from langneurons.recording.distributions import ActivationFunction
from langneurons.recording.records import LanguageRecord, RecordedModel
from langneurons.recording.statistics import ActivationStats

LOUDER = ("en", "hi", "zh")  # the languages of louder_language_neurons
TOKENS, TEXTS = 100, 30  # per language: tokens recorded, texts scored
COST, LUCK = 0.001, 0.3  # share of the loss that a write of 1 is worth; SD of the chance factors' logarithm


def statistics_from(
    values: Mapping[str, Float[Tensor, "token layer neuron"]],
    documents: Mapping[str, Int[Tensor, " token"]] | None = None,
    site: str = "act",
    act_fn: Callable[[Tensor], Tensor] | None = None,
    gated: bool = True,
    output_norm: Float[Tensor, "layer neuron"] | None = None,
) -> ActivationStats:
    """Record raw activations.

    Args:
        values: Each language's activations; with ``act_fn`` the pre-activations, which it is applied to.
        documents: Each token's document, dealt to folds by document % 20; default ten tokens a document.
        site: What they are called.
        act_fn: The activation function; None records the values as they are.
        gated: Whether the model has a gate.
        output_norm: Norm of each neuron's output weights, default 1.
    """
    first = next(iter(values.values()))
    shape = tuple(first.shape[1:])
    documents = documents or {language: torch.arange(len(raw)) // 10 for language, raw in values.items()}
    records = {language: _record(raw.float(), documents[language], site, act_fn) for language, raw in values.items()}
    model = RecordedModel(
        name="planted",
        fingerprint="planted0" * 4,
        dtype="float32",
        gated=gated,
        output_norm={site: torch.ones(shape) if output_norm is None else output_norm},
        act_fn=None if act_fn is None else ActivationFunction.of(act_fn),
    )
    return ActivationStats(model, 512, {site: records})


@dataclass(frozen=True)
class LouderNeurons:
    """Neurons of which those of a language write more than most others, while only what is written has effects.

    Attributes:
        stats: Statistics of all neurons, at ``act``.
        neurons: Each language's set.
        loud: The neurons of no language that write as much as the sets.
        changes: Per language, the relative change of each text's loss by zeroing each neuron.
    """

    stats: ActivationStats
    neurons: NeuronSet
    loud: NeuronSet
    changes: Mapping[str, Float[Tensor, "text layer neuron"]]

    def losses(self, language: str, zeroed: NeuronSet | None = None) -> pd.DataFrame:
        """The loss on each text, as rows for ``effect``.

        Args:
            language: The language of the texts.
            zeroed: Neurons whose effects add up; by default the baseline, in which none is zeroed.
        """
        before = torch.linspace(1, 3, len(self.changes[language])).double()
        change = 0 if zeroed is None else self.changes[language][:, zeroed.mask()].sum(1)
        items = range(len(before))
        return pd.DataFrame({"item": items, "cluster": items, "nll": (before * (1 + change)).numpy()})


def louder_language_neurons(
    seed: int = 0, layers: int = 4, width: int = 1000, each: int = 3, louder: float = 8.0, loud: float = 0.04
) -> LouderNeurons:
    """Make language neurons that write several times what most neurons write, and a null in which nothing else counts.

    In its own language a language neuron writes between half of ``louder`` and ``louder`` times what the median neuron
    writes; so do other, loud neurons, in every language. It fires as often as any neuron does, and hardly elsewhere,
    where it writes about what most do. Neither activations nor output weights alone tell what is written.

    The null: to zero a neuron raises the loss by what it writes there (``stats.write``) x ``COST`` x a chance factor of
    its own, of which all neurons' are drawn alike. So a set is one more draw of neurons of its layers that write as
    much, and no draw of neurons of its magnitude decile, because most of those write less. The layers have no gate.

    Args:
        seed: Seed for everything.
        layers: Layers.
        width: Neurons per layer.
        each: Language neurons per language and layer.
        louder: The most that a language neuron writes; the median neuron writes about 1.
        loud: Share of each layer that is loud without being of a language: candidates for controls that match.
    """
    random = torch.Generator().manual_seed(seed)
    shape, others = (layers, width), round(loud * width)
    # The first of every layer are each language's neurons, then come the loud ones.
    rank = torch.stack([torch.randperm(width, generator=random) for _ in range(layers)])
    owner = torch.where(rank < each * len(LOUDER), rank // each, -1)
    strong = rank < each * len(LOUDER) + others
    share = 0.3 + 0.6 * torch.rand(shape, generator=random)
    size = 2 ** (2 * torch.rand(shape, generator=random) - 1)
    typical = (0.3 * torch.randn(shape, generator=random)).exp()
    wanted = torch.where(strong, louder * 2 ** -torch.rand(shape, generator=random), typical)
    values = {}
    for place, language in enumerate(LOUDER):
        here = torch.where((owner >= 0) & (owner != place), 0.03 * share, share)
        raw = size * torch.randn(TOKENS, *shape, generator=random).abs()
        values[language] = torch.where(torch.rand(raw.shape, generator=random) < here, raw, -0.1 * raw)
    magnitude = torch.stack([raw.abs().mean(0) for raw in values.values()])
    own = torch.where(owner >= 0, magnitude.gather(0, owner.clamp(min=0)[None])[0], magnitude.mean(0))
    stats = statistics_from(values, gated=False, output_norm=wanted / own)
    luck = (LUCK * torch.randn(shape, generator=random) - LUCK**2 / 2).exp()
    changes = {}
    for language in LOUDER:
        on_text = (LUCK * torch.randn(TEXTS, *shape, generator=random) - LUCK**2 / 2).exp()
        changes[language] = COST * stats.write(language) * luck * on_text
    members = {language: (owner == place).nonzero().tolist() for place, language in enumerate(LOUDER)}
    labelled = [members, {"loud": (strong & (owner < 0)).nonzero().tolist()}]
    sets, candidates = (NeuronSet.of(some, shape, "act", stats.model.fingerprint) for some in labelled)
    return LouderNeurons(stats, sets, candidates, changes)


def _record(values: Tensor, documents: Tensor, site: str, act_fn: Callable[[Tensor], Tensor] | None) -> LanguageRecord:
    scale = values.abs().mean(0).clamp(min=1e-3) if site in ("post", "head") else None
    coordinates = values if scale is None else torch.asinh(values / scale)
    values = values if act_fn is None else act_fn(values)
    grid = Grid.covering(coordinates.amin(0), coordinates.amax(0), scale)
    tokens, layers, neurons = values.shape
    sums = Accumulators.zeros(layers, neurons, tokens, torch.device("cpu"))
    order = (documents % FOLDS).argsort(stable=True)  # the fused loop is fastest on runs of one fold
    folds = (documents % FOLDS)[order]
    for layer in range(layers):
        sums.add(layer, coordinates[order, layer].contiguous(), values[order, layer].contiguous(), folds, grid)
    counted = torch.bincount(folds, minlength=FOLDS)
    return LanguageRecord.of(sums, grid, counted, {})
