"""What users get wrong is said before anything is trained, and what was trained is not lost."""

import inspect
import json

import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import CorruptArtefactError, ExecutorError, TaskError, TrainingError
from langneurons.models import view
from langneurons.training.conditions import conditions
from langneurons.training.finetuned import Finetuned
from langneurons.training.transfer import check_apart
from tests.training.lora_models import FEW, fresh, some_neurons
from tests.training.small import pairs

QUIET = {"steps": 2, "progress": False}


@pytest.fixture(scope="module")
def model():
    return ln.load_model("babel")


@pytest.fixture(scope="module")
def neurons(model):
    units = {"en": [(0, 1), (0, 2), (3, 5)], "hi": [(0, 7), (2, 9), (3, 11)]}
    return ln.NeuronSet.of(units, (8, 1536), "act", view(model).fingerprint)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": -1}, "seed must be a whole number of at least 0, given -1"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0 and finite, given inf"),
        ({"weight_decay": float("inf")}, "weight_decay must be at least 0 and finite, given inf"),
        ({"position": "padding", "positions": 2000}, "takes 1 to 1024 tokens"),
        ({"position": "padding", "positions": 0}, "positions must be a whole number of at least 1, given 0"),
        ({"loss_on": "rubbish"}, "Unknown loss_on 'rubbish'"),
        ({"progress": "junk"}, "Unknown progress 'junk'"),
        ({"learning_rat": 0.1}, "Unknown option 'learning_rat': did you mean 'learning_rate'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, wrong, said):
    with pytest.raises(ExecutorError if "progress" in wrong else TrainingError, match=said):
        ln.finetune(model, pairs(6), **{**QUIET, **wrong})


def test_what_is_no_task_is_refused(model, neurons):
    table = pairs(6).items["en"]
    for call in (
        lambda: inspect.unwrap(ln.finetune)(model, table),
        lambda: inspect.unwrap(ln.transfer_experiment)(model, table, held_out(), neurons),
    ):
        with pytest.raises(TrainingError, match="another Task, and text a corpus or packed, not DataFrame"):
            call()


def test_an_alpha_that_is_no_number_is_refused(neurons):
    with pytest.raises(TrainingError, match="alpha must be a finite number, given nan"):
        ln.MaskedLoRA(neurons, rank=2, alpha=float("nan"))


@pytest.mark.parametrize("pair", FEW[:2], ids="-".join)
def test_two_updates_trained_on_one_model_merge_in_turn_and_unmerge_bit_for_bit(pair):
    model = fresh(*pair)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (ln.MaskedRows(some_neurons(model), seed=seed) for seed in (0, 1))
    for update in (first, second):
        update.prepare(model)
        with torch.no_grad():
            for parameter in update.parameters():
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    first.merge(model)
    second.merge(model)
    with pytest.raises(TrainingError, match="reverse order"):
        first.unmerge(model)
    second.unmerge(model)
    first.unmerge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_head_reads_the_model_that_its_update_was_merged_into(model):
    task = pairs(6)
    lora = ln.MaskedLoRA(None, rank=2, attention=("q",))
    tuned = ln.finetune(model, task, lora, learning_rate=0.01, **QUIET)
    with tuned.attach(model):
        attached = tuned.head.logits(model, [("It rains.", "It is wet.")])
    tuned.update.merge(model)
    try:
        merged = tuned.head.logits(model, [("It rains.", "It is wet.")])
    finally:
        tuned.update.unmerge(model)
    torch.testing.assert_close(merged, attached, rtol=1e-5, atol=1e-5)
    other = ln.tasks.ClassificationHead(torch.zeros(2, 160), torch.zeros(2), ("a", "b"), "another model")
    with pytest.raises(TaskError, match="fitted on model another"):
        other.logits(model, [("a", "b")])


def experiment(model, neurons, **options):
    table = pairs(6).items["en"]
    task = ln.XNLI.load({"en": table[["premise", "hypothesis", "label"]]})
    return ln.transfer_experiment(
        model, task, held_out(), neurons, **{**QUIET, "resamples": 100, "seeds": 2, "rank": 2, **options}
    )


def held_out():
    table = pairs(20).items["en"].iloc[12:]
    rows = table[["premise", "hypothesis", "label"]].reset_index(drop=True)
    return ln.XNLI.load({"en": rows, "hi": rows})


def test_other_training_languages_than_the_source_are_refused(model, neurons):
    with pytest.raises(TrainingError, match="say which by source="):
        experiment(model, neurons, languages=["hi"])


def test_choosing_parameters_on_test_items_is_refused(model, neurons):
    with pytest.raises(TrainingError, match="are among the dev items"):
        experiment(model, neurons, dev=held_out())


def test_a_test_of_another_kind_is_refused_before_training(model, neurons):
    question = {"item": "q", "cluster": "c", "context": "It is red.", "question": "What?", "answers": ["red"]}
    asked = ln.XQuAD({"en": pd.DataFrame([question]), "hi": pd.DataFrame([question])})
    task = ln.XNLI.load({"en": pairs(6).items["en"][["premise", "hypothesis", "label"]]})
    with pytest.raises(TrainingError, match="cannot be tested by 'xquad'"):
        ln.transfer_experiment(model, task, asked, neurons, **QUIET)


@pytest.mark.parametrize("names", [["random", "target"], ["random", "all"]])
def test_an_experiment_that_lists_random_first_shows_itself(model, neurons, names):
    found = experiment(model, neurons, conditions=names)
    assert found.reference == names[1]
    assert names[1] in repr(found) or "random" in repr(found)
    assert found.verdict()


def test_a_source_condition_needs_no_target(neurons):
    (one,) = conditions(neurons, "en", [], ["source"], [0])
    assert len(one.neurons) == 3


def test_training_on_test_items_is_found():
    with pytest.raises(TrainingError, match="are among the training items"):
        check_apart(held_out(), held_out(), "en", "training")


def test_a_result_without_settings_shows_itself_and_a_broken_one_is_refused(tmp_path, model):
    head = ln.tasks.ClassificationHead(torch.zeros(2, 160), torch.zeros(2), ("a", "b"))
    history = pd.DataFrame({"step": [1], "loss": [0.5], "dev": [float("nan")]})
    assert "head (322)" in repr(Finetuned(None, head, history))
    tuned = ln.finetune(model, pairs(6), **QUIET)
    tuned.save(tmp_path)
    content = json.loads((tmp_path / "finetuned.json").read_text("utf-8"))
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        part.pop("several", None)
    (tmp_path / "finetuned.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(CorruptArtefactError):
        Finetuned.load(tmp_path)
