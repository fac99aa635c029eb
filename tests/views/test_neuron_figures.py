import numpy as np
import pytest
import torch

import langneurons as ln
from langneurons.errors import NeuronSetError, StatisticsError
from langneurons.identification import NeuronSet
from langneurons.views import plot
from tests.planted.statistics import statistics_from


@pytest.fixture(scope="module")
def stats():
    generator = torch.Generator().manual_seed(0)
    raw = {language: torch.randn(600, 3, 5, generator=generator) + shift for language, shift in (("en", 0), ("hi", 1))}
    return statistics_from(raw, act_fn=torch.nn.functional.silu)


@pytest.fixture(scope="module")
def neurons():
    return NeuronSet.of({"en": [(0, 1), (2, 3)], "hi": [(2, 3), (2, 4)]}, shape=(3, 5), site="act")


def test_the_heatmap_shows_counts_and_shares_of_the_layer(neurons):
    figure = plot.layer_heatmap(neurons)
    assert np.array_equal(figure.data[0].z, [[1, 0, 1], [0, 0, 2]])
    assert np.allclose(figure.data[0].customdata, [[0.2, 0, 0.2], [0, 0, 0.4]])
    assert list(figure.data[0].y) == ["en", "hi"]
    assert "3 of 15" in figure.layout.title.text


def test_the_profile_has_a_curve_a_language_or_a_set(neurons):
    curves = {trace.name: list(trace.y) for trace in plot.layer_profile(neurons).data}
    assert curves == {"en (2)": [1, 0, 1], "hi (2)": [0, 0, 2]}
    both = plot.layer_profile({"LAPE": neurons, "other": neurons["hi"]})
    assert {trace.name: list(trace.y) for trace in both.data} == {"LAPE (3)": [1, 0, 2], "other (2)": [0, 0, 2]}
    assert len({trace.line.color for trace in both.data}) == 2


def test_profiles_of_nothing_or_of_different_shapes_are_refused(neurons):
    empty = NeuronSet.of({"en": []}, shape=(3, 5), site="act")
    for nothing in (empty, {}, {"LAPE": empty}):
        with pytest.raises(NeuronSetError, match="nothing to draw"):
            plot.layer_profile(nothing)
    with pytest.raises(NeuronSetError, match="3 layers x 5 and 2 layers x 4"):
        plot.layer_profile({"a": neurons, "b": NeuronSet.of({"en": [(0, 1)]}, shape=(2, 4), site="act")})


def test_every_language_of_a_histogram_integrates_to_one(stats):
    figure = plot.histogram(stats, (1, 2))
    assert [trace.name.split()[0] for trace in figure.data] == ["en", "hi"]
    for position, language in enumerate(stats.languages):
        edges, counts = stats.histogram(language, (1, 2))
        trace = figure.data[position]
        assert np.isclose(sum(trace.customdata), 1)
        assert len(trace.y) <= len(counts)
        assert edges.diff().min() >= 0
    assert "600 counted tokens per language" in figure.layout.title.subtitle.text


def test_what_cannot_be_drawn_is_refused(stats):
    with pytest.raises(NeuronSetError, match="empty"):
        plot.layer_heatmap(NeuronSet.of({"en": []}, shape=(3, 5), site="act"))
    with pytest.raises(StatisticsError, match="no neuron"):
        plot.histogram(stats, (9, 0))


def test_captions_say_how_the_neurons_were_found(neurons):
    for draw in (plot.layer_heatmap, plot.layer_profile, plot.overlap):
        assert "given at act, model unknown" in draw(neurons).layout.meta["provenance"]
    assert set(ln.plot.__all__) <= set(dir(plot))
