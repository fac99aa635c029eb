"""Measuring every ablation once: neurons alone from what is remembered below them, sets of neurons whole."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from langneurons import storage
from langneurons.analysis.ablation.conditions import Written
from langneurons.analysis.ablation.measured import TEXTS, Measured, Streamed
from langneurons.errors import EffectError
from langneurons.evaluation.measuring import Job, measure_jobs
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView, view
from langneurons.models.sites import written
from langneurons.patches.intervening import check_fits
from langneurons.patches.patch import Patch
from langneurons.run import Executor
from langneurons.settings import Run
from langneurons.tasks.batching import scoring

PROCEDURE = "langneurons/ablated-rows/1"  # part of the name under which rows are kept
UNPATCHED = "unpatched"
SHARD = 256  # neurons that are measured and kept together


@dataclass(frozen=True)
class Runner:
    """Where, on what and how neurons are ablated.

    Args:
        model: From ``load_model``.
        source: What is measured.
        written: What neurons are given.
        languages: Measured ones.
        rows: Rows of a forward, at most: neurons x texts.
        out: Folder that keeps what was measured.
        progress: Show progress bars on standard error.
        executor: Where to run.
    """

    model: torch.nn.Module
    source: Measured
    written: Written
    languages: Sequence[str]
    rows: int
    out: str | Path | None
    progress: bool
    executor: str | Executor | None = None

    def __post_init__(self) -> None:
        if self.out is not None and self.source.fingerprint is None:
            raise EffectError(
                f"What {self.source.name} gives cannot be kept, because a function does not say what it computes: give "
                "it an attribute fingerprint, a text that changes with it, or leave out= away."
            )

    def alone(self, neurons: NeuronSet) -> dict[str, pd.DataFrame]:
        """Ablate every neuron by itself.

        Returns:
            Language -> one row an item: item, cluster, unpatched, and a column a neuron, named by its flat index.
        """
        if isinstance(self.source, Streamed):
            return self._measured(self._shards(self.source, neurons))
        return self._measured(self._one_by_one(neurons))

    def together(self, sets: Mapping[str, NeuronSet]) -> dict[str, pd.DataFrame]:
        """Ablate whole sets of neurons.

        Returns:
            Language -> one row an item: item, cluster, unpatched, and a column a set, by its name.
        """
        return self._measured(self._sets(sets))

    def rows_of(self, language: str, name: str) -> pd.DataFrame:
        """Measure the model with whatever is attached to it: item, cluster, and the value in a column of that name."""
        return self.source.rows(self.model, language, self.rows).rename(columns={"value": name})

    def _measured(self, jobs: Mapping[tuple, Job]) -> dict[str, pd.DataFrame]:
        parts: dict[str, list[pd.DataFrame]] = {}
        run = Run(out=self.out and Path(self.out), progress=self.progress, executor=self.executor)
        found = measure_jobs(self.model, jobs, run)
        for (language, *_), rows in found.items():
            parts.setdefault(language, []).append(rows.set_index(["item", "cluster"]))
        tables = {language: pd.concat(shards, axis=1) for language, shards in parts.items()}
        return {language: table.loc[:, ~table.columns.duplicated()].reset_index() for language, table in tables.items()}

    def _sets(self, sets: Mapping[str, NeuronSet]) -> dict[tuple, Job]:
        jobs = {}
        for language in self.languages:
            patches: dict[str, list[Patch]] = {UNPATCHED: []}
            patches |= {name: [self.written.patch(one, language)] for name, one in sets.items()}
            for name, parts in patches.items():
                score = partial(self.rows_of, language, name)
                jobs[language, name] = Job(parts, self._about(language, name), score, self.source.generates)
        return jobs

    def _about(self, language: str, *more: str) -> str:
        return storage.fingerprint(PROCEDURE, str(self.source.fingerprint), language, *more)

    def _shards(self, source: Streamed, neurons: NeuronSet) -> dict[tuple, Job]:
        jobs = {}
        flat = neurons.members["all"]
        shards = np.split(flat, range(SHARD, len(flat), SHARD))
        for language in self.languages:
            for number, part in enumerate(shards):
                patch = self._checked(part, neurons, language)

                score = partial(self._streamed, source, language, patch)
                jobs[language, number] = Job((), self._about(language, patch.fingerprint), score)
        return jobs

    def _checked(self, flat: np.ndarray, neurons: NeuronSet, language: str) -> Patch:
        """The patch of some neurons; it is not entered, but written one neuron at a time."""
        chosen = NeuronSet({"all": flat.copy()}, neurons.shape, neurons.site, neurons.model)
        patch = self.written.patch(chosen, language)
        check_fits(patch, view(self.model))
        return patch

    def _streamed(self, source: Streamed, language: str, patch: Patch) -> pd.DataFrame:
        width, values = patch.neurons.shape[1], _values(patch)
        names = [str(layer * width + int(unit)) for layer, units in patch.by_layer.items() for unit in units]
        parts = []
        with scoring(self.model) as seen:
            memory = Remembered(seen, patch.neurons.site, patch.by_layer)
            texts = source.batches(seen, language, min(TEXTS, self.rows))
            for batch in tqdm(texts, unit="batch", desc=language, leave=False, disable=not self.progress):
                memory.forget()
                with memory.remembering():
                    found = [batch.read(seen, 1)]
                for layer, given in values.items():
                    for chosen in torch.arange(len(given)).split(max(1, self.rows // len(batch.tokens))):
                        with memory.ablated(layer, chosen, given[chosen]):
                            found.append(batch.read(seen, len(chosen)))
                table = pd.DataFrame(np.concatenate(found).T, columns=pd.Index([UNPATCHED, *names]))
                _check_finite(table, width)
                table.insert(0, "item", batch.items)
                table.insert(1, "cluster", batch.clusters)
                parts.append(table)
        # Texts of one length share a batch; in this order clusters are resampled as those of the whole text are.
        return pd.concat(parts).sort_values("cluster", kind="stable", ignore_index=True)

    def _one_by_one(self, neurons: NeuronSet) -> dict[tuple, Job]:
        flat, width = neurons.members["all"], neurons.shape[1]
        if self.source.generates:
            return self._sets({str(one): replace(neurons, members={"all": flat[[i]]}) for i, one in enumerate(flat)})
        jobs, known = {}, _KnownTexts(self)
        for language in self.languages:
            patch = self._checked(flat, neurons, language)
            jobs[language, UNPATCHED] = Job((), self._about(language, UNPATCHED), partial(known.read, language, patch))
            for layer, units in patch.by_layer.items():
                for place, unit in enumerate(units.tolist()):
                    name = str(layer * width + unit)
                    about = self._about(language, self._checked(np.array([int(name)]), neurons, language).fingerprint)
                    jobs[language, name] = Job((), about, partial(known.ablated, language, patch, layer, place, name))
        return jobs


class _KnownTexts:
    """A task's texts in one language, remembered while its neurons are ablated one by one."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._language: str | None = None
        self._memory: Remembered | None = None

    def read(self, language: str, patch: Patch) -> pd.DataFrame:
        """Measure the unpatched model, and remember its texts."""
        seen = view(self._runner.model)
        self._memory = None  # of another language: gone before this one's is built up
        memory = Remembered(seen, patch.neurons.site, patch.by_layer)
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


def _check_finite(table: pd.DataFrame, width: int) -> None:
    """Refuse what nothing can be concluded from, at the first texts that give it."""
    wrong = [str(name) for name in table.columns if not np.isfinite(table[name].to_numpy(float)).all()]
    if UNPATCHED in wrong:
        raise EffectError("The unpatched model gives what is no finite number on some texts: what is measured?")
    if wrong:
        raise EffectError(
            f"Without {len(wrong)} of {table.shape[1] - 1} neurons, such as {divmod(int(wrong[0]), width)}, what is "
            "measured is no finite number on some texts: give another value=, or a dtype of larger range."
        )


def _values(patch: Patch) -> dict[int, Tensor]:
    """Each layer's values, one a neuron."""
    found = {}
    for layer, units in patch.by_layer.items():
        value = patch.values_of(layer)["value"]
        found[layer] = value if isinstance(value, Tensor) else torch.full((len(units),), float(value))
    return found


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
