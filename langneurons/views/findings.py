"""What a report is made from, and what that says in words: verdicts, and what could have been missed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.polysemanticity import Polysemanticity
from langneurons.analysis.profiles import Profiles
from langneurons.analysis.validity.checks import ValidityTable
from langneurons.analysis.validity.staying import Survival
from langneurons.effects.resampling import SIGNIFICANCE
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, StaleArtefactError, StatisticsError, counted
from langneurons.evaluation.results import UNPATCHED, Evaluation, Factorial
from langneurons.identification import NeuronSet
from langneurons.recording.statistics import PUBLISHED, ActivationStats
from langneurons.storage.presenting import Column, number
from langneurons.training.transfer_table import Transfer
from langneurons.views.pages import Results, check_belongs

NAMED = 6  # effects named one by one
POINTS = Column(scale=100, signed=True)
TEXTS = ("question", "answer", "sure", "published_about", "provenance", "config")  # of a report, no results

WITHIN = ("no effect", "slightly better", "slightly worse")  # verdicts on effects within the margin


@dataclass(frozen=True, eq=False)
class Findings:
    """The results of a report, as far as there are any; the report shows what there is.

    Attributes:
        question: The question of the study, which is the report's title.
        answer: Sentences that answer the question, before those that follow from the results; the first three of all
            stand on the first screen.
        sure: Sentences on how sure the answer is, before those that follow from the results.
        stats: Activation statistics.
        neurons: Method -> its neuron set.
        matrix: Result of ``ln.perplexity_matrix``; of this and the following either one result, or several by name.
        sweep: Result of ``ln.sweep``.
        evaluation: Result of ``ln.evaluate``.
        factorial: Result of ``ln.factorial``.
        transfer: Result of ``ln.transfer_experiment``.
        ablation: Result of ``ln.ablate``.
        polysemanticity: Result of ``ln.polysemanticity``.
        validity: A validity table.
        survival: Result of ``langneurons.analysis.validity.survival``; one, or several by name.
        published: Heading -> table that holds published numbers against these.
        published_about: Sentences that say where the published numbers come from.
        profiles: Result of ``ln.profile``: each of its neurons gets a page.
        provenance: Sentences to print after those that follow from the results.
        config: What to run to get the same again: a study's TOML, or commands.
    """

    question: str
    answer: Sequence[str] = ()
    sure: Sequence[str] = ()
    stats: ActivationStats | None = None
    neurons: Mapping[str, NeuronSet] = field(default_factory=dict)
    matrix: EffectTable | Mapping[str, EffectTable] | None = None
    sweep: EffectTable | Mapping[str, EffectTable] | None = None
    evaluation: Evaluation | Mapping[str, Evaluation] | None = None
    factorial: Factorial | Mapping[str, Factorial] | None = None
    transfer: Transfer | Mapping[str, Transfer] | None = None
    ablation: Ablation | Mapping[str, Ablation] | None = None
    polysemanticity: Polysemanticity | Mapping[str, Polysemanticity] | None = None
    validity: ValidityTable | None = None
    survival: Survival | Mapping[str, Survival] | None = None
    published: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    published_about: Sequence[str] = ()
    profiles: Profiles | None = None
    provenance: Sequence[str] = ()
    config: str = ""

    def each(self, kind: str) -> dict[str, Any]:
        """Results of a kind by name; one that was given without a name has an empty one."""
        results = getattr(self, kind)
        if results is None:
            return {}
        return dict(results) if isinstance(results, Mapping) else {"": results}

    @property
    def beside_profiles(self) -> Results:
        """What neurons' pages show beside their profiles: of several results of a kind the first."""
        carried, ablation = (next(iter(self.each(kind).values()), None) for kind in ("polysemanticity", "ablation"))
        return Results(self.stats, carried, ablation, self.neurons)

    def check(self) -> None:
        """Refuse to report on nothing, or on results that do not belong together.

        Raises:
            StatisticsError: If there is no result.
            StaleArtefactError: If results belong to different models or sites.
        """
        if not any(getattr(self, item.name) for item in fields(self) if item.name not in TEXTS):
            raise StatisticsError(
                "There is nothing to report: give at least one result, such as stats=, neurons= or matrix=."
            )
        if self.profiles is not None:
            check_belongs(self.profiles, self.beside_profiles)
        if self.stats is None:
            return
        for method, neurons in self.neurons.items():
            model = None if neurons.site not in self.stats.sites else self.stats.at(neurons.site).fingerprint
            if None not in (model, neurons.model) and model != PUBLISHED and model != neurons.model:
                raise StaleArtefactError(
                    f"The neurons of {method} belong to model {str(neurons.model)[:8]}, the statistics to "
                    f"{str(model)[:8]}: identify them from these statistics."
                )


def answers(findings: Findings) -> Iterator[str]:
    """Sentences that answer the report's question."""
    yield from findings.answer
    for method, neurons in findings.neurons.items():
        yield named_neurons(method, neurons)
    for kind, sentences in SENTENCES.items():
        for name, result in findings.each(kind).items():
            yield from (f"{name}: {sentence}" if name else sentence for sentence in sentences(result))


def provenance(findings: Findings) -> Iterator[str]:
    """Sentences that say what everything was made from."""
    if (stats := findings.stats) is not None:
        counts = ", ".join(f"{name} {int(n):,}" for name, n in zip(stats.languages, stats.tokens, strict=True))
        yield (
            f"Statistics: {stats.model.name}, weights {stats.model.fingerprint}, {stats.model.dtype}; site "
            f"{', '.join(stats.sites)}; counted tokens {counts}; context {stats.context_length}."
        )
    for method, neurons in findings.neurons.items():
        yield f"Neurons, {method}: {neurons.method}; site {neurons.site}; model {neurons.model or 'unknown'}."
    if (profiles := findings.profiles) is not None:
        settings = profiles.settings
        yield f"Profiles: weights {profiles.fingerprint}; corpus {settings['corpus']}; seed {settings['seed']}."
    for kind in ("matrix", "sweep", "evaluation", "transfer", "ablation"):
        for name, result in findings.each(kind).items():
            plain = [f"{key} {value}" for key, value in result.settings.items() if isinstance(value, str | int | float)]
            yield f"{kind.capitalize()}{f' {name}' if name else ''}: {', '.join(plain)}."
    yield from findings.provenance
    yield f"langneurons {version('langneurons')}."


def named_neurons(method: str, neurons: NeuronSet) -> str:
    """Number of neurons that a method names."""
    units = neurons.shape[0] * neurons.shape[1]
    counts = ", ".join(f"{language} {len(neurons[language]):,}" for language in neurons.languages)
    _, labels = np.unique(np.concatenate([np.empty(0), *neurons.members.values()]), return_counts=True)
    several = int((labels > 1).sum())
    shared = f"; {several:,} of them belong to several languages" if several else ""
    share = number(100 * len(neurons) / units, 2)
    return f"{method} names {len(neurons):,} of {units:,} units at {neurons.site} ({share} %): {counts}{shared}."


def of_matrix(matrix: EffectTable) -> Iterator[str]:
    """Effect of patching each language's neurons on its own loss and on the others'."""
    rows = matrix.rows
    if not {"patched", "measured"} <= set(rows.columns):
        yield f"Patching: {verdicts(rows, matrix)}"
        return
    own = rows["patched"] == rows["measured"]
    for part, whose in ((rows.loc[own], "its own loss"), (rows.loc[~own], "another language's loss")):
        if len(part):
            yield f"Patching a language's neurons, {whose}: {verdicts(part, matrix)}"
    if matrix.selectivity is None or "all" not in set(matrix.selectivity["language"]):
        return
    overall = matrix.selectivity.set_index("language").loc["all"].to_dict()
    low, high, value = (float(overall[name]) for name in ("low", "high", "selectivity"))
    more = "more than" if low > 0 else "less than" if high < 0 else "not measurably more than"
    controls = pd.Series(overall).reindex(["control_mean", "control_low", "control_high"]).astype(float)
    shown = POINTS.text(*controls) if controls.notna().all() else POINTS.text(controls.iloc[0])
    beside = "" if np.isnan(controls.iloc[0]) else f"; with matched control neurons by {shown} points"
    yield (
        f"A language's own loss changes {more} the others': by {POINTS.text(value, low, high)} points on "
        f"average{beside}."
    )


def of_evaluation(evaluation: Evaluation) -> Iterator[str]:
    """Whether the model can do the tasks at all, and what patches change."""
    main = evaluation.scores.groupby(["task", "protocol"], sort=False)["metric"].transform("first")
    scores = evaluation.scores.loc[evaluation.scores["metric"] == main]
    for (task, protocol), rows in scores.loc[scores["patch"] == UNPATCHED].groupby(["task", "protocol"], sort=False):
        compared = rows.dropna(subset=["against_chance"])
        above = compared.loc[compared["against_chance"] == "better", "language"].tolist()
        rest = [language for language in compared["language"] if language not in above]
        if len(compared):
            good = f"better than chance in {', '.join(above)}" if above else "nowhere better than chance"
            bad = f"; not shown to be in {', '.join(rest)}, where no change can mean much" if rest else ""
            yield f"On {task} ({protocol}), the unpatched model is {good}{bad}."
        try:
            table = evaluation.effects(str(task), str(protocol))
        except EffectError:
            continue  # nothing was patched
        yield f"Patches, on {task} ({protocol}): {verdicts(table.rows, table)}"


def of_factorial(factorial: Factorial) -> Iterator[str]:
    """Whether some choices reverse the sign of an effect."""
    yield factorial.conclusion


def of_transfer(transfer: Transfer) -> Iterator[str]:
    """Effect of training neurons on other languages."""
    try:
        yield transfer.verdict()
    except EffectError:
        yield f"One condition was trained ({transfer.conditions[0]}): there is nothing to compare it with."


def of_ablation(ablation: Ablation) -> Iterator[str]:
    """Number of neurons that matter, and whether they matter more than others of their kind."""
    rows, settings, unit, scale = ablation.rows, ablation.settings, ablation.unit, ablation.scale
    different = sum(p < SIGNIFICANCE for p in rows["p_adjusted"])
    small = sum(verdict in WITHIN for verdict in rows["verdict"])
    inconclusive = rows.loc[rows["verdict"] == "inconclusive", "detectable"]
    sentences = (
        f"Ablation ({settings['patch']}; {settings['metric']}): {different:,} of {len(rows):,} effects differ from "
        f"zero (false discovery rate 5 %), {small:,} lie within ±{scale * settings['margin']:g} {unit}"
    )
    if len(inconclusive):
        sentences += f"; {len(inconclusive):,} are inconclusive ({_missed(scale * inconclusive, unit)})"
    placed = rows["control_p"].dropna().tolist() if "control_p" in rows.columns else []
    if placed:
        beyond, expected = sum(p < SIGNIFICANCE for p in placed), SIGNIFICANCE * len(placed)
        sentences += (
            f". {beyond:,} differ from those of matched controls (each tested alone; chance gives {expected:.0f})"
        )
    yield f"{sentences}."


def of_polysemanticity(polysemanticity: Polysemanticity) -> Iterator[str]:
    """Number of each language's neurons that carry a task, beside controls."""
    task = polysemanticity.settings["task"]
    sets = polysemanticity.sets.loc[polysemanticity.sets["carries"] == "task"]
    counts = [f"{row['language']} {row['count']} of {row['neurons']}" for row in sets.to_dict("records")]
    sentence = f"Neurons that carry {task} too: {', '.join(counts)}"
    if polysemanticity.settings.get("controls") and "verdict" in sets.columns:
        beside = {"above": "more than", "below": "fewer than", "inconclusive": "not shown to differ from"}
        for verdict, than in beside.items():
            if languages := sets.loc[sets["verdict"] == verdict, "language"].tolist():
                sentence += f"; {than} matched controls in {', '.join(languages)}"
    least = float(np.nanmedian(polysemanticity.rows["task_detectable"].replace(np.inf, np.nan).to_numpy(float)))
    limit = f" A label that explains less than {number(100 * least, 2)} % of the variance would be missed."
    yield f"{sentence}.{'' if np.isnan(least) else limit}"


def of_validity(validity: ValidityTable) -> Iterator[str]:
    """Methods that pass the checks."""
    passing = "; ".join(validity.passing) or "none"
    yield f"Of {len(validity.rows)} methods, these fail no validity check that was made: {passing}."


SENTENCES: Mapping[str, Callable[[Any], Iterator[str]]] = {
    "matrix": of_matrix,
    "evaluation": of_evaluation,
    "factorial": of_factorial,
    "transfer": of_transfer,
    "ablation": of_ablation,
    "polysemanticity": of_polysemanticity,
    "validity": of_validity,
}


def verdicts(rows: pd.DataFrame, table: EffectTable) -> str:
    """Verdicts of some rows of a table: what changed, what did not, and what could not be seen.

    A result that is not significant is called no effect only where it is shown to lie within the margin.
    """
    unit, scale, clauses = table.unit, table.scale, []
    for verdict in ("worse", "better", "slightly worse", "slightly better"):
        part = rows.loc[rows["verdict"] == verdict]
        if len(part):
            clauses.append(f"{verdict} in {len(part)} of {len(rows)} ({_named(part, table)} {unit})")
    if not clauses:
        clauses.append(f"no significant change in {counted(len(rows), 'effect')}")
    without_effect = sum(rows["verdict"] == "no effect")
    if without_effect:
        margin = f"±{scale * table.settings['margin']:g} {unit}"
        of_all = "all" if without_effect == len(rows) else f"{without_effect} of them"
        clauses.append(f"{of_all} shown to lie within {margin}")
    inconclusive = rows.loc[rows["verdict"] == "inconclusive", "minimal_detectable"]
    if len(inconclusive):
        clauses.append(f"{len(inconclusive)} inconclusive ({_missed(scale * inconclusive, unit)})")
    return "; ".join(clauses) + "."


def _missed(detectable: pd.Series, unit: str) -> str:
    """What effects of some minimal detectable sizes could have been missed."""
    finite = detectable.astype(float).replace(np.inf, np.nan).dropna()
    if finite.empty:
        return "too few items to see any"
    return f"smaller than {number(finite.max(), 2)} {unit} would be missed"


def _named(rows: pd.DataFrame, table: EffectTable) -> str:
    column = Column(scale=table.scale, signed=True)
    order = np.argsort(-np.abs(rows["estimate"].to_numpy(float)), kind="stable")[:NAMED]
    largest = [
        f"{' → '.join(str(row[key]) for key in table.keys)} {column.text(row['estimate'])}"
        for row in rows.iloc[order].to_dict("records")
    ]
    return ", ".join(largest) + (", …" if len(rows) > NAMED else "")
