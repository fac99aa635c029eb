"""A fine-tuning that is interrupted or killed goes on exactly; one of another kind is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import langneurons.training.loop as loop_module
import langneurons.training.loop as watching_module
from langneurons.errors import CorruptArtefactError, StaleArtefactError, TrainingError
from langneurons.models import view
from langneurons.patches import SetTo, intervene
from langneurons.training.finetuning import finetune
from langneurons.training.lora import MaskedLoRA
from tests.training.small import pairs, questions, shift, tiny

OPTIONS = {"epochs": 4, "batch_size": 4, "learning_rate": 0.05, "save_every": 0.0, "progress": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny(tmp_path_factory)


def values(tuned):
    found = {name: one for update in tuned.updates for name, one in update.state_dict().items()}
    return found | ({} if tuned.head is None else {"weight": tuned.head.weight, "bias": tuned.head.bias})


def assert_same(one, other):
    assert values(one).keys() == values(other).keys()
    assert all(torch.equal(value, values(other)[name]) for name, value in values(one).items())
    pd.testing.assert_frame_equal(one.history, other.history)
    assert one.about == other.about


def interrupted_at(monkeypatch, call, name):
    """Let the n-th call of a method be interrupted, as by Ctrl-C."""
    calls, real = [], getattr(loop_module.Loop, name)

    def interrupt(self, *arguments):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(loop_module.Loop, name, interrupt)


@pytest.fixture(scope="module", params=[pairs(18), questions(18)], ids=["pairs", "questions"])
def uninterrupted(request, model):
    """A task, how it is trained, and the result of ten steps that nothing interrupted."""
    given = {"dev": request.param, "evaluate_every": 3, **OPTIONS, "epochs": 2}
    return request.param, given, finetune(model, request.param, shift(model), **given)


@pytest.mark.parametrize(("method", "call"), [("_take", 1), ("_take", 8), ("_end_stretch", 2), ("_saved_result", 1)])
def test_an_interrupted_run_ends_with_the_same_bits(model, tmp_path, monkeypatch, uninterrupted, method, call):
    task, given, whole = uninterrupted
    with monkeypatch.context() as patched:
        interrupted_at(patched, call, method)
        with pytest.raises(KeyboardInterrupt):
            finetune(model, task, shift(model), out=tmp_path, **given)
    assert not view(model).hooked
    resumed = finetune(model, task, shift(model), out=tmp_path, **given)
    assert_same(resumed, whole)


@pytest.mark.parametrize("moment", ["optimizer", "score"])
def test_an_interrupt_in_the_middle_of_a_change_leaves_the_checkpoint_before(model, tmp_path, monkeypatch, moment):
    task = pairs(18)
    given = {"dev": task, "evaluate_every": 3, **OPTIONS}
    whole = finetune(model, task, shift(model), **given)
    with monkeypatch.context() as patched:
        if moment == "optimizer":
            real = loop_module.torch.optim.AdamW.step

            def half(self, *arguments, **options):
                real(self, *arguments, **options)
                if len(self.state) and float(next(iter(self.state.values()))["step"]) == 7:
                    raise KeyboardInterrupt

            patched.setattr(loop_module.torch.optim.AdamW, "step", half)
        else:
            interrupted_at(patched, 2, "_copied")
        with pytest.raises(KeyboardInterrupt):
            finetune(model, task, shift(model), out=tmp_path, **given)
    assert_same(finetune(model, task, shift(model), out=tmp_path, **given), whole)


def test_a_finished_run_is_returned_without_training(model, tmp_path, monkeypatch):
    task = pairs(12)
    whole = finetune(model, task, shift(model), dev=task, out=tmp_path, **OPTIONS)
    monkeypatch.setattr(loop_module.Loop, "run", None)
    assert_same(finetune(model, task, shift(model), dev=task, out=tmp_path, **OPTIONS), whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.01}, r"learning_rate \(there 0.05, here 0.01\)"),
        ({"seed": 1}, "seed"),
        ({"languages": ["en"]}, "task"),
        ({"task": pairs(13)}, "task"),
        ({"lora": {"start": 1.0}}, "updates.*Shift"),
        ({"lora": {"seed": 5}}, "updates"),
        ({"rank": 4}, r"updates.*rank=2.*rank=4"),
        ({"alpha": 32}, r"updates.*alpha=16.*alpha=32"),
        ({"dev": pairs(6)}, "dev"),
        ({"patches": True}, "patches"),
        ({"model": True}, "model"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_another_fine_tuning_in_the_same_folder_is_refused(model, tmp_path, tmp_path_factory, change, said):
    given, change = {"task": pairs(12), **OPTIONS, "steps": 2}, dict(change)
    low_rank = {name: change.pop(name) for name in ("rank", "alpha") if name in change}
    first = MaskedLoRA(shift(model).neurons, rank=2) if low_rank else shift(model)
    finetune(model, update=first, out=tmp_path, **given)
    other = tiny(tmp_path_factory, seed=4) if change.pop("model", None) else model
    lora = shift(other, **change.pop("lora", {}))
    if low_rank:
        lora = MaskedLoRA(lora.neurons, **{"rank": 2, **low_rank})
    if change.pop("patches", None):
        change["patches"] = SetTo(lora.neurons, 0.0)
    with pytest.raises(StaleArtefactError, match=f"(?s)differs in .*{said}"):
        finetune(other, update=lora, out=tmp_path, **{**given, **change})


def test_how_often_it_is_saved_and_watched_is_no_other_fine_tuning(model, tmp_path, monkeypatch):
    whole = finetune(model, pairs(12), shift(model), out=tmp_path, **OPTIONS)
    monkeypatch.setattr(loop_module.Loop, "run", None)
    again = {**OPTIONS, "save_every": 5.0, "tensorboard": True}
    assert_same(finetune(model, pairs(12), shift(model), out=tmp_path, **again), whole)


def test_a_changed_checkpoint_is_refused(model, tmp_path):
    finetune(model, pairs(12), shift(model), out=tmp_path, **OPTIONS)
    about = json.loads((tmp_path / "checkpoint.json").read_text())
    path = tmp_path / f"checkpoint-{'ab'[about['slot']]}.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptArtefactError):
        finetune(model, pairs(12), shift(model), out=tmp_path, **OPTIONS)


def test_the_log_has_a_line_a_step(model, tmp_path):
    task = pairs(12)
    tuned = finetune(model, task, shift(model), dev=task, out=tmp_path, **OPTIONS)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == tuned.history["loss"].tolist()
    assert sum("dev" in line for line in lines) == 4


def test_a_model_with_something_attached_is_not_kept(model, tmp_path):
    with (
        intervene(model, SetTo(shift(model).neurons, 0.0)),
        pytest.raises(TrainingError, match="Something is attached"),
    ):
        finetune(model, pairs(6), shift(model), out=tmp_path, **OPTIONS)


def test_events_for_tensorboard_are_written_or_their_lack_is_said(model, tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def close(self):
            written.append("closed")

    with monkeypatch.context() as patched:
        patched.setattr(watching_module, "_writer_class", lambda: Writer)
        finetune(model, pairs(6), shift(model), out=tmp_path / "a", tensorboard=True, **{**OPTIONS, "steps": 2})
    assert written[0] == str(tmp_path / "a" / "tensorboard")
    assert written.count(("loss", 2)) == 1
    assert written[-1] == "closed"
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="pip install tensorboard"):
        finetune(model, pairs(6), shift(model), out=tmp_path / "b", tensorboard=True, **{**OPTIONS, "steps": 2})


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads({threads})
from langneurons.training import resuming
from langneurons.training.finetuning import finetune
from langneurons.training.lora import MaskedLoRA
from tests.training.small import pairs, shift, tiny
class Folders:
    def mktemp(self, name):
        folder = Path({out!r}) / name
        folder.mkdir(exist_ok=True, parents=True)
        return folder
real = resuming.History.add
def slow(self, *arguments):
    time.sleep(0.02)
    real(self, *arguments)
resuming.History.add = slow
model = tiny(Folders())
finetune(model, pairs(18), shift(model), out={out!r} + "/run", **{options!r})
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(model, tmp_path):
    options = {**OPTIONS, "epochs": 12}
    whole = finetune(model, pairs(18), shift(model), **options)
    root = str(Path(__file__).parents[2])
    source = KILLED.format(root=root, out=str(tmp_path), options=options, threads=torch.get_num_threads())
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for steps in (5, 20):
        process = subprocess.Popen([sys.executable, "-c", source], env=environment, stderr=subprocess.PIPE)
        log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) >= steps:
                break
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = json.loads((tmp_path / "run" / "checkpoint.json").read_text())
    assert not left["done"]
    assert_same(finetune(model, pairs(18), shift(model), out=tmp_path / "run", **options), whole)
