"""Protocols: a task in the protocol of Mondal et al. 2025 and in the sound one, under the same patches."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from pydantic import Field

import langneurons as ln
from langneurons.replication.published import PUBLISHED_METRICS
from langneurons.settings import Count
from langneurons.study.stages import NeuronStage, Piece, Plan, Step, Units, among, keyed, misnamed
from langneurons.study.stages.tasks import (
    PAIRS,
    head_items,
    item_tokens,
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
    NeuronStage[ProtocolsPart], name="protocols", several=True, section="answer", judged=True, verb=""
):
    """Comparisons of protocols."""

    def work_on(self, plan: Plan, part: ProtocolsPart, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """One for each table whose task has languages of the set."""
        task, patches = plan.config.tables("tasks")[part.task], plan.config.patches_of(part)
        if among(task.languages, languages):
            settings = {**keyed(part, "methods", "sets"), "patches": plan.patch_settings(patches)}
            further = plan.published(model, *patches.values()) + tuned_inputs(model, task)
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

    def run(self, step: Step, part: ProtocolsPart, work: Work) -> Any:
        """Ask in both protocols."""
        neurons, _ = work.neurons(step)
        table = work.config.tables("tasks")[part.task]
        task, model, head = task_of(table, step, work), work.model(step), None
        if not task.generates:
            with nullcontext() if table.tuned is None else work.tuned(step, table.tuned).attach(model):
                options = {"batch_size": work.run().batch_size or 8, "position": "padding", "positions": part.positions}
                head = ln.tasks.ClassificationHead.fit(model, head_items(table, part.head_items, work), **options)
        patches, languages = work.patches(step, work.config.patches_of(part)), patchable(task.languages, neurons)
        options = self.settings(part, step, work)
        return ln.replication.compare_protocols(model, task, patches, languages, published_head=head, **options)

    def tokens(self, step: Step, part: ProtocolsPart, config: StudyConfig, units: Units) -> float:
        """Every item in both protocols, unpatched and under every patch, and what the head is fitted on."""
        task = config.tables("tasks")[part.task]
        padded = PAIRS.get(task.kind, 0) * part.positions
        conditions = 1 + len(config.patches_of(part))
        items = task.items * len(among(task.languages, step.settings["languages"])) * conditions
        return items * (item_tokens(task) + padded) + part.head_items * padded
