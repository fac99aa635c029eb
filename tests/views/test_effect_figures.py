from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import EffectError, LangNeuronsWarning
from langneurons.storage.result import Result
from langneurons.views.plot import FIGURES
from langneurons.views.report import sections
from tests.planted.statistics import statistics_from
from tests.views.report import made_up


def rows(change, seed=0):
    generator = np.random.default_rng(seed)
    nll = generator.uniform(1, 2, 60)
    return pd.DataFrame({"item": range(60), "cluster": np.arange(60) // 2, "nll": nll * change})


def table_of(changes, keys, **columns):
    effects = {
        key: ln.effects.effect(rows(change * np.linspace(0.999, 1.001, 60)), rows(1.0), resamples=1000)
        for key, change in changes.items()
    }
    table = ln.effects.EffectTable.of(effects, keys, f"made up: {len(effects)} effects")
    return ln.effects.EffectTable(table.rows.assign(**columns), table.settings)


@pytest.fixture(scope="module")
def matrix():
    changes = {("hi", "hi"): 1.3, ("hi", "en"): 1.0, ("en", "hi"): 0.999, ("en", "en"): 1.1}
    return table_of(changes, ("patched", "measured"), control_low=-0.01, control_high=0.02)


def test_the_matrix_marks_what_is_significant_and_larger_than_the_margin(matrix):
    figure = ln.plot.perplexity_matrix(matrix)
    text = dict(zip([*"ab"], figure.data[0].text, strict=True))
    assert list(figure.data[0].y) == list(figure.data[0].x) == ["en", "hi"]
    assert text["b"][1].startswith("<b>+30.00*</b><br>[+29")
    assert "*" not in text["b"][0]


def test_the_matrix_says_in_print_what_was_written_how_many_and_which_marks(matrix):
    stored = {
        "patch": "Set(NeuronSet of 10 neurons at act (8 layers x 1536): en 10, fr 3, value=0)",
        "model": "0ff" * 12,
    }
    figure = ln.plot.perplexity_matrix(replace(matrix, settings={**matrix.settings, **stored}))
    subtitle = figure.layout.title.subtitle.text.replace("<br>", " ").replace("\u00a0", " ")
    assert subtitle.startswith("Set(value=0); % of")
    assert "n = 60 items, 30 clusters per effect" in subtitle
    assert "unmarked: no effect" in subtitle
    assert "made up: 4 effects" in figure.layout.meta["caption"]


def test_a_wide_matrix_is_a_wide_figure_that_says_its_widest_interval_above():
    languages = [f"l{n}" for n in range(12)]
    wide = table_of({("l0", language): 1.1 for language in languages}, ("patched", "measured"))
    figure = ln.plot.perplexity_matrix(wide)
    assert figure.layout.width > 12 * 60
    assert "[" not in "".join(figure.data[0].text[0])
    half = 50 * (wide.rows["high"] - wide.rows["low"]).max()
    assert f"95 % intervals of at most ±{half:.2g}" in figure.layout.title.subtitle.text.replace("\u00a0", " ")


def test_a_matrix_with_cells_not_measured_is_drawn_with_holes(matrix):
    holed = replace(matrix, rows=matrix.rows.iloc[1:])
    assert ln.plot.perplexity_matrix(holed).data[0].text[1][1] == ""


def test_the_matrix_is_centred_on_no_change_and_says_what_controls_did(matrix):
    figure = ln.plot.perplexity_matrix(matrix)
    assert figure.data[0].zmin == -figure.data[0].zmax
    assert "matched controls [−1.00, +2.00]" in figure.data[0].customdata[0][0]


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


@pytest.fixture(scope="module")
def patched():
    changes = {(patch, language): 1.0 for language in ("hi", "en") for patch in ("zero", "mean")}
    table = table_of(changes | {("zero", "hi"): 1.3}, ("patch", "language"))
    drawn = [("zero", "hi", 0.01), ("mean", "en", 0.02)]
    return replace(table, controls=pd.DataFrame(drawn, columns=["patch", "language", "estimate"]))


def test_effects_stand_one_under_the_other_by_language_with_verdict_and_controls(patched):
    figure = ln.plot.effects(patched)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces) == ["matched controls", "zero", "mean", "in words"]
    assert traces["zero"].x[list(traces["zero"].y[0]).index("hi")] == pytest.approx(30, abs=0.2)
    words = dict(zip(zip(*traces["in words"].y, strict=True), traces["in words"].text, strict=True))
    assert words["hi", "zero"].startswith("+30.0 [")
    assert words["hi", "zero"].endswith("worse")
    assert words["en", "mean"].endswith("no effect")
    assert list(dict.fromkeys(traces["in words"].y[0])) == ["en", "hi"]
    assert [symbol for symbol in traces["zero"].marker.symbol] == ["circle", "diamond"]
    assert list(traces["matched controls"].x) == [1, 2]
    assert "grey ticks: matched controls" in figure.layout.title.subtitle.text.replace("<br>", " ").replace(
        "\u00a0", " "
    )


def test_any_table_of_effects_can_be_drawn(matrix, swept):
    assert list(ln.plot.effects(matrix).data[0].y[0]) == ["en", "hi"]  # measured; the traces are what was patched
    names = [trace.name for trace in ln.plot.effects(swept).data]
    assert "given, hi, set, -1.0, all" in names
    one_key = table_of({"hi": 1.2, "en": 1.0}, ("language",))
    assert list(ln.plot.effects(one_key).data[-1].y) == ["en", "hi"]


def test_an_evaluation_is_drawn_by_its_effects():
    evaluation = made_up.evaluation()
    figure = FIGURES["Evaluation"](evaluation)
    assert figure.data[0].x[0] == pytest.approx(100 / 3)
    assert figure.layout.title.text == "Change of accuracy under each patch (xnli, head)"
    assert "model made up" in figure.layout.meta["provenance"]
    assert evaluation.plot().layout.title.text == figure.layout.title.text


def test_natural_values_are_the_mixture_of_the_neurons_distributions(swept):
    generator = torch.Generator().manual_seed(1)
    raw = {language: torch.randn(4000, 2, 4, generator=generator) for language in ("hi", "en", "zh")}
    raw["hi"] = raw["hi"] + 3
    stats = statistics_from(raw, act_fn=torch.nn.functional.silu)
    neurons = ln.NeuronSet.of({"hi": [(0, 1), (1, 2)]}, (2, 4), "act")
    traces = {trace.name: trace for trace in ln.plot.dose_response(swept, stats, neurons, "hi").data}
    values = torch.nn.functional.silu(torch.cat([raw["hi"][:, 0, 1], raw["hi"][:, 1, 2]])).numpy()
    shown = traces["natural values, hi"]
    mean = np.average(shown.x, weights=shown.y)
    low, high = np.quantile(values, [0.01, 0.99])
    assert mean == pytest.approx(values[(values > low) & (values < high)].mean(), abs=0.05)
    assert np.sum(shown.y) * (shown.x[1] - shown.x[0]) == pytest.approx(1)
    assert np.average(traces["natural values, the others"].x, weights=traces["natural values, the others"].y) < 1


def test_tables_of_another_kind_are_refused(matrix, swept, recorded):
    with pytest.raises(EffectError, match="no written values"):
        ln.plot.dose_response(matrix, *recorded, "hi")
    with pytest.raises(EffectError, match="no columns patched and measured"):
        ln.plot.perplexity_matrix(ln.effects.EffectTable(swept.rows.drop(columns="patched"), swept.settings))


def test_doses_that_write_no_value_are_not_drawn(swept, recorded):
    scaled = replace(swept, rows=swept.rows.query("kind == 'scale'"))
    with pytest.raises(EffectError, match="writes a constant or a quantile.*its doses are scale"):
        ln.plot.dose_response(scaled, *recorded, "hi")


def test_a_report_draws_a_sweep_over_the_values_of_the_neurons_that_were_swept(swept, recorded):
    stats, neurons = recorded
    swept = replace(swept, settings=swept.settings | {"methods": {"given": "wide"}})
    sets = {"narrow": replace(neurons["hi"], method="narrow"), "wide": replace(neurons, method="wide")}
    for by_name, drawn in ((sets, ["wide"]), ({"narrow": sets["narrow"]}, [])):
        findings = ln.Findings("Which?", stats=stats, neurons=by_name, sweep=swept)
        (provenance,) = (section for section in sections(findings) if section.anchor == "made-from")
        swept_at = [text for text in provenance.paragraphs if text.startswith("What values written")]
        assert [text.rpartition("neurons: ")[2].split()[0] for text in swept_at] == drawn


def test_a_result_given_to_effects_draws_itself_and_warns(matrix):
    class Scores(Result):
        def plot(self):
            return ln.plot.effects(matrix)

    with pytest.warns(LangNeuronsWarning, match="draw results by .plot"):
        assert ln.plot.effects(Scores()) == ln.plot.effects(matrix)


def test_a_table_of_effects_draws_itself_as_the_matrix_it_is(matrix, patched):
    assert matrix.plot().data[0].type == "heatmap"
    assert patched.plot() == ln.plot.effects(patched)


def test_effects_without_an_interval_are_drawn_without_nan(patched):
    rows = patched.rows.assign(low=np.nan, high=np.nan, minimal_detectable=np.nan)
    figure = ln.plot.effects(replace(patched, rows=rows))
    words, hovers = figure.data[-1].text, [text for trace in figure.data[1:-1] for text in trace.customdata]
    assert words[list(zip(*figure.data[-1].y, strict=True)).index(("hi", "zero"))].split() == ["+30.0", "worse"]
    assert "nan" not in " ".join([*words, *hovers])
