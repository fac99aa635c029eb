"""Ablations drawn: neurons alone, together, one after the other."""

import pytest

from langneurons.analysis.ablating import ablate
from langneurons.errors import LanguageError
from langneurons.views.analysis_figures import ablation
from tests.analysis.ablation_models import QUICK, neurons_at, texts, tiny


def made(**options):
    model = tiny("llama", "auto")
    return ablate(model, neurons_at(model, languages=("hi", "en")), texts(), **options, **QUICK)


def test_the_largest_effects_are_drawn_with_intervals_and_controls():
    result = made(controls=4)
    figure = ablation(result, top=3)
    neurons = [trace for trace in figure.data if trace.mode == "markers"]
    assert [trace.name for trace in neurons] == ["en", "hi"]
    assert all(len(trace.x) == 3 for trace in neurons)
    largest = result.rows["effect"].abs().max()
    assert max(abs(value) for trace in neurons for value in trace.x) == pytest.approx(100 * largest)
    controls = next(trace for trace in figure.data if trace.name == "one more matched control")
    assert len(controls.x) == 6 * 3  # two ends and a gap
    assert "% of the unpatched loss" in figure.layout.xaxis.title.text


def test_groups_and_prefixes_are_drawn_too():
    assert [len(trace.x) for trace in ablation(made(each="group")).data] == [2, 2]
    figure = ablation(made(each="cumulative"), languages=["hi"])
    curves = {trace.name: list(trace.x) for trace in figure.data}
    assert list(curves) == ["en", "hi"]
    assert curves["hi"] == [1, 2, 4, 6]
    assert [panel.text for panel in figure.layout.annotations][0] == "measured in hi"


def test_an_unknown_language_is_refused():
    with pytest.raises(LanguageError, match="Unknown language 'fr'"):
        ablation(made(), languages=["fr"])


def test_languages_of_one_neuron_stand_beside_each_other_on_its_line():
    figure = ablation(made(), top=2)
    places = [list(trace.y) for trace in figure.data if trace.mode == "markers"]
    assert [round(place) for place in sorted(places[0])] == [0, 1]
    assert all(hi > en for en, hi in zip(sorted(places[0]), sorted(places[1]), strict=True))
    assert len(figure.layout.yaxis.ticktext) == 2
    assert "the 2 largest effects of" in figure.layout.title.text.replace("<br>", " ")


def test_the_caption_is_the_results_own():
    result = made()
    assert ablation(result).layout.meta["caption"] == result.caption
