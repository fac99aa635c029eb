import numpy as np
import pandas as pd
import pytest
import torch

from langneurons.errors import NeuronSetError, StatisticsError
from langneurons.identification import NeuronSet
from langneurons.views import plot
from langneurons.views.page import write_page
from tests.planted_statistics import statistics_from


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
    assert "3 of 15" in figure.layout.title.text


def test_the_overlap_matrix_shows_jaccard_and_shared_counts(neurons):
    figure = plot.overlap(neurons)
    assert np.allclose(figure.data[0].z, [[1, 1 / 3], [1 / 3, 1]])
    assert np.array_equal(figure.data[0].customdata, [[2, 1], [1, 2]])
    other = NeuronSet.of({"hi": [(2, 4)]}, shape=(3, 5), site="act")
    assert np.allclose(plot.overlap(neurons, other, ("a", "b")).data[0].z, [[0], [0.5]])


def test_every_language_of_a_histogram_integrates_to_one(stats):
    figure = plot.histogram(stats, (1, 2))
    assert [trace.name.split()[0] for trace in figure.data] == ["en", "hi"]
    for position, language in enumerate(stats.languages):
        edges, counts = stats.histogram(language, (1, 2))
        trace = figure.data[position]
        assert np.isclose(sum(trace.customdata), 1)
        assert len(trace.y) <= len(counts)
        assert edges.diff().min() >= 0


def test_what_cannot_be_drawn_is_refused(stats):
    with pytest.raises(NeuronSetError, match="empty"):
        plot.layer_heatmap(NeuronSet.of({"en": []}, shape=(3, 5), site="act"))
    with pytest.raises(StatisticsError, match="no neuron"):
        plot.histogram(stats, (9, 0))


def test_a_page_holds_its_figures_escapes_its_text_and_needs_no_network(tmp_path, neurons):
    table = pd.DataFrame({"text": ["<script>alert(1)</script>", "हिन्दी"]})
    figures = [(plot.layer_heatmap(neurons), "A caption & more")]
    page = write_page(tmp_path / "p.html", "Title", ["One <i>paragraph</i>."], [("Table", table)], figures, ["Line"])
    html = page.read_text("utf-8")
    body = html[html.index("<body>") :]
    assert "&lt;script&gt;alert(1)" in body
    assert "<i>" not in body
    assert "A caption &amp; more" in body
    assert "हिन्दी" in body
    assert "<script src" not in html
    assert 'id="figure-1"' in body
