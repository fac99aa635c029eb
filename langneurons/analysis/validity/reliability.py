"""Would the method find the same neurons again? Scores and selections of two halves of the text, compared.

A method whose scores do not depend on the text at all agrees with itself perfectly: reliability is needed for validity
and does not give it. The nulls catch what is reliable and meaningless.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Bool, Float, Int

from langneurons.errors import LangNeuronsWarning, LanguageError, StatisticsError
from langneurons.identification import Method
from langneurons.recording.accumulation import FOLDS
from langneurons.recording.statistics import ActivationStats, check_statistics
from langneurons.storage import Column, JsonObject, Result, Table, layout
from langneurons.storage.layouts import Layout

ONE_SIDED = 0.9  # share of the choice on one side of the median score, from which on the other side is an accident
EVERY = "overall"  # stands in tables for all languages together

Halves = tuple[ActivationStats, ActivationStats]


@dataclass(frozen=True, eq=False)
class Selection:
    """The neurons a method chose under one label, and the scores it chose by.

    Attributes:
        scores: Scores of every neuron, flat (layer x width + neuron).
        neurons: Flat indices of the neurons that were chosen, increasing.
    """

    scores: Float[np.ndarray, " neuron"]
    neurons: Int[np.ndarray, " chosen"]


def selections(method: Method, stats: ActivationStats) -> dict[str, Selection]:
    """Every language's selection.

    What the method warns of is not passed on: halves and nulls are scored many times, and whoever identifies neurons
    on the whole recording is told there.
    """
    return _selected(method, stats)[0]


def deciding(method: Method, stats: ActivationStats) -> dict[str, Selection]:
    """The selections by which the method decides: one per language, or one in all where its score knows no language."""
    by_language, knows_languages = _selected(method, stats)
    if knows_languages:
        return by_language
    members = [selection.neurons for selection in by_language.values()]
    return {EVERY: Selection(next(iter(by_language.values())).scores, np.unique(np.concatenate(members)))}


def _selected(method: Method, stats: ActivationStats) -> tuple[dict[str, Selection], bool]:
    """Every language's selection, and whether the score knows languages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangNeuronsWarning)
        scores, neurons = method.scores(stats), method.identify(stats)
    empty = np.empty(0, np.int64)
    by_language = {
        language: Selection(scores[language].double().flatten().numpy(), neurons.members.get(language, empty))
        for language in stats.languages
    }
    return by_language, scores.languages is not None


def high_ones(selection: Selection) -> Bool[np.ndarray, " chosen"]:
    """Which of the chosen neurons were chosen for a high score: all, none, or those above the median of all scores.

    Where less than a tenth of the choice lies on one side of the median, that is an accident.
    """
    upper = selection.scores[selection.neurons] > np.median(selection.scores)
    if not len(upper):
        return upper
    if upper.mean() >= ONE_SIDED:
        upper[:] = True
    elif upper.mean() <= 1 - ONE_SIDED:
        upper[:] = False
    return upper


def whole(recording: ActivationStats | Halves) -> ActivationStats:
    """The sum of two halves, or the recording itself."""
    return recording[0] + recording[1] if isinstance(recording, tuple) else recording


FIGURES = ("spearman", "spearman_chosen", "jaccard")
RESAMPLES = 500
LEAST_RANKED = 3  # a rank correlation of two neurons says nothing

Pairs = Mapping[str, tuple[Selection, Selection]]


@dataclass(frozen=True, eq=False, repr=False)
class SplitHalf(Result, kind="split-half", tables=("rows",)):
    """How well a method agrees with itself on two halves of the text.

    Attributes:
        method: The method and its options.
        rows: One row per language and a last one, "overall", their mean. ``spearman``: rank correlation of the scores
            of all neurons; ``spearman_chosen``: of the neurons chosen in either half, which is about -0.5 for noise,
            because a neuron is among them for being extreme in one half; ``jaccard``: chosen in both / chosen in
            either; each with ``_low`` and ``_high``. ``jaccard_chance``: what two random sets of these sizes share.
            ``chosen_first``, ``chosen_second``: how many were chosen. Means over splits; missing where nothing varies.
        interval: What the intervals are.
        level: Level of the intervals.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(
            text="language",
            number=" ".join(f"{name} {name}_low {name}_high" for name in FIGURES)
            + " jaccard_chance chosen_first chosen_second",
        )
    }

    method: str
    rows: pd.DataFrame
    interval: str
    level: float

    @property
    def overall(self) -> dict[str, float]:
        """The mean over languages of every figure."""
        row = self.rows.set_index("language").loc[EVERY]
        return {str(name): float(value) for name, value in row.items()}

    def table(self) -> Table:
        """One line per language: every figure with its interval."""
        columns = {name: Column(bounds=(f"{name}_low", f"{name}_high")) for name in FIGURES}
        columns["jaccard_chance"] = Column("jaccard by chance")
        title, caption = f"Split-half reliability of {self.method}", f"{self.level:.0%} intervals: {self.interval}"
        return Table(self.rows, columns, title, caption)

    @property
    def settings(self) -> dict[str, Any]:
        """The method and what the intervals are."""
        return {"method": self.method, "interval": self.interval, "level": self.level}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        fields = super()._read(folder, content)
        settings = fields.pop("settings")
        layout(text="method interval", share="level").check("the split halves", settings)
        return {**settings, **fields}

    def _check_parts(self) -> None:
        if self.rows["language"].tolist().count(EVERY) != 1:
            raise ValueError(f"one row is needed for {EVERY}")


def split_half(
    method: Method,
    stats: ActivationStats | Halves,
    splits: int = 20,
    seed: int = 0,
    level: float = 0.95,
) -> SplitHalf:
    """Compare what a method says of two halves of the text.

    Of one recording, random halves of its 20 document folds are compared, again and again. The interval then holds the
    middle ``level`` of the splits: it says how much the figure depends on how these documents fell into halves, and
    not how far it would move with other documents; splits share documents, so it is no confidence interval.

    Of two recordings there is one split. The interval then is a percentile bootstrap over neurons (ranks held): how far
    the figure would move with other neurons like these; it says nothing of other documents either.

    Args:
        method: Any method.
        stats: A recording, whose folds know counts above zero and sums only; or, as methods that need histograms
            require, two recordings: of two halves of the documents, or of two sources.
        splits: Number of random halvings of one recording; not used for two.
        seed: Seed of the halvings, or of the bootstrap.
        level: Level of the intervals, between 0 and 1.

    Returns:
        The figures, per language and overall.

    Raises:
        StatisticsError: If the method needs more than the folds hold, documents are too few, or an option is out of
            range.
        LanguageError: If the two recordings hold different languages.

    Example:
        >>> split_half(ln.LAPE(top=0.01), stats, splits=5).overall["jaccard"] > 0.3
        True
    """
    if not 0 < level < 1:
        raise StatisticsError(f"The level of an interval lies between 0 and 1, not at {level}.")
    if splits < 2:
        raise StatisticsError(f"An interval over splits needs at least two, not {splits}.")
    generator = np.random.default_rng(seed)
    for recording in stats if isinstance(stats, tuple) else (stats,):
        check_statistics(recording)
    if isinstance(stats, tuple):
        first, second = stats
        if set(first.languages) != set(second.languages) or first.shape != second.shape:
            raise LanguageError(
                f"Two recordings of the same model and languages are compared, not {first!r} and {second!r}."
            )
        pairs = _pairs(method, first, second.select(first.languages))
        draws, interval = _bootstrap(pairs, generator), f"{RESAMPLES} bootstrap samples of neurons, one split"
        return SplitHalf(repr(method), _table([pairs], draws, level), interval, level)
    several = [_pairs(method, *halves) for halves in _halvings(stats, splits, generator)]
    draws = np.stack([_figures(pairs) for pairs in several])
    return SplitHalf(repr(method), _table(several, draws, level), f"the middle of {splits} splits by document", level)


def rerun(method: Method, stats: ActivationStats, parallel: ActivationStats, seed: int = 0) -> SplitHalf:
    """Compare what a method says of all text and of parallel text only, where every language says the same.

    What survives is not domain: the languages' texts differ in nothing but language.

    Args:
        method: Any method.
        stats: Statistics of all text.
        parallel: Statistics of the parallel text, with the same model.
        seed: Seed of the bootstrap.

    Returns:
        What ``split_half`` gives for two recordings.

    Raises:
        LanguageError: If the two recordings hold different languages.

    Example:
        >>> rerun(ln.LAPE(top=0.01), stats, stats).overall["jaccard"]
        1.0
    """
    return split_half(method, (stats, parallel), seed=seed)


def chance_jaccard(first: int, second: int, neurons: int) -> float:
    """Expected Jaccard of two random sets: sum over the hypergeometric distribution of what they share.

    Args:
        first: Size of one set.
        second: Size of the other.
        neurons: Number of neurons to choose from.

    Example:
        >>> round(chance_jaccard(100, 100, 10_000), 4), chance_jaccard(0, 0, 10)
        (0.0051, 0.0)
    """
    if first == 0 and second == 0:
        return 0.0
    shared = np.arange(max(0, first + second - neurons), min(first, second) + 1)
    weights = scipy.stats.hypergeom.pmf(shared, neurons, first, second)
    return float((weights * shared / (first + second - shared)).sum())


def _halvings(stats: ActivationStats, splits: int, generator: np.random.Generator) -> Iterator[Halves]:
    folds = stats.folds(FOLDS)
    for _ in range(splits):
        order = generator.permutation(FOLDS)
        first, second = (reduce(add, [folds[fold] for fold in part]) for part in np.split(order, [FOLDS // 2]))
        for half in (first, second):
            if 0 in half.tokens.tolist():
                language = half.languages[half.tokens.tolist().index(0)]
                raise StatisticsError(f"A half of the documents of {language!r} has no token: record more documents.")
        yield first, second


def _pairs(method: Method, first: ActivationStats, second: ActivationStats) -> Pairs:
    left, right = selections(method, first), selections(method, second)
    return {language: (left[language], right[language]) for language in left}


def _figures(pairs: Pairs) -> Float[np.ndarray, "language figure"]:
    return np.array([_compared(*pair)(np.ones(len(pair[0].scores))) for pair in pairs.values()])


def _bootstrap(pairs: Pairs, generator: np.random.Generator) -> Float[np.ndarray, "draw language figure"]:
    comparisons, neurons = [_compared(*pair) for pair in pairs.values()], len(next(iter(pairs.values()))[0].scores)
    draws = np.empty((RESAMPLES, len(comparisons), len(FIGURES)))
    for draw in draws:
        counts = np.bincount(generator.integers(0, neurons, neurons), minlength=neurons).astype(float)
        draw[:] = [figures(counts) for figures in comparisons]
    return draws


def _compared(first: Selection, second: Selection) -> Callable[[np.ndarray], list[float]]:
    """Two selections, ranked: their figures, in the order of FIGURES, by how often each neuron counts."""
    either = np.union1d(first.neurons, second.neurons)
    in_both = np.isin(either, np.intersect1d(first.neurons, second.neurons)).astype(float)
    scores = np.stack([first.scores, second.scores], axis=1)
    ranks, ranks_of_either = _ranks(scores), _ranks(scores[either])

    def figures(counts: Float[np.ndarray, " neuron"]) -> list[float]:
        of_either = counts[either]
        total = of_either.sum()
        jaccard = float(of_either @ in_both / total) if total else np.nan
        return [_correlation(ranks, counts), _correlation(ranks_of_either, of_either), jaccard]

    return figures


def _ranks(scores: np.ndarray) -> np.ndarray:
    ranks = scipy.stats.rankdata(scores, axis=0) if len(scores) else scores
    return ranks - (len(scores) + 1) / 2


def _correlation(ranks: np.ndarray, counts: np.ndarray) -> float:
    if np.count_nonzero(counts) < LEAST_RANKED:
        return np.nan
    mean = counts @ ranks / counts.sum()
    moments = (ranks * counts[:, None]).T @ ranks / counts.sum() - np.outer(mean, mean)
    spread = np.sqrt(moments[0, 0] * moments[1, 1])
    return float(moments[0, 1] / spread) if spread > 0 else np.nan


def _table(several: list[Pairs], draws: Float[np.ndarray, "draw language figure"], level: float) -> pd.DataFrame:
    values = known_mean(np.stack([_figures(pairs) for pairs in several]), 0)
    rows = [_sizes(language, [pairs[language] for pairs in several]) for language in several[0]]
    sizes = pd.DataFrame(rows).set_index("language")
    sizes.loc[EVERY] = sizes.mean()
    draws = np.concatenate([draws, known_mean(draws, 1)[:, None]], axis=1)
    values = np.concatenate([values, known_mean(values, 0)[None]])
    columns = {}
    for index, name in enumerate(FIGURES):
        ends = [known_quantiles(of_row, [(1 - level) / 2, (1 + level) / 2]) for of_row in draws[:, :, index].T]
        columns |= {
            name: values[:, index],
            f"{name}_low": [low for low, _ in ends],
            f"{name}_high": [high for _, high in ends],
        }
    return pd.DataFrame(columns, index=sizes.index).join(sizes).reset_index()


def _sizes(language: str, pairs: list[tuple[Selection, Selection]]) -> dict[str, float | str]:
    sizes = [(len(first.neurons), len(second.neurons)) for first, second in pairs]
    neurons = len(pairs[0][0].scores)
    first, second = np.mean(sizes, axis=0).tolist()
    chance = float(np.mean([chance_jaccard(*pair, neurons) for pair in sizes]))
    return {"language": language, "jaccard_chance": chance, "chosen_first": first, "chosen_second": second}


def known_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is a number; NaN where nothing is."""
    count = (~np.isnan(values)).sum(axis)
    return np.where(count > 0, np.nansum(values, axis) / np.maximum(count, 1), np.nan)


def known_quantiles(values: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Quantiles of what is a number; NaN where nothing is."""
    numbers = values[~np.isnan(values)]
    return np.quantile(numbers, shares).tolist() if len(numbers) else [np.nan] * len(shares)
