"""What every group of options shares: it is frozen and checked, and what is wrong with a value is one sentence."""

import math
import operator
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from langneurons.errors import LangNeuronsError, unknown

Count = Annotated[int, Field(ge=1, le=10**12)]
Few = Annotated[int, Field(ge=1, le=10**4)]  # of what memory or time grows with at once
ContextLength = Annotated[int, Field(ge=16, le=10**9, multiple_of=16)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
UNSAID = 1000  # an upper bound from here on is named only to who exceeds it
LONGEST = 200  # letters of a value in a message


class _Raising(type(BaseModel)):
    """Makes what is built in Python raise the errors of langneurons."""

    if not TYPE_CHECKING:

        def __call__(cls, *arguments: Any, **options: Any) -> Any:
            try:
                return super().__call__(*arguments, **options)
            except ValidationError as error:
                raise cls.error(sentence(error.errors()[0], cls)) from None


class Checked(BaseModel, metaclass=_Raising):
    """Fields that take values of their own kind only: no text or switch for a number, no number that is not finite.

    Attributes:
        error: The exception that a wrong value raises.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    error: ClassVar[type[LangNeuronsError]] = LangNeuronsError

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: object, about: object) -> object:
        field = cls.model_fields[cast("ValidationInfo", about).field_name or ""]
        kinds, choices = plain_types(field.annotation), literal_choices(field.annotation)
        if isinstance(value, str) and tuple in kinds:
            value = (value,)
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, str | Path) and "\0" in str(part):
                raise ValueError("It must be free of the character of code 0")
            if not (_fits(part, kinds) or part in choices):
                raise ValueError(f"It must be {possible_values(field)}")
        return value


def _fits(value: object, kinds: set[Any]) -> bool:
    """Whether a plain value is of one of the kinds; what is no plain value is for pydantic to check."""
    numbers = bool({int, float} & kinds)
    if Any in kinds or not (numbers or bool in kinds):
        return True
    if _is_switch(value):
        return bool in kinds
    if isinstance(value, str):
        return str in kinds
    if not isinstance(value, int | float):
        return True
    return numbers and abs(value) <= sys.float_info.max


def _is_switch(value: object) -> bool:
    """Whether a value is true or false, of Python or numpy, which both take for a number."""
    return type(value).__name__ in ("bool", "bool_")


def whole_number(value: object, name: str, error: type[LangNeuronsError], least: int | None = None) -> int:
    """Check a whole number that is given by itself, of Python, numpy or torch.

    Args:
        value: The number.
        name: Name of the argument, for messages.
        error: The error to raise.
        least: The least that is possible; by default there is none.

    Raises:
        LangNeuronsError: The error ``error``, if it is no whole number, or too small.

    Example:
        >>> whole_number(2.0, "seed", LangNeuronsError)
        2
    """
    number = None
    if isinstance(value, float) and value.is_integer():
        number = int(value)
    elif not _is_switch(value):
        try:
            number = operator.index(cast(Any, value))
        except (TypeError, ValueError):  # the second of a tensor of several numbers
            number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise error(f"{name} must be a whole number{bound}, given {shown(value)}.")
    return number


def finite_number(value: object, name: str, error: type[LangNeuronsError]) -> float:
    """Check a number that is given by itself, of Python, numpy or torch.

    Raises:
        LangNeuronsError: The error ``error``, if it is no number, or not finite.

    Example:
        >>> finite_number(1, "level", LangNeuronsError)
        1.0
    """
    try:
        number = math.nan if isinstance(value, str | bytes) or _is_switch(value) else float(cast(Any, value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise error(f"{name} must be a finite number, given {shown(value)}.")
    return number


class Settings(Checked):
    """A group of options: frozen, checked, with a default and a sentence for each.

    Attributes:
        old_names: Names of an earlier version, which go on working, and what they are called.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    old_names: ClassVar[Mapping[str, str]] = {}


def sentence(error: Any, model: type[BaseModel]) -> str:
    """Say what is wrong with one option: its name, what is possible, and what was given.

    Args:
        error: One of pydantic's errors.
        model: The class whose field it is about.

    Example:
        >>> ln.Training(warmup=1)
        Traceback (most recent call last):
        langneurons.errors.TrainingError: warmup must be at least 0 and below 1, given 1.
    """
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name, value = str(error["loc"][0]), error["input"]
    if error["type"] == "extra_forbidden":
        return unknown("option", name, model.model_fields)
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return f"{name} is missing."
    field = model.model_fields[name]
    if choices := literal_choices(field.annotation):
        return unknown(name, value, [*choices, *(["true", "false"] if bool in plain_types(field.annotation) else [])])
    exceeded = error["type"] == "less_than_equal"
    possible = possible_values(field, exceeded) or str(error["msg"]).removeprefix("Value error, ")
    return f"{name} must be {possible}, given {shown(value)}."


def shown(value: object) -> str:
    """A value as a message shows it, cut where it is long.

    Example:
        >>> shown(0.5), len(shown("x" * 1000))
        ('0.5', 200)
    """
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def literal_choices(annotation: object) -> list[Any]:
    """The words that a field allows; empty where it is no choice among words."""
    if getattr(annotation, "__origin__", None) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in literal_choices(part)]


def possible_values(field: Any, exceeded: bool = False) -> str:
    """What a field allows, in words; "" where its type has none.

    Args:
        field: The field, as pydantic describes it.
        exceeded: Whether to name an upper bound that hardly any value comes near.
    """
    if isinstance(field.json_schema_extra, dict) and "possible" in field.json_schema_extra:
        return str(field.json_schema_extra["possible"])
    kinds, several = plain_types(field.annotation), _part_of_a_list(field.annotation)
    metadata = limits_of(field.annotation if several is None else several, field.metadata)
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
    bounds = [
        (bound, value) for limit in metadata for bound in words if (value := getattr(limit, bound, None)) is not None
    ]
    limits = [
        f"{words[bound]} {value:,}" if isinstance(value, int) else f"{words[bound]} {value:g}"
        for bound, value in bounds
        if bound != "le" or value < UNSAID or exceeded
    ]
    if float in kinds and not {"le", "lt"} & {bound for bound, _ in bounds}:
        limits.append("finite")
    if str in kinds:
        if {int, float} & kinds:
            return "a text or a finite number"
        return f"a list of texts{', or None' if type(None) in kinds else ''}" if tuple in kinds else ""
    if float in kinds:
        text = "a finite number" if limits == ["finite"] else " and ".join(limits)
    else:
        by_kind = {int: "a whole number", bool: "true or false", Path: "a path"}
        kind = next((text for kind, text in by_kind.items() if kind in kinds), "")
        text = " of ".join(part for part in (kind, " and ".join(limits)) if part)
    text = f"a list, each {text}" if text and several is not None else text
    return text + (", or None" if text and type(None) in kinds else "")


def _part_of_a_list(annotation: object) -> object | None:
    """The annotation of every part, where any number of them is allowed; None where not."""
    parts = get_args(annotation)
    return parts[0] if getattr(annotation, "__origin__", None) is tuple and parts[1:] == (...,) else None


def plain_types(annotation: object) -> set[Any]:
    """The plain types in an annotation, but for choices among words.

    Example:
        >>> sorted(kind.__name__ for kind in plain_types(Count | Literal["all"] | None))
        ['NoneType', 'int']
    """
    origin, arguments = getattr(annotation, "__origin__", annotation), get_args(annotation)
    if origin is Literal:
        return set()
    if hasattr(annotation, "__metadata__"):
        return plain_types(origin)
    inner = {kind for argument in arguments for kind in plain_types(argument)}
    return inner | {origin} if isinstance(origin, type) or origin is Any else inner


def limits_of(annotation: object, metadata: Iterable[object] = ()) -> list[object]:
    """The bounds that stand anywhere in an annotation, but not in those of the parts of a tuple."""
    limits = [limit for part in metadata for limit in getattr(part, "metadata", None) or [part]]
    origin, own = getattr(annotation, "__origin__", None), getattr(annotation, "__metadata__", ())
    if own:
        return limits_of(origin, [*limits, *own])
    parts = () if origin is tuple else get_args(annotation)
    return limits + [limit for part in parts for limit in limits_of(part)]
