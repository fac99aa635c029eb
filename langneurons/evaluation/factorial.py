"""A factorial: every way of patching crossed with every place and every way of asking, on one model.

Two papers on the same models report opposite signs: Mondal et al. 2025 replace activations and ask by a head and by
generation, Gurgurov et al. 2025 (arXiv 2507.22608) add to them and generate. They differ in several choices at once;
crossed, each can be seen alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pandas as pd
import torch

from langneurons.errors import PatchError, unknown
from langneurons.evaluation.evaluating import evaluate
from langneurons.evaluation.evaluation import MEASURED, Evaluation
from langneurons.evaluation.tasks.task import Task
from langneurons.identification.neurons import NeuronSet
from langneurons.patches.patch import Add, DiffMean, Patch, Scale, Set
from langneurons.recording.statistics import ActivationStats

MakePatch = Callable[[NeuronSet, ActivationStats, str], Patch]
# Each turns a language up in its own way, with values of that language.
OPERATIONS: dict[str, MakePatch] = {
    "set": lambda neurons, stats, language: Set(neurons, stats[language].mean()),
    "add": lambda neurons, stats, language: Add(neurons, stats[language].mean()),
    "scale": lambda neurons, stats, language: Scale(neurons, 2.0),
    "diffmean": lambda neurons, stats, language: DiffMean(neurons, stats, language),
}
FACTORS = ("operation", "site", "protocol")
FORCING = "language forcing"  # what turning a language up is for: more of it is no better or worse answer


@dataclass(frozen=True, eq=False, repr=False)
class Factorial:
    """What ``factorial`` found.

    Attributes:
        evaluation: Everything measured; its patches are named ``"<operation> at <site>"``.
        design: One row a patch: patch, operation, site.
    """

    evaluation: Evaluation
    design: pd.DataFrame

    @property
    def effects(self) -> pd.DataFrame:
        """Every effect of every cell on the main metric of its task; families are tasks.

        Returns:
            operation, site, protocol, task, metric, language, then the columns of an effect table.
        """
        found = []
        rows = self.evaluation.rows
        for task, protocol in rows[["task", "protocol"]].drop_duplicates().itertuples(index=False):
            table = self.evaluation.effects(task, protocol)
            about = {name: table.settings[name] for name in MEASURED}
            found.append(table.rows.assign(**about).merge(self.design, on="patch", validate="many_to_one"))
        effects = pd.concat(found, ignore_index=True)
        first = [*FACTORS, "task", "metric", "language"]
        return effects.reindex(columns=[*first, *(name for name in effects if name not in {*first, "patch"})])

    @property
    def summary(self) -> pd.DataFrame:
        """Each cell over its languages.

        Returns:
            operation, site, protocol, task; the mean estimate; how many languages got better, worse, equivalent,
            inconclusive; the largest effect that could have gone unnoticed in a language (detectable).
        """
        keys = [*FACTORS, "task"]
        counts = {name: ("verdict", _count(name)) for name in ("better", "worse", "equivalent", "inconclusive")}
        sizes = {"estimate": ("estimate", "mean"), "detectable": ("minimal_detectable", "max")}
        return self.effects.groupby(keys, sort=False).agg(**sizes, **counts).reset_index()

    @property
    def opposites(self) -> pd.DataFrame:
        """Pairs of cells that would make two papers disagree: answers get better in one, worse in the other.

        Verdicts are those of each task's own family. Language forcing is no answer, and left out.

        Returns:
            language, better, worse (each "operation at site, task protocol") and differ, the factors they differ in,
            the task among them; the pairs that differ in fewest first. No rows: nothing in this design turns a sign
            around.
        """
        cells = [cell for cell in self.effects.to_dict("records") if cell["task"] != FORCING]
        sure = [cell for cell in cells if cell["verdict"] in ("better", "worse")]
        rows = []
        for one, other in combinations(sure, 2):
            if one["language"] == other["language"] and one["verdict"] != other["verdict"]:
                better, worse = (one, other) if one["verdict"] == "better" else (other, one)
                differ = [factor for factor in (*FACTORS, "task") if better[factor] != worse[factor]]
                rows.append((better["language"], _cell(better), _cell(worse), ", ".join(differ), len(differ)))
        table = pd.DataFrame(rows, columns=["language", "better", "worse", "differ", "factors"])
        return table.sort_values("factors", kind="stable", ignore_index=True).drop(columns="factors")

    def __repr__(self) -> str:
        return f"{self.summary.to_string(index=False)}\n{self._conclusion()}"

    def _repr_html_(self) -> str:
        return f"{self.summary.to_html(index=False, border=0)}<p>{self._conclusion()}</p>"

    def _conclusion(self) -> str:
        if self.opposites.empty:
            return "No two cells have opposite significant signs."
        differ = self.opposites["differ"].value_counts()
        counted = ", ".join(f"{count} that differ in {factors}" for factors, count in differ.items())
        return f"{len(self.opposites)} pairs of cells have opposite significant signs: {counted}."


def factorial(
    model: torch.nn.Module,
    neurons: NeuronSet,
    stats: ActivationStats,
    tasks: Task | Sequence[Task],
    languages: Iterable[str] | None = None,
    operations: Iterable[str] | Mapping[str, MakePatch] = tuple(OPERATIONS),
    sites: Iterable[str] = ("act", "post"),
    **options: Any,
) -> Factorial:
    """Cross operation x site x protocol: patch each language's neurons in every way and place, and ask in every way.

    Args:
        model: From ``load_model``.
        neurons: Neurons with a label for every evaluated language; the same units are written at every site.
        stats: Statistics of the same model that recorded every site.
        tasks: One a protocol: ``XNLI`` with and without a head, ``XQuAD``, ``Generation``.
        languages: Which; None takes those that neurons, statistics and tasks have.
        operations: Names out of "set", "add" (the language's mean), "scale" (twice) and "diffmean"; or name ->
            function of (neurons, statistics at the site, language) that makes a patch.
        sites: Where to write.
        options: Of ``evaluate``: controls, out, delta, seed, resamples, batch_size, head, progress.

    Returns:
        Effects of every cell, their summary, and the pairs of cells with opposite signs.

    Raises:
        PatchError: If an operation is unknown, or no operation or site is given.
        SiteMismatchError: If a site was not recorded.
        LanguageError: If neurons or statistics lack a language.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> prompts = ln.Generation.of(ln.load_corpus("babel", ["en", "hi"]), documents=4, max_new_tokens=4)
        >>> ways = {"operations": ["set", "scale"], "sites": ["act"]}
        >>> found = ln.factorial(model, neurons, stats, prompts, **ways, resamples=200, progress=False)
        >>> found.summary[["operation", "site", "protocol"]].to_numpy().tolist()
        [['set', 'act', 'generation'], ['scale', 'act', 'generation']]
    """
    made = _made(operations)
    at_site = {site: (replace(neurons, site=site, scores={}), stats.at(site)) for site in dict.fromkeys(sites)}
    if not made or not at_site:
        raise PatchError("A factorial needs at least one operation and one site.")
    patches = {
        f"{name} at {site}": _patch(make, *where) for name, make in made.items() for site, where in at_site.items()
    }
    design = [(f"{name} at {site}", name, site) for name in made for site in at_site]
    if languages is None:
        asked = tasks if isinstance(tasks, Sequence) else [tasks]
        known = [neurons.languages, stats.languages, *(task.languages for task in asked)]
        languages = [name for name in known[0] if len(neurons[name]) and all(name in one for one in known)]
    evaluation = evaluate(model, tasks, languages, patches, stats=[one for _, one in at_site.values()], **options)
    return Factorial(evaluation, pd.DataFrame(design, columns=["patch", "operation", "site"]))


def _made(operations: Iterable[str] | Mapping[str, MakePatch]) -> dict[str, MakePatch]:
    if isinstance(operations, Mapping):
        return dict(operations)
    for name in (chosen := list(operations)):
        if name not in OPERATIONS:
            raise PatchError(unknown("operation", name, OPERATIONS))
    return {name: OPERATIONS[name] for name in chosen}


def _patch(make: MakePatch, neurons: NeuronSet, stats: ActivationStats) -> Callable[[str], Patch]:
    return lambda language: make(neurons[language], stats, language)


def _count(verdict: str) -> Callable[[pd.Series], int]:
    return lambda verdicts: int((verdicts == verdict).sum())


def _cell(cell: Mapping[str, Any]) -> str:
    return f"{cell['operation']} at {cell['site']}, {cell['task']} {cell['protocol']}"
