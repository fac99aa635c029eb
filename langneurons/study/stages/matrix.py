"""Perplexity matrices: one language's neurons patched, every language measured."""

from collections.abc import Iterator, Sequence

import langneurons as ln
from langneurons.models.description import ModelDescription
from langneurons.settings import Controls
from langneurons.study.stages import Cost, NeuronStage, Piece, Plan, Step, keyed
from langneurons.study.tables import PatchedGrid, StudyConfig
from langneurons.study.wording import patch_maker
from langneurons.study.work import Work


class MatrixPart(PatchedGrid):
    """Perplexity matrices: patch one language's neurons, measure every language."""

    controls: Controls = Controls()


class MatrixStage(
    NeuronStage[MatrixPart], name="matrix", table="matrix", verb="perplexity_matrix", section="matrix", judged=True
):
    """A perplexity matrix for each patch."""

    def work_on(self, plan: Plan, part: MatrixPart, about: tuple[str, Sequence[str]]) -> Iterator[Piece]:
        """One for each patch."""
        for name, patch in plan.config.patches_of(part).items():
            further = [("published", about[0])] if patch.published else []
            yield name, {**heldout(plan.config), "write": patch.write, "controls": keyed(part.controls)}, further

    def mistakes_in(self, config: StudyConfig, where: str, part: MatrixPart) -> Iterator[str]:
        """Patches that also write at neurons of other languages."""
        for name, patch in config.patches_of(part).items():
            if patch.also:
                yield f"matrix writes at one language's neurons, and patches.{name} at others' also: name its patches."

    def run(self, step: Step, work: Work) -> None:
        """Measure every language under the patch of each."""
        neurons, stats = work.neurons(step)
        ln.perplexity_matrix(
            work.model(step),
            work.heldout(step),
            neurons,
            controls=work.matched(self.part_of(work.config, step).controls, stats.at(neurons.site)),
            patch=patch_maker(str(step.settings["write"]), stats, work.published(step)),
            testing=work.config.testing,
            run=work.measuring,
        ).save(work.result(step))

    def cost(self, step: Step, config: StudyConfig, model: ModelDescription | None) -> Cost:
        """The held-out text unpatched, and with each language's neurons, their controls, and frequent neutral ones."""
        languages, draws = len(step.settings["languages"]), self.part_of(config, step).controls.draws
        return Cost(step.name, (config.text.heldout_tokens or 0) * languages * (1 + languages * (2 + draws)))


def heldout(config: StudyConfig) -> dict[str, int | None]:
    """What decides the held-out text, beside what decides the recording."""
    return config.text.model_dump(include={"heldout_tokens", "heldout_context"})
