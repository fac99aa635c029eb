"""A folder in which one process works is refused to a second one before it has done anything, whatever the verb."""

import inspect
import time

import pytest
import torch

import langneurons as ln
from langneurons.errors import StorageError
from tests.robustness.commands import ran
from tests.robustness.verbs import hold_all, started, verbs


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A folder of folders, in each of which another process is at work."""
    folder = tmp_path_factory.mktemp("held")
    process = started(hold_all, folder)
    deadline = time.monotonic() + 240
    while len(list(folder.glob("*.begun"))) < len(verbs()) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    yield folder
    process.kill()
    process.join()


def test_every_function_that_keeps_its_work_is_among_them():
    public = {name: getattr(ln, name) for name in ln.__all__ if inspect.isfunction(getattr(ln, name))}
    keeps = {name for name, verb in public.items() if {"run", "options"} & set(inspect.signature(verb).parameters)}
    assert keeps == set(verbs())


@pytest.mark.parametrize("name", verbs())
def test_the_second_process_is_refused_before_it_does_anything(held, monkeypatch, name):
    assert (held / f"{name}.begun").exists(), "the first process never began"
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *arguments, **options: pytest.fail("it worked"))
    began = time.monotonic()
    with pytest.raises(StorageError, match="Another process is .* wait for it, or use another folder"):
        verbs()[name](held / name)
    assert time.monotonic() - began < 5


def test_the_folder_is_free_when_the_first_has_ended(tmp_path):
    text = verbs()["perplexity"](tmp_path)
    assert verbs()["perplexity"](tmp_path).equals(text)
    assert len(verbs()["screen"](tmp_path).neurons["hi"]) == 2  # which ablates in the same folder


def test_a_command_is_refused_before_its_model_is_loaded(held, monkeypatch):
    monkeypatch.setattr(ln, "load_model", lambda *arguments, **options: pytest.fail("a model was loaded"))
    outcome = ran(["record", "babel", "babel", "--out", held / "record"])
    assert outcome.status == 2
    assert "Another process is running langneurons record" in outcome.said
