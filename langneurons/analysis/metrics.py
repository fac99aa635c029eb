"""What is measured while neurons are ablated, and what the neurons are set to.

A metric gives rows (item, cluster, value) under whatever is attached to the model: the loss on a text, a score of a
task, or a function's number per text. Metrics of texts can also measure many neurons at once, in batches whose rows are
copies of the same texts, one copy per neuron.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.analysis.texts import LabelledTexts
from langneurons.corpora import Blocks, Corpus
from langneurons.corpora.languages import distinct
from langneurons.effects.pairing import BASELINE, ROW
from langneurons.errors import EffectError, StatisticsError, TaskError, unknown
from langneurons.evaluation.heldout_text import HeldoutText, losses
from langneurons.identification import NeuronSet
from langneurons.models import ModelView, view
from langneurons.patches.patch import SetTo, Value
from langneurons.recording.statistics import ActivationStats
from langneurons.tasks.batching import batches, front, scoring, token_ids
from langneurons.tasks.heads import pair_tokens
from langneurons.tasks.task import Task

LOSS = "nll"
MEAN = "mean"
COLUMNS = ("item", "cluster")
TEXTS = 8  # texts that share a forward pass before they are copied
MetricFunction = Callable[[Tensor, Tensor, Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class Metric(ABC):
    """Something that neurons may matter to.

    Attributes:
        name: Name of what is measured.
        per: What summed differences are divided by, see ``ln.effects.effect``.
        languages: The languages it can be measured in.
        fingerprint: A hash of everything but the model that decides what comes out; None where that is unknown.
        generates: Whether the model generates while it is measured, so that no forward pass is known beforehand.
    """

    name: str
    per: str
    languages: tuple[str, ...]
    fingerprint: str | None
    generates: bool = False

    @abstractmethod
    def rows(self, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
        """Measure a model with whatever is attached to it: item, cluster, value."""


@dataclass(frozen=True)
class Batch:
    """Texts that are read together, and how one number per item is read off a forward pass of copies of them.

    Attributes:
        tokens: Tokens of the texts.
        items: Items that ``read`` gives numbers for.
        clusters: Clusters of these items.
        read: From the model and a number of copies to the numbers; a forward pass has one copy after the other.
    """

    tokens: Int[Tensor, "text position"]
    items: Sequence[Any]
    clusters: Sequence[Any]
    read: Callable[[ModelView, int], Float[np.ndarray, "copy item"]]


class TextMetric(Metric):
    """Something measured on texts, whose forward passes may hold many neurons."""

    def rows(self, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
        """Measure every item."""
        with scoring(model) as model_view:
            parts = [
                pd.DataFrame({"item": batch.items, "cluster": batch.clusters, "value": batch.read(model_view, 1)[0]})
                for batch in self.batches(model_view, language, batch_size)
            ]
        return pd.concat(parts, ignore_index=True)

    @abstractmethod
    def batches(self, model_view: ModelView, language: str, batch_size: int) -> Iterator[Batch]:
        """The texts of a language, some at a time."""


@dataclass(frozen=True, kw_only=True)
class TextLoss(TextMetric):
    """The loss on held-out text, in nats, summed over each document's counted tokens in each block."""

    text: HeldoutText

    def rows(self, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
        """Score the text."""
        scored = self.text.score(model, batch_size, [language])
        return scored.rename(columns={LOSS: "value"}).loc[:, ["item", "cluster", "value"]]

    def batches(self, model_view: ModelView, language: str, batch_size: int) -> Iterator[Batch]:
        """Blocks, or documents, with their losses."""
        for ordinals, blocks in self.text.batches(language, batch_size):
            stretches = self.text.stretches(language, ordinals, blocks)
            read = partial(_summed_losses, blocks, stretches["start"].to_numpy())
            yield Batch(blocks.tokens, stretches["item"].tolist(), stretches["cluster"].tolist(), read)


@dataclass(frozen=True, kw_only=True)
class FunctionMetric(TextMetric):
    """A user's own metric: one number per text, of which differences of means are taken.

    Attributes:
        function: A function of (logits, tokens, mask, labels) that gives one number per row.
        texts: Language -> items, clusters, tokens and labels of texts.
    """

    function: MetricFunction
    texts: dict[str, pd.DataFrame]

    @classmethod
    def of(cls, model_view: ModelView, data: object, function: MetricFunction) -> "FunctionMetric":
        """Read texts for a function: documents labelled by their language, or texts with labels of their own.

        Raises:
            EffectError: If the text is held in blocks: a number per row then belongs to several documents.
            TaskError: If the data holds no texts with labels.
        """
        if isinstance(data, HeldoutText):
            raise EffectError(
                "A function gives one number per text, and a HeldoutText is tokenised for losses: give the corpus "
                "itself, whose documents are then read one by one."
            )
        if isinstance(data, Corpus):
            texts = {language: _documents(data, language) for language in data.languages}
        else:
            texts = {name: table.astype({"label": str}) for name, table in LabelledTexts.of(data).items.items()}
        version, name = getattr(function, "fingerprint", None), getattr(function, "__name__", type(function).__name__)
        if name in COLUMNS:
            raise EffectError(f"A function called {name!r} would be taken for a column of that name: rename it.")
        content = [part for language, table in texts.items() for part in (language, repr(table.to_dict("list")))]
        fingerprint = None if version is None else storage.fingerprint(str(version), *content)
        tokenised = {language: _tokenised(model_view, table) for language, table in texts.items()}
        return cls(name, ROW, tuple(texts), fingerprint, function=function, texts=tokenised)

    def batches(self, model_view: ModelView, language: str, batch_size: int) -> Iterator[Batch]:
        """Texts with their numbers."""
        table = self.texts[language]
        for rows, tokens in batches(table["tokens"].tolist(), batch_size, model_view.context_length):
            texts = table.iloc[rows]
            read = partial(self._values, texts, tokens)
            yield Batch(tokens, texts["item"].tolist(), texts["cluster"].tolist(), read)

    def _values(
        self, texts: pd.DataFrame, tokens: Int[Tensor, "text position"], model_view: ModelView, copies: int
    ) -> Float[np.ndarray, "copy text"]:
        lengths, labels = torch.tensor([len(ids) for ids in texts["tokens"]]), texts["label"].tolist()
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).repeat(copies, 1)
        tokens = tokens.repeat(copies, 1)
        logits = model_view.forward(tokens)
        assert logits is not None
        values = self.function(logits, tokens.to(logits.device), mask.to(logits.device), labels * copies)
        if not isinstance(values, Tensor) or values.shape != (len(tokens),):
            what = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise EffectError(f"{self.name} should give a tensor of one number per row, ({len(tokens)},), not {what}.")
        return values.detach().double().cpu().numpy().reshape(copies, -1)


@dataclass(frozen=True, kw_only=True)
class TaskScore(Metric):
    """A task's score, or the negative log-likelihood of its gold labels."""

    task: Task

    def rows(self, model: torch.nn.Module, language: str, batch_size: int) -> pd.DataFrame:
        """Score every item."""
        answers = self.task.measure(model, language, batch_size)
        if self.name in self.task.metrics:
            return answers[["item", "cluster"]].assign(value=answers[self.name].astype(float))
        columns = {str(label): f"score_{label}" for label in answers["gold"].unique()}
        if self.name != LOSS or not set(columns.values()) <= set(answers.columns):
            raise EffectError(unknown(f"metric of task {self.task.name!r}", self.name, self.task.metrics))
        nll = [-float(row[columns[str(row["gold"])]]) for row in answers.to_dict("records")]
        return answers[["item", "cluster"]].assign(value=nll)


def metric_of(model: torch.nn.Module, data: object, metric: str | MetricFunction) -> Metric:
    """Find what to measure.

    Args:
        model: A model returned by ``load_model``.
        data: Held-out text, a corpus, a task, or texts with labels.
        metric: A name, or a function of (logits, tokens, mask, labels).

    Raises:
        EffectError: If the metric is not one of the data's.
        TaskError: If the data is nothing of that kind.
    """
    if callable(metric):
        return FunctionMetric.of(view(model), data, metric)
    if isinstance(data, Corpus | HeldoutText):
        if metric != LOSS:
            raise EffectError(unknown("metric of a text", metric, [LOSS, "or a function"]))
        text = HeldoutText.of(model, data)
        return TextLoss(LOSS, BASELINE, text.languages, text.fingerprint, text=text)
    if isinstance(data, Task):
        # Differences of scores are taken as they are, of the loss relative to the unpatched model's.
        per, fingerprint = BASELINE if metric == LOSS else ROW, storage.fingerprint(data.fingerprint, metric)
        return TaskScore(metric, per, data.languages, fingerprint, data.generates, task=data)
    raise TaskError(
        f"Neurons are ablated on a corpus, a HeldoutText or a task such as ln.XNLI, not on a {type(data).__name__}; "
        "on texts with labels, give metric= a function."
    )


def measured_languages(available: Iterable[str], languages: Iterable[str] | None) -> list[str]:
    """The languages to measure, among those of the data; by default all.

    Raises:
        LanguageError: If there is none, or one is not among the data's.
    """
    possible = list(available)
    return possible if languages is None else distinct(languages, possible)


def check_clusters(metric: Metric, model_view: ModelView, languages: Sequence[str]) -> None:
    """Refuse texts that no effect can be estimated on, before anything is run.

    Raises:
        EffectError: If a language's texts are one cluster, because clusters are what is resampled.
    """
    if not isinstance(metric, TextMetric):
        return
    for language in languages:
        clusters = {cluster for batch in metric.batches(model_view, language, TEXTS) for cluster in batch.clusters}
        if len(clusters) < 2:
            raise EffectError(
                f"The text of {language!r} is one document, or one cluster: an effect needs at least two, because they "
                "are what is resampled."
            )


@dataclass(frozen=True, eq=False)
class AblationValue:
    """What ablated neurons are set to.

    Attributes:
        value: A number, ``"mean"`` (each neuron's mean in the measured language), SiteValues, or one number per neuron
            of the model.
        stats: Statistics that ``"mean"`` is read from.
    """

    value: Value | str
    stats: ActivationStats | None

    @classmethod
    def of(
        cls, value: Value | str, stats: ActivationStats | None, neurons: NeuronSet, controls: int = 0
    ) -> "AblationValue":
        """Check a value, and spread one number per neuron of a set over the model.

        Raises:
            StatisticsError: If ``"mean"`` has no statistics, or the value is another word.
            EffectError: If controls have no value.
        """
        if isinstance(value, str) and (value != MEAN or stats is None):
            lacking = "The mean is read from statistics: give stats=." if value == MEAN else ""
            raise StatisticsError(lacking or unknown("value", value, [MEAN, "a number", "SiteValues", "a tensor"]))
        if isinstance(value, Tensor) and value.ndim == 1:
            if controls:
                raise EffectError(
                    "One number per neuron of the set cannot be read at control neurons: give SiteValues, or numbers "
                    "of all neurons of the model, or controls=0."
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

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return "set to the mean of each measured language"
        return "set to given values" if isinstance(self.value, Tensor) and self.value.ndim else f"set to {self.value}"


def _documents(corpus: Corpus, language: str) -> pd.DataFrame:
    texts = list(corpus[language])
    return pd.DataFrame(
        {"item": range(len(texts)), "cluster": corpus.groups(language), "text": texts, "label": language}
    )


def _tokenised(model_view: ModelView, table: pd.DataFrame) -> pd.DataFrame:
    """Texts as tokens, cut where they exceed the context."""
    texts = table["text"].tolist()
    if texts and isinstance(texts[0], tuple):
        tokens, _ = pair_tokens(model_view, texts)
    else:
        start = front(model_view)
        tokens = [(*start, *ids)[: model_view.context_length] for ids in token_ids(model_view, texts)]
    return table.assign(tokens=[tuple(ids) for ids in tokens])


def _summed_losses(
    blocks: Blocks, starts: Int[np.ndarray, " item"], model_view: ModelView, copies: int
) -> Float[np.ndarray, "copy item"]:
    parts = (blocks.tokens, blocks.counted, blocks.text, blocks.attention_mask, blocks.place)
    copied = Blocks(*(repeat(part, "block position -> (copy block) position", copy=copies) for part in parts))
    return np.add.reduceat(losses(model_view, copied).numpy().reshape(copies, -1), starts, axis=1)
