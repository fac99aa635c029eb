"""Sentence average precision, contrast and gradient relevance, against naive oracles and planted truth."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import langneurons as ln
from langneurons.errors import StatisticsError
from langneurons.identification import LAPE, Contrast, GradientRelevance, Method, SentenceAP
from langneurons.recording.accumulation import GroupedSums
from langneurons.recording.records import Sentences
from tests.planted.statistics import statistics_from

LANGUAGES = ("en", "hi", "zh")
LAYERS, WIDTH, LENGTH = 2, 7, 8


def recorded(sizes: dict[str, int], seed: int = 0, relu: bool = False) -> ln.ActivationStats:
    """Random activations with sentences and relevance; neuron 0 is high in hi, neuron 1 low in hi, neuron 2 is dead."""
    random = torch.Generator().manual_seed(seed)
    values = {one: torch.randn(n * LENGTH, LAYERS, WIDTH, generator=random) for one, n in sizes.items()}
    for language, one in values.items():
        one[..., 0] += 2.0 * (language == "hi")
        one[..., 1] -= 2.0 * (language == "hi")
        one[..., 2] = 0.0
        if relu:  # many sentences of exactly one value
            one[..., 3] = (one[..., 3].view(-1, LENGTH, LAYERS) - 3).clamp(min=0).view(-1, LAYERS)
    documents = {one: torch.arange(n).repeat_interleave(LENGTH) for one, n in sizes.items()}
    stats = statistics_from(values, documents)
    for language, n in sizes.items():
        record = stats.records["act"][language]
        record.tensors.update(_optional(values[language], documents[language], n, record.grid().units))
    return stats


def _optional(values, documents, n, units) -> dict[str, torch.Tensor]:
    sentences, relevances = GroupedSums.zeros(units, n), GroupedSums.zeros(torch.ones_like(units), 20)
    for layer in range(LAYERS):
        sentences.add(layer, values[:, layer], documents)
        relevances.add(layer, values[:, layer].abs(), documents % 20)
    kept = Sentences("0" * 32, torch.arange(n))
    made = kept.tensors(torch.bincount(documents, minlength=n), sentences.sum)
    return {**made, "relevance_sum": relevances.sum, "relevance_unit": relevances.unit}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("sizes", [(12, 12, 12), (30, 7, 15)])
def test_sentence_ap_is_scikit_learns_average_precision_ties_included(sizes, relu):
    stats = recorded(dict(zip(LANGUAGES, sizes, strict=True)), relu=relu)
    found = SentenceAP(top=1, bottom=1).scores(stats).values
    language_of = np.repeat(np.arange(3), sizes)
    weight = 1 / np.array(sizes)[language_of]
    for layer in range(LAYERS):
        means = torch.cat([stats.sentence_means(one, layer) for one in LANGUAGES]).numpy()
        for i in range(3):
            equal = np.where(language_of == i, 1.0, 1 / 2) * weight  # each other language is half of the negatives
            equal = np.where(language_of == i, equal / 3, equal * 2 / 3)
            for neuron in range(WIDTH):
                expected = average_precision_score(language_of == i, means[:, neuron], sample_weight=equal)
                assert float(found[i, layer, neuron]) == pytest.approx(expected, abs=1e-9)
                if len(set(sizes)) == 1:
                    plain = average_precision_score(language_of == i, means[:, neuron])
                    assert float(found[i, layer, neuron]) == pytest.approx(plain, abs=1e-9)


def test_sentence_ap_keeps_what_is_high_and_what_is_low_in_a_language():
    stats = recorded(dict.fromkeys(LANGUAGES, 40))
    high = SentenceAP(top=2, bottom=0).identify(stats)["hi"].indices()
    low = SentenceAP(top=0, bottom=2).identify(stats)["hi"].indices()
    assert high.tolist() == [[0, 0], [1, 0]]
    assert low.tolist() == [[0, 1], [1, 1]]
    both = SentenceAP(top=2, bottom=2).identify(stats)["hi"].indices().tolist()
    assert both == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert len(SentenceAP(top=1 / 7, bottom=1 / 7).identify(stats)["hi"]) == 4


def test_a_dead_neuron_scores_what_chance_scores():
    found = SentenceAP().scores(recorded(dict.fromkeys(LANGUAGES, 20))).values
    assert torch.allclose(found[:, :, 2], torch.tensor(1 / 3, dtype=torch.float64))


@pytest.fixture(scope="module")
def several():
    """The same neurons on other documents, again and again."""
    return [recorded(dict.fromkeys(LANGUAGES, 40), seed) for seed in range(30)]


@pytest.mark.parametrize("method", [SentenceAP(), Contrast(), GradientRelevance(), GradientRelevance(specific=True)])
def test_standard_errors_are_the_spread_over_other_documents(method, several):
    spread = torch.stack([method.scores(stats).values for stats in several]).std(0)
    claimed = torch.stack([method.scores(stats).standard_error() for stats in several[:3]]).mean(0)
    ratio = (claimed / spread)[..., [0, 1, 3, 4, 5, 6]]
    # Which other language comes first is taken as known: where all are equal, contrast moves less than it claims.
    assert 0.75 < float(ratio.median()) < (1.6 if isinstance(method, Contrast) else 1.3)


def test_sentences_of_folds_answer_too():
    stats = recorded(dict.fromkeys(LANGUAGES, 60))
    halves = stats.folds(2)
    whole = SentenceAP().scores(stats).values
    assert all((SentenceAP().scores(half).values - whole).abs().max() < 0.35 for half in halves)
    assert ln.split_half(SentenceAP(top=1, bottom=1), stats, splits=3).overall["spearman"] > 0.3


def test_contrast_equals_a_loop_and_a_shared_neuron_scores_zero():
    active = torch.tensor([[[90, 50, 80, 0]], [[2, 50, 80, 0]], [[30, 60, 1, 0]]])
    stats = ln.ActivationStats.from_counts(active, torch.tensor([100, 100, 100]), LANGUAGES)
    p = active[:, 0].double() / 100
    expected = [[p[i, j] - max(p[m, j] for m in range(3) if m != i) for j in range(4)] for i in range(3)]
    assert torch.allclose(Contrast().scores(stats).values[:, 0], torch.tensor(expected).double())
    assert Contrast(top=0.25).identify(stats)["en"].indices().tolist() == [[0, 0]]
    assert Contrast().scores(stats)["hi"][0, 2] == 0


def test_relevance_is_the_mean_and_specific_relevance_compares_languages():
    stats = recorded(dict.fromkeys(LANGUAGES, 30))
    assert torch.allclose(GradientRelevance().scores(stats).values, stats.mean_magnitude(), atol=1e-4)
    specific = GradientRelevance(specific=True).scores(stats).values
    r = stats.relevance() / stats.relevance().mean((1, 2), keepdim=True)
    assert torch.allclose(specific[1], r[1] - (r[0] + r[2]) / 2)
    assert GradientRelevance(top=2 / 14, specific=True).identify(stats)["hi"].indices()[:, 1].max() <= 1


def test_methods_say_what_they_need_and_statistics_without_it_say_how_to_record_it():
    plain = statistics_from({one: torch.randn(40, 1, 5) for one in ("en", "hi")})
    for method in (SentenceAP(top=1, bottom=1), GradientRelevance(top=0.2)):
        assert isinstance(method, Method)
        (needed,) = method.needs
        with pytest.raises(StatisticsError, match=rf"also=\('{needed}',\)"):
            method.identify(plain)
    assert Contrast().needs == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SentenceAP(top=0, bottom=0), "nothing to keep"),
        (lambda: SentenceAP(top=-1), "top must be a share from 0 to 1, or a whole number of neurons, given -1"),
        (lambda: SentenceAP(top=1.5), "top must be a share from 0 to 1, or a whole number of neurons, given 1.5"),
        (lambda: SentenceAP(top=99).identify(recorded(dict.fromkeys(LANGUAGES, 5))), "there are 2 layers x 7"),
        (lambda: SentenceAP(top=9, bottom=9).identify(recorded(dict.fromkeys(LANGUAGES, 5))), "lowest were asked"),
        (lambda: SentenceAP().scores(recorded({"en": 5})), "two or more"),
        (lambda: Contrast(top=0.0), "top must be above 0 and at most 1, given 0.0"),
        (lambda: LAPE(magnitude_threshold="p75"), "pooled-p75"),
        (lambda: GradientRelevance(specific=True).scores(recorded({"en": 20})), "two or more"),
    ],
)
def test_impossible_options_are_refused_in_a_sentence(make, message):
    with pytest.raises(StatisticsError, match=message):
        make()


def test_a_pooled_threshold_suits_heads_of_any_scale_and_a_number_does_not():
    random = torch.Generator().manual_seed(0)
    norms = {one: 1 + torch.rand(600, 1, 8, generator=random) for one in LANGUAGES}
    norms["hi"][..., 3] += 1.0
    norms = {one: values * 10.0 ** torch.arange(-3, 5) for one, values in norms.items()}
    stats = statistics_from(norms, site="head")
    with pytest.raises(StatisticsError, match="'head' the sign"):
        LAPE().identify(stats)
    pooled = LAPE(top=0.125, filter_quantile=0.9, magnitude_threshold="pooled-p75").identify(stats)
    assert pooled["hi"].indices().tolist() == [[0, 3]]
    # A number is above or below all of a head's norms, in every language alike.
    entropies = LAPE(magnitude_threshold=5000.0).scores(stats).values
    assert ((entropies < 1e-9) | (entropies > 1.09)).all()
    signed = statistics_from({one: torch.randn(50, 1, 3) for one in LANGUAGES}, site="resid_post")
    with pytest.raises(StatisticsError, match="give a number"):
        LAPE(magnitude_threshold="pooled-p75").identify(signed)
