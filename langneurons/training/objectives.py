"""What a fine-tuning minimises: the loss of a classification head, or of the answers a model should generate."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from langneurons import storage
from langneurons.errors import LanguageError, TaskError, TrainingError, unknown
from langneurons.models import ModelView
from langneurons.tasks.batching import Tokens
from langneurons.tasks.heads import (
    ClassificationHead,
    Head,
    LabelledPairs,
    items_of,
    pair_tokens,
    pairs_of,
)
from langneurons.tasks.likelihood import LABELS
from langneurons.tasks.padded_head import POSITIONS, PadPositionHead, padded_pairs, tokenizer_of
from langneurons.tasks.task import Task
from langneurons.tasks.xnli import XNLI
from langneurons.tasks.xquad import XQuAD

PLACES = ("last", "padding")
LOSSES = ("answer", "all")


@runtime_checkable
class Objective(Protocol):
    """Examples, and the loss of a model on some of them.

    Attributes:
        lengths: Of each example, in tokens.
        weights: What each example counts in a mean over examples: 1, or its number of predicted tokens.
        fingerprint: A hash of the examples and of what is asked of them.
    """

    lengths: Int[np.ndarray, " example"]
    weights: Int[np.ndarray, " example"]
    fingerprint: str

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside updates, by name."""
        ...

    def loss(self, seen: ModelView, rows: Int[np.ndarray, " row"]) -> Float[Tensor, ""]:
        """The loss of some examples, summed over what ``weights`` count."""
        ...

    def head(self) -> Head | None:
        """A copy of the head as it is now; None where there is none."""
        ...

    def measured(self, dev: Task) -> Task:
        """A task as it is to be measured now.

        Raises:
            TrainingError: If it is of another kind.
        """
        ...


class Classifying:
    """A linear layer on the last hidden state of ``premise <eos> hypothesis``, and its cross-entropy.

    Args:
        seen: The model.
        task: Tables of premise, hypothesis and label.
        languages: Which to train on, together; None is all.
        start: The head to start from; None is a random one.
        position: What the head reads: ``"last"``, the last real token, or ``"padding"``, the paper's.
        positions: To how many tokens a pair is padded for ``"padding"``.
        seed: Of a random head.

    Raises:
        TaskError: If a label is not among the classes, or the tokenizer has nothing to put between two texts.
        LanguageError: If the task has no such language.
        TrainingError: If the position is unknown.
    """

    def __init__(
        self,
        seen: ModelView,
        task: LabelledPairs,
        languages: Iterable[str] | None = None,
        start: ClassificationHead | None = None,
        position: str = "last",
        positions: int = POSITIONS,
        seed: int = 0,
    ) -> None:
        if position not in PLACES:
            raise TrainingError(unknown("position", position, PLACES))
        if position == "padding" and not 1 <= positions <= seen.context_length:
            raise TrainingError(
                f"{seen.name!r} takes 1 to {seen.context_length} tokens, so pairs cannot be padded to {positions}."
            )
        table = items_of(task, languages)
        pairs, labels = pairs_of(table), [str(label) for label in table["label"]]
        self._seen, self._positions = seen, positions if position == "padding" else None
        self._labels = _classes(task, labels, start)
        self._targets = torch.tensor([self._labels.index(label) for label in labels])
        self._tokens, self._mask = self._tokenised(seen, pairs)
        self.lengths = np.array([len(tokens) for tokens in self._tokens], np.int64)
        self.weights = np.ones(len(labels), np.int64)
        self.fingerprint = _hash(position, str(positions), *self._labels, *labels, *map(_text, self._tokens))
        weight, bias = _random_head(seen, len(self._labels), seed) if start is None else (start.weight, start.bias)
        self._weight = nn.Parameter(weight.detach().float().to(seen.device, copy=True))
        self._bias = nn.Parameter(bias.detach().float().to(seen.device, copy=True))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Weight and bias of the head."""
        return {"head.weight": self._weight, "head.bias": self._bias}

    def loss(self, seen: ModelView, rows: Int[np.ndarray, " row"]) -> Float[Tensor, ""]:
        """Cross-entropy of some pairs, summed."""
        chosen = rows.tolist()
        if self._mask is None:
            tokens = right_padded([self._tokens[row] for row in chosen])
            last = torch.from_numpy(self.lengths[rows] - 1)
            found = seen.hidden(tokens)
        else:
            tokens = torch.tensor([self._tokens[row] for row in chosen])
            last = torch.full((len(chosen),), tokens.shape[1] - 1)
            found = seen.hidden(tokens, self._mask[chosen])
        # In single precision under autocast too, as the head is read when it is evaluated.
        with torch.autocast(found.device.type, enabled=False):
            read = found[torch.arange(len(chosen)), last.to(found.device)].float()
            logits = functional.linear(read, self._weight, self._bias)
            return functional.cross_entropy(logits, self._targets[chosen].to(logits.device), reduction="sum")

    def head(self) -> Head:
        """A copy of the head as it is now."""
        weight, bias = (one.detach().cpu().clone() for one in (self._weight, self._bias))
        linear = ClassificationHead(weight, bias, self._labels, self._seen.fingerprint)
        return cast(Head, linear if self._positions is None else PadPositionHead(linear, self._positions))

    def measured(self, dev: Task) -> Task:
        """A task answered by the head as it is now."""
        if not isinstance(dev, XNLI):
            raise TrainingError(f"A head is evaluated on a task that one can answer, such as XNLI, not on {dev!r:.80}.")
        return cast(Task, dev.by_head(self.head()))

    def _tokenised(
        self, seen: ModelView, pairs: Sequence[tuple[str, str]]
    ) -> tuple[Sequence[Tokens], Int[Tensor, "example position"] | None]:
        if self._positions is None:
            return pair_tokens(seen, pairs)[0], None
        tokens, mask = padded_pairs(pairs, tokenizer_of(seen), self._positions)
        return [tuple(row) for row in tokens.tolist()], mask


class Answering:
    """The tokens of right answers to questions, the first of each, and the end of the text behind them.

    Args:
        seen: The model.
        task: Questions and prompts.
        languages: Which to train on, together; None is all.
        loss_on: ``"answer"``, or ``"all"``: the prompt too, as the paper does.

    Raises:
        LanguageError: If the task has no such language.
        TaskError: If the model has no tokenizer, or its context no room for a question.
        TrainingError: If ``loss_on`` is unknown.
    """

    def __init__(
        self, seen: ModelView, task: XQuAD, languages: Iterable[str] | None = None, loss_on: str = "answer"
    ) -> None:
        if loss_on not in LOSSES:
            raise TrainingError(unknown("loss_on", loss_on, LOSSES))
        self._tokens: list[Tokens] = []
        firsts: list[int] = []
        for language in _known(task, languages):
            for prompt, answer in _asked(seen, task, language):
                self._tokens.append((*prompt, *answer))
                firsts.append(len(prompt) if loss_on == "answer" else 1)
        self._firsts = np.array(firsts, np.int64)
        self.lengths = np.array([len(tokens) for tokens in self._tokens], np.int64)
        self.weights = self.lengths - self._firsts
        self.fingerprint = _hash(loss_on, *map(str, firsts), *map(_text, self._tokens))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Nothing: only updates are trained."""
        return {}

    def loss(self, seen: ModelView, rows: Int[np.ndarray, " row"]) -> Float[Tensor, ""]:
        """Negative log-likelihood of the answers to some questions, in nats, summed over tokens."""
        chosen = rows.tolist()
        tokens = right_padded([self._tokens[row] for row in chosen])
        place, first = torch.arange(tokens.shape[1]), torch.from_numpy(self._firsts[rows])[:, None]
        asked = (place >= first) & (place < torch.from_numpy(self.lengths[rows])[:, None])
        targets = tokens.masked_fill(~asked, _IGNORED)[:, 1:]
        start = int(self._firsts[rows].min()) - 1
        # Logits of the positions before answers only: those of all would fill the memory for a large vocabulary.
        logits = seen.logits_at(tokens, range(start, tokens.shape[1] - 1))
        flat = targets[:, start:].flatten().to(logits.device)
        return functional.cross_entropy(logits.flatten(0, 1).float(), flat, ignore_index=_IGNORED, reduction="sum")

    def head(self) -> None:
        """None."""

    def measured(self, dev: Task) -> Task:
        """The task itself."""
        if dev.protocol != "generation":
            raise TrainingError(f"Answers are evaluated by a task that generates, such as XQuAD, not by {dev!r:.80}.")
        return dev


_IGNORED = -100


def right_padded(sequences: Sequence[Tokens]) -> Int[Tensor, "row position"]:
    """Pad token sequences on the right; causal models need no mask for that."""
    tokens = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for place, sequence in enumerate(sequences):
        tokens[place, : len(sequence)] = torch.tensor(sequence)
    return tokens


def _classes(task: LabelledPairs, labels: Sequence[str], start: ClassificationHead | None) -> tuple[str, ...]:
    """The head's labels: those of the head to start from, of the task, or those there are."""
    own = LABELS if isinstance(task, XNLI) else tuple(sorted(set(labels)))
    classes = own if start is None else start.labels
    for label in labels:
        if label not in classes:
            raise TaskError(unknown("label", label, classes))
    if len(classes) < 2:
        raise TaskError(f"A head is trained on at least two labels, not on {', '.join(classes) or 'none'}.")
    return classes


def _random_head(seen: ModelView, labels: int, seed: int) -> tuple[Tensor, Tensor]:
    d_model: int = seen.model.cfg.d_model
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(labels, d_model, generator=generator) / d_model, torch.zeros(labels)


def _known(task: XQuAD, languages: Iterable[str] | None) -> list[str]:
    chosen = list(task.languages) if languages is None else list(languages)
    for language in chosen:
        if language not in task.languages:
            raise LanguageError(unknown("language", language, task.languages))
    if not chosen:
        raise LanguageError("No language was given to train on.")
    return chosen


def _asked(seen: ModelView, task: XQuAD, language: str) -> Iterator[tuple[list[int], list[int]]]:
    """The prompt of every question as it is evaluated, and the tokens of its first right answer and its end."""
    if seen.tokenizer is None:
        raise TaskError(f"{seen.name!r} has no tokenizer, so it cannot be asked: load it with tokenizer=.")
    table, tail = task.items[language], task.prompts[language].rpartition("}")[2]
    for item, context, question, answers in zip(
        *(table[column] for column in ("item", "context", "question", "answers")), strict=True
    ):
        prompt, _ = task.prompt(seen, language, item, context, question)
        answer = continuation_ids(seen.tokenizer, tail, f" {answers[0]}")[: task.max_new_tokens - 1]
        yield prompt, answer + _ending(seen.tokenizer)


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, continuation: str) -> list[int]:
    """Tokenise what follows a text as it would be in one piece, where a token ends with the text, or else by itself."""
    before, whole, alone = tokenizer(
        [text, text + continuation, continuation], add_special_tokens=False, verbose=False
    ).input_ids
    return whole[len(before) :] if whole[: len(before)] == before else alone


def _ending(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = cast(int | None, tokenizer.eos_token_id)
    return tokenizer("\n", add_special_tokens=False, verbose=False).input_ids if eos is None else [eos]


def _hash(*parts: str) -> str:
    return storage.fingerprint(*parts)


def _text(tokens: Tokens) -> str:
    return " ".join(map(str, tokens))
