"""What each neuron carries (language, task, both, neither), and how many do among controls: verdicts and counts."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int
from scipy import stats

from langneurons.evaluation.effects import benjamini_hochberg, holm
from langneurons.evaluation.placement import placement_columns
from langneurons.evaluation.resampling import POWER, SIGNIFICANCE

TESTS_A_TASK = 2  # of the label, and of its interaction with language
VERDICTS = ("both", "language", "task", "neither")
COUNTED = {"language": ("language", "both"), "task": ("task", "both"), "both": ("both",)}


def judged(neurons: pd.DataFrame, least_share: float | int) -> pd.DataFrame:
    """Say what each neuron of one family carries, at a false discovery rate of 5 % (Benjamini-Hochberg) a factor.

    A neuron carries the task if its label explains something, or what the label does differs between languages: the
    smaller p-value counts twice. What explains less than ``least_share`` beyond chance, of the variance that the other
    sources leave, is taken for nothing (its p-value for 1).

    Args:
        neurons: Columns p and excess of language, task and interaction, as ``neuron_evidence`` gives them.
        least_share: Below it a share is of no interest.

    Returns:
        The neurons with language_p_adjusted, task_p_adjusted and verdict.
    """
    p = {
        source: np.where(neurons[f"{source}_excess"].to_numpy() >= least_share, neurons[f"{source}_p"].to_numpy(), 1.0)
        for source in ("language", "task", "interaction")
    }
    either = np.minimum(1, TESTS_A_TASK * np.minimum(p["task"], p["interaction"]))
    language_p, task_p = benjamini_hochberg(p["language"]), benjamini_hochberg(either)
    language, task = language_p < SIGNIFICANCE, task_p < SIGNIFICANCE
    verdict = np.select([language & task, language, task], VERDICTS[:3], VERDICTS[3])
    return neurons.assign(language_p_adjusted=language_p, task_p_adjusted=task_p, verdict=verdict)


def counted(own: Mapping[str, pd.DataFrame], controls: Sequence[Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Count what the neurons of each set carry, beside matched controls.

    Args:
        own: Set -> its neurons, judged.
        controls: The same of every control draw, each judged as a family of its own.

    Returns:
        A row a set and what is carried (language, task, both): neurons, count, share, and ``beside_controls``.
    """
    rows, drawn, least = [], [], []
    for label, neurons in own.items():
        for carries, verdicts in COUNTED.items():
            count, size = int(np.isin(neurons["verdict"].to_numpy(), verdicts).sum()), len(neurons)
            shares = [float(np.isin(draw[label]["verdict"].to_numpy(), verdicts).mean()) for draw in controls]
            rows.append((label, carries, size, count, count / size))
            drawn.append(shares)
            # Where no control has any, another draw of them still might: one more, and one less, among all.
            expected = (sum(shares) * size + 1) / (len(shares) * size + 2)
            least.append(float(np.sqrt(expected * (1 - expected) / size)))
    table = pd.DataFrame(rows, columns=["language", "carries", "neurons", "count", "share"])
    return beside_controls(table, "share", drawn, least)


def beside_controls(
    table: pd.DataFrame, value: str, controls: Sequence[Sequence[float]], least_sd: Sequence[float]
) -> pd.DataFrame:
    """Add to each row where its value lies among its controls, as one family.

    Args:
        table: A row a value.
        value: The column compared.
        controls: Of each row: the same of every control draw.
        least_sd: Of each row: the least standard deviation that draws must be granted.

    Returns:
        The table with ``placement_columns``, whose interval knows ``least_sd`` too; difference (from the controls'
        mean), p (a t-test of one new draw), p_adjusted (Holm over the table), detectable (the difference that such a
        test finds with 80 % power) and verdict: above, below, or inconclusive. Without two draws they are missing.
    """
    if table.empty:
        return table
    placed = placement_columns(table[value].tolist(), controls)
    draws, sd = placed["control_draws"], np.maximum(placed["control_sd"], least_sd)
    difference, error = table[value].to_numpy(float) - placed["control_mean"], sd * np.sqrt(1 + 1 / draws)
    width = stats.t.isf(SIGNIFICANCE / 2, draws - 1) * error
    placed |= {"control_low": placed["control_mean"] - width, "control_high": placed["control_mean"] + width}
    p = 2 * stats.t.sf(np.abs(difference) / error, draws - 1)
    adjusted = holm(p)
    detectable = width + stats.t.isf(1 - POWER, draws - 1) * error
    verdict = np.select([~(adjusted < SIGNIFICANCE), difference > 0], ["inconclusive", "above"], "below")
    return table.assign(
        **placed, difference=difference, p=p, p_adjusted=adjusted, detectable=detectable, verdict=verdict
    )


def families(
    sets: Mapping[str, Int[np.ndarray, " n"]], known: pd.DataFrame, least_share: float | int
) -> dict[str, pd.DataFrame]:
    """Judge the neurons of each set as a family.

    Args:
        sets: Label -> flat indices.
        known: What is known of each neuron, indexed by flat index.
        least_share: As for ``judged``.
    """
    return {label: judged(known.loc[flat], least_share) for label, flat in sets.items()}
