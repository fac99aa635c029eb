"""The answer in words: what each result says, with its verdicts, and what it could have missed."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError
from langneurons.evaluation.evaluation import UNPATCHED, Evaluation
from langneurons.identification.neurons import NeuronSet
from langneurons.training.transfer_table import Transfer
from langneurons.views.analysis_figures import Checked
from langneurons.views.report.findings import Findings
from langneurons.views.style import interval, signed

NAMED = 6  # effects named one by one
SIGNIFICANCE = 0.05


def answers(findings: Findings) -> Iterator[str]:
    """Say in sentences what was found."""
    yield from findings.answer
    for method, neurons in findings.neurons.items():
        yield named_neurons(method, neurons)
    say: dict[str, Callable[[Any], Iterable[str]]] = {
        "matrix": of_matrix,
        "evaluation": of_evaluation,
        "factorial": lambda found: [found.conclusion],
        "transfer": lambda found: [of_transfer(found)],
        "ablation": lambda found: [of_ablation(found)],
        "polysemanticity": lambda found: [of_polysemanticity(found)],
        "validity": lambda found: [of_validity(found)],
    }
    for kind, sentences in say.items():
        for name, result in findings.each(kind).items():
            yield from (f"{name}: {one}" if name else one for one in sentences(result))


def named_neurons(method: str, neurons: NeuronSet) -> str:
    """How many neurons a method names."""
    all_neurons = neurons.shape[0] * neurons.shape[1]
    shares = [len(neurons[language]) for language in neurons.languages]
    shared = sum(shares) - len(neurons)
    counted = ", ".join(f"{language} {count:,}" for language, count in zip(neurons.languages, shares, strict=True))
    several = "" if not shared else f"; {shared:,} labels go to neurons that have another already"
    return (
        f"{method} names {len(neurons):,} of {all_neurons:,} units at {neurons.site} "
        f"({len(neurons) / all_neurons:.2%}): {counted}{several}."
    )


def of_matrix(matrix: EffectTable) -> Iterator[str]:
    """What patching each language's neurons does to its own loss and to the others'."""
    rows = matrix.rows
    if not {"patched", "measured"} <= set(rows.columns):
        yield judged(matrix, "Patching")
        return
    own = rows["patched"] == rows["measured"]
    for part, whose in ((rows.loc[own], "its own loss"), (rows.loc[~own], "another language's loss")):
        if len(part):
            yield f"Patching a language's neurons, {whose}: {verdicts(part, matrix)}"
    if matrix.selectivity is None or "all" not in set(matrix.selectivity["language"]):
        return
    overall = matrix.selectivity.set_index("language").loc["all"].to_dict()
    low, high, value = (100 * float(overall[name]) for name in ("low", "high", "selectivity"))
    sign = "more" if low > 0 else "less" if high < 0 else "not measurably more"
    controls = overall.get("control_mean", np.nan)
    beside = "" if np.isnan(controls) else f"; matched control neurons: {signed(100 * controls)}"
    yield (
        f"Own loss changes {sign} than the others': by {signed(value)} points {interval(low, high)} on average{beside}."
    )


def of_evaluation(evaluation: Evaluation) -> Iterator[str]:
    """Whether the model can do the tasks at all, and what patches change."""
    main = evaluation.scores.groupby(["task", "protocol"], sort=False)["metric"].transform("first")
    scores = evaluation.scores.loc[evaluation.scores["metric"] == main]
    for (task, protocol), rows in scores.loc[scores["patch"] == UNPATCHED].groupby(["task", "protocol"], sort=False):
        against = rows.dropna(subset=["against_chance"])
        above = against.loc[against["against_chance"] == "better", "language"].tolist()
        rest = [one for one in against["language"] if one not in above]
        if len(against):
            good = f"better than chance in {', '.join(above)}" if above else "nowhere better than chance"
            bad = f"; not shown to be in {', '.join(rest)}, where no change can mean much" if rest else ""
            yield f"On {task} ({protocol}), the unpatched model is {good}{bad}."
        try:
            yield judged(evaluation.effects(str(task), str(protocol)), f"Patches, on {task} ({protocol})")
        except EffectError:
            continue  # nothing was patched


def of_transfer(transfer: Transfer) -> str:
    """What training neurons was worth in other languages."""
    try:
        return transfer.verdict()
    except EffectError:
        return f"One condition was trained ({transfer.conditions[0]}): there is nothing to compare it with."


def of_ablation(ablation: Ablation) -> str:
    """How many neurons matter, and whether more than their kind."""
    rows, about = ablation.rows, ablation.settings
    unit, scale = ablation.unit, ablation.scale
    different = sum(p < SIGNIFICANCE for p in rows["p_adjusted"])
    small = sum(verdict == "equivalent" for verdict in rows["verdict"])
    open_ = rows.loc[rows["verdict"] == "inconclusive"]
    said = (
        f"Ablation ({about['patch']}; {about['metric']}): {different:,} of {len(rows):,} effects differ from zero "
        f"(false discovery rate 5 %), {small:,} lie within ±{scale * about['margin']:g} {unit}"
    )
    if len(open_):
        said += (
            f"; {len(open_):,} remain open, below {scale * finite_max(open_['detectable']):.2g} {unit} they go unseen"
        )
    placed = rows["control_p"].dropna().tolist() if "control_p" in rows.columns else []
    if placed:
        beyond, expected = sum(p < SIGNIFICANCE for p in placed), SIGNIFICANCE * len(placed)
        said += (
            f". Beside matched controls {beyond:,} stand out (one test at a time; chance alone gives {expected:.0f})"
        )
    return said + "."


def of_polysemanticity(found: Polysemanticity) -> str:
    """How many neurons of each language carry a task, beside controls."""
    parts = []
    for language, rows in found.sets.groupby("language", sort=False):
        counts = {row["carries"]: row for row in rows.to_dict("records")}
        task = counts["task"]
        verdict = f", {task['verdict']} controls" if found.settings.get("controls") and "verdict" in task else ""
        parts.append(f"{language}: {task['count']} of {task['neurons']}{verdict}")
    least = found.rows["task_detectable"].replace(np.inf, np.nan).median()
    unseen = "" if np.isnan(least) else f" A label that explains less than {least:.2g} of the variance goes unseen."
    return f"Of each language's neurons, those that carry {found.settings['task']} too: {'; '.join(parts)}.{unseen}"


def of_validity(validity: Checked) -> str:
    """Which methods pass the checks."""
    methods = validity.rows["method"].tolist()
    failed = {method for check in validity.checks for method in _failing(validity.rows, f"{check.column}_passes")}
    passing = [method for method in methods if method not in failed]
    which = ", ".join(passing) if passing else "none"
    return f"Of {len(methods)} methods, these fail no validity check that was made: {which}."


def judged(table: EffectTable, what: str) -> str:
    """What a table of effects says, in one sentence or two."""
    return f"{what}: {verdicts(table.rows, table)}"


def verdicts(rows: pd.DataFrame, table: EffectTable) -> str:
    """The verdicts of some rows of a table: what changed, what did not, and what could not be seen.

    A result that is not significant is never called no effect: only equivalence is.
    """
    unit = "%" if table.settings["per"] == "baseline" else "points"
    parts = []
    for verdict in ("worse", "better"):
        own = rows.loc[rows["verdict"] == verdict]
        if len(own):
            parts.append(f"{verdict} in {len(own)} of {len(rows)} ({_named(own, table)} {unit})")
    if not parts:
        parts.append(f"no change was found in {len(rows)} effects")
    same = rows.loc[rows["verdict"] == "equivalent"]
    if len(same):
        parts.append(f"{len(same)} shown to be within ±{100 * table.settings['margin']:g} {unit} of none")
    unsure = rows.loc[rows["verdict"] == "inconclusive"]
    if len(unsure):
        least = 100 * finite_max(unsure["minimal_detectable"])
        missed = "too few items to see any" if np.isnan(least) else f"smaller than {least:.2g} {unit} would be missed"
        parts.append(f"{len(unsure)} inconclusive ({missed})")
    return "; ".join(parts) + "."


def finite_max(values: pd.Series) -> float:
    """The largest finite value, NaN where there is none."""
    finite = values.astype(float).replace(np.inf, np.nan).dropna()
    return float(finite.max()) if len(finite) else float("nan")


def _named(rows: pd.DataFrame, table: EffectTable) -> str:
    order = np.argsort(-np.abs(rows["estimate"].to_numpy(float)), kind="stable")
    shown = rows.iloc[order].head(NAMED)
    listed = [
        f"{' → '.join(str(row[key]) for key in table.keys)} {signed(100 * row['estimate'])}"
        for row in shown.to_dict("records")
    ]
    return ", ".join(listed) + (", …" if len(rows) > NAMED else "")


def _failing(rows: pd.DataFrame, column: str) -> list[str]:
    return rows.loc[~rows[column].fillna(True).astype(bool), "method"].tolist()
