import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.errors import EffectError, TrainingError
from tests.training.simulated_transfer import simulated


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
    assert figure.layout.yaxis.title.text == "loss"


@pytest.fixture(scope="module")
def found():
    return simulated({"none": 0.0, "source": 0.2, "random": 0.0}, clusters=20, draws=2, resamples=200)


def test_a_transfer_experiment_is_drawn_beside_random_neurons(found):
    figure = ln.plot.transfer(found.effects())
    traces = {trace.name: trace for trace in figure.data}
    assert set(traces) == {"random neurons", "source", "random"}
    assert len(traces["random neurons"].x) == 2 * 12
    assert np.asarray(traces["source"].x) == pytest.approx(np.full(2, 20), abs=4)
    assert "against training attention and head only" in figure.layout.xaxis.title.text


def test_effects_on_the_source_and_against_random_are_drawn_too(found):
    assert "accuracy in en" in ln.plot.transfer(found.effects(on="source")).layout.title.text
    assert "random" in ln.plot.transfer(found.effects("random")).layout.xaxis.title.text


def test_tables_of_another_kind_are_refused():
    patched = simulated({"none": 0.0}, clusters=10, patches={"zero": 0.1}, resamples=200).patch_effects()
    with pytest.raises(EffectError, match="begin with trained"):
        ln.plot.transfer(patched)
    with pytest.raises(TrainingError, match="no column 'dev'"):
        ln.plot.training(history().drop(columns="dev"))
    with pytest.raises(TrainingError, match="no step"):
        ln.plot.training(history()[:0])
