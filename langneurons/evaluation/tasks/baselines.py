"""What a task's accuracy is worth without the model: what chance, and classifiers of the bare text, reach."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Int
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

FOLDS = 5
_FEATURES = 2**14


def label_references(items: pd.DataFrame, labels: Sequence[str]) -> dict[str, float]:
    """Measure what can be had without a model on items of two texts and a label.

    Args:
        items: Columns cluster, premise, hypothesis and label.
        labels: All labels there are.

    Returns:
        Accuracy of: chance; "majority", the most frequent label for every item; "hypothesis only", a classifier that
        never sees the premise (Gururangan et al. 2018; Poliak et al. 2018); "bag of words", one that sees both without
        order. The classifiers are cross-validated over clusters, and left out where these are fewer than five.

    Example:
        >>> import pandas as pd
        >>> from langneurons.evaluation.tasks.baselines import label_references
        >>> said = {"yes": "entailment", "no": "contradiction"}
        >>> rows = [(i, "It rains.", f"{word}, {i}", label) for i in range(10) for word, label in said.items()]
        >>> label_references(pd.DataFrame(rows, columns=["cluster", "premise", "hypothesis", "label"]), ["a", "b", "c"])
        {'chance': 0.333..., 'majority': 0.5, 'hypothesis only': 1.0, 'bag of words': 1.0}
    """
    columns = (tuple(items[name]) for name in ("cluster", "premise", "hypothesis", "label"))
    return dict(_references(*columns, len(labels)))


@lru_cache(maxsize=32)  # the same items are asked in several protocols
def _references(
    clusters: tuple, premises: tuple[str, ...], hypotheses: tuple[str, ...], labels: tuple[str, ...], possible: int
) -> dict[str, float]:
    gold, cluster = np.array(labels), pd.factorize(np.array(clusters))[0]
    found = {"chance": 1 / possible, "majority": max(Counter(labels).values()) / len(labels)}
    if len(np.unique(cluster)) < FOLDS:
        return found
    hypothesis = _counts(hypotheses)
    both = csr_matrix(hstack([_counts(premises), hypothesis]))
    return {
        **found,
        "hypothesis only": cross_validated_accuracy(hypothesis, gold, cluster),
        "bag of words": cross_validated_accuracy(both, gold, cluster),
    }


def cross_validated_accuracy(features: csr_matrix, gold: np.ndarray, cluster: Int[np.ndarray, " item"]) -> float:
    """Fit a logistic regression on four fifths of the clusters and predict the rest, in turn.

    Args:
        features: A row an item.
        gold: The label of each item.
        cluster: The cluster of each; none is on both sides.

    Returns:
        The share of items predicted right.
    """
    right = 0
    for train, test in GroupKFold(FOLDS).split(features, gold, cluster):
        if len(set(gold[train])) == 1:
            predicted = np.full(len(test), gold[train][0])
        else:
            # A feature that no training item has would get no weight: without them a fit takes a fraction of the time.
            had = np.unique(features[train].indices)
            fitted = LogisticRegression(max_iter=200).fit(features[train][:, had], gold[train])
            predicted = fitted.predict(features[test][:, had])
        right += int((predicted == gold[test]).sum())
    return right / len(gold)


def _counts(texts: Sequence[str]) -> csr_matrix:
    """Character n-grams stand for words, so that no language needs a segmenter."""
    vectorizer = HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=_FEATURES, alternate_sign=False)
    return csr_matrix(vectorizer.transform(texts))
