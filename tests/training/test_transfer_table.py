import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.effects.placement import placed
from langneurons.errors import CorruptArtefactError, EffectError
from langneurons.training.transfer_table import Transfer
from tests.planted.transfer import simulated

PLANTED = {"none": 0.0, "source": 0.0, "target": 0.12, "source+target": -0.12, "random": 0.0, "all": 0.05}


@pytest.fixture(scope="module")
def found():
    return simulated(PLANTED, noise=(0.004, 0.004, 0.02), patches={"zero": -0.1})


def test_planted_effects_of_conditions_are_found_inside_their_intervals(found):
    rows = found.effects().rows
    assert len(rows) == 10
    for row in rows.to_dict("records"):
        assert row["low"] <= PLANTED[row["trained"]] <= row["high"]
        assert row["seeds"] == 6
    verdicts = rows.set_index(["trained", "language"])["verdict"]
    assert set(verdicts["target"]) == {"better"}
    assert set(verdicts["source+target"]) == {"worse"}


def test_the_estimate_is_the_mean_difference_over_seeds_and_items(found):
    rows = found.rows.query("patch == 'unpatched' and language == 'hi'")
    mean = rows.groupby(["condition", "target"])["value"].mean()
    estimates = found.effects().rows.set_index(["trained", "language"])["estimate"]
    assert estimates["source", "hi"] == pytest.approx(mean["source", ""] - mean["none", ""])
    assert estimates["target", "hi"] == pytest.approx(mean["target", "hi"] - mean["none", ""])
    on_source = found.effects(on="source").rows.set_index(["trained", "target"])
    assert set(on_source.loc["target"].index) == {"hi", "zh"}
    assert list(on_source.loc["source"].index) == ["every"]


def test_scores_carry_their_seeds_cost_and_references(found):
    scores = found.scores()
    assert len(scores) == (4 * 3 + 2 * 2 * 2) * 2
    row = scores.query("condition == 'target' and language == 'zh' and patch == 'unpatched'").iloc[0]
    by_seed = found.rows.query("condition == 'target' and language == 'zh' and patch == 'unpatched'")
    by_seed = by_seed.groupby("seed")["value"].mean()
    assert row["score"] == pytest.approx(by_seed.mean())
    assert row["seed_sd"] == pytest.approx(by_seed.std())
    assert row["low"] < row["score"] < row["high"]
    assert (row["seeds"], row["draws"], row["items"], row["clusters"]) == (6, 1, 180, 60)
    assert (row["neurons"], row["parameters"]) == (30, 300)
    assert row["chance"] == pytest.approx(1 / 3)


def test_patches_are_compared_inside_each_trained_model(found):
    effects = found.patch_effects()
    assert effects.keys == ["trained", "patch", "language"]
    assert set(effects.rows["trained"]) == set(PLANTED)
    assert (effects.rows["verdict"] == "worse").all()
    assert effects.rows["estimate"].to_numpy() == pytest.approx(np.full(12, -0.1), abs=0.01)


def test_against_random_only_sets_of_the_same_size_are_compared(found):
    assert found.effects("random").rows["trained"].unique().tolist() == ["source"]
    twins = simulated({"source": 0.0, "target": 0.2, "random": 0.0, "random target": 0.1}, draws=2)
    rows = twins.effects("random").rows.set_index(["trained", "language"])
    assert rows.loc[("target", "hi"), "estimate"] == pytest.approx(0.1, abs=0.05)
    assert rows.loc[("target", "hi"), "verdict"] == "better"
    with pytest.raises(EffectError, match="compared with training as many random neurons"):
        simulated({"none": 0.0, "all": 0.0}).effects("random")


def test_sets_are_placed_among_means_of_random_neurons_over_as_many_seeds():
    found = simulated({"none": 0.0, "source": 0.3, "random": 0.02, "target": 0.0}, draws=4)
    table = found.effects()
    rows = table.rows.set_index(["trained", "language"])
    drawn = table.controls.query("trained == 'source' and language == 'hi'")["estimate"]
    assert len(drawn) == 4
    value = found.rows.query("language == 'hi'").groupby(["condition", "draw"])["value"].mean()
    of_draw = value["random", 3] - value["none", 0]
    assert table.controls.query("draw == 3 and language == 'hi'")["estimate"].item() == pytest.approx(of_draw)
    where = placed(rows.loc[("source", "hi"), "estimate"], drawn.tolist())
    assert rows.loc[("source", "hi"), "control_position"] == where.position == 1.0
    assert np.isnan(rows.loc[("source", "hi"), "control_p"])  # four draws give none of 0.05
    assert np.isnan(rows.loc[("target", "hi"), "control_position"])


def test_below_six_seeds_there_is_no_p_value_and_the_verdict_says_so():
    few = simulated(PLANTED, seeds=3)
    assert few.effects().rows["p"].isna().all()
    assert "3 seeds cannot give a p-value" in few.verdict()
    assert "worse" not in few.verdict().split("nothing better or worse")[1]


def test_the_verdict_names_conditions_and_languages(found):
    said = found.verdict()
    assert said.startswith("Against training attention and head only, better: target (hi, zh)")
    assert "worse: source+target (hi, zh)" in said
    assert "beats chance" not in said
    assert simulated({"source": 0.0, "random": 0.0}).verdict().startswith("Against training as many random neurons")


def test_a_task_that_was_never_learned_is_said_to_be_so():
    nothing = simulated({"none": 0.0, "source": 0.0}, level=1 / 3)
    assert "No trained model beats chance in en" in nothing.verdict()


def test_one_condition_alone_has_scores_but_no_effects():
    alone = simulated({"source": 0.0})
    assert "nothing to compare" in repr(alone)
    with pytest.raises(EffectError, match="Unknown trained condition 'none'"):
        alone.effects()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda found: found.effects("nun"), "did you mean 'none'"),
        (lambda found: found.effects(metric="f1"), "Unknown metric 'f1'"),
        (lambda found: found.effects(on="target"), "did you mean 'targets'"),
        (lambda found: simulated({"none": 0.0}).patch_effects(), "give patches="),
    ],
)
def test_what_was_not_measured_is_refused_in_a_sentence(found, call, said):
    with pytest.raises(EffectError, match=said):
        call(found)


def test_a_saved_experiment_says_the_same(found, tmp_path):
    again = Transfer.load(found.save(tmp_path))
    pd.testing.assert_frame_equal(again.rows, found.rows)
    assert again.verdict() == found.verdict()
    assert repr(again) == repr(found)
    (tmp_path / "trainings.parquet").write_bytes(b"no parquet")
    with pytest.raises(CorruptArtefactError, match="checksum"):
        Transfer.load(tmp_path)


def test_an_experiment_of_the_first_version_is_read(found, tmp_path):
    options = {("delta" if name == "margin" else name): value for name, value in found.settings["options"].items()}
    old = dataclasses.replace(found, settings={**found.settings, "options": options})
    again = ln.load(old.save(tmp_path))
    assert again.settings["options"] == found.settings["options"]
    assert again.verdict() == found.verdict()


def test_a_saved_experiment_is_read_without_the_model_libraries(found, tmp_path):
    code = (
        "import sys; from langneurons.training.transfer_table import Transfer; "
        f"print(Transfer.load({str(found.save(tmp_path))!r}).verdict()); "
        "print([m for m in ('transformers', 'transformer_lens') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [found.verdict(), "[]"], done.stderr


def test_text_shows_scores_in_per_cent(found):
    assert "60." in repr(found)
    assert "fine-tuned on en" in repr(found)
    assert "<table" in found._repr_html_()


def _conclusions(noise, simulations, planted=0.0):
    rejected, covered = [], []
    for seed in range(simulations):
        found = simulated({"none": 0.0, "source": planted}, seed, noise=noise, resamples=500)
        row = found.effects().rows.iloc[0]
        rejected.append(row["p"] < 0.05)
        covered.append(row["low"] <= planted <= row["high"])
    return np.mean(rejected), np.mean(covered)


@pytest.mark.slow
def test_conditions_without_a_difference_are_told_apart_in_2_to_8_percent():
    rejected, covered = _conclusions((0.01, 0.1, 0.02), 300)
    assert 0.02 <= rejected <= 0.08
    assert 0.92 <= covered <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("noise", [(0.02, 0.0, 0.02), (0.0, 0.0, 0.3), (0.02, 0.1, 0.3)])
def test_whatever_the_noise_false_claims_stay_below_8_percent(noise):
    rejected, covered = _conclusions(noise, 150)
    assert rejected <= 0.08
    assert covered >= 0.92


@pytest.mark.slow
def test_planted_differences_are_covered_as_often_as_promised():
    _, covered = _conclusions((0.01, 0.1, 0.02), 300, planted=0.08)
    assert 0.92 <= covered <= 0.98
