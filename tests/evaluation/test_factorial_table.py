"""A factorial whose cells are planted: how many of 40 answers each patch turns right, or wrong, is known."""

import dataclasses
import json

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from langneurons.effects.estimation import holm
from langneurons.errors import CorruptArtefactError, EffectError, StorageError
from langneurons.evaluation.results import FORCING, Evaluation, Factorial, design_of

ITEMS = 40  # the unpatched model answers the first half right
SET, ADD = "set at act", "look at it at post"  # the second operation has the separator in its name
KEYS = ["patch", "protocol", "task", "language"]
# How many answers a cell turns right; a negative number turns as many wrong.
TURNED = {
    (SET, "head", "xnli", "hi"): 20,
    (SET, "head", "xnli", "en"): 0,
    (ADD, "head", "xnli", "hi"): -10,
    (ADD, "head", "xnli", "en"): 0,
    (SET, "generation", "xquad", "hi"): -20,
    (SET, "generation", "xquad", "en"): 0,
    (ADD, "generation", "xquad", "hi"): 0,
    (ADD, "generation", "xquad", "en"): 0,
}


def answers(turned):
    half = ITEMS // 2
    right = [1.0] * (half + min(turned, 0)) + [0.0] * max(-turned, 0) + [1.0] * max(turned, 0)
    return right + [0.0] * (ITEMS - len(right))


def evaluation(turned):
    unpatched = {("unpatched", *cell[1:]): 0 for cell in turned}
    parts = [
        pd.DataFrame({"item": range(ITEMS), "cluster": range(ITEMS), "value": answers(number)}).assign(
            **dict(zip(KEYS, cell, strict=True)), metric="accuracy", prediction="", gold=""
        )
        for cell, number in (unpatched | turned).items()
    ]
    settings = {"model": "planted", "options": {"margin": 0.15, "seed": 0, "resamples": 400}}
    references = pd.DataFrame(columns=["task", "protocol", "metric", "language", "reference", "value"], dtype=object)
    return Evaluation(pd.concat(parts, ignore_index=True), references, None, settings)


@pytest.fixture(scope="module")
def planted():
    return Factorial(evaluation(TURNED), design_of([("set", "act"), ("look at it", "post")]))


def test_a_cell_has_the_effect_that_was_planted(planted):
    effects = planted.effects
    assert list(effects.columns[:6]) == ["operation", "site", "protocol", "task", "metric", "language"]
    assert len(effects) == len(TURNED)
    for row in effects.to_dict("records"):
        turned = TURNED[f"{row['operation']} at {row['site']}", row["protocol"], row["task"], row["language"]]
        assert row["estimate"] == pytest.approx(turned / ITEMS)
        assert row["baseline"] == 0.5
        assert row["p"] < 0.01 if turned else row["p"] == 1
        assert row["verdict"] == ("better" if turned > 0 else "worse" if turned else "no effect")


def test_the_effects_of_one_task_are_one_family(planted):
    for (_, protocol), cells in planted.effects.groupby(["task", "protocol"]):
        assert cells["p_holm"].tolist() == pytest.approx(holm(cells["p"].to_numpy()).tolist()), protocol


def test_a_cell_is_summed_up_over_its_languages(planted):
    summary = planted.summary.set_index(["operation", "site", "protocol", "task"])
    verdicts = ["better", "worse", "no effect", "inconclusive"]
    expected = {
        ("set", "act", "head", "xnli"): (0.25, [1, 0, 1, 0]),
        ("look at it", "post", "head", "xnli"): (-0.125, [0, 1, 1, 0]),
        ("set", "act", "generation", "xquad"): (-0.25, [0, 1, 1, 0]),
        ("look at it", "post", "generation", "xquad"): (0.0, [0, 0, 2, 0]),
    }
    assert list(summary.index) == list(expected)
    for cell, (estimate, counts) in expected.items():
        assert summary.loc[cell, "estimate"] == pytest.approx(estimate)
        assert summary.loc[cell, verdicts].tolist() == counts
    worst = planted.effects.groupby(["operation", "site", "protocol", "task"], sort=False)["minimal_detectable"].max()
    assert summary["detectable"].tolist() == worst.tolist()


def test_opposites_are_the_pairs_of_one_language_with_opposite_signs_the_nearest_first(planted):
    better = "set at act, xnli head"
    assert planted.opposites.to_dict("split")["data"] == [
        ["hi", better, "look at it at post, xnli head", "operation, site"],
        ["hi", better, "set at act, xquad generation", "protocol, task"],
    ]
    assert planted.conclusion == (
        "2 pairs of cells have opposite significant signs: 1 that differ in operation, site, 1 that differ in "
        "protocol, task."
    )
    assert planted.conclusion in repr(planted)
    assert planted.conclusion in planted._repr_html_()


def test_opposite_signs_in_two_languages_are_no_contradiction():
    turned = {(SET, "head", "xnli", "hi"): 20, (SET, "head", "xnli", "en"): -20}
    found = Factorial(evaluation(turned), design_of([("set", "act")]))
    assert sorted(found.effects["verdict"]) == ["better", "worse"]
    assert found.opposites.empty
    assert found.conclusion == "No two cells have opposite significant signs."


@pytest.mark.parametrize(("task", "pairs"), [("xquad", 1), (FORCING, 0)])
def test_only_answers_contradict_each_other(task, pairs):
    turned = {(SET, "head", "xnli", "hi"): -20, (SET, "generation", task, "hi"): 20}
    assert len(Factorial(evaluation(turned), design_of([("set", "act")])).opposites) == pairs


def test_what_is_saved_reads_back_with_its_design(planted, tmp_path):
    assert planted.save(tmp_path / "run") == tmp_path / "run"
    again = Factorial.load(tmp_path / "run")
    assert again.evaluation.settings == planted.evaluation.settings
    for name in ("design", "effects", "summary", "opposites"):
        assert_frame_equal(getattr(again, name), getattr(planted, name))
    assert_frame_equal(again.evaluation.rows, planted.evaluation.rows)
    assert again.conclusion == planted.conclusion


def test_a_table_that_is_missing_changed_or_of_another_kind_is_refused(planted, tmp_path):
    folder = planted.save(tmp_path / "run")
    with pytest.raises(StorageError, match=r"evaluation\.json: there is no such file"):
        Factorial.load(tmp_path / "nothing")
    table = folder / "rows.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[:-1])
    with pytest.raises(CorruptArtefactError, match=r"rows\.parquet does not fit its checksum"):
        Factorial.load(folder)
    table.write_bytes(whole)
    settings = json.loads((folder / "evaluation.json").read_text("utf-8"))
    settings["settings"]["options"]["margin"] = 0.5
    (folder / "evaluation.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(CorruptArtefactError, match=r"evaluation\.json does not fit its checksum"):
        Factorial.load(folder)


@pytest.mark.parametrize("patch", ["zero", " at act", "set at "])
def test_an_evaluation_that_is_no_factorial_is_refused(patch, tmp_path):
    found = evaluation({(patch, "head", "xnli", "hi"): 0})
    with pytest.raises(CorruptArtefactError, match=f"no factorial: the patch '{patch}' names no operation and site"):
        Factorial.load(found.save(tmp_path / "run"))


@pytest.mark.parametrize("cells", [[("set", "act")], [("set", "act"), ("add", "post")], [("set", "act")] * 2, []])
def test_a_design_of_other_patches_is_refused(planted, cells):
    with pytest.raises(EffectError, match="one row for each patch that was measured, look at it at post, set at act"):
        dataclasses.replace(planted, design=design_of(cells))
