"""Sparse probes: how well a few neurons predict label or language on items they were not fitted on."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from langneurons.analysis.selectivity.permutation import Design
from langneurons.errors import TaskError

FOLDS = 3
ATTEMPTS = 10  # at a division of few clusters that keeps every class to be fitted


class Probes:
    """Logistic regressions on few neurons (Gurnee et al. 2023, arXiv 2305.01610), fitted and tested on other clusters.

    A label is predicted within languages: the mean that a neuron has in each language, over the training texts, is
    taken away first, as type II sums of squares do. The k neurons are those, of the set, that differ most between the
    classes (F) in the training texts alone.

    Args:
        design: Design of what is predicted: language or task label.
        seed: Seed of the division into three parts, each tested by what the other two fitted; a cluster is in one part.

    Attributes:
        chance: The accuracy of a probe that knows nothing.

    Raises:
        TaskError: If some class is in fewer than two clusters, or clusters cannot be divided so that every class is
            there to be fitted.
    """

    def __init__(self, design: Design, seed: int = 0) -> None:
        self._design = design
        self.chance = 1 / design.shape[0]
        classes, clusters = design.observed, design.blocks[design.units]
        least = min(len(np.unique(clusters[classes == level])) for level in np.unique(classes))
        if least < 2:
            raise TaskError(
                f"A probe needs every class of {design.factor} in two clusters, one has {least}: give more clusters, "
                "or probe_sizes=() to leave probes out."
            )
        for attempt in range(ATTEMPTS):
            splits = StratifiedGroupKFold(min(FOLDS, least), shuffle=True, random_state=seed + attempt)
            self._folds = list(splits.split(classes[:, None], classes, clusters))
            if all(len(np.unique(classes[train])) == design.shape[0] for train, _ in self._folds):
                return
        raise TaskError(
            f"The {len(np.unique(clusters))} clusters cannot be divided so that every class of {design.factor} is "
            "there to be fitted: give more clusters, or probe_sizes=() to leave probes out."
        )

    def accuracy(self, values: Float[np.ndarray, "text neuron"], sizes: Sequence[int]) -> dict[int, float]:
        """Fit and test probes of several sizes.

        Args:
            values: One row per text, one column per neuron of the set.
            sizes: Numbers of neurons that probes read.

        Returns:
            Size -> balanced accuracy (the mean over classes of the share found) on the texts left out; sizes beyond the
            set are left out.
        """
        classes = self._design.observed
        fitting = [size for size in sizes if size <= values.shape[1]]
        predicted = {size: np.empty_like(classes) for size in fitting}
        for train, test in self._folds:
            prepared = self._prepared(values, train)
            order = _by_difference(prepared[train], classes[train])
            for size in fitting:
                best = order[:size]
                probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3))
                predicted[size][test] = probe.fit(prepared[train][:, best], classes[train]).predict(
                    prepared[test][:, best]
                )
        return {size: float(balanced_accuracy_score(classes, guesses)) for size, guesses in predicted.items()}

    def _prepared(
        self, values: Float[np.ndarray, "text neuron"], train: Int[np.ndarray, " train"]
    ) -> Float[np.ndarray, "text neuron"]:
        if self._design.factor == "language":
            return values
        others = self._design.others
        among = (others[train] == np.arange(self._design.shape[1])[:, None]).astype(float)
        means = among @ values[train] / np.maximum(among.sum(1, keepdims=True), 1)
        return values - means[others]


def _by_difference(
    values: Float[np.ndarray, "text neuron"], classes: Int[np.ndarray, " text"]
) -> Int[np.ndarray, " neuron"]:
    """Neurons in the order of how much they differ between classes, those that never change last."""
    changes = np.ptp(values, axis=0) > 0
    difference = np.full(values.shape[1], -1.0)
    if changes.any():
        difference[changes] = np.nan_to_num(f_classif(values[:, changes], classes)[0], posinf=np.finfo(float).max)
    return np.argsort(-difference, kind="stable")
