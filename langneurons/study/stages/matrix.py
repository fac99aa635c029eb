"""Perplexity matrices: one language's neurons patched, every language measured."""

from collections.abc import Iterator, Sequence
from typing import Any

import langneurons as ln
from langneurons.settings import Controls
from langneurons.study.stages import NeuronStage, Piece, Plan, Step, Units, keyed
from langneurons.study.tables import PatchedGrid, StudyConfig
from langneurons.study.wording import patch_maker
from langneurons.study.work import Work


class MatrixPart(PatchedGrid):
    """Perplexity matrices: patch one language's neurons, measure every language."""

    controls: Controls = Controls()


class MatrixStage(NeuronStage[MatrixPart], name="matrix", verb="perplexity_matrix", judged=True):
    """A perplexity matrix for each patch."""

    def work_on(self, plan: Plan, part: MatrixPart, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """One for each patch."""
        for name, patch in plan.config.patches_of(part).items():
            settings = {"write": patch.write, "controls": keyed(part.controls)}
            yield name, {**heldout(plan.config), **settings}, plan.published(model, patch)

    def mistakes_in(self, config: StudyConfig, where: str, part: MatrixPart) -> Iterator[str]:
        """Patches that also write at neurons of other languages."""
        for name, patch in config.patches_of(part).items():
            if set(patch.settings) - {"write", "also"} or any(patch.parts):
                yield (
                    f"matrix writes at one language's neurons as they are, and patches.{name} everywhere, in some "
                    "layers, at parts of them or at another dose: name its patches."
                )
            if patch.also:
                yield f"matrix writes at one language's neurons, and patches.{name} at others' also: name its patches."

    def run(self, step: Step, part: MatrixPart, work: Work) -> Any:
        """Measure every language under the patch of each."""
        neurons, stats = work.neurons(step)
        patch = patch_maker(str(step.settings["write"]), stats, work.published(step))
        options = {**self.settings(part, step, work), "patch": patch, "stats": stats.at(neurons.site)}
        return ln.perplexity_matrix(work.model(step), work.heldout(step), neurons, **options)

    def tokens(self, step: Step, part: MatrixPart, config: StudyConfig, units: Units) -> float:
        """The held-out text unpatched, and with each language's neurons, their controls, and frequent neutral ones."""
        languages = len(step.settings["languages"])
        return (config.text.heldout_tokens or 0) * languages * (1 + languages * (2 + part.controls.draws))


def heldout(config: StudyConfig) -> dict[str, int | None]:
    """What decides the held-out text, beside what decides the recording."""
    return config.text.model_dump(include={"heldout_tokens", "heldout_context"})
