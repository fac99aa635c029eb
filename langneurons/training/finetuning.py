"""Fine-tuning: an update, and a head where the task has one, trained on a task or on text in chosen languages."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from langneurons import storage
from langneurons.corpora.languages import distinct, label_of
from langneurons.errors import TrainingError, warn_user
from langneurons.models import ModelView, view
from langneurons.patches import Patch
from langneurons.patches.intervening import check_fits
from langneurons.run import chosen_executor, say, working_in
from langneurons.settings import FinetuningOptions, Run, Training, with_options
from langneurons.tasks.heads import Head
from langneurons.tasks.task import Objective, Task
from langneurons.training.finetuned import Finetuned
from langneurons.training.loop import Dev, Loop, trained_parameters, watching
from langneurons.training.lora import Update
from langneurons.training.resuming import RunFolder
from langneurons.training.text import Text, TextTask, as_task, level, to_judge_by

WITHOUT_EFFECT = {"save_every", "tensorboard"}  # fields of Training that change nothing that is trained


def finetune(
    model: torch.nn.Module,
    task: Task | Text,
    update: Update | Sequence[Update] | None = None,
    *,
    languages: Iterable[str] | None = None,
    dev: Task | Text | None = None,
    head: Head | None = None,
    patches: Patch | Sequence[Patch] = (),
    training: Training = Training(),
    run: Run = Run(),
    **options: Unpack[FinetuningOptions],
) -> Finetuned:
    """Train an update, and for classification a head, on a task or on text; the model's own weights stay as they are.

    AdamW, with no dropout. Examples are seen in an order that ``seed`` and the epoch alone decide. Padding enters
    neither the loss nor, at ``position="last"``, the hidden state that is read. The update itself stays as it is: a
    copy is trained, so that the same call, made again, starts or continues from the same place.

    Args:
        model: A model returned by ``load_model``.
        task: A task that can be trained on: with ``XNLI`` a head is trained too; with ``XQuAD`` the model learns to
            generate the first right answer, and to end there. Or text, of which the next token is learned: a corpus,
            packed as ``HeldoutText.of`` packs it (as many tokens of each language), or text that is packed already.
        update: What to train: ``MaskedLoRA`` or another update, or several; None trains the head only.
        languages: Languages to train on, together; by default all that the task or text has.
        dev: A task of the same kind, or after training on text any task, or held-out text. It is measured in the
            languages that are trained on, and the mean of its main metric over them (of text, bits per byte) decides
            which parameters are kept; without it the last are.
        head: A head to start from, such as one from ``ClassificationHead.fit``; by default a random one.
        patches: Patches that are held while the model is trained and evaluated on ``dev``, such as neurons that are
            silenced.
        training: Settings of the training, such as steps and learning rate.
        run: Settings of the run. ``out`` keeps checkpoints and the log (``log.jsonl``): the same call continues exactly
            where it was interrupted, and returns at once what is finished. ``batch_size`` is that of evaluations on
            ``dev``, by default the one of the training.
        options: Single fields of ``Training`` and ``Run``, such as ``steps=50`` or ``out="runs/x"``.

    Returns:
        The trained update and head, and what happened at every step.

    Raises:
        TrainingError: If there is nothing to train, an option is out of its bounds, or the loss is no longer finite.
        TaskError: If a label is not among the classes, or texts do not fit the model.
        CorpusError: If the text is empty.
        LanguageError: If the task or ``dev`` lacks a language.
        StaleArtefactError: If ``out`` holds another fine-tuning.
        ExecutorError: If the work cannot run where it was asked to.

    Example:
        >>> import pandas as pd
        >>> rows = [("It rains.", "It is wet.", "entailment"), ("It rains.", "It is dry.", "contradiction")]
        >>> task = ln.XNLI.load({"en": pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])})
        >>> tuned = ln.finetune(model, task, steps=20, learning_rate=0.1, progress=False)
        >>> task.with_head(tuned.head).measure(model, "en")["accuracy"].tolist()
        [1.0, 1.0]
    """
    fields: dict[str, Any] = {**options}
    if "lora" in fields:
        warn_user("The argument lora is called update; the old name goes with 1.0.")
        update = fields.pop("lora")
    training, run = with_options(fields, training, run)
    task = as_task(task)
    languages = None if languages is None else distinct(languages, task.languages)
    patches = [patches] if isinstance(patches, Patch) else list(patches)
    if run.executor is not None:
        out = None if run.out is None else run.out.expanduser().resolve()  # workers are in other folders
        there = run.model_copy(update={"executor": None, "out": out})
        arguments: dict[str, Any] = {"languages": languages, "dev": dev, "head": head, "patches": patches}
        work = partial(finetune, update=update, training=training, run=there, **arguments)
        (tuned,) = chosen_executor(run.executor).map(model, work, [task])
        return tuned
    model_view = view(model)
    for patch in patches:
        check_fits(patch, model_view)
    if training.bfloat16 is None:
        can_autocast = model_view.device.type == "cuda" and torch.cuda.is_bf16_supported()
        training = training.model_copy(update={"bfloat16": can_autocast and model_view.dtype == torch.float32})
    objective = task.objective(model_view, languages, training, head)
    if not update and not objective.parameters():
        raise TrainingError(f"{task.name!r} trains no head, so there is nothing to train without update=.")
    parts = [] if update is None else [update] if isinstance(update, Update) else update
    updates = [deepcopy(part) for part in parts]
    for part in updates:
        part.prepare(model)
    languages, judge = list(task.languages) if languages is None else languages, None
    if dev is not None:
        dev = to_judge_by(model, dev)
        languages = [label_of(language, dev.languages, "dev language") for language in languages]
        judge = _dev(model, objective, dev, languages, run.batch_size or training.batch_size)
    elif training.patience is not None or training.evaluate_every is not None:
        raise TrainingError("patience and evaluate_every need something to evaluate on: give dev=.")
    identity = {
        **training.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "model": model_view.fingerprint,
        "backend": f"{model_view.backend}, {model_view.dtype}",
        "task": objective.fingerprint,
        "updates": [_described(part) for part in updates],
        "starting values": _values(trained_parameters(objective, updates)),
        "patches": [patch.fingerprint for patch in patches],
        "dev": None if dev is None else f"{dev.fingerprint} in {', '.join(languages)}",
    }
    with nullcontext() if run.out is None else working_in(run.out, "fine-tuning"):
        folder = None if run.out is None else _folder(model_view, run.out, identity)
        loop = Loop(model_view, objective, updates, training, patches, judge, folder)
        loop.restore()
        if not loop.done:
            say(f"Training {loop.steps - loop.step:,} steps.", run.progress)
            events = _events(folder, training)
            with watching(loop.steps, loop.step, run.progress, events) as watch:
                loop.run(watch)
    about = {
        "steps": loop.step,
        "best_step": loop.best_step,
        "stopped_early": loop.stopped_early,
        "metric": None if judge is None else judge.metrics[0],
        "settings": identity,
    }
    trained = updates[0] if isinstance(update, Update) else tuple(updates) or None
    return Finetuned(trained, objective.head(), loop.history.table(), about)


def _dev(model: torch.nn.Module, objective: Objective, dev: Task, languages: Sequence[str], batch_size: int) -> Dev:
    """What decides which parameters are kept: means over languages, of a task by its main metric."""
    of_text = isinstance(dev, TextTask)
    metrics = dev.metrics if of_text else dev.metrics[:1]
    if not of_text:
        objective.ask(dev)  # says before anything is trained whether it can be answered

    def measure() -> list[float]:
        task = dev if of_text else objective.ask(dev)
        tables = [task.measure(model, language, batch_size) for language in languages]
        return [float(np.mean([level(task, table, metric) for table in tables])) for metric in metrics]

    return Dev(metrics, of_text, measure)


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
    parts = [(name, value.detach().cpu().contiguous().flatten()) for name, value in sorted(parameters.items())]
    return storage.fingerprint(*(part for name, value in parts for part in (name, value.numpy().tobytes())))


def _folder(model_view: ModelView, out: Path, identity: Mapping[str, object]) -> RunFolder:
    if model_view.hooked:
        raise TrainingError(
            f"Something is attached to {model_view.name!r}, such as a patch, so what is trained cannot be kept for the "
            "model as it is: leave the block first and give patches=, or leave out= away."
        )
    return RunFolder(out, identity)


def _events(folder: RunFolder | None, training: Training) -> Path | None:
    if not training.tensorboard:
        return None
    if folder is None:
        raise TrainingError("tensorboard=True needs a folder for its events: give out=.")
    return folder.folder / "tensorboard"
