"""What fine-tuning gives: the trained update and head, the history of their training, and tasks asked of them."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from langneurons import storage
from langneurons.errors import LangNeuronsWarning, TrainingError, unknown
from langneurons.evaluation.evaluating import evaluate
from langneurons.evaluation.evaluation import Evaluation
from langneurons.storage import JsonObject, Result, Table
from langneurons.tasks.heads import ClassificationHead, Head
from langneurons.tasks.padded_head import PadPositionHead
from langneurons.tasks.task import Task
from langneurons.training.lora import MaskedIA3, MaskedLoRA, MaskedRows, Update

_UPDATES = {kind.__name__: kind for kind in (MaskedLoRA, MaskedRows, MaskedIA3)}


@dataclass(frozen=True, eq=False, repr=False)
class Finetuned(Result, kind="finetuned", tables=("history",)):
    """A trained update and head; ``finetune`` makes it.

    Args:
        update: The trained update, several, or None where only the head was trained.
        head: The trained head; None where answers are generated.
        history: One row per step: step (from 1), epoch (from 0), loss (a mean over examples, or over answer tokens in
            nats), learning_rate, grad_norm (before clipping), and dev, the main metric where it was measured, else NaN.
        about: What else there is to say: steps, best_step (whose parameters these are), metric (the name of dev's),
            stopped_early, model and settings.
    """

    update: Update | tuple[Update, ...] | None
    head: Head | None
    history: pd.DataFrame
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lora(self) -> Update | tuple[Update, ...] | None:
        """The name of ``update`` in version 0.1.0."""
        warnings.warn("Finetuned.lora is called Finetuned.update.", LangNeuronsWarning, stacklevel=2)
        return self.update

    @property
    def updates(self) -> tuple[Update, ...]:
        """The trained updates, as many as there are."""
        if self.update is None:
            return ()
        return self.update if isinstance(self.update, tuple) else (self.update,)

    @property
    def trainable(self) -> dict[str, int]:
        """Number of trained numbers, in each update (by its name) and in the head."""
        counts = {f"{index}: {update.name}": update.count() for index, update in enumerate(self.updates)}
        if len(counts) == 1:
            counts = {self.updates[0].name: self.updates[0].count()}
        linear = self.head.linear if isinstance(self.head, PadPositionHead) else self.head
        trained = linear.weight.numel() + linear.bias.numel() if isinstance(linear, ClassificationHead) else 0
        return counts | ({} if self.head is None else {"head": trained})

    @property
    def fingerprint(self) -> str:
        """A hash of everything that was trained, and of how."""
        values = [
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            for update in self.updates
            for _, value in sorted(update.state_dict().items())
        ]
        settings = json.dumps(self.about.get("settings"), sort_keys=True)
        return storage.fingerprint(settings, self.head.fingerprint if self.head else "", *values)

    def table(self) -> Table:
        """The history, under a line that says what was trained."""
        return Table(self.history, title=repr(self))

    def __repr__(self) -> str:
        trained = " + ".join(f"{name} ({count:,})" for name, count in self.trainable.items())
        losses = self.history["loss"]
        curve = f"{len(losses)} steps, loss {losses.iloc[0]:.3f} to {losses.iloc[-1]:.3f}" if len(losses) else "0 steps"
        best = max(self.history["dev"].dropna().tolist(), default=math.nan)
        dev = "" if math.isnan(best) else f", best {self.about['metric']} {best:.3f} at step {self.about['best_step']}"
        return f"Finetuned({trained} trained numbers; {curve}{dev})"

    @contextmanager
    def attach(self, model: torch.nn.Module) -> Iterator[None]:
        """Let a model compute with every update inside the block.

        Args:
            model: The model that was fine-tuned.

        Raises:
            TrainingError: If an update belongs to another model.
        """
        with ExitStack() as stack:
            for update in self.updates:
                stack.enter_context(update.attach(model))
            yield

    def ask(self, task: Task) -> Task:
        """Make a task that this fine-tuned model answers, wherever a task is taken, instead of the model as it is.

        Args:
            task: A task; where a head was trained, one that a head can answer.

        Returns:
            The same items, measured with every update attached, and answered by the head where there is one.

        Example:
            >>> import pandas as pd
            >>> rows = [("It rains.", "It is wet.", "entailment"), ("It rains.", "It is dry.", "contradiction")]
            >>> task = ln.XNLI.load({"en": pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])})
            >>> tuned = ln.finetune(model, task, steps=20, learning_rate=0.1, progress=False)
            >>> tuned.ask(task).measure(model, "en")["accuracy"].tolist()
            [1.0, 1.0]
        """
        return TunedTask(task if self.head is None else cast(Any, task).by_head(self.head), self)

    def evaluate(self, model: torch.nn.Module, task: Task, *arguments: Any, **options: Any) -> Evaluation:
        """Evaluate a model with every update attached, and the head where there is one.

        Args:
            model: The model that was fine-tuned.
            task: The task to score it on.
            arguments: Further arguments of ``ln.evaluate``.
            options: Options of ``ln.evaluate``.

        Returns:
            Rows, scores and effects of patches inside the fine-tuned model.

        Raises:
            LangNeuronsError: If ``ln.evaluate`` raises one.
        """
        with self.attach(model):
            return evaluate(model, task, *arguments, head=self.head, **options)

    def _write(self, folder: Path) -> JsonObject:
        """Write each update as an adapter of its own, the head, the history.

        Raises:
            TrainingError: If an update is of a kind that cannot be read back.
        """
        kinds = [type(update).__name__ for update in self.updates]
        for place, kind in enumerate(kinds):
            if kind not in _UPDATES:
                raise TrainingError(unknown("kind of update", kind, _UPDATES))
            self.updates[place].save(folder / f"update-{place}")
        padded = self.head.positions if isinstance(self.head, PadPositionHead) else None
        linear = self.head.linear if isinstance(self.head, PadPositionHead) else self.head
        if isinstance(linear, ClassificationHead):
            linear.save(folder / "head")
        return {
            "updates": kinds,
            "several": isinstance(self.update, tuple),
            "head": linear is not None,
            "positions": padded,
            "history": storage.write_table(folder / "history.parquet", self.history),
            "about": dict(self.about),
        }

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        kinds = content["updates"]
        updates = tuple(_UPDATES[kind].load(folder / f"update-{place}") for place, kind in enumerate(kinds))
        head: Any = ClassificationHead.load(folder / "head") if content["head"] else None
        if content["positions"] is not None:
            head = PadPositionHead(head, content["positions"])
        return {
            "update": updates if content["several"] else next(iter(updates), None),
            "head": head,
            "history": storage.read_table(folder / "history.parquet", content["history"]),
            "about": content["about"],
        }


@dataclass(frozen=True)
class TunedTask:
    """The items of a task, answered by a fine-tuned model.

    Args:
        task: The task, answered by the trained head where there is one.
        tuned: What was trained.
    """

    task: Any
    tuned: Finetuned

    name: str = field(init=False)
    protocol: str = field(init=False)
    metrics: tuple[str, ...] = field(init=False)
    generates: bool = field(init=False)
    languages: tuple[str, ...] = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        for name in ("name", "protocol", "metrics", "generates", "languages"):
            object.__setattr__(self, name, getattr(self.task, name))
        object.__setattr__(self, "fingerprint", storage.fingerprint(self.task.fingerprint, self.tuned.fingerprint))

    @property
    def items(self) -> Any:
        """The items of the task, per language."""
        return self.task.items

    def by_head(self, head: Head) -> "TunedTask":
        """The same task, answered by another head on the same fine-tuned model."""
        return replace(self, task=self.task.by_head(head))

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Score the fine-tuned model on the items of one language.

        Args:
            model: The model that was fine-tuned.
            language: Language of the items.
            batch_size: Texts per forward pass.

        Raises:
            TrainingError: If an update belongs to another model.
        """
        with self.tuned.attach(model):
            return self.task.measure(model, language, batch_size)

    def references(self, language: str) -> dict[str, float]:
        """What the main metric is worth without the model, by name, such as chance."""
        return self.task.references(language)
