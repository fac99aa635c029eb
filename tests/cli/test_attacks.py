"""Options of the wrong type, and nonsense of the right one, are refused alike in Python, a study and a command."""

import copy
import math
from collections.abc import Iterator
from inspect import signature
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from langneurons.cli import commands as cli
from langneurons.errors import LangNeuronsError, StudyError
from langneurons.settings import Asking, Controls, Settings, literal_choices, plain_types
from langneurons.study.config import SEVERAL, _Complete, _parts_in, _problem, parse_config
from langneurons.study.tables import ModelPart, Part, python_only
from langneurons.study.wording import METHODS, PUBLISHED_METHODS, UNSOUND, make_method, options_of, parsed, patch_of
from langneurons.tasks import KINDS
from tests.cli import test_options
from tests.study.small import SMALL

LONGEST = 600  # letters of a sentence
LARGEST = 10**12  # whole number that an option takes
NONSENSE: list[Any] = [
    *(math.nan, math.inf, -math.inf, True, False, -1, -0.5, 0, 0.5, 1.5, 17, 10**20, 1e20, 10**400),
    *("", "x", "nan", "0.5", "1", "true", "\0", "x" * 1_000, [], [1], [True], [math.nan], {}, {"a": 1}),
]
FEW: list[Any] = [math.nan, True, -1, 0.5, 17, 10**20, "x", [True]]  # a whole study is read for each of them
FULL: dict[str, Any] = {
    **SMALL,
    "matrix": {},
    "published_statistics": {},
    "validity": {},
    "survival": {},
    "tasks": {"q": {"kind": "xquad", "source": "babel"}, "t": {"kind": "xnli", "source": "babel", "head": "en"}},
    "protocols": {"p": {"task": "t"}},
    "finetuning": {"f": {"source": "babel"}},
    "factorial": {"tasks": ["t"]},
    "ablation": {},
    "polysemanticity": {"task": "t"},
    "transfer": {"x": {"source": "babel"}},
}


def tables(part: type[BaseModel], content: dict[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], type]]:
    """Where every table of the whole study stands, and its class."""
    yield above, part
    for name, inner in _parts_in(part).items():
        of_name = content.get(name) or {}
        named = part is _Complete and name in SEVERAL
        for key in list(of_name)[:1] if named else [None]:
            place = (*above, name) if key is None else (*above, name, key)
            yield from tables(inner, of_name if key is None else of_name[key], *place)


TABLES = dict(tables(_Complete, FULL))
GROUPS = {
    group: place for place, group in TABLES.items() if issubclass(group, Settings) and not issubclass(group, Part)
}
GROUPS[Asking] = ("tasks", "q")
COMMANDS = {
    (kind, name)
    for groups in cli.GROUPS.values()
    for group in groups.values()
    for kind in {type(group), *type(group).__mro__} & {type(group), Asking}
    for name in set(cli.fields_of({"": group})) & set(kind.model_fields)
}


def parsed_study(place: tuple[str, ...], name: str, value: Any) -> Any:
    """What an option becomes in a study."""
    content = copy.deepcopy(FULL)
    inner = content
    for table in place:
        inner = inner.setdefault(table, {})
    if "kind" in inner:  # one that has the option
        inner["kind"] = next((kind for kind in KINDS if name in signature(KINDS[kind].load).parameters), inner["kind"])
    inner[name] = value
    config = parse_config(content)
    for table in place:
        config = config[table] if isinstance(config, dict) else getattr(config, table)
    return getattr(config, name)


def check_short(error: Exception) -> None:
    """What is refused is refused in a sentence that can be read."""
    assert len(str(error)) <= LONGEST


def is_of_its_kind(part: type[BaseModel], name: str, value: Any) -> bool:
    """Whether what was accepted can be meant: no switch for a number, nothing infinite, nothing beyond all measure."""
    kinds, choices = (
        plain_types(part.model_fields[name].annotation),
        literal_choices(part.model_fields[name].annotation),
    )
    if isinstance(value, tuple | list):
        return all(is_of_its_kind(part, name, inner) for inner in value)
    if isinstance(value, bool):
        return bool in kinds or value in choices
    if isinstance(value, int) and float not in kinds:
        return int in kinds and 0 <= value <= LARGEST
    if isinstance(value, int | float):
        return float in kinds and math.isfinite(value)
    return "\0" not in value if isinstance(value, str) else True


@pytest.mark.parametrize("place", TABLES, ids=".".join)
def test_no_option_of_a_study_takes_nonsense(place):
    part, content = TABLES[place], FULL
    for table in place:
        content = content.get(table, {})
    for name in part.model_fields.keys() - python_only(part):
        for value in NONSENSE:
            try:
                accepted = getattr(part.model_validate({**content, name: value}), name)
            except ValidationError as error:
                for problem in error.errors():
                    _, said = _problem({**problem, "loc": (*place, *problem["loc"])})
                    assert len(said) <= LONGEST, said
            else:
                assert is_of_its_kind(part, name, accepted), (name, value, accepted)


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in GROUPS for name in group.model_fields if name not in python_only(group)],
)
def test_python_a_study_and_a_command_take_the_same_values(group, name):
    needed = {"name": "babel"} if group is ModelPart else {}
    for value in FEW:
        try:
            in_python: Any = getattr(group(**needed | {name: value}), name)
        except LangNeuronsError as error:
            in_python, sentence = None, str(error)
            assert len(sentence) <= LONGEST
            with pytest.raises(StudyError) as from_file:
                parsed_study(GROUPS[group], name, value)
            assert str(from_file.value).endswith(f"{'.'.join(GROUPS[group])}: {sentence}")
        else:
            if name not in ("name", "targets", "beginnings"):  # of which others speak
                assert parsed_study(GROUPS[group], name, value) == in_python
        if (
            (group, name) in COMMANDS
            and isinstance(value, int | float)
            and bool not in plain_types(group.model_fields[name].annotation)
        ):
            annotation = group.model_fields[name].annotation
            text: Any = [str(value)] if tuple in plain_types(annotation) else str(value)
            try:
                (filled,) = cli.collected({"": group(**needed)}, {name: text}).values()
            except LangNeuronsError:
                assert in_python is None or isinstance(value, bool)
            else:
                assert is_of_its_kind(group, name, getattr(filled, name))


@pytest.mark.parametrize("method", [*METHODS, *PUBLISHED_METHODS, *UNSOUND])
def test_no_option_of_a_method_takes_nonsense(method):
    for name in options_of(method):
        for value in [*NONSENSE, None]:
            try:
                made = make_method(method, {name: value})
            except LangNeuronsError as error:
                check_short(error)
                continue
            accepted = getattr(made, name, value)
            assert not isinstance(accepted, float) or math.isfinite(accepted)
            assert name != "top" or method == "sentence-ap" or 0 <= accepted <= 1
            assert name != "seed" or 0 <= accepted < 2**32


@given(st.floats() | st.integers() | st.booleans() | st.text(max_size=30))
@example("nan")
@example("scale:inf")
@example("add:" + "1" * 400)
@example("p" + "1" * 5000)
def test_what_a_patch_writes_is_a_finite_number_or_a_word(value):
    try:
        operation, word = patch_of(str(value))
    except LangNeuronsError as error:
        check_short(error)
        return
    number = parsed(word)
    if operation != "published" and word != "mean" and not word.startswith("p"):
        assert math.isfinite(number)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e20, 10**400, True, "20", None, [1]])
def test_a_number_of_controls_is_a_small_whole_number(value):
    with pytest.raises(LangNeuronsError, match="draws must be a whole number"):
        Controls(draws=value)


def test_every_field_of_a_command_is_attacked():
    assert test_options.VERBS
    assert {group for group, _ in COMMANDS} >= set(GROUPS) - {TABLES["models", "babel"]}
