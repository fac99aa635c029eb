import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from langneurons.analysis.permutation import Design, auroc, bits
from langneurons.analysis.probing import Probes
from langneurons.analysis.texts import LabelledTexts
from tests.analysis.selectivity.test_permutation import DOCUMENTS, PREMISES, simulated


def test_auroc_is_that_of_scikit_learn_within_each_language():
    values = np.round(simulated(PREMISES, neurons=4), 1)  # with ties
    design = Design.of(PREMISES, "task")
    found = auroc(design, values)
    for neuron in range(4):
        for level in range(3):
            by_language = [
                roc_auc_score(design.observed[design.others == other] == level, values[design.others == other, neuron])
                for other in range(3)
            ]
            assert found[level, neuron] == pytest.approx(np.mean(by_language))


@pytest.mark.parametrize("texts", [DOCUMENTS, PREMISES])
@pytest.mark.parametrize("factor", ["language", "task"])
def test_a_value_that_tells_nothing_has_no_bits_on_average(texts, factor):
    found = bits(Design.of(texts, factor), simulated(texts, neurons=300))
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(300) + 0.002


def test_a_value_that_tells_everything_has_all_the_bits():
    design = Design.of(PREMISES, "language")
    values = design.observed[:, None] + 0.0
    assert bits(design, values)[0] == pytest.approx(np.log2(3), abs=0.1)
    np.testing.assert_allclose(auroc(design, values)[[0, 2], 0], [0, 1])


def test_what_does_not_change_the_mean_is_seen_in_bits():
    design = Design.of(PREMISES, "task")
    draw = np.random.default_rng(0)
    wide = np.where(design.observed == 2, 4.0, 0.5)[:, None] * draw.choice([-1.0, 1.0], (225, 1))
    assert bits(design, wide + 0.1 * draw.normal(size=(225, 1)))[0] > 0.3


@pytest.mark.filterwarnings("error")
def test_where_there_is_nothing_to_tell_from_no_auroc_is_given():
    texts = LabelledTexts(
        {
            one: pd.DataFrame({"item": items, "cluster": items, "text": "x", "label": ["a", "b", "a", "b"]})
            for one, items in (("en", [0, 1, 2, 3]), ("hi", [4, 5, 6, 7]))
        }
    )
    alone = dataclasses.replace(Design.of(texts, "task"), others=np.repeat([0, 1], 4), units=np.arange(8))
    values = np.arange(8.0)[:, None]
    assert not np.isnan(auroc(alone, values)).any()
    split = dataclasses.replace(alone, others=alone.levels[alone.units])
    assert np.isnan(auroc(split, values)).all()


def test_a_constant_neuron_tells_nothing():
    for factor in ("language", "task"):
        design = Design.of(PREMISES, factor)
        values = np.zeros((225, 2))
        assert bits(design, values).tolist() == [0, 0]
        np.testing.assert_allclose(auroc(design, values), 0.5)
        assert Probes(design).accuracy(values, [1, 2, 4]) == {1: pytest.approx(1 / 3), 2: pytest.approx(1 / 3)}


def test_a_probe_finds_the_neuron_that_tells_the_label_in_every_language():
    values = simulated(PREMISES, neurons=8)
    values += 20 * Design.of(PREMISES, "language").observed[:, None]  # far larger than what the label does
    values[:, 5] += 8 * Design.of(PREMISES, "task").observed
    found = Probes(Design.of(PREMISES, "task")).accuracy(values, [1, 4, 16])
    assert list(found) == [1, 4]
    assert found[1] > 0.85
    assert Probes(Design.of(PREMISES, "language")).accuracy(values, [1])[1] > 0.9


def test_a_probe_is_not_rewarded_for_knowing_a_cluster_by_heart():
    values = simulated(DOCUMENTS, neurons=12, item=0.0, cluster=5.0)
    accuracies = [Probes(Design.of(DOCUMENTS, "task"), seed).accuracy(values, [12])[12] for seed in range(5)]
    assert np.mean(accuracies) < 0.68
