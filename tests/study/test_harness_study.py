"""Tasks of the harness in a study: they are run again where a configuration, a function or a document changed."""

from pathlib import Path

import pytest

import langneurons as ln
from langneurons.study.study import Study, steps_of
from langneurons.study.work import Sources
from tests.study.small import small
from tests.tasks.harness_files import ASK, CHOICE, questions, write_task

STEP = "evaluate/babel/two/lape/t"


@pytest.fixture
def folder(tmp_path):
    """A folder of two tasks, one of which includes a file and calls a function."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for language, offset in (("en", 0), ("hi", 5)):
        config = CHOICE | {"doc_to_text": ASK, "doc_to_choice": "choices"}
        write_task(folder, f"ask_{language}", questions(4, offset), **config)
    (folder / "common").write_text("metadata: {version: 2}\n")
    (folder / "kept.py").write_text("def kept(docs):\n    return docs\n")
    with (folder / "ask_en.yaml").open("a") as file:
        file.write("process_docs: !function kept.kept\ninclude: common\n")
    return folder


def key(folder: Path, source: str, **options) -> str:
    """The key of a task's step, by what lies on the disk at this moment."""
    config = small(tasks={"t": {"kind": "harness", "source": source, **options}})
    sources = Sources(folder.parent / "sources.json")
    steps = steps_of(config, sources)
    sources.remember()
    return steps[STEP].key


def ways(folder: Path) -> dict[str, str]:
    """The key of every way to name the tasks."""
    files = [str(folder / f"ask_{language}.yaml") for language in ("en", "hi")]
    return {
        "a file": key(folder, files[0]),
        "two files": key(folder, ", ".join(files)),
        "a folder": key(folder, "ask_en,ask_hi", include_path=str(folder)),
    }


@pytest.mark.parametrize("name", ["ask_en.yaml", "ask_en.jsonl", "kept.py", "common"])
def test_whatever_decides_the_items_decides_the_key(folder, name):
    before = ways(folder)
    assert len(set(before.values())) == 3
    assert ways(folder) == before
    (folder / "notes.txt").write_text("Nothing reads this.")
    assert ways(folder) == before
    with (folder / name).open("a") as file:
        file.write("\n")
    after = ways(folder)
    assert all(after[way] != before[way] for way in before)


def test_files_of_one_folder_are_told_apart_and_names_go_by_name(folder):
    assert key(folder, str(folder / "ask_en.yaml")) != key(folder, str(folder / "ask_hi.yaml"))
    assert key(folder, "xcopa_vi") == key(folder, "xcopa_vi") != key(folder, "xcopa_zh")
    mixed = f"{folder / 'ask_en.yaml'},"
    assert key(folder, f"{mixed}xcopa_vi") != key(folder, f"{mixed}xcopa_zh")


def test_files_out_of_reach_keep_the_hash_they_had(folder):
    before = ways(folder)
    folder.rename(folder.with_name("moved"))
    assert ways(folder) == before


def test_configurations_that_include_each_other_or_are_malformed_are_hashed_as_they_are(folder):
    (folder / "common").write_text("include: ask_en.yaml\n")
    (folder / "broken.yaml").write_text("task: [\n")
    assert key(folder, str(folder / "ask_en.yaml"))


def test_a_study_asks_the_tasks_and_asks_again_what_changed(folder, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    (folder / "ask_en.yaml").write_text((folder / "ask_en.yaml").read_text().replace("include: common\n", ""))
    task = {"kind": "harness", "source": "ask_en,ask_hi", "include_path": str(folder), "fewshot": 0, "limit": 3}
    config = small(matrix=None, tasks={"t": task}, testing={"resamples": 100}, report={"profiles": 0})
    study = Study(config, tmp_path / "run")
    states = study.run(progress=False)
    assert set(states["state"]) == {"done"}, states["why"].tolist()
    rows = ln.load(study.path(STEP)).rows
    assert set(rows["language"]) == {"en", "hi"}
    assert rows["item"].nunique() == 3
    with (folder / "ask_hi.jsonl").open("a") as file:
        file.write("\n")
    states = Study(config, tmp_path / "run").status().set_index("step")["state"]
    assert states[STEP] == "stale"
    assert states["identify/babel/two/lape"] == "done"
