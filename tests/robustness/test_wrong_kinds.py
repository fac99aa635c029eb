"""What is neither statistics, a neuron set nor a result is refused in a sentence, wherever one of them is asked for."""

import pytest

import langneurons as ln
from langneurons.errors import EffectError, NeuronSetError, StatisticsError, TrainingError

METHODS = [ln.LAPE(), ln.ActivationProbability(), ln.MeanDifference(), ln.AUROC(), ln.Random()]
METHODS += [
    getattr(ln.identification, name)()
    for name in ("Contrast", "EntropyLambda", "GradientRelevance", "MeanActivation", "SentenceAP", "TokenAP")
]
WANT_STATISTICS = {
    "histogram": lambda given: ln.plot.histogram(given, (0, 0)),
    "split_half": lambda given: ln.split_half(ln.LAPE(), given),
    "split_half of two": lambda given: ln.split_half(ln.LAPE(), (given, given)),
    "steering": lambda given: ln.DiffMean.everywhere(given, "hi"),
}
WANT_NEURONS = {
    "SetTo": lambda given: ln.SetTo(given, 0.0),
    "Add": lambda given: ln.Add(given, 1.0),
    "MaskedLoRA": ln.MaskedLoRA,
    "layer_heatmap": ln.plot.layer_heatmap,
    "layer_profile": ln.plot.layer_profile,
    "overlap": ln.plot.overlap,
    "sets": ln.plot.sets,
    "methods": ln.plot.methods,
    "methods by name": lambda given: ln.plot.methods({"a": given, "b": given}),
    "ablate": lambda given: ln.ablate(object(), given, object()),
    "sweep": lambda given: ln.sweep(object(), object(), given),
    "explore": lambda given: ln.explore(object(), given, given, given),
}
FIGURES_OF_RESULTS = {
    "ablation": (ln.plot.ablation, EffectError),
    "dose_response": (lambda given: ln.plot.dose_response(given, given, given, "hi"), EffectError),
    "effects": (ln.plot.effects, EffectError),
    "perplexity_matrix": (ln.plot.perplexity_matrix, EffectError),
    "selectivity": (ln.plot.selectivity, StatisticsError),
    "training": (ln.plot.training, TrainingError),
    "transfer": (ln.plot.transfer, TrainingError),
    "validity": (ln.plot.validity, StatisticsError),
}
GIVEN = ["runs/mine", 3, ["hi"], object()]


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_methods_refuse_what_is_no_statistics(method, given):
    for name in ("scores", "identify"):
        with pytest.raises(StatisticsError, match=r"such as ln\.record\(\) gives, not of type"):
            getattr(method, name)(given)


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("name", WANT_STATISTICS)
def test_what_needs_statistics_refuses_something_else(name, given):
    with pytest.raises(StatisticsError, match=f"not of type {type(given).__name__}"):
        WANT_STATISTICS[name](given)


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("name", WANT_NEURONS)
def test_what_needs_neurons_refuses_something_else(name, given):
    with pytest.raises(NeuronSetError, match=f"not of type {type(given).__name__}"):
        WANT_NEURONS[name](given)


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("name", FIGURES_OF_RESULTS)
def test_a_figure_of_a_result_refuses_something_else(name, given):
    figure, error = FIGURES_OF_RESULTS[name]
    with pytest.raises(error, match=f"not of type {type(given).__name__}"):
        figure(given)
