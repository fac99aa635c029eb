"""The fine-tunings of a transfer experiment: under which condition, with which seed, and what each of them trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from langneurons.errors import TrainingError
from langneurons.identification.neurons import NeuronSet
from langneurons.models import view
from langneurons.models.projections import ATTENTION_TARGETS, MLP_TARGETS
from langneurons.settings import Controls, Experiment
from langneurons.training.conditions import FULL, LORA, Condition, conditions
from langneurons.training.lora import MaskedIA3, MaskedLoRA, MaskedRows, Update
from langneurons.training.masked import MaskedUpdate

FORMS: dict[str, Callable[..., MaskedUpdate]] = {"lora": MaskedLoRA, "rows": MaskedRows, "ia3": MaskedIA3}
MakeUpdate = Callable[[NeuronSet | None, int], Update | None]


@dataclass(frozen=True)
class PlannedTraining:
    """One fine-tuning of the experiment.

    Attributes:
        condition: The neurons that are trained.
        seed: The training seed.
        update: The update of those neurons; None trains a head only.
    """

    condition: Condition
    seed: int
    update: Update | None

    @property
    def name(self) -> str:
        """A name for its folder, such as ``"target-hi-seed3"``."""
        draw = f"draw{self.condition.draw}" if self.condition.seed is not None else ""
        parts = [self.condition.name.replace(" ", "-"), self.condition.target, f"seed{self.seed}", draw]
        return "-".join(part for part in parts if part)

    @property
    def about(self) -> tuple[str, str, int, int]:
        """Its columns in every table: condition, target, seed, draw."""
        return self.condition.name, self.condition.target, self.seed, self.condition.draw

    def languages(self, languages: Sequence[str]) -> list[str]:
        """Languages it is evaluated in: the source, and the targets that it was trained for."""
        source, target = languages[0], self.condition.target
        return [language for language in languages if target in ("", language) or language == source]


def planned_trainings(
    model: torch.nn.Module,
    neurons: NeuronSet,
    experiment: Experiment,
    targets: Sequence[str],
    controls: Controls,
) -> list[PlannedTraining]:
    """Plan every fine-tuning of an experiment, seed by seed.

    Args:
        model: A model returned by ``load_model``.
        neurons: Neurons with a label for the source and every target.
        experiment: What is trained, under which conditions and how often.
        targets: The languages transferred to.
        controls: How random neurons are drawn.

    Raises:
        TrainingError: If a condition is unknown or would train nothing.
        NeuronSetError: If a layer has too few neurons left to draw random ones from.
    """
    seeds = list(range(experiment.seeds)) if isinstance(experiment.seeds, int) else list(experiment.seeds)
    selections = conditions(neurons, experiment.source, targets, experiment.conditions, seeds, controls)
    of_neurons: MakeUpdate = _of_neurons(experiment) if experiment.update is None else experiment.update
    makers: dict[str, MakeUpdate] = {}
    if LORA in experiment.conditions:
        makers[LORA] = _as_large(model, neurons, experiment, of_neurons)
    if FULL in experiment.conditions:
        makers[FULL] = _whole(model)
    return [
        PlannedTraining(condition, seed, makers.get(condition.name, of_neurons)(condition.neurons, seed))
        for seed in seeds
        for condition in selections
        if condition.seed in (None, seed)
    ]


def _of_neurons(experiment: Experiment) -> MakeUpdate:
    """Makes the update of some neurons, and of attention."""

    def make(neurons: NeuronSet | None, seed: int) -> Update | None:
        if neurons is None and not experiment.attention:
            return None
        settings = experiment.model_dump(include={"rank", "alpha", "attention"})
        return FORMS[experiment.form](neurons, targets=experiment.projections, seed=seed, **settings)

    return make


def _as_large(model: torch.nn.Module, neurons: NeuronSet, experiment: Experiment, of_neurons: MakeUpdate) -> MakeUpdate:
    """Makes a LoRA on the same projections, of all neurons, with about as many parameters as the source's update."""
    (source,) = conditions(neurons, experiment.source, [], ["source"], [0], 0)
    update, model_view = of_neurons(source.neurons, 0), view(model)
    if update is None:
        raise TrainingError("The source's update trains nothing, so no LoRA can be as large.")
    update.prepare(model)
    targets = (*experiment.projections, *experiment.attention)
    each = sum(sum(model_view.projection(n, target).shape) for n in range(model_view.n_layers) for target in targets)
    rank = max(1, round(update.count() / each))
    alpha = experiment.alpha / experiment.rank * rank  # its usual scale, whatever the rank

    def make(neurons: NeuronSet | None, seed: int) -> Update:
        return MaskedLoRA(neurons, rank, alpha, experiment.projections, experiment.attention, seed)

    return make


def _whole(model: torch.nn.Module) -> MakeUpdate:
    """Makes an update of every weight of the MLPs and of attention."""
    projections = MLP_TARGETS if view(model).gated else ("gate", "down")

    def make(neurons: NeuronSet | None, seed: int) -> Update:
        return MaskedRows(neurons, projections, ATTENTION_TARGETS, rank=None, seed=seed)

    return make
