from dataclasses import replace

import numpy as np
import pytest

from langneurons.errors import LangNeuronsError, NeuronSetError
from langneurons.identification import NeuronSet
from langneurons.views import plot
from langneurons.views.overlap_figures import _chance


def made(**members):
    return NeuronSet.of(
        {language: [(0, index) for index in found] for language, found in members.items()}, (2, 40), "act"
    )


@pytest.fixture(scope="module")
def neurons():
    return made(en=[1, 2, 3, 4], hi=[3, 4, 5], ur=[5, 6], zh=[])


def test_the_overlap_matrix_shows_jaccard_and_shared_counts(neurons):
    figure = plot.overlap(neurons)
    assert np.allclose(figure.data[0].z[:3, :3], [[1, 2 / 5, 0], [2 / 5, 1, 1 / 4], [0, 1 / 4, 1]])
    assert figure.data[0].customdata[0].tolist() == [4, 2, 0, 0]
    other = plot.overlap(neurons, made(hi=[5]), ("a", "b"))
    assert np.allclose(np.nan_to_num(other.data[0].z), [[0], [1 / 3], [1 / 2], [0]])
    assert other.layout.xaxis.title.text == "b"


def test_how_specific_a_language_is_depends_on_the_languages_compared(neurons):
    figure = plot.sets(neurons, {"Europe": ["en", "fr"], "north": ["en", "hi"], "all": ["en", "hi", "ur", "zh"]})
    shown = figure.data[0]
    assert list(shown.y) == ["north", "all"]
    assert list(shown.x) == ["en", "hi", "ur", "zh"]
    assert np.allclose(shown.z[0][:2], [2 / 4, 1 / 3])
    assert np.allclose(shown.z[1][:3], [2 / 4, 0, 1 / 2])
    assert np.isnan(shown.z[0][2:]).all()
    assert np.isnan(shown.z[1][3])
    assert [list(row) for row in shown.text] == [["2<br>of 4", "1<br>of 3", "", ""], [
        "2<br>of 4", "0<br>of 3", "1<br>of 2", "0<br>of 0"]]  # fmt: skip


def test_the_published_language_sets_are_cut_to_what_was_labelled(neurons):
    figure = plot.sets(neurons)
    assert list(figure.data[0].y) == ["set1", "set2", "set3", "set4", "set5", "set6", "set_xnli"]
    assert "set3: hi ur" in figure.layout.meta["caption"]
    with pytest.raises(NeuronSetError, match="at least two"):
        plot.sets(made(hi=[1]))


def test_sets_identified_within_each_language_set_are_taken_as_they_are(neurons):
    figure = plot.sets({"set a": made(en=[1, 2], hi=[2]), "set b": made(hi=[7], ur=[8])})
    assert np.allclose(np.nan_to_num(figure.data[0].z, nan=-1), [[0.5, 0, -1], [-1, 1, 1]])


def test_methods_are_compared_language_by_language(neurons):
    other = made(en=[1, 2, 9, 10], hi=[3, 4, 5])
    shown = plot.methods({"one": neurons, "other": other}).data[0]
    assert shown.z[0][1] == pytest.approx((2 / 6 + 1) / 2)
    assert shown.z[0][0] == shown.z[1][1] == 1
    assert "en 0.333" in shown.customdata[0][1]


def test_methods_that_cannot_be_compared_are_refused(neurons):
    with pytest.raises(NeuronSetError, match="given 1"):
        plot.methods({"one": neurons})
    with pytest.raises(NeuronSetError, match="no language in common"):
        plot.methods({"one": made(en=[1]), "other": made(hi=[1])})
    with pytest.raises(LangNeuronsError):
        plot.methods({"one": neurons, "other": NeuronSet.of({"en": [(0, 1)]}, (2, 8), "act")})


def test_what_chance_gives_is_what_random_sets_share():
    draw = np.random.default_rng(0)
    shared = []
    for _ in range(2000):
        one, other = (set(draw.choice(80, size, replace=False)) for size in (20, 10))
        shared.append(len(one & other) / len(one | other))
    assert _chance(20, 10, (2, 40)) == pytest.approx(np.mean(shared), abs=0.01)
    assert _chance(0, 0, (2, 40)) == 0


def test_figures_say_what_is_exclusive_and_what_is_higher_in_another_language(neurons):
    known = replace(neurons, highest={"en": np.array([1, 2, 3]), "hi": np.array([4, 5]), "ur": np.array([6])})
    overlap, layers = plot.overlap(known), plot.layer_heatmap(known)
    for figure in (overlap, layers):
        said = "of 9 labels 3 are exclusive, 3 sit on neurons that are higher in another language"
        assert said in figure.layout.title.subtitle.text.replace("<br>", " ")
    assert overlap.data[0].text[0][1] == "<br>1 highest in en<br>1 highest in hi"
    assert layers.data[0].text[0][0] == "2 exclusive, 1 higher in another language"
    shown = plot.sets(known, {"north": ["en", "hi"]}).data[0]
    assert list(shown.customdata[0]) == [1, 1]
    assert "higher in another language" in shown.hovertemplate
    assert "of 9 labels 3 are exclusive" in plot.overlap(neurons).layout.title.subtitle.text
    assert "higher" not in plot.overlap(neurons).layout.title.subtitle.text
