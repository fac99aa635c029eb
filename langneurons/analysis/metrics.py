"""What is measured while neurons are ablated: the loss on a text, a score of a task, or a user's own number a text.

Each gives rows (item, cluster, value) under whatever is attached to the model. Texts also give them many neurons at a
time: batches whose rows are copies of the same texts, one copy a neuron.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.analysis.selectivity.texts import LabelledTexts
from langneurons.corpora import Blocks, Corpus
from langneurons.corpora.loading import distinct
from langneurons.effects.pairing import BASELINE, ROW
from langneurons.errors import EffectError, LanguageError, NeuronSetError, StatisticsError, TaskError, unknown
from langneurons.evaluation.heldout_text import HeldoutText, as_heldout_text, losses
from langneurons.identification.matching import random_stream
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView, view
from langneurons.patches.patch import SetTo, Value
from langneurons.recording.statistics import ActivationStats
from langneurons.tasks.batching import batches, front, scoring, token_ids
from langneurons.tasks.heads import pair_tokens
from langneurons.tasks.task import Task

LOSS = "nll"
COLUMNS = ("item", "cluster")
TEXTS = 8  # texts that share a forward before they are copied
Metric = Callable[[Tensor, Tensor, Tensor, Sequence[str]], Tensor]


@runtime_checkable
class Measured(Protocol):
    """Something that neurons may matter to."""

    @property
    def name(self) -> str:
        """What is measured."""
        ...

    @property
    def per(self) -> str:
        """What summed differences are divided by, as for ``ln.effects.effect``."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """A hash of everything that decides what comes out, but not of the model; None where it is unknown."""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it can be measured in."""
        ...

    @property
    def generates(self) -> bool:
        """Whether the model generates meanwhile, so that no forward is known before."""
        ...

    def rows(self, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
        """Measure a model with whatever is attached to it: item, cluster, value."""
        ...


@dataclass(frozen=True)
class Batch:
    """Texts that are read together, and how a number an item is read off a forward of copies of them.

    Attributes:
        tokens: Of the texts.
        items: Of the numbers that ``read`` gives.
        clusters: The same.
        read: From the model and a number of copies, each forward's rows one copy after the other, to the numbers.
    """

    tokens: Int[Tensor, "text position"]
    items: Sequence[Any]
    clusters: Sequence[Any]
    read: Callable[[ModelView, int], Float[np.ndarray, "copy item"]]


@runtime_checkable
class Streamed(Measured, Protocol):
    """Something measured on texts, whose forwards may hold many neurons."""

    def batches(self, seen: ModelView, language: str, batch_size: int) -> Iterator[Batch]:
        """The texts of a language, some at a time."""
        ...


@dataclass(frozen=True)
class TextLoss:
    """The loss on held-out text, in nats, summed over each document's counted tokens in each block."""

    text: HeldoutText
    name: str = LOSS
    per: str = BASELINE

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of the text."""
        return self.text.languages

    @property
    def generates(self) -> bool:
        """Never."""
        return False

    @property
    def fingerprint(self) -> str | None:
        """Of the text."""
        return self.text.fingerprint

    def rows(self, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
        """Score the text."""
        scored = self.text.score(model, batch_size, [language])
        return scored.rename(columns={LOSS: "value"}).loc[:, ["item", "cluster", "value"]]

    def batches(self, seen: ModelView, language: str, batch_size: int) -> Iterator[Batch]:
        """Blocks, or documents, with their losses."""
        for ordinals, blocks in self.text.batches(language, batch_size):
            document = blocks.document[blocks.counted].numpy()
            block = np.repeat(ordinals, blocks.counted.sum(1).numpy())
            starts = np.flatnonzero(np.diff(block, prepend=-1) | np.diff(document, prepend=-1))

            def read(seen: ModelView, copies: int, blocks: Blocks = blocks, starts: Any = starts) -> np.ndarray:
                nll = losses(seen, _copied(blocks, copies)).numpy().reshape(copies, -1)
                return np.add.reduceat(nll, starts, axis=1)

            alone = self.text.each == "document"
            items = [d if alone else f"{b}:{d}" for b, d in zip(block[starts], document[starts], strict=True)]
            yield Batch(blocks.tokens, items, document[starts].tolist(), read)


@dataclass(frozen=True)
class Numbers:
    """A user's own metric: one number a text.

    Attributes:
        metric: A function of (logits, tokens, mask, labels) that gives one number a row.
        texts: Language -> items, clusters, tokens and labels of texts.
        name: Of the metric.
        fingerprint: Of the metric and the texts, where the metric says its own.
        per: Differences are those of the mean.
    """

    metric: Metric
    texts: dict[str, pd.DataFrame]
    name: str
    fingerprint: str | None
    per: str = ROW

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of the texts."""
        return tuple(self.texts)

    @property
    def generates(self) -> bool:
        """Never."""
        return False

    def rows(self, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
        """Compute the number of every text."""
        with scoring(model) as seen:
            parts = [
                pd.DataFrame({"item": batch.items, "cluster": batch.clusters, "value": batch.read(seen, 1)[0]})
                for batch in self.batches(seen, language, batch_size)
            ]
        return pd.concat(parts, ignore_index=True)

    def batches(self, seen: ModelView, language: str, batch_size: int) -> Iterator[Batch]:
        """Texts with their numbers."""
        table = self.texts[language]
        for rows, tokens in batches(table["tokens"].tolist(), batch_size, seen.context_length):
            chosen = table.iloc[rows]
            lengths = torch.tensor([len(one) for one in chosen["tokens"]])
            mask = torch.arange(tokens.shape[1]) < lengths[:, None]

            def read(seen: ModelView, copies: int, tokens: Any = tokens, mask: Any = mask, chosen: Any = chosen) -> Any:
                found = self._read(seen, tokens.repeat(copies, 1), mask.repeat(copies, 1), [*chosen["label"]] * copies)
                return found.reshape(copies, -1)

            yield Batch(tokens, chosen["item"].tolist(), chosen["cluster"].tolist(), read)

    def _read(
        self,
        seen: ModelView,
        tokens: Int[Tensor, "row position"],
        mask: Bool[Tensor, "row position"],
        labels: list[str],
    ) -> Float[np.ndarray, " row"]:
        logits = seen.forward(tokens)
        assert logits is not None
        found = self.metric(logits, tokens.to(logits.device), mask.to(logits.device), labels)
        if not isinstance(found, Tensor) or found.shape != (len(tokens),):
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise EffectError(f"{self.name} should give a tensor of one number a row, ({len(tokens)},), not {given}.")
        return found.detach().double().cpu().numpy()


@dataclass(frozen=True)
class TaskScore:
    """A task's score, or the negative log-likelihood of its gold labels."""

    task: Task
    name: str

    @property
    def per(self) -> str:
        """Scores are compared as they are, losses relative to the unpatched model's."""
        return BASELINE if self.name == LOSS else ROW

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of the task."""
        return self.task.languages

    @property
    def generates(self) -> bool:
        """As the task."""
        return self.task.generates

    @property
    def fingerprint(self) -> str | None:
        """Of the task and the score."""
        return storage.fingerprint(self.task.fingerprint, self.name)

    def rows(self, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
        """Score every item."""
        found = self.task.measure(model, language, batch_size)
        if self.name in self.task.metrics:
            return found[["item", "cluster"]].assign(value=found[self.name].astype(float))
        columns = {str(label): f"score_{label}" for label in found["gold"].unique()}
        if self.name != LOSS or not set(columns.values()) <= set(found.columns):
            raise EffectError(unknown(f"metric of task {self.task.name!r}", self.name, self.task.metrics))
        nll = [-float(row[columns[str(row["gold"])]]) for row in found.to_dict("records")]
        return found[["item", "cluster"]].assign(value=nll)


def measured(model: torch.nn.Module, data: Any, metric: str | Metric) -> Measured:
    """Find what to measure.

    Args:
        model: From ``load_model``.
        data: Held-out text, a corpus, a task, or texts with labels.
        metric: A name, or a function of (logits, tokens, mask, labels).

    Raises:
        EffectError: If the metric is not one of the data's.
        TaskError: If the data is nothing of that kind.
    """
    if callable(metric):
        return numbers(view(model), data, metric)
    if isinstance(data, Corpus | HeldoutText):
        if metric != LOSS:
            raise EffectError(unknown("metric of a text", metric, [LOSS, "or a function"]))
        return TextLoss(as_heldout_text(model, data))
    if isinstance(data, Task):
        return TaskScore(data, metric)
    raise TaskError(
        f"Neurons are ablated on a corpus, a HeldoutText or a task such as ln.XNLI, not on a {type(data).__name__}; "
        "on texts with labels, give metric= a function."
    )


def numbers(seen: ModelView, data: Any, metric: Metric) -> Numbers:
    """Read texts for a user's metric: documents labelled by their language, or texts with labels of their own.

    Raises:
        EffectError: If the text is held in blocks: a number a row then belongs to several documents.
        TaskError: If the data holds no texts with labels.
    """
    if isinstance(data, HeldoutText):
        raise EffectError(
            "A function gives one number a text, and a HeldoutText is tokenised for losses: give the corpus itself, "
            "whose documents are then read one by one."
        )
    if isinstance(data, Corpus):
        texts = {name: _documents(data, name) for name in data.languages}
    else:
        texts = {name: table.astype({"label": str}) for name, table in LabelledTexts.of(data).items.items()}
    known, name = getattr(metric, "fingerprint", None), getattr(metric, "__name__", type(metric).__name__)
    if name in COLUMNS:
        raise EffectError(f"A function called {name!r} would be taken for a column of that name: call it otherwise.")
    content = [part for name, table in texts.items() for part in (name, repr(table.to_dict("list")))]
    return Numbers(
        metric,
        {name: _tokenised(seen, table) for name, table in texts.items()},
        name,
        None if known is None else storage.fingerprint(str(known), *content),
    )


def check_languages(source: Measured, languages: Iterable[str] | None) -> list[str]:
    """The languages to measure; None is all.

    Raises:
        LanguageError: If there is none, or one is not among the data's.
    """
    chosen = list(source.languages) if languages is None else distinct(languages)
    for language in chosen:
        if language not in source.languages:
            raise LanguageError(unknown("language", language, source.languages))
    return chosen


def check_clusters(source: Measured, seen: ModelView, languages: Sequence[str]) -> None:
    """Refuse texts that no effect can be estimated on, before anything is run.

    Raises:
        EffectError: If a language's texts are one cluster, because clusters are what is resampled.
    """
    if not isinstance(source, Streamed):
        return
    for language in languages:
        known = {cluster for batch in source.batches(seen, language, TEXTS) for cluster in batch.clusters}
        if len(known) < 2:
            raise EffectError(
                f"The text of {language!r} is one document, or one cluster: an effect needs at least two, because they "
                "are what is resampled."
            )


def _documents(corpus: Corpus, language: str) -> pd.DataFrame:
    texts = list(corpus[language])
    return pd.DataFrame({"item": range(len(texts)), "cluster": range(len(texts)), "text": texts, "label": language})


def _tokenised(seen: ModelView, table: pd.DataFrame) -> pd.DataFrame:
    """Texts as tokens, cut where they exceed the context."""
    texts = table["text"].tolist()
    if texts and isinstance(texts[0], tuple):
        tokens, _ = pair_tokens(seen, texts)
    else:
        start = front(seen)
        tokens = [(*start, *ids)[: seen.context_length] for ids in token_ids(seen, texts)]
    return table.assign(tokens=[tuple(one) for one in tokens])


def _copied(blocks: Blocks, copies: int) -> Blocks:
    parts = (blocks.tokens, blocks.counted, blocks.document, blocks.attention_mask, blocks.place)
    return Blocks(*(part.repeat(copies, 1) for part in parts))


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


@dataclass(frozen=True, eq=False)
class Controls:
    """How control neurons are drawn: outside the set, of the same layers and deciles of magnitude.

    Args:
        number: How many a label.
        stats: Statistics to match magnitudes by; None matches layers only.
        seed: Of the draws.
    """

    number: int
    stats: ActivationStats | None
    seed: int

    def neurons(self, neurons: NeuronSet) -> dict[str, NeuronSet]:
        """Draw single neurons for every label, composed as the label is; fewer than asked where draws coincide.

        Raises:
            NeuronSetError: If a layer, or a decile of it, has too few neurons outside the set: nothing is padded.
        """
        found = {}
        for label in neurons.languages if self.number else ():
            drawn = self.sets(neurons, label, -(-self.number // len(neurons[label])))
            flat = np.unique(np.concatenate([one.members[label] for one in drawn]))
            kept = random_stream(self.seed, "pooled controls", label).permutation(flat)[: self.number]
            found[label] = replace(neurons, members={label: np.sort(kept)})
        return found

    def sets(self, neurons: NeuronSet, label: str, draws: int | None = None) -> list[NeuronSet]:
        """Draw whole sets for a label; none of their neurons carries any label.

        Raises:
            NeuronSetError: As ``neurons``.
        """
        match = "layer" if self.stats is None else "layer+magnitude"
        return [
            neurons[label].matched_control(self.stats, self.seed * 10_007 + draw, match, exclude=neurons)
            for draw in range(self.number if draws is None else draws)
        ]


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


def joined(sets: Iterable[NeuronSet]) -> NeuronSet:
    """All neurons of several sets of one model, under one label."""
    first, *others = sets
    flat = np.unique(np.concatenate([members for one in (first, *others) for members in one.members.values()]))
    return replace(first, members={"all": flat})
