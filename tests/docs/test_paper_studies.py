"""The papers' studies name only what exists, and their published numbers are whole."""

from pathlib import Path

import pytest

import langneurons as ln
from langneurons.errors import StudyError
from langneurons.replication.neurons import INTERVENE_BY
from langneurons.replication.published import SHIPPED, listed, parse_published, read_published
from langneurons.study.config import read_config

FOLDER = Path(__file__).parents[2] / "studies"
STUDIES = {path.stem: read_config(path) for path in sorted(FOLDER.glob("*.toml"))}
PAPER = ["paper-llama-3.1-8b", "paper-mistral-nemo"]


def test_there_is_one_format_and_a_study_for_every_paper():
    assert set(STUDIES) == {
        "babel",
        "clas",
        "clas-bench",
        "demo",
        "factorial",
        "kojima-babel",
        "language-arithmetics",
        "paper-babel",
        *PAPER,
        "smollm2",
        "smollm2-more",
        "smollm2-text",
        "sparse-subnetwork",
        "tang",
    }
    assert not [path for path in FOLDER.iterdir() if path.is_dir()]


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_pools_change_with_the_evaluated_language(name):
    study = STUDIES[name]
    assert study.sets == {"set1": list(ln.corpora.SET1), "set6": list(ln.corpora.SET6)}
    for task in (study.tasks["xnli"], study.tasks["xquad"]):
        assert all(sum(code in of_set for of_set in study.sets.values()) == 1 for code in task.languages)


def test_the_papers_studies_differ_in_the_model_and_its_batches_only():
    llama, nemo = (STUDIES[name].model_dump(exclude={"name", "question", "models"}) for name in PAPER)
    llama["finetuning"]["xquad"]["training"]["batch_size"] = 4
    assert llama == nemo


def test_the_study_in_small_asks_all_that_the_large_one_asks():
    small, large = STUDIES["paper-babel"], STUDIES["paper-llama-3.1-8b"]
    for part in ("sets", "methods", "patches", "finetuning", "tasks", "protocols", "transfer"):
        assert list(getattr(small, part)) == list(getattr(large, part))


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_published_models_have_numbers(study):
    if study.published is not None and (numbers := read_published(study.published)).models:
        assert {part.published_as or name for name, part in study.models.items()} <= set(numbers.models)


@pytest.mark.parametrize("name", SHIPPED)
def test_published_numbers_are_shares_and_named_as_patches_are(name):
    numbers = read_published(name)
    assert numbers.source
    for row in numbers.scores:
        assert row.patched
        assert set(row.patched) <= set(INTERVENE_BY)
        assert all(0 <= score <= 100 for scores in (row.unpatched, *row.patched.values()) for score in listed(scores))


def test_what_is_wrong_with_published_numbers_is_said(tmp_path):
    with pytest.raises(StudyError, match="did you mean 'mondal-2025'"):
        read_published("mondal-2024")
    (tmp_path / "own.toml").write_text("paper = 3", "utf-8")
    with pytest.raises(StudyError, match="holds no published numbers: paper"):
        read_published(str(tmp_path / "own.toml"))
    (tmp_path / "own.toml").write_text("paper = ", "utf-8")
    with pytest.raises(StudyError, match="is no TOML file"):
        read_published(str(tmp_path / "own.toml"))
    row = {"model": "m", "task": "xnli", "metrics": ["accuracy"], "neurons": "lape", "language": "hi", "items": 3}
    row |= {"unpatched": [1.0, 2.0], "patched": {}}
    with pytest.raises(StudyError, match="m, hi, unpatched: one number for each metric"):
        parse_published({"paper": "p", "source": "s", "scores": [row]}, "own")
