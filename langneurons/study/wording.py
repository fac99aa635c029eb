"""What a user writes, in a study or at the command line, made into methods, patches and values."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch

import langneurons as ln
from langneurons import identification
from langneurons.errors import PatchError, StatisticsError, unknown

METHODS = {
    "lape": "LAPE",
    "activation-probability": "ActivationProbability",
    "mean-activation": "MeanActivation",
    "mean-difference": "MeanDifference",
    "token-ap": "TokenAP",
    "auroc": "AUROC",
    "entropy-lambda": "EntropyLambda",
    "sentence-ap": "SentenceAP",
    "contrast": "Contrast",
    "gradient-relevance": "GradientRelevance",
    "random": "Random",
}
OPERATIONS = ("set", "add", "scale", "diffmean")
MakePatch = Callable[[ln.NeuronSet, str], ln.Patch]


def patch_maker(text: str, stats: ln.ActivationStats | None) -> MakePatch:
    """Build the patch of a language's neurons from ``value`` or ``operation:value``.

    Args:
        text: A value to set, such as ``0``, ``mean`` or ``p90``; or ``add:mean``, ``scale:2``, ``diffmean``,
            ``diffmean:2``.
        stats: What mean, percentiles and diffmean are read from.

    Raises:
        PatchError: If the operation is unknown.
        StatisticsError: If the value is no number, mean or percentile, or needs statistics that are not given.
    """
    before, colon, after = text.partition(":")
    operation, value = (before, after) if colon else ("diffmean", "1") if text == "diffmean" else ("set", text)
    if operation not in OPERATIONS:
        raise PatchError(unknown("operation", operation, OPERATIONS))
    if operation == "diffmean":
        strength, known = _number(value, "A strength"), _needed(stats, "diffmean")
        return lambda neurons, language: ln.DiffMean(neurons, known.at(neurons.site), language, strength)
    if operation == "scale":
        factor = _number(value, "A factor")
        return lambda neurons, language: ln.Scale(neurons, factor)
    written, read = (ln.Set if operation == "set" else ln.Add), value_reader(value, stats)
    return lambda neurons, language: written(neurons, read(neurons.site, language))


def check_patch(text: str) -> None:
    """Check what ``patch_maker`` would make a patch of, before there are statistics.

    Raises:
        LangNeuronsError: As ``patch_maker``.
    """
    any_statistics = ln.ActivationStats.from_counts(torch.zeros(1, 1, 1).long(), torch.ones(1).long(), ["any"])
    patch_maker(text, any_statistics)


def language_patches(
    neurons: ln.NeuronSet, texts: Sequence[str], stats: ln.ActivationStats | None
) -> dict[str, Callable[[str], ln.Patch]]:
    """Patches of each language's own neurons, by the text that describes them.

    Raises:
        LangNeuronsError: As ``patch_maker``.
    """

    def of_own(make: MakePatch) -> Callable[[str], ln.Patch]:
        return lambda language: make(neurons[language], language)

    return {text: of_own(patch_maker(text, stats)) for text in texts}


def value_reader(value: str, stats: ln.ActivationStats | None) -> Callable[[str, str], Any]:
    """Read a value of a site and language: a number, the mean, or a percentile such as ``p90``.

    Raises:
        StatisticsError: If it is none of these, or needs statistics that are not given.
    """
    number = parsed(value)
    if _is_number(number):
        return lambda site, language: number
    percentile = parsed(value[1:]) if value.startswith("p") else -1
    share = percentile / 100 if _is_number(percentile) else -1.0
    if value != "mean" and not 0 <= share <= 1:
        raise StatisticsError(f"A value is a number, mean, or a percentile from p0 to p100, not {value!r}.")
    known = _needed(stats, value)
    if value == "mean":
        return lambda site, language: known.at(site)[language].mean()
    return lambda site, language: known.at(site)[language].quantile(share)


def _needed(stats: ln.ActivationStats | None, value: str) -> ln.ActivationStats:
    if stats is None:
        raise StatisticsError(f"The value {value!r} is read from statistics: give --statistics.")
    return stats


def _number(text: str, what: str) -> float | int:
    number = parsed(text)
    if not _is_number(number):
        raise PatchError(f"{what} is a number, not {text!r}.")
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def make_method(name: str, options: Mapping[str, Any]) -> Any:
    """Build a method from its name and options.

    Raises:
        StatisticsError: If the method or an option is unknown, or a value is of the wrong kind.
    """
    fields = options_of(name)
    for key in options:
        if key not in fields:
            raise StatisticsError(unknown(f"option of {name}", key, fields))
    fitting = {key: _fitting(key, value, fields[key]) for key, value in options.items()}
    return getattr(identification, METHODS[name])(**fitting)


def options_of(name: str) -> dict[str, Any]:
    """The options of a method, and the type of each.

    Raises:
        StatisticsError: If there is no such method.
    """
    if name not in METHODS:
        raise StatisticsError(unknown("method", name, METHODS))
    return {field.name: field.type for field in dataclasses.fields(getattr(identification, METHODS[name]))}


def _fitting(key: str, value: Any, kind: Any) -> Any:
    """Check an option against its field's type, so that a wrong one is a sentence."""
    kinds = get_args(kind) or (kind,)
    numeric = _is_number(value)
    if isinstance(value, str) and {float, int} & set(kinds) and str not in kinds:
        raise StatisticsError(f"{key} takes a number, not {value!r}.")
    if numeric and not {float, int} & set(kinds):
        raise StatisticsError(f"{key} takes a word, not {value!r}.")
    return float(value) if numeric and int not in kinds else value


def parsed(text: str) -> Any:
    """A number, true, false, none, or the text itself."""
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
