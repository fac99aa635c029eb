"""README, documentation and notebooks show what the shipped weights do, and no earlier ones."""

import re
from pathlib import Path

import pytest

import langneurons as ln
from langneurons.models import view

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
WEIGHTS = re.compile(r"(?:\bweights `?|babel \(|\bmodel )([0-9a-f]{8})\b")
PRETRAINED = ROOT / "docs" / "results" / "smollm2"
SHOWN = {page.name: set(WEIGHTS.findall(page.read_text("utf-8"))) for page in PAGES}


@pytest.fixture(scope="module")
def shipped():
    return view(ln.load_model("babel")).fingerprint[:8]


@pytest.fixture(scope="module")
def pretrained():
    return ln.load(PRETRAINED / "neurons").model[:8]


@pytest.mark.parametrize("name", [name for name, weights in SHOWN.items() if weights])
def test_documented_weights_are_the_shipped_ones_or_those_of_the_pretrained_model(name, shipped, pretrained):
    assert SHOWN[name] <= {shipped, pretrained}


def test_weights_stand_beside_the_numbers_that_were_measured_on_them(shipped, pretrained):
    assert {shipped, pretrained} <= SHOWN["README.md"]
    assert pretrained in SHOWN["smollm2.md"]
    assert all(shipped in SHOWN[name] for name in ("babel.md", "validity.md", "01_find_language_neurons.ipynb"))


def test_saved_results_are_of_the_shipped_weights(shipped):
    neurons = ln.load(ROOT / "docs" / "results" / "babel" / "neurons")
    assert neurons.model[:8] == shipped
