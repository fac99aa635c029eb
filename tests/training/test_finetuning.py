"""Fine-tuning: what is trained and what is not, both objectives against naive loops, evaluation, refusals."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

import langneurons as ln
from langneurons import storage
from langneurons.errors import LangNeuronsWarning, LanguageError, PatchError, TaskError, TrainingError
from langneurons.evaluation.evaluating import evaluate
from langneurons.identification import NeuronSet
from langneurons.models import view
from langneurons.patches import SetTo, intervene
from langneurons.run import ThisProcess
from langneurons.settings import Training
from langneurons.tasks.heads import ClassificationHead, last_hidden, pair_tokens, pairs_of
from langneurons.tasks.task import Task
from langneurons.training.finetuned import Finetuned
from langneurons.training.finetuning import finetune
from langneurons.training.loop import Order
from langneurons.training.lora import MaskedLoRA, MaskedRows
from tests.training.small import pairs, questions, shift, tiny

QUIET = {"progress": False, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny(tmp_path_factory)


@pytest.fixture(scope="module", params=["llama hooked", "llama bridge", "opt hooked", "gemma2 bridge", "bloom bridge"])
def any_model(request, tmp_path_factory):
    return tiny(tmp_path_factory, *request.param.split())


def weights(model):
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def test_a_head_and_an_update_learn_what_one_word_tells(any_model):
    task = pairs(60)
    tuned = finetune(any_model, task, shift(any_model), languages=["en"], epochs=8, batch_size=12, **QUIET)
    with tuned.attach(any_model):
        accuracy = task.with_head(tuned.head).measure(any_model, "en")["accuracy"].mean()
    assert accuracy > 0.7
    assert tuned.history["loss"].iloc[-5:].mean() < 0.8 * tuned.history["loss"].iloc[0]
    assert tuned.trainable == {"Shift(from 0.0)": 12, "head": 3 * 32 + 3}
    assert "Shift(from 0.0) (12) + head (99)" in repr(tuned)


def test_the_model_its_hooks_and_the_update_given_stay_as_they_were(any_model):
    before, wanted = weights(any_model), [one.requires_grad for one in any_model.parameters()]
    given = shift(any_model)
    any_model.train()
    tuned = finetune(any_model, pairs(12), given, steps=3, **QUIET)
    assert any_model.training
    any_model.eval()
    assert all(torch.equal(one, before[name]) for name, one in any_model.named_parameters())
    assert [one.requires_grad for one in any_model.parameters()] == wanted
    assert all(one.grad is None for one in any_model.parameters())
    assert not view(any_model).hooked
    assert given.parameters() == []
    assert any(parameter.abs().max() > 0 for parameter in tuned.update.parameters())


def test_a_classification_step_follows_a_naive_loop(any_model):
    task, update = pairs(10, languages=("en",)), shift(any_model)
    tuned = finetune(
        any_model, task, update, epochs=3, batch_size=4, accumulate=2, schedule="constant", warmup=0, clip=None, **QUIET
    )
    update.prepare(any_model)
    start = task.objective(view(any_model)).head()
    weight, bias = start.weight.clone().requires_grad_(), start.bias.clone().requires_grad_()
    ours = [weight, bias, *update.parameters()]
    optimizer = torch.optim.AdamW(ours, lr=0.05, weight_decay=0.1)
    sequences, _ = pair_tokens(view(any_model), pairs_of(task.items["en"]))
    golds = [list(start.labels).index(label) for label in task.items["en"]["label"]]
    order = Order(np.array([len(one) for one in sequences]), 4, 2, 0)
    for step in range(6):
        rows = np.concatenate(order.batches(step)).tolist()
        optimizer.zero_grad()
        with update.attach(any_model):
            hidden = [view(any_model).hidden(torch.tensor([sequences[row]]))[0, -1] for row in rows]
        logits = torch.stack(hidden) @ weight.T + bias
        loss = functional.cross_entropy(logits, torch.tensor([golds[row] for row in rows]))
        assert loss.item() == pytest.approx(tuned.history["loss"][step], abs=2e-4)
        loss.backward()
        optimizer.step()
    for trained, naive in zip(tuned.update.parameters(), update.parameters(), strict=True):
        torch.testing.assert_close(trained.detach(), naive.detach(), atol=2e-3, rtol=1e-2)
    any_model.zero_grad()


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_the_loss_of_answers_is_that_of_a_naive_loop(any_model, loss_on):
    seen, task = view(any_model), questions(5)
    objective = task.objective(seen, ["en"], Training(loss_on=loss_on))
    total = 0.0
    for row, item in task.items["en"].iterrows():
        prompt = seen.tokenizer(task.prompts["en"].format(**item)).input_ids
        prompt = prompt if prompt[0] == 1 else [1, *prompt]
        answer = [*seen.tokenizer(f" {item['answers'][0]}", add_special_tokens=False).input_ids, 2]
        tokens = prompt + answer
        with torch.no_grad():
            chances = any_model(torch.tensor([tokens])).float().log_softmax(-1)[0]
        first = len(prompt) if loss_on == "answer" else 1
        total -= sum(float(chances[place - 1, tokens[place]]) for place in range(first, len(tokens)))
        assert objective.weights[row] == len(tokens) - first
    with torch.no_grad():
        found = objective.loss(seen, torch.arange(5).numpy())
    assert float(found) == pytest.approx(total, rel=1e-4)


def test_a_model_learns_to_answer_and_to_end(any_model):
    task, options = questions(16), {"learning_rate": 0.05, "progress": False, "weight_decay": 0}
    lora = MaskedLoRA(shift(any_model, units=48).neurons, rank=4, targets=("gate", "down"))
    tuned = finetune(any_model, task, lora, languages=["en"], epochs=20, **options)
    assert tuned.head is None
    with tuned.attach(any_model):
        answered = task.measure(any_model, "en")
    assert answered["f1"].mean() > task.measure(any_model, "en")["f1"].mean() + 0.3
    assert answered["stopped"].mean() > 0.5


@pytest.mark.hooked
def test_attention_is_trained_alike_on_both_backends(tmp_path_factory):
    histories = []
    for backend in ("hooked", "bridge"):
        model = tiny(tmp_path_factory, "llama", backend)
        lora = MaskedLoRA(shift(model).neurons, rank=2, attention=("q", "k", "v", "o"))
        tuned = finetune(model, pairs(12), lora, steps=6, progress=False, learning_rate=0.01)
        assert all(float(one.detach().abs().max()) > 0 for one in tuned.update.parameters())
        histories.append(tuned.history)
    pd.testing.assert_frame_equal(*histories, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("position", ["last", "padding"])
def test_what_was_saved_is_read_back(model, tmp_path, several, position):
    neurons = shift(model).neurons
    lora = [MaskedLoRA(neurons, rank=2), MaskedRows(neurons)] if several else MaskedLoRA(neurons, rank=2)
    tuned = finetune(model, pairs(12), lora, steps=3, position=position, positions=24, **QUIET)
    read = Finetuned.load(tuned.save(tmp_path))
    assert repr(read) == repr(tuned)
    assert read.about == tuned.about
    pd.testing.assert_frame_equal(read.history, tuned.history)
    logits = []
    for one in (tuned, read):
        with one.attach(model):
            logits.append(one.head.logits(model, [("w20 w30", "w5")]))
    assert torch.equal(*logits)


def test_a_task_is_asked_of_the_fine_tuned_model(model, tmp_path):
    task = pairs(12)
    lora = MaskedLoRA(shift(model).neurons, rank=2)
    tuned = finetune(model, task, lora, steps=6, **QUIET)
    asked = tuned.ask(task)
    assert isinstance(asked, Task)
    with tuned.attach(model):
        expected = task.with_head(tuned.head).measure(model, "hi")
    pd.testing.assert_frame_equal(asked.measure(model, "hi"), expected)
    assert not view(model).hooked
    evaluation = evaluate(model, asked, ["hi"], out=tmp_path / "kept", progress=False)
    assert evaluation.rows["value"].tolist() == expected["accuracy"].tolist()
    loaded = ln.load(tuned.save(tmp_path / "saved"))
    assert loaded.ask(task).fingerprint == asked.fingerprint
    other = finetune(model, task, lora, steps=6, seed=1, **QUIET)
    fingerprints = {asked.fingerprint, other.ask(task).fingerprint, task.with_head(tuned.head).fingerprint}
    assert len(fingerprints) == 3
    answers = questions(4)
    generated = finetune(model, answers, lora, steps=1, **QUIET).ask(answers)
    assert (generated.protocol, generated.generates, generated.languages) == ("generation", True, ("en", "hi"))
    assert generated.references("en") == answers.references("en")


def test_a_fine_tuning_of_the_first_version_is_read(model, tmp_path):
    tuned = finetune(model, pairs(6), MaskedLoRA(shift(model).neurons, rank=2), steps=1, **QUIET)
    tuned.save(tmp_path)
    content = storage.read_json(tmp_path / "finetuned.json", Finetuned.schema)
    storage.write_json(tmp_path / "finetuned.json", Finetuned.schema, {**content, "positions": 24})
    head = Finetuned.load(tmp_path).head
    assert (head.position, head.positions) == ("padding", 24)
    assert torch.equal(head.weight, tuned.head.weight)


def test_names_of_the_first_version_go_on_working(model):
    update = shift(model)
    with pytest.warns(LangNeuronsWarning, match="lora is called update"):
        tuned = finetune(model, pairs(6), lora=update, steps=1, **QUIET)
    with pytest.warns(LangNeuronsWarning, match="called Finetuned.update"):
        assert tuned.lora is tuned.update
    assert tuned.update.count() == 12


def test_a_fine_tuning_runs_where_it_is_told_to(model, tmp_path, monkeypatch):
    task, update = pairs(12), shift(model)
    here = finetune(model, task, update, steps=3, **QUIET)
    monkeypatch.chdir(tmp_path)
    there = finetune(model, task, update, steps=3, executor=ThisProcess(), out="run", **QUIET)
    assert (tmp_path / "run" / "checkpoint.json").exists()
    pd.testing.assert_frame_equal(there.history, here.history)


def test_an_update_that_could_not_be_read_back_is_not_saved(model, tmp_path):
    tuned = finetune(model, pairs(6), shift(model), steps=1, **QUIET)
    with pytest.raises(TrainingError, match="Unknown kind of update 'Shift'"):
        tuned.save(tmp_path)


def test_how_examples_are_divided_into_batches_changes_no_loss(model):
    rows = np.arange(16)
    for objective in (task.objective(view(model)) for task in (pairs(16), questions(16))):
        parts = [objective.loss(view(model), part) for part in (rows[:5], rows[5:6], rows[6:])]
        torch.testing.assert_close(objective.loss(view(model), rows), sum(parts))


def test_the_papers_position_is_trained_and_evaluated_alike(model):
    task = pairs(12, languages=("en",))
    tuned = finetune(model, task, shift(model), position="padding", positions=24, epochs=4, **QUIET)
    assert (tuned.head.position, tuned.head.positions) == ("padding", 24)
    objective = task.objective(view(model), training=Training(position="padding", positions=24))
    naive = functional.cross_entropy(
        objective.head().logits(model, pairs_of(task.items["en"])),
        torch.tensor([list(tuned.head.labels).index(label) for label in task.items["en"]["label"]]),
        reduction="sum",
    )
    with torch.no_grad():
        assert float(objective.loss(view(model), torch.arange(12).numpy())) == pytest.approx(float(naive), rel=1e-4)


def test_a_head_alone_can_be_trained_on_from_a_fitted_one(model):
    task = pairs(30, languages=("en",))
    fitted = ClassificationHead.fit(model, task)
    tuned = finetune(model, task, head=fitted, steps=2, progress=False, learning_rate=1e-6)
    assert tuned.update is None
    assert tuned.head.labels == fitted.labels
    torch.testing.assert_close(tuned.head.weight, fitted.weight, atol=1e-4, rtol=1e-4)


def test_several_updates_are_trained_together(model):
    tuned = finetune(model, pairs(12), [shift(model, 0), shift(model, 1)], steps=3, **QUIET)
    assert len(tuned.update) == 2
    assert all(float(torch.cat(one.parameters()).detach().abs().max()) > 0 for one in tuned.update)
    assert list(tuned.trainable) == ["0: Shift(from 0.0)", "1: Shift(from 0.0)", "head"]


def test_patches_are_held_while_it_trains(model):
    update = shift(model)
    patch = SetTo(update.neurons, 0.0)
    held = finetune(model, pairs(12), update, steps=2, patches=patch, **QUIET)
    assert all(
        float(one.detach().abs().max()) == 0 for one in held.update.parameters()
    )  # nothing reaches them but decay
    table = pairs(12, languages=("en",)).items["en"]
    plain = finetune(model, pairs(12, languages=("en",)), None, steps=1, batch_size=12, **QUIET)
    with intervene(model, patch):
        hidden = last_hidden(model, pairs_of(table))
    start = pairs(12, languages=("en",)).objective(view(model)).head()
    golds = torch.tensor([list(start.labels).index(label) for label in table["label"]])
    patched = finetune(model, pairs(12, languages=("en",)), None, steps=1, batch_size=12, patches=[patch], **QUIET)
    expected = float(functional.cross_entropy(start.read(hidden), golds))
    assert patched.history["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert patched.history["loss"][0] != plain.history["loss"][0]


def test_the_best_evaluation_decides_what_is_kept_and_when_to_stop(model):
    task = pairs(24)
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    kept = {}

    class Planned(type(task)):
        def measure(self, model, language, batch_size=8):
            score = next(scores)
            kept[score] = self.head.weight.clone()
            return pd.DataFrame({"accuracy": [score]})

    dev = Planned(**{name: getattr(task, name) for name in ("items", "templates", "calibration", "head", "seed")})
    tuned = finetune(
        model, task, shift(model), languages=["en"], dev=dev, evaluate_every=2, patience=2, epochs=9, **QUIET
    )
    assert tuned.about["best_step"] == 4
    assert tuned.about["stopped_early"]
    assert len(tuned.history) == 8
    assert torch.equal(tuned.head.weight, kept[0.7])
    assert tuned.history["dev"].dropna().tolist() == [0.5, 0.7, 0.6, 0.65]
    assert "best accuracy 0.700 at step 4" in repr(tuned)


def test_dev_is_measured_in_the_languages_trained_on(model):
    task = pairs(12)
    tuned = finetune(model, task, shift(model), languages=["hi"], dev=task, epochs=2, **QUIET)
    assert tuned.history["dev"].notna().sum() == 2
    with pytest.raises(LanguageError, match="Unknown dev language 'en'"):
        finetune(model, task, languages=["en"], dev=pairs(12, languages=("hi",)), **QUIET)


def test_an_evaluation_sees_the_update(model):
    task = pairs(12)
    tuned = finetune(model, task, shift(model, start=2.0), epochs=3, **QUIET)
    found = tuned.evaluate(model, task, ["en"], progress=False)
    with tuned.attach(model):
        expected = task.with_head(tuned.head).measure(model, "en")
    assert found.rows["value"].tolist() == expected["accuracy"].tolist()


def test_a_loss_that_is_not_finite_stops_and_says_where(model, tmp_path):
    for out in (None, tmp_path / "run"):
        with pytest.raises(TrainingError, match=r"At step \d+ of 60 the loss is"):
            finetune(
                model, pairs(12), shift(model), steps=60, warmup=0, clip=None, out=out, save_every=0.0,
                progress=False, learning_rate=1e38,
            )  # fmt: skip
        assert not view(model).hooked
    with pytest.raises(TrainingError, match=r"The last good checkpoint is .*run/checkpoint\.json"):
        finetune(
            model, pairs(12), shift(model), steps=60, warmup=0, clip=None, out=tmp_path / "run", save_every=0.0,
            progress=False, learning_rate=1e38,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 0}, "learning_rate must be above 0 and finite, given 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, given 0"),
        ({"steps": -3}, "steps must be a whole number of at least 1, or None, given -3"),
        ({"schedule": "cosine"}, "Unknown schedule 'cosine'"),
        ({"position": "first"}, "Unknown position 'first'"),
        ({"warmup": 1.0}, "warmup must be at least 0 and below 1, given 1.0"),
        ({"clip": 0}, "clip must be above 0 and finite, or None, given 0"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"patience": 2}, "need something to evaluate on"),
        ({"tensorboard": True}, "needs a folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, options, said):
    with pytest.raises(TrainingError, match=said):
        finetune(model, pairs(6), **{"progress": False, **options})


def test_labels_outside_the_classes_are_refused(model):
    task = pairs(6, languages=("en",))
    odd = replace(task, items={"en": task.items["en"].assign(label="perhaps")})
    with pytest.raises(TaskError, match="Unknown label 'perhaps'"):
        finetune(model, odd, progress=False)
    two = ClassificationHead(torch.zeros(2, 32), torch.zeros(2), ("entailment", "neutral"))
    with pytest.raises(TaskError, match="Unknown label 'contradiction'"):
        finetune(model, task, head=two, progress=False)


def test_generation_without_an_update_or_with_a_head_is_refused(model):
    with pytest.raises(TrainingError, match="nothing to train"):
        finetune(model, questions(4), progress=False)
    head = ClassificationHead(torch.zeros(2, 32), torch.zeros(2), ("entailment", "neutral"))
    with pytest.raises(TrainingError, match="no head to start from"):
        finetune(model, questions(4), shift(model), head=head, progress=False)
    with pytest.raises(TrainingError, match="Unknown loss_on 'prompt'"):
        finetune(model, questions(4), shift(model), loss_on="prompt", progress=False)


def test_a_dev_set_of_another_kind_is_refused(model):
    with pytest.raises(TrainingError, match="task that one can answer"):
        finetune(model, pairs(6), dev=questions(4), steps=1, progress=False)
    with pytest.raises(TrainingError, match="task that generates"):
        finetune(model, questions(4), shift(model), dev=pairs(6), steps=1, progress=False)
    assert not view(model).hooked


def test_a_patch_of_another_model_is_refused_before_anything_is_trained(model):
    with pytest.raises(PatchError, match="model of 5 layers"):
        finetune(model, pairs(6), patches=SetTo(NeuronSet.of({"hi": [(4, 1)]}, (5, 7), "act"), 0.0), progress=False)


def test_bfloat16_computes_roughly_the_same(model):
    options = {"steps": 4, "batch_size": 8, **QUIET}
    exact = finetune(model, pairs(12), shift(model), bfloat16=False, **options)
    rough = finetune(model, pairs(12), shift(model), bfloat16=True, **options)
    assert rough.history["loss"].tolist() == pytest.approx(exact.history["loss"].tolist(), abs=0.1)
    assert rough.history["loss"].tolist() != exact.history["loss"].tolist()
    assert all(math.isfinite(value) for value in rough.history["grad_norm"])
