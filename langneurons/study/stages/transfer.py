"""Transfer: chosen neurons trained on one language, and what that is worth in others."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar

from pydantic import Field

import langneurons as ln
from langneurons.models.description import ModelDescription
from langneurons.settings import Controls, Count, Experiment, Training
from langneurons.study.stages import Cost, NeuronStage, Piece, Plan, Step, among, keyed, misnamed
from langneurons.study.stages.finetune import trained_tokens
from langneurons.study.stages.tasks import check_kind, examples, pair_tokens, patch_inputs
from langneurons.study.tables import Names, PatchedGrid, Split, StudyConfig
from langneurons.study.work import Work


class TransferPart(PatchedGrid):
    """Training chosen neurons on one language, and what that is worth in others."""

    moved: ClassVar[Mapping[str, str]] = {"language": "experiment.source"}

    patches: Names | None = Field([], description="under which every trained model is evaluated, too")
    kind: str = "xnli"
    source: str = Field(description="the task's files: a folder, the hub's name, or babel")
    revision: str | None = None
    train_split: Split = Field("train", description="such as train, or train[:25%]")
    test_split: Split = "test"
    train_items: Count | None = None
    test_items: Count | None = None
    experiment: Experiment = Experiment()
    training: Training = Training()
    controls: Controls = Controls(draws=1)


class TransferStage(
    NeuronStage[TransferPart],
    name="transfer",
    table="transfer",
    several=True,
    verb="transfer_experiment",
    section="transfer",
    judged=True,
):
    """Transfer experiments."""

    def work_on(self, plan: Plan, part: TransferPart, about: tuple[str, Sequence[str]]) -> Iterator[Piece]:
        """One for each table that has a target in the set."""
        model, languages = about
        if _targets(part, languages):
            patches = plan.config.patches_of(part)
            settings = {**keyed(part, "methods", "sets"), "source": plan.source("task", part.source)}
            yield "", {**settings, "patches": plan.patch_settings(patches)}, patch_inputs(model, patches)

    def mistakes_in(self, config: StudyConfig, where: str, part: TransferPart) -> Iterator[str]:
        """A kind of task that cannot be trained on, and languages that no set has."""
        yield from check_kind(where, part.kind, trained=True)
        languages = [code for name in part.sets or config.sets for code in config.sets[name]]
        yield from misnamed("language", f"{where}.targets", part.experiment.targets, languages)

    def run(self, step: Step, work: Work) -> None:
        """Train under every condition and seed, and evaluate."""
        neurons, stats = work.neurons(step)
        part = self.part_of(work.config, step)
        source, targets = part.experiment.source, _targets(part, step.settings["languages"])
        load = partial(ln.tasks.load_task, part.kind, part.source, seed=work.config.seed, revision=part.revision)
        ln.transfer_experiment(
            work.model(step),
            load([source], part.train_split, items=part.train_items),
            load([source, *targets], part.test_split, items=part.test_items),
            neurons,
            experiment=part.experiment.model_copy(update={"targets": tuple(targets)}),
            patches=work.patches(step, work.config.patches_of(part)) or None,
            controls=work.matched(part.controls, stats.at(neurons.site)),
            training=part.training,
            testing=work.config.testing,
            run=work.own(step, "training"),
        ).save(work.result(step))

    def cost(self, step: Step, config: StudyConfig, model: ModelDescription | None) -> Cost:
        """Every training, and the test of every trained model in every language and under every patch."""
        part = self.part_of(config, step)
        experiment, targets = part.experiment, _targets(part, step.settings["languages"])
        seeds = experiment.seeds if isinstance(experiment.seeds, int) else len(experiment.seeds)
        trained = trained_tokens(part.kind, part.training, examples(part.kind, part.train_split, part.train_items))
        tested = examples(part.kind, part.test_split, part.test_items) * pair_tokens(part.kind)
        tested *= 1 + len(targets) * (1 + len(config.patches_of(part)))
        return Cost(step.name, seeds * len(experiment.conditions) * (trained + tested))


def _targets(part: TransferPart, languages: Sequence[str]) -> list[str]:
    """The targets in a language set; none where it lacks the language of the training data."""
    source = part.experiment.source
    return [code for code in among(part.experiment.targets, languages) if code != source] if source in languages else []
