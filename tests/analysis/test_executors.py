"""Profiles, screens and polysemanticity are the same wherever they are computed, and are kept in a folder."""

import importlib
from importlib.util import find_spec
from typing import Any

import pytest
from pandas.testing import assert_frame_equal

import langneurons as ln
from langneurons.analysis.texts import LabelledTexts
from tests.recording.conftest import documents
from tests.test_run import WIDTH, NeverCalled
from tests.tiny_models import save_tiny


@pytest.fixture(scope="module")
def ray():
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'langneurons[ray]'")
    yield ln.run.RayExecutor(workers=2)
    importlib.import_module("ray").shutdown()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return ln.load_model(save_tiny(tmp_path_factory.mktemp("checkpoint"), "llama"))


@pytest.fixture(scope="module")
def corpus():
    return ln.load_corpus(documents())


@pytest.fixture(scope="module")
def neurons():
    return ln.NeuronSet.of({"en": [(0, 1), (1, 3)], "hi": [(0, 2), (1, 40)]}, shape=(2, WIDTH), site="act")


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
