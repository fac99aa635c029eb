"""What a neuron's value tells about language and label without assuming that means differ: bits, and AUROC."""

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from langneurons.analysis.selectivity.permutation import Design, cell_sums

BINS = 8
SHUFFLES = 20


def bits(design: Design, values: Float[np.ndarray, "text neuron"], seed: int = 0) -> Float[np.ndarray, " neuron"]:
    """Estimate the mutual information between a neuron's value and a factor, given the other factor.

    Values are cut into 8 bins of equal counts at each level of the other factor. What the plug-in estimate gives when
    the factor means nothing is taken away, by 20 of the exchanges that the tests use: so the correction knows that
    translations, and items of a cluster, are not independent. An estimate may therefore be a little below 0.

    Args:
        design: The factor.
        values: One row a text.
        seed: Of the exchanges.

    Returns:
        Bits.
    """
    levels = np.concatenate([design.levels[None].astype(np.int16), design.draws(SHUFFLES, seed)])
    ranks, sizes = _ranks(design, values)
    bins = np.minimum((ranks - 0.5) * BINS // sizes[design.others, None], BINS - 1)
    inside = (bins[..., None] == np.arange(BINS)).astype(float).reshape(len(bins), -1)
    counts = cell_sums(design.totals(inside), levels, design.shape[0])
    joint = counts.reshape(*counts.shape[:3], -1, BINS) / len(values)  # draw, level, other, neuron, bin
    expected = joint.sum(1, keepdims=True) * joint.sum(4, keepdims=True) / joint.sum((1, 4), keepdims=True)
    surprise = np.log2(np.divide(joint, expected, where=joint > 0, out=np.ones_like(joint)))
    information = (joint * surprise).sum((1, 2, 4))
    return information[0] - information[1:].mean(0)


def auroc(design: Design, values: Float[np.ndarray, "text neuron"]) -> Float[np.ndarray, "level neuron"]:
    """Measure how well a neuron's value tells each level of a factor from the others: P(larger) + P(equal) / 2.

    Texts are compared with those of the same level of the other factor, so that a label is told within a language, and
    a language within a label.

    Args:
        design: The factor.
        values: One row a text.

    Returns:
        From 0 to 1; 0.5 tells nothing, NaN where no text of another level is to be told from.
    """
    ranks, sizes = _ranks(design, values)
    level = design.levels[None].astype(np.int16)
    sums = cell_sums(design.totals(ranks), level, design.shape[0])[0]
    counts = cell_sums(design.counts[..., None], level, design.shape[0])[0]
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
