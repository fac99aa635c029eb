"""Tasks of the harness on the command line: what cannot be had is one sentence."""

import sys

import pytest

from tests.tasks.harness_files import ASK, CHOICE, questions, write_task
from tests.test_cli import run

SENTENCES = {
    "harness:xcopa_vii": "Unknown task of the harness 'xcopa_vii': did you mean 'xcopa_vi'?",
    "harness=xcopa_vi": "xcopa_vi cannot be loaded",
    "harness:nowhere/ask_en.yaml": "Unknown task of the harness 'nowhere/ask_en.yaml'",
}


@pytest.fixture
def task(tmp_path):
    """A task on disk."""
    write_task(tmp_path, "ask_en", questions(4), **CHOICE, doc_to_text=ASK, doc_to_choice="choices")
    return f"harness={tmp_path / 'ask_en.yaml'}"


def refused(capsys, monkeypatch, *arguments: str) -> str:
    """The sentence with which a command ends."""
    status, said, error = run(capsys, monkeypatch, "evaluate", "babel", *arguments, "--no-progress")
    assert (status, said) == (2, "")
    (sentence,) = [line for line in error.splitlines() if line.startswith("langneurons: ")]
    return sentence.removeprefix("langneurons: ")


@pytest.mark.parametrize("name", SENTENCES)
def test_a_task_that_cannot_be_had_is_one_sentence(capsys, monkeypatch, name):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    sentence = refused(capsys, monkeypatch, "--task", name)
    assert sentence.startswith(SENTENCES[name])
    assert "Possible:" in sentence or "hub, which has to be reachable once" in sentence


def test_a_missing_package_is_one_sentence(capsys, monkeypatch, task):
    monkeypatch.delitem(sys.modules, "langneurons.tasks.harness_model", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert refused(capsys, monkeypatch, "--task", task) == (
        "Tasks of lm-evaluation-harness need the package lm-eval: pip install 'langneurons[harness]'."
    )


def test_a_chat_without_a_template_and_sampled_answers_are_one_sentence(capsys, monkeypatch, task):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    assert "no chat template" in refused(capsys, monkeypatch, "--task", task, "--chat", "true")
    assert "temperature=0.5 must be 0" in refused(capsys, monkeypatch, "--task", task, "--temperature", "0.5")


def test_examples_and_documents_are_as_many_as_asked_for(capsys, monkeypatch, task, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with (tmp_path / "ask_en.yaml").open("a") as file:
        file.write("fewshot_split: test\nnum_fewshot: 2\n")
    from langneurons.evaluation import Evaluation

    for options, items in ((["--fewshot", "1", "--limit", "3"], 3), ([], 4)):
        out = str(tmp_path / f"run{items}")
        status, _, error = run(capsys, monkeypatch, "evaluate", "babel", "--task", task, *options, "--out", out)
        assert status == 0, error
        assert len(Evaluation.load(f"{out}/evaluation").rows) == items
