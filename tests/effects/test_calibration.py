import numpy as np
import pytest
from scipy import stats

from langneurons.effects.calibration import Share, by_row, calibrate, null_comparisons
from langneurons.errors import EffectError
from tests.planted.rows import clustered_rows

ROWS = clustered_rows(np.random.default_rng(0), 40)


def test_null_comparisons_of_real_rows_keep_the_promised_rate():
    checked = calibrate(null_comparisons(ROWS), simulations=200, resamples=1000)
    assert 0.02 <= checked.rejected.share <= 0.08
    assert 0.92 <= checked.covered.share <= 0.98


def test_ignoring_clusters_breaks_the_promise():
    shared_noise = null_comparisons(ROWS, cluster_sd=0.1, row_sd=0.02)
    checked = calibrate(by_row(shared_noise), simulations=100, resamples=1000)
    assert checked.rejected.low > 0.08
    assert checked.covered.high < 0.92


def test_null_comparisons_have_as_many_clusters_and_no_repeated_item():
    condition, baseline, truth = null_comparisons(ROWS)(np.random.default_rng(0))
    assert baseline["cluster"].nunique() == ROWS["cluster"].nunique()
    assert baseline["item"].is_unique
    assert truth == 0
    assert (condition["nll"] / baseline["nll"]).std() > 0.01


def test_calibration_repeats():
    simulate = null_comparisons(ROWS)
    assert calibrate(simulate, 20, resamples=200) == calibrate(simulate, 20, resamples=200)
    assert calibrate(simulate, 20, seed=1, resamples=200).simulations == 20


def test_share_has_the_exact_binomial_interval():
    share = Share.of(5, 100)
    assert (share.share, share.low, share.high) == pytest.approx(
        (0.05, stats.beta.ppf(0.025, 5, 96), stats.beta.ppf(0.975, 6, 95))
    )


def test_no_simulation_is_refused():
    with pytest.raises(EffectError, match="given 0"):
        calibrate(null_comparisons(ROWS), simulations=0)
