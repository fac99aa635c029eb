"""Measuring every ablation once: neurons alone from what is remembered below them, sets of neurons whole."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.analysis.metrics import TEXTS, AblationValue, Batch, Metric, TextMetric
from langneurons.errors import EffectError, LangNeuronsError, ModelError
from langneurons.evaluation.measuring import Job, measure_jobs
from langneurons.identification import NeuronSet
from langneurons.models import ModelView, view
from langneurons.models.finite import refusal
from langneurons.models.sites import written
from langneurons.patches.intervening import check_fits
from langneurons.patches.patch import Patch
from langneurons.run import Progress
from langneurons.settings import Run
from langneurons.tasks.batching import scoring

PROCEDURE = "langneurons/ablated-rows/1"  # part of the name under which rows are kept
UNPATCHED = "unpatched"
SHARD = 256  # neurons that are measured and kept together
ROWS = 32  # texts with one neuron ablated that share a forward pass


@dataclass(frozen=True)
class Runner:
    """Where, on what and how neurons are ablated.

    Args:
        model: A model returned by ``load_model``.
        metric: What is measured.
        value: What neurons are set to.
        languages: Languages to measure in.
        run: Where it runs and where it is kept; a batch's rows are texts with one neuron ablated, 32 by default.
        patches: Patches that are written while neurons are ablated one by one on texts.
    """

    model: torch.nn.Module
    metric: Metric
    value: AblationValue
    languages: Sequence[str]
    run: Run
    patches: Sequence[Patch] = ()

    def __post_init__(self) -> None:
        if self.run.out is not None and self.metric.fingerprint is None:
            raise EffectError(
                f"What {self.metric.name} gives cannot be kept, because a function does not say what it computes: give "
                "it an attribute fingerprint, a text that changes with it, or do not give out=."
            )

    @property
    def rows(self) -> int:
        """Largest number of rows of a forward pass."""
        return self.run.batch_size or ROWS

    def alone(self, neurons: NeuronSet) -> dict[str, pd.DataFrame]:
        """Ablate every neuron of the label "all" by itself.

        Returns:
            Language -> one row per item: item, cluster, unpatched, and a column per neuron, named by its flat index.
        """
        if isinstance(self.metric, TextMetric):
            return self._tables(self._shards(self.metric, neurons))
        return self._tables(self._one_by_one(neurons))

    def together(self, sets: Mapping[str, NeuronSet]) -> dict[str, pd.DataFrame]:
        """Ablate whole sets of neurons.

        Returns:
            Language -> one row per item: item, cluster, unpatched, and a column per set, by its name.
        """
        return self._tables(self._sets(sets))

    def rows_of(self, language: str, name: str) -> pd.DataFrame:
        """Measure the model with whatever is attached to it: item, cluster, and the value in a column of that name."""
        return self.metric.rows(self.model, language, self.rows).rename(columns={"value": name})

    def _tables(self, jobs: Mapping[tuple, Job]) -> dict[str, pd.DataFrame]:
        parts: dict[str, list[pd.DataFrame]] = {}
        for (language, *_), rows in measure_jobs(self.model, jobs, self.run).items():
            parts.setdefault(language, []).append(rows.set_index(["item", "cluster"]))
        tables = {language: pd.concat(shards, axis=1) for language, shards in parts.items()}
        return {language: table.loc[:, ~table.columns.duplicated()].reset_index() for language, table in tables.items()}

    def _sets(self, sets: Mapping[str, NeuronSet]) -> dict[tuple, Job]:
        jobs = {}
        for language in self.languages:
            patches: dict[str, list[Patch]] = {UNPATCHED: []}
            patches |= {name: [self.value.patch(neurons, language)] for name, neurons in sets.items()}
            for name, parts in patches.items():
                score = partial(self.rows_of, language, name)
                jobs[language, name] = Job(parts, self._about(language, name), score, self.metric.generates)
        return jobs

    def _about(self, language: str, *more: str) -> str:
        return storage.fingerprint(PROCEDURE, str(self.metric.fingerprint), language, *more)

    def _shards(self, metric: TextMetric, neurons: NeuronSet) -> dict[tuple, Job]:
        jobs, flat = {}, neurons.members["all"]
        for language in self.languages:
            for number, shard in enumerate(np.split(flat, range(SHARD, len(flat), SHARD))):
                patch = self._checked(shard, neurons, language)
                score = partial(self._streamed, metric, language, patch)
                jobs[language, number] = Job(self.patches, self._about(language, patch.fingerprint), score)
        return jobs

    def _checked(self, flat: np.ndarray, neurons: NeuronSet, language: str) -> Patch:
        """The patch of some neurons; it is not entered, but written one neuron at a time."""
        alone = NeuronSet({"all": flat.copy()}, neurons.shape, neurons.site, neurons.model)
        patch = self.value.patch(alone, language)
        check_fits(patch, view(self.model))
        return patch

    def _streamed(self, metric: TextMetric, language: str, patch: Patch) -> pd.DataFrame:
        width, values = patch.neurons.shape[1], _values(patch)
        names = [str(layer * width + int(unit)) for layer, units in patch.by_layer.items() for unit in units]
        tables = []
        with scoring(self.model) as model_view:
            memory = Remembered(model_view, patch.neurons.site, patch.by_layer)
            texts = metric.batches(model_view, language, min(TEXTS, self.rows))
            for batch in Progress(texts, unit="batch", desc=language, leave=False, shown=self.run.progress):
                memory.forget()
                with memory.remembering():
                    columns = [batch.read(model_view, 1)]
                if not np.isfinite(columns[0]).all():
                    raise self._refusal(model_view, batch, columns[0][0], language)
                for layer, layer_values in values.items():
                    for places in torch.arange(len(layer_values)).split(max(1, self.rows // len(batch.tokens))):
                        with memory.ablated(layer, places, layer_values[places]):
                            columns.append(batch.read(model_view, len(places)))
                table = pd.DataFrame(np.concatenate(columns).T, columns=pd.Index([UNPATCHED, *names]))
                _check_finite(table, width, batch.items, language)
                table.insert(0, "item", batch.items)
                table.insert(1, "cluster", batch.clusters)
                tables.append(table)
        # Texts of one length share a batch; in this order clusters are resampled as those of the whole text are.
        return pd.concat(tables).sort_values("cluster", kind="stable", ignore_index=True)

    def _refusal(
        self, model_view: ModelView, batch: Batch, values: Float[np.ndarray, " text"], language: str
    ) -> LangNeuronsError:
        """Say what is wrong with an unpatched model, or with a metric, whose values are not finite."""
        if (where := refusal(model_view, batch.tokens)) is not None:
            return ModelError(where)
        wrong = np.flatnonzero(~np.isfinite(values))
        return EffectError(
            f"The metric {self.metric.name!r} is {values[wrong[0]]} on {len(wrong)} of the first {len(values)} texts "
            f"of {language!r}, such as item {batch.items[wrong[0]]!r}: metrics must give finite numbers."
        )

    def _one_by_one(self, neurons: NeuronSet) -> dict[tuple, Job]:
        flat = neurons.members["all"]
        if self.metric.generates:
            return self._sets({str(index): replace(neurons, members={"all": flat[flat == index]}) for index in flat})
        jobs, texts = {}, _RememberedTexts(self)
        for language in self.languages:
            patch = self._checked(flat, neurons, language)
            jobs[language, UNPATCHED] = Job((), self._about(language, UNPATCHED), partial(texts.read, language, patch))
            for layer, units in patch.by_layer.items():
                for place, unit in enumerate(units.tolist()):
                    name = str(layer * neurons.shape[1] + unit)
                    about = self._about(language, self._checked(np.array([int(name)]), neurons, language).fingerprint)
                    jobs[language, name] = Job((), about, partial(texts.ablated, language, patch, layer, place, name))
        return jobs


class _RememberedTexts:
    """A task's texts in one language, remembered while its neurons are ablated one by one."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._language: str | None = None
        self._memory: Remembered | None = None

    def read(self, language: str, patch: Patch) -> pd.DataFrame:
        """Measure the unpatched model, and remember its texts."""
        self._memory = None  # of another language: gone before this one's is built up
        memory = Remembered(view(self._runner.model), patch.neurons.site, patch.by_layer)
        with memory.remembering():
            rows = self._runner.rows_of(language, UNPATCHED)
        self._language, self._memory = language, memory
        return rows

    def ablated(self, language: str, patch: Patch, layer: int, place: int, name: str) -> pd.DataFrame:
        """Measure the model without one neuron."""
        if self._language != language:
            self.read(language, patch)
        assert self._memory is not None
        with self._memory.ablated(layer, torch.tensor([place]), _values(patch)[layer][[place]]):
            return self._runner.rows_of(language, name)


def _check_finite(table: pd.DataFrame, width: int, items: Sequence[object], language: str) -> None:
    """Refuse what nothing can be concluded from, at the first texts that give it."""
    wrong: Bool[np.ndarray, "item column"] = ~np.isfinite(table.to_numpy(float))
    columns = np.flatnonzero(wrong.any(0)).tolist()
    if columns:
        item = items[int(wrong[:, columns[0]].argmax())]
        neuron = divmod(int(str(table.columns[columns[0]])), width)
        raise EffectError(
            f"Without {len(columns)} of {table.shape[1] - 1} neurons, such as {neuron}, what is "
            f"measured is not a finite number on some texts, such as item {item!r} of {language!r}: give another "
            "value=, or a dtype of larger range."
        )


def _values(patch: Patch) -> dict[int, Tensor]:
    """Each layer's values, one per neuron."""
    values = {}
    for layer, units in patch.by_layer.items():
        value = patch.values_of(layer)["value"]
        values[layer] = value if isinstance(value, Tensor) else torch.full((len(units),), float(value))
    return values


# What the forward pass of a batch of texts computed, by layer: "residual", the residual stream after it ("text position
# d_model"); "value", the remembered neurons' own post or act; "up", what that is multiplied by on gated MLPs.
BatchMemory = dict[str, dict[int, Tensor]]
MLP_SITES = ("pre", "act", "post")
LIMIT = 2**31  # bytes that are remembered at most; texts beyond are run whole for every neuron
STEP = 100.0  # so large that what it adds to the residual stream is no rounding error, in half precision neither


class Remembered:
    """The texts that a model has read, as far as ablating some neurons needs them.

    Args:
        model_view: The model.
        site: Site of the neurons.
        neurons: Layer -> indices of the neurons, sorted.
        limit: Largest number of bytes to remember.
    """

    def __init__(
        self, model_view: ModelView, site: str, neurons: Mapping[int, Int[Tensor, " neuron"]], limit: int = LIMIT
    ) -> None:
        self._view, self._site, self._limit = model_view, site, limit
        self._neurons = {layer: units.to(model_view.device) for layer, units in neurons.items()}
        self._weights = {}
        for layer, units in neurons.items():
            if site in MLP_SITES and writes_directly(model_view, layer):
                weights = model_view.output_weights(layer, "post")
                self._weights[layer] = weights[units.to(weights.device)].detach()
        # The layer after which each layer's forward passes begin: itself, or, where it is run again, the one below.
        depth = {layer: model_view.layers_at(site)[layer] for layer in neurons}
        direct = [layer for layer in neurons if layer in self._weights or site == "resid_post"]
        self._begins = {layer: depth[layer] if layer in direct else depth[layer] - 1 for layer in neurons}
        self.forget()

    def forget(self) -> None:
        """Forget every text."""
        self._memories: dict[bytes, BatchMemory] = {}
        self._held = 0

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Remember, inside the block, what every forward pass computes."""
        memory, key = BatchMemory(), b""

        def begin(tokens: Tensor) -> None:
            nonlocal memory, key
            memory, key = {"residual": {}, "value": {}, "up": {}}, _key(tokens)

        def keep_residual(layer: int, values: Tensor) -> None:
            if layer in self._begins.values():
                memory["residual"][layer] = values
            if layer == self._view.n_layers - 1:
                size = sum(tensor.nbytes for part in memory.values() for tensor in part.values())
                if self._held + size <= self._limit:
                    self._held += size
                    self._memories[key] = memory

        def keep(layer: int, values: Tensor, part: str) -> None:
            if layer in self._weights:
                memory[part][layer] = values[..., self._neurons[layer].to(values.device)]

        readers = {"resid_post": keep_residual}
        if self._weights:
            own = "post" if self._site == "post" else "act"
            readers[own] = lambda layer, values: keep(layer, values, "value")
            if own == "act" and self._view.gated:
                readers["up"] = lambda layer, values: keep(layer, values, "up")
        with self._view.above(-1, begin), self._view.reading(readers):
            yield

    @contextmanager
    def ablated(self, layer: int, places: Int[Tensor, " copy"], values: Float[Tensor, " copy"]) -> Iterator[None]:
        """Write one neuron's value in each copy of a batch of texts, inside the block.

        Every forward pass must hold as many copies of its texts, one after the other, as there are neurons. Those of
        remembered texts begin at the layer; others are run whole.

        Args:
            layer: Layer of the neurons.
            places: Places of the neurons among those of their layer that are remembered, in increasing order.
            values: The value that each neuron is set to.
        """
        copies = len(places)

        def residual_of(tokens: Tensor) -> Tensor | None:
            memory = self._memories.get(_key(tokens[: len(tokens) // copies]))
            if memory is None or begins < 0:
                return None
            if layer in self._weights:
                return self._moved(memory, layer, places, values)
            residual = repeat(memory["residual"][begins], "text ... -> (copy text) ...", copy=copies)
            if self._site != "resid_post":
                return residual
            index = units.to(residual.device)
            return written(residual, index, write(layer, residual[..., index]))

        def write(_: int, current: Tensor) -> Tensor:
            by_copy = rearrange(current, "(copy text) ... -> copy text ...", copy=copies)
            beyond = [1] * (by_copy.ndim - 4)
            own = torch.eye(copies, dtype=torch.bool, device=current.device).view(copies, 1, 1, -1, *beyond)
            return torch.where(own, values.to(current).view(-1, *beyond), by_copy).flatten(0, 1)

        units, begins = self._neurons[layer][places.to(self._view.device)], self._begins[layer]
        with self._view.above(begins, residual_of), self._view.writing(self._site, {layer: units}, write):
            yield

    def _moved(self, memory: BatchMemory, layer: int, places: Tensor, values: Tensor) -> Tensor:
        """The residual stream after a layer, once per neuron."""
        residual, before = memory["residual"][self._begins[layer]], memory["value"][layer]
        places = places.to(before.device)
        after = values.to(before)
        change = (self._view.act_fn(layer)(after) if self._site == "pre" else after) - before[..., places]
        if layer in memory["up"]:
            change = change * memory["up"][layer][..., places]
        by_copy = rearrange(change, "text position copy -> copy text position 1").float()
        moved = by_copy * rearrange(self._weights[layer][places], "copy d_model -> copy 1 1 d_model").float()
        return moved.add_(residual.float()).to(residual.dtype).flatten(0, 1)


@torch.no_grad()
def writes_directly(model_view: ModelView, layer: int) -> bool:
    """Find out whether what W_out gives is added to the residual stream as it is, not normed or scaled before.

    Args:
        model_view: A model.
        layer: Number of one of its layers.

    Example:
        >>> from langneurons.models import view
        >>> writes_directly(view(model), 0)
        True
    """
    units = torch.arange(min(8, model_view.width("post")))
    tokens = torch.arange(min(4, model_view.context_length))[None]

    def after(value: float) -> Tensor:
        residual: dict[int, Tensor] = {}
        writing = model_view.writing("post", {layer: units}, lambda _, current: torch.full_like(current, value))
        with writing, model_view.reading({"resid_post": residual.__setitem__}):
            model_view.forward(tokens, logits=False)
        return residual[layer].float()

    weights = model_view.output_weights(layer, "post")
    expected = STEP * weights[units.to(weights.device)].float().sum(0)
    moved = after(STEP) - after(0.0)
    return bool((moved - expected.to(moved.device)).norm() <= 0.05 * moved.norm())


def _key(tokens: Tensor) -> bytes:
    return repr(tuple(tokens.shape)).encode() + tokens.cpu().numpy().tobytes()
