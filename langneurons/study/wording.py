"""What a user writes, in a study or at the command line, made into methods, patches and values."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import langneurons as ln
from langneurons.errors import PatchError, StatisticsError, unknown
from langneurons.study.tables import PUBLISHED

if TYPE_CHECKING:
    from langneurons.replication.statistics import PublishedStatistics

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
PUBLISHED_METHODS = {"published-lape": "lape_neurons", "published-act-prob-90p": "act_prob_90p_neurons"}
UNSOUND = "own-p90"  # says nothing about language; to see that the checks notice
OPERATIONS = ("set", "add", "scale", "diffmean")
MakePatch = Callable[["ln.NeuronSet", str], "ln.patches.Patch"]


def patch_maker(
    text: str,
    stats: "ln.ActivationStats | None",
    published: "PublishedStatistics | None" = None,
) -> MakePatch:
    """Build the patch of a language's neurons from ``value`` or ``operation:value``.

    Args:
        text: A value to set, such as ``0``, ``mean`` or ``p90``; or ``add:mean``, ``scale:2``, ``diffmean``,
            ``diffmean:2``; or ``published:mean_mu_act``, as Mondal et al. 2025 write it.
        stats: What mean, percentiles and diffmean are read from.
        published: What published values are read from.

    Raises:
        PatchError: If the operation is unknown.
        StatisticsError: If the value is no number, mean or percentile, or needs statistics that are not given.
    """
    before, colon, after = text.partition(":")
    operation, value = (before, after) if colon else ("diffmean", "1") if text == "diffmean" else ("set", text)
    if operation == PUBLISHED:
        return _published_maker(value, published)
    if operation not in OPERATIONS:
        raise PatchError(unknown("operation", operation, OPERATIONS))
    if operation == "diffmean":
        strength, statistics = _number(value, "A strength"), _needed(stats, "diffmean")
        return lambda neurons, language: ln.DiffMean(neurons, statistics.at(neurons.site), language, strength)
    if operation == "scale":
        factor = _number(value, "A factor")
        return lambda neurons, language: ln.Scale(neurons, factor)
    kind, read = (ln.SetTo if operation == "set" else ln.Add), value_reader(value, stats)
    return lambda neurons, language: kind(neurons, read(neurons.site, language))


def _published_maker(value: str, published: "PublishedStatistics | None") -> MakePatch:
    from langneurons.replication.neurons import INTERVENE_BY, published_patch

    if value not in INTERVENE_BY:
        raise PatchError(unknown("value to intervene by", value, INTERVENE_BY))
    if published is None:
        raise StatisticsError(f"{PUBLISHED}:{value} is read from published statistics, which only a study computes.")
    return lambda neurons, language: published_patch(neurons, published, language, value)


def check_patch(text: str) -> None:
    """Check what ``patch_maker`` would make a patch of, before there are statistics.

    Raises:
        LangNeuronsError: If the operation or the value is unknown.
    """
    import torch

    from langneurons.replication.statistics import ARRAYS, PublishedStatistics

    any_statistics = ln.ActivationStats.from_counts(torch.zeros(1, 1, 1).long(), torch.ones(1).long(), ["any"])
    nothing = torch.zeros(1, 1, 1)
    patch_maker(text, any_statistics, PublishedStatistics(("any",), "", {}, *[nothing] * len(ARRAYS)))


def language_patches(
    neurons: "ln.NeuronSet", texts: Sequence[str], stats: "ln.ActivationStats | None"
) -> dict[str, Callable[[str], "ln.patches.Patch"]]:
    """Patches of each language's own neurons, by the text that describes them.

    Raises:
        LangNeuronsError: If an operation or a value is unknown, or needs statistics that are not given.
    """

    def of_own(make: MakePatch) -> Callable[[str], "ln.patches.Patch"]:
        return lambda language: make(neurons[language], language)

    return {text: of_own(patch_maker(text, stats)) for text in texts}


def value_reader(value: str, stats: "ln.ActivationStats | None") -> Callable[[str, str], Any]:
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
    statistics = _needed(stats, value)
    if value == "mean":
        return lambda site, language: statistics.at(site)[language].mean()
    return lambda site, language: statistics.at(site)[language].quantile(share)


def _needed(stats: "ln.ActivationStats | None", value: str) -> "ln.ActivationStats":
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


def make_method(name: str, options: Mapping[str, Any]) -> "ln.identification.Method":
    """Build a method from its name and options.

    Raises:
        StatisticsError: If the method or an option is unknown, or a value is of the wrong kind.
    """
    fitting = _checked_options(name, options)
    if name in PUBLISHED_METHODS:
        raise StatisticsError(f"{name} reads published statistics, which only a study computes.")
    return _method(name)(**fitting)


def check_method(name: str, options: Mapping[str, Any]) -> None:
    """Check a method of a study, a published one too.

    Raises:
        StatisticsError: If the method or an option is unknown, or a value is of the wrong kind.
    """
    if name in PUBLISHED_METHODS:
        _checked_options(name, options)
    else:
        make_method(name, options)


def published_neurons(
    name: str,
    options: Mapping[str, Any],
    published: "PublishedStatistics",
    languages: Sequence[str],
) -> "ln.NeuronSet":
    """Find neurons by a published method.

    Args:
        name: One of ``PUBLISHED_METHODS``.
        options: Options of the method.
        published: The published statistics.
        languages: The language set.

    Raises:
        StatisticsError: If the method or an option is unknown, or a value is of the wrong kind.
        LanguageError: If the statistics lack a language.
    """
    find = _method(name)
    competing = {"languages": languages} if "languages" in inspect.signature(find).parameters else {}
    return find(published, **competing, **_checked_options(name, options)).select(languages)


def options_of(name: str) -> dict[str, Any]:
    """The options of a method, and the type of each.

    Raises:
        StatisticsError: If there is no such method.
    """
    method = _method(name)
    if name in PUBLISHED_METHODS:
        parameters = inspect.signature(method).parameters.values()
        return {each.name: each.annotation for each in parameters if each.name not in ("statistics", "languages")}
    return {field.name: field.type for field in dataclasses.fields(method)}


def _method(name: str) -> Any:
    """The class of a method, or the function of a published one."""
    if name in PUBLISHED_METHODS:
        from langneurons.replication import neurons

        return getattr(neurons, PUBLISHED_METHODS[name])
    if name == UNSOUND:
        from langneurons.analysis.validity import OwnQuantile

        return OwnQuantile
    if name not in METHODS:
        raise StatisticsError(unknown("method", name, [*METHODS, UNSOUND, *PUBLISHED_METHODS]))
    return getattr(ln.identification, METHODS[name])


def _checked_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    fields = options_of(name)
    for key in options:
        if key not in fields:
            raise StatisticsError(unknown(f"option of {name}", key, fields))
    return {key: _fitting(key, value, fields[key]) for key, value in options.items()}


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
