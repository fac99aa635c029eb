"""Fine-tuning: attention, and for some tasks a head, trained on one language; tasks may be asked of such a model."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from pydantic import Field

import langneurons as ln
from langneurons.models.description import ModelDescription
from langneurons.run import chosen_executor
from langneurons.settings import Adapter, Count, Training
from langneurons.study.stages import Cost, Plan, Stage, Step, keyed
from langneurons.study.stages.record import BACKWARD
from langneurons.study.stages.tasks import check_kind, examples, pair_tokens, trained_on
from langneurons.study.tables import Part, Split, StudyConfig
from langneurons.study.work import Work
from langneurons.training.finetuned import Finetuned


class FinetuningPart(Part):
    """Attention, and for XNLI a head, trained on one language; tasks may be asked of such a model."""

    kind: str = "xnli"
    source: str = Field(description="the task's files: a folder, the hub's name, or babel")
    revision: str | None = None
    split: Split = Field("train", description="such as train, or train[:25%]")
    items: Count | None = Field(None, description="premises or questions; all by default")
    language: str = "en"
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

    def run(self, step: Step, work: Work) -> None:
        """Train one model, as one piece of work."""
        part, seed = self.part_of(work.config, step), work.config.seed
        items = trained_on(part, part.items, seed)
        adapter = part.adapter
        update = ln.MaskedLoRA(None, adapter.rank, adapter.alpha, attention=adapter.attention, seed=seed)
        run = work.own(step, "training")
        train = partial(_finetuned, training=part.training, run=run.model_copy(update={"executor": None}))
        (tuned,) = chosen_executor(run.executor).map(work.model(step), train, [(items, update)])
        tuned.save(work.result(step))

    def cost(self, step: Step, config: StudyConfig, model: ModelDescription | None) -> Cost:
        """A forward and a backward of every example."""
        part = self.part_of(config, step)
        return Cost(step.name, trained_tokens(part.kind, part.training, examples(part.kind, part.split, part.items)))


def trained_tokens(kind: str, training: Training, number: float | int) -> float | int:
    """Tokens of a training, in forwards.

    Args:
        kind: Kind of the task.
        training: Settings of the training.
        number: Number of examples.
    """
    steps = training.steps
    examples = training.epochs * number if steps is None else steps * training.batch_size
    return examples * pair_tokens(kind) * BACKWARD


def _finetuned(model: Any, job: "tuple[Any, ln.MaskedLoRA]", **options: Any) -> Finetuned:
    return ln.finetune(model, *job, **options)
