import numpy as np
import pandas as pd
import pytest

from langneurons.analysis.permutation import Design, ExchangeTest
from langneurons.analysis.texts import LabelledTexts

LANGUAGES = ("en", "fr", "hi")


def texts_of(labels, clusters, languages=LANGUAGES):
    return LabelledTexts.parallel(
        {one: [f"{one} {item}" for item in range(len(labels))] for one in languages}, labels, clusters
    )


def rejected(design, values, permutations=199):
    test = ExchangeTest(design, permutations, permutations, 0)(values)
    return float((test.p[0] < 0.05).mean()), float((test.p[1] < 0.05).mean())


def simulated(texts, neurons=600, seed=0, item=1.0, cluster=1.0, cluster_language=0.0):
    """Values without any effect of label or language, but with what items, clusters and their translations share."""
    draw = np.random.default_rng(seed)
    known, count = texts.known, len(texts.languages)
    of_cluster = pd.factorize(known["cluster"])[0]
    groups = of_cluster.max() + 1
    shared = item * draw.normal(size=(len(known), neurons)) + cluster * draw.normal(size=(groups, neurons))[of_cluster]
    translated = cluster_language * draw.normal(size=(count, groups, neurons))[:, of_cluster]
    return (shared + translated + draw.normal(size=(count, len(known), neurons))).reshape(-1, neurons)


DOCUMENTS = texts_of(
    ["no"] * 40 + ["yes"] * 40, [item // 4 for item in range(80)]
)  # one label a document of four texts
PREMISES = texts_of(["no", "perhaps", "yes"] * 25, [item // 3 for item in range(75)])  # every label once a premise
MIXED = texts_of([str(item * item % 3) for item in range(70)], [item // (2 + item // 35) for item in range(70)])


@pytest.mark.parametrize("texts", [DOCUMENTS, PREMISES, MIXED])
def test_labels_that_mean_nothing_are_found_in_two_to_eight_percent_of_neurons(texts):
    main, interaction = rejected(Design.of(texts, "task"), simulated(texts, cluster_language=0.7))
    assert 0.02 <= main <= 0.08
    assert 0.02 <= interaction <= 0.08


@pytest.mark.parametrize("texts", [DOCUMENTS, PREMISES, MIXED])
def test_languages_that_mean_nothing_are_found_in_two_to_eight_percent_of_neurons(texts):
    assert 0.02 <= rejected(Design.of(texts, "language"), simulated(texts, cluster_language=1.0))[0] <= 0.08


def as_if_independent(texts, units):
    """The same texts in the same order, but every unit (an item, or a text) alone in its cluster."""
    tables = {}
    for place, (language, table) in enumerate(texts.items.items()):
        alone = table["item"] if units == "item" else [f"{place}-{item}" for item in table["item"]]
        tables[language] = table.assign(item=alone, cluster=alone)
    return LabelledTexts(tables)


def test_a_null_that_forgets_clusters_or_translations_finds_labels_far_too_often():
    values = simulated(DOCUMENTS, cluster=2.0)
    assert rejected(Design.of(DOCUMENTS, "task"), values)[0] <= 0.08
    assert rejected(Design.of(as_if_independent(DOCUMENTS, "item"), "task"), values)[0] > 0.2
    assert rejected(Design.of(as_if_independent(DOCUMENTS, "text"), "task"), values)[0] > 0.3


def test_a_null_that_exchanges_languages_of_single_items_finds_them_too_often():
    values = simulated(PREMISES, item=0.3, cluster_language=1.5)
    assert rejected(Design.of(PREMISES, "language"), values)[0] <= 0.08
    assert rejected(Design.of(as_if_independent(PREMISES, "item"), "language"), values)[0] > 0.2


def test_the_interaction_is_not_taken_for_granted_where_labels_matter_alike_in_every_language():
    values = simulated(PREMISES)
    labels = np.tile((PREMISES.known["label"] == "yes").to_numpy(), 3)[:, None]
    main, interaction = rejected(Design.of(PREMISES, "task"), values + 2.0 * labels)
    assert main > 0.9
    assert 0.02 <= interaction <= 0.08


def test_an_effect_in_one_language_only_is_an_interaction():
    values = simulated(PREMISES)
    only = np.arange(len(values))[:, None] < 75  # English comes first
    signs = np.tile((PREMISES.known["label"] == "yes").to_numpy(), 3)[:, None]
    assert rejected(Design.of(PREMISES, "task"), values + 2.5 * signs * only)[1] > 0.8


def test_missing_translations_and_texts_that_are_no_translations_are_tested_too():
    partly = {one: table.iloc[place * 6 :] for place, (one, table) in enumerate(PREMISES.items.items())}
    apart = {
        one: table.assign(**{name: [f"{one}{value}" for value in table[name]] for name in ("item", "cluster")})
        for one, table in PREMISES.items.items()
    }
    for tables in (partly, apart):
        texts = LabelledTexts(tables)
        values = np.random.default_rng(0).normal(size=(sum(map(len, tables.values())), 400))
        shifted = values + 1.2 * (np.arange(len(values)) < len(tables["en"]))[:, None]
        for factor in ("language", "task"):
            assert 0.01 <= rejected(Design.of(texts, factor), values)[0] <= 0.09
        assert rejected(Design.of(texts, "language"), shifted)[0] > 0.9


def test_exchanges_keep_labels_inside_clusters_and_all_translations_together():
    design = Design.of(PREMISES, "task")
    drawn = design.draws(50, 0)
    assert (np.sort(drawn.reshape(50, 25, 3), axis=2) == [0, 1, 2]).all()
    assert drawn.std(axis=0).min() > 0
    np.testing.assert_array_equal(design.observed.reshape(3, 75)[0], design.observed.reshape(3, 75)[2])


def test_a_neuron_that_stands_out_gets_the_p_value_that_its_family_needs():
    values = simulated(PREMISES, neurons=3)
    values[:, 0] += 5 * np.tile((PREMISES.known["label"] == "yes").to_numpy(), 3)
    test = ExchangeTest(Design.of(PREMISES, "task"), 199, 4000, 0)(values)
    assert test.p[0, 0] == pytest.approx(1 / 4001)
    assert test.p[0, 1:].min() > 0.01


def test_effects_of_the_detectable_size_are_found_four_times_in_five():
    design = Design.of(PREMISES, "task")
    noise = simulated(PREMISES, neurons=800)
    detectable = np.median(ExchangeTest(design, 199, 199, 0)(noise).detectable)
    step = np.tile((PREMISES.known["label"] == "yes").to_numpy(), 3) - 1 / 3
    size = np.sqrt(detectable / np.square(step).sum())
    assert rejected(design, noise + size * step[:, None])[0] == pytest.approx(0.8, abs=0.07)


def test_two_clusters_can_find_nothing_and_say_so():
    texts = texts_of(["a", "b", "a", "b"], [0, 0, 1, 1], LANGUAGES[:2])
    test = ExchangeTest(Design.of(texts, "language"), 199, 199, 0)(simulated(texts, neurons=5))
    assert np.isinf(test.detectable).all()
