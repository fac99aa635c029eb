"""A warning names the line of the user's that called langneurons, however deep the reason lies."""

import warnings

import pytest

import langneurons as ln
from langneurons.errors import LangNeuronsWarning


def of_line(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(warning.filename, warning.category) for warning in caught]


@pytest.mark.parametrize("depth", ["shallow", "in a settings object", "in a constructor"])
def test_the_file_is_the_users(depth, babel):
    corpus = ln.load_corpus("babel", ["en", "hi"]).take(30)
    calls = {
        "shallow": lambda: ln.Set,
        "in a settings object": lambda: ln.record(babel, corpus, tokens=100, context_length=64, progress=False),
        "in a constructor": lambda: ln.HeldoutText.of(babel, corpus, each="document"),
    }
    places = of_line(calls[depth])
    assert places
    assert set(places) == {(__file__, LangNeuronsWarning)}
