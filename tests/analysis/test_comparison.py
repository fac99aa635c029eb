"""Methods side by side on a model whose neurons are known, and whole heads from recording to ablation."""

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.analysis.ablating import ablate
from langneurons.analysis.comparison import Comparison, agreement, compare_methods
from langneurons.analysis.validity import record_nulls
from langneurons.analysis.validity.reliability import Selection
from langneurons.errors import LanguageError, StatisticsError, TaskError
from langneurons.identification import Contrast, GradientRelevance, SentenceAP
from langneurons.storage.presenting import Column
from tests.planted.model import LANGUAGES, planted_model

METHODS = {
    "LAPE": ln.LAPE(top=0.1, filter_quantile=0.75),
    "contrast": Contrast(top=0.02),
    "sentences": SentenceAP(top=0.02, bottom=0.0),
    "gradient": GradientRelevance(top=0.02),
    "random": ln.Random(top=0.02),
}


@pytest.fixture(scope="module")
def truth():
    return planted_model(documents=40)


@pytest.fixture(scope="module")
def model(truth):
    return truth.model()


@pytest.fixture(scope="module")
def texts(truth):
    return truth.corpus().split(0.25)


@pytest.fixture(scope="module")
def compared(model, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    options = {"context_length": 64, "tokens_per_language": 800, "sample": 12, "out": out, "progress": False}
    return compare_methods(METHODS, model, *texts, **options), options


def test_new_methods_find_planted_language_neurons(truth, model, texts):
    stats = ln.record(model, texts[0], context_length=64, progress=False, also=("sentence",))
    exclusive = truth.of("hi", ("exclusive",))
    for method in (METHODS["contrast"], METHODS["sentences"]):
        found = {tuple(neuron) for neuron in method.identify(stats)["hi"].indices().tolist()}
        assert len(found & exclusive) >= 5


def test_every_method_is_graded_by_every_check(compared):
    table = compared[0].rows.set_index("method")
    assert list(table.index) == list(METHODS)
    assert not table.drop(columns=["selectivity_control"], errors="ignore").isna().any(axis=None)
    assert (table["ablated"] == 12).all()
    assert table.loc["random", "jaccard"] == 1  # the same draw of either half: reliable
    assert table.loc["random", "null_shuffled"] > 0.3  # and caught by the null
    assert table.loc["contrast", "null_shuffled"] < 0.2
    assert (table["ablation_low"] <= table["ablation"]).all()
    assert (table["ablation"] <= table["ablation_high"]).all()


def test_overlap_tells_methods_that_agree_from_those_that_do_not(compared):
    overlap = compared[0].jaccard()
    assert overlap.loc["contrast", "sentences"] > 0.15 > 0.1 > overlap.loc["contrast", "random"]
    assert np.array_equal(overlap.to_numpy(), overlap.to_numpy().T)
    chance = compared[0].overlap.query("first == 'contrast' and second == 'random'")["jaccard_chance"]
    assert (chance < 0.05).all()


def test_the_same_call_goes_on_from_what_was_measured(compared, model, texts, monkeypatch):
    found, options = compared
    monkeypatch.setattr("langneurons.recording.recorder.pack", lambda *given: pytest.fail("it recorded again"))
    again = compare_methods(METHODS, model, *texts, **options)
    pd.testing.assert_frame_equal(again.rows, found.rows)


def test_a_comparison_is_read_back_as_it_was_saved(compared, tmp_path):
    found = compared[0]
    loaded = Comparison.load(found.save(tmp_path))
    pd.testing.assert_frame_equal(loaded.rows, found.rows)
    assert repr(loaded) == repr(found)
    row = found.rows.set_index("method").loc["contrast"]
    assert Column().text(row["ablation"], row["ablation_low"], row["ablation_high"]) in repr(found)
    assert "5 methods at act" in repr(found)
    assert "selectivity (points)" in repr(found)
    assert "nan" not in repr(found)
    assert repr(ln.load(tmp_path)) == repr(found)


def test_plain_statistics_and_recordings_are_compared_as_far_as_they_go(model, texts):
    recorded = record_nulls(model, texts[0], tokens_per_language=800, context_length=64, which=[], progress=False)
    methods = {"LAPE": METHODS["LAPE"], "AUROC": ln.AUROC(top=0.02)}
    halves = compare_methods(methods, model, recorded)
    assert not halves.rows[["jaccard", "spearman"]].isna().any(axis=None)
    one = compare_methods(methods, model, recorded.real[0])
    assert np.isnan(one.rows.set_index("method").loc["AUROC", "jaccard"])
    assert one.rows.set_index("method").loc["LAPE", "jaccard"] > 0.3
    assert "AUROC cannot be split in halves" in repr(one)
    with pytest.raises(StatisticsError, match=r"also=\('sentence',\)"):
        compare_methods({"sentences": METHODS["sentences"]}, model, recorded)


def test_impossible_comparisons_are_refused(model, texts):
    with pytest.raises(StatisticsError, match="name of its own"):
        compare_methods([ln.LAPE(), ln.LAPE()], model, texts[0])
    with pytest.raises(StatisticsError, match="name of its own"):
        compare_methods({}, model, texts[0])
    with pytest.raises(StatisticsError, match="is not a method"):
        compare_methods({"LAPE": "lape"}, model, texts[0])
    with pytest.raises(TaskError, match="not on a str"):
        compare_methods([ln.LAPE()], model, texts[0], "heldout")
    with pytest.raises(LanguageError, match="a language in common"):
        compare_methods([ln.LAPE()], model, texts[0], ln.load_corpus({"xx": ["one", "two"]}))
    with pytest.raises(StatisticsError, match="negative"):
        compare_methods([ln.LAPE()], model, texts[0], sample=-1)
    with pytest.raises(StatisticsError, match="at one site, not at act, head"):
        compare_methods([ln.LAPE()], model, texts[0], sites=("act", "head"))


def test_the_site_of_an_earlier_version_is_one_of_sites(model, texts):
    recorded = ln.record(model, texts[0], context_length=64, sites=("act", "post"), progress=False)
    with pytest.warns(ln.LangNeuronsWarning, match="sites="):
        assert compare_methods([ln.MeanDifference(top=0.02)], model, recorded, site="post").settings["site"] == "post"


def test_agreement_is_one_for_scores_that_rank_neurons_as_their_effects_do():
    random = np.random.default_rng(0)
    effects = random.normal(size=(30, 2)) * 0.01
    ablated = pd.DataFrame(effects, range(5, 35), ["en", "hi"])

    def scored(values: np.ndarray, chosen: np.ndarray) -> Selection:
        scores = np.full(40, np.median(values))
        scores[5:35] = values
        return Selection(scores, np.flatnonzero(np.isin(scores, chosen)))

    sizes = {name: np.abs(effects[:, i]) for i, name in enumerate(("en", "hi"))}
    high = {name: scored(one, np.sort(one)[-4:]) for name, one in sizes.items()}
    low = {name: scored(-one, np.sort(-one)[:4]) for name, one in sizes.items()}
    for decided in (high, low):  # whichever end a method looks at
        row = agreement(ablated, decided, seed=0)
        assert row["ablation"] == pytest.approx(1)
        assert row["ablation_low"] == pytest.approx(1)
    selective = {"en": effects[:, 0] - effects[:, 1], "hi": effects[:, 1] - effects[:, 0]}
    row = agreement(ablated, {name: scored(one, np.sort(one)[-4:]) for name, one in selective.items()}, seed=0)
    assert row["ablation_selective"] == pytest.approx(1)
    assert row["ablation"] < 0.9


def head_that_reads(truth, language: str = "hi", layer: int = 1, head: int = 2) -> None:
    """Let one head write, strongly, what makes the language's tokens likely, on that language only."""
    network = truth.hf_model
    size = network.config.hidden_size // network.config.num_attention_heads
    rows = slice(head * size, (head + 1) * size)
    names = {name: index for name, index in truth.tokenizer.get_vocab().items() if name.startswith(language)}
    others = [index for name, index in truth.tokenizer.get_vocab().items() if name[:2] in LANGUAGES]
    embedding = network.model.embed_tokens.weight
    own = embedding[list(names.values())].mean(0)
    direction = own - embedding[others].mean(0)
    direction = direction / direction.norm()
    attention = network.model.layers[layer].self_attn
    norm = network.model.layers[layer].input_layernorm.weight
    with torch.no_grad():
        attention.v_proj.weight[rows] = 0.0
        attention.v_proj.weight[rows.start] = 4.0 * direction / norm
        attention.o_proj.weight[:, rows] = 0.0
        attention.o_proj.weight[:, rows.start] = 3.0 * direction
        network.lm_head.weight.mul_(0.1)
        network.lm_head.weight[list(names.values())] += 0.5 * direction


def test_a_planted_head_goes_from_recording_to_ablation():
    truth = planted_model(documents=40)
    head_that_reads(truth)
    model = truth.model()
    train, heldout = truth.corpus().split(0.3)
    stats = ln.record(model, train, context_length=64, sites=("head",), progress=False, also=("gradient",))
    by_entropy = ln.LAPE(top=0.125, filter_quantile=0.8, magnitude_threshold="pooled-p75").identify(stats)
    assert by_entropy["hi"].indices().tolist() == [[1, 2]]
    assert ln.MeanDifference(top=0.125).identify(stats)["hi"].indices().tolist() == [[1, 2]]
    assert GradientRelevance(top=0.125).identify(stats)["hi"].indices().tolist() == [[1, 2]]
    assert "basis" not in repr(by_entropy)
    text = ln.HeldoutText.of(model, heldout, context_length=64)
    matrix = ln.perplexity_matrix(model, text, by_entropy, controls=0, resamples=200, progress=False).matrix()
    assert matrix.loc["hi", "hi"] > 0.01
    assert matrix.loc["hi", "hi"] > 5 * abs(matrix.loc["hi", "en"])
    every = ln.NeuronSet.of({"heads": [(i, j) for i in range(2) for j in range(4)]}, (2, 4), "head")
    rows = ablate(model, every, text, resamples=200, progress=False).rows
    worst = rows.loc[rows["effect"].idxmax()]
    assert (worst["layer"], worst["neuron"], worst["language"]) == (1, 2, "hi")
    assert worst["effect"] == pytest.approx(matrix.loc["hi", "hi"], rel=1e-4)


def test_units_of_the_residual_stream_are_called_basis_dependent(model, texts):
    stats = ln.record(model, texts[0], context_length=64, sites=("resid_post",), progress=False)
    neurons = ln.MeanDifference(top=0.05).identify(stats)
    assert "basis-dependent" in repr(neurons)
    table = neurons.to_dataframe()
    assert (table["basis"] == "basis-dependent").all()
    assert ln.NeuronSet.from_dataframe(table) == neurons
