"""Python, a study's file and the command line have the same options, with the same defaults and bounds."""

import inspect
from typing import Any

import pytest

import langneurons as ln
from langneurons.cli import attributing, checking, finding, measuring
from langneurons.cli import commands as cli
from langneurons.errors import LangNeuronsError, LangNeuronsWarning, StudyError
from langneurons.settings import Controls, Prompting, Settings, controls_of, literal_choices, plain_types
from langneurons.study.config import STAGES, parse_config
from langneurons.study.tables import StudyConfig, python_only
from tests.study.small import SMALL

STAGE_OF = {stage.verb: stage for stage in STAGES if stage.verb}
NEEDED = {"kind": "xnli", "source": "babel", "task": "t", "tasks": ["t"]}  # what a table cannot do without
for module in (attributing, checking, finding, measuring):
    assert module.command is cli.command  # each registers its commands

VERBS = sorted({*STAGE_OF, "perplexity", "compare_methods"})


def of_python(verb: str) -> dict[type[Settings], Settings]:
    """The settings objects that a function takes, with their defaults."""
    parameters = inspect.signature(getattr(ln, verb)).parameters
    if verb == "factorial":  # it hands its options on
        parameters = inspect.signature(ln.evaluate).parameters
    defaults = {name: about.default for name, about in parameters.items()}
    if "controls" in defaults:
        defaults["controls"] = controls_of(defaults["controls"])
    return {type(default): default for default in defaults.values() if isinstance(default, Settings)}


def of_study(verb: str) -> dict[type[Settings], tuple[str, Settings]]:
    """The settings objects that a study has for a function: where they stand, and their defaults."""
    whole = {name: field.default for name, field in StudyConfig.model_fields.items()}
    tables = {type(default): (name, default) for name, default in whole.items() if isinstance(default, Settings)}
    stage = STAGE_OF.get(verb)
    fields = {} if stage is None else stage.part.model_fields
    nested = {name: field.default for name, field in fields.items() if isinstance(field.default, Settings)}
    table = "" if stage is None else f"{stage.table}.x" if stage.several else stage.table
    return tables | {type(default): (f"{table}.{name}", default) for name, default in nested.items()}


def of_command(verb: str) -> dict[type[Settings], Settings]:
    """The settings objects that a command has, with their defaults."""
    groups = cli.GROUPS.get(verb.replace("_", "-"), {})
    return {type(default): default for default in groups.values()}


def study(place: str, value: Any) -> StudyConfig:
    """A study with a settings object at a place."""
    content: dict[str, Any] = {**SMALL, "matrix": None, "tasks": {"t": {"kind": "xnli", "source": "babel"}}}
    *tables, name = place.split(".")
    inner = content
    for table in tables:
        inner[table] = dict(inner.get(table) or {})
        inner = inner[table]
    if tables:
        part = next((stage.part for stage in STAGES if stage.table == tables[0]), None)
        inner |= {key: needed for key, needed in NEEDED.items() if part and key in part.model_fields}
    inner[name] = value
    return parse_config({key: part for key, part in content.items() if part is not None})


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_are_the_same_in_python_in_a_study_and_on_the_command_line(verb):
    python, command = of_python(verb), of_command(verb)
    assert python
    if verb in STAGE_OF:
        in_study = {group: default for group, (_, default) in of_study(verb).items()}
        assert {group: in_study.get(group) for group in python} == python
    if command:
        assert {group: command.get(group) for group in python} == python
        shared = in_study.keys() & command.keys() if verb in STAGE_OF else ()
        assert {group: in_study[group] for group in shared} == {group: command[group] for group in shared}


def test_every_function_that_has_a_stage_has_a_command_but_one():
    assert {verb for verb in STAGE_OF if not of_command(verb)} == {"factorial"}


def wrong(group: type[Settings], name: str) -> Any:
    """A number or word that a field does not allow; None where it takes any text, or is a switch."""
    annotation = group.model_fields[name].annotation
    kinds = plain_types(annotation)
    if bool in kinds or not (literal_choices(annotation) or {int, float} & kinds):
        return None
    value = "nonsense" if literal_choices(annotation) else -1
    values = [value, value] if tuple in kinds else value
    try:
        group(**{name: values})
    except LangNeuronsError:
        return values
    return None


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_out_of_bounds_is_the_same_sentence_everywhere(verb):
    """Every field of every settings object that a function takes."""
    python, in_study = of_python(verb), of_study(verb)
    groups = cli.GROUPS.get(verb.replace("_", "-"), {})
    options = cli.options_of(groups)
    checked = 0
    for group in {**python, **{kind: None for kind in of_command(verb) if kind in in_study}}:
        place, _ = in_study.get(group, ("", None))
        for name in sorted(set(group.model_fields) - python_only(group)):
            if groups:
                assert name in options
            value = wrong(group, name)
            if value is None:
                continue
            with pytest.raises(LangNeuronsError) as in_python:
                group(**{name: value})
            sentence = str(in_python.value)
            assert sentence.startswith((f"{name} must be ", f"Unknown {name} "))
            if verb in STAGE_OF:
                with pytest.raises(StudyError) as from_file:
                    study(place, {name: value})
                assert str(from_file.value).endswith(f"{place}: {sentence}")
            if groups:
                text = [",".join(map(str, value))] if isinstance(value, list) else str(value)
                with pytest.raises(LangNeuronsError) as on_command_line:
                    cli.collected({group.__name__: group()}, {name: text})
                assert str(on_command_line.value) == f"{cli._spelled(name)}: {sentence}"
            checked += 1
    assert checked


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_can_be_given_in_a_study_as_its_default_is_written(verb):
    if verb not in STAGE_OF:
        return
    for place, default in of_study(verb).values():
        fields = default.model_dump(mode="json", exclude={*python_only(type(default)), "seed"}, exclude_none=True)
        inner = study(place, fields)
        for name in place.split("."):
            inner = inner[name] if isinstance(inner, dict) else getattr(inner, name)
        assert inner == default


@pytest.mark.parametrize(
    ("texts", "groups", "expected"),
    [
        ({"betas": ["0.9,0.99"]}, {"training": ln.Training()}, {"betas": (0.9, 0.99)}),
        ({"clip": "none"}, {"training": ln.Training()}, {"clip": None}),
        ({"bfloat16": False}, {"training": ln.Training()}, {"bfloat16": False}),
        ({"attention": [""]}, {"adapter": ln.settings.Adapter()}, {"attention": ()}),
        ({"seeds": ["3"]}, {"experiment": ln.settings.Experiment()}, {"seeds": 3}),
        ({"seeds": ["3,5"]}, {"experiment": ln.settings.Experiment()}, {"seeds": (3, 5)}),
        ({"probe_sizes": ["2"]}, {"probing": ln.settings.Probing()}, {"probe_sizes": (2,)}),
        ({"targets": ["nan", "hi,ur"]}, {"experiment": ln.settings.Experiment()}, {"targets": ("nan", "hi", "ur")}),
        ({"draws": "3"}, {"controls": Controls(draws=1, match="layer")}, {"draws": 3, "match": "layer"}),
        ({"seed": "7"}, {"controls": Controls(draws=1), "testing": ln.Testing()}, {"draws": 1, "seed": 7}),
        ({"each": "text"}, {"text": finding.HeldoutOptions()}, {"each": "text"}),
        ({"chat": "auto"}, {"prompting": Prompting()}, {"chat": "auto"}),
        ({"chat": "true", "system": "Be brief."}, {"prompting": Prompting()}, {"chat": True, "system": "Be brief."}),
        ({"chat": "false", "temperature": "0.7"}, {"prompting": Prompting()}, {"chat": False, "temperature": 0.7}),
        ({"executor": "ray"}, {"run": ln.Run()}, {"executor": "ray"}),
    ],
)
def test_text_becomes_the_value_that_an_option_takes(texts, groups, expected):
    settings = cli.collected(groups, texts)
    for group in settings.values():
        for name, value in expected.items():
            if name in type(group).model_fields:
                assert getattr(group, name) == value


def test_a_text_alone_was_called_a_document():
    with pytest.warns(LangNeuronsWarning, match="--each document is called --each text"):
        options = cli.collected({"text": finding.HeldoutOptions()}, {"each": "document"})
    assert options["text"] == finding.HeldoutOptions(each="text")


def test_a_misspelt_option_names_the_nearest_everywhere():
    with pytest.raises(LangNeuronsError, match="Unknown option 'lerning_rate': did you mean 'learning_rate'"):
        ln.Training(lerning_rate=1.0)  # pyright: ignore[reportCallIssue]
    with pytest.raises(StudyError, match=r"Unknown key in transfer.x.training 'lerning_rate': did you mean 'learning_"):
        study("transfer.x.training", {"lerning_rate": 1.0})
