"""Training: fine-tuned models, of which tasks may be asked, and transfer experiments with chosen neurons."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import langneurons as ln
from langneurons.corpora.languages import spelled
from langneurons.settings import Adapter, Controls, Count, Experiment, Run, Training
from langneurons.study.stages import (
    NeuronStage,
    Piece,
    Plan,
    Stage,
    Step,
    Units,
    among,
    keyed,
    misnamed,
    misnamed_languages,
)
from langneurons.study.stages.matrix import heldout
from langneurons.study.stages.record import BACKWARD
from langneurons.study.stages.tasks import check_kind, examples, pair_tokens, task_of, task_settings
from langneurons.study.tables import Names, Part, PatchedGrid, Split, StudyConfig
from langneurons.study.work import Work

if TYPE_CHECKING:
    import torch

TEXT = "text"  # a kind of training, beside the kinds of tasks
USUAL_TOKENS = 1_000_000  # of a language, where nothing says how many are recorded


class TrainedPart(Part):
    """The task that is trained on."""

    kind: str = "xnli"
    source: str = Field(min_length=1, description="the task's files: a folder, the hub's name, or babel")
    revision: str | None = None


class FinetuningPart(TrainedPart):
    """Attention, and for XNLI a head, trained on one language; tasks may be asked of such a model."""

    split: Split = Field("train", description="such as train, or train[:25%]")
    items: Count | None = Field(None, description="premises or questions; all by default")
    language: str = Field("en", min_length=1)
    adapter: Adapter = Adapter()
    training: Training = Training()


class FinetuneStage(Stage[FinetuningPart], name="finetune", table="finetuning", several=True, verb="finetune"):
    """Fine-tuned models."""

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """One for each table."""
        for entry, part in self.parts(plan.config).items():
            settings = {**keyed(part), "source": plan.source("task", part.source), **plan.model_settings(model)}
            yield Step(self, settings, model=model, entry=entry)

    def mistakes_in(self, config: StudyConfig, where: str, part: FinetuningPart) -> Iterator[str]:
        """A kind of task that does not exist, or cannot be trained on."""
        yield from check_kind(where, part.kind, trained=True)

    def run(self, step: Step, part: FinetuningPart, work: Work) -> Any:
        """Train one model, as one piece of work."""
        seed, run, adapter = work.config.seed, work.own(step, "training"), part.adapter
        load = partial(ln.tasks.load_task, items=part.items, seed=seed, revision=part.revision)
        items = load(part.kind, part.source, [part.language], part.split)
        update = ln.MaskedLoRA(None, adapter.rank, adapter.alpha, attention=adapter.attention, seed=seed)
        train = partial(_finetuned, training=part.training, run=run.model_copy(update={"executor": None}))
        (tuned,) = ln.run.chosen_executor(run.executor).map(work.model(step), train, [(items, update)])
        return tuned

    def tokens(self, step: Step, part: FinetuningPart, config: StudyConfig, units: Units) -> float:
        """A forward and a backward of every example."""
        return _trained_tokens(part.kind, part.training, examples(part.kind, part.split, part.items))


class TransferPart(TrainedPart, PatchedGrid):
    """Training chosen neurons on one language, and what that is worth in others."""

    old_names: ClassVar[Mapping[str, str]] = {"language": "experiment.source"}

    kind: str = Field("xnli", description="kind of the task, or text, to train on the study's own text")
    source: str = Field("", description="the task's files: a folder, the hub's name, or babel; of text, nothing")
    tasks: Names = Field([], description="which of the tasks every trained model is asked, too")
    patches: Names | None = Field([], description="under which every trained model is evaluated, too")
    train_split: Split = Field("train", description="such as train, or train[:25%]")
    test_split: Split = "test"
    train_items: Count | None = Field(None, description="premises or questions; of text, documents; all by default")
    train_tokens: Count | None = Field(
        None, description="of text, tokens of the source to train on; by default as many as are recorded"
    )
    test_items: Count | None = None
    experiment: Experiment = Experiment()
    training: Training = Training()
    controls: Controls = Controls(draws=1)


class TransferStage(
    NeuronStage[TransferPart], name="transfer", several=True, verb="transfer_experiment", judged=True, own="training"
):
    """Transfer experiments."""

    def work_on(self, plan: Plan, part: TransferPart, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """One for each table that has a target in the set."""
        if _targets(part, languages):
            patches, tasks = plan.config.patches_of(part), plan.config.tables("tasks")
            settings = keyed(part, "methods", "sets", "tasks")
            if part.experiment.form == "lora":
                del settings["experiment"]["form"]  # as the keys of version 0.2.0 are
            if part.train_tokens is None:
                del settings["train_tokens"]  # likewise
            settings |= heldout(plan.config) if part.kind == TEXT else {"source": plan.source("task", part.source)}
            settings |= {"tasks": {name: task_settings(plan, tasks[name]) for name in part.tasks}} if part.tasks else {}
            settings |= {"patches": plan.patch_settings(patches)}
            yield "", settings, plan.published(model, *patches.values())

    def mistakes_in(self, config: StudyConfig, where: str, part: TransferPart) -> Iterator[str]:
        """A kind of task that cannot be trained on, and languages that no set has."""
        if part.kind != TEXT:
            yield from check_kind(where, part.kind, trained=True)
            if not part.source:
                yield f"{where}.source is missing."
            if part.train_tokens is not None:
                yield f"{where}.train_tokens: only text is counted in tokens, so give train_items."
        elif part.test_items is not None:
            yield f"{where}.test_items: trained models are tested on text.heldout_tokens of text, so leave it out."
        tasks = config.tables("tasks")
        yield from misnamed("task", f"{where}.tasks", part.tasks, tasks)
        yield from (
            f"{where}.tasks: {name} is asked of a model that was tuned before, and not of those trained here."
            for name in part.tasks
            if name in tasks and tasks[name].tuned is not None
        )
        languages = [code for name in part.sets or config.sets for code in config.sets[name]]
        yield from misnamed_languages(f"{where}.targets", part.experiment.targets, languages)

    def run(self, step: Step, part: TransferPart, work: Work) -> Any:
        """Train under every condition and seed, and evaluate."""
        neurons, stats = work.neurons(step)
        source, targets = part.experiment.source, _targets(part, step.settings["languages"])
        train, test = _text(part, step, work) if part.kind == TEXT else _task(part, [source, *targets], work)
        further = [task_of(work.config.tables("tasks")[name], step, work) for name in part.tasks]
        options = self.settings(part, step, work)
        options["experiment"] = part.experiment.model_copy(update={"targets": tuple(targets)})
        options["patches"] = work.patches(step, work.config.patches_of(part)) or None
        options["stats"] = stats.at(neurons.site)
        options["run"] = work.own(_trainings(step), self.own)
        return ln.transfer_experiment(work.model(step), train, [test, *further], neurons, **options)

    def tokens(self, step: Step, part: TransferPart, config: StudyConfig, units: Units) -> float:
        """Every training, and the test of every trained model in every language and under every patch."""
        experiment, targets = part.experiment, _targets(part, step.settings["languages"])
        seeds = experiment.seeds if isinstance(experiment.seeds, int) else len(experiment.seeds)
        if part.kind == TEXT:
            tokens = part.train_tokens or config.recording.tokens_per_language or USUAL_TOKENS
            blocks = tokens / config.recording.context_length
            trained = _examples_seen(part.training, blocks) * config.recording.context_length * BACKWARD
            tested = config.text.heldout_tokens or 0
        else:
            trained = _trained_tokens(part.kind, part.training, examples(part.kind, part.train_split, part.train_items))
            tested = examples(part.kind, part.test_split, part.test_items) * pair_tokens(part.kind)
        tested *= 1 + len(targets) * (1 + len(config.patches_of(part)))
        return seeds * len(experiment.conditions) * (trained + tested)


def _trainings(step: Step) -> Step:
    """The step as each training depends on it, so that more seeds, conditions or tasks keep what has been trained."""
    settings = {name: value for name, value in step.settings.items() if name != "tasks"}
    settings["experiment"] = {
        name: value for name, value in settings["experiment"].items() if name not in ("seeds", "conditions")
    }
    return replace(step, settings=settings)


def _targets(part: TransferPart, languages: Sequence[str]) -> list[str]:
    """The targets in a language set; none where it lacks the language of the training data."""
    source = spelled(part.experiment.source, languages)
    return [code for code in among(part.experiment.targets, languages) if code != source] if source else []


def _task(part: TransferPart, languages: Sequence[str], work: Work) -> "tuple[ln.tasks.Task, ln.tasks.Task]":
    """What is trained on in the first language, and what is tested on in all."""
    load = partial(ln.tasks.load_task, part.kind, part.source, seed=work.config.seed, revision=part.revision)
    train = load(languages[:1], part.train_split, items=part.train_items)
    return train, load(languages, part.test_split, items=part.test_items)


def _text(part: TransferPart, step: Step, work: Work) -> "tuple[ln.HeldoutText, ln.HeldoutText]":
    """The text that neurons were found on, in the source, packed as it was recorded; and the held-out text."""
    text, recording = work.text(heldout=False), work.config.recording
    train = text.select([part.experiment.source])
    train = train if part.train_items is None else train.take(part.train_items)
    tokens = part.train_tokens or (recording.tokens_per_language if part.train_items is None else None)
    packed = ln.HeldoutText.of(work.model(step), train, tokens, recording.context_length)
    return packed, work.heldout(step)


def _trained_tokens(kind: str, training: Training, number: float) -> float:
    """Tokens of a training on a number of examples, in forwards."""
    return _examples_seen(training, number) * pair_tokens(kind) * BACKWARD


def _examples_seen(training: Training, number: float) -> float:
    """How many examples are seen in a training on a number of them."""
    return training.epochs * number if training.steps is None else training.steps * training.batch_size


def _finetuned(
    model: "torch.nn.Module", job: "tuple[ln.tasks.Task, ln.MaskedLoRA]", training: Training, run: Run
) -> "ln.training.Finetuned":
    return ln.finetune(model, *job, training=training, run=run)
