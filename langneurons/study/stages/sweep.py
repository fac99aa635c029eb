"""Sweeps: the neurons of a language given many values, every language measured under each."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

import langneurons as ln
from langneurons.errors import LangNeuronsError, PatchError
from langneurons.settings import Settings
from langneurons.study.stages import NeuronStage, Piece, Plan, Step, Units, among, keyed
from langneurons.study.stages.matrix import heldout
from langneurons.study.tables import Grid, Languages, StudyConfig
from langneurons.study.work import Work

Number = Annotated[float, Field(allow_inf_nan=False)]


class Doses(Settings):
    """Values that neurons are given; where none are listed, those of the deactivation sweep."""

    error: ClassVar[type[LangNeuronsError]] = PatchError

    constants: tuple[Number, ...] = Field((), description="Values that are written.")
    quantiles: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (), description="Quantiles, 0 to 1, of what each neuron does in its own language."
    )
    factors: tuple[Number, ...] = Field((), description="Factors that activations are multiplied by.")
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="Shares, up to 1, of the neurons to set to zero, those furthest ahead in their language first."
    )

    def listed(self) -> "list[ln.evaluation.Dose]":
        """What is done to the neurons, one after the other."""
        kinds = {"set": self.constants, "quantile": self.quantiles, "scale": self.factors, "cumulative": self.shares}
        doses = [ln.evaluation.Dose(kind, amount) for kind, amounts in kinds.items() for amount in amounts]
        return doses or list(ln.evaluation.deactivation_doses())


class SweepPart(Grid):
    """The neurons of each language given many values, every language measured under each."""

    languages: Languages | None = Field(None, description="whose neurons; all of the language set by default")
    doses: Doses = Doses()


class SweepStage(NeuronStage[SweepPart], name="sweep", judged=True):
    """A sweep over values for each neuron set."""

    def work_on(self, plan: Plan, part: SweepPart, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """One for each neuron set."""
        yield "", {**heldout(plan.config), "of": part.languages, "doses": keyed(part.doses)}, []

    def run(self, step: Step, part: SweepPart, work: Work) -> Any:
        """Measure every language under every dose of each language's neurons."""
        neurons, stats = work.neurons(step)
        languages = part.languages or [name for name in neurons.languages if len(neurons[name])]
        options = {"testing": work.config.testing, "run": work.measuring, "stats": stats}
        options |= {"languages": among(languages, neurons.languages)}
        return ln.sweep(work.model(step), work.heldout(step), neurons, part.doses.listed(), **options)

    def tokens(self, step: Step, part: SweepPart, config: StudyConfig, units: Units) -> float:
        """The held-out text unpatched, and under every dose of each language's neurons."""
        languages = step.settings["languages"]
        conditions = 1 + len(part.doses.listed()) * len(among(part.languages, languages))
        return (config.text.heldout_tokens or 0) * len(languages) * conditions
