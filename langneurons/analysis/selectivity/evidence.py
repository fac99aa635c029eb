"""Everything about single neurons that does not depend on which set they are in."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from tqdm import tqdm

from langneurons.analysis.selectivity.decomposition import Decomposition, ratio
from langneurons.analysis.selectivity.information import auroc, bits
from langneurons.analysis.selectivity.permutation import Design, ExchangeTest, Factor
from langneurons.analysis.selectivity.reading import Readings

AT_ONCE = 128  # neurons
FACTORS: tuple[Factor, ...] = ("language", "task")
# By which exchanges each source is tested: the interaction by those of labels, as the label itself.
TEST_OF = {"language": ("language", 0), "task": ("task", 0), "interaction": ("task", 1)}


def neuron_evidence(
    readings: Readings,
    decomposition: Decomposition,
    chosen: Int[np.ndarray, " chosen"],
    permutations: int,
    finest: int,
    seed: int,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test neurons against exchanges of languages and labels, and measure what their values tell.

    Args:
        readings: With the values of these neurons.
        decomposition: Of the readings.
        chosen: Flat indices, as they were read.
        permutations: As for ``ExchangeTest``.
        finest: As for ``ExchangeTest``.
        seed: Of the exchanges.
        progress: Show a progress bar on standard error.

    Returns:
        Two tables indexed by flat index. The first has layer, neuron and shares as ``Decomposition.table`` gives them;
        of language, task and interaction the p-value (language_p, ...) and the partial share beyond what chance
        explains (language_excess, ...); language_detectable and task_detectable, the partial shares that one 5 % test
        finds with 80 % power; language_bits and task_bits. The second has the AUROC of every language and label, a
        column each.
    """
    designs = {factor: Design.of(readings.texts, factor) for factor in FACTORS}
    tests = {factor: ExchangeTest(design, permutations, finest, seed) for factor, design in designs.items()}
    columns: dict[str, list[np.ndarray]] = {}
    with tqdm(total=len(chosen), unit="neuron", disable=not progress) as bar:
        for values in _columns(readings, decomposition, chosen):
            for name, found in _measured(designs, tests, values, seed).items():
                columns.setdefault(name, []).append(found)
            bar.update(values.shape[1])
    measured = {name: np.concatenate(parts, axis=-1) for name, parts in columns.items()}
    tells = {(factor, level): measured[f"{factor}_auroc"][place] for factor, place, level in _levels(readings)}
    index = pd.Index(chosen, name="flat")
    told = pd.DataFrame(tells, index=index)
    told.columns = pd.MultiIndex.from_tuples(tells, names=["factor", "level"])
    squares = {name: values.ravel()[chosen] for name, values in decomposition.squares.items()}
    table = decomposition.table().loc[chosen].assign(**_compared(squares, measured))
    return table.set_index(index), told


def all_values(readings: Readings, columns: Int[np.ndarray, " column"]) -> Float[np.ndarray, "text column"]:
    """Read what some of the chosen neurons were on every text, languages one after the other."""
    parts = [readings.values[language][:, columns] for language in readings.texts.languages]
    return np.concatenate(parts).astype(float)


def _columns(
    readings: Readings, decomposition: Decomposition, chosen: Int[np.ndarray, " chosen"]
) -> Iterator[Float[np.ndarray, "text neuron"]]:
    """Values of a few neurons at a time; of those that differ by rounding only, zeros."""
    changes = decomposition.squares["total"].ravel()[chosen] > 0
    for first in range(0, len(chosen), AT_ONCE):
        columns = np.arange(first, min(first + AT_ONCE, len(chosen)))
        yield all_values(readings, columns) * changes[columns]


def _measured(
    designs: Mapping[str, Design],
    tests: Mapping[str, ExchangeTest],
    values: Float[np.ndarray, "text neuron"],
    seed: int,
) -> dict[str, np.ndarray]:
    found = {}
    for factor, design in designs.items():
        test = tests[factor](values)
        found |= {
            f"{factor}_p": test.p,
            f"{factor}_null": test.null,
            f"{factor}_least": test.detectable,
            f"{factor}_bits": bits(design, values, seed),
            f"{factor}_auroc": auroc(design, values),
        }
    return found


def _compared(squares: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turn sums of squares and tests of both factors into columns."""
    found, residual = {}, squares["residual"]
    for source, (factor, part) in TEST_OF.items():
        found[f"{source}_p"] = measured[f"{factor}_p"][part]
        chance = measured[f"{factor}_null"][part]
        found[f"{source}_excess"] = ratio(squares[source] - chance, squares[source] + residual)
    for factor in FACTORS:
        least = measured[f"{factor}_least"]
        reachable = np.isfinite(least)
        finite = np.where(reachable, least, 0)
        found[f"{factor}_detectable"] = np.where(reachable, ratio(finite, finite + residual), np.inf)
        found[f"{factor}_bits"] = measured[f"{factor}_bits"]
    return found


def _levels(readings: Readings) -> list[tuple[str, int, str]]:
    named = {"language": readings.texts.languages, "task": readings.texts.labels}
    return [(factor, place, level) for factor in FACTORS for place, level in enumerate(named[factor])]
