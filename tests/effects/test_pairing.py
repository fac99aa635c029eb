import numpy as np
import pandas as pd
import pytest

from langneurons.effects.estimation import effect
from langneurons.errors import EffectError

BASELINE = pd.DataFrame(
    {"item": np.arange(12), "cluster": np.arange(12) // 2, "nll": 10.0 + np.arange(12), "tokens": 5}
)


def refused(condition, baseline=BASELINE, **options):
    with pytest.raises(EffectError) as caught:
        effect(condition, baseline, resamples=200, **options)
    return str(caught.value)


def test_order_of_rows_does_not_matter():
    condition = BASELINE.assign(nll=BASELINE["nll"] * 1.1 + np.sin(np.arange(12)))
    assert effect(condition, BASELINE) == effect(condition.sample(frac=1, random_state=0), BASELINE)


def test_missing_items_are_counted_and_one_is_named():
    assert "lacks 2 of the baseline's 12" in refused(BASELINE.iloc[2:])
    assert "such as 0" in refused(BASELINE.iloc[2:])
    assert "lacks 1 of the condition's 12" in refused(BASELINE, BASELINE.iloc[:-1])


def test_an_item_given_twice_is_refused():
    assert "item 3 more than once" in refused(pd.concat([BASELINE, BASELINE.iloc[[3]]]))


def test_clusters_must_agree():
    message = refused(BASELINE.assign(cluster=[9, *BASELINE["cluster"][1:]]))
    assert message == "1 items differ in 'cluster' between the conditions, such as 0: 9 and 0."


def test_denominators_must_agree_where_both_have_them():
    assert "differ in 'tokens'" in refused(BASELINE.assign(tokens=6), per="tokens")
    assert effect(BASELINE.drop(columns="tokens"), BASELINE, per="tokens", resamples=200).estimate == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_must_be_finite(wrong):
    values = BASELINE["nll"].to_numpy().copy()
    values[4] = wrong
    assert "1 of the condition's 12 values of 'nll'" in refused(BASELINE.assign(nll=values))
    assert "such as that of item 4" in refused(BASELINE.assign(nll=values))


def test_text_is_no_value():
    assert "not finite numbers" in refused(BASELINE.assign(nll="high"))


def test_one_cluster_is_not_enough():
    one = BASELINE.assign(cluster=7)
    assert refused(one, one).startswith("All 12 rows belong to one cluster (7)")


def test_a_cluster_of_one_row_is_fine():
    rows = BASELINE.assign(cluster=[0] * 3 + [1] + [2] * 4 + [3] * 4)
    assert effect(rows, rows, resamples=200).clusters == 4


def test_missing_columns_are_named_with_a_hint():
    assert "column of the baseline 'ntl': did you mean 'nll'" in refused(BASELINE, value="ntl")
    assert "column of the condition 'cluster'" in refused(BASELINE.drop(columns="cluster"))
    assert "column of the baseline 'token': did you mean 'tokens'" in refused(BASELINE, per="token")


def test_rows_without_a_cluster_are_refused():
    missing = BASELINE.assign(cluster=[np.nan, *BASELINE["cluster"][1:]])
    assert refused(missing) == "The condition has 1 rows without cluster."


def test_empty_rows_are_refused():
    assert refused(BASELINE.iloc[:0]) == "The condition has no rows."


def test_languages_are_never_compared_with_each_other():
    message = refused(BASELINE.assign(language="hi"), BASELINE.assign(language="en"))
    assert "measured in hi, the baseline in en" in message


def test_rows_of_several_languages_are_refused():
    both = pd.concat([BASELINE.assign(language=language) for language in ("en", "hi")])
    assert "one language" in refused(both, both)


@pytest.mark.parametrize("zero", [0.0, -1.0])
def test_a_baseline_that_cannot_divide_is_refused(zero):
    assert "possible: per='row'" in refused(BASELINE, BASELINE.assign(nll=zero))


def test_denominators_of_one_cluster_alone_are_refused():
    rows = BASELINE.assign(nll=np.where(BASELINE["cluster"] == 0, 1.0, 0.0))
    assert "positive in more than one cluster" in refused(rows, rows)


def test_an_untrained_baseline_stands_beside_every_seed():
    trained = pd.concat([BASELINE.assign(seed=seed, nll=BASELINE["nll"] + 0.1 * seed) for seed in range(6)])
    repeated = pd.concat([BASELINE.assign(seed=seed) for seed in range(6)])
    assert effect(trained, BASELINE, resamples=200) == effect(trained, repeated, resamples=200)


def test_a_seed_without_one_item_is_refused():
    trained = pd.concat([BASELINE.assign(seed=seed) for seed in range(6)], ignore_index=True)
    assert "lacks 1 of the baseline's 72" in refused(trained.iloc[:-1])


@pytest.mark.parametrize("options", [{"margin": 0}, {"margin": -0.1}, {"level": 95.0}, {"resamples": 10}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(EffectError, match=str(next(iter(options.values())))):
        effect(BASELINE, BASELINE, **options)
