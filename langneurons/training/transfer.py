"""The transfer experiment: train chosen neurons on one language, and measure what that is worth in others."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from langneurons import storage
from langneurons.corpora.loading import distinct
from langneurons.errors import LanguageError, TrainingError, unknown
from langneurons.evaluation.evaluating import Patches, chosen_languages, written_patches
from langneurons.evaluation.evaluation import UNPATCHED
from langneurons.evaluation.measuring import Job, check_reads_text, measure_jobs
from langneurons.identification.neurons import NeuronSet
from langneurons.models import view
from langneurons.patches.intervening import check_fits, patching
from langneurons.patches.patch import Patch
from langneurons.recording.statistics import ActivationStats
from langneurons.run import Executor, chosen_executor
from langneurons.settings import Testing
from langneurons.tasks.heads import LabelledPairs
from langneurons.tasks.task import Task
from langneurons.tasks.xquad import XQuAD
from langneurons.training.conditions import CONDITIONS, Condition
from langneurons.training.conditions import conditions as chosen_conditions
from langneurons.training.finetuned import Finetuned
from langneurons.training.finetuning import finetune
from langneurons.training.lora import MaskedLoRA
from langneurons.training.transfer_table import ROWS, TRAININGS, Transfer
from langneurons.training.update import Update

MakeUpdate = Callable[[NeuronSet | None, int], Update | None]
TEXTS = ("premise", "hypothesis", "context", "question")


def transfer_experiment(
    model: torch.nn.Module,
    task: LabelledPairs,
    test: Task,
    neurons: NeuronSet,
    source: str = "en",
    targets: Iterable[str] | None = None,
    conditions: Iterable[str] = CONDITIONS,
    seeds: int | Iterable[int] = 6,
    draws: int = 1,
    rank: int = 8,
    alpha: float = 16,
    projections: Sequence[str] = ("gate",),
    attention: Sequence[str] = ("q", "k", "v", "o"),
    update: MakeUpdate | None = None,
    patches: Patches | None = None,
    training_patches: Patch | Sequence[Patch] = (),
    stats: ActivationStats | None = None,
    delta: float = 0.01,
    seed: int = 0,
    resamples: int = 5000,
    out: str | Path | None = None,
    progress: bool = True,
    executor: str | Executor | None = None,
    **training: Any,
) -> Transfer:
    """Fine-tune on one language under several conditions and seeds, and evaluate every model in other languages.

    A condition is what is trained beside attention and head: "none", the neurons of the "source", of the "target" (one
    training a target), of both ("source+target"), "random" ones (as many in every layer as the source has; likewise
    "random target", "random source+target"), or "all". Every condition has the same seeds, which decide the order of
    the data and the first values of what all train, so that conditions are compared seed by seed.

    Args:
        model: From ``load_model``.
        task: What to train on, such as ``ln.XNLI.load(..., split="validation")`` or an ``XQuAD``.
        test: What to evaluate on, with items in the source and the targets, none of them trained on.
        neurons: With a label for the source and every target.
        source: The language of the training data.
        targets: The languages transferred to; None is all others of ``test``.
        conditions: Which.
        seeds: How many training seeds, or which; below six no difference gets a p-value.
        draws: Draws of random neurons a seed. A set of neurons is placed among all of them.
        rank: Of the ``MaskedLoRA`` that is trained.
        alpha: Its scale, divided by the rank.
        projections: Which of an MLP's projections it changes: "gate", "up", "down".
        attention: Which of attention's it changes as a whole: "q", "k", "v", "o".
        update: Makes something else to train of (neurons or None, seed): ``lambda neurons, seed: ...``.
        patches: As for ``evaluate``: every trained model is evaluated in the targets under each of them too.
        training_patches: Written while models are trained, but not while they are evaluated.
        stats: Statistics of the same model; random neurons then match in magnitude too.
        delta: A change below this counts as none: 0.01 is one point of accuracy or F1.
        seed: Of the resampling.
        resamples: Bootstrap samples.
        out: Folder that keeps every fine-tuning and everything measured; the same call goes on there.
        progress: Show a progress bar on standard error.
        executor: Where to train, as for ``ln.record``: one training is one piece of work.
        training: Of ``finetune``: steps, epochs, batch_size, learning_rate, dev, position and so on.

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
        >>> found = ln.transfer_experiment(
        ...     model, task, test, neurons, conditions=["none", "target"], seeds=2, steps=2, resamples=200,
        ...     progress=False,
        ... )
        >>> found.trainings[["condition", "target", "seed"]].to_numpy().tolist()
        [['none', '', 0], ['target', 'hi', 0], ['none', '', 1], ['target', 'hi', 1]]
        >>> found.effects().rows["seeds"].tolist()
        [2.0]
    """
    Testing(margin=delta, resamples=resamples)
    if "languages" in training:
        raise TrainingError("The training data is in one language: say which by source=, not by languages=.")
    places = _places(test, source, targets)
    _check_kinds(task, test)
    for name, items in (("training", task), ("dev", training.get("dev"))):
        if items is not None:
            check_apart(items, test, source, name)
    trained = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    chosen = chosen_conditions(neurons, source, places[1:], conditions, trained, draws, stats)
    make = _maker(rank, alpha, projections, attention) if update is None else update
    runs = [
        Run(one, number, make(one.neurons, number))
        for number in trained
        for one in chosen
        if one.seed in (None, number)
    ]
    written = written_patches(patches or {}, places[1:])
    folder = None if out is None else Path(out).expanduser().resolve()
    measuring = Measuring(model, test, written, places, training.get("batch_size", 8), folder)
    held_patches = [training_patches] if isinstance(training_patches, Patch) else list(training_patches)
    held = {"languages": [source], "patches": held_patches, "progress": False, **training}
    training_of = partial(train_and_measure, task=task, held=held, measuring=measuring)
    done = chosen_executor(executor).map(model, training_of, runs)
    trainings, rows = zip(*tqdm(done, total=len(runs), unit="training", disable=not progress), strict=True)
    return Transfer(
        rows=pd.concat(rows, ignore_index=True),
        trainings=pd.DataFrame(list(trainings), columns=TRAININGS),
        references=_references(test, places),
        settings={
            **_described(model, test),
            "source": source,
            "targets": places[1:],
            "neurons": repr(neurons),
            "update": next((repr(run.update) for run in runs if run.update is not None), "the head only"),
            "training": {name: repr(value) for name, value in training.items()},
            "training_patches": [repr(one) for one in held_patches],
            "patches": {" ".join(name): [repr(one) for one in parts] for name, parts in written.items()},
            "options": {"margin": delta, "seed": seed, "resamples": resamples},
        },
    )


@dataclass(frozen=True)
class Run:
    """One fine-tuning.

    Attributes:
        condition: What is trained.
        seed: The training seed.
        update: The same as an update; None trains a head only.
    """

    condition: Condition
    seed: int
    update: Update | None

    @property
    def name(self) -> str:
        """A name for its folder, such as ``"target-hi-seed3"``."""
        drawn = f"draw{self.condition.draw}" if self.condition.seed is not None else ""
        parts = [self.condition.name.replace(" ", "-"), self.condition.target, f"seed{self.seed}", drawn]
        return "-".join(part for part in parts if part)

    @property
    def about(self) -> tuple[str, str, int, int]:
        """Its columns in every table: condition, target, seed, draw."""
        return self.condition.name, self.condition.target, self.seed, self.condition.draw

    def languages(self, places: Sequence[str]) -> list[str]:
        """Where it is evaluated: in the source, and in the targets that it was trained for."""
        return [place for place in places if self.condition.target in ("", place) or place == places[0]]


@dataclass(frozen=True)
class Measuring:
    """Evaluates trained models.

    Attributes:
        model: What was trained.
        test: What it is evaluated on.
        patches: (name, language) -> patches written together, in the trained model.
        places: The source, then the targets.
        batch_size: Texts a forward.
        folder: Keeps what was measured; None keeps nothing.

    Raises:
        PatchError: If a patch does not fit.
        SiteMismatchError: If neurons or values belong to another model.
    """

    model: torch.nn.Module
    test: Task
    patches: Mapping[tuple[str, str], Sequence[Patch]]
    places: Sequence[str]
    batch_size: int
    folder: Path | None

    def __post_init__(self) -> None:
        for patch in (patch for parts in self.patches.values() for patch in parts):
            check_fits(patch, view(self.model))
            if not self.test.generates:
                check_reads_text(patch)

    def rows(self, run: Run, tuned: Finetuned) -> pd.DataFrame:
        """Score a trained model in every language, without and with patches: rows of a ``Transfer``."""
        task = _answered(self.test, tuned)
        written = {(UNPATCHED, place): [] for place in self.places} | dict(self.patches)
        jobs = {
            (patch, language): self._job(task, tuned, language, parts)
            for (patch, language), parts in written.items()
            if language in run.languages(self.places)
        }
        measured = measure_jobs(self.model, jobs, self.folder, progress=False)
        found = [_long(task, table).assign(patch=name[0], language=name[1]) for name, table in measured.items()]
        about = dict(zip(ROWS[:4], run.about, strict=True))
        return pd.concat(found, ignore_index=True).assign(**about).reindex(columns=ROWS)

    def _job(self, task: Task, tuned: Finetuned, language: str, patches: Sequence[Patch]) -> Job:
        def score() -> pd.DataFrame:
            # The update first: a patch written at its neurons then replaces what was trained, not the reverse.
            with tuned.attach(self.model), patching(view(self.model), patches):
                return task.measure(self.model, language, self.batch_size)

        about = storage.fingerprint(
            task.fingerprint, language, _trained_values(tuned), *(patch.fingerprint for patch in patches)
        )
        return Job((), about, score, task.generates)


def train_and_measure(
    model: torch.nn.Module, run: Run, task: LabelledPairs, held: Mapping[str, Any], measuring: Measuring
) -> tuple[tuple, pd.DataFrame]:
    """Fine-tune once and score what came out, wherever that is.

    Args:
        model: From ``load_model``.
        run: What is trained.
        task: What it is trained on.
        held: Further arguments of ``finetune``.
        measuring: Evaluates the trained model.

    Returns:
        A row of ``Transfer.trainings``, and rows of ``Transfer.rows``.
    """
    place = None if measuring.folder is None else measuring.folder / "trainings" / run.name
    tuned = finetune(model, task, run.update, seed=run.seed, out=place, **held)
    return (*run.about, len(run.condition.neurons or ()), *_cost(tuned)), measuring.rows(run, tuned)


def _places(test: Task, source: str, targets: Iterable[str] | None) -> list[str]:
    asked = [name for name in test.languages if name != source] if targets is None else distinct(targets)
    if not asked or source in asked:
        given = f"given {', '.join(asked)}" if asked else "none was given"
        raise TrainingError(f"A transfer experiment needs at least one target beside the source {source!r}, {given}.")
    for target in asked:
        if not storage.names_a_file(target):
            raise LanguageError(
                f"Targets become names of folders, which {target!r:.60} cannot be: a name has 1 to 100 bytes, "
                "no slash, and no dot in front."
            )
    return chosen_languages([test], [source]) + chosen_languages([test], asked)


def _check_kinds(task: Any, test: Any) -> None:
    answering = isinstance(task, XQuAD)
    if answering != bool(test.generates) or not (answering or hasattr(test, "by_head")):
        learned = "answers questions" if answering else "has a head"
        raise TrainingError(f"A model that {learned} cannot be tested by {test.name!r}: give a test of the same kind.")


def check_apart(task: Any, test: Any, source: str, name: str) -> None:
    """Refuse test items that are trained on, or that decide which parameters are kept.

    Args:
        task: What has ``items``: the training or the dev task.
        test: What is evaluated.
        source: The language of the training data.
        name: What the task is for: "training" or "dev".

    Raises:
        LanguageError: If the task has no items in that language.
        TrainingError: If it shares items with the test.
    """
    if source not in task.items:
        raise LanguageError(f"The task has no {name} data. {unknown('language', source, task.items)}")
    tested = getattr(test, "items", {}).get(source)
    if tested is None:
        return
    shared = [name for name in TEXTS if name in tested.columns and name in task.items[source].columns]
    same = tested[shared].drop_duplicates().merge(task.items[source][shared].drop_duplicates()) if shared else []
    if len(same):
        raise TrainingError(
            f"{len(same)} of the test items in {source!r} are among the {name} items: take another split, or divide "
            "the items by cluster."
        )


def _maker(rank: int, alpha: float, projections: Sequence[str], attention: Sequence[str]) -> MakeUpdate:
    def make(neurons: NeuronSet | None, seed: int) -> Update | None:
        if neurons is None and not attention:
            return None
        return MaskedLoRA(neurons, rank, alpha, projections, attention, seed)

    return make


def _answered(test: Any, tuned: Finetuned) -> Task:
    return test if tuned.head is None else test.by_head(tuned.head)


def _long(task: Task, rows: pd.DataFrame) -> pd.DataFrame:
    """One row an item and metric."""
    kept = rows.loc[:, ["item", "cluster", "prediction", "gold"]].astype(str)  # ids of one task may be numbers
    parts = [kept.assign(metric=metric, value=rows[metric].astype(float)) for metric in task.metrics]
    return pd.concat(parts, ignore_index=True)


def _trained_values(tuned: Finetuned) -> str:
    """A hash of everything that was trained."""
    values = [
        value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for update in tuned.updates
        for _, value in sorted(update.state_dict().items())
    ]
    settings = json.dumps(tuned.about["settings"], sort_keys=True)
    return storage.fingerprint(settings, tuned.head.fingerprint if tuned.head else "", *values)


def _cost(tuned: Finetuned) -> tuple[int, float]:
    """How many numbers were trained, and the mean loss of the last tenth of the steps."""
    losses = tuned.history["loss"].to_numpy()
    return sum(tuned.trainable.values()), float(losses[-max(1, len(losses) // 10) :].mean())


def _references(test: Task, places: Sequence[str]) -> pd.DataFrame:
    rows = [(place, name, value) for place in places for name, value in test.references(place).items()]
    return pd.DataFrame(rows, columns=["language", "reference", "value"])


def _described(model: torch.nn.Module, test: Task) -> dict[str, str]:
    seen = view(model)
    return {
        "model": f"{seen.name} ({seen.fingerprint[:8]}, {seen.backend})",
        "task": test.name,
        "protocol": test.protocol if test.generates else "head",
        "items": test.fingerprint,
    }
