"""ablate() gives what a whole forward inside intervene() gives for every neuron by itself."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.analysis.ablating import ablate
from langneurons.analysis.ablation import Ablation
from langneurons.analysis.running import Remembered, writes_directly
from langneurons.effects.estimation import effect
from langneurons.errors import (
    EffectError,
    ExecutorError,
    LanguageError,
    ModelError,
    NeuronSetError,
    PatchError,
    StatisticsError,
)
from langneurons.models import add_dictionary, remove_dictionary, view
from tests.analysis.ablation_models import PAIRS, QUICK, NextWord, neurons_at, texts, tiny
from tests.backends import loadable
from tests.models.dictionaries import RandomDictionary
from tests.planted.patching import needed, setting

TOKENS = torch.randint(4, 101, (3, 16), generator=torch.Generator().manual_seed(1))
VALUE = 1.5


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def model(request):
    return tiny(*request.param)


@pytest.mark.parametrize("site", ["pre", "act", "post", "head", "resid_post"])
@torch.no_grad()
def test_batched_ablation_gives_the_logits_of_one_patched_forward_a_neuron(model, site):
    seen, neurons = view(model), neurons_at(model, site)
    memory, plain = Remembered(seen, site, neurons.per_layer()), seen.forward(TOKENS)
    with memory.remembering():
        seen.forward(TOKENS)
    for layer, units in neurons.per_layer().items():
        with memory.ablated(layer, torch.arange(len(units)), torch.full((len(units),), VALUE)):
            batched = seen.forward(TOKENS.repeat(len(units), 1)).unflatten(0, (len(units), -1))
        for unit, found in zip(units.tolist(), batched, strict=True):
            with ln.intervene(model, ln.SetTo(neurons_at(model, site, units=[(layer, unit)]), VALUE, site=site)):
                expected = seen.forward(TOKENS)
            assert (found - expected).abs().max() <= 1e-5 * plain.std()
            assert (expected - plain).abs().max() > 1e-3 * plain.std()


@torch.no_grad()
def test_texts_that_are_not_remembered_are_run_whole(model):
    seen, neurons = view(model), neurons_at(model)
    memory = Remembered(seen, "act", neurons.per_layer(), limit=0)
    with memory.remembering():
        seen.forward(TOKENS)
    with memory.ablated(0, torch.tensor([1, 3]), torch.zeros(2)):
        found = seen.forward(TOKENS.repeat(2, 1))[3:]
    with ln.intervene(model, ln.SetTo(neurons_at(model, units=[(0, 47)]), 0.0)):
        assert (found - seen.forward(TOKENS)).abs().max() <= 1e-5 * found.std()


@pytest.mark.parametrize("at", ["resid_post", "mlp_out"])
@torch.no_grad()
def test_features_are_ablated_where_their_dictionary_stands(at):
    model = tiny(*PAIRS[1])
    seen = view(model)
    add_dictionary(model, {1: RandomDictionary(32, seed=1)}, at=at)
    try:
        units = torch.tensor([0, 3, 9])
        memory = Remembered(seen, "features", {0: units})
        with memory.remembering():
            plain = seen.forward(TOKENS)
        with memory.ablated(0, torch.arange(3), torch.full((3,), 2.0)):
            batched = seen.forward(TOKENS.repeat(3, 1)).unflatten(0, (3, -1))
        for unit, found in zip(units.tolist(), batched, strict=True):
            feature = ln.NeuronSet.of({"hi": [(0, unit)]}, seen.shape("features"), "features")
            with ln.intervene(model, ln.SetTo(feature, 2.0)):
                expected = seen.forward(TOKENS)
            assert (found - expected).abs().max() <= 1e-5 * plain.std()
            assert (expected - plain).abs().max() > 1e-3 * plain.std()
    finally:
        remove_dictionary(model)


def test_an_mlp_output_that_is_normed_before_it_is_added_is_noticed():
    assert all(writes_directly(view(tiny(*pair)), 1) == (pair[0] != "gemma2") for pair in loadable(PAIRS))


@pytest.mark.parametrize("each", ["block", "text"])
def test_losses_and_effects_are_those_of_intervene_and_score(model, each):
    neurons = neurons_at(model)
    text = ln.HeldoutText.of(model, texts(), context_length=32, each=each)
    found = ablate(model, neurons, text, batch_size=7, **QUICK)
    before = text.score(model)
    for (layer, unit, language), row in found.rows.set_index(["layer", "neuron", "language"]).iterrows():
        with ln.intervene(model, ln.SetTo(neurons_at(model, units=[(layer, unit)]), 0.0)):
            after = text.score(model, languages=[language])
        expected = effect(after, before.query("language == @language"), resamples=100)
        assert row["effect"] == pytest.approx(expected.estimate, abs=2e-6)
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), abs=1e-5)
        assert row["items"] == expected.items
    assert len(found.rows) == 2 * len(neurons)


def test_the_mean_is_that_of_the_measured_language():
    model, heldout, stats, _ = setting()
    neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 9)]}, stats.shape, "act")
    text = ln.HeldoutText.of(model, heldout.take(8), context_length=64)
    found = ablate(model, neurons, text, value="mean", stats=stats, languages=["en", "zh"], **QUICK)
    for language in ("en", "zh"):
        given = ablate(model, neurons, text, value=stats[language].mean(), languages=[language], **QUICK)
        assert found.rows.query("language == @language")["effect"].tolist() == given.rows["effect"].tolist()


def test_one_value_a_neuron_of_the_set_is_read_in_its_order():
    model = tiny("llama", "auto")
    neurons, text = neurons_at(model), texts()
    values = torch.linspace(-1, 1, len(neurons))
    found = ablate(model, neurons, text, value=values, **QUICK)
    third = ablate(model, neurons_at(model, units=[(0, 6)]), text, value=float(values[2]), **QUICK)
    chosen = found.rows.query("layer == 0 and neuron == 6")
    assert chosen["effect"].tolist() == pytest.approx(third.rows["effect"].tolist(), abs=1e-9)


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_a_task_is_scored_as_it_is_under_intervene(model, metric):
    neurons, task = neurons_at(model), NextWord()
    found = ablate(model, neurons, task, metric=metric, value=VALUE, languages=["hi"], batch_size=5, **QUICK)
    before = task.measure(model, "hi").assign(nll=lambda rows: -rows["score_seven"])
    for row in found.rows.itertuples():
        with ln.intervene(model, ln.SetTo(neurons_at(model, units=[(row.layer, row.neuron)]), VALUE)):
            after = task.measure(model, "hi").assign(nll=lambda rows: -rows["score_seven"])
        per = "baseline" if metric == "nll" else "row"
        assert row.effect == pytest.approx(effect(after, before, metric, per, resamples=100).estimate, abs=1e-5)


def test_a_task_that_generates_is_run_whole_and_gives_the_same():
    model = tiny("llama", "auto")
    quick, slow = (
        ablate(model, neurons_at(model), NextWord(generates=generates), "nll", **QUICK) for generates in (False, True)
    )
    assert quick.rows["effect"].tolist() == pytest.approx(slow.rows["effect"].tolist(), abs=1e-6)


def mean_logit(logits, tokens, mask, labels):
    wanted = torch.tensor([4 if label == "en" else 5 for label in labels])
    return (logits[torch.arange(len(logits)), :, wanted] * mask).sum(1) / mask.sum(1)


def test_a_function_gives_one_number_a_text(model):
    neurons = neurons_at(model)
    found = ablate(model, neurons, texts(), mean_logit, languages=["hi"], batch_size=5, **QUICK)
    seen = view(model)

    @torch.no_grad()
    def mean():
        rows = [
            torch.tensor([[1, *seen.tokenizer(text, add_special_tokens=False)["input_ids"]]]) for text in texts()["hi"]
        ]
        return np.mean([float(seen.forward(row)[0, :, 5].mean()) for row in rows])

    before = mean()
    for row in found.rows.itertuples():
        with ln.intervene(model, ln.SetTo(neurons_at(model, units=[(row.layer, row.neuron)]), 0.0)):
            assert row.effect == pytest.approx(mean() - before, abs=1e-5)


def test_labelled_texts_hand_their_labels_to_the_function():
    model, seen = tiny("llama", "auto"), []

    def metric(logits, tokens, mask, labels):
        seen.extend(zip(tokens[:, 1].tolist(), labels, strict=True))
        return logits[:, 0, 4]

    rows = [(item, item, f"w{4 + item} w9", "even" if item % 2 == 0 else "odd") for item in range(8)]
    table = pd.DataFrame(rows, columns=["item", "cluster", "text", "label"])
    ablate(model, neurons_at(model, units=[(0, 1)]), {"en": table}, metric, **QUICK)
    assert set(seen) == {(4 + item, "even" if item % 2 == 0 else "odd") for item in range(8)}


def test_a_group_is_ablated_together_and_a_sum_of_prefixes_ends_there():
    model = tiny("llama", "auto")
    neurons, text = neurons_at(model), ln.HeldoutText.of(model, texts(), context_length=32)
    group = ablate(model, neurons, text, each="group", controls=3, **QUICK)
    with ln.intervene(model, ln.SetTo(neurons, 0.0)):
        after = ln.perplexity(model, text, progress=False)["nll"].to_numpy()
    before = ln.perplexity(model, text, progress=False)["nll"].to_numpy()
    assert group.rows["effect"].to_numpy() == pytest.approx(after / before - 1, abs=1e-6)
    assert group.rows["control_draws"].tolist() == [3, 3]
    added = ablate(model, neurons, text, each="cumulative", **QUICK).rows.query("language == 'hi'")
    assert added["neurons"].tolist() == [1, 2, 4, 6]
    assert added["effect"].iloc[-1] == pytest.approx(group.rows.query("language == 'hi'")["effect"].iloc[0], abs=1e-9)
    singles = ablate(model, neurons, text, **QUICK).rows.query("language == 'hi'")
    largest = singles.loc[singles["effect"].abs().idxmax()]
    assert added.iloc[0][["layer", "neuron"]].tolist() == largest[["layer", "neuron"]].tolist()
    assert added.iloc[0]["effect"] == pytest.approx(largest["effect"], abs=1e-6)


def test_an_order_says_which_neurons_are_added_first():
    model = tiny("llama", "auto")
    neurons = neurons_at(model)
    order = -torch.arange(96.0).view(2, 48)
    added = ablate(model, neurons, texts(), each=order, languages=["en"], **QUICK).rows
    assert added[["layer", "neuron"]].values.tolist() == [[0, 1], [0, 5], [0, 47], [1, 20]]


def test_a_neuron_that_a_language_hangs_on_stands_out_against_zero_and_among_its_controls():
    model, text, exclusive, planted = needed()
    found = ablate(model, exclusive["zh"], text, controls=60, **{**QUICK, "resamples": None})
    places = found.rows[["layer", "neuron"]].apply(tuple, axis=1)
    rows = found.rows.assign(planted=places == planted)
    zh = rows.query("language == 'zh'").set_index("planted").sort_index()
    assert zh.loc[True, "effect"] > 0.02
    assert zh.loc[True, "verdict"] == "worse"
    assert zh.loc[True, "control_position"] == 1.0
    assert zh.loc[True, "control_p"] < 0.05
    assert zh.loc[False, "effect"].abs().max() < 0.005
    assert set(zh.loc[False, "verdict"]) <= {"no effect", "slightly worse", "slightly better"}
    assert rows.query("language == 'en'")["effect"].max() < 0.001  # it never helps English
    drawn = set(map(tuple, found.controls[["layer", "neuron"]].values.tolist()))
    assert len(drawn) > 50
    assert not drawn & set(map(tuple, exclusive["zh"].indices().tolist()))
    row = zh.loc[True]
    pool = found.controls.query("language == 'zh'")
    pool = pool.loc[pool["layer"] == row["layer"]] if row["control_pool"] == "layer" else pool
    assert row["control_draws"] == len(pool)


def test_an_interrupted_ablation_goes_on_from_what_was_kept(tmp_path, monkeypatch):
    model = tiny("llama", "auto")
    whole = ablate(model, neurons_at(model), NextWord(), "nll", **QUICK)
    measure, calls = NextWord.measure, []

    def failing(task, *arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return measure(task, *arguments, **options)

    monkeypatch.setattr(NextWord, "measure", failing)
    with pytest.raises(KeyboardInterrupt):
        ablate(model, neurons_at(model), NextWord(), "nll", out=tmp_path, **QUICK)
    again = ablate(model, neurons_at(model), NextWord(), "nll", out=tmp_path, **QUICK)
    assert len(calls) == 5 + 1 + 3 + 7  # four were kept; the texts are read once more; the second language
    assert again.rows["effect"].tolist() == pytest.approx(whole.rows["effect"].tolist(), abs=1e-12)
    ablate(model, neurons_at(model), NextWord(), "nll", out=tmp_path, **QUICK)
    assert len(calls) == 16


def test_texts_are_kept_too(tmp_path, monkeypatch):
    model = tiny("llama", "auto")
    first = ablate(model, neurons_at(model), texts(), out=tmp_path, **QUICK)
    monkeypatch.setattr(Remembered, "remembering", lambda memory: pytest.fail("measured again"))
    assert ablate(model, neurons_at(model), texts(), out=tmp_path, **QUICK).rows.equals(first.rows)


def test_a_result_is_printed_saved_and_loaded(tmp_path):
    model = tiny("llama", "auto")
    neurons = neurons_at(model, languages=("hi", "en"))
    found = ablate(model, neurons, texts(), controls=4, **QUICK)
    loaded = Ablation.load(found.save(tmp_path))
    assert loaded.rows.equals(found.rows)
    assert loaded.controls.equals(found.controls)
    assert repr(loaded) == repr(found)
    assert len(found.rows) == 2 * 2 * len(neurons)
    assert len(found.table()) == len(found.rows)
    assert len(found.table(min_effect=1e-4)) == (found.rows["effect"].abs() >= 1e-4).sum()
    sizes = found.table(5).frame["effect"].abs().tolist()
    assert len(sizes) == 5
    assert sizes == sorted(sizes, reverse=True)
    row = found.table(1).texts().iloc[0]
    largest = found.rows.loc[found.rows["effect"].abs().idxmax()]
    assert row["effect (%)"].startswith(f"{100 * largest['effect']:+.3g}"[:5])
    assert row["among controls"].endswith("of 4 (label)")
    assert not re.search("nan|None|none", str(found.table()))
    assert r"\%" in found.table(3).latex()
    assert found.table(3).latex().count(r"\\") == 4
    with pytest.raises(EffectError, match="smallest effect"):
        found.table(min_effect=-0.1)


def test_what_an_earlier_version_saved_is_loaded(tmp_path):
    model = tiny("llama", "auto")
    found = ablate(model, neurons_at(model), texts(), controls=4, **QUICK)
    settings = {"delta": found.settings["margin"], "min_effect": 1e-4, **found.settings}
    del settings["margin"]
    Ablation(found.rows, found.controls, settings).save(tmp_path)
    loaded = ln.load(tmp_path)
    assert loaded.settings["margin"] == 0.01
    assert loaded.caption == found.caption
    assert len(loaded.table()) == (found.rows["effect"].abs() >= 1e-4).sum()


def test_options_go_by_their_earlier_names_for_a_version():
    model = tiny("llama", "auto")
    order = -torch.arange(96.0).view(2, 48)
    quick = {"languages": ["en"], **QUICK}
    old = {"each": "cumulative", "order": order, "rows": 5, "delta": 0.02, "min_effect": 1.0}
    current = ablate(model, neurons_at(model), texts(), each=order, batch_size=5, margin=0.02, **quick)
    with pytest.warns(ln.LangNeuronsWarning) as warned:
        earlier = ablate(model, neurons_at(model), texts(), **old, **quick)
    assert {str(warning.message).split("=")[0].split(" is ")[0] for warning in warned} == {
        "The option rows",
        "The option order",
        "The option min_effect",
        "The option delta",
    }
    assert earlier.rows.equals(current.rows)
    assert len(earlier.table()) == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"each": "neurons"}, EffectError, "did you mean 'neuron'"),
        ({"controls": -1}, EffectError, "draws must be a whole number of at least 0, given -1"),
        ({"batch_size": 0}, ExecutorError, "batch_size must be a whole number of at least 1, or None, given 0"),
        ({"margin": 0}, EffectError, "margin must be above 0 and finite, given 0"),
        ({"controls": 2, "batchsize": 4}, EffectError, "did you mean 'batch_size'"),
        ({"controls": 2, "each": "cumulative"}, EffectError, "no controls"),
        ({"metric": "loss"}, EffectError, "Possible: nll"),
        ({"value": "mean"}, StatisticsError, "stats="),
        ({"value": "median"}, StatisticsError, "Possible: mean"),
        ({"value": torch.zeros(3)}, EffectError, "3 values for 6"),
        ({"value": torch.zeros(6), "controls": 2}, EffectError, "control neurons"),
        ({"languages": ["fr"]}, LanguageError, "Possible: en, hi"),
        ({"languages": "en"}, LanguageError, "as a list"),
        ({"languages": []}, LanguageError, "No language was given"),
        ({"metric": mean_logit, "out": "folder"}, EffectError, "fingerprint"),
        ({"metric": lambda logits, tokens, mask, labels: logits}, EffectError, "one number per row"),
        ({"each": torch.zeros(3, 4)}, EffectError, "one number per neuron"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_no_folder(changes, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny("llama", "auto")
    with pytest.raises(error, match=message):
        ablate(model, neurons_at(model), texts(), **changes, **QUICK)
    assert not list(tmp_path.iterdir())


def test_sets_that_fit_no_model_or_are_empty_are_refused():
    model = tiny("llama", "auto")
    with pytest.raises(PatchError, match="layers"):
        ablate(model, ln.NeuronSet.of({"hi": [(0, 1)]}, (3, 48), "act"), texts(), **QUICK)
    with pytest.raises(NeuronSetError, match="nothing to ablate"):
        ablate(model, ln.NeuronSet.of({"hi": []}, (2, 48), "act"), texts(), **QUICK)
    with pytest.raises(EffectError, match="accuracy"):
        ablate(model, neurons_at(model), NextWord(), "f1", **QUICK)


@pytest.mark.parametrize("each", ["neuron", "group"])
def test_a_neuron_without_which_the_loss_is_not_finite_is_never_called_significant(each):
    model = tiny("llama", "auto")
    with pytest.raises((EffectError, ModelError), match="finite number"):
        ablate(model, neurons_at(model), texts(), value=1e38, each=each, **QUICK)


def test_a_metric_that_is_not_finite_is_noticed_at_the_first_texts():
    model = tiny("llama", "auto")
    with pytest.raises(EffectError, match="metric '<lambda>' is nan on 2 of the first 2 texts of 'en', such as item"):
        ablate(model, neurons_at(model), texts(), lambda logits, *_: logits[:, 0, 0] * np.nan, **QUICK)


def test_labels_may_be_called_like_columns():
    model = tiny("llama", "auto")
    names = ("hi", "hi 0", "unpatched", "item", "control 0 hi")
    found = ablate(model, neurons_at(model, languages=names), texts(), each="group", controls=2, **QUICK)
    by_label = {label: rows["effect"].tolist() for label, rows in found.rows.groupby("label")}
    plain = ablate(model, neurons_at(model), texts(), each="group", **QUICK).rows["effect"].tolist()
    assert 0 not in plain
    assert by_label == dict.fromkeys(names, plain)


def test_one_document_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(Remembered, "remembering", lambda memory: pytest.fail("the model ran"))
    model, alone = tiny("llama", "auto"), ln.load_corpus({"en": ["w5 w6 w7 w8"], "hi": ["w5 w6", "w7 w8"]})
    with pytest.raises(EffectError, match="'en' is one document"):
        ablate(model, neurons_at(model), alone, **QUICK)


def test_a_functions_numbers_are_printed_in_their_own_unit():
    model = tiny("llama", "auto")
    found = ablate(model, neurons_at(model), texts(), mean_logit, value=VALUE, **QUICK)
    assert "mean_logit in its own unit" in found.caption
    largest = found.rows["effect"].abs().max()
    assert abs(float(found.table().texts()["effect"][0].split()[0])) == pytest.approx(largest, rel=0.01)


def test_latex_captions_compile_whatever_the_model_is_called():
    found = ablate(tiny("llama", "auto"), neurons_at(tiny("llama", "auto")), texts(), **QUICK)
    named = Ablation(found.rows, None, {**found.settings, "model": "my_model #1 & 50%"})
    assert r"my\_model \#1 \& 50\%" in named.table(1).latex()
