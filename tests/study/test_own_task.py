"""A task that is only added to ``ln.tasks.KINDS`` is asked and trained on in a study and on the command line."""

import pytest

import langneurons as ln
from langneurons.errors import StudyError
from langneurons.study.study import Study
from tests.study.small import small
from tests.tasks.toy_task import UNITS
from tests.test_cli import run


@pytest.fixture(scope="module")
def neurons(tmp_path_factory):
    return ln.NeuronSet.of(UNITS, (8, 1536), "act").save(tmp_path_factory.mktemp("neurons") / "neurons.json")


def test_it_is_asked_and_trained_on_in_a_study(cloze, tmp_path):
    about, training = {"kind": "cloze", "source": str(cloze)}, {"steps": 2, "batch_size": 4}
    study = Study(
        small(
            matrix=None,
            patches={"zero": {"write": 0}},
            finetuning={"english": {**about, "training": training, "adapter": {"rank": 1, "attention": ["q"]}}},
            tasks={
                "words": {**about, "items": 4, "split": "test"},
                "tuned": {**about, "items": 4, "split": "test", "tuned": "english"},
            },
            factorial={"tasks": ["tuned"], "operations": ["scale"]},
            transfer={
                "x": {
                    **about,
                    "training": training,
                    "experiment": {"conditions": ["none", "source"], "seeds": 1, "rank": 1, "attention": ["q"]},
                }
            },
            testing={"resamples": 100},
            report={"profiles": 0},
        ),
        tmp_path / "run",
    )
    assert (study.forecast(1e12)["million tokens"] >= 0).all()
    states = study.run(progress=False)
    assert set(states["state"]) == {"done"}, states["why"].tolist()
    assert "cloze" in study.report().read_text("utf-8")
    for step in ("evaluate/babel/two/lape/words", "evaluate/babel/two/lape/tuned"):
        assert set(ln.load(study.path(step)).scores["task"]) == {"cloze"}


def test_a_study_says_before_it_runs_what_a_task_cannot_do(cloze):
    with pytest.raises(StudyError, match=r"tasks\.t\.source is missing"):
        small(tasks={"t": {"kind": "cloze"}})
    with pytest.raises(StudyError, match="both protocols ask xnli or xquad|answers by a head"):
        small(tasks={"t": {"kind": "cloze", "source": str(cloze)}}, protocols={"p": {"task": "t"}})


def test_it_is_asked_and_trained_on_from_the_command_line(cloze, neurons, tmp_path, capsys, monkeypatch):
    common = ["--neurons", str(neurons), "--no-progress"]
    training = ["--kind", "cloze", "--train-split", "train", "--steps", "1", "--rank", "1", "--attention", "q"]
    for command in (
        ["evaluate", "babel", "--task", f"cloze={cloze}", *common, "--resamples", "100"],
        ["finetune", "babel", str(cloze), *common, *training, "--language", "hi", "--out", str(tmp_path / "f")],
        [
            *("transfer-experiment", "babel", str(cloze), *common, *training, "--targets", "hi", "--seeds", "1"),
            *("--conditions", "none,target", "--out", str(tmp_path / "t"), "--resamples", "100"),
        ],
    ):
        status, said, error = run(capsys, monkeypatch, *command)
        assert status == 0, error
        assert "cloze" in said
