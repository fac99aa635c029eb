import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import EffectError
from tests.planted_statistics import statistics_from


def rows(change, seed=0):
    generator = np.random.default_rng(seed)
    nll = generator.uniform(1, 2, 60)
    return pd.DataFrame({"item": range(60), "cluster": np.arange(60) // 2, "nll": nll * change})


def table_of(changes, keys, **columns):
    effects = {
        key: ln.effect(rows(change * np.linspace(0.999, 1.001, 60)), rows(1.0), resamples=1000)
        for key, change in changes.items()
    }
    table = ln.EffectTable.of(effects, keys, f"made up: {len(effects)} effects")
    return ln.EffectTable(table.rows.assign(**columns), table.settings)


@pytest.fixture(scope="module")
def matrix():
    changes = {("hi", "hi"): 1.3, ("hi", "en"): 1.0, ("en", "hi"): 0.999, ("en", "en"): 1.1}
    return table_of(changes, ("patched", "measured"), control_low=-0.01, control_high=0.02)


def test_the_matrix_marks_what_is_significant_and_larger_than_delta(matrix):
    figure = ln.plot.perplexity_matrix(matrix)
    text = dict(zip([*"ab"], figure.data[0].text, strict=True))
    assert list(figure.data[0].y) == ["hi", "en"]
    assert text["a"][0] == "+30.00*"
    assert "*" not in text["a"][1]


def test_the_matrix_is_centred_on_no_change_and_says_what_controls_did(matrix):
    figure = ln.plot.perplexity_matrix(matrix)
    assert figure.data[0].zmin == -figure.data[0].zmax
    assert "matched controls [-1.00, +2.00]" in figure.data[0].customdata[0][0]


@pytest.fixture(scope="module")
def swept():
    keys = ("method", "patched", "kind", "amount", "layers", "measured")
    cells = [("set", -1.0, -1.0), ("set", 0.0, 0.0), ("quantile", 0.9, 0.7), ("scale", 2.0, np.nan)]
    changes = {
        ("given", "hi", kind, amount, "all", measured): 1 + 0.1 * abs(amount) * (measured == "hi")
        for kind, amount, _ in cells
        for measured in ("hi", "en", "zh")
    }
    return table_of(changes, keys, written=[written for *_, written in cells for _ in range(3)])


@pytest.fixture(scope="module")
def recorded():
    generator = torch.Generator().manual_seed(0)
    values = {language: torch.randn(300, 2, 4, generator=generator) for language in ("hi", "en", "zh")}
    return statistics_from(values), ln.NeuronSet.of({"hi": [(0, 1), (1, 2)]}, (2, 4), "act")


def test_dose_response_draws_constants_and_quantiles_with_the_own_interval_and_the_others_mean(swept, recorded):
    traces = {trace.name: trace for trace in ln.plot.dose_response(swept, *recorded, "hi").data}
    assert list(traces["hi, one constant"].x) == [-1.0, 0.0]
    assert list(traces["hi, own quantiles"].x) == [0.7]  # a factor writes no value of its own
    assert traces["hi, one constant"].y[0] == pytest.approx(10, abs=0.2)
    assert traces["hi, one constant"].error_y.array[0] > 0
    assert traces["the others (mean), one constant"].y[0] == pytest.approx(0, abs=0.2)
    assert "natural values, hi" in traces


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"language": "xx"}, "Unknown patched"),
        ({"method": "LAPPE"}, "Unknown method"),
        ({"layers": "some"}, "Unknown layers"),
    ],
)
def test_cells_that_were_not_swept_are_named(swept, recorded, options, sentence):
    with pytest.raises(EffectError, match=sentence):
        ln.plot.dose_response(swept, *recorded, **{"language": "hi", **options})


def test_tables_of_another_kind_are_refused(matrix, swept, recorded):
    with pytest.raises(EffectError, match="no written values"):
        ln.plot.dose_response(matrix, *recorded, "hi")
    with pytest.raises(EffectError, match="no columns patched and measured"):
        ln.plot.perplexity_matrix(ln.EffectTable(swept.rows.drop(columns="patched"), swept.settings))
