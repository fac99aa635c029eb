"""What a user writes, in a study or at the command line, made into methods, patches and values."""

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pkgutil import resolve_name
from typing import Any, TypeGuard

import langneurons as ln
from langneurons.corpora.languages import spelled
from langneurons.errors import PatchError, StatisticsError, unknown
from langneurons.settings import literal_choices, plain_types, shown
from langneurons.study.tables import PUBLISHED, PatchPart, writes_of

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
PUBLISHED_METHODS = {
    "published-lape": "replication.neurons:lape_neurons",
    "published-act-prob-90p": "replication.neurons:act_prob_90p_neurons",
}
UNSOUND = {"own-p90": "analysis.validity:OwnQuantile"}  # says nothing about language; to see that the checks notice
OPERATIONS = ("set", "add", "scale", "diffmean")
MakePatch = Callable[["ln.NeuronSet", str], "ln.patches.Patch"]
PatchOfLanguage = Callable[[str], "list[ln.patches.Patch]"]


def patch_of(text: str) -> tuple[str, str]:
    """Understand what is written at neurons.

    Args:
        text: A value to set, such as ``0``, ``mean`` or ``p90``; or ``add:mean``, ``scale:2``, ``diffmean``,
            ``diffmean:2``; or ``published:mean_mu_act``, as Mondal et al. 2025 write it.

    Returns:
        The operation, and its value: a number, the mean, a percentile, or the name of a published value.

    Raises:
        PatchError: If the operation or the published value is unknown, a strength or factor is no number, or a part of
            the language's neurons is named.
        StatisticsError: If the value is no number, mean or percentile.
    """
    if "=" in text:
        raise PatchError(
            f"{text!r:.100} writes at parts of a language's neurons, which only tasks, transfers and bake do: here all "
            "of them are written."
        )
    before, colon, after = text.partition(":")
    operation, value = (before, after) if colon else ("diffmean", "1") if text == "diffmean" else ("set", text)
    if operation == PUBLISHED:
        from langneurons.replication.neurons import INTERVENE_BY

        if value not in INTERVENE_BY:
            raise PatchError(unknown("value to intervene by", value, INTERVENE_BY))
    elif operation not in OPERATIONS:
        raise PatchError(unknown("operation", operation, OPERATIONS))
    elif operation in ("scale", "diffmean") and not _is_number(parsed(value)):
        raise PatchError(f"A {'factor' if operation == 'scale' else 'strength'} is a number, not {shown(value)}.")
    elif value != "mean" and not _is_number(parsed(value)):
        percentile = parsed(value[1:]) if value.startswith("p") else None
        if not _is_number(percentile) or not 0 <= percentile <= 100:
            raise StatisticsError(f"A value is a number, mean, or a percentile from p0 to p100, not {shown(value)}.")
    return operation, value


def patch_maker(
    text: str,
    stats: "ln.ActivationStats | None",
    published: "ln.replication.PublishedStatistics | None" = None,
    everywhere: str | None = None,
) -> MakePatch:
    """Build the patch of a language's neurons from what is written, see ``patch_of``.

    Args:
        text: What is written.
        stats: Statistics that mean, percentiles and diffmean are read from.
        published: Statistics that published values are read from.
        everywhere: A site whose every unit ``diffmean`` is written at, instead of the language's neurons.

    Raises:
        PatchError: If the operation or the published value is unknown, or a strength or factor is no number.
        StatisticsError: If the value is no number, mean or percentile, or needs statistics that are not given.
    """
    operation, word = patch_of(text)
    value = parsed(word)
    if operation == PUBLISHED:
        if published is None:
            raise StatisticsError(f"{text} is read from published statistics, which only a study computes.")
        return lambda neurons, language: ln.replication.published_patch(neurons, published, language, word)
    if operation == "scale":
        return lambda neurons, language: ln.Scale(neurons, value)
    kind = ln.SetTo if operation == "set" else ln.Add
    if operation != "diffmean" and _is_number(value):
        return lambda neurons, language: kind(neurons, value)
    if stats is None:
        raise StatisticsError(f"The value {text!r} is read from statistics: give --statistics.")
    if operation == "diffmean" and everywhere is not None:
        return lambda neurons, language: ln.DiffMean.everywhere(stats.at(everywhere), language, value)
    if operation == "diffmean":
        return lambda neurons, language: ln.DiffMean(neurons, stats.at(neurons.site), language, value)
    if word == "mean":
        return lambda neurons, language: kind(neurons, stats.at(neurons.site)[language].mean())
    share = float(word[1:]) / 100
    return lambda neurons, language: kind(neurons, stats.at(neurons.site)[language].quantile(share))


def language_patches(
    neurons: "ln.NeuronSet",
    patches: Mapping[str, PatchPart],
    stats: "ln.ActivationStats | None",
    published: "ln.replication.PublishedStatistics | None" = None,
) -> dict[str, PatchOfLanguage]:
    """Patches of each language's own neurons, by name.

    Raises:
        LangNeuronsError: If an operation or a value is unknown, or needs statistics that are not given.
    """

    def of_language(part: PatchPart) -> PatchOfLanguage:
        own = part_makers(str(part.write), stats, published, part.everywhere)
        also = {code: part_makers(str(value), stats, published) for code, value in part.also.items()}
        layers = None if part.layers is None else range(part.layers[0], part.layers[1] + 1)

        def patches_of(language: str) -> "list[ln.patches.Patch]":
            others = [(code, make) for code, make in also.items() if spelled(code, [language]) is None]
            beside = [patch for code, make in others for patch in make(neurons[code], code)]
            patches = own(neurons[language], language, layers)
            return [*beside, *(patch if layers is None else replace(patch, layers=layers) for patch in patches)]

        return patches_of

    return {name: of_language(patch) for name, patch in patches.items()}


def part_makers(
    text: str,
    stats: "ln.ActivationStats | None",
    published: "ln.replication.PublishedStatistics | None" = None,
    everywhere: str | None = None,
) -> "Callable[..., list[ln.patches.Patch]]":
    """Build the patches of a language's neurons, one for each part that ``writes_of`` names.

    Args:
        text: What is written.
        stats: Statistics that mean, percentiles and diffmean are read from.
        published: Statistics that published values are read from.
        everywhere: A site whose every unit ``diffmean`` is written at, instead of the language's neurons.

    Returns:
        A function of neurons, their language, and optionally the layers that are written, which gives the patches; a
        part without a neuron there is left out.

    Raises:
        LangNeuronsError: If a part, an operation or a value is unknown, or needs statistics that are not given.
    """
    makers = [(part, patch_maker(word, stats, published, everywhere)) for part, word in writes_of(text)]

    def make(neurons: "ln.NeuronSet", language: str, layers: range | None = None) -> "list[ln.patches.Patch]":
        by_part = [(part, getattr(neurons, part)() if part else neurons, maker) for part, maker in makers]
        patches = [
            maker(own, language)
            for part, own, maker in by_part
            if not part or any(layers is None or layer in layers for layer in own.per_layer())
        ]
        if not patches:
            where = "" if layers is None else f" in layers {layers[0]} to {layers[-1]}"
            names = " or ".join(part for part, _ in makers)
            raise PatchError(f"{language!r} has no neuron that is {names}{where}: leave the language out.")
        return patches

    return make


def make_method(name: str, options: Mapping[str, object]) -> Any:
    """Build a method from its name and options; a published one is a function of published statistics and languages.

    Raises:
        StatisticsError: If the method or an option is unknown, or a value is of the wrong kind.
    """
    checked = _checked_options(name, options)
    return partial(_method(name), **checked) if name in PUBLISHED_METHODS else _method(name)(**checked)


def options_of(name: str) -> dict[str, object]:
    """The options of a method, and the type of each.

    Raises:
        StatisticsError: If there is no such method.
    """
    parameters = inspect.signature(_method(name)).parameters.values()
    return {each.name: each.annotation for each in parameters if each.name not in ("statistics", "languages")}


def _method(name: str) -> Any:
    """The class of a method, or the function of a published one."""
    places = {key: f"identification:{method}" for key, method in METHODS.items()} | UNSOUND | PUBLISHED_METHODS
    if name not in places:
        raise StatisticsError(unknown("method", name, places))
    return resolve_name(f"langneurons.{places[name]}")


def _checked_options(name: str, options: Mapping[str, object]) -> dict[str, object]:
    """Check options against the types of a method's, so that a wrong one is a sentence."""
    types, checked = options_of(name), {}
    for key, value in options.items():
        if key not in types:
            raise StatisticsError(unknown(f"option of {name}", key, types))
        kinds, choices = plain_types(types[key]), literal_choices(types[key])
        numbers = bool({float, int} & kinds)
        if choices and value not in choices:
            raise StatisticsError(unknown(key, value, choices))
        number = _is_number(value) and (float in kinds or (int in kinds and isinstance(value, int)))
        other = value in choices or (type(value) in kinds and type(value) not in (int, float))
        if not (number or other):
            taken = "a number" if numbers else "true or false" if bool in kinds else "a word"
            raise StatisticsError(f"{key} takes {taken}, not {shown(value)}.")
        if name not in METHODS and not (_is_number(value) and 0 <= value <= 1):
            raise StatisticsError(f"{key} is a share from 0 to 1, not {shown(value)}.")
        checked[key] = float(value) if _is_number(value) and int not in kinds else value
    return checked


def parsed(text: str) -> Any:
    """A number, true, false, none, or the text itself."""
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    with suppress(ValueError, OverflowError):
        number = float(text)
        with suppress(ValueError):
            return int(text) if math.isfinite(number) else number
        return number
    return text


def _is_number(value: object) -> TypeGuard[float | int]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
