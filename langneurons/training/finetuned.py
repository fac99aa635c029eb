"""What fine-tuning gives: the trained update and head, the history of their training, and tasks asked of them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch

from langneurons import storage
from langneurons.errors import TrainingError, unknown, warn_user
from langneurons.evaluation.evaluating import evaluate
from langneurons.evaluation.results import Evaluation
from langneurons.storage import JsonObject, Result, Table, layout
from langneurons.storage.layouts import Layout
from langneurons.tasks.heads import ClassificationHead, Head
from langneurons.tasks.task import Task
from langneurons.training import peft_format
from langneurons.training.lora import MaskedIA3, MaskedLoRA, MaskedRows, Update
from langneurons.training.masked import MaskedUpdate

_UPDATES = {kind.__name__: kind for kind in (MaskedLoRA, MaskedRows, MaskedIA3)}


@dataclass(frozen=True, eq=False, repr=False)
class Finetuned(Result, kind="finetuned", tables=("history",)):
    """A trained update and head; ``finetune`` makes it.

    Args:
        update: The trained update, several, or None where only the head was trained.
        head: The trained head; None where answers are generated.
        history: One row per step: step (from 1), epoch (from 0), loss (a mean over examples, or over answer tokens in
            nats), learning_rate, grad_norm (before clipping), and dev, the main metric where it was measured, else NaN;
            with held-out text (dev is in bits per byte) also dev_nll, in nats per token.
        about: What else there is to say: steps, best_step (whose parameters these are), metric (the name of dev's),
            stopped_early, model and settings.
    """

    hub_type: ClassVar[str] = "model"
    layouts: ClassVar[Mapping[str, Layout]] = {
        "history": layout(whole="step", number="loss dev epoch? learning_rate? grad_norm? dev_nll?"),
        "about": layout(text="metric?", whole="steps? best_step?", mapping="settings?"),
    }

    update: Update | tuple[Update, ...] | None
    head: Head | None
    history: pd.DataFrame
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lora(self) -> Update | tuple[Update, ...] | None:
        """The name of ``update`` in version 0.1.0."""
        warn_user("Finetuned.lora is called Finetuned.update; the old name goes with 1.0.")
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
        head = self.head
        trained = head.weight.numel() + head.bias.numel() if isinstance(head, ClassificationHead) else 0
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
        best = self.history.loc[self.history["step"] == self.about.get("best_step"), "dev"].dropna().tolist()
        dev = f", best {self.about['metric']} {best[0]:.3f} at step {self.about['best_step']}" if best else ""
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

    def ask(self, task: Task) -> "TunedTask":
        """Make a task that this fine-tuned model answers, wherever a task is taken, instead of the model as it is.

        Args:
            task: The task.

        Returns:
            The same items, measured with every update attached, and answered by the trained head where there is one.

        Example:
            >>> import pandas as pd
            >>> rows = [("It rains.", "It is wet.", "entailment"), ("It rains.", "It is dry.", "contradiction")]
            >>> task = ln.XNLI.load({"en": pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])})
            >>> tuned = ln.finetune(model, task, steps=20, learning_rate=0.1, progress=False)
            >>> tuned.ask(task).measure(model, "en")["accuracy"].tolist()
            [1.0, 1.0]
        """
        return TunedTask(task if self.head is None else task.with_head(self.head), self)

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

    def _check_parts(self) -> None:
        settings = layout(number="learning_rate? batch_size?", texts="updates?")
        settings.check("the settings of the training", self.about.get("settings") or {})
        if self.history["step"].duplicated().to_numpy().any():
            raise ValueError("a step of its history stands there twice")
        if self.history["dev"].notna().to_numpy().any():
            layout(text="metric", whole="best_step").check("what is said of the training", self.about)

    def _about(self) -> dict[str, object]:
        options = {"trained": self.trainable, "steps": self.about.get("steps"), **(self.about.get("settings") or {})}
        return {"model": self.about.get("model"), "method": "fine-tuning", "options": options}

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
        if isinstance(self.head, ClassificationHead):
            self.head.save(folder / "head")
        return {
            "updates": kinds,
            "several": isinstance(self.update, tuple),
            "head": self.head is not None,
            "history": storage.write_table(folder / "history.parquet", self.history),
            "about": dict(self.about),
        }

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        kinds = content["updates"]
        updates = tuple(_UPDATES[kind].load(folder / f"update-{place}") for place, kind in enumerate(kinds))
        head: Any = ClassificationHead.load(folder / "head") if content["head"] else None
        if content.get("positions") is not None:  # of version 0.1.0: the head reads the padding
            head = replace(head, position="padding", positions=content["positions"])
        return {
            "update": updates if content["several"] else next(iter(updates), None),
            "head": head,
            "history": storage.read_table(folder / "history.parquet", content["history"]),
            "about": content["about"],
        }


def load_updates(folder: str | Path, model: torch.nn.Module) -> tuple[MaskedUpdate, ...]:
    """Read the updates in a folder, of whatever kind they are.

    Args:
        folder: Folder of a ``Finetuned``, of an update, or of an adapter that peft wrote.
        model: The model that they were made for.

    Raises:
        StorageError: If there is none.
        CorruptArtefactError: If a file was changed since.
        TrainingError: If an update was made for another model.
    """
    folder = storage.path_of(folder)
    if (folder / f"{Finetuned.file}.json").exists():
        updates = [update for update in Finetuned.load(folder).updates if isinstance(update, MaskedUpdate)]
        for update in updates:
            update.prepare(model)
        return tuple(updates)
    kind = MaskedLoRA.kind
    if peft_format.is_ours(folder):
        kind = storage.read_json(folder / peft_format.SIDECAR, peft_format.SCHEMA).get("kind")
    kinds = {update.kind: update for update in _UPDATES.values()}
    if kind not in kinds:
        raise TrainingError(unknown("kind of update", kind, kinds))
    return (kinds[kind].load(folder, model),)


@dataclass(frozen=True)
class TunedTask(Task):
    """The items of a task, answered by a fine-tuned model.

    Args:
        task: The task, answered by the trained head where there is one.
        tuned: The trained update and head.
    """

    task: Task
    tuned: Finetuned

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name

    @property
    def protocol(self) -> str:
        """How the answer is read off the model."""
        return self.task.protocol

    @property
    def metrics(self) -> tuple[str, ...]:
        """The scores of the task, the main one first."""
        return self.task.metrics

    @property
    def generates(self) -> bool:
        """Whether the model generates."""
        return self.task.generates

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it has items in."""
        return self.task.languages

    @property
    def items(self) -> Any:
        """The items of the task, per language, where it has such."""
        return getattr(self.task, "items", {})

    @property
    def fingerprint(self) -> str:
        """A hash of the task and of what was trained."""
        return storage.fingerprint(self.task.fingerprint, self.tuned.fingerprint)

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
        """Values of the main metric without the model, by name, such as chance."""
        return self.task.references(language)

    def with_head(self, head: Head) -> "TunedTask":
        """The same items, answered by another head on the same fine-tuned model."""
        answered = self.task.with_head(head)
        return self if answered is self.task else replace(self, task=answered)

    def take(self, count: int, seed: int = 0) -> "TunedTask":
        """Some of the items, drawn at random."""
        return replace(self, task=self.task.take(count, seed))

    def select(self, languages: Iterable[str]) -> "TunedTask":
        """The same items in some of the languages."""
        return replace(self, task=self.task.select(languages))
