import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import langneurons as ln
from langneurons.analysis.validity import RedrawnRandom, chance_jaccard, rerun, split_half
from langneurons.errors import LanguageError, StatisticsError
from tests.planted.recordings import LABELS, recording
from tests.planted.statistics import statistics_from

LAPE = ln.LAPE(top=0.16, filter_quantile=0.8)


@pytest.fixture(scope="module")
def stats():
    return recording("real")


@pytest.fixture(scope="module")
def other():
    return recording("real", seed=1)


def test_lape_finds_the_same_neurons_in_both_halves(stats):
    overall = split_half(LAPE, stats, splits=5).overall
    assert overall["jaccard"] > 0.9 > 0.1 > overall["jaccard_chance"]
    assert overall["spearman"] > 0.7


def test_a_random_draw_fails_as_chance_says(stats):
    overall = split_half(RedrawnRandom(top=0.1), stats, splits=10).overall
    assert overall["jaccard"] == pytest.approx(overall["jaccard_chance"], abs=0.03)
    assert abs(overall["spearman"]) < 0.05
    assert overall["spearman_chosen"] < -0.2


def test_a_labelling_that_ignores_the_text_is_perfectly_reliable(stats):
    overall = split_half(ln.Random(top=0.1), stats, splits=3).overall
    assert overall["jaccard"] == overall["spearman"] == pytest.approx(1.0)


def test_figures_of_two_recordings_agree_with_a_naive_count(stats, other):
    method = ln.MeanDifference(top=0.05)
    table = split_half(method, (stats, other)).rows.set_index("language")
    for language in LABELS:
        scores = [method.scores(one)[language].flatten().numpy() for one in (stats, other)]
        sets = [{tuple(n) for n in method.identify(one)[language].indices().tolist()} for one in (stats, other)]
        chosen = sorted(layer * stats.shape[1] + index for layer, index in sets[0] | sets[1])
        row = table.loc[language]
        assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(*scores).statistic)
        assert row["spearman_chosen"] == pytest.approx(scipy.stats.spearmanr(*[s[chosen] for s in scores]).statistic)
        assert row["jaccard"] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert table.loc["overall", "jaccard"] == pytest.approx(table.loc[list(LABELS), "jaccard"].mean())


@pytest.mark.parametrize("two", [False, True])
def test_intervals_hold_the_figures_and_repeat_with_the_seed(stats, other, two):
    given = (stats, other) if two else stats
    table = split_half(ln.MeanDifference(top=0.1), given, splits=5, seed=3).rows
    for name in ("spearman", "jaccard"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
        assert (table[f"{name}_low"] < table[f"{name}_high"]).all()
    again = split_half(ln.MeanDifference(top=0.1), given, splits=5, seed=3).rows
    assert table.equals(again)


def test_the_bootstrap_over_neurons_has_the_spread_of_spearmans_correlation():
    """Of independent normal neurons the standard error is known to be near (1 - r^2) / sqrt(n)."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 1500, generator=generator)
    halves = [latent + torch.randn(1, 1500, generator=generator) for _ in range(2)]
    first, second = (_with_means(one) for one in halves)
    row = split_half(ln.identification.MeanActivation(top=0.1), (first, second)).rows.iloc[-1]
    width = row["spearman_high"] - row["spearman_low"]
    assert width / 2 / 1.96 == pytest.approx((1 - row["spearman"] ** 2) / np.sqrt(1500), rel=0.35)


def _with_means(means: torch.Tensor) -> ln.ActivationStats:
    return statistics_from({"en": means.expand(40, 1, -1) + 0.0, "fr": means.expand(40, 1, -1) + 0.0})


def test_methods_that_need_histograms_need_two_recordings(stats, other):
    method = ln.AUROC(top=0.05)
    with pytest.raises(StatisticsError, match="published counts or single folds"):
        split_half(method, stats)
    assert split_half(method, (stats, other)).overall["jaccard"] > 0.5


def test_a_rerun_on_the_same_text_agrees_entirely(stats):
    assert rerun(LAPE, stats, stats).overall["jaccard"] == 1.0


def test_two_recordings_may_have_their_languages_in_another_order(stats, other):
    turned = other.select(LABELS[::-1])
    assert split_half(LAPE, (stats, turned)).overall == split_half(LAPE, (stats, other)).overall


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(40, 60))
def test_chance_overlap_is_symmetric_and_a_share(first, second, neurons):
    value = chance_jaccard(first, second, neurons)
    assert 0 <= value <= 1 + 1e-9
    assert value == pytest.approx(chance_jaccard(second, first, neurons))


def test_chance_overlap_is_what_random_sets_share():
    generator = np.random.default_rng(0)
    found = []
    for _ in range(3000):
        first, second = (set(generator.permutation(50)[:n].tolist()) for n in (10, 20))
        found.append(len(first & second) / len(first | second))
    assert chance_jaccard(10, 20, 50) == pytest.approx(np.mean(found), abs=0.005)


def test_bad_input_is_one_sentence(stats, other):
    with pytest.raises(StatisticsError, match="between 0 and 1, not at 1.5"):
        split_half(LAPE, stats, level=1.5)
    with pytest.raises(StatisticsError, match="at least two, not 1"):
        split_half(LAPE, stats, splits=1)
    with pytest.raises(LanguageError, match="same model and languages"):
        split_half(LAPE, (stats, other.select(["en", "hi"])))
    counts = ln.ActivationStats.from_counts(torch.tensor([[[3, 0]], [[1, 4]]]), torch.tensor([4, 4]), ["en", "hi"])
    with pytest.raises(StatisticsError, match="1 document folds were recorded"):
        split_half(LAPE, counts)


def test_the_result_prints_its_table_and_what_its_interval_is(stats):
    text = repr(split_half(LAPE, stats, splits=2))
    assert "overall" in text
    assert "the middle of 2 splits by document" in text
    assert "nan" not in text


def test_a_saved_result_comes_back(stats, tmp_path):
    halved = split_half(LAPE, stats, splits=2)
    halved.save(tmp_path)
    loaded = ln.load(tmp_path)
    assert loaded.rows.equals(halved.rows)
    assert (loaded.method, loaded.interval, loaded.level) == (halved.method, halved.interval, halved.level)
