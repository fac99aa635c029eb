"""A task that is added in one file is evaluated and trained on like those that come with langneurons."""

import pytest

import langneurons as ln
from langneurons.errors import TaskError, TrainingError
from langneurons.models import view
from tests.tasks.toy_task import UNITS


@pytest.fixture(scope="module")
def neurons(babel):
    return ln.NeuronSet.of(UNITS, (8, 1536), "act", view(babel).fingerprint)


def load(cloze, split, **options):
    return ln.tasks.load_task("cloze", cloze, ["en", "hi"], split, **options)


def test_it_is_loaded_by_its_kind(cloze):
    task = load(cloze, "test", items=6, seed=1)
    assert isinstance(task, ln.tasks.Task)
    assert task.languages == ("en", "hi")
    assert [len(table) for table in task.items.values()] == [6, 6]
    assert load(cloze, "test", max_new_tokens=4).fingerprint == load(cloze, "test").fingerprint  # XQuAD's option
    with pytest.raises(TaskError, match="Unknown kind of task 'clozes': did you mean 'cloze'"):
        ln.tasks.load_task("clozes", cloze)
    with pytest.raises(TaskError, match="Unknown option 'max_tokens'"):
        load(cloze, "test", max_tokens=4)


def test_it_is_evaluated_under_patches(babel, neurons, cloze):
    patches = {"loud": lambda language: ln.SetTo(neurons[language], 20.0)}
    evaluation = ln.evaluate(babel, load(cloze, "test"), patches=patches, resamples=200, progress=False)
    assert set(evaluation.scores["task"]) == {"cloze"}
    assert evaluation.effects().rows["language"].tolist() == ["en", "hi"]


def test_a_model_learns_it(babel, cloze):
    task, test = load(cloze, "train"), load(cloze, "test")
    update = ln.MaskedLoRA(None, rank=4, attention=("q", "k", "v", "o"))
    options = {"epochs": 10, "learning_rate": 5e-3, "progress": False}
    tuned = ln.finetune(babel, task, update, dev=load(cloze, "train", items=4), **options)
    assert tuned.head is None
    assert tuned.history["loss"].iloc[-1] < 0.5 * tuned.history["loss"].iloc[0]
    scores = tuned.evaluate(babel, test, progress=False).scores
    assert scores["score"].mean() > 0.5


def test_training_it_is_compared_over_conditions(babel, neurons, cloze):
    transfer = ln.transfer_experiment(
        babel, load(cloze, "train"), load(cloze, "test"), neurons, conditions=["none", "target"], seeds=2,
        rank=2, steps=2, resamples=200, progress=False,
    )  # fmt: skip
    assert transfer.settings["task"] == "cloze"
    assert transfer.settings["protocol"] == "likelihood"
    assert set(transfer.rows["language"]) == {"en", "hi"}


def test_what_it_cannot_do_is_said(babel, neurons, cloze):
    head = ln.tasks.ClassificationHead.fit(babel, ln.XNLI.load("babel", ["en"], split="train").take(2))
    with pytest.raises(TaskError, match="no task is one that a head can answer"):
        ln.evaluate(babel, load(cloze, "test"), head=head, progress=False)
    with pytest.raises(TrainingError, match="cannot be tested by 'mini_xquad'"):
        ln.transfer_experiment(
            babel, load(cloze, "train"), ln.XQuAD.load("babel", ["en", "hi"]), neurons, progress=False
        )


def test_a_task_need_not_be_trained_on(babel):
    task = ln.tasks.Generation.of(ln.load_corpus("babel", ["en", "hi"]), documents=4)
    with pytest.raises(TaskError, match="'generation' cannot be trained on"):
        ln.finetune(babel, task, progress=False)
    assert [len(table) for table in task.take(2).documents.values()] == [2, 2]
    assert task.select(["hi"]).languages == ("hi",)
