"""The whole chain on a model whose neurons are known: corpus, record(), every method, against what was planted."""

import pandas as pd
import pytest

import langneurons as ln
from langneurons.identification import Contrast, GradientRelevance, SentenceAP
from tests.planted.model import BARS, LANGUAGES, LAYERS, PlantedModel, planted_model

METHODS = {
    "LAPE": ln.LAPE(top=0.1, filter_quantile=0.75),
    "LAPE, the paper's variant": ln.LAPE(top=0.1, filter_quantile=0.75, interpolation="linear", epsilon=1e-10),
    "ActivationProbability > 0": ln.ActivationProbability(threshold=0.0, top=0.04),
    "ActivationProbability > pooled-p90": ln.ActivationProbability(threshold="pooled-p90", top=0.04),
    "MeanActivation": ln.identification.MeanActivation(top=0.04),
    "MeanDifference": ln.MeanDifference(top=0.04),
    "TokenAP": ln.identification.TokenAP(top=0.04),
    "AUROC": ln.AUROC(top=0.04),
    "SentenceAP, high": SentenceAP(top=0.04, bottom=0.0),
    "Contrast": Contrast(top=0.04),
    "GradientRelevance": GradientRelevance(top=0.04),
    "GradientRelevance, specific": GradientRelevance(top=0.04, specific=True),
    "EntropyLambda": ln.identification.EntropyLambda(top=0.1),
    "Random": ln.Random(top=0.04),
}


def table(seed: int = 0) -> pd.DataFrame:
    """Recall of each kind of plant and the share of wrong neurons among those named, averaged over languages."""
    truth = planted_model(seed)
    stats = recorded(truth)
    return pd.DataFrame([{"method": name, **graded(method.identify(stats), truth)} for name, method in METHODS.items()])


def recorded(truth: PlantedModel) -> ln.ActivationStats:
    options = {"context_length": 128, "progress": False, "also": ("sentence", "gradient")}
    return ln.record(truth.model(), truth.corpus(), **options)


def graded(neurons: ln.NeuronSet, truth: PlantedModel) -> dict[str, float]:
    recall: dict[str, list[float]] = {kind: [] for kind in truth.neurons}
    wrong = []
    for language in LANGUAGES:
        named = {(int(a), int(b)) for a, b in neurons[language].indices()} if language in neurons.languages else set()
        for kind, plants in truth.neurons.items():
            own = {n for n, owner in plants.items() if language in owner or owner == ""}
            if own:
                recall[kind].append(len(named & own) / len(own))
        if named:
            wrong.append(1 - len(named & truth.of(language)) / len(named))
    return {kind: sum(found) / len(found) for kind, found in recall.items()} | {"FDR": sum(wrong) / len(wrong)}


@pytest.fixture(scope="module")
def results():
    return table().set_index("method")


def test_lape_finds_every_exclusive_and_shared_neuron_and_no_topic_neuron(results):
    for method in ("LAPE", "LAPE, the paper's variant"):
        assert results.loc[method, "exclusive"] == 1
        assert results.loc[method, "pair"] == 1
        assert results.loc[method, "topic"] == 0


def test_separating_methods_find_the_exclusive_neurons(results):
    separating = (
        "MeanDifference",
        "AUROC",
        "TokenAP",
        "ActivationProbability > pooled-p90",
        "SentenceAP, high",
        "Contrast",
    )
    for method in separating:
        assert results.loc[method, "exclusive"] >= 0.8


def test_the_control_finds_nothing_beyond_chance(results):
    assert results.loc["Random", "exclusive"] < 0.3
    assert results.loc["Random", "FDR"] > 0.7


def test_no_method_is_right_about_everything(results):
    """A grade that everything passes would grade nothing."""
    kinds = ["exclusive", "leaning", "pair"]
    assert ((results[kinds] < 0.9).any(axis=1) | (results["FDR"] > 0.1)).all()


if __name__ == "__main__":
    print(table().round(2).to_string(index=False))
    print(f"{len(BARS) * LAYERS} plants a kind and language")
