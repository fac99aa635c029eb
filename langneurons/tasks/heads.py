"""Classification heads: a linear layer that reads a pair of texts off one hidden state after the final norm."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langneurons import storage
from langneurons.corpora.languages import distinct
from langneurons.errors import TaskError, unknown
from langneurons.models import ModelView, view
from langneurons.models.finite import check_finite
from langneurons.settings import finite_number
from langneurons.storage.layouts import layout
from langneurons.storage.objects import JsonObject
from langneurons.storage.result import Result
from langneurons.tasks.batching import Tokens, batches, front, scoring, token_ids, tokenizer_of

PLACES = ("last", "padding")
POSITIONS = 256
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
class ClassificationHead(Result, kind="classification-head", file="head"):
    """A linear layer on one hidden state, after the final norm, of ``premise <eos> hypothesis``.

    At the position "last" that is the state of the last real token: padding is on the right and never read, and a pair
    longer than the model's context loses the end of its premise.

    At the position "padding" it is what Mondal et al. 2025 read: the state of the last of 256 positions, to which texts
    are padded on the right or cut. That is a token without meaning, the farther behind the text the shorter the text
    is, and a patch writes there too. Padding is the tokenizer's own token or, where it has none, the end of sequence;
    no position attends to it. Departure: the published layer is trained together with LoRA weights. Source:
    github.com/soumenkm/LangSpecificNeurons, code/dataset.py (``XNLIDatasetHF``) and code/models.py (``ModelForCLS``).

    Args:
        weight: One row per label.
        bias: One number per label.
        labels: The labels, in the order of the rows.
        model: Fingerprint of the model it was fitted on; "" fits any of its size.
        position: Position that is read: "last" or "padding".
        positions: Tokens to which texts are padded, or cut, for "padding".

    Raises:
        TaskError: If labels repeat, or are not as many as the rows, or the position is unknown.
    """

    weight: Float[Tensor, "row d_model"]
    bias: Float[Tensor, " entry"]
    labels: tuple[str, ...]
    model: str = ""
    position: str = "last"
    positions: int = POSITIONS

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
        if self.position not in PLACES:
            raise TaskError(unknown("position", self.position, PLACES))
        if self.positions < 1:
            raise TaskError(f"Texts are padded to 1 or more tokens, not to {self.positions}.")
        if wrong := sum(int((~tensor.isfinite()).sum()) for tensor in (self.weight, self.bias)):
            raise TaskError(f"{wrong} of the head's numbers are not finite: fit it again.")

    @classmethod
    def fit(
        cls,
        model: torch.nn.Module,
        task: LabelledPairs,
        languages: Iterable[str] | None = None,
        batch_size: int = 8,
        penalty: float = 10.0,
        *,
        position: str = "last",
        positions: int = POSITIONS,
    ) -> "ClassificationHead":
        """Fit a head on a model that stays as it is: multinomial logistic regression on hidden states.

        Args:
            model: A model returned by ``load_model``; whatever is attached to it counts.
            task: ``XNLI``, or anything with tables of premise, hypothesis and label.
            languages: Languages to fit on, together; by default all.
            batch_size: Pairs per forward pass.
            penalty: Strength of the L2 penalty on the weights of standardised hidden states.
            position: Position that is read: "last" or "padding".
            positions: Tokens to which texts are padded, or cut, for "padding".

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
        features = last_hidden(model, pairs_of(table), batch_size, position, positions)
        head = cls.of_features(features, list(table["label"]), view(model).fingerprint, penalty)
        return replace(head, position=position, positions=positions)

    @classmethod
    def of_features(
        cls, features: Float[Tensor, "item d_model"], labels: Sequence[str], model: str = "", penalty: float = 10.0
    ) -> "ClassificationHead":
        """Fit a head on hidden states at hand.

        Args:
            features: One row per item.
            labels: The label of each item.
            model: Fingerprint of the model they come from.
            penalty: Strength of the L2 penalty, as in ``fit``.

        Returns:
            A head with its labels sorted; the standardisation is folded into its weights.

        Raises:
            TaskError: If there are fewer than two labels, or not one per item.
        """
        if len(set(labels)) < 2 or len(labels) != len(features):
            raise TaskError(
                f"A head is fitted on one label an item and at least two different ones, not on {len(labels)} labels "
                f"({', '.join(sorted(set(labels)))}) of {len(features)} items."
            )
        penalty = finite_number(penalty, "penalty", TaskError)
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
        classes = tuple(map(str, regression.classes_))
        return cls(torch.tensor(weight).float(), torch.tensor(bias).float(), classes, model)

    def __repr__(self) -> str:
        place = f", position {self.positions} of padded texts" if self.position == "padding" else ""
        return f"ClassificationHead({', '.join(self.labels)}; d_model {self.weight.shape[1]}{place})"

    @property
    def fingerprint(self) -> str:
        """A hash of weights, labels and what is read."""
        weights = [tensor.detach().float().cpu().contiguous().numpy().tobytes() for tensor in (self.weight, self.bias)]
        layer = storage.fingerprint(self.schema, self.model, *self.labels, *weights)
        return layer if self.position == "last" else storage.fingerprint("pad position", str(self.positions), layer)

    def logits(self, model: torch.nn.Module, pairs: Sequence[Pair], batch_size: int = 8) -> Float[Tensor, "item label"]:
        """Score every label of every pair, with whatever is attached to the model at this moment.

        Args:
            model: The model the head was fitted on.
            pairs: (premise, hypothesis) each.
            batch_size: Pairs per forward pass.

        Returns:
            Logits in single precision, on CPU.

        Raises:
            TaskError: If the head belongs to another model.
        """
        self.check_fits(view(model))
        return self.read(last_hidden(model, pairs, batch_size, self.position, self.positions))

    def read(self, hidden: Float[Tensor, "item d_model"]) -> Float[Tensor, "item label"]:
        """Compute logits from hidden states at hand, in single precision, on CPU."""
        weight, bias = self.weight.detach().float().cpu(), self.bias.detach().float().cpu()
        return hidden @ weight.T + bias

    def cut(self, model: torch.nn.Module, pairs: Sequence[Pair]) -> Bool[np.ndarray, " item"]:
        """Which pairs are longer than what is read: the model's context, or the padded positions."""
        if self.position == "last":
            return pair_tokens(view(model), pairs)[1]
        texts = joined_tokens(pairs, tokenizer_of(view(model)))
        return np.array([len(tokens) > self.positions for tokens in texts], bool)

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
        head = super().load(path)
        if model is not None:
            head.check_fits(view(model))
        return head

    def check_fits(self, model_view: ModelView) -> None:
        """Refuse a model of another size, or with other weights than the head was fitted on.

        Raises:
            TaskError: If it is one.
        """
        if (d_model := model_view.model.cfg.d_model) != self.weight.shape[1]:
            raise TaskError(f"The head reads {self.weight.shape[1]} dimensions; {model_view.name!r} has {d_model}.")
        if self.model and not model_view.weights.is_of(self.model):
            raise TaskError(
                f"The head was fitted on model {self.model[:8]}, but {model_view.name!r} is "
                f"{model_view.fingerprint[:8]}: fit one on this model."
            )

    def _write(self, folder: Path) -> JsonObject:
        tensors = {"weight": self.weight.detach().cpu(), "bias": self.bias.detach().cpu()}
        about = {"labels": list(self.labels), "model": self.model}
        about["checksum"] = storage.write_tensors(folder / "head.safetensors", tensors)
        return about | ({} if self.position == "last" else {"position": self.position, "positions": self.positions})

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        tensors = storage.read_tensors(folder / "head.safetensors", content["checksum"])
        layout(text="model position?", whole="positions?", texts="labels").check("the head", content)
        optional = {name: content[name] for name in ("position", "positions") if name in content}
        if any(not values.is_floating_point() or not bool(values.isfinite().all()) for values in tensors.values()):
            raise ValueError("a weight is no finite number")
        return {**tensors, "labels": tuple(content["labels"]), "model": content["model"], **optional}


def last_hidden(
    model: torch.nn.Module,
    pairs: Sequence[Pair],
    batch_size: int = 8,
    position: str = "last",
    positions: int = POSITIONS,
) -> Float[Tensor, "item d_model"]:
    """Read what the unembedding would read at the last token of ``premise <eos> hypothesis``, or of its padding.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it at this moment counts.
        pairs: (premise, hypothesis) each; equal ones are run once, unless they are padded.
        batch_size: Pairs per forward pass.
        position: Position that is read: "last" or "padding".
        positions: Tokens to which texts are padded, or cut, for "padding".

    Returns:
        The residual stream after the final norm, in single precision, on CPU; a row does not depend on the others.

    Raises:
        ModelError: If the model has no tokenizer, or a hidden state is not finite.
        TaskError: If the tokenizer has no token to put between two texts, a hypothesis alone exceeds the context, or
            the model takes fewer positions.

    Example:
        >>> from langneurons.tasks.heads import last_hidden
        >>> last_hidden(model, [("It rains.", "It is wet."), ("It rains.", "It is dry.")]).shape
        torch.Size([2, 160])
    """
    model_view = view(model)
    if position == "padding" and not 1 <= positions <= model_view.context_length:
        raise TaskError(
            f"{model_view.name!r} takes 1 to {model_view.context_length} positions, so a head cannot read {positions}."
        )
    sequences, mask = head_tokens(model_view, pairs, position, positions)
    distinct = list(dict.fromkeys(sequences)) if mask is None else sequences
    longest = model_view.context_length if mask is None else positions
    hidden = torch.empty(len(distinct), model_view.model.cfg.d_model)
    with scoring(model):
        for rows, tokens in batches(distinct, batch_size, longest):
            last = torch.tensor([len(distinct[row]) - 1 for row in rows])
            mask_of_rows = None if mask is None else mask[rows]
            states = model_view.hidden(tokens, mask_of_rows)
            hidden[rows] = states[torch.arange(len(rows)), last.to(states.device)].float().cpu()
            check_finite(model_view, hidden[rows], tokens, mask_of_rows)
    if mask is not None:
        return hidden
    place = {tokens: index for index, tokens in enumerate(distinct)}
    return hidden[[place[tokens] for tokens in sequences]]


def head_tokens(
    model_view: ModelView, pairs: Sequence[Pair], position: str, positions: int
) -> tuple[list[Tokens], Int[Tensor, "item position"] | None]:
    """Tokenise pairs so that a head reads each at its last token; for "padding", tell padding (0) from text (1)."""
    if position == "last":
        return pair_tokens(model_view, pairs)[0], None
    tokenizer = tokenizer_of(model_view)
    cut = [tokens[:positions] for tokens in joined_tokens(pairs, tokenizer)]
    padding = cast(int, tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    mask = torch.arange(positions) < torch.tensor([len(tokens) for tokens in cut], dtype=torch.int64)[:, None]
    return [(*tokens, *[padding] * (positions - len(tokens))) for tokens in cut], mask.long()


def joined_tokens(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenise ``premise <eos> hypothesis`` as one text, with the tokenizer's own special tokens.

    Raises:
        TaskError: If the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token is None:
        raise TaskError("The tokenizer has no end-of-sequence token, which stands between premise and hypothesis.")
    texts = [f"{premise} {tokenizer.eos_token} {hypothesis}" for premise, hypothesis in pairs]
    return cast(list[list[int]], tokenizer(texts, verbose=False)["input_ids"]) if texts else []


def pair_tokens(model_view: ModelView, pairs: Sequence[Pair]) -> tuple[list[Tokens], Bool[np.ndarray, " item"]]:
    """Tokenise ``premise <eos> hypothesis``, cutting premises that exceed the context; say which were cut."""
    premises = token_ids(model_view, [premise for premise, _ in pairs])
    hypotheses = token_ids(model_view, [hypothesis for _, hypothesis in pairs])
    start, separator = front(model_view), _separator(model_view)
    sequences, cut = [], []
    for premise, hypothesis in zip(premises, hypotheses, strict=True):
        room = model_view.context_length - len(start) - 1 - len(hypothesis)
        if room < 0:
            raise TaskError(
                f"A hypothesis of {len(hypothesis)} tokens leaves no room in the {model_view.context_length} of "
                f"{model_view.name!r}."
            )
        sequences.append((*start, *premise[:room], separator, *hypothesis))
        cut.append(len(premise) > room)
    return sequences, np.array(cut, bool)


def items_of(task: LabelledPairs, languages: Iterable[str] | None = None) -> pd.DataFrame:
    """The items of some languages, one after the other; by default all.

    Raises:
        LanguageError: If the task has no such language, or none is given.
    """
    names = list(task.items) if languages is None else distinct(languages, task.items)
    return pd.concat([task.items[language] for language in names], ignore_index=True)


def pairs_of(table: pd.DataFrame) -> list[Pair]:
    """The (premise, hypothesis) of each row."""
    return list(zip(table["premise"], table["hypothesis"], strict=True))


def _separator(model_view: ModelView) -> int:
    tokenizer = tokenizer_of(model_view)
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return cast(int, token)
    raise TaskError(
        f"The tokenizer of {model_view.name!r} has neither an end-of-sequence nor a separator token to put between "
        "premise and hypothesis."
    )
