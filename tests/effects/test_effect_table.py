from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.effects.estimation import effect
from langneurons.effects.table import EffectTable
from langneurons.errors import CorruptArtefactError, EffectError, LangNeuronsWarning, StorageError
from langneurons.storage.objects import read_json, write_json

KEYS = ("patched", "measured")


def one(change, noise=0.05, items=40, **options):
    generator = np.random.default_rng(0)
    baseline = pd.DataFrame({"item": range(items), "cluster": np.arange(items), "nll": generator.gamma(20, 1, items)})
    condition = baseline.assign(nll=baseline["nll"] * (1 + change + noise * generator.normal(size=items)))
    return effect(condition, baseline, **options)


@pytest.fixture(scope="module")
def effects():
    changes = {("zh", "zh"): 0.2, ("zh", "en"): 0.0, ("en", "zh"): 0.01, ("en", "en"): 0.1}
    return {keys: one(change) for keys, change in changes.items()}


@pytest.fixture
def table(effects):
    return EffectTable.of(effects, KEYS, "a test: 4 effects", {"tokens": {"en": 100}})


def test_rows_begin_with_keys_and_the_estimate(table):
    columns = ["patched", "measured", "estimate", "low", "high", "p", "p_holm", "verdict", "minimal_detectable"]
    assert list(table.rows.columns[:9]) == columns
    assert {"items", "clusters", "baseline", "condition"} <= set(table.rows.columns)
    assert len(table) == 4


def test_settings_keep_what_all_effects_share(table):
    shared = {"value": "nll", "per": "baseline", "margin": 0.01, "level": 0.95, "lower_is_better": True}
    assert shared.items() <= dict(table.settings).items()
    assert (table.keys, table.family, table.settings["tokens"]) == (
        ["patched", "measured"],
        "a test: 4 effects",
        {"en": 100},
    )


def test_matrix_keeps_the_order_of_the_rows(table, effects):
    matrix = table.matrix()
    assert (list(matrix.index), list(matrix.columns)) == (["zh", "en"], ["zh", "en"])
    assert matrix.loc["en", "zh"] == effects["en", "zh"].estimate
    assert table.matrix("verdict").loc["zh", "zh"] == "worse"


def test_verdicts_follow_the_family():
    weak = one(0.018)
    assert weak.verdict == "worse"
    assert 0.01 < weak.p < 0.05
    table = EffectTable.of({name: weak for name in "abcde"}, ["name"], "five equal tests")
    assert set(table.rows["verdict"]) == {"inconclusive"}
    np.testing.assert_allclose(table.rows["p_holm"], 5 * table.rows["p"])


def test_equivalence_does_not_depend_on_the_family():
    close = one(0.0, noise=0.01)
    assert set(EffectTable.of({"a": close, "b": close}, ["name"], "two").rows["verdict"]) == {"no effect"}


def test_trained_effects_show_their_seeds():
    baseline = pd.DataFrame({"item": range(20), "cluster": range(20), "nll": 2.0})
    condition = pd.concat([baseline.assign(seed=seed, nll=2.2 + 0.1 * seed) for seed in range(3)])
    table = EffectTable.of({"a": effect(condition, baseline), "b": one(0.2)}, ["name"], "mixed")
    assert table.rows["seeds"].tolist()[0] == 3
    assert np.isnan(table.rows["p_holm"][0])
    assert table.rows["p_holm"][1] == table.rows["p"][1]
    assert " – " in repr(table)


def test_a_table_of_which_no_effect_is_left_prints(table):
    empty = replace(table, rows=table.rows.query("patched == 'ur'"))
    for text in (repr(empty), empty._repr_html_(), empty.table().latex(), empty.table().to_markdown()):
        assert "None of its effects is shown" in text


def test_saved_tables_load_equal(table, tmp_path):
    controls = pd.DataFrame(
        {"patched": ["en"], "measured": ["zh"], "control": ["matched"], "draw": ["0"], "estimate": [0.1]}
    )
    full = EffectTable(table.rows, table.settings, controls=controls)
    loaded = EffectTable.load(full.save(tmp_path / "table"))
    pd.testing.assert_frame_equal(loaded.rows, full.rows)
    pd.testing.assert_frame_equal(loaded.controls, controls)
    assert loaded.selectivity is None
    assert loaded.settings == dict(table.settings)
    assert loaded.to_markdown() == full.to_markdown()


def test_a_table_of_version_0_1_0_loads(table, tmp_path):
    folder = table.save(tmp_path / "table")
    content = read_json(folder / "effects.json", EffectTable.schema)
    settings = {"delta" if name == "margin" else name: value for name, value in content["settings"].items()}
    write_json(folder / "effects.json", EffectTable.schema, {**content, "settings": settings})
    assert '"delta"' in (folder / "effects.json").read_text("utf-8")
    loaded = ln.load(folder)
    assert isinstance(loaded, EffectTable)
    assert loaded.settings == dict(table.settings)
    assert repr(loaded) == repr(table)


def test_changed_and_missing_files_are_noticed(table, tmp_path):
    folder = table.save(tmp_path / "table")
    (folder / "rows.parquet").write_bytes((folder / "rows.parquet").read_bytes()[:-20])
    with pytest.raises(CorruptArtefactError, match="rows.parquet"):
        EffectTable.load(folder)
    with pytest.raises(StorageError, match="no such file"):
        EffectTable.load(tmp_path / "elsewhere")


def test_two_keys_make_a_markdown_matrix(table):
    lines = table.to_markdown().splitlines()
    assert lines[0] == "| patched \\ measured | zh | en |"
    assert lines[2].startswith("| zh | +19.9 [+18.4, +21.5] worse |")
    assert "worse" in lines[2]
    assert "Family: a test: 4 effects (Holm)" in lines[-1]
    assert "40 items in 40 clusters" in lines[-1]
    assert "minimal detectable effect" in lines[-1]


def test_other_keys_make_one_markdown_line_an_effect():
    table = EffectTable.of({"plain": one(0.2), "a|b": one(0.0)}, ["name"], "two")
    lines = table.to_markdown(percent=False).splitlines()
    assert lines[0] == "| name | effect | p (Holm) | verdict | detectable | items | clusters |"
    assert lines[3].startswith("| a\\|b |")
    assert "+0.2" in lines[2]


def test_control_intervals_are_shown(table):
    placed = table.rows.assign(control_mean=0.01, control_low=-0.02, control_high=[0.04, 0.04, 0.04, np.nan])
    text = repr(EffectTable(placed, table.settings))
    assert "+1 [-2, +4]" in text
    assert "+1 [-2, none]" not in text
    assert text.splitlines()[4].split()[-3] == "+1"


def test_effects_are_printed_in_their_unit(table):
    assert (table.unit, table.scale) == ("%", 100)
    assert '"No effect" and "slightly" mean: within the margin of 1 %, the default.' in repr(table)
    assert r"+19.9 [+18.4, +21.5]" in table.table().latex()
    scores = pd.DataFrame({"item": range(40), "cluster": range(40), "accuracy": [0.0, 1.0] * 20})
    points = EffectTable.of({"a": effect(scores, scores, "accuracy", "row")}, ["name"], "one")
    assert "effect (points)" in repr(points)
    nats = pd.DataFrame({"item": range(40), "cluster": range(40), "nll": 8.0, "tokens": 4})
    losses = EffectTable.of({"a": effect(nats.assign(nll=10.0), nats, per="tokens")}, ["name"], "one")
    assert "effect (nll per tokens)" in repr(losses)
    assert "+0.5 [+0.5, +0.5]" in repr(losses)


def test_the_smallest_possible_p_value_is_printed_as_a_bound():
    table = EffectTable.of({"a": one(0.2, resamples=199), "b": one(0.0, resamples=199)}, ["name"], "two")
    assert table.rows["p_holm"][0] == 0.02
    assert "<= 0.02 " in repr(table)
    assert "<=" not in repr(EffectTable.of({"b": one(0.0)}, ["name"], "one"))


def test_selectivity_is_printed_in_points_and_never_as_nan(table):
    selectivity = pd.DataFrame({"language": ["en", "all"], "selectivity": [0.003051, -0.001], "low": [0.002, -0.002]})
    selectivity["high"] = [0.004, 0.0]
    text = repr(EffectTable(table.rows, table.settings, selectivity=selectivity).selectivity_table())
    assert "selectivity (points)" in text
    assert "+0.305 [+0.2, +0.4]" in text
    one_control = selectivity.assign(
        control_mean=0.001, control_low=np.nan, control_high=np.nan, control_p=np.nan, control_draws=1
    )
    text = repr(EffectTable(table.rows, table.settings, selectivity=one_control).selectivity_table())
    assert "+0.1" in text
    assert "nan" not in text.lower()
    assert "none" not in text.lower()
    assert "(no rows)" in repr(table.selectivity_table())


def test_html_escapes_what_it_shows():
    html = EffectTable.of({"<b>": one(0.2)}, ["name"], "one & <only>")._repr_html_()
    assert "<b>" not in html
    assert "one &amp; &lt;only&gt;" in html


def test_keys_of_mixed_types_become_text(tmp_path):
    table = EffectTable.of({0: one(0.2), "mean": one(0.1)}, ["value"], "two")
    assert EffectTable.load(table.save(tmp_path)).rows["value"].tolist() == ["0", "mean"]


def test_matrix_needs_two_keys_and_a_known_column(table):
    with pytest.raises(EffectError, match="did you mean 'estimate'"):
        table.matrix("estimates")
    with pytest.raises(EffectError, match="needs two keys"):
        EffectTable.of({"a": one(0.2)}, ["name"], "one").matrix()


def test_one_table_holds_one_metric(effects):
    with pytest.raises(EffectError, match="differ in margin: 0.01 and 0.02"):
        EffectTable.of({"a": one(0.2), "b": one(0.2, margin=0.02)}, ["name"], "two")
    with pytest.raises(EffectError, match="at least one"):
        EffectTable.of({}, ["name"], "none")
    with pytest.raises(EffectError, match="2 parts"):
        EffectTable.of(effects, ["name"], "four")
    with pytest.raises(EffectError, match="JSON"):
        EffectTable.of(effects, KEYS, "four", {"made": object()})


def test_too_few_resamples_for_a_family_are_said():
    weak = one(0.2, resamples=100)
    with pytest.warns(LangNeuronsWarning, match="take at least 240 resamples"):
        EffectTable.of({str(index): weak for index in range(6)}, ["name"], "six")
