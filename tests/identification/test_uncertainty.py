"""Standard errors against brute force, and the coverage of the intervals."""

from functools import cache

import pytest
import torch

from langneurons.errors import StatisticsError
from langneurons.identification.activation import ActivationProbability, MeanActivation, MeanDifference
from langneurons.identification.detection import AUROC, TokenAP
from langneurons.identification.firing import jackknife_variance
from langneurons.identification.lape import LAPE, EntropyLambda
from langneurons.recording.accumulation import FOLDS
from langneurons.recording.statistics import ActivationStats
from tests.planted.statistics import statistics_from

LANGUAGES = ("en", "hi", "ur")


def clustered(seed, documents=60, width=12, spread=0.5, length=20):
    """Activations whose documents differ, so that tokens are not independent; documents differ in length."""
    random = torch.Generator().manual_seed(seed)
    values, labels = {}, {}
    for i, language in enumerate(LANGUAGES):
        lengths = torch.randint(length // 2, 2 * length, (documents,), generator=random)
        document = torch.repeat_interleave(torch.arange(documents), lengths)
        levels = spread * torch.randn(documents, 1, width, generator=random) + 0.3 * i
        values[language] = levels[document] + torch.randn(len(document), 1, width, generator=random)
        labels[language] = document
    return values, labels


def without(values, documents, language, fold):
    """The raw activations without one fold of one language."""
    kept = documents[language] % FOLDS != fold
    return {**values, language: values[language][kept]}, {**documents, language: documents[language][kept]}


def brute_force(method, values, documents):
    """Variance by recording anew without every fold of every language."""
    whole = method.scores(statistics_from(values, documents)).values
    variance = torch.zeros_like(whole)
    for language in LANGUAGES:
        for fold in range(FOLDS):
            part = method.scores(statistics_from(*without(values, documents, language, fold))).values
            variance += (part - whole) ** 2 * (FOLDS - 1) / FOLDS
    return variance


@pytest.mark.parametrize("spread", [0.0, 0.8, 1.2], ids=lambda spread: f"lengths lognormal {spread}")
def test_the_jackknife_is_as_large_as_the_sampling_error_however_documents_differ_in_length(spread):
    """4,000 draws of 123 documents, each with a level of its own: the planted truth is how much their means vary."""
    random = torch.Generator().manual_seed(0)
    lengths = (100 * torch.exp(spread * torch.randn(123, 4000, generator=random, dtype=torch.float64))).ceil()
    levels = torch.randn(123, 4000, generator=random, dtype=torch.float64)
    folds = torch.arange(123) % FOLDS
    tokens = torch.zeros(FOLDS, 4000, dtype=torch.float64).index_add_(0, folds, lengths)
    sums = torch.zeros(FOLDS, 4000, dtype=torch.float64).index_add_(0, folds, lengths * levels)
    whole = (sums.sum(0) / tokens.sum(0))[None]
    left_out = [((sums.sum(0) - own) / (tokens.sum(0) - n))[None] for own, n in zip(sums, tokens, strict=True)]
    error = jackknife_variance(whole, left_out).mean().sqrt()
    assert 0.97 < float(error / whole.std()) < 1.08


@pytest.mark.parametrize(
    "method", [LAPE(), EntropyLambda(), ActivationProbability(), MeanActivation(), MeanDifference()], ids=repr
)
def test_the_jackknife_equals_recording_anew_without_every_fold(method):
    values, documents = clustered(0)
    error = method.scores(statistics_from(values, documents)).standard_error()
    assert torch.allclose(error**2, brute_force(method, values, documents), rtol=1e-4, atol=1e-12)


def test_empty_folds_do_not_matter():
    values, documents = clustered(1, documents=7)
    error = LAPE().scores(statistics_from(values, documents)).standard_error()
    assert bool(error.isfinite().all())
    assert bool((error > 0).all())


def test_one_fold_and_published_counts_say_that_they_carry_no_folds():
    published = ActivationStats.from_counts(torch.tensor([[[3]], [[1]]]), torch.tensor([4, 4]), ["en", "hi"])
    with pytest.raises(StatisticsError, match="Published counts carry no document folds"):
        LAPE().scores(published).interval()
    values = {one: torch.randn(30, 1, 4) for one in LANGUAGES}
    single = statistics_from(values, {one: torch.zeros(30, dtype=torch.long) for one in LANGUAGES})
    with pytest.raises(StatisticsError, match="one fold"):
        MeanActivation().scores(single).standard_error()


def test_silent_and_exclusive_neurons_have_finite_errors():
    values, documents = clustered(2)
    for language in LANGUAGES:
        values[language][:, 0, 0] = -1.0
        values[language][:, 0, 1] = 1.0 if language == "hi" else -1.0
    values["en"][:, 0, 2] = torch.where(documents["en"] == 0, 1.0, -1.0)  # all activity in one fold
    stats = statistics_from(values, documents)
    for method in (LAPE(), EntropyLambda(), AUROC(), TokenAP(), ActivationProbability(threshold="pooled-p90")):
        error = method.scores(stats).standard_error()
        assert bool(error.isfinite().all()), method
    assert float(LAPE().scores(stats).standard_error()[0, 0]) == 0.0


def test_intervals_hold_the_score_and_stay_in_its_bounds():
    stats = statistics_from(*clustered(3))
    for method in (LAPE(), ActivationProbability(threshold=0.5), AUROC()):
        scores = method.scores(stats)
        low, high = scores.interval(0.99)
        assert bool(((low <= scores.values) & (scores.values <= high)).all())
        assert float(low.min()) >= scores.bounds[0]
        assert float(high.max()) <= scores.bounds[1]
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        scores.interval(95.0)


@cache
def drawn(seed):
    return statistics_from(*clustered(seed, documents=80, width=8))


def spread_over_draws(method, draws=40):
    """Standard deviation of a score over independent corpora, and its mean claimed standard error."""
    found, claimed = [], []
    for seed in range(draws):
        scores = method.scores(drawn(seed))
        found.append(scores.values)
        claimed.append(scores.standard_error())
    return torch.stack(found).double().std(0).mean(), torch.stack(claimed).double().mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        LAPE(),
        MeanDifference(),
        ActivationProbability(threshold=0.7),
        ActivationProbability(threshold="pooled-p90"),
        AUROC(),
        TokenAP(),
    ],
    ids=repr,
)
def test_claimed_errors_have_the_size_of_the_spread_over_corpora(method):
    spread, claimed = spread_over_draws(method)
    low, high = (0.9, 1.1) if not method_is_approximate(method) else (0.8, 1.6)
    assert low < float(claimed / spread) < high


def method_is_approximate(method):
    return isinstance(method, AUROC | TokenAP) or getattr(method, "threshold", 0.0) != 0.0


@pytest.mark.slow
def test_lape_intervals_cover_the_truth_on_clustered_data():
    truth = LAPE().scores(statistics_from(*clustered(10_000, documents=20_000, width=1))).values[0, 0]
    covered, total = 0, 0
    for seed in range(100):
        low, high = LAPE().scores(drawn(seed)).interval(0.95)
        covered += int(((low <= truth) & (truth <= high)).sum())
        total += low.numel()
    assert 0.85 <= covered / total <= 0.99, covered / total
