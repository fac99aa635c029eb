"""What a fine-tuning minimises: the loss of a classification head, or of the answers a model should generate."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from langneurons import storage
from langneurons.errors import TaskError, TrainingError, unknown
from langneurons.models import ModelView
from langneurons.settings import Training
from langneurons.tasks.batching import Tokens, right_padded
from langneurons.tasks.heads import ClassificationHead, Head, head_tokens, pairs_of
from langneurons.tasks.task import Task

Example = tuple[Sequence[int], Sequence[int]]
_IGNORED = -100


class Classifying:
    """A linear layer on one hidden state of ``premise <eos> hypothesis``, and its cross-entropy.

    Args:
        model_view: View of the model.
        items: Table of premise, hypothesis and label.
        training: Settings of the training: position, positions and seed.
        head: Head to start from; by default a random one.
        labels: All labels there are; by default those of ``head``, else those of the items, sorted.

    Raises:
        TaskError: If a label is not among the classes, or the tokenizer has nothing to put between two texts.
        TrainingError: If the model takes fewer positions, or ``head`` is no linear layer.
    """

    def __init__(
        self,
        model_view: ModelView,
        items: pd.DataFrame,
        training: Training = Training(),
        head: Head | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        if training.position == "padding" and not training.positions <= model_view.context_length:
            raise TrainingError(
                f"{model_view.name!r} takes 1 to {model_view.context_length} tokens, so pairs cannot be padded to "
                f"{training.positions}."
            )
        if not isinstance(head, ClassificationHead | None):
            raise TrainingError(f"A ClassificationHead can be trained, not a {type(head).__name__}.")
        golds = [str(label) for label in items["label"]]
        if head is not None:
            labels = head.labels
        self._labels = tuple(sorted(set(golds)) if labels is None else labels)
        for label in golds:
            if label not in self._labels:
                raise TaskError(unknown("label", label, self._labels))
        if len(self._labels) < 2:
            raise TaskError(f"A head is trained on at least two labels, not on {', '.join(self._labels) or 'none'}.")
        self._model, self._training = model_view.fingerprint, training
        self._targets = torch.tensor([self._labels.index(label) for label in golds])
        self._tokens, self._mask = head_tokens(model_view, pairs_of(items), training.position, training.positions)
        self.lengths = np.array([len(tokens) for tokens in self._tokens], np.int64)
        self.weights = np.ones(len(golds), np.int64)
        parts = (training.position, str(training.positions), *self._labels, *golds)
        self.fingerprint = storage.fingerprint(*parts, *map(_text, self._tokens))
        weight, bias = _random_head(model_view, len(self._labels), training.seed)
        if head is not None:
            weight, bias = head.weight.detach().float(), head.bias.detach().float()
        self._weight, self._bias = (nn.Parameter(value.to(model_view.device, copy=True)) for value in (weight, bias))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Weight and bias of the head."""
        return {"head.weight": self._weight, "head.bias": self._bias}

    def loss(self, model_view: ModelView, rows: Int[np.ndarray, " row"]) -> Float[Tensor, ""]:
        """Cross-entropy of some pairs, summed."""
        tokens = right_padded([self._tokens[row] for row in rows])
        states = model_view.hidden(tokens, None if self._mask is None else self._mask[rows])
        last = torch.from_numpy(self.lengths[rows] - 1)
        # In single precision under autocast too, as the head is read when it is evaluated.
        with torch.autocast(states.device.type, enabled=False):
            read = states[torch.arange(len(rows)), last.to(states.device)].float()
            logits = functional.linear(read, self._weight, self._bias)
            return functional.cross_entropy(logits, self._targets[rows].to(logits.device), reduction="sum")

    def head(self) -> Head:
        """A copy of the head in its present state."""
        weight, bias = (parameter.detach().cpu().clone() for parameter in (self._weight, self._bias))
        place: dict[str, Any] = {"position": self._training.position, "positions": self._training.positions}
        return cast(Head, ClassificationHead(weight, bias, self._labels, self._model, **place))

    def ask(self, task: Task) -> Task:
        """A task answered by the head in its present state."""
        answered = task.with_head(self.head())
        if answered is task:
            raise TrainingError(
                f"A trained head cannot be tested by {task.name!r}: give a task that one can answer, such as XNLI."
            )
        return answered


class Answering:
    """The tokens of right answers, and the end of the text behind them.

    Args:
        examples: Token ids of each prompt, and of the answer with its end.
        training: Settings of the training: ``loss_on``.
        protocol: Protocol of the tasks that what is trained can answer.
    """

    def __init__(
        self, examples: Iterable[Example], training: Training = Training(), protocol: str = "generation"
    ) -> None:
        self._protocol = protocol
        self._tokens: list[Tokens] = []
        firsts: list[int] = []
        for prompt, answer in examples:
            self._tokens.append((*prompt, *answer))
            firsts.append(len(prompt) if training.loss_on == "answer" else 1)
        self._firsts = np.array(firsts, np.int64)
        self.lengths = np.array([len(tokens) for tokens in self._tokens], np.int64)
        self.weights = self.lengths - self._firsts
        self.fingerprint = storage.fingerprint(training.loss_on, *map(str, firsts), *map(_text, self._tokens))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Nothing: only updates are trained."""
        return {}

    def loss(self, model_view: ModelView, rows: Int[np.ndarray, " row"]) -> Float[Tensor, ""]:
        """Negative log-likelihood of the answers to some prompts, in nats, summed over tokens."""
        tokens = right_padded([self._tokens[row] for row in rows])
        place, first = torch.arange(tokens.shape[1]), torch.from_numpy(self._firsts[rows])[:, None]
        counts = (place >= first) & (place < torch.from_numpy(self.lengths[rows])[:, None])
        targets = tokens.masked_fill(~counts, _IGNORED)[:, 1:]
        start = int(self._firsts[rows].min()) - 1
        # Logits of the positions before answers only: those of all would fill the memory for a large vocabulary.
        logits = model_view.logits_at(tokens, range(start, tokens.shape[1] - 1))
        flat = rearrange(targets[:, start:], "row position -> (row position)").to(logits.device)
        scores = rearrange(logits, "row position token -> (row position) token").float()
        return functional.cross_entropy(scores, flat, ignore_index=_IGNORED, reduction="sum")

    def head(self) -> None:
        """None."""

    def ask(self, task: Task) -> Task:
        """The task itself."""
        if task.protocol != self._protocol:
            kind = "that generates, such as XQuAD" if self._protocol == "generation" else f"by {self._protocol}"
            raise TrainingError(f"Trained answers cannot be tested by {task.name!r}: give a task {kind}.")
        return task


def _random_head(model_view: ModelView, labels: int, seed: int) -> tuple[Tensor, Tensor]:
    d_model: int = model_view.model.cfg.d_model
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(labels, d_model, generator=generator) / d_model, torch.zeros(labels)


def _text(tokens: Tokens) -> str:
    return " ".join(map(str, tokens))
