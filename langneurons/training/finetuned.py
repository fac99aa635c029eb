"""What fine-tuning gives: the trained update and head, and the history of their training."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from langneurons import storage
from langneurons.errors import TrainingError, unknown
from langneurons.evaluation.evaluating import evaluate
from langneurons.evaluation.evaluation import Evaluation
from langneurons.tasks.heads import ClassificationHead, Head
from langneurons.tasks.task import Task
from langneurons.training.lora import MaskedIA3, MaskedLoRA, MaskedRows
from langneurons.training.update import Update

SCHEMA = "langneurons/finetuned/1"
_UPDATES = {kind.__name__: kind for kind in (MaskedLoRA, MaskedRows, MaskedIA3)}


@dataclass(frozen=True, eq=False, repr=False)
class Finetuned:
    """A trained update and head; ``finetune`` makes it.

    Args:
        lora: The trained update, several, or None where only the head was trained.
        head: The trained head; None where answers are generated.
        history: One row a step: step (from 1), epoch (from 0), loss (a mean over examples, or over answer tokens in
            nats), learning_rate, grad_norm (before clipping), and dev, the main metric where it was measured, else NaN.
        about: What else there is to say: steps, best_step (whose parameters these are), metric (the name of dev's),
            stopped_early, model and settings.
    """

    lora: Update | tuple[Update, ...] | None
    head: Head | None
    history: pd.DataFrame
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def updates(self) -> tuple[Update, ...]:
        """The trained updates, as many as there are."""
        if self.lora is None:
            return ()
        return self.lora if isinstance(self.lora, tuple) else (self.lora,)

    @property
    def trainable(self) -> dict[str, int]:
        """How many numbers were trained, in each update (by its name) and in the head."""
        counts = {f"{index}: {one.name}": one.count() for index, one in enumerate(self.updates)}
        if len(counts) == 1:
            counts = {self.updates[0].name: self.updates[0].count()}
        head = self.head
        trained = head.weight.numel() + head.bias.numel() if isinstance(head, ClassificationHead) else 0
        return counts | ({} if self.head is None else {"head": trained})

    def __repr__(self) -> str:
        trained = " + ".join(f"{name} ({count:,})" for name, count in self.trainable.items())
        losses = self.history["loss"]
        curve = f"{len(losses)} steps, loss {losses.iloc[0]:.3f} to {losses.iloc[-1]:.3f}" if len(losses) else "0 steps"
        best = max(self.history["dev"].dropna().tolist(), default=math.nan)
        dev = "" if math.isnan(best) else f", best {self.about['metric']} {best:.3f} at step {self.about['best_step']}"
        return f"Finetuned({trained} trained numbers; {curve}{dev})"

    def save(self, path: str | Path) -> Path:
        """Write everything into a folder: each update as an adapter of its own, the head, the history.

        Returns:
            The folder.

        Raises:
            TrainingError: If an update is of a kind that cannot be read back.
        """
        folder = Path(path).expanduser()
        kinds = [type(update).__name__ for update in self.updates]
        for place, kind in enumerate(kinds):
            if kind not in _UPDATES:
                raise TrainingError(unknown("kind of update", kind, _UPDATES))
            self.updates[place].save(folder / f"update-{place}")
        if isinstance(self.head, ClassificationHead):
            self.head.save(folder / "head")
        content = {
            "updates": kinds,
            "several": isinstance(self.lora, tuple),
            "head": self.head is not None,
            "history": storage.write_table(folder / "history.parquet", self.history),
            "about": dict(self.about),
        }
        storage.write_json(folder / "finetuned.json", SCHEMA, content)
        return folder

    @classmethod
    def load(cls, path: str | Path) -> "Finetuned":
        """Read what ``save`` wrote.

        Raises:
            StorageError: If there is nothing to read.
            CorruptArtefactError: If files are truncated or changed.
        """
        folder = Path(path).expanduser()
        content = storage.read_json(folder / "finetuned.json", SCHEMA)
        with storage.understood(folder / "finetuned.json"):
            history = storage.read_table(folder / "history.parquet", content["history"])
            loaded = [_UPDATES[kind].load(folder / f"update-{place}") for place, kind in enumerate(content["updates"])]
            several = tuple(cast(list[Update], loaded))
            head: Any = ClassificationHead.load(folder / "head") if content["head"] else None
            if content.get("positions") is not None:  # of version 0.1.0: the head read the padding
                head = replace(head, position="padding", positions=content["positions"])
            lora = several if content["several"] else next(iter(several), None)
            return cls(lora, head, history, content["about"])

    @contextmanager
    def attach(self, model: torch.nn.Module) -> Iterator[None]:
        """Let a model compute with every update inside the block.

        Raises:
            TrainingError: If an update belongs to another model.
        """
        with ExitStack() as stack:
            for update in self.updates:
                stack.enter_context(update.attach(model))
            yield

    def evaluate(self, model: torch.nn.Module, task: Task, *arguments: Any, **options: Any) -> Evaluation:
        """Evaluate a model with every update attached, and the head where there is one.

        Args:
            model: The model that was fine-tuned.
            task: What to score it on.
            arguments: As for ``ln.evaluate``.
            options: As for ``ln.evaluate``.

        Returns:
            Rows, scores and effects of patches inside the fine-tuned model.

        Raises:
            LangNeuronsError: As ``ln.evaluate``.
        """
        with self.attach(model):
            return evaluate(model, task, *arguments, head=self.head, **options)
