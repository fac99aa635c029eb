"""Sweeps: the neurons of a language given many values, every language measured under each."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

import langneurons as ln
from langneurons.study.stages import NeuronStage, Piece, Plan, Step, Units, among
from langneurons.study.stages.matrix import heldout
from langneurons.study.tables import Grid, Languages, StudyConfig
from langneurons.study.work import Work

Number = Annotated[float, Field(allow_inf_nan=False)]
# Key of the table -> the kind of dose that it lists.
KINDS = {"constants": "set", "quantiles": "quantile", "factors": "scale", "shares": "cumulative"}


class SweepPart(Grid):
    """The neurons of each language given many values; where no values are listed, those of the deactivation sweep."""

    languages: Languages | None = Field(None, description="whose neurons; all of the language set by default")
    constants: list[Number] = Field([], description="values that are written")
    quantiles: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [], description="quantiles, 0 to 1, of what each neuron does in its own language"
    )
    factors: list[Number] = Field([], description="factors that activations are multiplied by")
    shares: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [],
        description="shares, 0 to 1, of the neurons that are set to zero, those furthest ahead in the language first",
    )

    @property
    def doses(self) -> "list[ln.evaluation.Dose]":
        """What is done to the neurons."""
        doses = [ln.evaluation.Dose(kind, amount) for key, kind in KINDS.items() for amount in getattr(self, key)]
        return doses or list(ln.evaluation.deactivation_doses())


class SweepStage(NeuronStage[SweepPart], name="sweep", table="sweep", verb="sweep", section="sweep", judged=True):
    """A sweep over values for each neuron set."""

    def work_on(self, plan: Plan, part: SweepPart, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """One for each neuron set."""
        amounts = {key: getattr(part, key) for key in KINDS}
        yield "", {**heldout(plan.config), **amounts, "of": part.languages}, []

    def run(self, step: Step, part: SweepPart, work: Work) -> None:
        """Measure every language under every dose of each language's neurons."""
        neurons, stats = work.neurons(step)
        wanted = part.languages or [name for name in neurons.languages if len(neurons[name])]
        options = {**self.settings(part, step, work), "languages": among(wanted, neurons.languages)}
        text = work.heldout(step)
        ln.sweep(work.model(step), text, neurons, part.doses, stats=stats, **options).save(work.result(step))

    def tokens(self, step: Step, part: SweepPart, config: StudyConfig, units: Units) -> float:
        """The held-out text unpatched, and under every dose of each language's neurons."""
        languages = step.settings["languages"]
        conditions = 1 + len(part.doses) * len(among(part.languages, languages))
        return (config.text.heldout_tokens or 0) * len(languages) * conditions
