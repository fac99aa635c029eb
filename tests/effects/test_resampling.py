import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from langneurons.effects import resampling
from langneurons.effects.resampling import ClusterSums, Spread, sign_flip_p, spread


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
        expected.append(abs(moved) / error)
    assert spread(sums, 50, 7).magnitudes == pytest.approx(np.sort(expected), rel=1e-9, abs=1e-12)


def test_standard_error_is_the_jackknife_over_clusters():
    sums = sums_of(np.random.default_rng(1))
    left_out = [
        np.delete(sums.differences, index).sum() / np.delete(sums.denominators, index).sum() for index in range(12)
    ]
    expected = np.sqrt(11 / 12 * ((np.array(left_out) - np.mean(left_out)) ** 2).sum())
    assert spread(sums, 200, 0).standard_error == pytest.approx(expected)


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
    assert (low + high) / 2 == pytest.approx(found.estimate)


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


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9))
@settings(max_examples=25, deadline=None)
def test_sign_flip_of_few_clusters_equals_scipys_exact_permutation_test(differences):
    values = np.array(differences, dtype=float)
    expected = stats.permutation_test(
        (values,),
        lambda x, axis: np.abs(x.sum(axis)),
        permutation_type="samples",
        vectorized=True,
        alternative="greater",
    )
    assert sign_flip_p(values, 5000, 0) == pytest.approx(expected.pvalue)


def test_sign_flip_of_many_clusters_approximates_the_exact_one():
    values = np.random.default_rng(6).normal(0.4, 1, 18)
    assert sign_flip_p(values, 20_000, 0) == pytest.approx(sign_flip_p(values, 2**17, 0), abs=0.01)


def test_sign_flip_never_gives_zero():
    assert sign_flip_p(np.ones(100), 999, 0) == 0.001


def test_sign_flip_of_no_difference_is_one():
    assert sign_flip_p(np.zeros(100), 999, 0) == sign_flip_p(np.zeros(3), 999, 0) == 1


@given(st.integers(0, 10**6), st.floats(0.1, 100))
@settings(max_examples=25, deadline=None)
def test_scale_and_sign_of_differences_carry_through(seed, factor):
    sums = sums_of(np.random.default_rng(seed))
    plain = spread(sums, 200, 0)
    scaled = spread(ClusterSums(-factor * sums.differences, sums.denominators), 200, 0)
    low, high = plain.interval(0.9)
    assert scaled.interval(0.9) == pytest.approx((-factor * high, -factor * low), rel=1e-6)
    assert sign_flip_p(-factor * sums.differences[0], 5000, 0) == sign_flip_p(sums.differences[0], 5000, 0)


def test_p_agrees_with_the_interval():
    generator = np.random.default_rng(8)
    for _ in range(50):
        found = spread(sums_of(generator, seeds=6), 999, 0)
        low, high = found.interval(0.95)
        if not 0.045 < found.p() < 0.055:
            assert (found.p() < 0.05) == (low > 0 or high < 0)


def test_equal_relative_differences_have_no_spread():
    sizes = np.random.default_rng(9).lognormal(0, 1, (1, 30))
    found = spread(ClusterSums(0.1 * sizes, sizes), 500, 0)
    assert found.standard_error < 1e-12
    assert found.interval(0.95) == pytest.approx((0.1, 0.1))


def test_resampling_repeats_and_depends_on_the_seed():
    sums = sums_of(np.random.default_rng(10))
    np.testing.assert_array_equal(spread(sums, 300, 1).magnitudes, spread(sums, 300, 1).magnitudes)
    assert not np.array_equal(spread(sums, 300, 1).magnitudes, spread(sums, 300, 2).magnitudes)


def test_many_clusters_are_resampled_some_at_a_time(monkeypatch):
    sums = sums_of(np.random.default_rng(11), clusters=40)
    at_once = spread(sums, 4000, 0).interval(0.95)
    monkeypatch.setattr(resampling, "ENTRIES", 40 * 700)
    assert len(list(resampling.weight_chunks((1, 40), 4000, 0))) == 6
    assert spread(sums, 4000, 0).interval(0.95) == pytest.approx(at_once, rel=0.1)


def test_minimal_detectable_effect_is_the_textbook_multiple_of_the_standard_error():
    assert Spread(0.0, 1.0, 1e9, np.empty(0)).minimal_detectable() == pytest.approx(1.95996 + 0.84162, abs=1e-4)
    assert Spread(0.0, 0.5, 19.0, np.empty(0)).minimal_detectable() == pytest.approx((2.09302 + 0.86094) / 2, abs=1e-4)
