"""What kinds of tasks can be asked by in Python can be said in a study's file and on the command line."""

from inspect import Parameter, signature

import pytest
import tomlkit

import langneurons as ln
from langneurons.errors import LangNeuronsError, StudyError
from langneurons.settings import Asking
from langneurons.study.config import as_toml, parse_config
from langneurons.tasks.xquad import XQuAD
from tests.study.small import small
from tests.tasks.test_official_files import write_mlqa
from tests.test_cli import run

BY_OTHER_MEANS = {"cls", "source", "languages", "seed", "head", "prompting", "revision"}
ITEMS = {"documents"}  # what a kind calls ``items``
PYTHON_ONLY = {"identify"}  # a function
KINDS = {"xnli": "babel", "xquad": "babel", "generation": "babel", "confusion": "babel", "harness": "xcopa_vi"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_a_kind_is_declared_once_with_its_default(kind):
    parameters = signature(ln.tasks.KINDS[kind].load).parameters
    for name, about in parameters.items():
        if name in BY_OTHER_MEANS | ITEMS | PYTHON_ONLY:
            continue
        field = Asking.model_fields[name]
        usual = {Parameter.empty, field.default} if name != "split" else {about.default}
        # Answers of the confusion benchmark are longer in Python.
        assert about.default in usual or (kind, name) == ("confusion", "max_new_tokens"), name


@pytest.mark.parametrize(
    ("option", "kind", "others"),
    [
        ({"metric": "squad"}, "xquad", ["xnli", "generation", "confusion", "harness"]),
        ({"question_language": "en"}, "xquad", ["xnli", "harness"]),
        ({"fewshot": 0}, "harness", ["xnli", "xquad"]),
        ({"calibration": "none"}, "xnli", ["xquad"]),
    ],
)
def test_an_option_that_a_kind_lacks_is_refused_before_anything_runs(option, kind, others, capsys, monkeypatch):
    ((name, value),) = option.items()
    study = small(tasks={"t": {"kind": kind, "source": KINDS[kind], **option}})
    expected = None if value == "none" else value
    assert getattr(study.tables("tasks")["t"], name) == expected
    assert getattr(read_again(study).tables("tasks")["t"], name) == expected
    for other in others:
        sentence = f"{other} has no option {name!r}: leave it out."
        with pytest.raises(StudyError, match=rf"tasks\.t: {sentence}"):
            small(tasks={"t": {"kind": other, "source": KINDS[other], **option}})
        command = ["evaluate", "babel", "--task", f"{other}={KINDS[other]}", f"--{name.replace('_', '-')}", str(value)]
        status, _, error = run(capsys, monkeypatch, *command)
        assert (status, error.strip()) == (2, f"langneurons: {sentence}")


def read_again(study):
    """The study as it is written out and read again."""
    return parse_config(tomlkit.parse(as_toml(study)).unwrap())


def test_rules_of_squad_and_crossed_questions_are_reached_from_the_command_line(tmp_path, capsys, monkeypatch):
    tasks = []

    def evaluate(model, given, *rest, **more):
        tasks.extend(given)
        raise LangNeuronsError("Far enough.")

    monkeypatch.setattr(ln, "evaluate", evaluate)
    source = write_mlqa(tmp_path)
    command = ["evaluate", "babel", "--task", f"xquad={source}", "--split", "test", "--metric", "squad"]
    status, _, error = run(capsys, monkeypatch, *command, "--question-language", "en", "--languages", "hi")
    assert (status, error.strip()) == (2, "langneurons: Far enough.")
    expected = XQuAD.load(source, ["hi"], "test", metric="squad", question_language="en")
    assert tasks[0].fingerprint == expected.fingerprint
    assert tasks[0].items["hi"]["question"][0] == "en asks 0"


def test_a_part_that_is_no_split_is_refused():
    with pytest.raises(LangNeuronsError, match="split must be a split or a part of one, such as test"):
        Asking(split="test[1:")
