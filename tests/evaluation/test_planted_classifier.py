"""A classifier of known accuracy, with neurons whose silence is known to cost a known number of items."""

import pytest

import langneurons as ln
from tests.planted.classifier import planted_classifier

LANGUAGES = ("en", "hi", "zh")


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def evaluated(request):
    truth = planted_classifier()
    tasks = [truth.task, truth.task.by_head(truth.head)]
    found = ln.evaluate(
        truth.model(request.param), tasks, LANGUAGES, {"zero": truth.patch}, controls=5, resamples=1000, progress=False
    )
    return truth, found


@pytest.mark.parametrize("protocol", ["likelihood", "head"])
def test_known_accuracy_is_recovered_inside_its_interval(evaluated, protocol):
    truth, found = evaluated
    for row in found.scores.query("protocol == @protocol").to_dict("records"):
        share = truth.right(row["language"], row["patch"] == "zero") / row["items"]
        assert row["score"] == pytest.approx(share)
        assert row["low"] <= share <= row["high"]


@pytest.mark.parametrize("protocol", ["likelihood", "head"])
def test_known_damage_is_recovered_inside_its_interval_and_beyond_all_controls(evaluated, protocol):
    truth, found = evaluated
    effects = found.effects(protocol=protocol).rows.set_index("language")
    damage = (truth.right("hi", True) - truth.right("hi", False)) / 120
    hindi = effects.loc["hi"]
    assert hindi["estimate"] == pytest.approx(damage)
    assert hindi["low"] <= damage <= hindi["high"] < 0
    assert hindi["verdict"] == "worse"
    assert hindi["control_low"] > damage
    for other in ("en", "zh"):
        assert effects.loc[other, "estimate"] == 0.0
        assert effects.loc[other, "verdict"] != "worse"


def test_accuracy_stands_beside_baselines_that_never_see_the_premise(evaluated):
    _, found = evaluated
    assert {"chance", "majority", "hypothesis only", "bag of words"} <= set(found.scores.columns)
    assert (found.scores.query("patch == 'unpatched'")["against_chance"] == "better").all()
