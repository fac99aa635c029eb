"""The transfer experiment: train chosen neurons on one language, and measure what that is worth in others."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Unpack

import pandas as pd
import torch

from langneurons import storage
from langneurons.corpora.languages import distinct, label_of, spelled
from langneurons.errors import LanguageError, TrainingError
from langneurons.evaluation.evaluating import Patches, long_rows, references_of, written_patches
from langneurons.evaluation.measuring import Job, check_reads_text, measure_jobs
from langneurons.evaluation.results import UNPATCHED
from langneurons.identification.neurons import NeuronSet
from langneurons.models import view
from langneurons.patches.intervening import check_fits, patching
from langneurons.patches.patch import Patch
from langneurons.run import Progress, alone_in_out, chosen_executor, say
from langneurons.settings import (
    Controls,
    Experiment,
    ExperimentOptions,
    Run,
    Testing,
    Training,
    controls_of,
    with_options,
)
from langneurons.tasks.task import Task
from langneurons.training.conditions import WHOLE, report_random
from langneurons.training.finetuned import Finetuned
from langneurons.training.finetuning import WITHOUT_EFFECT, finetune
from langneurons.training.masked import MaskedUpdate
from langneurons.training.planning import PlannedTraining, planned_trainings
from langneurons.training.resuming import History
from langneurons.training.text import (
    Text,
    TextTask,
    as_task,
    check_other_text,
    level,
    packed_once,
    to_judge_by,
    weighted,
)
from langneurons.training.transfer_table import MANIPULATION, ROWS, TRAININGS, Transfer

TEXTS = ("premise", "hypothesis", "context", "question")


@alone_in_out
def transfer_experiment(
    model: torch.nn.Module,
    task: Task | Text,
    test: Task | Text | Sequence[Task | Text],
    neurons: NeuronSet,
    *,
    experiment: Experiment = Experiment(),
    patches: Patches | None = None,
    controls: int | Controls = 1,
    training: Training = Training(),
    testing: Testing = Testing(),
    run: Run = Run(),
    **options: Unpack[ExperimentOptions],
) -> Transfer:
    """Fine-tune on one language under several conditions and seeds, and evaluate every model in other languages.

    A condition is what is trained beside attention and head: "none", the neurons of the "source", those of them that it
    shares with other languages ("shared") or has alone ("exclusive"), those of the "target" (one training per target),
    of both ("source+target"), "random" ones (as many in every layer as the source has; likewise "random target" and so
    on), or "all". "lora" trains the same projections of all neurons by LoRA, with as many parameters as "source" has;
    "full" every weight of the MLPs and of attention. Every condition has the same seeds, which decide the order of the
    data and the first values of what all train, so that conditions are compared seed by seed.

    On text, "none" without attention is the model as it is, and effects are relative changes of the loss: in the source
    what was learned, in the targets what was forgotten.

    Args:
        model: A model returned by ``load_model``.
        task: The task to train on, such as ``ln.XNLI.load(..., split="validation")`` or an ``XQuAD``, or text, see
            ``finetune``.
        test: The task or the held-out text to evaluate on, or several, with items in the source and the targets, none
            of them trained on; the first decides the languages and the main metric.
        neurons: Neurons with a label for the source and every target.
        experiment: Languages, conditions and seeds of the experiment, and what is trained of the neurons.
        patches: Patches by name, in any form that ``evaluate`` takes: every trained model is evaluated in the targets
            under each of them too.
        controls: Draws of random neurons per training seed, which decides the draw; a set of neurons is placed among
            all of them. With ``stats`` they match in magnitude too.
        training: Settings of every training; the seeds are those of the experiment.
        testing: Margin, intervals and tests of the effects.
        run: Settings of the run; one training is one piece of work. ``out`` keeps every fine-tuning and everything
            measured, so that the same call continues from there.
        options: Single fields of ``Experiment``, ``Controls``, ``Training``, ``Testing`` and ``Run``, such as
            ``seeds=6``, ``steps=50``, ``margin=0.02`` or ``out="runs/x"``.

    Returns:
        Scores, effects between conditions, effects of the patches, and a verdict.

    Raises:
        TrainingError: If a condition is unknown or would train nothing, test items were trained on, or training fails.
        LanguageError: If the neurons or a task lack a language, or a target cannot be the name of a folder.
        PatchError: If a patch does not fit.
        NeuronSetError: If a layer has too few neurons left to draw random ones from.
        StaleArtefactError: If ``out`` holds another experiment.
        ExecutorError: If the work cannot run where it was asked to.

    Example:
        >>> import pandas as pd
        >>> pairs = [(f"He has {n} cats.", f"He has {n + m} cats.", n, m) for n in range(8) for m in (0, 1)]
        >>> rows = [(premise, said, "contradiction" if m else "entailment") for premise, said, _, m in pairs]
        >>> table = pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])
        >>> task, test = ln.XNLI.load({"en": table[:8]}), ln.XNLI.load({"en": table[8:], "hi": table[8:]})
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> transfer = ln.transfer_experiment(
        ...     model, task, test, neurons, conditions=["none", "target"], seeds=2, steps=2, resamples=200,
        ...     progress=False,
        ... )
        >>> transfer.trainings[["condition", "target", "seed"]].to_numpy().tolist()
        [['none', '', 0], ['target', 'hi', 0], ['none', '', 1], ['target', 'hi', 1]]
        >>> transfer.effects().rows["seeds"].tolist()
        [2.0]
    """
    if "languages" in options:
        raise TrainingError("The training data is in one language: say which by source=, not by languages=.")
    settings = (experiment, controls_of(controls), training, testing, run)
    experiment, controls, training, testing, run = with_options(options, *settings)
    tests = [to_judge_by(model, part) for part in (test if isinstance(test, list | tuple) else [test])]
    languages = _languages(tests, experiment)
    experiment, neurons = experiment.model_copy(update={"source": languages[0]}), neurons.spelled_like(languages)
    task = packed_once(view(model), as_task(task), experiment.source)
    if experiment.dev is not None:
        experiment = experiment.model_copy(update={"dev": to_judge_by(model, experiment.dev)})
    for name, items in (("training", task), ("dev", experiment.dev)):
        if items is not None:
            for part in tests:
                check_apart(items, part, experiment.source, name)
    # Says before anything is trained whether the task can be trained on, and the tests be answered afterwards.
    objective = task.objective(view(model), [experiment.source], training, experiment.head)
    answered = [part if isinstance(part, TextTask) else objective.ask(part) for part in tests]
    trainings = planned_trainings(model, neurons, experiment, languages[1:], controls)
    balance = report_random((planned.condition for planned in trainings), neurons, experiment.source, controls)
    own_patches = written_patches(patches or {}, languages[1:])
    for patch in (patch for parts in own_patches.values() for patch in parts):
        check_fits(patch, view(model))
        if not all(part.generates for part in tests):
            check_reads_text(patch)
    held = experiment.training_patches
    held = [held] if isinstance(held, Patch) else list(held)
    train = partial(
        finetune, task=task, languages=[experiment.source], dev=experiment.dev, head=experiment.head, patches=held
    )
    out = None if run.out is None else run.out.expanduser().resolve()  # workers are in other folders
    quiet = Run(out=out, batch_size=run.batch_size or training.batch_size, progress=False)
    own = neurons.select([experiment.source]) if spelled(experiment.source, neurons.languages) else None
    trains_head = bool(objective.parameters())
    work = TrainingWork(train, training, tests, own_patches, languages, quiet, own, trains_head)
    steps = f"{training.steps:,} steps" if training.steps else f"{training.epochs:,} epochs"
    say(f"Training {len(trainings):,} times ({steps}), and testing each in {len(languages)} languages.", run.progress)
    results = chosen_executor(run.executor).map(model, work, trainings)
    bar = Progress(results, total=len(trainings), unit="training", shown=run.progress)
    costs, rows = zip(*bar, strict=True)
    updates = [planned.update for planned in trainings if planned.update is not None]
    return Transfer(
        rows=pd.concat(rows, ignore_index=True),
        trainings=pd.DataFrame(list(costs), columns=[*TRAININGS, *MANIPULATION]),
        references=references_of(tests[:1], languages).reindex(columns=["language", "reference", "value"]),
        settings={
            "model": view(model).described,
            "task": " and ".join(part.name for part in answered),
            "protocol": answered[0].protocol,
            "items": ", ".join(part.fingerprint for part in tests),
            "source": experiment.source,
            "targets": languages[1:],
            "neurons": repr(neurons),
            "update": repr(updates[0]) if updates else "the head only",
            "training": training.model_dump(mode="json", exclude={*WITHOUT_EFFECT, "seed"}),
            "dev": None if experiment.dev is None else experiment.dev.fingerprint,
            "training_patches": [repr(patch) for patch in held],
            "patches": {" ".join(name): [repr(patch) for patch in parts] for name, parts in own_patches.items()},
            "options": testing.model_dump(),
            **balance,
        },
    )


@dataclass(frozen=True)
class TrainingWork:
    """Fine-tunes once and scores the result in every language, without and with patches, wherever that runs.

    Attributes:
        train: ``finetune`` with all arguments but the model, the update, the training's settings and the run.
        training: Settings of the training; the seed is that of what is planned.
        tests: The tasks that trained models are scored on.
        patches: (name, language) -> patches written together, in the trained model.
        languages: The source, then the targets.
        run: Keeps what is trained and measured; texts per forward pass.
        neurons: The source's neurons, which are put back where all neurons are trained.
        trains_head: Whether a head is trained, even where nothing else is.
    """

    train: Callable[..., Finetuned]
    training: Training
    tests: Sequence[Task]
    patches: Mapping[tuple[str, str], Sequence[Patch]]
    languages: Sequence[str]
    run: Run
    neurons: NeuronSet | None = None
    trains_head: bool = True

    def __call__(self, model: torch.nn.Module, planned: PlannedTraining) -> tuple[tuple, pd.DataFrame]:
        """Give a row of ``Transfer.trainings``, and rows of ``Transfer.rows``."""
        out = None if self.run.out is None else self.run.out / "trainings" / planned.name
        training = self.training.model_copy(update={"seed": planned.seed})
        run = self.run.model_copy(update={"out": out})
        if planned.update is None and not self.trains_head:
            tuned, loss = Finetuned(None, None, History().table()), math.nan
        else:
            tuned = self.train(model, update=planned.update, training=training, run=run)
            losses = tuned.history["loss"].to_numpy()
            loss = float(losses[-max(1, len(losses) // 10) :].mean())  # of the last tenth of the steps
        cost = (*planned.about, len(planned.condition.neurons or ()), sum(tuned.trainable.values()), loss)
        return (*cost, *self._manipulation(model, planned, tuned)), self._rows(model, planned, tuned)

    def _rows(self, model: torch.nn.Module, planned: PlannedTraining, tuned: Finetuned) -> pd.DataFrame:
        tasks = self.tests if tuned.head is None else [test.with_head(tuned.head) for test in self.tests]
        patches = {(UNPATCHED, language): [] for language in self.languages} | dict(self.patches)
        jobs = {
            (index, name, language): self._job(model, task, tuned, language, parts)
            for index, task in enumerate(tasks)
            for (name, language), parts in patches.items()
            if language in planned.languages(self.languages)
        }
        about = dict(zip(ROWS[:4], planned.about, strict=True))
        rows = [
            weighted(tasks[index], table, long_rows(tasks[index], table, patch=patch, language=language, **about))
            for (index, patch, language), table in measure_jobs(model, jobs, self.run).items()
        ]
        weight = ["weight"] * any(isinstance(test, TextTask) for test in self.tests)
        return pd.concat(rows, ignore_index=True).reindex(columns=[*ROWS, *weight])

    def _manipulation(self, model: torch.nn.Module, planned: PlannedTraining, tuned: Finetuned) -> tuple[float, float]:
        """How far trained rows moved, and the share of the change of the loss that goes when they are put back."""
        update, test, source = tuned.update, self.tests[0], self.languages[0]
        if not isinstance(update, MaskedUpdate) or update.neurons is None:
            return math.nan, math.nan
        moved = update.moved(model)
        neurons = self.neurons if planned.condition.name in WHOLE else update.neurons
        if not isinstance(test, TextTask) or neurons is None:
            return moved, math.nan
        versions = {
            "before": replace(tuned, update=None, about={}),  # the same whatever was trained, so measured once
            "after": tuned,
            "put back": replace(tuned, update=update.without(neurons)),
        }
        jobs = {(name,): self._job(model, test, version, source, []) for name, version in versions.items()}
        before, after, put_back = (level(test, rows, "nll") for rows in measure_jobs(model, jobs, self.run).values())
        return moved, (put_back - after) / (before - after) if before != after else math.nan

    def _job(
        self, model: torch.nn.Module, task: Task, tuned: Finetuned, language: str, patches: Sequence[Patch]
    ) -> Job:
        def score() -> pd.DataFrame:
            # The update first: a patch written at its neurons then replaces what was trained, not the reverse.
            with tuned.attach(model), patching(view(model), patches):
                return task.measure(model, label_of(language, task.languages), self.run.batch_size or 8)

        about = storage.fingerprint(
            task.fingerprint, language, tuned.fingerprint, *(patch.fingerprint for patch in patches)
        )
        return Job((), about, score, task.generates)


def _languages(tests: Sequence[Task], experiment: Experiment) -> list[str]:
    """The source and the targets, as the first test spells them."""
    if not tests:
        raise TrainingError("A transfer experiment needs at least one test, none was given.")
    metrics = [metric for test in tests for metric in test.metrics]
    if len(set(metrics)) < len(metrics):
        raise TrainingError(f"Several tests measure the same metric, of {', '.join(metrics)}: give one of them.")
    test, *further = tests
    source, targets = label_of(experiment.source, test.languages), experiment.targets
    others = [name for name in test.languages if name != source]
    targets = others if targets is None else distinct(targets, test.languages)
    if not targets or source in targets:
        names = f"given {', '.join(targets)}" if targets else "none was given"
        raise TrainingError(f"A transfer experiment needs at least one target beside the source {source!r}, {names}.")
    for target in targets:
        if not storage.names_a_file(target):
            raise LanguageError(
                f"Targets become names of folders, which {target!r:.60} cannot be: a name has 1 to 100 bytes, "
                "no slash, and no dot in front."
            )
    for other in further:
        distinct([source, *targets], other.languages)  # refuses a language that it lacks
    return [source, *targets]


def check_apart(task: Task, test: Task, source: str, name: str) -> None:
    """Refuse test items that are trained on, or that decide which parameters are kept.

    Args:
        task: The training or the dev task; one without ``items`` cannot be compared with the test.
        test: The task that is evaluated.
        source: The language of the training data.
        name: Purpose of the task: "training" or "dev".

    Raises:
        LanguageError: If the task has no items in that language.
        TrainingError: If it shares items with the test.
    """
    label = label_of(source, task.languages, f"{name} language")
    if isinstance(task, TextTask) and isinstance(test, TextTask):
        check_other_text(task, test, source, name)
    test_items, items = (getattr(part, "items", {}).get(code) for part, code in ((test, source), (task, label)))
    if test_items is None or items is None:
        return
    shared = [column for column in TEXTS if column in test_items.columns and column in items.columns]
    same = test_items[shared].drop_duplicates().merge(items[shared].drop_duplicates()) if shared else []
    if len(same):
        raise TrainingError(
            f"{len(same)} of the test items in {source!r} are among the {name} items: take another split, or divide "
            "the items by cluster."
        )
