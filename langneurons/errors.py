"""The exceptions users see: each says what was wrong, what was given, and what is possible."""

import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches

FINITE_ADVICE = (
    "Check the model's weights and what is written into it; float16 overflows in many models, so load them with "
    "dtype='float32' or 'bfloat16'."
)

# Packages whose lines are none of the user's; functions that a type checker generates stand in no package.
_INNER = ("langneurons", "beartype", "contextlib", "functools", "jaxtyping", "")


class LangNeuronsError(Exception):
    """Anything langneurons refuses to do; its text is one or two sentences for the user."""


class ModelError(LangNeuronsError):
    """A model cannot be loaded or is not supported."""


class HookSiteError(LangNeuronsError):
    """A site does not exist in a model, or its hook does not fire as it should."""


class SiteMismatchError(LangNeuronsError):
    """Values of one site, or of one model, meet those of another."""


class CorpusError(LangNeuronsError):
    """A corpus is empty, unreadable or too small."""


class LanguageError(LangNeuronsError):
    """A language is not among those available."""


class StatisticsError(LangNeuronsError):
    """Activation statistics cannot answer, or cannot be merged."""


class NeuronSetError(LangNeuronsError):
    """A neuron set is malformed or does not fit."""


class PatchError(LangNeuronsError):
    """A patch is malformed, or does not fit the model."""


class EffectError(LangNeuronsError):
    """An effect cannot be estimated from what was measured."""


class TaskError(LangNeuronsError):
    """A task's items, templates or predictions are malformed, or do not fit the model."""


class TrainingError(LangNeuronsError):
    """Something cannot be trained, or training went wrong."""


class StorageError(LangNeuronsError):
    """A file cannot be read or written."""


class CorruptArtefactError(StorageError):
    """A file of ours is truncated or changed."""


class StaleArtefactError(StorageError):
    """A file of ours belongs to another model, corpus or configuration."""


class StudyError(LangNeuronsError):
    """A study's configuration is wrong, or its run directory cannot be used."""


class ExecutorError(LangNeuronsError):
    """Work cannot run where it was asked to, or was lost there."""


class LangNeuronsWarning(UserWarning):
    """Something the user should know that does not stop the work."""


def warn_user(message: str) -> None:
    """Warn at the user's own line, however deep inside of langneurons the reason was met.

    Args:
        message: One or two sentences.
    """
    level, frame = 1, sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] in _INNER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, LangNeuronsWarning, stacklevel=level)


def in_short(error: Exception) -> str:
    """Name an error of another library in one short line.

    Example:
        >>> in_short(ValueError("no such thing"))
        'ValueError: no such thing'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def is_unicode(text: str) -> bool:
    r"""Whether a text can be written as UTF-8, which half a surrogate pair cannot.

    Example:
        >>> is_unicode("नमस्ते"), is_unicode("\ud83d")
        (True, False)
    """
    return not any("\ud800" <= letter <= "\udfff" for letter in set(text))


def check_text(name: object, what: str, wrong: type[LangNeuronsError]) -> None:
    """Refuse a name that is no text, or that no file can hold.

    Raises:
        LangNeuronsError: The error ``wrong``.

    Example:
        >>> check_text(1, "label", LangNeuronsError)
        Traceback (most recent call last):
        langneurons.errors.LangNeuronsError: A label is a text, not 1.
    """
    if not isinstance(name, str):
        raise wrong(f"A {what} is a text, not {name!r:.60}.")
    if not is_unicode(name):
        raise wrong(f"The {what} {name!r:.60} is not valid Unicode: it holds half a surrogate pair.")


def check_kind(given: object, kind: type, expected: str, wrong: type[LangNeuronsError]) -> None:
    """Refuse an argument of another class.

    Args:
        given: The argument.
        kind: Class that it must be of.
        expected: What it must be, and where such a thing comes from.
        wrong: The error to raise.

    Raises:
        LangNeuronsError: The error ``wrong``.

    Example:
        >>> check_kind("runs/mine", int, "A layer is a whole number", LangNeuronsError)
        Traceback (most recent call last):
        langneurons.errors.LangNeuronsError: A layer is a whole number, not of type str.
    """
    if not isinstance(given, kind):
        raise wrong(f"{expected}, not of type {type(given).__name__}.")


def counted(number: int, noun: str) -> str:
    """Give a number with its noun, in the singular where it is 1.

    Example:
        >>> counted(1, "effect"), counted(1_200, "patch")
        ('1 effect', '1,200 patches')
    """
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def unknown(what: str, given: object, possible: Iterable[object]) -> str:
    """Say that a name is unknown, with the nearest match and what is possible.

    Example:
        >>> unknown("language", "hin", ["en", "hi"])
        "Unknown language 'hin': did you mean 'hi'? Possible: en, hi."
    """
    choices = [str(choice) for choice in possible]
    near = get_close_matches(str(given), choices, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else "."
    listed = ", ".join(choices[:30]) + (", ..." if len(choices) > 30 else "") if choices else "none"
    return f"Unknown {what} {given!r:.100}{hint} Possible: {listed}."
