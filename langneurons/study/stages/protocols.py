"""Protocols: a task in the protocol of Mondal et al. 2025 and in the sound one, under the same patches."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

import langneurons as ln
from langneurons.models.description import ModelDescription
from langneurons.replication.protocols import compare_protocols
from langneurons.replication.published import PUBLISHED_METRICS
from langneurons.settings import Count
from langneurons.study.stages import Cost, NeuronStage, Piece, Plan, Step, among, keyed, misnamed
from langneurons.study.stages.tasks import (
    PAIRS,
    head_items,
    item_tokens,
    patch_inputs,
    patchable,
    task_of,
    task_settings,
    tuned_inputs,
)
from langneurons.study.tables import PatchedGrid, StudyConfig
from langneurons.study.work import Work


class ProtocolsPart(PatchedGrid):
    """A task in the protocol of Mondal et al. 2025 and in the sound one, under the same patches."""

    task: str = Field(description="which of the tasks: xquad, or xnli that is answered by a head")
    head_items: Count = Field(400, description="xnli: premises that the published head is fitted on")
    positions: Count = Field(256, description="xnli: the published head reads the last of as many, padded")


class ProtocolsStage(
    NeuronStage[ProtocolsPart], name="protocols", table="protocols", several=True, section="answer", judged=True
):
    """Comparisons of protocols."""

    def work_on(self, plan: Plan, part: ProtocolsPart, about: tuple[str, Sequence[str]]) -> Iterator[Piece]:
        """One for each table whose task has languages of the set."""
        model, languages = about
        task, patches = plan.config.tables("tasks")[part.task], plan.config.patches_of(part)
        if among(task.languages, languages):
            settings = {**keyed(part, "methods", "sets"), "patches": plan.patch_settings(patches)}
            further = [*patch_inputs(model, patches), *tuned_inputs(model, task)]
            yield "", {**settings, "task": task_settings(plan, task)}, further

    def mistakes_in(self, config: StudyConfig, where: str, part: ProtocolsPart) -> Iterator[str]:
        """Tasks that the paper has not, or answers otherwise."""
        tasks = config.tables("tasks")
        yield from misnamed("task", where, [part.task], tasks)
        task = tasks[part.task]
        kind = ln.tasks.KINDS[task.kind]
        if kind.metrics[0] not in PUBLISHED_METRICS:
            yield f"{where}: both protocols ask xnli or xquad, and {part.task!r} is {task.kind}."
        if not kind.generates and task.head is None and task.tuned is None:
            yield f"{where}: the published protocol answers by a head; give tasks.{part.task} head or tuned."

    def run(self, step: Step, work: Work) -> None:
        """Ask in both protocols."""
        neurons, _ = work.neurons(step)
        part = self.part_of(work.config, step)
        table = work.config.tables("tasks")[part.task]
        task, model, head = task_of(table, step, work), work.model(step), None
        if not task.generates:
            with work.attached(step, table.tuned):
                options: dict[str, Any] = {"position": "padding", "positions": part.positions}
                items, batch_size = head_items(table, part.head_items, work), work.run().batch_size or 8
                head = ln.tasks.ClassificationHead.fit(model, items, None, batch_size, **options)
        compare_protocols(
            model,
            task,
            work.patches(step, work.config.patches_of(part)),
            patchable(task.languages, neurons),
            published_head=head,
            testing=work.config.testing,
            run=work.measuring,
        ).save(work.result(step))

    def cost(self, step: Step, config: StudyConfig, model: ModelDescription | None) -> Cost:
        """Every item in both protocols, unpatched and under every patch, and what the head is fitted on."""
        part = self.part_of(config, step)
        task = config.tables("tasks")[part.task]
        padded = PAIRS.get(task.kind, 0) * part.positions
        conditions = 1 + len(config.patches_of(part))
        items = task.items * len(among(task.languages, step.settings["languages"])) * conditions
        return Cost(step.name, items * (item_tokens(task) + padded) + part.head_items * padded)
