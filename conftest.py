"""Fixtures for the tests and for the examples in docstrings."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from _pytest.doctest import DoctestItem

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def babel():
    """The embedded model."""
    import langneurons as ln

    return ln.load_model("babel")


@pytest.fixture(scope="session")
def babel_stats(babel):
    """Statistics of the phrasebook in three languages."""
    import langneurons as ln

    corpus = ln.load_corpus("babel", ["en", "hi", "zh"])
    return ln.record(babel, corpus, context_length=128, progress=False)


@pytest.fixture(autouse=True)
def _example_names(request, doctest_namespace):
    """Docstring examples know ``ln``, ``torch``, ``model`` (babel) and ``stats`` (of three languages)."""
    if not isinstance(request.node, DoctestItem):
        return
    import langneurons as ln

    source = "".join(example.source for example in request.node.dtest.examples)
    doctest_namespace.update(ln=ln, torch=torch)
    if "model" in source:
        doctest_namespace["model"] = request.getfixturevalue("babel")
    if "stats" in source:
        doctest_namespace["stats"] = request.getfixturevalue("babel_stats")
