"""What every task offers: scored items, the same under every condition, and perhaps something to train on."""

from collections.abc import Iterable
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from langneurons.errors import TaskError
from langneurons.models import ModelView
from langneurons.settings import Training
from langneurons.tasks.heads import Head


@runtime_checkable
class Objective(Protocol):
    """Examples to train on, and the loss of a model on some of them.

    Attributes:
        lengths: Tokens of each example.
        weights: Weight of each example in a mean over examples: 1, or its number of predicted tokens.
        fingerprint: A hash of the examples and of what the loss is.
    """

    lengths: Int[np.ndarray, " example"]
    weights: Int[np.ndarray, " example"]
    fingerprint: str

    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained beside updates, by name."""
        ...

    def loss(self, model_view: ModelView, rows: Int[np.ndarray, " row"]) -> Float[Tensor, ""]:
        """The loss of some examples, summed over what ``weights`` count."""
        ...

    def head(self) -> Head | None:
        """A copy of the head in its present state; None where none is trained."""
        ...

    def ask(self, task: "Task") -> "Task":
        """A task as the model in training answers it.

        Raises:
            TrainingError: If what is trained cannot answer the task.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """Items in several languages and a way to score a model on them.

    Any object with these names can be given to ``ln.evaluate``. A class that derives from this one need not define
    ``objective``, ``with_head``, ``take`` and ``select``: without them a task cannot be trained on, is not answered by
    a head, and is measured as a whole. A class that also has ``load(source, languages, split, **options)`` can be added
    to ``ln.tasks.KINDS``, under the name by which studies and the command line know it; ``shows_examples = True`` says
    there that solved examples can stand in front of its items, and ``samples = False`` that it generates greedily only.
    ``incomplete = ("relevance",)`` names metrics that are NaN where an item could not be scored, as by a judge without
    a rating: ``ln.evaluate`` then leaves the item out of that metric under every condition, and says how many.
    ``gold_texts(model_view, language)`` gives the right answers as texts, see ``XNLI.gold_texts``, for
    ``ln.analysis.task_gradient``.
    """

    reads_text: ClassVar[bool] = False
    """Whether ``load`` makes items of any text, such as a corpus at hand, rather than of files of its own."""

    @property
    def name(self) -> str:
        """Name in tables, such as ``"xnli"``."""
        ...

    @property
    def protocol(self) -> str:
        """How the answer is read off the model: ``"likelihood"``, ``"head"`` or ``"generation"``."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Columns of the rows that are scores, higher is better, the main one first."""
        ...

    @property
    def generates(self) -> bool:
        """Whether the model generates; only then does a patch of generated positions do anything."""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it has items in."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the items and of everything that decides how they are scored, but not of the model."""
        ...

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Score a model on the items of one language, with whatever is attached to it at this moment.

        Returns:
            One row per item: item, cluster, prediction, gold (texts) and each of ``metrics`` (0 to 1); perhaps more.
        """
        ...

    def references(self, language: str) -> dict[str, float]:
        """Values of the main metric without the model, by name, such as chance."""
        ...

    def objective(
        self,
        model_view: ModelView,
        languages: Iterable[str] | None = None,
        training: Training = Training(),
        head: Head | None = None,
    ) -> Objective:
        """What a model that is fine-tuned on the task minimises.

        Args:
            model_view: View of the model.
            languages: Languages to train on, together; by default all.
            training: Settings of the training, some of which decide the loss.
            head: Head to start from; by default a random one, where the task trains one.

        Raises:
            TaskError: If the task cannot be trained on, or texts do not fit the model.
            TrainingError: If a setting does not fit the task or the model.
            LanguageError: If the task lacks a language.
        """
        raise TaskError(f"{self.name!r} cannot be trained on.")

    def with_head(self, head: Head) -> "Task":
        """The same items answered by a head; the task itself where a head cannot answer it.

        Raises:
            TaskError: If the head has other labels.
        """
        return self

    def take(self, count: int, seed: int = 0) -> "Task":
        """Draw some items at random, the same in every language.

        Args:
            count: Number of items, or of clusters of items; all where there are fewer.
            seed: Seed of the draw.

        Raises:
            TaskError: If ``count`` is below 1, or the task can only be measured as a whole.
        """
        raise TaskError(f"{self.name!r} can only be measured as a whole.")

    def select(self, languages: Iterable[str]) -> "Task":
        """The same items in some of the languages.

        Raises:
            LanguageError: If the task lacks a language.
            TaskError: If its languages cannot be taken apart.
        """
        raise TaskError(f"The languages of {self.name!r} cannot be taken apart.")
