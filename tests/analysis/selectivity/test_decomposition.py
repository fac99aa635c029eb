import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols

from langneurons.analysis.decomposition import Decomposition, Moments

LANGUAGES, LABELS = ("en", "fr", "hi"), ("no", "perhaps", "yes")


def unbalanced(rows=70, neurons=4, seed=0):
    """Values of several neurons with effects of both factors, in cells of very different sizes."""
    draw = np.random.default_rng(seed)
    language = draw.choice(3, rows, p=[0.5, 0.3, 0.2])
    label = np.where(draw.random(rows) < 0.4, language, draw.integers(3, size=rows))  # correlated factors
    values = draw.normal(size=(rows, neurons)) + np.outer(language, range(neurons)) + np.outer(label == 1, [2, 0, 1, 0])
    return values + 3 * ((language == 2) & (label == 0))[:, None] * [0, 0, 0, 1], language, label


def decomposed(values, language, label, languages=LANGUAGES, labels=LABELS):
    cells = language * len(labels) + label
    moments = Moments.of(values, cells, len(languages) * len(labels))
    return Decomposition.of(moments, languages, labels, (1, values.shape[1]), "act")


def fitted(values, language, label, formula, kind):
    table = pd.DataFrame({"y": values, "language": language.astype(str), "label": label.astype(str)})
    return sm.stats.anova_lm(ols(formula, table).fit(), typ=kind)["sum_sq"]


def test_type_two_sums_of_squares_equal_those_of_statsmodels():
    values, language, label = unbalanced()
    found = decomposed(values, language, label).squares
    for neuron in range(values.shape[1]):
        expected = fitted(values[:, neuron], language, label, "y ~ C(language) * C(label)", 2)
        ours = [found[name][0, neuron] for name in ("language", "task", "interaction", "residual")]
        np.testing.assert_allclose(ours, expected.to_numpy(), rtol=1e-6)


def test_the_first_factor_of_type_one_equals_that_of_statsmodels_in_both_orders():
    values, language, label = unbalanced(seed=1)
    found = decomposed(values, language, label)
    assert not found.balanced
    for neuron in range(values.shape[1]):
        first = fitted(values[:, neuron], language, label, "y ~ C(language) + C(label)", 1).iloc[0]
        second = fitted(values[:, neuron], language, label, "y ~ C(label) + C(language)", 1).iloc[0]
        np.testing.assert_allclose(found.squares["language_first"][0, neuron], first, rtol=1e-6)
        np.testing.assert_allclose(found.squares["task_first"][0, neuron], second, rtol=1e-6)


def test_in_balanced_cells_all_shares_add_up_to_one_in_any_order():
    draw = np.random.default_rng(2)
    language, label = np.divmod(np.arange(90) % 9, 3)
    found = decomposed(draw.normal(size=(90, 3)) + language[:, None], language, label)
    assert found.balanced
    names = ("language", "task", "interaction", "residual")
    np.testing.assert_allclose(sum(found.squares[name] for name in names), found.squares["total"])
    np.testing.assert_allclose(found.squares["language"], found.squares["language_first"])


def test_an_empty_cell_leaves_additive_effects_as_statsmodels_has_them():
    values, language, label = unbalanced(seed=3)
    kept = (language != 1) | (label != 2)
    found = decomposed(values[kept], language[kept], label[kept]).squares
    for neuron in range(values.shape[1]):
        expected = fitted(values[kept][:, neuron], language[kept], label[kept], "y ~ C(language) + C(label)", 2)
        np.testing.assert_allclose(found["language"][0, neuron], expected["C(language)"], rtol=1e-6)
        np.testing.assert_allclose(found["task"][0, neuron], expected["C(label)"], rtol=1e-6)


@given(st.lists(st.integers(1, 69), max_size=6), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_moments_of_any_parts_add_up_to_those_of_the_whole(cuts, seed):
    values, language, label = unbalanced(seed=seed)
    cells = language * 3 + label
    whole = Moments.of(values, cells, 9)
    parts = zip(np.split(values, sorted(cuts)), np.split(cells, sorted(cuts)), strict=True)
    first, *rest = (Moments.of(part, of, 9) for part, of in parts)
    together = sum(rest, first)
    np.testing.assert_array_equal(together.counts, whole.counts)
    np.testing.assert_allclose(together.means, whole.means, atol=1e-12)
    np.testing.assert_allclose(together.squares, whole.squares, atol=1e-9)


def test_values_far_from_zero_lose_no_precision():
    values, language, label = unbalanced()
    near, far = decomposed(values, language, label), decomposed(values + 1e4, language, label)
    np.testing.assert_allclose(far.squares["task"], near.squares["task"], rtol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("constant", [0.0, 3.0, -0.278464])
def test_a_neuron_that_never_changes_has_no_share_of_anything(constant):
    values, language, label = unbalanced()
    rounding = 1 + 1e-7 * np.random.default_rng(0).normal(size=len(values))
    values[:, 0] = constant * rounding
    found = decomposed(values, language, label)
    assert found.share("language")[0, 0] == found.partial("task")[0, 0] == 0
    assert (found.share("language")[0, 1:] > 0).all()
