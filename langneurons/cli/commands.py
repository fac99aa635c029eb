"""The commands: the same names as in Python, with options that are generated from the settings objects."""

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, cast, get_origin

import typer
from pydantic.fields import FieldInfo

import langneurons as ln
from langneurons.cli import say
from langneurons.errors import LangNeuronsError, LangNeuronsWarning
from langneurons.settings import IN_WORDS, Run, Settings, literal_choices, plain_types, with_options
from langneurons.study.tables import python_only
from langneurons.study.wording import parsed

# Fields that have another name on the command line: as in Python, or since 0.1.0 had an option of this name.
SPELLED = {"draws": "controls", "prompts": "prompt-file"}
OLD_COMMANDS = {
    "compare": "compare-methods",
    "models": "describe",
    "probe": "polysemanticity",
    "transfer": "transfer-experiment",
}
GROUPS: dict[str, dict[str, Settings]] = {}  # command -> its parameters that are settings objects, with their defaults
OLD_OPTIONS: dict[str, dict[str, str]] = {}  # command -> options of 0.1.0, and what they are called

app = typer.Typer(
    help="Find the language-specific neurons of multilingual language models.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def command(
    old: Mapping[str, str] | None = None, required: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as the command of its name.

    A parameter that is a settings object becomes as many options as it has fields; its default gives theirs.

    Args:
        old: Options of 0.1.0 and what they are called; after a name that ends in "=", the value follows at once.
        required: Fields of settings objects that must be given.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", "-")
        parameters = inspect.signature(function).parameters
        groups = {
            key: about.annotation() if about.default is about.empty else about.default
            for key, about in parameters.items()
            if isinstance(about.annotation, type) and issubclass(about.annotation, Settings)
        }
        options = options_of(groups, required)

        def call(**values: object) -> None:
            texts = {key: values.pop(key) for key in options}
            settings = collected(groups, texts)
            for run in settings.values():
                if isinstance(run, Run) and run.out is not None:
                    _check_free(run.out, name)
            function(**values, **settings)

        own = [about for key, about in parameters.items() if key not in groups]
        signature = [about.replace(kind=inspect.Parameter.KEYWORD_ONLY) for about in (*own, *options.values())]
        call.__signature__ = inspect.Signature(signature)  # pyright: ignore[reportFunctionMemberAccess]
        call.__annotations__ = {about.name: about.annotation for about in signature}
        call.__doc__ = function.__doc__
        app.command(name)(call)
        renamed = {_spelled(key): _spelled(new) for group in groups.values() for key, new in group.old_names.items()}
        GROUPS[name], OLD_OPTIONS[name] = groups, renamed | dict(old or {})
        return function

    return register


def _check_free(out: Path, name: str) -> None:
    """Refuse a folder in which another process works, before a model is loaded for nothing."""
    if (out / ".lock").exists():
        from langneurons.run import working_in

        with working_in(out, f"running langneurons {name}"):
            pass


def options_of(groups: Mapping[str, Settings], required: Sequence[str] = ()) -> dict[str, inspect.Parameter]:
    """Turn the fields of settings objects into options, each with its description and default.

    Args:
        groups: Settings objects whose values are the defaults.
        required: Fields that must be given.

    Returns:
        Field name -> a parameter that typer understands; its value is text as it was given, or None.
    """
    options: dict[str, inspect.Parameter] = {}
    for name, field in fields_of(groups).items():
        values = [getattr(group, name) for group in groups.values() if name in type(group).model_fields]
        texts = [type(group).model_fields[name].description for group in groups.values() if hasattr(group, name)]
        default = "" if name in required else _shown(values[0])
        kinds, spelled = plain_types(field.annotation), _spelled(name)
        switch = bool in kinds and field.json_schema_extra != IN_WORDS
        option = typer.Option(
            f"{spelled}/--no-{spelled[2:]}" if switch else spelled,
            help=" ".join(filter(None, [*dict.fromkeys(texts), f"[default: {default}]" if default else ""])),
            metavar=None if switch else _metavar(field.annotation, kinds),
        )
        kind: Any = bool if switch else list[str] if tuple in kinds else str
        annotation = Annotated[kind if name in required else kind | None, option]
        missing = inspect.Parameter.empty if name in required else None
        options[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=missing, annotation=annotation)
    return options


def fields_of(groups: Mapping[str, Settings]) -> dict[str, FieldInfo]:
    """The fields of settings objects that the command line can fill, each name once."""
    return {
        name: field
        for group in map(type, groups.values())
        for name, field in group.model_fields.items()
        if name not in python_only(group)
    }


def collected(groups: Mapping[str, Settings], texts: Mapping[str, object]) -> dict[str, Settings]:
    """Fill options into settings objects; an option that several of them have is for all.

    Args:
        groups: Settings objects whose values are the defaults.
        texts: Field name -> what was given, None where nothing was.

    Raises:
        LangNeuronsError: If a value is out of its bounds; the sentence is the one that Python says, after the option.
    """
    fields, settings = fields_of(groups), tuple(groups.values())
    for name, text in texts.items():
        if text is not None:
            try:
                settings = with_options({name: _value(text, fields[name].annotation)}, *settings)
            except LangNeuronsError as error:
                raise type(error)(f"{_spelled(name)}: {error}") from None
    return dict(zip(groups, settings, strict=True))


def _spelled(name: str) -> str:
    return "--" + SPELLED.get(name, name).replace("_", "-")


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "" if default is None or isinstance(default, bool) else str(default)


def _metavar(annotation: object, kinds: set[type]) -> str:
    names = {tuple: "A,B,...", int: "INTEGER", float: "NUMBER", Path: "PATH"}
    words = [*literal_choices(annotation), *(["true", "false"] if bool in kinds else [])]
    usual = "|".join(map(str, words)) or "TEXT"
    return next((name for kind, name in names.items() if kind in kinds), usual)


def _value(text: object, annotation: object) -> object:
    """The value of an option from its text; several texts, or one with commas, give several values."""
    kinds = plain_types(annotation)
    if isinstance(text, list):
        parts = [part.strip() for words in text for part in words.split(",") if part.strip()]
        values = [parsed(part) if {int, float} & kinds else part for part in parts]
        return values[0] if int in kinds and len(values) == 1 and get_origin(annotation) is not tuple else values
    if not isinstance(text, str) or (text == "none" and NoneType not in kinds):
        return text
    return parsed(text) if text == "none" or {bool, int, float} & kinds else text


def modernised(arguments: Sequence[str]) -> list[str]:
    """Command-line words with names of 0.1.0 replaced; each of them is said once on standard error.

    Args:
        arguments: Words after the program's name.

    Raises:
        LangNeuronsError: If there is no such command; the nearest are named as they are called today.
    """
    words = list(arguments)
    place = next((index for index, word in enumerate(words) if not word.startswith("-")), None)
    if place is None:
        return words
    name = words[place]
    current = OLD_COMMANDS.get(name, name)
    if name == "perplexity" and any(word.startswith(("--neurons", "--value", "--statistics")) for word in words):
        current = "perplexity-matrix"
    if current not in GROUPS and "--help" not in words[:place]:
        near = get_close_matches(name, [*GROUPS, *OLD_COMMANDS])
        suggestions = ", ".join(repr(word) for word in dict.fromkeys(OLD_COMMANDS.get(word, word) for word in near))
        hint = f" Did you mean {suggestions}?" if near else ""
        raise LangNeuronsError(f"No such command {name!r}.{hint} langneurons --help lists all commands.")
    if current != name:
        say(f"the command {name} is called {current}.")
    result = [*words[:place], current]
    rest = iter(words[place + 1 :])
    for word in rest:
        option, equals, value = word.partition("=")
        renamed = OLD_OPTIONS.get(current, {}).get(option)
        if renamed is None:
            result.append(word)
            continue
        say(f"the option {option} is called {renamed}.")
        *before, last = renamed.split(" ")
        if last.endswith("="):
            last += value if equals else next(rest, "")
        elif equals:
            last += f"={value}"
        result += [*before, last]
    return result


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version, and nothing else.", is_eager=True)] = (
        False
    ),
) -> None:
    """Find the language-specific neurons of multilingual language models."""


def run(arguments: Sequence[str]) -> int:
    """Run a command, and turn what the user can mend into a sentence.

    Args:
        arguments: Words after the program's name.

    Returns:
        The exit status.
    """
    debug = "--debug" in arguments
    warnings.showwarning = _warn
    if list(arguments[:1]) == ["--version"]:
        print(f"langneurons {ln.__version__}")
        return 0
    for module in ("measuring", "attributing", "finding", "checking"):
        import_module(f"langneurons.cli.{module}")
    try:
        # Not standalone: typer would answer Ctrl-C itself, without saying that the work goes on.
        status = app(args=modernised(arguments), prog_name="langneurons", standalone_mode=False)
    except LangNeuronsError as error:
        if debug:
            raise
        say(str(error))
        return 2
    except typer.TyperException as error:
        cast(Any, error).show()
        return 2
    return status if isinstance(status, int) else 0


def _warn(
    message: Warning | str, category: type, filename: str, lineno: int, file: object = None, line: object = None
) -> None:
    """Print our own warnings as a sentence, others as Python does."""
    ours = issubclass(category, LangNeuronsWarning)
    text = f"langneurons: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno)
    sys.stderr.write(text)
