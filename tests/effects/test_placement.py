import numpy as np
import pandas as pd
import pytest
from scipy import stats

from langneurons.effects.placement import placed, selectivity
from langneurons.errors import EffectError


def test_prediction_interval_is_the_textbook_one():
    drawn = [1.0, 2.0, 3.0, 4.0]
    where = placed(10, drawn)
    reach = stats.t.ppf(0.975, 3) * np.std(drawn, ddof=1) * np.sqrt(1.25)
    assert (where.low, where.high) == pytest.approx((2.5 - reach, 2.5 + reach))
    assert (where.mean, where.position, where.draws) == (2.5, 1.0, 4)


def test_rank_p_needs_nineteen_controls():
    assert placed(100, list(range(18))).p is None
    assert placed(100, list(range(19))).p == 0.05


def test_rank_p_counts_both_sides():
    drawn = [*range(-20, 0), *range(1, 21)]
    assert placed(20.0, drawn).p == pytest.approx((1 + 2) / 41)
    assert placed(0.0, drawn).p == 1.0


def test_rank_p_is_uniform_where_the_value_is_one_of_the_controls():
    generator = np.random.default_rng(0)
    draws = generator.gamma(0.5, 1, (2000, 20))
    p = np.array([placed(float(row[0]), row[1:]).p for row in draws])
    assert 0.04 <= (p <= 0.05).mean() <= 0.06
    assert 0.18 <= (p <= 0.2).mean() <= 0.22


def test_draws_from_few_candidates_vary_less_than_one_more_set_and_spread_makes_up_for_it():
    """Sets of twelve neurons, each with ten candidates: two draws share a tenth of their neurons."""
    generator = np.random.default_rng(2)
    own = generator.normal(size=(4000, 12)).sum(1).tolist()
    pools, places = generator.normal(size=(4000, 12, 10)), generator.integers(10, size=(4000, 12, 19))
    draws = np.take_along_axis(pools, places, axis=2).sum(1)
    spread = np.sqrt((1 + 0.1) / (1 - 0.1))
    alone = [placed(value, row) for value, row in zip(own, draws, strict=True)]
    wider = [placed(value, row, spread=spread) for value, row in zip(own, draws, strict=True)]
    assert np.mean([where.p <= 0.05 for where in alone]) > 0.065
    assert 0.04 <= np.mean([where.p <= 0.05 for where in wider]) <= 0.06
    assert 0.93 <= np.mean([where.low <= where.value <= where.high for where in wider]) <= 0.97


def test_draws_that_are_all_the_same_give_neither_interval_nor_p_value():
    for spread in (float("inf"), None):
        where = placed(1.0, [0.0] * 19, spread=spread)
        assert (where.p, where.low, where.high, where.mean) == (None, None, None, 0.0)


def test_prediction_interval_holds_one_more_control():
    draws = np.random.default_rng(1).normal(size=(1000, 6))
    inside = [(where := placed(float(row[0]), row[1:])).low <= row[0] <= where.high for row in draws]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_one_control_has_a_position_only():
    where = placed(2.0, [1.0])
    assert (where.position, where.mean, where.sd, where.low, where.high, where.p) == (1.0, 1.0, None, None, None, None)


def test_equal_controls_and_value_are_not_extreme():
    assert placed(0.1, [0.1] * 30).p == 1.0


def test_no_or_infinite_controls_are_refused():
    with pytest.raises(EffectError, match="none was given"):
        placed(1.0, [])
    with pytest.raises(EffectError, match="finite"):
        placed(1.0, [1.0, float("nan")])


def languages_of_sources(seed=0, sources=10, documents=6):
    """Loss of two languages whose patched rows change by source, all documents of a source alike."""
    generator = np.random.default_rng(seed)
    source = np.repeat(np.arange(sources), documents)
    base = pd.DataFrame({"item": range(len(source)), "cluster": range(len(source)), "source": source, "nll": 10.0})
    changes = generator.normal(0.5, 0.3, (2, sources))[:, source]
    own, other = base.assign(nll=10 + changes[0]), base.assign(nll=10 + 0.1 * changes[1])
    return {"hi": {"hi": own, "en": other}}, {"hi": base, "en": base}


def test_selectivity_resamples_sources_where_effects_do():
    patched, baseline = languages_of_sources()
    no_controls = pd.DataFrame({"control": []})
    widths = {}
    for resampled in ("auto", "sources", "clusters"):
        table = selectivity(patched, baseline, no_controls, resampled=resampled, resamples=2000)
        widths[resampled] = float((table["high"] - table["low"])[0])
    assert widths["auto"] == widths["sources"]
    assert widths["auto"] > 1.8 * widths["clusters"]  # six documents of a source say what one does: about sqrt(6)
