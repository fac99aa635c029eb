"""Executors: the same results wherever they are computed, and nothing lost but the piece that died."""

import importlib
import os
import signal
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

import langneurons as ln
from langneurons.errors import ExecutorError, StaleArtefactError, StatisticsError
from langneurons.models import view
from langneurons.models.dictionaries import SparseDictionaryConfig
from langneurons.recording import passes
from langneurons.run import Cost, ThisProcess, chosen_executor, timed
from langneurons.study.study import Study
from tests.recording.conftest import same
from tests.running.conftest import STATISTICS, NeverCalled, PiecesHere
from tests.study.small import small
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.training.small import pairs

MEASURED: dict[str, Any] = {"resamples": 600, "progress": False}


@pytest.fixture(scope="module")
def text(tiny, corpus):
    return ln.HeldoutText.of(tiny, corpus, 300, 32)


@dataclass(frozen=True)
class KillingOnce:
    """Work whose process is killed when it comes to the third job for the first time."""

    marker: Any

    def __call__(self, model: Any, job: int) -> tuple[int, float]:
        if job == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job, float(next(model.parameters()).detach().sum())


def test_jobs_come_back_in_order_whoever_computes_them(tiny, ray):
    def work(model, job):
        return job, model is not None, os.getpid()

    found = list(ray.map(tiny, work, range(20)))
    assert [one[0] for one in found] == list(range(20))
    assert os.getpid() not in {one[2] for one in found}
    assert [one[0] for one in ThisProcess().map(tiny, work, range(20))] == list(range(20))


def test_ray_that_is_started_here_needs_no_network(tiny, ray):
    list(ray.map(tiny, lambda model, job: job, [1]))
    (node,) = importlib.import_module("ray").nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"


def test_a_killed_worker_costs_only_what_it_was_computing(tiny, ray, tmp_path):
    expected = float(next(tiny.parameters()).detach().sum())
    found = list(ray.map(tiny, KillingOnce(tmp_path / "killed"), range(8)))
    assert (tmp_path / "killed").exists()
    assert found == [(job, expected) for job in range(8)]


def test_statistics_are_the_same_to_the_bit(tiny, corpus, ray, tmp_path):
    options = {**STATISTICS, "sites": ("act", "head"), "also": ("sentence", "gradient"), "sentences": 10}
    here = ln.record(tiny, corpus, **options)
    there = ln.record(tiny, corpus, executor=ray, out=tmp_path / "there", **options)
    assert same(here.at("act"), there.at("act"))
    assert same(here.at("head"), there.at("head"))
    here.save(tmp_path / "here")
    for file in sorted(one.name for one in (tmp_path / "here").rglob("*") if one.is_file()):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes(), file
    assert not (tmp_path / "there" / "pieces").exists()


def test_a_driver_that_comes_back_goes_on_from_the_pieces_that_are_done(tiny, corpus, ray, tmp_path, monkeypatch):
    whole = ln.record(tiny, corpus, **STATISTICS)
    with monkeypatch.context() as patched:
        patched.setattr(passes.RecordingFolder, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            ln.record(tiny, corpus, out=tmp_path / "run", executor=ray, **STATISTICS)
    assert len(list((tmp_path / "run" / "pieces").glob("*/checkpoints/*.safetensors"))) >= 8
    read = []
    load = passes.RecordingFolder.load
    monkeypatch.setattr(passes.RecordingFolder, "load", lambda run, *more: read.append(run.path) or load(run, *more))
    again = ln.record(tiny, corpus, out=tmp_path / "run", executor=PiecesHere(8), **STATISTICS)
    assert same(again, whole)
    assert len({folder.name for folder in read}) == 8
    assert not (tmp_path / "run" / "pieces").exists()


def killed(run: Any, stats: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [2, 3, 50])
def test_any_number_of_pieces_gives_the_same_statistics(tiny, corpus, number):
    whole = ln.record(tiny, corpus, **STATISTICS)
    assert same(ln.record(tiny, corpus, executor=PiecesHere(number), **STATISTICS), whole)
    halves = [ln.record(tiny, corpus, shard=(i, 2), executor=PiecesHere(number), **STATISTICS) for i in range(2)]
    assert same(halves[0] + halves[1], whole)


def test_effects_of_patches_are_the_same(tiny, text, neurons, ray, tmp_path):
    options = {**MEASURED, "controls": 2}
    here = ln.perplexity_matrix(tiny, text, neurons, **options)
    there = ln.perplexity_matrix(tiny, text, neurons, out=tmp_path, executor=ray, **options)
    assert_frame_equal(here.rows, there.rows)
    again = ln.perplexity_matrix(tiny, text, neurons, out=tmp_path, executor=NeverCalled(), **options)
    assert_frame_equal(again.rows, there.rows)


def test_evaluations_ablations_and_sweeps_are_the_same(tiny, text, neurons, ray):
    task = pairs(6).by_head(ln.tasks.ClassificationHead.fit(tiny, pairs(9), languages=["en"]))
    patches = {"zero": lambda language: ln.SetTo(neurons[language], 0.0)}

    def rows(executor: Any) -> list[Any]:
        options = {**MEASURED, "executor": executor}
        return [
            ln.evaluate(tiny, task, patches=patches, controls=1, **options).rows,
            ln.ablate(tiny, neurons, text, controls=5, **options).rows,
            ln.ablate(tiny, neurons["hi"], task, **options).rows,
            ln.sweep(
                tiny, text, neurons, [ln.evaluation.Dose("set", 0), ln.evaluation.Dose("scale", 2)], **options
            ).rows,
        ]

    for here, there in zip(rows(None), rows(ray), strict=True):
        assert_frame_equal(here, there)


def test_trainings_are_the_same(tiny, neurons, ray, tmp_path):
    options = {"conditions": ["none", "source"], "seeds": 2, "rank": 2, "steps": 3, "batch_size": 4, **MEASURED}
    here = ln.transfer_experiment(tiny, pairs(9), pairs(6, seed=1), neurons, **options)
    there = ln.transfer_experiment(tiny, pairs(9), pairs(6, seed=1), neurons, executor=ray, out=tmp_path, **options)
    assert_frame_equal(here.rows, there.rows)
    assert_frame_equal(here.trainings, there.trainings)


def test_sites_of_features_travel_with_the_model(folder, corpus, ray):
    model = ln.load_model(folder)
    dictionary = ln.models.SparseDictionary(SparseDictionaryConfig(d_in=32, d_sae=20, architecture="topk", k=4))
    ln.models.add_dictionary(model, {1: dictionary}, at="resid_post")
    options = {**STATISTICS, "sites": ("features",)}
    assert same(ln.record(model, corpus, executor=ray, **options), ln.record(model, corpus, **options))


def test_an_error_in_a_worker_is_the_error_itself(tiny, ray):
    def work(model, job):
        raise StatisticsError("There is nothing.")

    with pytest.raises(StatisticsError, match="There is nothing"):
        list(ray.map(tiny, work, [1]))


def test_a_model_that_was_changed_is_not_mistaken_for_its_files(folder, ray):
    model = ln.load_model(folder)
    with torch.no_grad():
        model.unembed.W_U.add_(1.0)
    with pytest.raises(StaleArtefactError, match="changed since it was loaded"):
        list(ray.map(model, lambda model, job: job, [1]))


def test_a_model_given_as_an_object_is_refused(ray):
    model = ln.load_model("made", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer())
    with pytest.raises(ExecutorError, match="save it to a folder"):
        list(ray.map(model, lambda model, job: job, [1]))


def test_a_patched_model_is_refused(tiny, neurons, ray):
    with ln.intervene(tiny, ln.SetTo(neurons["en"], 0.0)), pytest.raises(ExecutorError, match="leave the block"):
        list(ray.map(tiny, lambda model, job: job, [1]))


def test_without_ray_a_sentence_names_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"pip install 'langneurons\[ray\]'"):
        list(ln.run.RayExecutor().map(tiny, lambda model, job: job, [1]))


@pytest.mark.parametrize("given", ["rai", "http://head"])
def test_what_is_no_executor_is_refused(given):
    with pytest.raises(ExecutorError, match="a cluster's address"):
        chosen_executor(given)


def test_an_executor_is_found_by_name():
    assert isinstance(chosen_executor(None), ThisProcess)
    assert chosen_executor("ray") == ln.run.RayExecutor()
    assert chosen_executor("ray://head:10001").address == "ray://head:10001"
    with pytest.raises(ExecutorError, match="at least 1 of workers"):
        replace(ln.run.RayExecutor(), workers=0)


def test_a_model_remembers_how_to_load_it_again(folder):
    model = ln.load_model(folder, backend="bridge", dtype="bfloat16")
    again = ln.load_model(**view(model).loaded_as)
    assert view(again).fingerprint == view(model).fingerprint
    assert view(again).backend == "bridge"
    np.testing.assert_array_equal(*(next(one.parameters()).float().detach().numpy() for one in (model, again)))


def test_a_study_has_the_same_files_wherever_it_is_computed(ray, tmp_path):
    here, there = (Study(small(), tmp_path / name) for name in ("here", "there"))
    assert set(here.run(progress=False)["state"]) == {"done"}
    assert set(there.run(progress=False, executor=ray)["state"]) == {"done"}
    assert here.files() == there.files()


def test_a_cost_is_one_sentence_with_what_is_known():
    assert str(Cost("Measuring 3 conditions")) == "Measuring 3 conditions."
    cost = Cost("Recording", tokens=1_000, passes=5, memory=2.5e9, disk=3e6).at(rate=10)
    assert str(cost) == (
        "Recording: 1,000 tokens through the model, 2.5 GB of memory beside it, 3 MB on disk, about 8 minutes."
    )
    assert str(Cost("Training", memory=1e6, seconds=9000)) == (
        "Training: 1 MB of memory beside the model, about 2.5 hours."
    )


def test_repeated_work_takes_more_time_but_no_more_memory():
    cost = Cost(tokens=100, memory=7, disk=10, seconds=6).times(4, workers=2)
    assert (cost.tokens, cost.memory, cost.disk, cost.seconds) == (400, 7, 40, 12)


def test_work_is_timed_by_its_quickest_repetition_within_seconds(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 10.5, 20.0, 20.75])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert timed(lambda: None) == 0.5
    clock = iter([0.0, 9.0, 10.0, 13.0])  # a long first time may have been long only because it was the first
    assert timed(lambda: None) == 3.0
    clock = iter([0.0, 16.0])
    assert timed(lambda: None) == 16.0


def test_a_matrix_says_what_it_costs_before_it_starts(tiny, text, neurons, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # as at a terminal, which gets bars
    options = {"controls": 0, "resamples": 400, "out": tmp_path}
    ln.perplexity_matrix(tiny, text, neurons, **options)
    conditions = 1 + sum(bool(len(neurons[language])) for language in neurons.languages)
    tokens = text.positions
    said = capfd.readouterr().err
    expected = (
        f"Measuring {conditions} conditions x {tokens:,} tokens: {conditions * tokens:,} tokens through the model"
    )
    assert expected in said
    assert "of memory beside it, about " in said
    assert said.index(expected) < said.index("100%")
    ln.perplexity_matrix(tiny, text, neurons, **options)
    assert "Measuring" not in capfd.readouterr().err  # nothing is left to measure


def test_an_evaluation_says_how_much_there_is_before_and_what_it_costs_after_its_first_condition(tiny, capfd):
    task = pairs(6).by_head(ln.tasks.ClassificationHead.fit(tiny, pairs(9), languages=["en"]))
    ln.evaluate(tiny, task, ["en"], resamples=400)
    said = capfd.readouterr().err
    assert "Measuring 1 condition.\n" in said
    assert said.index("Measuring 1 condition.\n") < said.index("Measuring 1 condition: about 1 second.")


def test_a_recording_and_a_training_say_what_they_cost_before_they_start(tiny, corpus, capfd):
    ln.record(tiny, corpus, tokens_per_language=100, context_length=32)
    said = capfd.readouterr().err
    assert f"Recording {len(corpus.languages)} languages x 100 counted tokens of " in said
    assert " tokens through the model, " in said
    assert " of memory beside it, " in said
    assert " on disk, about " in said
    ln.finetune(tiny, pairs(6), languages=["en"], steps=2)
    assert "Training 2 steps.\n" in capfd.readouterr().err


def test_positions_count_the_padding_that_goes_through_the_model(tiny, text):
    read = sum(batch.tokens.numel() for name in text.languages for _, batch in text.batches(name, 3))
    assert text.positions == read
