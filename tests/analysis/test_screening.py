"""screen() predicts what ablation measures, says how well, and names the neurons worth ablating."""

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.analysis.screening import _agreement, screen
from langneurons.errors import EffectError, LanguageError, TaskError
from tests.analysis.ablation_models import PAIRS, neurons_at, texts, tiny
from tests.planted.patching import needed


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("site", ["pre", "act", "head"])
def test_predictions_are_directional_derivatives(pair, site):
    model = tiny(*pair)
    text = ln.HeldoutText.of(model, texts().select(["hi"]), context_length=32)
    found = screen(model, text, top=3, sample=20, site=site, progress=False)
    before = text.score(model)["nll"].sum()
    slopes, predicted = [], []
    for layer, unit in neurons_at(model, site).indices().tolist():
        neuron = neurons_at(model, site, units=[(layer, unit)])
        ends = []
        for factor in (0.98, 1.02):
            with ln.intervene(model, ln.Scale(neuron, factor)):
                ends.append(text.score(model)["nll"].sum())
        slopes.append((ends[0] - ends[1]) / 0.04 / before)
        predicted.append(float(found.predicted[0, layer, unit]))
    assert predicted == pytest.approx(slopes, rel=0.05, abs=2e-4)


def test_its_agreement_with_exact_ablation_is_measured_on_a_uniform_sample(tmp_path):
    model = tiny("gpt2", "auto")
    text = ln.HeldoutText.of(model, texts(), context_length=32)
    found = screen(model, text, top=7, sample=40, progress=False)
    assert found.predicted.shape == (2, 2, 128)
    assert found.agreement["n"].tolist() == [40, 40]
    assert found.agreement["k"].tolist() == [4, 4]
    for row in found.agreement.itertuples():
        part = found.sample.query("language == @row.language")
        ranks = part[["predicted", "exact"]].rank()
        assert row.spearman == pytest.approx(ranks.corr().iloc[0, 1])
        assert row.low <= row.spearman <= row.high
        assert row.recall_low <= row.recall <= row.recall_high
        assert row.spearman > 0.5
    assert [len(found.neurons[language]) for language in ("en", "hi")] == [7, 7]
    largest = found.predicted[0].abs().flatten().topk(7).indices.sort().values
    assert np.array_equal(found.neurons.members["en"], largest.numpy())
    assert "exact ablation of 40 neurons drawn at random" in repr(found)
    found.save(tmp_path)
    loaded = ln.load(tmp_path)
    assert loaded.neurons == found.neurons
    assert loaded.sample.equals(found.sample)
    assert repr(loaded) == repr(found)
    again = screen(model, text, top=7, sample=40, progress=False)
    assert again.agreement.equals(found.agreement)


def test_a_neuron_that_a_language_hangs_on_is_named():
    model, corpus, _, planted = needed()
    text = ln.HeldoutText.of(model, corpus, context_length=64)
    found = screen(model, text, top=3, sample=20, languages=["zh"], progress=False)
    assert found.languages == ("zh",)
    assert list(planted) in found.neurons["zh"].indices().tolist()


@pytest.mark.parametrize("changes", [{"top": 0}, {"top": 97}, {"sample": 3}])
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(EffectError, match="checked"):
        screen(tiny("llama", "auto"), texts(), **{"top": 3, "sample": 20, **changes}, progress=False)


def test_an_unknown_language_is_refused():
    with pytest.raises(LanguageError, match="fr"):
        screen(tiny("llama", "auto"), texts(), top=3, sample=20, languages=["fr"], progress=False)


def test_what_is_no_text_is_refused():
    with pytest.raises(TaskError, match="not on a str"):
        screen(tiny("llama", "auto"), "texts", top=3, sample=20, progress=False)


def test_predictions_without_agreement_to_speak_of_are_missing_not_wrong():
    table = pd.DataFrame({"language": "en", "predicted": 0.0, "exact": np.zeros(20)})
    found = _agreement("en", table, seed=0)
    assert np.isnan([found["spearman"], found["low"], found["high"]]).all()
