"""Methods that ask how well a neuron detects a language's tokens: average precision and the area under the ROC curve.

A neuron is read as a detector of language l: the tokens of l are positives, those of every other language negatives,
each other language weighted equally and l one k-th of all k languages. Languages have histograms with different edges,
so each language's cumulative distribution is evaluated at common points, between which tokens count as tied.
Inside its own bins a language's tokens are taken as spread evenly: many tokens of exactly one value, as ReLU gives at
``post``, are read as spread over a bin (at ``act`` they are not, bins are of z).

Standard errors carry the histograms' sampling variance through the score to first order (for the area this is DeLong's
variance, 1988) and multiply it with the design effect of the documents: folds have no histograms, so it is an
approximation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from langneurons.identification.activation import check_several
from langneurons.identification.firing import DESIGN_EFFECT, degrees_of_freedom, design_effect
from langneurons.identification.scores import Scores
from langneurons.identification.selection import PER_LANGUAGE, Ranking, Side, share
from langneurons.recording.distributions import ActivationFunction, ValueCdf
from langneurons.recording.statistics import ActivationStats

POINTS = 256
CHUNK = 1024

# (positives, negatives) per cell -> score, and its slope in each cell's positives and negatives
Detection = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class TokenAP(Ranking):
    """Neurons that detect a language's tokens with the highest, or lowest, average precision.

    Average precision is the mean, over the tokens of language l, of the precision at that token's activation:
    the share of l among all tokens at least as high, with l one k-th of all tokens and the other k - 1 languages
    weighted equally. A random neuron scores 1 / k. In each language round(top x layers x width) neurons are kept.

    Source: Kojima et al. 2024 (arXiv 2404.02431), who take the mean activation of a sentence as the detector; this
    takes each token's, which needs no second recording.

    Args:
        top: Share of all neurons to keep in each language.
        side: ``"top"``, ``"bottom"`` (lowest average precision: neurons that are low in the language), or ``"both"``
            (half from each).

    Example:
        >>> TokenAP(top=0.01, side="both")
        TokenAP(top=0.01, side='both')
    """

    top: float = share(PER_LANGUAGE)
    side: Side = "top"

    def scores(self, stats: ActivationStats) -> Scores:
        """Average precision of every neuron in every language."""
        check_several(stats)
        prior = 1 / len(stats.languages)
        return _detection_scores(stats, repr(self), lambda p, n: average_precision(p, n, prior))


@dataclass(frozen=True)
class AUROC(Ranking):
    """Neurons that separate a language's tokens from the others' best, as the area under the ROC curve.

    The score is P(x > y) + P(x = y) / 2 for x a token of language l and y a token of another language, each other
    language weighted equally: 0.5 for a random neuron, 0 for one that is always lower in l. In each language
    round(top x layers x width) neurons are kept.

    Args:
        top: Share of all neurons to keep in each language.
        side: ``"top"``, ``"bottom"`` (smallest area), or ``"both"`` (half from each).

    Example:
        >>> AUROC(top=0.01)
        AUROC(top=0.01, side='top')
    """

    top: float = share(PER_LANGUAGE)
    side: Side = "top"

    def scores(self, stats: ActivationStats) -> Scores:
        """Area under the ROC curve of every neuron in every language."""
        return _detection_scores(stats, repr(self), area_under_roc)


def area_under_roc(
    positives: Float[Tensor, "*any cell"], negatives: Float[Tensor, "*any cell"]
) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any cell"], Float[Tensor, "*any cell"]]:
    """Area under the ROC curve of two distributions over increasing cells; ties inside a cell count half.

    Returns:
        The area, and its slope in the positives and negatives of every cell.

    Example:
        >>> float(area_under_roc(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]))[0])
        0.75
    """
    below = negatives.cumsum(-1) - negatives / 2
    above = positives.sum(-1, keepdim=True) - positives.cumsum(-1) + positives / 2
    return (positives * below).sum(-1), below, above


def average_precision(
    positives: Float[Tensor, "*any cell"], negatives: Float[Tensor, "*any cell"], prior: float, tied: float = 0.5
) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any cell"], Float[Tensor, "*any cell"]]:
    """Average precision of two distributions over increasing cells.

    Args:
        positives: Share of the positives in each cell.
        negatives: Share of the negatives in each cell.
        prior: Share of positives among all.
        tied: Share of its own cell that counts as at least as high: a half where the values of a cell are not known to
            be equal, all of it (1, as scikit-learn counts) where they are.

    Returns:
        The average precision, and its slope in the positives and negatives of every cell.

    Example:
        >>> float(average_precision(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), 0.5)[0])
        1.0
    """
    above = _at_least(positives, tied) * prior
    negatives_above = _at_least(negatives, tied) * (1 - prior)
    total = above + negatives_above
    total = torch.where(total > 0, total, 1.0)
    precision = above / total
    gained = positives * negatives_above / total**2 * prior
    lost = -positives * above / total**2 * (1 - prior)
    return (positives * precision).sum(-1), precision + _at_most(gained, tied), _at_most(lost, tied)


def _at_least(shares: Tensor, tied: float) -> Tensor:
    """Share in higher cells and, as far as it is ``tied``, in this one."""
    return shares.sum(-1, keepdim=True) - shares.cumsum(-1) + tied * shares


def _at_most(values: Tensor, tied: float) -> Tensor:
    """Sum over lower cells and, as far as it is ``tied``, over this one."""
    return values.cumsum(-1) - (1 - tied) * values


def detection(cells: Float[Tensor, "language neuron cell"], detect: Detection) -> Float[Tensor, "language neuron"]:
    """Score each language's distribution over cells against the others', each of them weighted equally."""
    total = cells.sum(0)
    return torch.stack([detect(shares, (total - shares) / (len(cells) - 1))[0] for shares in cells])


def _detection_scores(stats: ActivationStats, method: str, detect: Detection) -> Scores:
    check_several(stats)
    return Scores(
        values=torch.stack([_layer_scores(stats, layer, detect) for layer in range(stats.shape[0])], dim=1),
        languages=stats.languages,
        method=method,
        uncertainty=DESIGN_EFFECT,
        degrees_of_freedom=degrees_of_freedom(stats),
        compute_standard_error=lambda: _standard_error(stats, detect),
        bounds=(0.0, 1.0),
    )


def _layer_scores(stats: ActivationStats, layer: int, detect: Detection) -> Float[Tensor, "language neuron"]:
    cells = _cells(stats, layer)
    return torch.cat([detection(part, detect) for part in cells.split(CHUNK, dim=1)], dim=1)


def _standard_error(stats: ActivationStats, detect: Detection) -> Float[Tensor, "language layer neuron"]:
    tokens = stats.tokens[:, None, None].double()
    per_token = torch.stack([design_effect(stats, language) for language in stats.languages]) / tokens
    rows = []
    for layer in range(stats.shape[0]):
        cells = _cells(stats, layer).split(CHUNK, dim=1)
        weights = per_token[:, layer].split(CHUNK, dim=1)
        pairs = zip(cells, weights, strict=True)
        rows.append(torch.cat([first_order_variances(part, weight, detect) for part, weight in pairs], dim=1))
    return torch.stack(rows, dim=1).sqrt()


def first_order_variances(
    cells: Float[Tensor, "language neuron cell"], per_token: Float[Tensor, "language #neuron"], detect: Detection
) -> Float[Tensor, "language neuron"]:
    """Variance of every score to first order: that of its slope under every language's own distribution.

    Args:
        cells: Share of each language's tokens in each cell.
        per_token: Variance of a mean over the language's tokens, in variances of one token: 1 / n where they are
            independent.
        detect: The score.
    """
    total, others = cells.sum(0), len(cells) - 1
    rows = []
    for i, positives in enumerate(cells):
        _, of_positives, of_negatives = detect(positives, (total - positives) / others)
        slopes = [of_positives if j == i else of_negatives / others for j in range(len(cells))]
        variances = torch.stack([_spread(shares, slope) for shares, slope in zip(cells, slopes, strict=True)])
        rows.append((variances * per_token).sum(0))
    return torch.stack(rows)


def _spread(shares: Tensor, slope: Tensor) -> Tensor:
    mean = (shares * slope).sum(-1, keepdim=True)
    return (shares * (slope - mean) ** 2).sum(-1)


def _cells(stats: ActivationStats, layer: int) -> Float[Tensor, "language neuron cell"]:
    """Share of each language's tokens in common cells, ordered by the activation's value."""
    cdfs = stats.cdfs(layer)
    points = _common_points(cdfs)
    at_most = torch.stack([cdf.coordinate(_coordinate(cdf, points)) for cdf in cdfs])
    cells = at_most.diff(dim=-1, prepend=torch.zeros_like(at_most[..., :1]))  # the first cell: all of it at the lowest
    act_fn = cdfs[0].act_fn
    return cells if act_fn is None else _ordered_by_value(cells, points, act_fn)


def _common_points(cdfs: Sequence[ValueCdf]) -> Float[Tensor, "neuron point"]:
    """Points from the lowest to the highest, spread as all languages' edges are: in z at ``act``, else in values."""
    edges = [
        cdf.coordinate.edges if cdf.scale is None else torch.sinh(cdf.coordinate.edges) * cdf.scale.double()[:, None]
        for cdf in cdfs
    ]
    ordered = torch.cat(edges, dim=1).sort(dim=1).values
    places = torch.linspace(0, ordered.shape[1] - 1, min(POINTS, ordered.shape[1])).round().long()
    return ordered[:, places]


def _coordinate(cdf: ValueCdf, points: Float[Tensor, "neuron point"]) -> Float[Tensor, "neuron point"]:
    return points if cdf.scale is None else torch.asinh(points / cdf.scale.double()[:, None])


def _ordered_by_value(
    cells: Float[Tensor, "language neuron cell"], points: Float[Tensor, "neuron point"], act_fn: ActivationFunction
) -> Float[Tensor, "language neuron cell"]:
    """Reorder cells of z by act_fn(z), which need not rise with z; cells of equal value become one."""
    middles = torch.cat([points[:, :1], (points[:, 1:] + points[:, :-1]) / 2], dim=1)
    values = torch.from_numpy(np.interp(middles.numpy(), act_fn.inputs.numpy(), act_fn.outputs.numpy()))
    values, order = values.sort(dim=1, stable=True)
    return joined_ties(torch.stack([shares.gather(1, order) for shares in cells]), values)


def joined_ties(
    cells: Float[Tensor, "language neuron cell"], values: Float[Tensor, "neuron cell"]
) -> Float[Tensor, "language neuron cell"]:
    """Make one cell, the last, of those that stand for equal values; values must not fall.

    Example:
        >>> joined_ties(torch.tensor([[[0.25, 0.25, 0.5]]]), torch.tensor([[1.0, 1.0, 2.0]])).tolist()
        [[[0.0, 0.5, 0.5]]]
    """
    last_of_value = torch.nn.functional.pad(values[:, 1:] > values[:, :-1], (0, 1), value=True)
    at_most = torch.where(last_of_value, cells.cumsum(-1), 0.0).cummax(-1).values
    return at_most.diff(dim=-1, prepend=torch.zeros_like(at_most[..., :1]))
