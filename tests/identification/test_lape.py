"""LAPE and EntropyLambda against loops of plain Python."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langneurons.corpora.languages import SET5, SET_XNLI
from langneurons.errors import LangNeuronsWarning, StatisticsError
from langneurons.identification.lape import LAPE, EntropyLambda, entropy
from langneurons.recording.statistics import ActivationStats
from tests.planted.statistics import statistics_from


def counts(seed, languages=3, layers=2, width=40, tokens=8):
    """Few tokens, so that ties, zero probabilities and dead neurons abound."""
    random = torch.Generator().manual_seed(seed)
    active = torch.randint(0, tokens + 1, (languages, layers, width), generator=random)
    active[:, :, torch.rand(width, generator=random) < 0.2] = 0
    active[torch.rand(active.shape, generator=random) < 0.3] = 0
    totals = torch.full((languages,), tokens)
    return ActivationStats.from_counts(active, totals, [f"l{i}" for i in range(languages)])


def lape_oracle(stats, top, filter_quantile, bar_quantile):
    """Tang et al.'s identify.py as loops."""
    p = stats.probability().tolist()
    layers, width = stats.shape
    flat = sorted(x for language in p for layer in language for x in layer)
    cut = flat[max(round(len(flat) * filter_quantile), 1) - 1]
    bar = flat[max(round(len(flat) * bar_quantile), 1) - 1]
    scored = []
    for layer in range(layers):
        for neuron in range(width):
            column = [language[layer][neuron] for language in p]
            if any(x > cut for x in column):
                total = sum(column)
                h = -sum(x / total * math.log(x / total) for x in column if x > 0)
                scored.append((round(h, 12), layer, neuron))
    kept = sorted(scored)[: round(top * layers * width)]
    return {
        language: {(layer, neuron) for _, layer, neuron in kept if p[i][layer][neuron] > bar}
        for i, language in enumerate(stats.languages)
    }


def pairs(neurons):
    return {one: {tuple(pair) for pair in neurons[one].indices().tolist()} for one in neurons.languages}


@pytest.fixture(autouse=True)
def _few_neurons_may_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangNeuronsWarning)
        yield


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    languages=st.integers(2, 5),
    top=st.sampled_from([0.02, 0.1, 0.3, 1.0]),
    filter_quantile=st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]),
    bar_quantile=st.sampled_from([None, 0.3, 0.9]),
)
def test_lape_equals_the_loop_oracle_with_ties_dead_neurons_and_zero_probabilities(
    seed, languages, top, filter_quantile, bar_quantile
):
    stats = counts(seed, languages)
    found = pairs(LAPE(top=top, filter_quantile=filter_quantile, bar_quantile=bar_quantile).identify(stats))
    bar = filter_quantile if bar_quantile is None else bar_quantile
    expected = lape_oracle(stats, top, filter_quantile, bar)
    h = entropy(stats.probability())
    for language in stats.languages:
        different = found[language] ^ expected[language]
        cutoffs = {round(float(h[pair]), 9) for pair in different}
        assert len(cutoffs) <= 1, "only neurons tied at the cutoff may differ"


def test_ties_are_broken_by_layer_and_then_index():
    active = torch.ones(2, 2, 5, dtype=torch.long)
    active[0] = 9  # every neuron has the same entropy, and exceeds the filter in the first language
    stats = ActivationStats.from_counts(active, torch.tensor([10, 10]), ["en", "hi"])
    neurons = LAPE(top=0.3, filter_quantile=0.5).identify(stats)
    assert neurons["en"].indices().tolist() == [[0, 0], [0, 1], [0, 2]]
    assert len(neurons["hi"]) == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), top=st.sampled_from([0.01, 0.1, 0.37]))
def test_the_union_has_exactly_the_number_asked_for_when_enough_pass(seed, top):
    random = torch.Generator().manual_seed(seed)
    active = torch.randint(0, 1001, (4, 3, 50), generator=random)
    stats = ActivationStats.from_counts(active, torch.full((4,), 1000), ["en", "hi", "ur", "zh"])
    assert len(LAPE(top=top, filter_quantile=0.5).identify(stats)) == round(top * 150)
    assert len(LAPE(top=top, filter_quantile=0.5, interpolation="linear").identify(stats)) == round(top * 150)


def test_fewer_neurons_are_kept_when_fewer_pass_and_the_user_is_told():
    stats = counts(0)
    with pytest.warns(LangNeuronsWarning, match="exceed the filter"):
        neurons = LAPE(top=1.0, filter_quantile=0.9).identify(stats)
    assert 0 < len(neurons) < 80


def test_the_papers_variant_never_selects_everything_and_keeps_ties_only_when_asked():
    stats = counts(1, tokens=50)
    p = stats.probability()
    passing = int((p > torch.quantile(p.flatten(), 0.95)).any(0).sum())
    assert len(LAPE.mondal(top=1.0).identify(stats)) == passing
    active = torch.full((2, 1, 10), 5)
    active[0] = 9
    tied = ActivationStats.from_counts(active, torch.tensor([10, 10]), ["en", "hi"])
    assert len(LAPE(top=0.2, filter_quantile=0.5, ties="keep").identify(tied)) == 10


def test_a_kept_neuron_above_the_bar_nowhere_belongs_to_no_language_and_the_user_is_told():
    active = torch.tensor([[[60, 100, 99, 98]], [[0, 90, 91, 92]]])
    stats = ActivationStats.from_counts(active, torch.tensor([100, 100]), ["en", "hi"])
    with pytest.warns(LangNeuronsWarning, match="1 of 1 kept neurons"):
        neurons = LAPE(top=0.25, filter_quantile=0.0, bar_quantile=1.0).identify(stats)
    assert len(neurons) == 0


@pytest.mark.parametrize("method", [LAPE(top=0.1, filter_quantile=0.5), EntropyLambda(top=0.1, bar_quantile=0.5)])
def test_permuting_neurons_and_languages_permutes_the_result(method):
    random = torch.Generator().manual_seed(3)
    active = torch.randint(0, 100_001, (3, 2, 50), generator=random)
    names, order, shuffle = ["en", "hi", "ur"], [2, 0, 1], torch.randperm(50, generator=random)
    tokens = torch.full((3,), 100_000)
    plain = method.identify(ActivationStats.from_counts(active, tokens, names))
    permuted = method.identify(
        ActivationStats.from_counts(active[order][:, :, shuffle], tokens, [names[i] for i in order])
    )
    for name in names:
        assert torch.equal(plain.mask(name)[:, shuffle], permuted.mask(name))


def test_entropy_lambda_equals_its_formula_and_prefers_strong_neurons():
    stats = counts(5, tokens=1000)
    p, penalty = stats.probability(), 0.2
    values = EntropyLambda(penalty=penalty).scores(stats).values
    norm = (1 + 1 / 2 + 1 / 3) / 3
    for layer in range(2):
        for neuron in range(40):
            column = p[:, layer, neuron].tolist()
            total = sum(column)
            h = -sum(x / total * math.log(x / total) for x in column if x > 0) / math.log(3) if total else 1.0
            assert float(values[layer, neuron]) == pytest.approx(h - penalty * max(column) / norm, abs=1e-12)


def test_neurons_of_one_language_only_have_entropy_zero_and_equally_shared_ones_ln_k():
    p = torch.tensor([[[0.3, 0.1, 0.0]], [[0.0, 0.1, 0.0]]])
    assert entropy(p)[0].tolist() == [0.0, pytest.approx(math.log(2)), 0.0]


def test_sites_without_a_meaningful_sign_are_refused_unless_a_magnitude_is_given():
    random = torch.Generator().manual_seed(0)
    values = {one: torch.randn(400, 1, 20, generator=random) for one in ("en", "hi")}
    values["hi"][:, 0, 3] *= 4
    for site in ("post", "up", "q", "k", "v", "head"):
        stats = statistics_from(values, site=site)
        for method in (LAPE(), EntropyLambda()):
            with pytest.raises(StatisticsError, match="'act' or 'pre'"):
                method.identify(stats)
        by_magnitude = LAPE(top=0.05, magnitude_threshold=3.0)
        assert by_magnitude.identify(stats)["hi"].indices().tolist() == [[0, 3]]
        assert float(by_magnitude.scores(stats).standard_error().max()) > 0
        large = (values["hi"].abs() > 3.0).double().mean(0)
        p = stats.probability(3.0) + 1 - stats.probability(-3.0)
        assert float((p[1] - large).abs().max()) < 0.01
    plain_mlp = statistics_from(values, site="post", gated=False)
    assert LAPE().scores(plain_mlp).values.shape == (1, 20)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top": 0.0}, "top must be above 0 and at most 1, given 0.0"),
        ({"top": 1.5}, "top must be above 0 and at most 1, given 1.5"),
        ({"filter_quantile": -0.1}, "filter_quantile must be at least 0 and at most 1, given -0.1"),
        ({"bar_quantile": 2.0}, "bar_quantile must be at least 0 and at most 1, or None, given 2.0"),
        ({"epsilon": -1.0}, "epsilon must be at least 0 and below 1, given -1.0"),
        ({"magnitude_threshold": 0.0}, "a number above 0"),
    ],
)
def test_impossible_options_are_refused_at_once(options, said):
    with pytest.raises(StatisticsError, match=said):
        LAPE(**options)


def test_one_language_and_less_than_one_neuron_are_refused():
    stats = counts(0)
    with pytest.raises(StatisticsError, match="two or more"):
        LAPE().identify(stats.select(["l0"]))
    with pytest.raises(StatisticsError, match="less than one neuron"):
        LAPE(top=0.001).identify(stats)


def test_language_sets_have_the_papers_sizes():
    assert (len(SET5), len(SET_XNLI)) == (16, 7)


def test_silent_neurons_score_last():
    active = torch.tensor([[[9, 0, 5, 1]], [[1, 0, 5, 1]]])
    stats = ActivationStats.from_counts(active, torch.tensor([10, 10]), ["en", "hi"])
    values = LAPE().scores(stats).values[0]
    assert values[1] == pytest.approx(math.log(2))
    assert values.argmin() == 0
