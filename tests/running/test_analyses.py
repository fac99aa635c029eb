"""Profiles, screens and polysemanticity are the same wherever they are computed, and are kept in a folder."""

from typing import Any

import pytest
from pandas.testing import assert_frame_equal

import langneurons as ln
from langneurons.analysis.texts import LabelledTexts
from tests.running.conftest import NeverCalled


def profile(model, corpus, neurons, **run: Any):
    return ln.profile(model, neurons, corpus, k=2, context_length=16, similar=2, progress=False, **run)


def screen(model, corpus, neurons, **run: Any):
    text = ln.HeldoutText.of(model, corpus, 300, 32)
    return ln.screen(model, text, top=5, sample=20, progress=False, **run)


def polysemanticity(model, corpus, neurons, **run: Any):
    words = {
        language: [f"w{5 + place + item} w{9 + item} " + "w7 " * item for item in range(8)]
        for place, language in enumerate(("en", "hi"))
    }
    texts = LabelledTexts.parallel(words, list("abababab"))
    few = {"controls": 1, "permutations": 100, "probe_sizes": (), "progress": False}
    return ln.polysemanticity(model, neurons, texts, **few, **run)


def tables(result):
    return [getattr(result, name) for name in type(result).tables]


@pytest.mark.parametrize("verb", [profile, screen, polysemanticity])
def test_what_a_verb_gives_is_the_same_elsewhere_and_kept(tiny, corpus, neurons, ray, tmp_path, verb):
    here = tables(verb(tiny, corpus, neurons))
    there = tables(verb(tiny, corpus, neurons, executor=ray, out=tmp_path))
    again = tables(verb(tiny, corpus, neurons, executor=NeverCalled(), out=tmp_path))
    for mine, theirs, kept in zip(here, there, again, strict=True):
        assert_frame_equal(mine, theirs)
        assert_frame_equal(mine, kept)
