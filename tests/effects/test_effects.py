import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from langneurons.effects.calibration import by_row, calibrate
from langneurons.effects.estimation import benjamini_hochberg, difference, effect, holm
from langneurons.errors import EffectError
from tests.planted.rows import clustered_rows, compared


def rows_of(values, cluster=None, **columns):
    item = np.arange(len(values))
    return pd.DataFrame({"item": item, "cluster": item if cluster is None else cluster, "nll": values, **columns})


def test_null_comparisons_are_significant_in_2_to_8_percent_and_covered_in_92_to_98():
    checked = calibrate(lambda generator: compared(generator, 40, 0.0, skewed=False), 200, seed=1, resamples=1000)
    assert 0.02 <= checked.rejected.share <= 0.08
    assert 0.92 <= checked.covered.share <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [20, 200])
def test_skewed_null_comparisons_are_significant_in_2_to_8_percent(clusters):
    checked = calibrate(lambda generator: compared(generator, clusters, 0.0, skewed=True), 300, resamples=1000)
    assert 0.02 <= checked.rejected.share <= 0.08
    assert 0.92 <= checked.covered.share <= 0.98


def test_resampling_rows_in_place_of_clusters_fails_on_the_same_comparisons():
    by_cluster = lambda generator: compared(generator, 40, 0.0, skewed=False)  # noqa: E731
    checked = calibrate(by_row(by_cluster), 100, seed=1, resamples=1000)
    assert checked.rejected.low > 0.1
    assert checked.covered.share < 0.85


@pytest.mark.parametrize("skewed", [False, True])
def test_a_planted_effect_is_recovered(skewed):
    checked = calibrate(lambda generator: compared(generator, 60, 0.02, skewed), simulations=200, resamples=1000)
    assert 0.92 <= checked.covered.share <= 0.99
    assert checked.rejected.share > 0.9


@pytest.mark.parametrize("per", ["baseline", "row", "tokens"])
def test_estimate_is_the_ratio_of_sums(per):
    condition, baseline, _ = compared(np.random.default_rng(0), 20, 0.02, skewed=True)
    divisors = {"baseline": baseline["nll"], "row": np.ones(len(baseline)), "tokens": baseline["tokens"]}
    expected = (condition["nll"] - baseline["nll"]).sum() / divisors[per].sum()
    found = effect(condition, baseline, per=per, resamples=200)
    assert found.estimate == pytest.approx(expected)
    assert found.estimate == difference(condition, baseline, per=per)
    assert found.low < found.estimate < found.high
    assert (found.items, found.clusters, found.seeds) == (len(baseline), 20, None)


def test_levels_are_sums_over_denominators_and_per_row_for_relative_changes():
    condition, baseline = rows_of([2.0, 4.0], tokens=[1, 3]), rows_of([1.0, 3.0], tokens=[1, 3])
    per_token, relative = effect(condition, baseline, per="tokens"), effect(condition, baseline)
    assert (per_token.condition, per_token.baseline) == (1.5, 1.0)
    assert (relative.condition, relative.baseline, relative.estimate) == (3.0, 2.0, 0.5)


def test_no_difference_anywhere_is_equivalent():
    rows = clustered_rows(np.random.default_rng(1), 20)
    found = effect(rows, rows)
    assert (found.estimate, found.low, found.high, found.p, found.verdict) == (0, 0, 0, 1, "no effect")


def test_an_unchanged_accuracy_of_few_rows_is_not_proved_equivalent():
    few, many = (rows_of(np.arange(count) % 2).assign(nll=lambda rows: rows["nll"] == 1) for count in (100, 2000))
    found = effect(few, few, per="row")
    assert found.verdict == "inconclusive"
    assert found.high == pytest.approx(0.03, rel=0.1)
    assert found.minimal_detectable > 0.03
    assert effect(many, many, per="row").verdict == "no effect"


def test_small_significant_differences_are_slight():
    generator = np.random.default_rng(2)
    baseline = rows_of(generator.gamma(20, 1, 400))
    condition = baseline.assign(nll=baseline["nll"] * (1.004 + 0.01 * generator.normal(size=400)))
    found = effect(condition, baseline)
    assert found.p < 0.05
    assert found.verdict == "slightly worse"
    assert effect(baseline, condition).verdict == "slightly better"
    assert effect(condition, baseline, margin=0.003).verdict == "worse"


@pytest.mark.parametrize(
    ("value", "given", "verdict"),
    [("nll", None, "worse"), ("correct", None, "better"), ("nll", False, "better"), ("correct", True, "worse")],
)
def test_verdict_knows_which_direction_is_better(value, given, verdict):
    baseline = rows_of(np.full(40, 2.0)).rename(columns={"nll": value})
    condition = baseline.assign(**{value: 2.2 + 0.01 * np.sin(np.arange(40))})
    assert effect(condition, baseline, value, lower_is_better=given).verdict == verdict


def test_wide_intervals_around_nothing_are_inconclusive():
    noise = np.random.default_rng(3).normal(size=30)
    baseline = rows_of(np.full(30, 10.0))
    assert effect(baseline.assign(nll=10 + noise - noise.mean()), baseline).verdict == "inconclusive"


def test_equivalence_is_two_one_sided_t_tests():
    generator = np.random.default_rng(4)
    agree = []
    for _ in range(60):
        differences = generator.normal(generator.uniform(0, 0.02), 0.1, 400)
        textbook = all(
            stats.ttest_1samp(differences, bound, alternative=side).pvalue < 0.05
            for bound, side in ((-0.01, "greater"), (0.01, "less"))
        )
        found = effect(rows_of(5 + differences), rows_of(np.full(400, 5.0)), per="row", resamples=2000)
        agree.append((found.verdict == "no effect") == textbook)
    assert np.mean(agree) >= 0.95


def test_minimal_detectable_effect_matches_the_t_formula():
    differences = np.random.default_rng(5).normal(0, 0.1, 50)
    found = effect(rows_of(5 + differences), rows_of(np.full(50, 5.0)), per="row")
    error = differences.std(ddof=1) / np.sqrt(50)
    assert found.standard_error == pytest.approx(error)
    textbook = (stats.t.ppf(0.975, 49) + stats.t.ppf(0.8, 49)) * error
    assert textbook <= found.minimal_detectable <= 1.05 * textbook


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [20, 200])
def test_power_at_the_minimal_detectable_effect_is_80_percent(clusters):
    def simulate(effect_size):
        def one(generator):
            cluster = np.repeat(np.arange(clusters), 3)
            shared, own = generator.normal(0, 1, clusters)[cluster], generator.normal(0, 1, len(cluster))
            return (
                rows_of(5 + effect_size + shared + own, cluster),
                rows_of(np.full(len(cluster), 5.0), cluster),
                effect_size,
            )

        return one

    options = {"per": "row", "resamples": 1000}
    typical = np.median(
        [effect(*simulate(0.0)(np.random.default_rng(s))[:2], **options).minimal_detectable for s in range(99)]
    )
    power = calibrate(simulate(float(typical)), simulations=1000, **options).rejected
    assert 0.72 <= power.share <= 0.88


def test_fewer_than_six_clusters_can_detect_nothing():
    five, six = (rows_of(np.arange(1.0, count + 1)) for count in (5, 6))
    assert effect(five.assign(nll=2 * five["nll"] + 1), five).p is None
    assert effect(five.assign(nll=2 * five["nll"] + 1), five).minimal_detectable == np.inf
    assert effect(six.assign(nll=2 * six["nll"] + 1), six).p < 0.05
    assert np.isfinite(effect(six.assign(nll=2 * six["nll"] + 1), six).minimal_detectable)


@pytest.mark.parametrize(("gained", "lost"), [(9, 2), (6, 0), (15, 3), (20, 12), (30, 4)])
def test_the_test_of_single_rows_of_zero_and_one_is_near_exact_mcnemar(gained, lost):
    before = np.array([0] * 100 + [1] * 100)
    after = before.copy()
    after[:gained], after[100 : 100 + lost] = 1, 0
    found = effect(rows_of(after), rows_of(before), per="row", lower_is_better=False)
    exact = stats.binomtest(lost, gained + lost).pvalue
    assert found.estimate == pytest.approx((gained - lost) / 200)
    assert exact / 2 <= found.p <= 3 * exact + 0.01


def test_answers_that_change_in_three_of_ten_clusters_show_nothing():
    before = np.zeros(40)
    after = np.array([1] * 12 + [0] * 28)
    cluster = np.arange(40) // 4
    assert effect(rows_of(after, cluster), rows_of(before, cluster), per="row").p > 0.05


def trained(shifts, generator):
    baseline = rows_of(generator.gamma(20, 1, 40))
    parts = [baseline.assign(seed=seed, nll=baseline["nll"] * (1 + shift)) for seed, shift in enumerate(shifts)]
    return pd.concat(parts), baseline


def test_few_seeds_give_no_p_value():
    condition, baseline = trained([0.1, 0.11, 0.09], np.random.default_rng(6))
    found = effect(condition, baseline)
    assert (found.p, found.verdict, found.seeds, found.items) == (None, "inconclusive", 3, 40)
    assert found.minimal_detectable == np.inf
    assert found.seed_sd == pytest.approx(0.01)
    assert "no p-value" in str(found)


def test_six_seeds_can_show_that_there_is_no_effect_and_fewer_cannot():
    generator = np.random.default_rng(7)
    assert effect(*trained([0.0001, 0.0, -0.0001] * 2, generator)).verdict == "no effect"
    assert effect(*trained([0.0001, 0.0, -0.0001], generator)).verdict == "inconclusive"
    alone = effect(*trained([0.0], generator))
    assert (alone.verdict, alone.seeds, alone.seed_sd) == ("inconclusive", 1, None)


def test_six_seeds_that_agree_are_significant():
    condition, baseline = trained([0.1, 0.11, 0.09, 0.12, 0.08, 0.1], np.random.default_rng(8))
    found = effect(condition, baseline)
    assert found.verdict == "worse"
    assert 0 < found.p < 0.05


def test_seeds_that_disagree_widen_the_interval():
    generator = np.random.default_rng(9)
    calm = effect(*trained([0.05] * 6, generator))
    wild = effect(*trained([-0.2, 0.3, -0.1, 0.2, -0.15, 0.25], generator))
    assert calm.high - calm.low < 0.1 * (wild.high - wild.low)
    assert wild.verdict == "inconclusive"


@pytest.mark.slow
def test_null_trained_conditions_are_significant_in_2_to_8_percent():
    def simulate(generator):
        baseline = rows_of(generator.gamma(20, 1, 60), np.arange(60) // 2)
        shared = generator.normal(0, 0.02, 30)[baseline["cluster"]]
        parts = [
            baseline.assign(seed=seed, nll=baseline["nll"] * (1 + shared + generator.normal(0, 0.01)))
            for seed in range(6)
        ]
        return pd.concat(parts), baseline, 0.0

    checked = calibrate(simulate, simulations=200, resamples=1000)
    assert 0.02 <= checked.rejected.share <= 0.08
    assert 0.92 <= checked.covered.share <= 0.98


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_benjamini_hochberg_by_hand():
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.02, 0.04, 0.04, 0.02])


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_missing_p_values_stay_missing_and_do_not_count(adjust):
    with_gaps = adjust([0.01, None, 0.04, float("nan"), 0.03])
    assert np.isnan(with_gaps[[1, 3]]).all()
    np.testing.assert_array_equal(with_gaps[[0, 2, 4]], adjust([0.01, 0.04, 0.03]))
    assert len(adjust([])) == 0
    with pytest.raises(EffectError, match="1.5"):
        adjust([1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.randoms())
def test_adjusted_p_values_follow_their_tests(p, random):
    order = random.sample(range(len(p)), len(p))
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p)
        np.testing.assert_allclose(adjust([p[index] for index in order]), adjusted[order])
        assert (adjusted >= np.array(p) - 1e-12).all()
        assert (adjusted <= 1).all()
    assert (holm(p) >= benjamini_hochberg(p) - 1e-12).all()


def test_shares_that_never_changed_prove_no_more_than_their_number_allows():
    rows = pd.DataFrame({"item": range(48), "cluster": range(48), "f1": [0.0, 0.25, 0.5] * 16})
    found = effect(rows, rows, "f1", "row", resamples=400)
    assert found.estimate == 0
    assert found.high > 2.7 / 48
    assert found.minimal_detectable > 0.03
    assert found.verdict == "inconclusive"
    losses = rows.rename(columns={"f1": "nll"})
    assert effect(losses, losses, "nll", "row", resamples=400).high == 0
