import dataclasses
import inspect

import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import (
    CorruptArtefactError,
    EffectError,
    LanguageError,
    NeuronSetError,
    PatchError,
    SiteMismatchError,
    TaskError,
)
from langneurons.evaluation.evaluating import written_patches
from langneurons.evaluation.results import Evaluation
from langneurons.models import view
from langneurons.patches.patch import control_patches
from langneurons.tasks.heads import ClassificationHead
from langneurons.tasks.task import Task
from tests.evaluation.next_word import next_word
from tests.planted.patching import Amplify, setting

HEAD = ClassificationHead(torch.eye(2), torch.zeros(2), ("a", "b"))


@pytest.fixture(scope="module")
def evaluated():
    model, _, stats, neurons = setting()
    loud = {"loud": lambda language: Amplify(neurons[language], 4000.0), "loud hi": Amplify(neurons["hi"], 4000.0)}
    return ln.evaluate(model, next_word(8), patches=loud, controls=3, stats=stats, resamples=400, progress=False)


def test_a_custom_task_is_a_task():
    assert isinstance(next_word(), Task)


def test_scores_stand_beside_their_reference_and_interval(evaluated):
    plain = evaluated.scores.query("patch == 'unpatched' and metric == 'same' and language == 'hi'").iloc[0]
    assert plain["score"] == 0.8
    assert plain["low"] < 0.8 < plain["high"]
    assert (plain["chance"], plain["against_chance"]) == (1 / 244, "better")
    assert (plain["items"], plain["clusters"]) == (40, 20)
    assert 0 < plain["detectable"] < 0.5


def test_a_callable_patch_is_made_for_each_language_and_a_plain_one_shared(evaluated):
    effects = evaluated.effects(metric="same").rows.set_index(["patch", "language"])["estimate"]
    assert effects["loud", "hi"] == effects["loud hi", "hi"]
    # Exclusive neurons of Hindi hardly fire in English.
    assert abs(effects["loud hi", "en"]) < 0.2 * abs(effects["loud", "en"])


def test_effects_equal_the_difference_of_mean_scores(evaluated):
    scores = evaluated.scores.set_index(["metric", "patch", "language"])["score"]
    for metric in ("same", "half"):
        for row in evaluated.effects(metric=metric).rows.to_dict("records"):
            key = row["patch"], row["language"]
            expected = scores[metric, *key] - scores[metric, "unpatched", key[1]]
            assert row["estimate"] == pytest.approx(expected)


def test_effects_lie_among_matched_controls(evaluated):
    table = evaluated.effects()
    assert len(table.controls) == 2 * 4 * 3
    hindi = table.rows.query("patch == 'loud' and language == 'hi'").iloc[0]
    drawn = evaluated.controls.query("patch == 'loud' and language == 'hi' and metric == 'same'")["estimate"]
    assert hindi["control_mean"] == pytest.approx(drawn.mean())
    assert hindi["control_draws"] == 3


def test_main_metric_is_the_default_and_a_family_is_one_metric(evaluated):
    assert evaluated.effects().settings["metric"] == "same"
    assert "same" in evaluated.effects().family
    assert "8 effects" in evaluated.effects().family


def test_saved_and_loaded_evaluations_say_the_same(evaluated, tmp_path):
    evaluated.save(tmp_path / "kept")
    again = Evaluation.load(tmp_path / "kept")
    pd.testing.assert_frame_equal(again.scores, evaluated.scores)
    pd.testing.assert_frame_equal(again.effects().rows, evaluated.effects().rows)
    (tmp_path / "kept" / "rows.parquet").write_bytes(b"short")
    with pytest.raises(CorruptArtefactError):
        Evaluation.load(tmp_path / "kept")


def test_an_evaluation_of_version_0_1_0_loads(evaluated, tmp_path):
    options = {"delta": 0.01, "seed": 0, "resamples": 400}
    folder = Evaluation(
        evaluated.rows, evaluated.references, evaluated.controls, {**evaluated.settings, "options": options}
    ).save(tmp_path)
    again = ln.load(folder)
    pd.testing.assert_frame_equal(again.scores, evaluated.scores)
    known = again.effects().rows  # version 0.1.0 kept no rows of controls: nothing is said beyond them
    assert "beyond" not in known.columns
    pd.testing.assert_frame_equal(known, evaluated.effects().rows[known.columns])
    assert again.effects().settings == evaluated.effects().settings


def test_an_interrupted_evaluation_goes_on(tmp_path):
    model, _, _, neurons = setting()
    task = next_word()
    patches = {"zero": lambda language: ln.SetTo(neurons[language], 0.0)}
    first = ln.evaluate(model, task, ["en", "hi"], patches, out=tmp_path, resamples=200, progress=False)
    counted = len(task.counter)
    again = ln.evaluate(model, task, ["en", "hi"], patches, out=tmp_path, resamples=200, progress=False)
    assert (counted, len(task.counter)) == (4, 4)
    pd.testing.assert_frame_equal(first.rows, again.rows)


def test_side_by_side_shows_each_patch_beside_the_gold(evaluated):
    table = evaluated.side_by_side("hi", items=3)
    assert list(table.columns) == ["item", "gold", "unpatched", "loud", "loud hi"]
    assert len(table) == 3


def test_the_plot_shows_every_effect_and_its_controls(evaluated):
    figure = evaluated.plot()
    assert [trace.name for trace in figure.data][:3] == ["matched controls", "loud", "loud hi"]
    assert len(figure.data[1].x) == 4


def test_text_of_an_evaluation_names_scores_in_per_cent(evaluated):
    assert "score (%)" in repr(evaluated)
    assert " 80 [" in repr(evaluated)
    assert "<table" in evaluated._repr_html_()


def test_several_patches_are_written_together():
    model, _, _, neurons = setting()
    both = [Amplify(neurons["hi"], 4000.0), ln.SetTo(neurons["hi"], 0.0)]
    alone = {"zero": ln.SetTo(neurons["hi"], 0.0), "both": both}
    found = ln.evaluate(model, next_word(), ["hi"], alone, resamples=200, progress=False)
    rows = found.rows.pivot(index=["metric", "item"], columns="patch", values="value")
    assert (rows["zero"] == rows["both"]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"tasks": []}, TaskError, "No task was given"),
        ({"tasks": ["xnli"]}, TaskError, "not str"),
        ({"tasks": "twice"}, TaskError, "Two tasks are called next word likelihood"),
        ({"languages": ["hix"]}, LanguageError, "did you mean 'hi'"),
        ({"languages": []}, LanguageError, "No language was given"),
        ({"patches": {"unpatched": "zero"}}, PatchError, "another name"),
        ({"patches": {"zero": 0.0}}, PatchError, "should give a patch"),
        ({"patches": {"none": []}}, PatchError, "gives no patch"),
        ({"controls": -1}, EffectError, "draws must be a whole number of at least 0, given -1"),
        ({"head": HEAD}, TaskError, "no task is one that a head can answer"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(arguments, error, said):
    model, _, _, neurons = setting()
    given = {"tasks": next_word(), **arguments}
    if given["tasks"] == "twice":
        given["tasks"] = [next_word(), next_word()]
    if given.get("patches") == {"unpatched": "zero"}:
        given["patches"] = {"unpatched": ln.SetTo(neurons["hi"], 0.0)}
    with pytest.raises(error, match=said):
        inspect.unwrap(ln.evaluate)(model, progress=False, **given)  # a user has no run-time type checks


def test_tasks_with_numbers_and_with_texts_as_items_are_saved_together(tmp_path):
    model, *_ = setting()
    texts = dataclasses.replace(next_word(), name="by text")
    measure = texts.measure
    object.__setattr__(texts, "measure", lambda *given: measure(*given).assign(item=[f"q{i}" for i in range(40)]))
    found = ln.evaluate(model, [next_word(), texts], ["hi"], resamples=200, progress=False)
    again = Evaluation.load(found.save(tmp_path))
    pd.testing.assert_frame_equal(again.rows, found.rows)


def test_options_are_refused_before_anything_is_measured():
    model, *_ = setting()
    task = next_word()
    with pytest.raises(EffectError, match="resamples must be a whole number of at least 100, or None, given 50"):
        ln.evaluate(model, task, ["hi"], resamples=50, progress=False)
    assert not task.counter


def test_an_all_right_score_is_not_taken_for_a_certain_one():
    rows = pd.DataFrame(
        {"item": range(60), "cluster": range(60), "metric": "f1", "value": 1.0, "prediction": "", "gold": ""}
    )
    rows = rows.assign(task="t", protocol="p", patch="unpatched", language="hi")
    references = pd.DataFrame([("t", "p", "f1", "hi", "chance", 0.98)])
    references.columns = ["task", "protocol", "metric", "language", "reference", "value"]
    options = {"margin": 0.01, "seed": 0, "resamples": 400}
    score = Evaluation(rows, references, None, {"model": "m", "options": options}).scores.iloc[0]
    assert (score["against_chance"], score["high"]) == ("inconclusive", 1.0)
    assert score["low"] < 0.98


def test_another_tokenizer_is_another_measurement(tmp_path):
    model, *_ = setting()
    task = next_word()
    ln.evaluate(model, task, ["hi"], out=tmp_path, resamples=200, progress=False)
    tokenizer, before = view(model).tokenizer, view(model).tokenizer.bos_token
    try:
        tokenizer.bos_token = tokenizer.eos_token
        ln.evaluate(model, task, ["hi"], out=tmp_path, resamples=200, progress=False)
    finally:
        tokenizer.bos_token = before
    assert len(task.counter) == 2


def test_controls_touch_no_neuron_that_is_patched_in_any_language():
    model, _, stats, neurons = setting()
    written = written_patches({"zero": lambda language: ln.SetTo(neurons[language], 0.0)}, ["en", "hi", "ur", "zh"])
    everywhere = {tuple(unit.tolist()) for unit in neurons.indices()}
    for patches in control_patches(written, ln.Controls(draws=10, stats=stats)).values():
        for patch in patches:
            assert not everywhere & {tuple(unit.tolist()) for unit in patch.neurons.indices()}


def test_raw_values_a_neuron_have_no_controls():
    model, _, stats, neurons = setting()
    raw = ln.SetTo(neurons["hi"], torch.zeros(len(neurons["hi"])), site="act")
    with pytest.raises(PatchError, match="cannot be read at control neurons"):
        ln.evaluate(model, next_word(), ["hi"], {"raw": raw}, controls=1, stats=stats, progress=False)


def test_patches_are_checked_before_anything_is_measured():
    model, _, _, neurons = setting()
    task = next_word()
    patches = {"good": ln.SetTo(neurons["hi"], 0.0), "late": ln.SetTo(neurons["hi"], 0.0, positions="generated")}
    with pytest.raises(PatchError, match="would do nothing"):
        ln.evaluate(model, task, ["hi"], patches, progress=False)
    assert not task.counter


def test_controls_need_statistics_of_the_site_and_enough_neurons():
    model, _, stats, neurons = setting()
    at_post = dataclasses.replace(neurons, site="post")
    with pytest.raises(PatchError, match="need statistics of that site"):
        ln.evaluate(model, next_word(), ["hi"], {"zero": ln.SetTo(at_post["hi"], 0.0)}, controls=1, stats=stats)
    everything = ln.NeuronSet.of({"hi": [(0, unit) for unit in range(100)]}, neurons.shape, "act", neurons.model)
    with pytest.raises(NeuronSetError, match="too few"):
        ln.evaluate(model, next_word(), ["hi"], {"zero": ln.SetTo(everything, 0.0)}, controls=1, stats=stats)


def test_neurons_of_another_model_are_refused():
    model, _, _, neurons = setting()
    foreign = dataclasses.replace(neurons, model="0" * 16)
    with pytest.raises(SiteMismatchError):
        ln.evaluate(model, next_word(), ["hi"], {"zero": ln.SetTo(foreign["hi"], 0.0)}, progress=False)


def test_nothing_patched_has_scores_but_no_effects():
    model, *_ = setting()
    found = ln.evaluate(model, next_word(), ["hi"], resamples=200, progress=False)
    assert len(found.scores) == 2
    with pytest.raises(EffectError, match="Nothing was patched"):
        found.effects()


def test_a_task_whose_rows_lack_a_column_is_named():
    model, *_ = setting()
    task = dataclasses.replace(next_word(), metrics=("same", "missing"))
    with pytest.raises(TaskError, match="without 'missing'"):
        ln.evaluate(model, task, ["hi"], progress=False)
