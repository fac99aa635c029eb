"""Training on the study's own text, from its TOML file."""

import pytest

import langneurons as ln
from langneurons.errors import StudyError
from langneurons.study.study import Study
from tests.study.small import small

EXPERIMENT = {
    "source": "hi",
    "conditions": ["none", "source", "random", "lora"],
    "seeds": 1,
    "form": "rows",
    "projections": ["gate", "up", "down"],
    "attention": [],
}
TRANSFER = {"kind": "text", "training": {"steps": 2, "batch_size": 2}, "experiment": EXPERIMENT}


def test_neurons_are_trained_on_the_studys_text_and_asked_its_tasks(tmp_path):
    study = Study(
        small(
            matrix=None,
            tasks={"xnli": {"kind": "xnli", "source": "babel", "items": 4}},
            transfer={"next": {**TRANSFER, "tasks": ["xnli"], "patches": ["zero"]}},
            testing={"resamples": 100},
            report={"profiles": 0},
        ),
        tmp_path / "run",
    )
    assert (study.forecast(1e12)["million tokens"] >= 0).all()
    states = study.run(progress=False)
    assert set(states["state"]) == {"done"}, states["why"].tolist()
    transfer = ln.load(study.path("transfer/babel/two/lape/next"))
    assert transfer.rows["metric"].unique().tolist() == ["bits_per_byte", "nll", "accuracy"]
    costs = transfer.trainings.set_index("condition")["parameters"]
    assert costs["none"] == 0
    assert costs["source"] == costs["random"] > 0
    assert {"moved", "put_back"} <= set(transfer.scores().columns)
    report = study.report().read_text("utf-8")
    assert "bits per byte" in report


def test_more_seeds_conditions_and_tasks_keep_what_has_been_trained(tmp_path):
    def trained(asked=(), **changes):
        experiment = EXPERIMENT | {"conditions": ["none", "source"]} | changes
        transfer = TRANSFER | {"train_tokens": 150, "experiment": experiment, "tasks": list(asked)}
        tasks = {"xnli": {"kind": "xnli", "source": "babel", "items": 4}}
        config = small(matrix=None, patches={}, tasks=tasks, transfer={"next": transfer}, report={"profiles": 0})
        study = Study(config, tmp_path / "run")
        states = study.run("transfer", progress=False).set_index("step")["state"]
        assert states["transfer/babel/two/lape/next"] == "done"
        runs = (tmp_path / "run" / "work" / "training").glob("*/trainings/*/run.json")
        return ln.load(study.path("transfer/babel/two/lape/next")), {path: path.stat().st_mtime_ns for path in runs}

    few, before = trained()
    more, after = trained(seeds=2, conditions=["none", "source", "random"])
    assert len(before) == 1
    assert len(after) == 4
    assert before.items() <= after.items()
    of_task, kept = trained(["xnli"], seeds=2, conditions=["none", "source", "random"])
    assert kept == after
    assert set(of_task.rows["metric"]) - set(more.rows["metric"]) == {"accuracy"}
    of_both = more.rows.query("seed == 0 and condition != 'random'")
    assert of_both["value"].tolist() == few.rows["value"].tolist()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_items": 3}, "transfer.x.test_items: trained models are tested on text.heldout_tokens"),
        ({"tasks": ["xnly"]}, "did you mean 'xnli'"),
        ({"tasks": ["tuned"]}, "transfer.x.tasks: tuned is asked of a model that was tuned before"),
        ({"kind": "xnli"}, "transfer.x.source is missing"),
        (
            {"kind": "xnli", "source": "babel", "train_tokens": 9},
            "transfer.x.train_tokens: only text is counted in tokens",
        ),
        ({"kind": "texts", "source": "babel"}, "Unknown kind of task in transfer.x 'texts'"),
    ],
)
def test_mistakes_are_said_before_anything_runs(changes, said):
    task = {"kind": "xnli", "source": "babel", "items": 4}
    tasks = {"xnli": task, "tuned": {**task, "tuned": "english"}}
    with pytest.raises(StudyError, match=said):
        small(tasks=tasks, finetuning={"english": {"source": "babel"}}, transfer={"x": {**TRANSFER, **changes}})
