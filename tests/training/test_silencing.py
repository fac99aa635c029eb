"""Neurons silenced in training and in the test: which combinations are compared."""

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from scripts.measure_silencing import effects_of

ACCURACY = {(False, False): 0.8, (False, True): 0.4, (True, False): 0.7, (True, True): 0.6}


@pytest.fixture
def rows():
    """60 items of 6 seeds, of which each combination gets a known share right."""
    cells = []
    for neurons in ("language's", "random"):
        for (in_training, in_test), share in ACCURACY.items():
            share = share if neurons == "language's" else 0.8
            for seed in range(6):
                right = (np.arange(60) * 7 + seed) % 10 < 10 * share
                about = {"neurons": neurons, "seed": seed, "in_training": in_training, "in_test": in_test}
                cells.append(
                    pd.DataFrame({"item": range(60), "cluster": np.arange(60) // 3, "accuracy": right * 1.0, **about})
                )
    return pd.concat(cells, ignore_index=True)


def test_what_is_routed_around_is_what_silence_in_the_test_costs_less_after_silence_in_training(rows):
    task = ln.XNLI.load("babel", ["hi"]).take(1)
    effects = dict(effects_of(rows, task, "hi"))
    costs = {silenced: effect.estimate for (_, neurons, silenced), effect in effects.items() if neurons == "language's"}
    assert costs == pytest.approx(
        {"in the test": -0.4, "in training": -0.1, "in both": -0.2, "in both, against in the test": 0.2}
    )
    assert effects["hi", "language's", "in both, against in the test"].verdict == "better"
    assert {effect.estimate for (_, neurons, _), effect in effects.items() if neurons == "random"} == {0.0}
