import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import EffectError, PatchError, StatisticsError
from langneurons.evaluation.sweeping import deactivation_doses
from tests.planted.patching import packed, setting

QUICK = {"resamples": 500, "progress": False}


def swept(doses, **options):
    model, _, stats, neurons = setting()
    options = {"stats": stats, "languages": ["hi"], **QUICK, **options}
    return ln.sweep(model, packed(), options.pop("neurons", neurons), doses, **options)


def test_each_kind_of_dose_is_the_patch_it_says():
    _, _, stats, neurons = setting()
    hindi = neurons["hi"]
    expected = {
        ("set", -1): ln.SetTo(hindi, -1),
        ("quantile", 0.9): ln.SetTo(hindi, stats["hi"].quantile(0.9)),
        ("scale", 2): ln.Scale(hindi, 2),
        ("cumulative", 1): ln.SetTo(hindi, 0.0),
    }
    for (kind, amount), patch in expected.items():
        assert ln.evaluation.Dose(kind, amount).patch(hindi, "hi", stats).fingerprint == patch.fingerprint


def test_growing_shares_are_nested_and_start_with_the_neurons_furthest_ahead():
    _, _, stats, neurons = setting()
    masks = [
        _mask(ln.evaluation.Dose("cumulative", share).patch(neurons["hi"], "hi", stats)) for share in (0.2, 0.5, 1)
    ]
    assert bool((masks[0] <= masks[1]).all())
    assert bool((masks[1] <= masks[2]).all())
    ahead = (stats["hi"].mean().values - stats.select(["en", "ur", "zh"]).pooled().mean().values) * stats.output_norm()
    assert float(ahead[masks[0]].min()) >= float(ahead[masks[2] & ~masks[0]].max())


def _mask(patch):
    return patch.neurons.mask()


def test_each_cell_is_the_change_that_its_patch_makes():
    model, heldout, stats, neurons = setting()
    table = swept([ln.evaluation.Dose("scale", 1), ln.evaluation.Dose("scale", 300)]).rows.set_index(
        ["amount", "measured"]
    )
    text = ln.HeldoutText.of(model, heldout, context_length=64)
    before = ln.perplexity(model, text, progress=False).set_index("language")["nll"]
    with ln.intervene(model, ln.Scale(neurons["hi"], 300)):
        after = ln.perplexity(model, text, progress=False).set_index("language")["nll"]
    for language in text.languages:
        assert table.loc[(1, language), "estimate"] == 0
        assert table.loc[(300, language), "estimate"] == pytest.approx(after[language] / before[language] - 1, abs=1e-9)


def test_rows_say_how_many_neurons_were_given_what_and_whether_it_can_be_reached():
    table = swept([ln.evaluation.Dose("set", -1), ln.evaluation.Dose("set", 0), ln.evaluation.Dose("scale", 2)])
    rows = table.rows.drop_duplicates(["kind", "amount"]).set_index(["kind", "amount"])
    _, _, _, neurons = setting()
    assert rows.loc[("set", -1), "neurons"] == len(neurons["hi"])
    assert rows.loc[("set", -1), "written"] == -1
    assert rows.loc[("set", -1), "unreachable"] == 1
    assert rows.loc[("set", 0), "unreachable"] == 0
    assert torch.isnan(torch.tensor(rows.loc[("scale", 2), "written"]))


def test_methods_and_layer_ranges_are_crossed_and_ranges_without_neurons_left_out():
    _, _, _, neurons = setting()
    first = ln.NeuronSet.of({"hi": [(0, 3)]}, neurons.shape, "act")
    table = swept(
        [ln.evaluation.Dose("set", 0)],
        neurons={"plants": neurons, "first layer": first},
        layers={"first": range(0, 1), "second": range(1, 2)},
    )
    cells = set(table.rows[["method", "layers"]].itertuples(index=False, name=None))
    assert cells == {("plants", "first"), ("plants", "second"), ("first layer", "first")}


def test_a_larger_grid_measures_only_what_is_missing(tmp_path, monkeypatch):
    swept([ln.evaluation.Dose("set", 0)], out=tmp_path)
    score, scored = ln.HeldoutText.score, []
    monkeypatch.setattr(ln.HeldoutText, "score", lambda *a, **o: scored.append(1) or score(*a, **o))
    swept([ln.evaluation.Dose("set", 0), ln.evaluation.Dose("set", 1)], out=tmp_path)
    assert len(scored) == 1


def test_a_perplexity_is_kept_like_a_condition(tmp_path, monkeypatch):
    model, *_ = setting()
    plain = ln.perplexity(model, packed(), progress=False)
    pd.testing.assert_frame_equal(ln.perplexity(model, packed(), out=tmp_path, progress=False), plain)
    monkeypatch.setattr(ln.HeldoutText, "score", lambda *a, **o: pytest.fail("measured"))
    pd.testing.assert_frame_equal(ln.perplexity(model, packed(), out=tmp_path, progress=False), plain)


def test_resamples_grow_with_the_family_so_that_holm_can_find_something():
    doses = [ln.evaluation.Dose("set", amount) for amount in range(30)]
    assert swept(doses, resamples=None).settings["resamples"] == 100 * 30 * 4


def test_the_deactivation_sweep_holds_what_the_question_asks_for():
    doses = deactivation_doses()
    amounts = {kind: [dose.amount for dose in doses if dose.kind == kind] for kind in ("set", "quantile", "scale")}
    assert (min(amounts["set"]), max(amounts["set"])) == (-10, 10)
    assert (min(amounts["scale"]), max(amounts["scale"])) == (0, 3)
    assert {0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95} <= set(amounts["quantile"])


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: ln.evaluation.Dose("sett", 1), PatchError, "did you mean 'set'"),
        (lambda: ln.evaluation.Dose("quantile", 1.2), PatchError, "between 0 and 1, not at 1.2"),
        (lambda: ln.evaluation.Dose("cumulative", 0), PatchError, "above 0"),
        (lambda: ln.evaluation.Dose("set", float("nan")), PatchError, "finite"),
        (lambda: swept([ln.evaluation.Dose("quantile", 0.5)], stats=None), StatisticsError, "give stats="),
        (lambda: swept([ln.evaluation.Dose("set", 0)], layers={"none": range(0)}), EffectError, "no cell"),
    ],
)
def test_bad_input_is_one_sentence(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_a_layer_outside_the_model_is_named_also_for_shares():
    with pytest.raises(PatchError, match="There is no layer 40"):
        swept([ln.evaluation.Dose("cumulative", 0.5)], layers={"some": [0, 1, 40]})
