"""Fine-tuning: an update and a classification head, or an update alone, trained on a task in chosen languages."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from langneurons import storage
from langneurons.errors import LanguageError, TrainingError, unknown
from langneurons.models import ModelView, view
from langneurons.patches import Patch
from langneurons.patches.intervening import check_fits
from langneurons.settings import Training
from langneurons.tasks.heads import POSITIONS, Head
from langneurons.tasks.task import Objective, Task
from langneurons.training.finetuned import Finetuned
from langneurons.training.loop import Loop, trained, watching
from langneurons.training.resuming import RunFolder
from langneurons.training.settings import Settings
from langneurons.training.update import Update


def finetune(
    model: torch.nn.Module,
    task: Task,
    lora: Update | Sequence[Update] | None = None,
    *,
    languages: Iterable[str] | None = None,
    dev: Task | None = None,
    head: Head | None = None,
    position: str = "last",
    positions: int = POSITIONS,
    loss_on: str = "answer",
    epochs: int = 1,
    steps: int | None = None,
    batch_size: int = 8,
    accumulate: int = 1,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup: float = 0.05,
    schedule: str = "linear",
    clip: float | None = 1.0,
    bfloat16: bool | None = None,
    gradient_checkpointing: bool = False,
    evaluate_every: int | None = None,
    patience: int | None = None,
    patches: Patch | Sequence[Patch] = (),
    seed: int = 0,
    out: str | Path | None = None,
    save_every: float = 60.0,
    tensorboard: bool = False,
    progress: bool | str = True,
) -> Finetuned:
    """Train an update, and for classification a head, on a task; the model's own weights stay as they are.

    AdamW, with no dropout. Examples are seen in an order that ``seed`` and the epoch alone decide. Padding enters
    neither the loss nor, at ``position="last"``, the hidden state that is read. The update given stays as it is: a
    copy is trained, so that the same call, made again, starts or goes on from the same place.

    Args:
        model: From ``load_model``.
        task: A task that can be trained on: of ``XNLI`` a head is trained too; of ``XQuAD`` the model learns to
            generate the first right answer, and to end there.
        lora: What to train: ``MaskedLoRA`` or another update, or several; None trains the head only.
        languages: Which of the task's to train on, together; None is all.
        dev: A task of the same kind, measured in the languages that are trained on. The mean of its main metric over
            them decides which parameters are kept; without it the last are.
        head: The head to start from, such as one from ``ClassificationHead.fit``; None is a random one.
        position: What the head reads: ``"last"`` is the last real token, ``"padding"`` the paper's position.
        positions: To how many tokens a pair is padded, or cut, for ``"padding"``.
        loss_on: ``"answer"``, or ``"all"``: the prompt too, as the paper does.
        epochs: How often every example is seen.
        steps: How many steps are taken instead.
        batch_size: Examples a forward.
        accumulate: Forwards a step; ``batch_size`` x ``accumulate`` examples change the parameters once.
        learning_rate: The highest.
        weight_decay: Of AdamW, on every trained parameter.
        betas: Of AdamW.
        warmup: The share of steps in which the learning rate rises.
        schedule: ``"linear"``: afterwards it falls to 0; ``"constant"``: it stays.
        clip: The largest norm of a step's gradient; None clips nothing.
        bfloat16: Compute in bfloat16 where autocast does; None is so for single-precision models on GPUs that can.
        gradient_checkpointing: Save memory for the time of another forward.
        evaluate_every: Steps between evaluations; None is once an epoch.
        patience: After how many evaluations without a better one to stop; None never does.
        patches: Written while the model is trained and evaluated.
        seed: Of the order of examples and of a random head.
        out: Folder for checkpoints and the log (``log.jsonl``). The same call goes on exactly where it was
            interrupted, and returns at once what is finished.
        save_every: Seconds between checkpoints; there is one after each evaluation too.
        tensorboard: Write events for TensorBoard into ``out``.
        progress: Show a bar on standard error; ``"notebook"`` shows the loss as a growing curve too.

    Returns:
        The trained update and head, and what happened at every step.

    Raises:
        TrainingError: If there is nothing to train, a setting makes no sense, or the loss is no longer finite.
        TaskError: If a label is not among the classes, or texts do not fit the model.
        LanguageError: If the task or ``dev`` lacks a language.
        StaleArtefactError: If ``out`` holds another fine-tuning.

    Example:
        >>> import pandas as pd
        >>> rows = [("It rains.", "It is wet.", "entailment"), ("It rains.", "It is dry.", "contradiction")]
        >>> task = ln.XNLI.load({"en": pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])})
        >>> tuned = ln.finetune(model, task, steps=20, learning_rate=0.1, progress=False)
        >>> task.with_head(tuned.head).measure(model, "en")["accuracy"].tolist()
        [1.0, 1.0]
    """
    _check_choices(task, progress)
    seen = view(model)
    held = [patches] if isinstance(patches, Patch) else list(patches)
    for patch in held:
        check_fits(patch, seen)
    asked = None if languages is None else list(languages)
    settings = Settings(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        betas=betas,
        warmup=warmup,
        schedule=schedule,
        clip=clip,
        bfloat16=_can_autocast(seen) if bfloat16 is None else bfloat16,
        gradient_checkpointing=gradient_checkpointing,
        evaluate_every=evaluate_every,
        patience=patience,
        seed=seed,
    )
    shape: dict[str, Any] = {"loss_on": loss_on, "position": position, "positions": positions, "seed": seed}
    objective = task.objective(seen, asked, Training(**shape), head)
    if lora is None and not objective.parameters():
        raise TrainingError(f"{task.name!r} trains no head, so there is nothing to train without an update: lora=.")
    if dev is not None:
        objective.ask(dev)  # says now whether it can be answered
    updates = _prepared(lora, model)
    measured_in = _dev_languages(dev, asked if asked is not None else list(task.languages), settings)

    def score() -> float:
        assert dev is not None
        task_of_dev = objective.ask(dev)
        rows = [task_of_dev.measure(model, language, batch_size) for language in measured_in]
        return float(np.mean([table[task_of_dev.metrics[0]].mean() for table in rows]))

    identity = _identity(seen, objective, updates, settings, held, dev, measured_in)
    with nullcontext() if out is None else storage.alone(Path(out).expanduser(), "fine-tuning"):
        folder = None if out is None else _folder(seen, out, identity)
        loop = Loop(seen, objective, updates, settings, held, None if dev is None else score, folder, save_every)
        loop.restore()
        if not loop.done:
            events = _events(folder, tensorboard)
            with watching(loop.steps, loop.step, progress, events) as watch:
                loop.run(watch)
        return _result(loop, objective, updates, lora, identity, dev)


def _check_choices(task: object, progress: bool | str) -> None:
    if not isinstance(task, Task):
        raise TrainingError(f"A task is an XNLI, an XQuAD or another Task, not {type(task).__name__}.")
    if progress not in (True, False, "notebook"):
        raise TrainingError(unknown("progress", progress, (True, False, "notebook")))


def _can_autocast(seen: ModelView) -> bool:
    return seen.device.type == "cuda" and torch.cuda.is_bf16_supported() and seen.dtype == torch.float32


def _prepared(lora: Update | Sequence[Update] | None, model: torch.nn.Module) -> list[Update]:
    given = [] if lora is None else [lora] if isinstance(lora, Update) else list(lora)
    updates = [deepcopy(update) for update in given]
    for update in updates:
        update.prepare(model)
    return updates


def _dev_languages(dev: Task | None, trained_on: list[str], settings: Settings) -> list[str]:
    if dev is None:
        if settings.patience is not None or settings.evaluate_every is not None:
            raise TrainingError("patience and evaluate_every need something to evaluate on: give dev=.")
        return []
    for language in trained_on:
        if language not in dev.languages:
            raise LanguageError(
                f"dev lacks a language that is trained on. {unknown('language', language, dev.languages)}"
            )
    return trained_on


def _identity(
    seen: ModelView,
    objective: Objective,
    updates: Sequence[Update],
    settings: Settings,
    patches: Sequence[Patch],
    dev: Task | None,
    measured_in: list[str],
) -> dict[str, Any]:
    """Everything that decides what comes out, by name, as JSON keeps it."""
    return {
        **asdict(settings),
        "betas": list(settings.betas),
        "model": seen.fingerprint,
        "backend": f"{seen.backend}, {seen.dtype}",
        "task": objective.fingerprint,
        "updates": [_described(update) for update in updates],
        "starting values": _values(trained(objective, updates)),
        "patches": [patch.fingerprint for patch in patches],
        "dev": None if dev is None else f"{dev.fingerprint} in {', '.join(measured_in)}",
    }


def _described(update: Update) -> str:
    """An update's settings, and the neurons that it trains."""
    plain = {
        name: value for name, value in sorted(vars(update).items()) if isinstance(value, int | float | str | tuple)
    }
    settings = ", ".join(f"{name}={value}" for name, value in plain.items() if not name.startswith("_"))
    neurons = update.neurons
    of = None if neurons is None else (neurons.site, neurons.shape, neurons.indices().tolist())
    return f"{update.name} ({settings}) of neurons {storage.fingerprint(str(of))[:8]}"


def _values(parameters: Mapping[str, torch.Tensor]) -> str:
    parts = [(name, one.detach().cpu().contiguous().flatten()) for name, one in sorted(parameters.items())]
    return storage.fingerprint(*(part for name, one in parts for part in (name, one.numpy().tobytes())))


def _folder(seen: ModelView, out: str | Path, identity: dict[str, Any]) -> RunFolder:
    if seen.hooked:
        raise TrainingError(
            f"Something is attached to {seen.name!r}, such as a patch, so what is trained cannot be kept for the model "
            "as it is: leave the block first and give patches=, or leave out= away."
        )
    return RunFolder(out, identity)


def _events(folder: RunFolder | None, tensorboard: bool) -> Path | None:
    if not tensorboard:
        return None
    if folder is None:
        raise TrainingError("tensorboard=True needs a folder for its events: give out=.")
    return folder.folder / "tensorboard"


def _result(
    loop: Loop,
    objective: Objective,
    updates: Sequence[Update],
    lora: object,
    identity: dict[str, Any],
    dev: Task | None,
) -> Finetuned:
    about = {
        "steps": loop.step,
        "best_step": loop.best_step,
        "stopped_early": loop.stopped_early,
        "metric": None if dev is None else dev.metrics[0],
        "settings": identity,
    }
    one = updates[0] if isinstance(lora, Update) else tuple(updates) or None
    return Finetuned(one, objective.head(), loop.history.table(), about)
