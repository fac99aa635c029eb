import numpy as np
import pandas as pd
import pytest

from langneurons.analysis.decomposition import Decomposition, Moments
from langneurons.analysis.polysemanticity import VERDICTS, Polysemanticity
from langneurons.views.analysis_figures import selectivity


@pytest.fixture
def result():
    draw = np.random.default_rng(0)
    moments = Moments.of(draw.normal(size=(40, 24)), np.arange(40) % 4, 4)
    whole = Decomposition.of(moments, ("en", "hi"), ("no", "yes"), (2, 12), "act")
    detectable = [0.1, 0.2, 0.3, np.inf]
    known = {"language": "hi", "verdict": list(VERDICTS), "task_bits": 0.1, "task_detectable": detectable}
    known |= {"language_p_adjusted": 0.5, "task_p_adjusted": 0.5}
    rows = whole.rows.iloc[[0, 5, 13, 20]].assign(**known)
    settings = {"items": 20, "site": "act", "task": "cues", "seed": 0}
    return Polysemanticity(rows, pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), whole, settings)


def test_each_verdict_has_its_neurons_and_all_others_stand_behind(result):
    figure = selectivity(result)
    assert [trace.name for trace in figure.data] == [
        "other neurons",
        *(f"{verdict} (1)" for verdict in ("language", "task", "both", "neither")),
    ]
    assert len(figure.data[0].x) == 20
    shown = result.rows[result.rows["verdict"] == "both"].iloc[0]
    assert figure.data[3].x[0] == shown["language_partial"]
    assert figure.data[3].y[0] == shown["task_partial"] + shown["interaction_partial"]


def test_the_line_is_at_what_the_median_neuron_could_show(result):
    assert selectivity(result).layout.shapes[0].y0 == pytest.approx(0.2)


def test_the_title_counts_neurons_once_and_the_caption_says_what_could_be_found(result):
    figure = selectivity(result)
    assert "n = 4 labels of 4 neurons, read on 20 items in 2 languages; grey: 20 other" in (
        figure.layout.title.subtitle.text.replace("<br>", " ")
    )
    assert "80 % power (20.00%)" in figure.layout.meta["caption"]


def test_shapes_tell_verdicts_apart_where_colours_cannot(result):
    assert len({trace.marker.symbol for trace in selectivity(result).data[1:]}) == 4
