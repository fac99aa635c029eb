import json
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import pytest
import torch

import langneurons as ln
from langneurons import cli
from langneurons.errors import CorruptArtefactError, ExecutorError, StudyError
from langneurons.models import view
from langneurons.run import executors
from langneurons.study.study import Study, as_text
from langneurons.study.work import Work
from tests.robustness.killing import in_child, run_study
from tests.study.small import SMALL, small


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    study = Study(small(), tmp_path_factory.mktemp("done") / "run")
    study.run(progress=False)
    return study


def test_every_step_is_done_and_its_result_reads_back(done):
    assert set(done.status()["state"]) == {"done"}
    stats = ln.ActivationStats.load(done.path("record/babel"))
    assert stats.languages == ("en", "hi")
    neurons = ln.NeuronSet.load(done.path("identify/babel/two/lape") / "neurons.json")
    assert neurons == ln.LAPE(top=0.002).identify(stats)
    assert len(ln.effects.EffectTable.load(done.path("matrix/babel/two/lape/mean")).rows) == 4
    profiles = ln.analysis.Profiles.load(done.path("profile/babel/two/lape"))
    assert len(profiles) == 2
    page = done.report().read_text("utf-8")
    assert all(f"L{layer}N{index}" in page for layer, index in profiles.neurons)


def test_running_again_computes_nothing(done, monkeypatch):
    before, lines = done.files(), []
    monkeypatch.setattr(Work, "compute", lambda self, step: pytest.fail(f"{step.name} ran again"))
    Study(done.config, done.folder.path).run(say=lines.append, progress=False)
    assert all(line.endswith("done before") for line in lines)
    assert done.files() == before


def test_a_changed_patch_runs_what_depends_on_it_and_nothing_else(done, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(done.folder.path), str(copy)], check=True)
    other = Study(small(patches={"zero": {"write": 0}, "mean": {"write": "p90"}}), copy)
    states = other.status().set_index("step")["state"]
    assert states.to_dict() | {"report": ""} == {
        "record/babel": "done",
        "identify/babel/two/lape": "done",
        "matrix/babel/two/lape/zero": "done",
        "matrix/babel/two/lape/mean": "stale",
        "profile/babel/two/lape": "done",
        "report": "",
    }
    lines = []
    other.run(say=lines.append, progress=False)
    assert [line.split("] ")[1].split(" ")[0].rstrip(":") for line in lines if "..." in line] == [
        "matrix/babel/two/lape/mean",
        "report",
    ]
    assert set(Study(done.config, copy).status()["state"]) == {"done"}  # the earlier results are kept


def test_a_directory_can_be_moved_and_opened_by_itself(done, tmp_path):
    moved = tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", str(done.folder.path), str(moved)], check=True)
    opened = Study.from_toml(moved)
    assert opened.config == done.config
    assert set(opened.status()["state"]) == {"done"}
    assert set(opened.compare(done)["difference"]) == {"same"}


def test_two_studies_are_compared_by_what_differs(done, tmp_path):
    other = Study(small(methods={"lape": {"method": "lape", "top": 0.004}}), tmp_path / "other")
    found = done.compare(other).set_index("step")["difference"]
    assert found["record/babel"] == "not done"
    assert found["identify/babel/two/lape"] == "top: 0.002 and 0.004"
    assert found["matrix/babel/two/lape/zero"] == "inputs"


@dataclass(frozen=True)
class AsAWorker:
    """Computes every job as a worker of a cluster does, from what is sent to it and with a model of its own, but here.

    Attributes:
        asked: What was computed.
    """

    asked: list[str] = field(default_factory=list)

    def pieces(self, model: Any) -> int:
        return 2

    def map(self, model: Any, work: Any, jobs: Iterable[Any]) -> Iterator[Any]:
        recipe = executors.Recipe.of(view(model), torch.get_num_threads())
        for job in jobs:
            self.asked.append(getattr(work, "func", work).__name__)
            yield from pickle.loads(executors._computed(executors._sent((work, [job]), model), recipe))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray, whose pickles are sent, is not installed")
def test_tuned_tasks_protocols_and_published_statistics_are_the_same_wherever_they_are_computed(tmp_path):
    part, training = {"source": "babel", "languages": ["hi"], "items": 2}, {"steps": 2, "batch_size": 2}
    config = small(
        methods={"theirs": {"method": "published-lape", "top": 0.002}},
        patches={"mean": {"write": "published:mean_mu_act"}},
        published_statistics={"tokens": 256, "batch_size": 2},
        finetuning={"english": {"source": "babel", "items": 1, "training": training, "adapter": {"attention": ["q"]}}},
        tasks={"xnli": {"kind": "xnli", **part, "tuned": "english"}},
        protocols={"xnli": {"task": "xnli", "head_items": 2, "positions": 64}},
        factorial={"tasks": ["xnli"], "operations": ["scale"]},
        testing={"resamples": 100},
        matrix=None,
        report={"profiles": 0},
    )
    elsewhere = AsAWorker()
    here, there = (Study(config, tmp_path / name) for name in ("here", "there"))
    for study, executor in ((here, None), (there, elsewhere)):
        states = study.run(progress=False, executor=executor)
        assert set(states["state"]) == {"done"}, states["why"].tolist()
    assert here.files() == there.files()
    # Measured once each: without a patch and under each of two by the task's head, and two by the published head.
    jobs = {"recorded_piece": 2, "language_statistics": 2, "_finetuned": 1, "measure_job": 5}
    assert {name: elsewhere.asked.count(name) for name in elsewhere.asked} == jobs


def test_what_is_no_executor_is_said_once_before_any_step(tmp_path, monkeypatch, capsys):
    with pytest.raises(ExecutorError, match="given 'rai'"):
        Study(small(), tmp_path / "run").run(progress=False, executor="rai")
    (tmp_path / "study.toml").write_text(Study(small(), tmp_path / "run").show(), "utf-8")
    given = ["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "run"), "--executor", "rai"]
    monkeypatch.setattr(sys, "argv", ["langneurons", *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.count("given 'rai'") == 1
    assert not (tmp_path / "run").exists()


def test_a_changed_file_is_noticed(done, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(done.folder.path), str(copy)], check=True)
    study = Study.from_toml(copy)
    study.check()
    file = study.path("identify/babel/two/lape") / "neurons.json"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CorruptArtefactError, match=r"neurons\.json"):
        study.check()


def test_a_step_that_fails_stops_only_what_depends_on_it(tmp_path):
    config = small(
        matrix=None,
        tasks={"gone": {"kind": "xnli", "source": str(tmp_path / "nothing")}},
        polysemanticity={"task": "gone"},
    )
    lines = []
    states = Study(config, tmp_path / "run").run(say=lines.append, progress=False).set_index("step")
    assert states["state"].to_dict() == {
        "record/babel": "done",
        "identify/babel/two/lape": "done",
        "evaluate/babel/two/lape/gone": "failed",
        "polysemanticity/babel/two/lape": "failed",
        "profile/babel/two/lape": "done",
        "report": "done",
    }
    assert "nothing" in states.loc["evaluate/babel/two/lape/gone", "why"]
    assert any("FAILED" in line for line in lines)


def test_what_depends_on_a_failed_step_is_blocked(tmp_path):
    config = small(recording=SMALL["recording"] | {"tokens_per_language": 10_000_000})
    states = Study(config, tmp_path / "run").run(progress=False).set_index("step")["state"]
    assert states["record/babel"] == "failed"
    assert states["identify/babel/two/lape"] == states["matrix/babel/two/lape/zero"] == "blocked"


def test_a_second_process_is_told_to_wait(done):
    with done.folder.alone(), pytest.raises(StudyError, match="Another process"):
        Study(done.config, done.folder.path).run(progress=False)


def test_an_unknown_step_is_named_with_the_nearest(done):
    with pytest.raises(StudyError, match="did you mean 'record/babel'"):
        done.path("record/babl")
    with pytest.raises(StudyError, match="Unknown step 'matrx'"):
        done.run(only="matrx", progress=False)


def test_a_text_that_changed_is_read_again(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for language in ("en", "hi"):
        lines = [f"{language} sentence number {n} about nothing much." for n in range(200)]
        (texts / f"{language}.txt").write_text("\n".join(lines), "utf-8")
    config = small(text=SMALL["text"] | {"source": str(texts)}, matrix=None)
    study = Study(config, tmp_path / "run")
    study.run(progress=False)
    (texts / "en.txt").write_text((texts / "en.txt").read_text("utf-8") + "\nOne more line.", "utf-8")
    assert set(Study(config, tmp_path / "run").status()["state"]) == {"stale"}
    subprocess.run(["rm", "-r", str(texts)], check=True)
    assert set(Study(config, tmp_path / "run").status().query("state != 'done'")["state"]) <= {"stale"}


def test_a_text_that_changes_while_it_is_read_fails_the_step(tmp_path, monkeypatch):
    file = tmp_path / "texts" / "en.txt"
    file.parent.mkdir()
    file.write_text("Nothing much.", "utf-8")
    config = small(text=SMALL["text"] | {"source": str(file.parent)}, sets={"one": ["en"]}, matrix=None)
    monkeypatch.setattr(Work, "compute", lambda self, step: file.write_text("Something else.", "utf-8"))
    states = Study(config, tmp_path / "run").run(progress=False).set_index("step")
    assert "changed while the step ran" in states.loc["record/babel", "why"]


def test_an_unforeseen_error_fails_its_step_only(tmp_path, monkeypatch):
    def compute(self, step):
        if step.stage.name == "record":
            raise MemoryError("too large")

    monkeypatch.setattr(Work, "compute", compute)
    study = Study(small(models={"a": {"name": "babel"}, "b": {"name": "babel"}}, matrix=None), tmp_path / "run")
    states = study.run(progress=False).set_index("step")
    assert states.loc["record/a", "why"] == states.loc["record/b", "why"] == "MemoryError: too large"


@pytest.mark.slow
def test_a_study_killed_at_any_moment_ends_with_the_same_files(done, tmp_path):
    """SIGKILL after growing times; each start goes on until one finishes."""
    run = tmp_path / "run"
    for attempt in range(12):
        child = in_child(run_study, SMALL, run)
        child.join(2 + 4 * attempt)
        if not child.is_alive():
            break
        child.kill()
        child.join()
    else:
        in_child(run_study, SMALL, run).join()
    assert attempt > 0, "never killed"
    finished = Study(small(), run)
    assert set(finished.status()["state"]) == {"done"}
    assert finished.files() == done.files()


def test_a_log_cut_short_by_a_crash_is_read_as_far_as_it_goes(done):
    log = done.folder.path / "log.jsonl"
    before = log.read_text("utf-8")
    log.write_text(before + '{"step": "record/ba', "utf-8")
    assert len(done.folder.seconds()) == len({json.loads(line)["key"] for line in before.splitlines()})
    log.write_text(before, "utf-8")


def test_what_is_left_is_forecast_without_running_anything(tmp_path):
    study = Study(small(), tmp_path / "run")
    found = study.forecast().set_index("step")
    assert found.loc["record/babel", "million tokens"] == pytest.approx(600e-6)
    assert found.loc["matrix/babel/two/lape/zero", "million tokens"] == pytest.approx(200 * 5e-6)
    assert not (tmp_path / "run" / "steps").exists()


def test_a_forecast_knows_how_much_text_there_is_where_all_of_it_is_read(tmp_path):
    for name in ("en.txt", "hi.txt", "en.heldout.txt", "hi.heldout.txt"):
        (tmp_path / name).write_text("A sentence of thirty-one bytes\n" * (1000 if "heldout" in name else 3000))
    text = {"source": str(tmp_path), "heldout_tokens": "none", "heldout_context": 32}
    study = Study(small(text=text, recording={"context_length": 64}), tmp_path / "run")
    tokens = study.forecast().set_index("step")["million tokens"]
    assert 0.03 < tokens["record/babel"] < 0.12
    assert tokens["matrix/babel/two/lape/zero"] == pytest.approx(tokens["record/babel"] / 3 * 5, rel=0.01)


def test_a_task_of_the_harness_is_forecast_in_the_languages_and_items_that_it_has(tmp_path):
    def tokens(source: str, **options: object) -> float:
        tasks = {"t": {"kind": "harness", "source": source, "sets": ["two"], "patches": [], **options}}
        found = Study(small(tasks=tasks), tmp_path / "run").forecast(1e12).set_index("step")["million tokens"]
        return float(found.filter(like="evaluate/").sum() * 1e6)

    whole = tokens("a_group")
    assert whole == 2 * 200 * 100
    assert tokens("xcopa_hi") == whole / 2
    assert tokens("belebele_hin_Deva, belebele_eng_Latn") == whole
    assert tokens("a_group", limit=20) == whole / 10
    assert tokens("a_group", fewshot=3) == whole * 4


def test_a_given_speed_tells_the_time_and_nothing_that_ran_here(done, tmp_path):
    study = Study(small(), tmp_path / "run")
    slow, fast = (study.forecast(speed).set_index("step")["minutes"] for speed in (1e9, 1e12))
    record = 2 * ln.describe("babel").parameters * 600 / 1e9 / 60
    assert slow["record/babel"] == pytest.approx(record)
    assert fast["matrix/babel/two/lape/zero"] == pytest.approx(slow["matrix/babel/two/lape/zero"] / 1000)
    assert "at 1e+09 operations per second" in as_text(study.forecast(1e9), tmp_path, 1e9)
    with pytest.raises(StudyError, match="above 0"):
        study.forecast(0.0)


def test_a_model_that_is_not_here_is_listed_without_time(tmp_path):
    study = Study(small(models={"far": {"name": str(tmp_path / "nowhere")}}), tmp_path / "run")
    found = study.forecast(1e12)
    assert found.set_index("step")["minutes"].hasnans
    assert "is in no sum" in as_text(found, tmp_path, 1e12)


def test_published_numbers_that_are_not_there_stop_a_study_before_it_computes(tmp_path):
    study = Study(small(published="mondal-2052"), tmp_path / "run")
    with pytest.raises(StudyError, match="did you mean 'mondal-2025'"):
        study.run(progress=False)
    assert not (tmp_path / "run" / "steps").exists()
