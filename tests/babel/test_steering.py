"""The embedded model is worth steering: a language's mean difference turns its continuations into that language."""

import pytest

import langneurons as ln
from langneurons.tasks import completions
from langneurons.tasks.answers import identify

LANGUAGES = ["en", "fr", "hi", "zh"]
BEGINNINGS = 24


@pytest.fixture(scope="module")
def continuations(babel):
    train, heldout = ln.load_corpus("babel", LANGUAGES).split(heldout=0.3, seed=0)
    stats = ln.record(babel, train, sites=["resid_post"], context_length=128, progress=False)
    steering = {language: ln.DiffMean.everywhere(stats, language, strength=0.5) for language in LANGUAGES[1:]}
    beginnings = [" ".join(text.split()[:4]) for text in list(heldout.texts("en"))[:BEGINNINGS]]
    return completions(babel, beginnings, steering, max_new_tokens=20, batch_size=BEGINNINGS)


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_steering_turns_most_continuations_of_english_beginnings(continuations, language):
    assert identify(list(continuations["unpatched"]), LANGUAGES).count(language) < BEGINNINGS / 10
    assert identify(list(continuations[language]), LANGUAGES).count(language) > BEGINNINGS / 2
