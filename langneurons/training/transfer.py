"""The transfer experiment: train chosen neurons on one language, and measure what that is worth in others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Unpack

import pandas as pd
import torch
from tqdm import tqdm

from langneurons import storage
from langneurons.corpora.languages import distinct, label_of
from langneurons.errors import LanguageError, TrainingError
from langneurons.evaluation.evaluating import Patches, long_rows, references_of, written_patches
from langneurons.evaluation.measuring import Job, check_reads_text, measure_jobs
from langneurons.evaluation.results import UNPATCHED
from langneurons.identification.neurons import NeuronSet
from langneurons.models import view
from langneurons.patches.intervening import check_fits, patching
from langneurons.patches.patch import Patch
from langneurons.run import alone_in_out, chosen_executor
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
from langneurons.training.conditions import Condition, conditions, report_random
from langneurons.training.finetuned import Finetuned
from langneurons.training.finetuning import WITHOUT_EFFECT, check_task, finetune
from langneurons.training.lora import MaskedLoRA, Update
from langneurons.training.transfer_table import ROWS, TRAININGS, Transfer

TEXTS = ("premise", "hypothesis", "context", "question")


@alone_in_out
def transfer_experiment(
    model: torch.nn.Module,
    task: Task,
    test: Task,
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

    A condition is what is trained beside attention and head: "none", the neurons of the "source", of the "target" (one
    training per target), of both ("source+target"), "random" ones (as many in every layer as the source has; likewise
    "random target", "random source+target"), or "all". Every condition has the same seeds, which decide the order of
    the data and the first values of what all train, so that conditions are compared seed by seed.

    Args:
        model: A model returned by ``load_model``.
        task: The task to train on, such as ``ln.XNLI.load(..., split="validation")`` or an ``XQuAD``.
        test: The task to evaluate on, with items in the source and the targets, none of them trained on.
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
    check_task(task)
    check_task(test)
    languages = _languages(test, experiment)
    experiment, neurons = experiment.model_copy(update={"source": languages[0]}), neurons.spelled_like(languages)
    for name, items in (("training", task), ("dev", experiment.dev)):
        if items is not None:
            check_apart(items, test, experiment.source, name)
    # Says before anything is trained whether the task can be trained on, and the test be answered afterwards.
    answered_test = task.objective(view(model), [experiment.source], training, experiment.head).ask(test)
    trainings = _planned(neurons, experiment, languages[1:], controls)
    balance = report_random((planned.condition for planned in trainings), neurons, experiment.source, controls)
    own_patches = written_patches(patches or {}, languages[1:])
    for patch in (patch for parts in own_patches.values() for patch in parts):
        check_fits(patch, view(model))
        if not test.generates:
            check_reads_text(patch)
    held = experiment.training_patches
    held = [held] if isinstance(held, Patch) else list(held)
    train = partial(
        finetune, task=task, languages=[experiment.source], dev=experiment.dev, head=experiment.head, patches=held
    )
    out = None if run.out is None else run.out.expanduser().resolve()  # workers are in other folders
    quiet = Run(out=out, batch_size=run.batch_size or training.batch_size, progress=False)
    work = TrainingWork(train, training, test, own_patches, languages, quiet)
    results = chosen_executor(run.executor).map(model, work, trainings)
    bar = tqdm(results, total=len(trainings), unit="training", disable=not run.progress)
    costs, rows = zip(*bar, strict=True)
    updates = [planned.update for planned in trainings if planned.update is not None]
    return Transfer(
        rows=pd.concat(rows, ignore_index=True),
        trainings=pd.DataFrame(list(costs), columns=TRAININGS),
        references=references_of([test], languages).reindex(columns=["language", "reference", "value"]),
        settings={
            "model": view(model).described,
            "task": answered_test.name,
            "protocol": answered_test.protocol,
            "items": test.fingerprint,
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
class PlannedTraining:
    """One fine-tuning of the experiment.

    Attributes:
        condition: The neurons that are trained.
        seed: The training seed.
        update: The update of those neurons; None trains a head only.
    """

    condition: Condition
    seed: int
    update: Update | None

    @property
    def name(self) -> str:
        """A name for its folder, such as ``"target-hi-seed3"``."""
        draw = f"draw{self.condition.draw}" if self.condition.seed is not None else ""
        parts = [self.condition.name.replace(" ", "-"), self.condition.target, f"seed{self.seed}", draw]
        return "-".join(part for part in parts if part)

    @property
    def about(self) -> tuple[str, str, int, int]:
        """Its columns in every table: condition, target, seed, draw."""
        return self.condition.name, self.condition.target, self.seed, self.condition.draw

    def languages(self, languages: Sequence[str]) -> list[str]:
        """Languages it is evaluated in: the source, and the targets that it was trained for."""
        source, target = languages[0], self.condition.target
        return [language for language in languages if target in ("", language) or language == source]


@dataclass(frozen=True)
class TrainingWork:
    """Fine-tunes once and scores the result in every language, without and with patches, wherever that runs.

    Attributes:
        train: ``finetune`` with all arguments but the model, the update, the training's settings and the run.
        training: Settings of the training; the seed is that of what is planned.
        test: The task that trained models are scored on.
        patches: (name, language) -> patches written together, in the trained model.
        languages: The source, then the targets.
        run: Keeps what is trained and measured; texts per forward pass.
    """

    train: Callable[..., Finetuned]
    training: Training
    test: Task
    patches: Mapping[tuple[str, str], Sequence[Patch]]
    languages: Sequence[str]
    run: Run

    def __call__(self, model: torch.nn.Module, planned: PlannedTraining) -> tuple[tuple, pd.DataFrame]:
        """Give a row of ``Transfer.trainings``, and rows of ``Transfer.rows``."""
        out = None if self.run.out is None else self.run.out / "trainings" / planned.name
        training = self.training.model_copy(update={"seed": planned.seed})
        run = self.run.model_copy(update={"out": out})
        tuned = self.train(model, update=planned.update, training=training, run=run)
        losses = tuned.history["loss"].to_numpy()
        loss = float(losses[-max(1, len(losses) // 10) :].mean())  # of the last tenth of the steps
        cost = (*planned.about, len(planned.condition.neurons or ()), sum(tuned.trainable.values()), loss)
        return cost, self._rows(model, planned, tuned)

    def _rows(self, model: torch.nn.Module, planned: PlannedTraining, tuned: Finetuned) -> pd.DataFrame:
        task = self.test if tuned.head is None else self.test.with_head(tuned.head)
        patches = {(UNPATCHED, language): [] for language in self.languages} | dict(self.patches)
        jobs = {
            (name, language): self._job(model, task, tuned, language, parts)
            for (name, language), parts in patches.items()
            if language in planned.languages(self.languages)
        }
        about = dict(zip(ROWS[:4], planned.about, strict=True))
        rows = [
            long_rows(task, table, patch=patch, language=language, **about)
            for (patch, language), table in measure_jobs(model, jobs, self.run).items()
        ]
        return pd.concat(rows, ignore_index=True).reindex(columns=ROWS)

    def _job(
        self, model: torch.nn.Module, task: Task, tuned: Finetuned, language: str, patches: Sequence[Patch]
    ) -> Job:
        def score() -> pd.DataFrame:
            # The update first: a patch written at its neurons then replaces what was trained, not the reverse.
            with tuned.attach(model), patching(view(model), patches):
                return task.measure(model, language, self.run.batch_size or 8)

        about = storage.fingerprint(
            task.fingerprint, language, tuned.fingerprint, *(patch.fingerprint for patch in patches)
        )
        return Job((), about, score, task.generates)


def _planned(
    neurons: NeuronSet, experiment: Experiment, targets: Sequence[str], controls: Controls
) -> list[PlannedTraining]:
    seeds = list(range(experiment.seeds)) if isinstance(experiment.seeds, int) else list(experiment.seeds)

    def masked_lora(neurons: NeuronSet | None, seed: int) -> Update | None:
        if neurons is None and not experiment.attention:
            return None
        form = experiment.rank, experiment.alpha, experiment.projections, experiment.attention
        return MaskedLoRA(neurons, *form, seed)

    make = masked_lora if experiment.update is None else experiment.update
    selections = conditions(neurons, experiment.source, targets, experiment.conditions, seeds, controls)
    return [
        PlannedTraining(condition, seed, make(condition.neurons, seed))
        for seed in seeds
        for condition in selections
        if condition.seed in (None, seed)
    ]


def _languages(test: Task, experiment: Experiment) -> list[str]:
    """The source and the targets, as the test spells them."""
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
