import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from langneurons.effects import resampling
from langneurons.effects.resampling import ClusterSums, Spread, effective_clusters, excess_skewness, spread


def sums_of(generator, seeds=1, clusters=12):
    return ClusterSums(generator.normal(0.3, 1, (seeds, clusters)), generator.lognormal(0, 0.5, (seeds, clusters)))


def naive_studentized(sums, drawn_seeds, drawn_clusters):
    """Ratio and linearised standard error of one resample, from the drawn sums themselves."""
    differences = sums.differences[np.ix_(drawn_seeds, drawn_clusters)]
    denominators = sums.denominators[np.ix_(drawn_seeds, drawn_clusters)]
    ratio = differences.sum() / denominators.sum()
    residuals = differences - ratio * denominators
    variance = 0.0
    for axis in (0, 1):
        parts = residuals.sum(axis)
        if len(parts) > 1:
            variance += len(parts) / (len(parts) - 1) * (parts**2).sum()
    return ratio - sums.ratio, np.sqrt(variance) / denominators.sum()


@pytest.mark.parametrize("seeds", [1, 3])
def test_studentized_resamples_equal_a_loop_over_drawn_clusters(seeds):
    sums = sums_of(np.random.default_rng(0), seeds)
    ((seed_weights, cluster_weights),) = resampling.weight_chunks(sums.shape, 50, 7)
    expected = []
    for weights in zip(seed_weights, cluster_weights, strict=True):
        moved, error = naive_studentized(sums, *(np.repeat(np.arange(len(own)), own.astype(int)) for own in weights))
        expected.append(moved / error)
    assert spread(sums, 50, 7).draws == pytest.approx(np.sort(expected), rel=1e-9, abs=1e-12)


def test_standard_error_is_the_jackknife_over_clusters():
    sums = sums_of(np.random.default_rng(1))
    left_out = [
        np.delete(sums.differences, index).sum() / np.delete(sums.denominators, index).sum() for index in range(12)
    ]
    expected = np.sqrt(11 / 12 * ((np.array(left_out) - np.mean(left_out)) ** 2).sum())
    assert np.sqrt(resampling.jackknife_variance(sums, 0)) == pytest.approx(expected)


def test_seeds_add_their_own_variance():
    generator = np.random.default_rng(2)
    one = generator.normal(1, 1, (1, 30))
    moved = np.concatenate([one + shift for shift in generator.normal(0, 3, 8)])
    agreeing = spread(ClusterSums(np.repeat(one, 8, 0), np.ones((8, 30))), 200, 0)
    assert agreeing.standard_error == pytest.approx(spread(ClusterSums(one, np.ones((1, 30))), 200, 0).standard_error)
    assert spread(ClusterSums(moved, np.ones((8, 30))), 200, 0).standard_error > 1.5 * agreeing.standard_error


def test_interval_is_never_narrower_than_students():
    found = spread(sums_of(np.random.default_rng(3), clusters=6), 500, 0)
    low, high = found.interval(0.95)
    assert (high - low) / 2 >= stats.t.ppf(0.975, 5) * found.standard_error
    assert low < found.estimate < high


def test_interval_of_two_clusters_is_students_with_one_degree_of_freedom():
    found = spread(ClusterSums(np.array([[1.0, 2.0]]), np.ones((1, 2))), 500, 0)
    low, high = found.interval(0.95)
    assert (low, high) == pytest.approx((1.5 - 12.706 * 0.5, 1.5 + 12.706 * 0.5), rel=1e-4)


def coverage(draw, truth, simulations, interval):
    generator = np.random.default_rng(5)
    intervals = [interval(draw(generator)) for _ in range(simulations)]
    return np.mean([low <= truth <= high for low, high in intervals])


def unequal_and_skewed(clusters, effect):
    """Cluster sums with lognormal sizes and effects of skewness 2."""

    def draw(generator):
        sizes = np.maximum(1, generator.lognormal(1.0, 0.8, clusters).astype(int)).astype(float)
        change = (
            effect + 0.02 * (generator.gamma(1, 1, clusters) - 1) + 0.02 * generator.normal(size=clusters) / sizes**0.5
        )
        return ClusterSums((sizes * change)[None], sizes[None])

    return draw


def ours(sums):
    return spread(sums, 1000, 0).interval(0.95)


def percentile(sums):
    ((_, weights),) = resampling.weight_chunks(sums.shape, 1000, 0)
    return np.quantile(weights @ sums.differences[0] / (weights @ sums.denominators[0]), [0.025, 0.975])


@pytest.mark.parametrize("effect", [0.0, 0.02])
@pytest.mark.parametrize("clusters", [20, 40, pytest.param(200, marks=pytest.mark.slow)])
def test_interval_covers_in_92_to_98_percent_of_unequal_skewed_samples(clusters, effect):
    assert 0.92 <= coverage(unequal_and_skewed(clusters, effect), effect, 600, ours) <= 0.98


def test_percentile_interval_covers_too_seldom_with_20_clusters():
    assert coverage(unequal_and_skewed(20, 0.0), 0.0, 600, percentile) < 0.92


@pytest.mark.parametrize("variances", [(1, 0.3, 0.3), (0.1, 3, 0.3), (1, 2, 0.5)], ids=["seeds", "clusters", "both"])
@pytest.mark.parametrize("seeds", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_interval_over_seeds_and_clusters_covers(seeds, variances):
    seed_sd, cluster_sd, residual_sd = variances

    def draw(generator):
        sizes = np.repeat(generator.lognormal(0, 0.7, (1, 40)), seeds, 0)
        seed_part, cluster_part = generator.normal(0, seed_sd, (seeds, 1)), generator.normal(0, cluster_sd, (1, 40))
        return ClusterSums(sizes * (seed_part + cluster_part + generator.normal(0, residual_sd, (seeds, 40))), sizes)

    assert 0.92 <= coverage(draw, 0.0, 300, ours) <= 0.99


@given(st.integers(0, 10**6), st.floats(0.1, 100))
@settings(max_examples=25, deadline=None)
def test_scale_and_sign_of_differences_carry_through(seed, factor):
    sums = sums_of(np.random.default_rng(seed))
    plain = spread(sums, 200, 0)
    scaled = spread(ClusterSums(-factor * sums.differences, sums.denominators), 200, 0)
    low, high = plain.interval(0.9)
    assert scaled.interval(0.9) == pytest.approx((-factor * high, -factor * low), rel=1e-6)
    assert scaled.p() == pytest.approx(plain.p())


@given(
    st.integers(0, 10**6), st.sampled_from([6, 8, 15, 40]), st.sampled_from([1, 6]), st.sampled_from([0.9, 0.95, 0.99])
)
@settings(max_examples=150, deadline=None)
def test_the_interval_holds_zero_exactly_where_the_test_does_not_reject(seed, clusters, seeds, level):
    generator = np.random.default_rng(seed)
    sizes = np.repeat(generator.lognormal(0, generator.choice([0.0, 1.0, 2.0]), (1, clusters)), seeds, 0)
    changes = generator.lognormal(0, 1.2, (seeds, clusters)) - generator.choice([1.0, 2.0, 3.0])
    varied = spread(ClusterSums(changes * sizes, sizes), 500, 0)
    low, high = varied.interval(level)
    assert (varied.p() < 1 - level) == (low > 0 or high < 0)


def test_skewed_clusters_widen_the_standard_error_and_symmetric_ones_do_not():
    generator = np.random.default_rng(0)
    ones = np.ones((1, 60))
    skewed = ClusterSums(generator.lognormal(0, 1.2, (1, 60)), ones)
    symmetric = ClusterSums(np.concatenate([np.arange(1.0, 31), -np.arange(1.0, 31)])[None], ones)
    assert excess_skewness(symmetric) == 0
    assert excess_skewness(skewed) > 0.1
    widened = spread(skewed, 200, 0).standard_error / np.sqrt(resampling.jackknife_variance(skewed, 0))
    assert widened == pytest.approx(1 + resampling.SKEW_WIDENING * excess_skewness(skewed))


def test_clusters_of_unequal_size_count_as_fewer():
    assert effective_clusters(ClusterSums(np.zeros((1, 9)), np.ones((1, 9)))) == pytest.approx(9)
    dominated = ClusterSums(np.zeros((1, 30)), np.append(np.ones(29), 20.0)[None])
    assert effective_clusters(dominated) == pytest.approx(49**2 / (400 + 29))


def test_equal_relative_differences_have_no_spread():
    sizes = np.random.default_rng(9).lognormal(0, 1, (1, 30))
    found = spread(ClusterSums(0.1 * sizes, sizes), 500, 0)
    assert found.standard_error < 1e-12
    assert found.interval(0.95) == pytest.approx((0.1, 0.1))


def test_resampling_repeats_and_depends_on_the_seed():
    sums = sums_of(np.random.default_rng(10))
    np.testing.assert_array_equal(spread(sums, 300, 1).draws, spread(sums, 300, 1).draws)
    assert not np.array_equal(spread(sums, 300, 1).draws, spread(sums, 300, 2).draws)


def test_many_clusters_are_resampled_some_at_a_time(monkeypatch):
    sums = sums_of(np.random.default_rng(11), clusters=40)
    at_once = spread(sums, 4000, 0).interval(0.95)
    monkeypatch.setattr(resampling, "ENTRIES", 40 * 700)
    assert len(list(resampling.weight_chunks((1, 40), 4000, 0))) == 6
    assert spread(sums, 4000, 0).interval(0.95) == pytest.approx(at_once, abs=0.05)


def test_minimal_detectable_effect_is_the_textbook_multiple_of_the_standard_error():
    assert Spread(0.0, 1.0, 1e9, np.empty(0)).minimal_detectable() == pytest.approx(1.95996 + 0.84162, abs=1e-4)
    assert Spread(0.0, 0.5, 19.0, np.empty(0)).minimal_detectable() == pytest.approx((2.09302 + 0.86094) / 2, abs=1e-4)
