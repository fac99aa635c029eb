import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.effects.placement import selectivity
from langneurons.errors import EffectError, NeuronSetError, PatchError, SiteMismatchError
from tests.planted.patching import Amplify, packed, setting

QUICK = {"resamples": 1000, "progress": False}


def amplify(neurons, language):
    return Amplify(neurons)


@pytest.fixture(scope="module")
def matrix():
    model, heldout, stats, neurons = setting()
    return ln.perplexity_matrix(model, packed(), neurons, patch=amplify, controls=19, stats=stats, **QUICK)


def test_a_patch_of_neurons_exclusive_to_a_language_changes_that_language_and_no_other(matrix):
    verdicts, effects = matrix.matrix("verdict"), matrix.matrix()
    for language in verdicts.index:
        assert verdicts.loc[language, language] != "no effect"
        assert (effects.loc[language].drop(language).abs() < 0.01).all()


def test_the_index_of_every_draw_is_what_selectivity_is_placed_among(matrix):
    draws = [
        sum(
            part.set_index(["patched", "measured"])["estimate"].loc[(label, label)]
            - part.query("patched == @label and measured != @label")["estimate"].mean()
            for label in ("en", "hi", "ur", "zh")
        )
        / 4
        for _, part in matrix.controls.query("control == 'matched'").groupby("draw")
    ]
    overall = matrix.selectivity.set_index("language").loc["all"]
    assert len(draws) == overall["control_draws"] == 19
    assert overall["control_mean"] == pytest.approx(np.mean(draws))
    assert overall["control_sd"] == pytest.approx(np.std(draws, ddof=1))
    assert overall["low"] <= overall["selectivity"] <= overall["high"]


def test_each_row_says_what_its_controls_did(matrix):
    drawn = matrix.controls.query("control == 'matched' and patched == 'hi' and measured == 'ur'")["estimate"]
    row = matrix.rows.query("patched == 'hi' and measured == 'ur'").iloc[0]
    assert len(drawn) == 19
    assert row["control_mean"] == pytest.approx(drawn.mean())
    assert row["control_position"] == pytest.approx((drawn < row["estimate"]).mean())


def test_the_other_languages_sets_stand_beside_the_diagonal(matrix):
    estimates = matrix.matrix("estimate")
    row = matrix.rows.query("patched == 'hi' and measured == 'hi'").iloc[0]
    assert row["other_languages_mean"] == pytest.approx(estimates["hi"].drop("hi").mean())


def test_the_change_is_relative_to_the_measured_languages_own_baseline(matrix):
    model, heldout, _, neurons = setting()
    text = ln.HeldoutText.of(model, heldout, context_length=64)
    before = ln.perplexity(model, text, progress=False).set_index("language")["nll"]
    with ln.intervene(model, amplify(neurons["zh"], "zh")):
        after = ln.perplexity(model, text, progress=False).set_index("language")["nll"]
    for language in text.languages:
        assert matrix.matrix().loc["zh", language] == pytest.approx(after[language] / before[language] - 1, abs=1e-12)


def test_an_interrupted_matrix_goes_on_from_what_was_kept(tmp_path, monkeypatch):
    model, heldout, stats, neurons = setting()
    whole = ln.perplexity_matrix(model, packed(), neurons, controls=1, stats=stats, out=tmp_path / "a", **QUICK)
    score, scored = ln.HeldoutText.score, []

    def failing(text, *arguments, **options):
        if len(scored) == 4:
            raise KeyboardInterrupt
        scored.append(1)
        return score(text, *arguments, **options)

    monkeypatch.setattr(ln.HeldoutText, "score", failing)
    with pytest.raises(KeyboardInterrupt):
        ln.perplexity_matrix(model, packed(), neurons, controls=1, stats=stats, out=tmp_path / "b", **QUICK)
    monkeypatch.setattr(ln.HeldoutText, "score", lambda *a, **o: scored.append(1) or score(*a, **o))
    again = ln.perplexity_matrix(model, packed(), neurons, controls=1, stats=stats, out=tmp_path / "b", **QUICK)
    conditions = 1 + 2 * len(neurons.languages) + 1  # unpatched, sets, one draw each; the neutral neurons are the same
    assert len(scored) == conditions
    assert again.rows.equals(whole.rows)


def test_a_damaged_kept_condition_is_measured_again(tmp_path):
    model, heldout, _, neurons = setting()
    first = ln.perplexity_matrix(model, packed(), neurons, controls=0, out=tmp_path, **QUICK)
    for path in (tmp_path / "rows").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert ln.perplexity_matrix(model, packed(), neurons, controls=0, out=tmp_path, **QUICK).rows.equals(first.rows)


def test_a_patch_that_does_not_fit_costs_no_measurement(monkeypatch):
    model, heldout, stats, neurons = setting()
    monkeypatch.setattr(ln.HeldoutText, "score", lambda *a, **o: pytest.fail("measured"))
    foreign = stats["hi"].mean()
    foreign = ln.recording.SiteValues(foreign.values, "act", "another model")
    with pytest.raises(SiteMismatchError, match="another"):
        ln.perplexity_matrix(model, packed(), neurons, foreign, controls=0, **QUICK)


def test_labels_without_neurons_are_left_out():
    model, heldout, _, neurons = setting()
    some = ln.NeuronSet.of({"hi": [(0, 1)], "ur": []}, neurons.shape, "act")
    assert list(ln.perplexity_matrix(model, packed(), some, controls=0, **QUICK).matrix().index) == ["hi"]


def test_controls_without_statistics_match_layers_only():
    model, heldout, _, neurons = setting()
    table = ln.perplexity_matrix(model, packed(), neurons, controls=2, **QUICK)
    assert table.settings["match"] == "layer"
    assert set(table.controls["control"]) == {"matched", "other language"}
    assert table.rows["control_p"].isna().all()  # two draws cannot give a p-value


def test_control_values_are_read_at_the_controls_own_neurons():
    _, _, stats, neurons = setting()
    control = neurons.matched_control(stats, draw=3)["hi"]
    layer, index = control.indices()[0].tolist()
    assert float(ln.SetTo(control, stats["hi"].mean()).values_of(layer)["value"][0]) == float(
        stats["hi"].mean()[layer, index]
    )


def test_neutral_neurons_fire_often_and_alike_in_every_language():
    _, _, stats, neurons = setting()
    neutral = neurons.neutral_control(stats)
    p = stats.probability()
    mask = neutral.mask("hi")
    assert neutral.counts().equals(neurons.counts())
    assert not (mask & neurons.mask()).any()
    assert float(p[:, mask].mean()) > float(p.mean())
    assert float(p[:, mask].std(0).mean()) < float(p.std(0).mean())


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"controls": -1}, EffectError, "draws must be a whole number of at least 0, given -1"),
        ({"neurons": "empty"}, EffectError, "there is nothing to patch"),
        ({"neurons": "everything"}, NeuronSetError, "too few"),
        ({"margin": 0}, EffectError, "margin must be above 0 and finite, given 0"),
        ({"heldout": "one document"}, EffectError, "at least two"),
    ],
)
def test_bad_input_is_one_sentence(change, error, sentence):
    model, heldout, stats, neurons = setting()
    if change.get("neurons") == "empty":
        change = {"neurons": ln.NeuronSet.of({"hi": []}, neurons.shape, "act")}
    if change.get("neurons") == "everything":
        layers, width = neurons.shape
        every = [(layer, unit) for layer in range(layers) for unit in range(width)]
        change = {"neurons": ln.NeuronSet.of({"hi": every}, neurons.shape, "act")}
    if "heldout" in change:
        document = ln.load_corpus({"hi": [heldout.text("hi", 0)]})
        change = {"text": ln.HeldoutText.of(model, document, context_length=64), "controls": 0}
    given = {"text": packed(), "neurons": neurons, "controls": 1, "stats": stats, **QUICK, **change}
    with pytest.raises(error, match=sentence) as caught:
        ln.perplexity_matrix(model, given.pop("text"), given.pop("neurons"), **given)
    assert str(caught.value).count("\n") == 0


def test_the_selectivity_index_is_the_diagonal_minus_the_rest_of_the_row():
    generator = np.random.default_rng(0)
    rows = {language: _rows(generator, language) for language in ("a", "b", "c")}
    patched = {
        "a": {one: part.assign(nll=part["nll"] * (1.3 if one == "a" else 1.1)) for one, part in rows.items()},
        "b": {one: part.assign(nll=part["nll"] * (1.0 if one == "b" else 1.2)) for one, part in rows.items()},
    }
    no_controls = pd.DataFrame(columns=["patched", "measured", "control", "draw", "estimate"])
    table = selectivity(patched, rows, no_controls, resamples=200).set_index("language")
    assert table.loc["a", "selectivity"] == pytest.approx(0.2)
    assert table.loc["b", "selectivity"] == pytest.approx(-0.2)
    assert table.loc["all", "selectivity"] == pytest.approx(0.0)
    assert table.loc["a", "low"] == pytest.approx(0.2)  # every document changes by the same factor


def _rows(generator, language):
    return pd.DataFrame(
        {"language": language, "item": range(30), "cluster": np.arange(30) // 3, "nll": generator.uniform(1, 9, 30)}
    )


def test_a_patch_of_generated_positions_is_refused_where_nothing_is_generated():
    model, heldout, _, neurons = setting()
    with pytest.raises(PatchError, match="nothing is generated"):
        ln.perplexity_matrix(
            model,
            packed(),
            neurons,
            patch=lambda chosen, language: ln.SetTo(chosen, 0.0, positions="generated"),
            controls=0,
            **QUICK,
        )


def test_what_is_measured_inside_another_patch_is_not_kept_for_the_plain_model(tmp_path):
    model, heldout, _, neurons = setting()
    inside = ln.SetTo(neurons["en"], 1.0)
    with ln.intervene(model, inside), pytest.raises(PatchError, match="leave the block first"):
        ln.perplexity_matrix(model, packed(), neurons, controls=0, out=tmp_path, **QUICK)
    text = ln.HeldoutText.of(model, heldout.take(2), context_length=64)
    with ln.intervene(model, inside), pytest.raises(PatchError, match="leave that block first"):
        ln.evaluation.dose(model, ln.SetTo(neurons["hi"], 0.0), text)


def test_a_patch_beside_a_value_is_refused():
    model, heldout, _, neurons = setting()
    with pytest.raises(PatchError, match="either patch="):
        ln.perplexity_matrix(model, packed(), neurons, 1.0, patch=amplify, controls=0, **QUICK)


def test_a_tensor_that_was_trained_on_is_another_patch():
    _, _, _, neurons = setting()
    values = torch.zeros(len(neurons["hi"]))
    patch = ln.SetTo(neurons["hi"], values, site="act")
    before = patch.fingerprint
    values += 1
    assert patch.fingerprint != before
