import re
import sys

import pytest

import langneurons as ln
from langneurons.errors import LanguageError, NeuronSetError, SiteMismatchError, StatisticsError
from langneurons.models import view

HINDI = "आज पड़ोसन के पास टोकरियाँ नहीं हैं।"


@pytest.fixture(scope="module")
def neurons(babel_stats):
    return ln.LAPE(top=0.002).identify(babel_stats)


@pytest.fixture(scope="module")
def corpus():
    return ln.load_corpus("babel", ["en", "hi"]).take(12)


@pytest.fixture
def explorer(babel, babel_stats, neurons):
    return ln.explore(babel, babel_stats, neurons, text=HINDI)


def received(widget, **state):
    """What a browser sends when the user changes a widget."""
    widget._handle_msg({"content": {"data": {"method": "update", "state": state}}, "buffers": []})


def pressed(button):
    widget_message = {"method": "custom", "content": {"event": "click"}}
    button._handle_msg({"content": {"data": widget_message}, "buffers": []})


def cell_clicked(heatmap, language, layer):
    """What plotly's widget sends when a cell of a heatmap is clicked."""
    row = heatmap.data[0].y.index(language)
    points = {"trace_indexes": [0], "point_indexes": [[row, layer]], "xs": [layer], "ys": [language], "zs": [1]}
    message = {"event_type": "plotly_click", "points": points, "device_state": None, "selector": None}
    received(heatmap, _js2py_pointsCallback=message)


def cell_of(neurons, language):
    """The layer with most neurons of a language."""
    return int(neurons.counts().loc[language].idxmax())


def test_clicks_lead_from_the_map_to_a_list_to_a_page_to_an_ablation(explorer, neurons):
    panel, layer = explorer.panel, cell_of(neurons, "hi")
    cell_clicked(panel.heatmap, "hi", layer)
    listed = [neuron for _, neuron in panel.neurons.options]
    assert sorted(listed) == [tuple(pair) for pair in neurons["hi"].indices().tolist() if pair[0] == layer]
    assert (panel.language.value, panel.layer.value) == ("hi", layer)
    assert panel.page.value == ""  # no neuron is looked at before one is chosen

    received(panel.neurons, index=1)
    assert explorer.neuron == listed[1]
    assert f"neuron {listed[1][1]}" in panel.page.value
    assert "On your text" in panel.page.value
    assert panel.value.min < 0 < panel.value.max

    pressed(panel.button)
    assert f"neuron {listed[1][1]} of layer {layer} set to 0: the loss of this text goes from" in panel.trial.value
    assert panel.status.value == ""


def test_the_slider_tries_its_value_at_once_after_the_first_ablation_only(explorer, neurons):
    explorer.show(tuple(neurons["hi"].indices()[0].tolist()))
    received(explorer.panel.value, value=0.1)
    assert explorer.panel.trial.value == ""
    pressed(explorer.panel.button)
    assert "set to 0.1:" in explorer.panel.trial.value
    received(explorer.panel.value, value=0.2)
    assert "set to 0.2:" in explorer.panel.trial.value


def test_a_text_that_the_user_types_is_the_one_that_is_read(explorer, neurons):
    explorer.show(tuple(neurons["hi"].indices()[0].tolist()))
    received(explorer.panel.text, value="<i>Good morning</i>")
    pressed(explorer.panel.button)
    assert explorer.text == "<i>Good morning</i>"
    assert "<i>" not in explorer.panel.trial.value
    assert "&lt;i&gt;" in re.sub(r"</?span[^>]*>", "", explorer.panel.trial.value)


def test_all_neurons_of_the_layer_or_of_the_language_can_be_ablated(explorer, neurons):
    layer = cell_of(neurons, "hi")
    explorer.click("hi", layer)
    here = int(neurons.counts().loc["hi", layer])
    received(explorer.panel.what, index=1)
    pressed(explorer.panel.button)
    assert f"{here} hi neurons of layer {layer} set to 0:" in explorer.panel.trial.value
    assert explorer.ablate(0.0, what="language").about == f"{len(neurons['hi'])} hi neurons set to 0"


def test_language_and_layer_can_be_chosen_without_a_mouse(explorer, neurons):
    layer = cell_of(neurons, "en")
    received(explorer.panel.language, index=explorer.panel.language.options.index("en"))
    assert (explorer.language, explorer.layer) == ("en", layer)  # the layer with most of them
    assert len(explorer.panel.neurons.options) == int(neurons.counts().loc["en", layer])
    other = int(neurons.counts().loc["en"].drop(layer).idxmax())
    received(explorer.panel.layer, index=other)
    assert len(explorer.panel.neurons.options) == int(neurons.counts().loc["en", other])


def test_it_opens_with_the_cell_that_has_most_neurons(explorer, neurons):
    counts = neurons.counts()
    assert counts.loc[explorer.language, explorer.layer] == counts.to_numpy().max()
    assert len(explorer.panel.neurons.options) == counts.to_numpy().max()
    assert (explorer.panel.language.value, explorer.panel.layer.value) == (explorer.language, explorer.layer)
    assert explorer.neuron is None


def test_a_search_lists_the_neurons_that_respond_most_to_a_text(explorer, babel, neurons):
    received(explorer.panel.search, value=HINDI)
    table = explorer.search(HINDI)
    values = ln.activations(babel, HINDI, neurons)
    pooled = explorer._stats.pooled()
    largest = pooled.maximum().values.abs().maximum(pooled.minimum().values.abs())
    shares = {pair: float(values[pair].abs().max() / largest[pair]) for pair in values.columns}
    best = max(shares, key=shares.get)
    assert tuple(table.loc[0, ["layer", "neuron"]]) == best
    assert table.loc[0, "share"] == pytest.approx(shares[best])
    assert best in [tuple(pair) for pair in neurons[table.loc[0, "language"].split(", ")[0]].indices().tolist()]
    assert explorer.panel.neurons.options[0][1] == best
    received(explorer.panel.neurons, index=0)
    assert explorer.neuron == best
    assert f'<a href="#L{best[0]}N{best[1]}">' in explorer.panel.page.value
    assert f">({best[0]}, {best[1]})</code>" in explorer.panel.page.value
    received(explorer.panel.search, value="word " * 3000)
    assert "context holds" in explorer.panel.status.value


def test_every_path_is_a_method_that_moves_the_widgets_too(explorer, neurons):
    layer = cell_of(neurons, "hi")
    table = explorer.click("hi", layer)
    neuron = (layer, int(table.loc[0, "neuron"]))
    assert explorer.show(neuron).neuron == neuron
    assert explorer.panel.neurons.index == 0
    assert explorer.ablate(5.0).about.endswith("set to 5")
    assert explorer.panel.value.value == 5.0
    assert explorer.panel.heatmap.layout.shapes[0].x0 == layer - 0.5


def test_what_goes_wrong_is_a_sentence_in_the_panel_and_the_panel_goes_on(explorer, neurons, babel):
    panel = explorer.panel
    pressed(panel.button)
    assert "No neuron is chosen" in panel.status.value
    empty = neurons.counts().loc["hi"].eq(0)
    cell_clicked(panel.heatmap, "hi", int(empty.idxmax()))
    assert "hi has no neurons in layer" in panel.status.value
    explorer.show(tuple(neurons["hi"].indices()[0].tolist()))
    received(panel.what, index=0)
    for text, sentence in (("", "has no tokens"), ("word " * 3000, "context holds")):
        received(panel.text, value=text)
        pressed(panel.button)
        assert sentence in panel.status.value
    received(panel.text, value="Good morning")
    pressed(panel.button)
    assert panel.status.value == ""
    assert not view(babel).hooked


def test_what_nobody_foresaw_is_said_and_logged(explorer, neurons, monkeypatch, caplog):
    explorer.show(tuple(neurons["hi"].indices()[0].tolist()))
    monkeypatch.setattr("langneurons.views.explorer.try_out", lambda *_: 1 / 0)
    pressed(explorer.panel.button)
    assert "Traceback" in caplog.text
    assert "This failed (ZeroDivisionError: division by zero)" in explorer.panel.status.value


def test_a_neuron_outside_the_set_is_shown_and_said_to_be(explorer, neurons):
    outside = (0, int((~neurons.mask()[0]).nonzero()[0]))
    explorer.show(outside)
    assert "belongs to no language of this set" in explorer.panel.page.value
    with pytest.raises(StatisticsError, match="no neuron"):
        explorer.show((0, 10**6))


def test_methods_refuse_what_there_is_not(explorer):
    with pytest.raises(LanguageError, match="Unknown language 'fr'"):
        explorer.click("fr", 0)
    with pytest.raises(NeuronSetError, match="Unknown what 'neurons': did you mean 'neuron'"):
        explorer.ablate(0.0, what="neurons")


def test_with_a_corpus_a_page_shows_its_texts_and_a_sample_of_the_language_is_offered(
    babel, babel_stats, neurons, corpus
):
    explorer = ln.explore(babel, babel_stats, neurons, corpus, documents=5)
    layer = cell_of(neurons, "hi")
    table = explorer.click("hi", layer)
    assert explorer.panel.text.value == corpus.text("hi", 0)[:200]
    explorer.show((layer, int(table.loc[0, "neuron"])))
    shown = explorer.panel.page.value
    assert 0 < shown.index("Texts in hi") < shown.index("Texts in en")  # its own language first
    received(explorer.panel.text, value="my own")
    explorer.click("en", cell_of(neurons, "en"))
    assert explorer.text == explorer.panel.text.value == "my own"


def test_a_page_is_made_once(explorer, neurons, monkeypatch):
    neuron = tuple(neurons["hi"].indices()[0].tolist())
    first = explorer.show(neuron)
    monkeypatch.setattr("langneurons.views.explorer.output_tokens", lambda *_: pytest.fail("made again"))
    assert explorer.show(neuron) is first


@pytest.mark.parametrize("missing", ["ipywidgets", "anywidget"])
def test_without_widgets_a_sentence_and_a_still_picture_are_shown(babel, babel_stats, neurons, monkeypatch, missing):
    for name in [name for name in sys.modules if name == "langneurons.views.explorer_panel"]:
        monkeypatch.delitem(sys.modules, name)
    if missing == "ipywidgets":
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    else:
        monkeypatch.setattr("plotly.graph_objects.FigureWidget", failing_widget)
    explorer = ln.explore(babel, babel_stats, neurons, text=HINDI)
    assert explorer.panel is None
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *objects, **_: shown.extend(objects))
    explorer._ipython_display_()
    assert "pip install &#39;langneurons[notebooks]&#39;" in shown[0].data
    assert shown[1].data[0].type == "heatmap"
    layer = cell_of(neurons, "hi")
    neuron = (layer, int(explorer.click("hi", layer).loc[0, "neuron"]))
    assert explorer.show(neuron).neuron == neuron
    assert "set to 0" in explorer.ablate(0.0).sentence


def failing_widget(*arguments):
    raise ImportError("Please install anywidget to use the FigureWidget class")


def test_where_no_kernel_runs_a_table_stands_in_place_of_the_widgets(explorer, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    explorer._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    assert "works while its notebook runs" in shown[0]["text/html"]
    assert "<table" in shown[0]["text/html"]


def test_sets_and_statistics_of_another_model_are_refused(babel, babel_stats, neurons):
    other = ln.NeuronSet.of({"hi": [(0, 1)]}, neurons.shape, "act", model="f" * 32)
    with pytest.raises(SiteMismatchError):
        ln.explore(babel, babel_stats, other)
    with pytest.raises(SiteMismatchError, match="Unknown site 'pre'"):
        ln.explore(babel, babel_stats, ln.NeuronSet.of({"hi": [(0, 1)]}, neurons.shape, "pre"))
    with pytest.raises(NeuronSetError, match="empty"):
        ln.explore(babel, babel_stats, ln.NeuronSet.of({"hi": []}, neurons.shape, "act"))
