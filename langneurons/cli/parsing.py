"""What is written at the command line, made into what the study's wording takes."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from langneurons.errors import StatisticsError
from langneurons.study import wording
from langneurons.study.wording import METHODS, parsed

MethodName = Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")]
MethodOptions = Annotated[
    list[str] | None, typer.Option("--set", help="An option of the method, such as --set top=0.01; repeatable.")
]


def make_method(name: str, options: Sequence[str]) -> Any:
    """Build a method from its name and ``field=value`` options.

    Raises:
        StatisticsError: If an option is no ``field=value``, or as ``wording.make_method``.
    """
    values = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            possible = ", ".join(wording.options_of(name))
            raise StatisticsError(f"An option reads field=value, not {option!r}. Possible fields: {possible}.")
        values[key] = parsed(text)
    return wording.make_method(name, values)


def listed(text: str) -> list[str]:
    """The parts of a comma-separated text."""
    return [part.strip() for part in text.split(",") if part.strip()]


def codes(text: str | None) -> list[str] | None:
    """Comma-separated language codes; None where none were given."""
    return None if text is None else listed(text)
