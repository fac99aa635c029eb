"""The configurations and published numbers that notebook 07 reads."""

import tomllib
from pathlib import Path

import pytest

import langneurons as ln
from langneurons.evaluation.paper.neurons import INTERVENE_BY
from langneurons.training.conditions import POSSIBLE

FOLDER = Path(__file__).parents[2] / "studies" / "paper"
PUBLISHED = tomllib.loads((FOLDER / "published.toml").read_text("utf-8"))
STUDIES = {
    path.stem: tomllib.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.toml") if path.stem != "published"
}


def settings(study: dict) -> set[tuple[str, str]]:
    """Every key of every section, but those of which one suffices."""
    alternatives = {"steps", "epochs", "split"}
    sections = {name: part for name, part in study.items() if isinstance(part, dict)}
    return {(name, key) for name, part in sections.items() for key in part if key not in alternatives}


def test_every_study_has_the_same_settings():
    assert set(STUDIES) == {"babel", "llama-3.1-8b", "mistral-nemo"}
    assert len({frozenset(settings(study)) for study in STUDIES.values()}) == 1


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_names_only_what_exists(name):
    study = STUDIES[name]
    assert study["published_as"] in {row["model"] for row in PUBLISHED["xnli"]["rows"]}
    assert set(study["patches"]["published"]) <= set(INTERVENE_BY)
    assert set(study["transfer"]["conditions"]) <= set(POSSIBLE)
    assert set(study["neurons"]["pools"].values()) <= {"set1", "set6"}
    patched = {*study["xnli"]["languages"], *study["xquad"]["languages"]} - {"en"}
    assert patched <= set(study["neurons"]["pools"]) & set(study["corpus"]["languages"])


def test_the_papers_studies_read_all_languages_of_both_pools():
    for name in ("llama-3.1-8b", "mistral-nemo"):
        assert set(STUDIES[name]["corpus"]["languages"]) == {*ln.SET1, *ln.SET6}


@pytest.mark.parametrize("task", ["xnli", "xquad"])
def test_published_rows_are_complete_and_named_as_the_patches_are(task):
    about = {"model", "method", "language", "unpatched", "items"}
    for row in PUBLISHED[task]["rows"]:
        patches = set(row) - about
        assert patches
        assert patches <= set(INTERVENE_BY)
        numbers = [row["unpatched"], *(row[patch] for patch in patches)]
        scores = [score for number in numbers for score in (number if isinstance(number, list) else [number])]
        assert all(0 <= score <= 100 for score in scores)
