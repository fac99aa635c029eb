"""Too little text: said once where neurons are identified, and not where there is enough."""

import re
import warnings
from dataclasses import replace

import pytest
import torch

import langneurons as ln
from langneurons.errors import LangNeuronsWarning
from langneurons.identification.reliability import RELIABLE, reliability
from langneurons.recording.records import LanguageRecord

LANGUAGES = ["en", "hi", "ur", "zh"]


def _counted(tokens: int, spread: float, seed: int = 0) -> tuple[ln.ActivationStats, float]:
    """Counts of neurons whose probabilities are planted, and their reliability by construction."""
    generator = torch.Generator().manual_seed(seed)
    p = (0.5 + spread * torch.randn(4, 1, 4000, generator=generator, dtype=torch.float64)).clamp(0, 1)
    counts = torch.binomial(torch.full_like(p, tokens), p, generator=generator).long()
    between, chance = p.var(0).mean(), (p * (1 - p)).mean() / tokens
    return ln.ActivationStats.from_counts(counts, torch.full((4,), tokens), LANGUAGES), float(
        between / (between + chance)
    )


def _warnings(stats: ln.ActivationStats, method: ln.identification.Method | None = None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (method or ln.LAPE(top=0.01)).identify(stats)
    return [str(warning.message) for warning in caught if issubclass(warning.category, LangNeuronsWarning)]


@pytest.mark.parametrize(("tokens", "spread"), [(30, 0.05), (100, 0.05), (100, 0.2), (1000, 0.1)])
def test_the_reliability_is_that_of_planted_probabilities(tokens, spread):
    stats, truth = _counted(tokens, spread)
    assert reliability(stats) == pytest.approx(truth, abs=0.03)


def test_the_tokens_that_a_warning_asks_for_are_enough_and_no_more():
    stats, _ = _counted(100, 0.08)
    (message,) = _warnings(stats)
    assert message.startswith("These scores are noise: of 'en' only 100 tokens were counted")
    (needed,) = re.findall(r"about ([\d,]+) are needed", message)
    needed = int(needed.replace(",", ""))
    assert 100 < needed < 1000
    assert _counted(needed, 0.08, seed=1)[1] == pytest.approx(RELIABLE, abs=0.02)
    assert _warnings(_counted(2 * needed, 0.08, seed=1)[0]) == []


def test_languages_that_do_not_differ_give_a_reliability_of_about_none():
    stats, _ = _counted(100, 0.0)
    assert abs(reliability(stats)) < 0.05
    assert re.search(r"(100|9\d)% of what differs", _warnings(stats)[0])


@pytest.fixture(scope="module")
def train():
    return ln.load_corpus("babel", ["en", "hi", "ur"]).split(heldout=0.3, seed=0)[0]


def test_a_hundred_tokens_are_noise_and_the_thousand_of_the_readme_are_not(babel, train):
    few, enough = (
        ln.record(babel, train, tokens_per_language=tokens, context_length=64, progress=False) for tokens in (100, 1000)
    )
    for method in (ln.LAPE(top=0.01), ln.MeanDifference(), ln.Contrast()):
        (message,) = _warnings(few, method)
        assert "only 100 tokens were counted" in message
        assert _warnings(enough, method) == []


def test_tokens_of_a_single_document_are_noise_however_many(babel):
    phrases = ln.load_corpus("babel", ["en", "hi"])
    texts = ln.load_corpus({language: [" ".join(phrases.texts(language))] for language in phrases.languages})
    stats = ln.record(babel, texts, tokens_per_language=600, context_length=64, progress=False)
    (message,) = _warnings(stats)
    assert "all in one of 20 folds of documents" in message
    assert f"only {int(stats.tokens.min()):,} tokens were counted" in message


def test_documents_that_differ_make_scores_less_reliable_than_their_tokens_say():
    generator = torch.Generator().manual_seed(0)
    own = 0.5 + 0.05 * torch.randn(4, 1, 1, 2000, generator=generator, dtype=torch.float64)
    p = (own + 0.15 * torch.randn(4, 20, 1, 2000, generator=generator, dtype=torch.float64)).clamp(0, 1)
    counts = torch.binomial(torch.full_like(p, 50), p, generator=generator).long()
    records = {name: LanguageRecord(torch.full((20,), 50), {"active": counts[i]}) for i, name in enumerate(LANGUAGES)}
    stats = replace(_counted(1000, 0.05)[0], records={"act": records})
    of_tokens, of_documents = 0.25 / 1000, 0.15**2 / 20
    assert reliability(stats) == pytest.approx(0.05**2 / (0.05**2 + of_tokens + of_documents), abs=0.04)
    assert reliability(_counted(1000, 0.05)[0]) == pytest.approx(0.05**2 / (0.05**2 + of_tokens), abs=0.03)
