"""Stages on the held-out text: perplexity matrices, sweeps over values, ablation of single neurons."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

import langneurons as ln
from langneurons.errors import LangNeuronsError, PatchError
from langneurons.settings import Controls, Settings
from langneurons.study.stages import NeuronStage, Piece, Plan, Step, Units, among, keyed
from langneurons.study.tables import Grid, Languages, PatchedGrid, StudyConfig
from langneurons.study.wording import patch_maker
from langneurons.study.work import Work

SHARE_OF_LAYERS = 0.5  # that lie above a neuron
USUAL_SHARE = 0.01  # of all neurons, where a method does not say how many it takes
Number = Annotated[float, Field(allow_inf_nan=False)]


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
