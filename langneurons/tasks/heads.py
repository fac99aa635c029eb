"""Classification heads: a linear layer that reads a pair of texts off the last hidden state of the last real token."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from langneurons import storage
from langneurons.errors import LanguageError, TaskError, unknown
from langneurons.models import ModelView, view
from langneurons.tasks.batching import Tokens, batches, front, scoring, token_ids

SCHEMA = "langneurons/classification-head/1"
Pair = tuple[str, str]


@runtime_checkable
class Head(Protocol):
    """What reads the label of a pair of texts off a model.

    Attributes:
        labels: The labels, in the order of the logits.
        fingerprint: A hash of everything that decides its logits, but not of the model.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...  # noqa: D102 (said above)

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def logits(self, model: torch.nn.Module, pairs: Sequence[Pair], batch_size: int = 8) -> Float[Tensor, "item label"]:
        """Score every label of every (premise, hypothesis), with whatever is attached to the model."""
        ...

    def cut(self, model: torch.nn.Module, pairs: Sequence[Pair]) -> Bool[np.ndarray, " item"]:
        """Which pairs are too long to be read whole."""
        ...


@runtime_checkable
class LabelledPairs(Protocol):
    """What a head can be fitted on, such as ``XNLI``: per language a table of premise, hypothesis and label."""

    @property
    def items(self) -> Mapping[str, pd.DataFrame]: ...  # noqa: D102 (said above)


@dataclass(frozen=True, eq=False, repr=False)
class ClassificationHead:
    """A linear layer on the hidden state, after the final norm, of the last token of ``premise <eos> hypothesis``.

    Padding is on the right and never read. A pair longer than the model's context loses the end of its premise.

    Args:
        weight: A row a label.
        bias: One number a label.
        labels: The labels, in the order of the rows.
        model: Fingerprint of the model it was fitted on; "" fits any of its size.

    Raises:
        TaskError: If labels repeat, or are not as many as the rows.
    """

    weight: Float[Tensor, "row d_model"]
    bias: Float[Tensor, " entry"]
    labels: tuple[str, ...]
    model: str = ""

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.ndim != 1:
            raise TaskError(
                f"A head has weights of (labels, d_model) and a bias of (labels,), not {tuple(self.weight.shape)} and "
                f"{tuple(self.bias.shape)}."
            )
        if not len(self.labels) == len(set(self.labels)) == len(self.weight) == len(self.bias):
            raise TaskError(
                f"A head of {len(self.weight)} rows and {len(self.bias)} biases has as many labels, all different, not "
                f"{', '.join(self.labels) or 'none'}."
            )

    @classmethod
    def fit(
        cls,
        model: torch.nn.Module,
        task: LabelledPairs,
        languages: Iterable[str] | None = None,
        batch_size: int = 8,
        penalty: float = 10.0,
    ) -> "ClassificationHead":
        """Fit a head on a model that stays as it is: multinomial logistic regression on hidden states.

        Args:
            model: From ``load_model``; whatever is attached to it counts.
            task: ``XNLI``, or anything with tables of premise, hypothesis and label.
            languages: Which to fit on, together; None is all.
            batch_size: Pairs a forward.
            penalty: Strength of the L2 penalty on the weights of standardised hidden states.

        Returns:
            The head.

        Raises:
            LanguageError: If the task has no such language.
            TaskError: If there are fewer than two labels, or the tokenizer has no token to put between two texts.

        Example:
            >>> import pandas as pd
            >>> rows = [("It rains.", "It is wet.", "entailment"), ("It rains.", "It is dry.", "contradiction")]
            >>> task = ln.XNLI.load({"en": pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])})
            >>> head = ln.tasks.ClassificationHead.fit(model, task)
            >>> head
            ClassificationHead(contradiction, entailment; d_model 160)
            >>> head.logits(model, [("It rains.", "It is dry.")]).argmax(1)
            tensor([0])
        """
        table = items_of(task, languages)
        features = last_hidden(model, pairs_of(table), batch_size)
        return cls.of_features(features, list(table["label"]), view(model).fingerprint, penalty)

    @classmethod
    def of_features(
        cls,
        features: Float[Tensor, "item d_model"],
        labels: Sequence[str],
        model: str = "",
        penalty: float = 10.0,
    ) -> "ClassificationHead":
        """Fit a head on hidden states at hand.

        Args:
            features: One row an item.
            labels: The label of each.
            model: Fingerprint of the model they come from.
            penalty: As for ``fit``.

        Returns:
            A head with its labels sorted; the standardisation is folded into its weights.

        Raises:
            TaskError: If there are fewer than two labels, or not one an item.
        """
        if len(set(labels)) < 2 or len(labels) != len(features):
            raise TaskError(
                f"A head is fitted on one label an item and at least two different ones, not on {len(labels)} labels "
                f"({', '.join(sorted(set(labels)))}) of {len(features)} items."
            )
        if not penalty > 0 or not bool(features.isfinite().all()):
            raise TaskError(f"A head is fitted on finite hidden states with a penalty above 0, given {penalty}.")
        scaler = StandardScaler()
        standardised = scaler.fit_transform(features.double().cpu().numpy())
        regression = LogisticRegression(C=1 / penalty, max_iter=2000).fit(standardised, list(labels))
        coefficients, intercepts = regression.coef_, regression.intercept_
        if len(regression.classes_) == 2:  # scikit-learn gives the second label's row only
            coefficients, intercepts = np.vstack([0 * coefficients, coefficients]), np.append([0.0], intercepts)
        weight = coefficients / np.asarray(scaler.scale_)
        bias = intercepts - weight @ np.asarray(scaler.mean_)
        return cls(
            torch.tensor(weight).float(), torch.tensor(bias).float(), tuple(map(str, regression.classes_)), model
        )

    def __repr__(self) -> str:
        return f"ClassificationHead({', '.join(self.labels)}; d_model {self.weight.shape[1]})"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, labels and what is read."""
        weights = [tensor.detach().float().cpu().contiguous().numpy().tobytes() for tensor in (self.weight, self.bias)]
        return storage.fingerprint(SCHEMA, self.model, *self.labels, *weights)

    def logits(self, model: torch.nn.Module, pairs: Sequence[Pair], batch_size: int = 8) -> Float[Tensor, "item label"]:
        """Score every label of every pair, with whatever is attached to the model at this moment.

        Args:
            model: The model the head was fitted on.
            pairs: (premise, hypothesis) each.
            batch_size: Pairs a forward.

        Returns:
            Logits in single precision, on CPU.

        Raises:
            TaskError: If the head belongs to another model.
        """
        self.check_fits(view(model))
        return self.read(last_hidden(model, pairs, batch_size))

    def read(self, hidden: Float[Tensor, "item d_model"]) -> Float[Tensor, "item label"]:
        """Compute logits from hidden states at hand, in single precision, on CPU."""
        weight, bias = self.weight.detach().float().cpu(), self.bias.detach().float().cpu()
        return hidden @ weight.T + bias

    def cut(self, model: torch.nn.Module, pairs: Sequence[Pair]) -> Bool[np.ndarray, " item"]:
        """Which pairs are longer than the model's context, so that the end of the premise is not read."""
        return pair_tokens(view(model), pairs)[1]

    def save(self, path: str | Path) -> Path:
        """Write the head into a folder: weights as safetensors, the rest as JSON.

        Returns:
            The folder.
        """
        folder = Path(path)
        tensors = {"weight": self.weight.detach().cpu(), "bias": self.bias.detach().cpu()}
        written = storage.write_tensors(folder / "head.safetensors", tensors)
        about = {"labels": list(self.labels), "model": self.model, "checksum": written}
        storage.write_json(folder / "head.json", SCHEMA, about)
        return folder

    @classmethod
    def load(cls, path: str | Path, model: torch.nn.Module | None = None) -> "ClassificationHead":
        """Read a saved head.

        Args:
            path: The folder it was saved in.
            model: The model it is for, to be sure that it fits.

        Raises:
            StorageError: If there is none.
            CorruptArtefactError: If its files are truncated or changed.
            TaskError: If it belongs to another model.
        """
        about = storage.read_json(Path(path) / "head.json", SCHEMA)
        with storage.understood(Path(path) / "head.json"):
            tensors = storage.read_tensors(Path(path) / "head.safetensors", about["checksum"])
            head = cls(tensors["weight"], tensors["bias"], tuple(about["labels"]), about["model"])
        if model is not None:
            head.check_fits(view(model))
        return head

    def check_fits(self, seen: ModelView) -> None:
        """Refuse a model of another size, or with other weights than the head was fitted on.

        Raises:
            TaskError: If so.
        """
        if (d_model := seen.model.cfg.d_model) != self.weight.shape[1]:
            raise TaskError(f"The head reads {self.weight.shape[1]} dimensions; {seen.name!r} has {d_model}.")
        if self.model and not seen.is_of(self.model):
            raise TaskError(
                f"The head was fitted on model {self.model[:8]}, but {seen.name!r} is {seen.fingerprint[:8]}: fit one "
                "on this model."
            )


def last_hidden(model: torch.nn.Module, pairs: Sequence[Pair], batch_size: int = 8) -> Float[Tensor, "item d_model"]:
    """Read what the unembedding would read at the last token of ``premise <eos> hypothesis``.

    Args:
        model: From ``load_model``; whatever is attached to it at this moment counts.
        pairs: (premise, hypothesis) each; equal ones are run once.
        batch_size: Pairs a forward.

    Returns:
        The residual stream after the final norm, in single precision, on CPU; a row does not depend on the others.

    Raises:
        ModelError: If the model has no tokenizer.
        TaskError: If the tokenizer has no token to put between two texts, or a hypothesis alone exceeds the context.

    Example:
        >>> from langneurons.tasks.heads import last_hidden
        >>> last_hidden(model, [("It rains.", "It is wet."), ("It rains.", "It is dry.")]).shape
        torch.Size([2, 160])
    """
    seen = view(model)
    sequences, _ = pair_tokens(seen, pairs)
    once = list(dict.fromkeys(sequences))
    hidden = torch.empty(len(once), seen.model.cfg.d_model)
    with scoring(model):
        for rows, tokens in batches(once, batch_size, seen.context_length):
            last = torch.tensor([len(once[row]) - 1 for row in rows])
            found = seen.hidden(tokens)
            hidden[rows] = found[torch.arange(len(rows)), last.to(found.device)].float().cpu()
    place = {tokens: index for index, tokens in enumerate(once)}
    return hidden[[place[tokens] for tokens in sequences]]


def pair_tokens(seen: ModelView, pairs: Sequence[Pair]) -> tuple[list[Tokens], Bool[np.ndarray, " item"]]:
    """Tokenise ``premise <eos> hypothesis``, the end of the premise cut off where that exceeds the context.

    Returns:
        Token ids, and which pairs are cut.
    """
    premises = token_ids(seen, [premise for premise, _ in pairs])
    rests = [[_separator(seen), *tokens] for tokens in token_ids(seen, [hypothesis for _, hypothesis in pairs])]
    start = front(seen)
    sequences, cut = [], []
    for premise, rest in zip(premises, rests, strict=True):
        room = seen.context_length - len(start) - len(rest)
        if room < 0:
            raise TaskError(
                f"A hypothesis of {len(rest) - 1} tokens leaves no room in the {seen.context_length} of {seen.name!r}."
            )
        sequences.append((*start, *premise[:room], *rest))
        cut.append(len(premise) > room)
    return sequences, np.array(cut, bool)


def items_of(task: LabelledPairs, languages: Iterable[str] | None = None) -> pd.DataFrame:
    """The items of some languages, one after the other; None is all.

    Raises:
        LanguageError: If the task has no such language, or none is given.
    """
    chosen = list(task.items) if languages is None else list(languages)
    for language in chosen:
        if language not in task.items:
            raise LanguageError(unknown("language", language, task.items))
    if not chosen:
        raise LanguageError("No language was given to fit a head on.")
    return pd.concat([task.items[language] for language in chosen], ignore_index=True)


def pairs_of(table: pd.DataFrame) -> list[Pair]:
    """The (premise, hypothesis) of each row."""
    return list(zip(table["premise"], table["hypothesis"], strict=True))


def _separator(seen: ModelView) -> int:
    named = (seen.tokenizer.eos_token_id, seen.tokenizer.sep_token_id)
    found = cast(int | None, next((token for token in named if token is not None), None))
    if found is None:
        raise TaskError(
            f"The tokenizer of {seen.name!r} has neither an end-of-sequence nor a separator token to put between "
            "premise and hypothesis."
        )
    return found
