"""Ablation: every neuron of the sets ablated by itself."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

import langneurons as ln
from langneurons.settings import Controls
from langneurons.study.stages import NeuronStage, Piece, Plan, Step, Units, among, keyed
from langneurons.study.stages.matrix import heldout
from langneurons.study.tables import Grid, Languages, StudyConfig
from langneurons.study.work import Work

SHARE_OF_LAYERS = 0.5  # that lie above a neuron
USUAL_SHARE = 0.01  # of all neurons, where a method does not say how many it takes


class AblationPart(Grid):
    """Every neuron of the sets ablated by itself."""

    languages: Languages | None = Field(None, description="whose neurons; all of the language set by default")
    value: Literal["mean"] | float | int = 0
    controls: Controls = Controls(draws=0)


class AblationStage(NeuronStage[AblationPart], name="ablate", table="ablation", judged=True, own="ablation"):
    """Effects of single neurons."""

    def work_on(self, plan: Plan, part: AblationPart, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """One for each neuron set."""
        settings = {"of": part.languages, "value": part.value, "controls": keyed(part.controls)}
        yield "", {**heldout(plan.config), **settings}, []

    def run(self, step: Step, part: AblationPart, work: Work) -> Any:
        """Ablate every neuron."""
        neurons, stats = work.neurons(step)
        languages = part.languages or [name for name in neurons.languages if len(neurons[name])]
        neurons = neurons.select(among(languages, neurons.languages))
        options = {**self.settings(part, step, work), "value": part.value, "stats": stats}
        return ln.ablate(work.model(step), neurons, work.heldout(step), **options)

    def tokens(self, step: Step, part: AblationPart, config: StudyConfig, units: Units) -> float:
        """The held-out text through the layers above every neuron and its controls."""
        share = float(config.methods[step.method].options.get("top", USUAL_SHARE))
        ablated = units.get("act", 0) * share * (1 + part.controls.draws)
        tokens = (config.text.heldout_tokens or 0) * len(step.settings["languages"])
        return tokens * (1 + ablated * SHARE_OF_LAYERS)
