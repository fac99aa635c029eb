"""Text to train on and to judge by: next-token prediction of packed blocks, and the loss on held-out text."""

import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from langneurons import storage
from langneurons.corpora import Blocks, Corpus, PackedCorpus, pack
from langneurons.corpora.languages import distinct, label_of
from langneurons.corpora.packing import tokenizer_fingerprint
from langneurons.errors import CorpusError, TrainingError
from langneurons.evaluation.heldout_text import HeldoutText, usual_context_length
from langneurons.models import ModelView
from langneurons.settings import Training
from langneurons.tasks.batching import tokenizer_of
from langneurons.tasks.heads import Head
from langneurons.tasks.task import Task

Text = Corpus | PackedCorpus | HeldoutText
OF_TASKS = ("loss_on", "position", "positions")  # fields of Training that say nothing about text
_READ_AT_ONCE = 256


class NextToken:
    """Packed text, of which every counted token is predicted from the tokens before it.

    Blocks of all languages are shuffled together, and a step's loss is a mean over its tokens: a language counts by its
    tokens, which are equally many for each language of a corpus that is packed here.

    Args:
        model_view: View of the model.
        text: A corpus, which is packed as ``HeldoutText.of`` packs it, or text that is packed already.
        languages: Languages to train on, together; by default all.

    Raises:
        CorpusError: If there is no text.
        LanguageError: If the text lacks a language.
        ModelError: If the model has no tokenizer.
        TrainingError: If the text was packed with another tokenizer, or in blocks longer than the model's context.
    """

    def __init__(self, model_view: ModelView, text: Text, languages: Iterable[str] | None = None) -> None:
        if not text.languages:
            raise CorpusError("The corpus to train on is empty: it has no language.")
        names = list(text.languages) if languages is None else distinct(languages, text.languages)
        if isinstance(text, Corpus):
            text = _packed(model_view, text.select(names))
        self._each = text.each if isinstance(text, HeldoutText) else "block"
        self._packed = {name: text.packed[name] if isinstance(text, HeldoutText) else text for name in names}
        self._keep = text  # a packed corpus may lie in a temporary folder, which lives as long as it does
        for packed in self._packed.values():
            _check_fits(model_view, packed)
        examples = pd.concat([self._examples(name) for name in names], ignore_index=True)
        examples = examples.loc[examples["tokens"] > 0]
        self._language, self._ordinal = examples["language"].to_numpy(), examples["ordinal"].to_numpy(np.int64)
        self.lengths = examples["length"].to_numpy(np.int64)
        self.weights = examples["tokens"].to_numpy(np.int64)
        fingerprints = [f"{name} {packed.fingerprints[name]}" for name, packed in self._packed.items()]
        self.fingerprint = storage.fingerprint("next token", self._each, *fingerprints)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Nothing: only updates are trained."""
        return {}

    def loss(self, model_view: ModelView, rows: Int[np.ndarray, " row"]) -> Float[Tensor, ""]:
        """Negative log-likelihood of the counted tokens of some blocks, in nats, summed."""
        tokens, counted = self._read(rows)
        return model_view.predictions(tokens, counted).loss(tokens[counted])

    def head(self) -> None:
        """None."""

    def ask(self, task: Task) -> Task:
        """The task itself: a language model answers it as ever."""
        return task

    def _blocks(self, language: str, ordinals: np.ndarray) -> Blocks:
        packed = self._packed[language]
        return (packed.blocks if self._each == "block" else packed.texts)(language, ordinals)

    def _examples(self, language: str) -> pd.DataFrame:
        """Every block of a language: its ordinal, its length, and its tokens that are predicted."""
        packed = self._packed[language]
        number = packed.n_blocks(language) if self._each == "block" else packed.about[language].texts
        parts = []
        for start in range(0, number, _READ_AT_ONCE):
            ordinals = np.arange(start, min(start + _READ_AT_ONCE, number))
            blocks = self._blocks(language, ordinals)
            about = {"length": blocks.attention_mask.sum(1).numpy(), "tokens": blocks.counted.sum(1).numpy()}
            parts.append(pd.DataFrame({"language": language, "ordinal": ordinals, **about}))
        return pd.concat(parts, ignore_index=True)

    def _read(self, rows: np.ndarray) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        """The tokens of some blocks, without the padding that all of them have, and which of them are counted."""
        length = int(self.lengths[rows].max())
        tokens = torch.zeros(len(rows), length, dtype=torch.int64)
        counted = torch.zeros(len(rows), length, dtype=torch.bool)
        for language in dict.fromkeys(self._language[rows]):
            places = np.flatnonzero(self._language[rows] == language)
            blocks = self._blocks(language, self._ordinal[rows[places]])
            width = min(length, blocks.tokens.shape[1])
            tokens[places, :width], counted[places, :width] = blocks.tokens[:, :width], blocks.counted[:, :width]
        return tokens, counted


@dataclass(frozen=True)
class TextTask(Task):
    """Text as a task: next-token prediction is what a model is trained on, and what it is measured by.

    Args:
        text: The text; only a ``HeldoutText`` can be measured.
    """

    per: ClassVar[Mapping[str, str]] = {"bits_per_byte": "bytes", "nll": "tokens"}

    text: Text

    @property
    def name(self) -> str:
        """``"text"``."""
        return "text"

    @property
    def protocol(self) -> str:
        """``"next token"``."""
        return "next token"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Bits per byte, and nats per token; lower is better."""
        return tuple(self.per)

    @property
    def generates(self) -> bool:
        """False."""
        return False

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the text."""
        return self.text.languages

    @property
    def fingerprint(self) -> str:
        """A hash of the text and how it is read."""
        text = self.text
        return storage.fingerprint(*text.fingerprints.values()) if isinstance(text, PackedCorpus) else text.fingerprint

    def measure(self, model: nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Measure the loss on the text of one language.

        Args:
            model: The model the text was tokenised for.
            language: Language of the text.
            batch_size: Blocks per forward pass.

        Returns:
            One row per stretch of a text: item, cluster, prediction and gold (empty), bits_per_byte and nll (bits, and
            nats, summed over the row), and what these are divided by: bytes and tokens.
        """
        rows = heldout(model, self.text).score(model, batch_size, [language])
        return rows.assign(prediction="", gold="", bits_per_byte=rows["nll"] / np.log(2))

    def references(self, language: str) -> dict[str, float]:
        """None."""
        return {}

    def objective(
        self,
        model_view: ModelView,
        languages: Iterable[str] | None = None,
        training: Training = Training(),
        head: Head | None = None,
    ) -> NextToken:
        """Next-token prediction.

        Args:
            model_view: View of the model.
            languages: Languages to train on, together; by default all.
            training: Settings of the training.
            head: None.

        Raises:
            TrainingError: If an option is given that only tasks have.
            LangNeuronsError: If ``NextToken`` refuses the text.
        """
        if head is not None:
            raise TrainingError(
                "Text is predicted by the model itself, so there is no head to start from: leave head= away."
            )
        usual = Training()
        for name in OF_TASKS:
            if (value := getattr(training, name)) != getattr(usual, name):
                raise TrainingError(
                    f"{name}={value!r} is an option of tasks: of text every counted token is predicted."
                )
        return NextToken(model_view, self.text, languages)


def as_task(data: object) -> Task:
    """A task; text becomes one.

    Args:
        data: A task, a corpus, or packed text.

    Raises:
        TrainingError: If it is neither.
    """
    if isinstance(data, Text):
        return TextTask(data)
    if not isinstance(data, Task):
        raise TrainingError(
            f"A task is an XNLI, an XQuAD or another Task, and text a corpus or packed, not {type(data).__name__}."
        )
    return data


def to_judge_by(model: nn.Module, data: object) -> Task:
    """A task that can be measured; text becomes one, and a corpus is packed once.

    Args:
        model: A model returned by ``load_model``.
        data: A task, a corpus, or a ``HeldoutText``.

    Raises:
        TrainingError: If it is something else.
    """
    task = as_task(data)
    return TextTask(heldout(model, task.text)) if isinstance(task, TextTask) else task


def heldout(model: nn.Module, text: Text) -> HeldoutText:
    """Text that a loss can be measured on.

    Raises:
        TrainingError: If bytes cannot be counted, because only tokens are there.
    """
    if isinstance(text, PackedCorpus):
        raise TrainingError(
            "A PackedCorpus holds no bytes to measure bits per byte by: give a HeldoutText, as HeldoutText.of makes."
        )
    return HeldoutText.of(model, text)


def level(task: Task, rows: pd.DataFrame, metric: str) -> float:
    """What rows of a task are worth together.

    Args:
        task: The task.
        rows: Rows that it measured in one language.
        metric: One of its metrics.

    Returns:
        Their mean; of text, the sum over what its metric is counted by.
    """
    values = rows[metric].to_numpy(float)
    return float(values.sum() / rows[task.per[metric]].sum() if isinstance(task, TextTask) else values.mean())


def weighted(task: Task, rows: pd.DataFrame, long: pd.DataFrame) -> pd.DataFrame:
    """Long rows with what each value is counted by: 1, or on text the bytes or tokens that it is a sum over.

    Args:
        task: The task.
        rows: Its rows, one per item.
        long: The same rows, one per item and metric.
    """
    if not isinstance(task, TextTask):
        return long.assign(weight=1.0)
    return long.assign(weight=np.concatenate([rows[task.per[metric]].to_numpy(float) for metric in task.metrics]))


def packed_once(model_view: ModelView, task: Task, language: str) -> Task:
    """A task to train on many times: of a corpus, the text of one language, packed.

    Args:
        model_view: View of the model.
        task: The task.
        language: The language.

    Raises:
        LanguageError: If a corpus lacks it.
    """
    if not isinstance(task, TextTask) or not isinstance(task.text, Corpus):
        return task
    label = label_of(language, task.languages, "training language")
    return TextTask(_packed(model_view, task.text.select([label])))


def check_other_text(task: TextTask, test: TextTask, language: str, name: str) -> None:
    """Refuse held-out text that is trained on.

    Args:
        task: Packed text to train on, or that decides which parameters are kept.
        test: Held-out text.
        language: The language of the training.
        name: Purpose of the task: "training" or "dev".

    Raises:
        TrainingError: If both hold the same texts.
    """
    sources = []
    for text in (task.text, test.text):
        label = label_of(language, text.languages)
        packed = text.packed[label] if isinstance(text, HeldoutText) else text
        sources.append(packed.about[label].source if isinstance(packed, PackedCorpus) else None)
    if sources[0] is not None and sources[0] == sources[1]:
        raise TrainingError(
            f"The test's texts in {language!r} are the {name} text: hold some out, as by corpus.split()."
        )


def _packed(model_view: ModelView, corpus: Corpus) -> PackedCorpus:
    """A corpus packed by the rule of ``HeldoutText.of``, in a temporary folder that lives as long as it does."""
    with ExitStack() as stack:
        folder = stack.enter_context(storage.temporary_folder())
        packed = pack(corpus, tokenizer_of(model_view), usual_context_length(model_view), folder)
        weakref.finalize(packed, stack.pop_all().close)
    return packed


def _check_fits(model_view: ModelView, packed: PackedCorpus) -> None:
    if packed.context_length > model_view.context_length:
        raise TrainingError(
            f"The text is packed in blocks of {packed.context_length} positions, and {model_view.name!r} takes "
            f"{model_view.context_length}: pack it with a context_length of at most that."
        )
    tokenizer = tokenizer_of(model_view)
    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    if not fast or packed.made_from["tokenizer"] != tokenizer_fingerprint(tokenizer):
        raise TrainingError(
            f"The text was packed with another tokenizer than that of {model_view.name!r}: pack it for this model."
        )
