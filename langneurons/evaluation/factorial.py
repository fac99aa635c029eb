"""A factorial: every way of patching crossed with every place and every way of asking, on one model.

Two papers on the same models report opposite signs: Mondal et al. 2025 replace activations and ask by a head and by
generation, Gurgurov et al. 2025 (arXiv 2507.22608) add to them and generate. They differ in several choices at once;
crossed, each can be seen alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import torch

from langneurons.errors import PatchError, unknown
from langneurons.evaluation.evaluating import evaluate
from langneurons.evaluation.results import AT, Factorial, design_of
from langneurons.identification.neurons import NeuronSet
from langneurons.patches.patch import Add, DiffMean, Patch, Scale, SetTo
from langneurons.recording.statistics import ActivationStats
from langneurons.settings import Controls, Match, MeasuringOptions, Run, Testing
from langneurons.tasks.heads import Head
from langneurons.tasks.task import Task

MakePatch = Callable[[NeuronSet, ActivationStats, str], Patch]
# Each turns a language up in its own way, with values of that language.
OPERATIONS: dict[str, MakePatch] = {
    "set": lambda neurons, stats, language: SetTo(neurons, stats[language].mean()),
    "add": lambda neurons, stats, language: Add(neurons, stats[language].mean()),
    "scale": lambda neurons, stats, language: Scale(neurons, 2.0),
    "diffmean": lambda neurons, stats, language: DiffMean(neurons, stats, language),
}


class FactorialOptions(MeasuringOptions, total=False):
    """The options of ``evaluate`` but the statistics."""

    head: Head | None
    controls: int | Controls
    match: Match | None
    testing: Testing
    run: Run


def factorial(
    model: torch.nn.Module,
    neurons: NeuronSet,
    stats: ActivationStats,
    tasks: Task | Sequence[Task],
    languages: Iterable[str] | None = None,
    operations: Iterable[str] | Mapping[str, MakePatch] = tuple(OPERATIONS),
    sites: Iterable[str] = ("act", "post"),
    **options: Unpack[FactorialOptions],
) -> Factorial:
    """Cross operation x site x protocol: patch each language's neurons in every way and place, and ask in every way.

    Args:
        model: A model returned by ``load_model``.
        neurons: Neurons with a label for every evaluated language; the same units are written at every site.
        stats: Statistics of the same model that recorded every site.
        tasks: One task per protocol: ``XNLI`` with and without a head, ``XQuAD``, ``Generation``.
        languages: Languages to evaluate; by default those that neurons, statistics and tasks have.
        operations: Names out of "set", "add" (the language's mean), "scale" (twice) and "diffmean"; or name ->
            function of (neurons, statistics at the site, language) that makes a patch.
        sites: Sites to write at.
        options: Options of ``evaluate`` but ``stats``, such as ``controls=20``, ``head=head`` or ``out="runs/x"``.

    Returns:
        Effects of every cell, their summary, and the pairs of cells with opposite signs.

    Raises:
        PatchError: If an operation is unknown, or no operation or site is given.
        SiteMismatchError: If a site was not recorded.
        LanguageError: If neurons or statistics lack a language.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> prompts = ln.tasks.Generation.of(ln.load_corpus("babel", ["en", "hi"]), documents=4, max_new_tokens=4)
        >>> ways = {"operations": ["set", "scale"], "sites": ["act"]}
        >>> crossed = ln.factorial(model, neurons, stats, prompts, **ways, resamples=200, progress=False)
        >>> crossed.summary[["operation", "site", "protocol"]].to_numpy().tolist()
        [['set', 'act', 'generation'], ['scale', 'act', 'generation']]
    """
    makers = _makers(operations)
    at_site = {site: (replace(neurons, site=site, scores={}), stats.at(site)) for site in dict.fromkeys(sites)}
    if not makers or not at_site:
        raise PatchError("A factorial needs at least one operation and one site.")
    patches = {
        f"{name}{AT}{site}": _patch(make, *where) for name, make in makers.items() for site, where in at_site.items()
    }
    if languages is None:
        several = tasks if isinstance(tasks, Sequence) else [tasks]
        others = [stats.languages, *(task.languages for task in several)]
        labels = [label for label in neurons.languages if len(neurons[label])]
        languages = [label for label in labels if all(label in names for names in others)]
    recorded = [stats_at_site for _, stats_at_site in at_site.values()]
    evaluation = evaluate(model, tasks, languages, patches, stats=recorded, **options)
    return Factorial(evaluation, design_of((name, site) for name in makers for site in at_site))


def _makers(operations: Iterable[str] | Mapping[str, MakePatch]) -> dict[str, MakePatch]:
    if isinstance(operations, Mapping):
        return dict(operations)
    names = list(operations)
    for name in names:
        if name not in OPERATIONS:
            raise PatchError(unknown("operation", name, OPERATIONS))
    return {name: OPERATIONS[name] for name in names}


def _patch(make: MakePatch, neurons: NeuronSet, stats: ActivationStats) -> Callable[[str], Patch]:
    return lambda language: make(neurons[language], stats, language)
