import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.errors import LangNeuronsWarning, TrainingError
from langneurons.views.plot import FIGURES
from tests.planted.transfer import simulated


def history(steps=40, every=10):
    dev = [step / 100 if step % every == 0 else np.nan for step in range(1, steps + 1)]
    return pd.DataFrame({"step": range(1, steps + 1), "loss": np.linspace(2, 1, steps), "dev": dev})


def test_the_loss_is_drawn_with_its_running_mean_and_the_development_score_on_its_own_axis():
    traces = {trace.name: trace for trace in ln.plot.training(history()).data}
    assert list(traces["loss"].y) == pytest.approx(np.linspace(2, 1, 40))
    assert traces["running mean"].y[1] == pytest.approx(np.linspace(2, 1, 40)[:2].mean())
    assert list(traces["dev"].x) == [10, 20, 30, 40]
    assert traces["dev"].yaxis == "y2"


def test_without_development_scores_there_is_one_axis():
    figure = ln.plot.training(history(every=100))
    assert len(figure.data) == 2
    assert figure.layout.yaxis.title.text == "loss, nats"
    assert figure.layout.title.text == "Fine-tuning: loss"


def test_a_fine_tuning_is_drawn_by_its_history_and_says_what_was_measured():
    settings = {"model": "0123abcd" * 4, "seed": 3}
    tuned = ln.training.Finetuned(None, None, history(), {"metric": "accuracy", "best_step": 30, "settings": settings})
    figure = FIGURES["Finetuned"](tuned)
    assert len(figure.data) == 3
    assert figure.layout.yaxis2.title.text == "development accuracy"
    assert "n = 40 steps, parameters of step 30 kept" in figure.layout.title.subtitle.text
    assert figure.layout.meta["provenance"] == "model 0123abcd, seed 3"


@pytest.fixture(scope="module")
def result():
    return simulated({"none": 0.0, "source": 0.2, "random": 0.0}, clusters=20, draws=2, resamples=200)


def test_a_transfer_experiment_is_drawn_beside_random_neurons(result):
    figure = ln.plot.effects(result.effects())
    traces = {trace.name: trace for trace in figure.data}
    assert set(traces) == {"random neurons", "source", "random", "in words"}
    assert len(traces["random neurons"].x) == 2 * 2  # a mean over seeds for each draw and language
    assert np.asarray(traces["source"].x) == pytest.approx(np.full(2, 20), abs=4)
    assert "against training attention and head only" in figure.layout.xaxis.title.text


def test_the_experiment_itself_is_drawn_as_scores_of_every_condition_with_the_spread_of_seeds(result):
    figure = ln.plot.transfer(result)
    traces = {trace.name: trace for trace in figure.data}
    scores = result.scores().query("condition == 'source' and patch == 'unpatched'").set_index("language")
    assert list(traces["source"].y[0]) == ["en", "hi", "zh"]
    assert list(traces["source"].x) == pytest.approx(100 * scores["score"].to_numpy())
    assert list(traces["source, SD between seeds"].error_x.array) == pytest.approx(100 * scores["seed_sd"].to_numpy())
    assert list(traces["chance"].x) == pytest.approx([100 / 3] * len(traces["chance"].x))
    words = dict(zip(zip(*traces["in words"].y, strict=True), traces["in words"].text, strict=True))
    assert words["hi", "source"].endswith("better")
    assert "±" in words["hi", "none"]
    assert not words["hi", "none"].endswith(("better", "worse", "equivalent", "inconclusive"))
    assert "n = 6 training seeds x 60 items" in figure.layout.title.subtitle.text
    assert list(dict.fromkeys(traces["in words"].y[0])) == ["en", "hi", "zh"]


def test_trainings_for_one_target_are_told_apart_in_the_source_language():
    targets = simulated({"none": 0.0, "target": 0.1}, clusters=20, resamples=200)
    words = next(trace for trace in ln.plot.transfer(targets).data if trace.name == "in words")
    places = list(zip(*words.y, strict=True))
    assert ("en", "target for hi") in places
    assert ("hi", "target") in places
    assert len(set(places)) == len(places)


def test_one_condition_alone_is_drawn_without_verdicts():
    figure = ln.plot.transfer(simulated({"none": 0.0}, clusters=20, resamples=200))
    assert "nothing to compare" in figure.layout.meta["caption"]


def test_one_seed_has_no_spread():
    figure = ln.plot.transfer(simulated({"none": 0.0}, seeds=1, clusters=20, resamples=200))
    assert "±" not in next(trace for trace in figure.data if trace.name == "in words").text[0]


def test_effects_on_the_source_and_against_random_are_drawn_too(result):
    assert "accuracy in en" in ln.plot.effects(result.effects(on="source")).layout.title.text
    assert "random" in ln.plot.effects(result.effects("random")).layout.xaxis.title.text


def test_effects_given_to_the_figure_of_the_experiment_are_drawn_and_warned_of(result):
    with pytest.warns(LangNeuronsWarning, match=r"draw its effects by ln\.plot\.effects"):
        figure = ln.plot.transfer(result.effects())
    assert "training attention and head only" in figure.layout.xaxis.title.text


def test_patches_of_trained_models_are_drawn_too():
    patched = simulated({"none": 0.0}, clusters=10, patches={"zero": 0.1}, resamples=200).patch_effects()
    assert [trace.name for trace in ln.plot.effects(patched).data] == ["none, zero", "in words"]


def test_tables_of_another_kind_are_refused():
    with pytest.raises(TrainingError, match="no column 'dev'"):
        ln.plot.training(history().drop(columns="dev"))
    with pytest.raises(TrainingError, match="no step"):
        ln.plot.training(history()[:0])
