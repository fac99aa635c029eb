"""Labels and languages exchanged among texts: which exchanges a null hypothesis allows, and what they would give.

Texts are not independent: translations of an item say the same, and items of a cluster share a premise or paragraph. So
what is exchanged are whole units, in ways that leave that dependence as it is:

- task: a label moves with all translations of its item; labels change places among the items of a cluster, and the
  labels of whole clusters among clusters of the same size;
- language: a cluster's languages change places, for all its items at once, because its translation into a language is
  one text however many items share it.

Where a factor never varies inside a cluster (labels of documents, languages of texts that are no translations),
clusters exchange what they have, whatever their size. Every exchange is as likely as what was observed if the factor
means nothing (multi-level block permutation, Winkler et al. 2015, doi 10.1016/j.neuroimage.2015.05.092).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import numpy as np
import pandas as pd
from einops import rearrange, reduce
from jaxtyping import Float, Int, Int16
from scipy import optimize, sparse, stats

from langneurons.analysis.decomposition import quadratic_forms
from langneurons.analysis.texts import LabelledTexts
from langneurons.effects.resampling import POWER, SIGNIFICANCE

Factor = Literal["language", "task"]
ENTRIES = 8_000_000
TIE = 1e-9
COARSE = 10  # exchanges as extreme as what was observed, below which a p-value is estimated badly


@dataclass(frozen=True, eq=False)
class Design:
    """One factor (language or task label) of every text, and what may be exchanged if it means nothing.

    Attributes:
        factor: Name of the factor.
        levels: Level of each unit.
        blocks: Cluster of each unit.
        units: Unit of each text: an item for the task, a cluster in one language for the language.
        others: Level of the other factor of each text.
        shape: Number of levels of the factor, and of the other factor.
    """

    factor: Factor
    levels: Int[np.ndarray, " unit"]
    blocks: Int[np.ndarray, " unit"]
    units: Int[np.ndarray, " text"]
    others: Int[np.ndarray, " text"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, texts: LabelledTexts, factor: Factor) -> "Design":
        """The design of labelled texts, languages one after the other.

        Args:
            texts: Texts in several languages.
            factor: "language" or "task".
        """
        items = np.concatenate(
            [texts.known.index.get_indexer(pd.Index(table["item"].to_numpy())) for table in texts.items.values()]
        )
        language = np.repeat(np.arange(len(texts.items)), [len(table) for table in texts.items.values()])
        label_of = np.searchsorted(texts.labels, texts.known["label"])
        cluster_of = pd.factorize(texts.known["cluster"])[0]
        if factor == "task":
            sizes = len(texts.labels), len(texts.languages)
            return cls(factor, label_of, cluster_of, items, language, sizes)
        pairs = cluster_of[items] * len(texts.languages) + language
        _, first, units = np.unique(pairs, return_index=True, return_inverse=True)
        sizes = len(texts.languages), len(texts.labels)
        return cls(factor, language[first], cluster_of[items][first], units, label_of[items], sizes)

    @property
    def observed(self) -> Int[np.ndarray, " text"]:
        """The factor's level of each text."""
        return self.levels[self.units]

    def draws(self, count: int, seed: int) -> Int16[np.ndarray, "draw unit"]:
        """Exchange levels at random.

        Args:
            count: Number of draws.
            seed: Seed of the draws.

        Returns:
            The level of each unit in every draw.
        """
        random = np.random.default_rng([seed, len(self.levels), self.factor == "task"])
        order = np.argsort(self.blocks, kind="stable")
        sizes = np.bincount(self.blocks)
        starts = np.cumsum(sizes) - sizes
        levels, blocks = self.levels[order].astype(np.int16), self.blocks[order]
        draws = np.empty((count, len(levels)), np.int16)
        if (levels == levels[starts][blocks]).all():
            draws[:, order] = random.permuted(np.tile(levels[starts], (count, 1)), axis=1)[:, blocks]
            return draws
        for first in range(0, count, rows := max(1, ENTRIES // len(levels))):
            part = draws[first : first + rows]
            within = np.argsort(blocks + random.random(part.shape), axis=1) - starts[blocks]
            whole = starts[_same_size_exchanges(sizes, len(part), random)][:, blocks]
            part[:, order] = levels[whole + within]
        return draws

    def totals(self, values: Float[np.ndarray, "text neuron"]) -> Float[np.ndarray, "other unit neuron"]:
        """Sum values over the texts of each unit and level of the other factor: they never part."""
        return rearrange(self._belongs @ values, "(other unit) neuron -> other unit neuron", other=self.shape[1])

    @cached_property
    def counts(self) -> Float[np.ndarray, "other unit"]:
        """Number of texts that each unit has at each level of the other factor."""
        return rearrange(np.asarray(self._belongs.sum(1)), "(other unit) -> other unit", other=self.shape[1])

    def cell_sums(
        self, totals: Float[np.ndarray, "other unit neuron"], levels: Int16[np.ndarray, "draw unit"] | None = None
    ) -> Float[np.ndarray, "draw level other neuron"]:
        """Sum units by their levels.

        Args:
            totals: What ``totals`` gives.
            levels: What ``draws`` gives; by default the levels that were observed, as one draw.
        """
        levels = self.levels[None] if levels is None else levels
        belongs = (levels[:, None] == np.arange(self.shape[0])[:, None]).astype(float)
        belongs = rearrange(belongs, "draw level unit -> (draw level) unit")
        sums = np.stack([belongs @ other for other in totals], axis=1)
        return rearrange(sums, "(draw level) other neuron -> draw level other neuron", level=self.shape[0])

    @cached_property
    def _belongs(self) -> sparse.csr_array:
        rows, texts = self.others * len(self.levels) + self.units, np.arange(len(self.units))
        size = self.shape[1] * len(self.levels), len(self.units)
        return sparse.csr_array((np.ones(len(texts)), (rows, texts)), shape=size)


@dataclass(frozen=True, eq=False)
class Tested:
    """What exchanges gave, for every neuron.

    Attributes:
        p: How often an exchange gave as large a sum of squares: of the factor, and of its interaction with the other.
        null: Mean sum of squares of the exchanges: what chance explains.
        detectable: The factor's true sum of squares that one 5 % test finds with 80 % power; infinite where no outcome
            could be significant. Overstated where there is an effect, which then is part of what exchanges give.
    """

    p: Float[np.ndarray, "2 neuron"]
    null: Float[np.ndarray, "2 neuron"]
    detectable: Float[np.ndarray, " neuron"]


@dataclass(frozen=True, eq=False)
class ExchangeTest:
    """Tests of a factor, and of its interaction with the other, against exchanges of its levels.

    A neuron whose p-value is too coarse after ``permutations`` exchanges (fewer than 10 gave as much) gets ``finest``.

    With every item in every language, a label's common effect drops out of what an exchange does to the interaction, so
    that its test is exact whether or not there is one; with missing translations, nearly so.

    Attributes:
        design: The factor.
        permutations: Exchanges of every neuron.
        finest: Exchanges of those that need more.
        seed: Seed of the exchanges.
    """

    design: Design
    permutations: int
    finest: int
    seed: int

    def __call__(self, values: Float[np.ndarray, "text neuron"]) -> Tested:
        """Test some neurons.

        Args:
            values: One row per text.
        """
        centred = values - values.mean(0)
        totals, ties = self.design.totals(centred), TIE * np.square(centred).sum(0)
        observed = _squares(self.design, totals, self.design.levels[None].astype(np.int16))
        null = _squares(self.design, totals, self._draws)
        extreme = (null >= observed - ties).sum(1)
        exchanges = np.full(extreme.shape[1], self.permutations)
        coarse = np.flatnonzero((extreme < COARSE).any(0))
        if self.finest > self.permutations and len(coarse):
            more = _squares(self.design, totals[..., coarse], self._finer_draws)
            extreme[:, coarse] += (more >= (observed - ties)[..., coarse]).sum(1)
            exchanges[coarse] = self.finest
        expected = null.mean(1)
        within_reach = (null[0] >= null[0].max(0) - ties).mean(0) < SIGNIFICANCE
        detectable = np.where(within_reach, self._times_null * expected[0], np.inf)
        return Tested((1 + extreme) / (1 + exchanges), expected, detectable)

    @cached_property
    def _draws(self) -> Int16[np.ndarray, "draw unit"]:
        return self.design.draws(self.permutations, self.seed)

    @cached_property
    def _finer_draws(self) -> Int16[np.ndarray, "draw unit"]:
        return self.design.draws(self.finest - self.permutations, self.seed + 1)

    @cached_property
    def _times_null(self) -> float:
        """How many times the mean of its null a sum of squares must be, for 80 % power in one 5 % test.

        Under the null it is about a chi-square times its mean / degrees of freedom, whose noncentrality an effect
        raises. The exchanges' own mean knows how much translations and clusters count.
        """
        counts = self.design.cell_sums(self.design.counts[..., None])
        form = quadratic_forms(counts[..., 0])["language"][0]
        degrees = round(float((np.diagonal(form) * counts.ravel()).sum()))
        if not degrees:
            return np.inf
        bar = stats.chi2.isf(SIGNIFICANCE, degrees)
        noncentrality = optimize.brentq(lambda extra: stats.ncx2.sf(bar, degrees, extra) - POWER, 1e-3, 1e3)
        return cast(float, noncentrality) / degrees


def _squares(
    design: Design, totals: Float[np.ndarray, "other unit neuron"], levels: Int16[np.ndarray, "draw unit"]
) -> Float[np.ndarray, "2 draw neuron"]:
    """Sums of squares of the factor given the other one, and of the interaction, for every draw of levels."""
    count, others = design.shape
    cells, neurons = count * others, totals.shape[2]
    squares = np.empty((2, len(levels), neurons))
    for first in range(0, len(levels), rows := max(1, ENTRIES // (count * levels.shape[1] + cells * neurons))):
        part = levels[first : first + rows]
        counts = design.cell_sums(design.counts[..., None], part)[..., 0]
        forms = quadratic_forms(counts[:1] if (counts == counts[0]).all() else counts)
        sums = rearrange(design.cell_sums(totals, part), "draw level other neuron -> draw (level other) neuron")
        for place, name in enumerate(("language", "interaction")):
            squares[place, first : first + rows] = np.einsum("dcn,dcn->dn", forms[name] @ sums, sums)
    return squares


def _same_size_exchanges(
    sizes: Int[np.ndarray, " block"], count: int, random: np.random.Generator
) -> Int[np.ndarray, "draw block"]:
    """From which block each block takes its levels: one of its own size."""
    sources = np.tile(np.arange(len(sizes)), (count, 1))
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        sources[:, same] = random.permuted(np.tile(same, (count, 1)), axis=1)
    return sources


BINS = 8
SHUFFLES = 20


def bits(design: Design, values: Float[np.ndarray, "text neuron"], seed: int = 0) -> Float[np.ndarray, " neuron"]:
    """Estimate the mutual information between a neuron's value and a factor, given the other factor.

    Values are cut into 8 bins of equal counts at each level of the other factor. What the plug-in estimate gives when
    the factor means nothing is taken away, by 20 of the exchanges that the tests use: so the correction knows that
    translations, and items of a cluster, are not independent. An estimate may therefore be a little below 0.

    Args:
        design: The factor.
        values: One row per text.
        seed: Seed of the exchanges.

    Returns:
        Bits.
    """
    levels = np.concatenate([design.levels[None].astype(np.int16), design.draws(SHUFFLES, seed)])
    ranks, sizes = _ranks(design, values)
    bins = np.minimum((ranks - 0.5) * BINS // sizes[design.others, None], BINS - 1)
    inside = rearrange((bins[..., None] == np.arange(BINS)).astype(float), "text neuron bin -> text (neuron bin)")
    counts = design.cell_sums(design.totals(inside), levels)
    joint = rearrange(counts, "draw level other (neuron bin) -> draw level other neuron bin", bin=BINS) / len(values)
    expected = joint.sum(1, keepdims=True) * joint.sum(4, keepdims=True) / joint.sum((1, 4), keepdims=True)
    surprise = np.log2(np.divide(joint, expected, where=joint > 0, out=np.ones_like(joint)))
    information = reduce(joint * surprise, "draw level other neuron bin -> draw neuron", "sum")
    return information[0] - information[1:].mean(0)


def auroc(design: Design, values: Float[np.ndarray, "text neuron"]) -> Float[np.ndarray, "level neuron"]:
    """Measure how well a neuron's value tells each level of a factor from the others: P(larger) + P(equal) / 2.

    Texts are compared with those of the same level of the other factor, so that a label is told within a language, and
    a language within a label.

    Args:
        design: The factor.
        values: One row per text.

    Returns:
        From 0 to 1; 0.5 tells nothing, NaN where no text of another level is to be told from.
    """
    ranks, sizes = _ranks(design, values)
    sums = design.cell_sums(design.totals(ranks))[0]
    counts = design.cell_sums(design.counts[..., None])[0]
    pairs = (counts * (sizes[:, None] - counts)).sum(1)
    wins = (sums - counts * (counts + 1) / 2).sum(1)
    return np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs > 0)


def _ranks(
    design: Design, values: Float[np.ndarray, "text neuron"]
) -> tuple[Float[np.ndarray, "text neuron"], Int[np.ndarray, " other"]]:
    """Rank values among the texts of the same level of the other factor, and count those."""
    ranks = np.empty_like(values)
    for other in range(design.shape[1]):
        same = design.others == other
        ranks[same] = stats.rankdata(values[same], axis=0)
    return ranks, np.bincount(design.others, minlength=design.shape[1])
