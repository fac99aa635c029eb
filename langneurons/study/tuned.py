"""A task asked of a fine-tuned model, so that what is measured can be kept and told apart from the model as it is."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from langneurons import storage
from langneurons.tasks.heads import Head
from langneurons.tasks.task import Task
from langneurons.training.finetuned import Finetuned


@dataclass(frozen=True)
class TunedTask(Task):
    """The items of a task, answered with what was trained attached to the model.

    Args:
        task: An ``XNLI`` with the trained head, or an ``XQuAD``.
        tuned: What was trained.
        about: A hash of everything that decides ``tuned``.
    """

    task: Any
    tuned: Finetuned
    about: str

    @property
    def name(self) -> str:
        """As the task's."""
        return self.task.name

    @property
    def protocol(self) -> str:
        """As the task's."""
        return self.task.protocol

    @property
    def metrics(self) -> tuple[str, ...]:
        """As the task's."""
        return self.task.metrics

    @property
    def generates(self) -> bool:
        """As the task's."""
        return self.task.generates

    @property
    def languages(self) -> tuple[str, ...]:
        """As the task's."""
        return self.task.languages

    @property
    def items(self) -> Any:
        """As the task's."""
        return self.task.items

    @property
    def fingerprint(self) -> str:
        """A hash of the task and of what was trained."""
        return storage.fingerprint(self.task.fingerprint, self.about)

    def with_head(self, head: Head) -> "TunedTask":
        """The same, answered by another head on the same trained model; itself where a head cannot answer it."""
        answered = self.task.with_head(head)
        return self if answered is self.task else replace(self, task=answered)

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Score the fine-tuned model on the items of one language.

        Raises:
            TrainingError: If what was trained belongs to another model.
            LangNeuronsError: As the task's.
        """
        with self.tuned.attach(model):
            return self.task.measure(model, language, batch_size)

    def references(self, language: str) -> dict[str, float]:
        """As the task's."""
        return self.task.references(language)
