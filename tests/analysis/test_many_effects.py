"""Many effects at once are the effects one by one."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from langneurons.effects.estimation import effect, many_effects
from langneurons.errors import EffectError


def rows(clusters, sizes=3, seed=0):
    random = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(clusters), random.integers(1, sizes + 1, clusters))
    return pd.DataFrame({"item": range(len(cluster)), "cluster": cluster, "nll": random.gamma(3.0, 2.0, len(cluster))})


def same(many, one):
    for name, value in asdict(one).items():
        found = getattr(many, name)
        if isinstance(value, float):
            assert found == pytest.approx(value, rel=1e-9, abs=1e-14), name
        else:
            assert found == value, name


@pytest.mark.parametrize("clusters", [5, 60])
def test_losses_relative_to_the_baseline(clusters):
    before = rows(clusters)
    random = np.random.default_rng(1)
    scale = np.array([0.0, 1e-4, 0.01, 0.5])[:, None]
    after = before["nll"].to_numpy() * (1 + scale * random.standard_normal((4, len(before))) + 0.3 * scale)
    options = {"resamples": 300, "seed": 3, "margin": 0.02}
    for values, many in zip(after, many_effects(after, before, **options), strict=True):
        same(many, effect(before.assign(nll=values), before, **options))


@pytest.mark.parametrize("single", [True, False])
def test_answers_right_or_wrong(single):
    before = rows(40, 1 if single else 3).assign(accuracy=lambda table: (table["nll"] > 5).astype(float))
    random = np.random.default_rng(2)
    gold = before["accuracy"].to_numpy()
    after = np.stack([gold, np.where(random.random(len(gold)) < 0.2, 1 - gold, gold), gold * 0])
    options = {"value": "accuracy", "per": "row", "resamples": 300}
    for values, many in zip(after, many_effects(after, before, **options), strict=True):
        same(many, effect(before.assign(accuracy=values), before, **options))


def test_what_effect_refuses_is_refused():
    with pytest.raises(EffectError, match="one cluster"):
        many_effects(np.ones((2, 4)), pd.DataFrame({"item": range(4), "cluster": 0, "nll": 1.0}))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_and_never_significant(wrong):
    after = np.ones((3, 4))
    after[1, 2] = wrong
    with pytest.raises(EffectError, match="1 of 3 conditions .* condition 1 at item 2"):
        many_effects(after, pd.DataFrame({"item": range(4), "cluster": range(4), "nll": 1.0}))
