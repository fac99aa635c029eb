"""The scores of every method against loops on raw activations, and the random control."""

import pytest
import torch
from torch import Tensor

from langneurons.errors import LanguageError, StatisticsError
from langneurons.identification.activation import ActivationProbability, MeanActivation, MeanDifference, Random
from langneurons.identification.detection import AUROC, TokenAP
from langneurons.identification.lape import LAPE, EntropyLambda
from langneurons.recording.statistics import ActivationStats
from tests.planted.statistics import statistics_from

LANGUAGES = ("en", "hi", "ur")
ALL = (LAPE, EntropyLambda, ActivationProbability, MeanActivation, MeanDifference, AUROC, TokenAP, Random)


def raw(seed=0, tokens=600, width=8) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shifts = torch.linspace(-1.5, 1.5, width)
    return {
        one: torch.randn(tokens + 100 * i, 1, width, generator=random) * (1 + i) + i * shifts
        for i, one in enumerate(LANGUAGES)
    }


def weighted_tokens(values, language, neuron):
    """(value, weight, is positive), each other language weighing as much as this one."""
    rows = []
    for one, tokens in values.items():
        column = tokens[:, 0, neuron].tolist()
        rows += [(x, 1 / len(column), one == language) for x in column]
    return sorted(rows, reverse=True)


def average_precision_oracle(rows):
    """Mean precision at each positive, as scikit-learn defines it for values without ties."""
    found = seen = score = 0.0
    total = sum(weight for _, weight, positive in rows if positive)
    for _, weight, positive in rows:
        seen += weight
        if positive:
            found += weight
            score += found / seen * weight / total
    return score


def auroc_oracle(rows):
    below, area = 0.0, 0.0
    negatives = sum(weight for _, weight, positive in rows if not positive)
    for _, weight, positive in reversed(rows):
        if positive:
            area += weight * below / negatives
        else:
            below += weight
    return area


@pytest.mark.parametrize("site", ["pre", "act", "post"])
@pytest.mark.parametrize(
    ("method", "oracle"), [(AUROC(), auroc_oracle), (TokenAP(), average_precision_oracle)], ids=["AUROC", "TokenAP"]
)
def test_detection_from_histograms_equals_a_loop_over_the_tokens(site, method, oracle):
    values = raw()
    act_fn = torch.nn.functional.silu if site == "act" else None
    scores = method.scores(statistics_from(values, site=site, act_fn=act_fn))
    seen = values if act_fn is None else {one: act_fn(tokens) for one, tokens in values.items()}
    for language in LANGUAGES:
        for neuron in range(8):
            expected = oracle(weighted_tokens(seen, language, neuron))
            assert float(scores[language][0, neuron]) == pytest.approx(expected, abs=0.006)


def test_relu_neurons_that_are_mostly_zero_tie_at_half():
    values = {one: torch.full((200, 1, 2), -1.0) for one in LANGUAGES}
    values["hi"][:50, 0, 0] = 1.0
    stats = statistics_from(values, act_fn=torch.relu)
    area, precision = AUROC().scores(stats)["hi"][0], TokenAP().scores(stats)["hi"][0]
    assert area.tolist() == pytest.approx([0.625, 0.5], abs=0.002)
    assert float(precision[1]) == pytest.approx(1 / 3, abs=0.002)
    assert float(precision[0]) > 0.4


def test_activation_probability_equals_counting():
    values = raw()
    stats = statistics_from(values)
    for threshold in (0.0, 0.5):
        scores = ActivationProbability(threshold=threshold).scores(stats)
        for language in LANGUAGES:
            counted = (values[language] > threshold).double().mean(0)
            assert float((scores[language] - counted).abs().max()) < (1e-12 if threshold == 0 else 0.02)
    pooled = ActivationProbability(threshold="pooled-p90").scores(stats).values
    assert torch.allclose(pooled.mean(0), torch.full((1, 8), 0.1, dtype=torch.float64), atol=0.005)


def test_means_and_differences_equal_those_of_the_tokens():
    values = raw()
    stats = statistics_from(values)
    means = {one: tokens.double().mean(0) for one, tokens in values.items()}
    difference = means["hi"] - (means["en"] + means["ur"]) / 2
    assert torch.allclose(MeanActivation().scores(stats)["hi"], means["hi"], atol=1e-6)
    assert torch.allclose(MeanDifference().scores(stats)["hi"], difference, atol=1e-6)
    spread = stats.pooled().std().values
    standardised = MeanDifference(standardised=True).scores(stats)["hi"]
    assert torch.allclose(standardised, difference / spread, atol=1e-5)


@pytest.mark.parametrize("make", ALL)
def test_every_method_keeps_as_many_as_asked_and_reports_their_scores(make):
    stats = statistics_from(raw(width=40))
    method = make(top=0.1)
    assert method.needs == ()
    neurons, scores = method.identify(stats), method.scores(stats)
    per_language = not isinstance(method, LAPE | EntropyLambda)
    assert all(len(neurons[one]) == 4 for one in LANGUAGES) if per_language else len(neurons) <= 4
    table = neurons.to_dataframe()
    assert table["score"].tolist() == [float(scores[row.language][row.layer, row.neuron]) for row in table.itertuples()]
    assert (neurons.shape, neurons.site, neurons.model) == (stats.shape, "act", stats.model.fingerprint)
    assert repr(method) in repr(scores)
    if make is not Random:
        with_interval = neurons.to_dataframe(scores)
        assert ((with_interval.low <= with_interval.score) & (with_interval.score <= with_interval.high)).all()


def test_scores_are_asked_for_by_a_language_that_was_scored():
    with pytest.raises(LanguageError, match="did you mean 'hi'"):
        MeanActivation().scores(statistics_from(raw()))["hii"]


def test_top_bottom_and_both_sides():
    stats = statistics_from(raw(width=40))
    scores = TokenAP().scores(stats)["hi"].flatten()
    top, bottom, both = (TokenAP(top=0.1, side=side).identify(stats)["hi"] for side in ("top", "bottom", "both"))
    assert {tuple(pair) for pair in top.indices().tolist()} == {(0, int(i)) for i in scores.topk(4).indices}
    assert {tuple(pair) for pair in bottom.indices().tolist()} == {(0, int(i)) for i in (-scores).topk(4).indices}
    assert len(both) == 4
    assert (len(both & top), len(both & bottom)) == (2, 2)


def test_random_neurons_depend_on_seed_and_language_alone():
    stats = statistics_from(raw(width=100))
    whole, part = Random(top=0.1).identify(stats), Random(top=0.1).identify(stats.select(["ur", "en"]))
    assert whole["ur"] == part["ur"]
    assert whole["ur"].mask().ne(whole["en"].mask()).any()
    assert Random(top=0.1, seed=1).identify(stats)["ur"] != whole["ur"]
    with pytest.raises(StatisticsError, match="no standard error"):
        Random().scores(stats).interval()


def test_random_neurons_are_spread_evenly():
    counts = torch.ones(1, 2, 50, dtype=torch.long)
    stats = ActivationStats.from_counts(counts, torch.tensor([4]), ["en"])
    drawn = sum(Random(top=0.2, seed=seed).identify(stats).mask().long() for seed in range(200))
    assert isinstance(drawn, Tensor)
    assert 15 < int(drawn.min()) <= int(drawn.max()) < 70  # 40 expected of 200


def test_published_counts_answer_sign_scores_and_refuse_what_they_do_not_hold():
    active = torch.tensor([[[90, 50, 40, 1]], [[2, 50, 60, 1]]])
    stats = ActivationStats.from_counts(active, torch.tensor([100, 100]), ["en", "hi"])
    assert LAPE(top=0.25, filter_quantile=0.5).identify(stats).model is None
    for method in (MeanActivation(), AUROC(), TokenAP(), ActivationProbability(threshold="pooled-p90")):
        with pytest.raises(StatisticsError):
            method.scores(stats)


@pytest.mark.parametrize("method", [MeanDifference(), AUROC(), TokenAP()], ids=repr)
def test_comparing_languages_needs_two(method):
    with pytest.raises(StatisticsError, match="two or more"):
        method.scores(statistics_from(raw()).select(["hi"]))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (ActivationProbability, {"threshold": "p90"}),
        (ActivationProbability, {"threshold": "pooled-p900"}),
        (ActivationProbability, {"threshold": float("nan")}),
        (ActivationProbability, {"threshold": 0.5, "magnitude_threshold": 0.5}),
        (EntropyLambda, {"penalty": -1.0}),
        (MeanActivation, {"top": True}),
        *((make, {"top": 0.0}) for make in ALL),
    ],
)
def test_impossible_options_are_refused(make, options):
    with pytest.raises(StatisticsError):
        make(**options)


def test_numbers_as_thresholds_are_refused_where_the_sign_means_nothing():
    stats = statistics_from(raw(), site="post")
    for method in (ActivationProbability(), ActivationProbability(threshold=0.5)):
        with pytest.raises(StatisticsError, match="'act' or 'pre'"):
            method.scores(stats)
    assert ActivationProbability(magnitude_threshold=0.5).scores(stats).values.shape == (3, 1, 8)
    assert ActivationProbability(threshold="pooled-p75").scores(stats).values.shape == (3, 1, 8)
