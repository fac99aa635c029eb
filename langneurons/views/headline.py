"""The first screen of a report: its answer in three sentences, what shows it, and how sure that is."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from langneurons.analysis.ablation import Ablation
from langneurons.effects.table import EffectTable, span
from langneurons.errors import EffectError, counted
from langneurons.evaluation.results import Evaluation
from langneurons.storage.presenting import Column, number
from langneurons.training.transfer_table import Transfer
from langneurons.views.findings import SENTENCES, Findings, named_neurons, of_matrix

SENTENCES_SHOWN = 3
# Kinds of results from the one that answers most to the one that answers least.
LEADING = ("transfer", "evaluation", "matrix", "ablation", "polysemanticity", "factorial", "validity", "sweep")


def headline(findings: Findings) -> list[str]:
    """The answer in at most three sentences: those that were given, whose neurons there are, what the results say."""
    return list(islice(_sentences(findings), SENTENCES_SHOWN))


def leading_kind(findings: Findings) -> str:
    """The kind of result whose figure shows the answer; "" where there are only neurons."""
    return next((kind for kind in LEADING if findings.each(kind)), "")


def certainty(findings: Findings) -> list[str]:
    """How sure the answer is: those sentences that were given, and those of the leading result."""
    results = findings.each(leading_kind(findings)) if leading_kind(findings) else {}
    return [*findings.sure, *(sentence for result in islice(results.values(), 1) for sentence in _sure(result))]


def _sentences(findings: Findings) -> Iterator[str]:
    yield from findings.answer
    yield from (named_neurons(method, neurons) for method, neurons in islice(findings.neurons.items(), 1))
    for kind in LEADING:
        for name, result in islice(findings.each(kind).items(), 1):
            if kind == "matrix":
                sentences = _of_matrix(result)
            elif kind in SENTENCES:
                sentences = islice(SENTENCES[kind](result), 1)
            else:
                continue
            yield from (f"{name}: {sentence}" if name else sentence for sentence in sentences)


def _of_matrix(matrix: EffectTable) -> Iterator[str]:
    """What patching does to the own loss and to that of others, in one sentence, and the difference in another."""
    rows: Any = matrix.rows
    if not {"patched", "measured"} <= set(rows.columns):
        yield from islice(of_matrix(matrix), 1)
        return
    own = rows["patched"] == rows["measured"]
    if own.any():
        verdicts = rows["verdict"].isin(["worse", "slightly worse"])
        worse = [(int(verdicts[part].sum()), int(part.sum())) for part in (own, ~own)]
        largest = rows[own].loc[rows.loc[own, "estimate"].abs().idxmax()]
        size = Column(scale=matrix.scale, signed=True).text(largest["estimate"], largest["low"], largest["high"])
        others = f", and that of another language in {worse[1][0]} of {worse[1][1]} cases" if worse[1][1] else ""
        sentence = (
            f"Patching a language's neurons makes its own loss significantly worse in {worse[0][0]} of {worse[0][1]} "
            f"languages{others}; the largest change of an own loss is {size} {matrix.unit} ({largest['patched']})."
        )
        beyond = rows[own].get("beyond_verdict", pd.Series(dtype=object)).dropna()
        if len(beyond):
            more = int(beyond.isin(["worse", "slightly worse"]).sum())
            sentence += f" It is significantly worse than with matched controls in {more} of {len(beyond)}."
        yield sentence
    difference = list(of_matrix(matrix))[-1]
    if difference.startswith("A language's own loss"):
        yield difference


def _sure(result: object) -> Iterator[str]:
    if isinstance(result, EffectTable):
        yield from _of_table(result)
    elif isinstance(result, Transfer):
        yield f"{span(result.scores()['seeds'])} training seeds for each condition."
        if len(result.conditions) > 1:
            yield from _of_table(result.effects(result.reference))
    elif isinstance(result, Evaluation):
        task, protocol = result.rows[["task", "protocol"]].iloc[0].astype(str)
        with suppress(EffectError):  # nothing was patched
            yield from _of_table(result.effects(task, protocol))
    elif isinstance(result, Ablation):
        yield f"{counted(len(result.rows), 'effect')}, at a false discovery rate of 5 %."
        yield _controls("controls" if result.controls is not None else "")


def _of_table(table: EffectTable) -> Iterator[str]:
    """Sizes, what was adjusted for, what could be missed, and what stands beside it."""
    rows = table.rows
    family = f"{len(rows):,} effects judged together (Holm)" if len(rows) > 1 else "One effect"
    yield (
        f"{family}, each over {span(rows['items'])} items in {span(rows['clusters'])} clusters, with "
        f"{100 * float(table.settings['level']):g} % intervals."
    )
    detectable = rows["minimal_detectable"].to_numpy(float)
    unsure = rows["verdict"].tolist().count("inconclusive")
    if np.isfinite(detectable).any():
        missed = number(table.scale * detectable[np.isfinite(detectable)].max(), 2)
        yield f"Effects below {missed} {table.unit} could be missed; {unsure} of {len(rows):,} are inconclusive."
    draws = rows["control_draws"].dropna() if "control_draws" in rows.columns else ()
    yield _controls(f"{span(draws)} draws" if len(draws) else "")


def _controls(draws: str) -> str:
    if not draws:
        return "No controls were drawn: random neurons might do the same."
    return f"Beside them stand matched control neurons ({draws})."
