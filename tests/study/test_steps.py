from contextlib import suppress

import pytest

from langneurons import storage
from langneurons.errors import LangNeuronsError
from langneurons.study.study import Study, steps_of
from tests.study.small import SMALL, small


def source(kind: str, name: str) -> str:
    return f"{kind}:{name}"


def keys(**changes) -> dict[str, str]:
    return {name: step.key for name, step in steps_of(small(**changes), source).items()}


def changed(**changes) -> set[str]:
    before, after = keys(), keys(**changes)
    return {name for name in before if before[name] != after.get(name)}


WAYS = {
    "default": {},
    "idle": {"chat": False, "top_p": 0.5, "seed": 5},
    "chat": {"chat": "auto"},
    "system": {"chat": True, "system": "Be brief."},
    "shots": {"shots": 2},
    "warm": {"temperature": 0.7},
}


def test_inputs_come_before_what_depends_on_them():
    steps = steps_of(small(), source)
    places = list(steps)
    assert places[-1] == "report"
    for step in steps.values():
        assert all(places.index(read.name) < places.index(step.name) for read in step.inputs)


def test_a_patch_value_changes_only_what_is_patched_by_it():
    patches = {"zero": {"write": 0}, "mean": {"write": "p90"}}
    assert changed(patches=patches) == {"matrix/babel/two/lape/mean", "report"}


def test_an_option_of_a_method_changes_its_neurons_and_what_is_done_with_them_but_no_recording():
    found = changed(methods={"lape": {"method": "lape", "top": 0.01}})
    assert "record/babel" not in found
    assert {"identify/babel/two/lape", "matrix/babel/two/lape/zero"} <= found


def test_what_cannot_change_a_result_changes_no_key():
    assert changed(run={"batch_size": 2, "progress": False}) == set()
    training = {"save_every": 1.0, "tensorboard": True}
    finetuning = {"english": {"source": "babel", "split": "train[:25%]", "training": training}}
    assert keys(**PAPER) == keys(**(PAPER | {"finetuning": finetuning}))


def test_how_a_task_is_asked_changes_its_own_key_and_what_is_the_default_changes_none():
    task = {"kind": "xquad", "source": "babel"}
    asked = {
        way: keys(tasks={"t": task | ({"prompting": options} if options else {})}) for way, options in WAYS.items()
    }
    names = [name for name in asked["default"] if name.startswith("evaluate")]
    assert names
    assert asked["default"] == asked["idle"]
    assert len({asked[way][name] for way in WAYS for name in names}) == (len(WAYS) - 1) * len(names)


@pytest.mark.parametrize("sizes", [{"tokens_per_language": 400}, {"context_length": 48}, {"sites": ["act", "post"]}])
def test_what_is_recorded_changes_everything(sizes):
    assert changed(recording=SMALL["recording"] | sizes) == set(keys())


def test_changed_content_of_a_source_changes_what_reads_it():
    before = keys()
    after = {name: step.key for name, step in steps_of(small(), lambda kind, name: f"{kind} changed").items()}
    assert before.keys() == after.keys()
    assert not before.items() & after.items()


def test_a_method_that_needs_more_than_counts_is_recorded_for():
    found = steps_of(small(methods={"ap": {"method": "sentence-ap"}}), source)
    assert found["record/babel"].settings["also"] == ["sentence"]


XNLI = {"kind": "xnli", "source": "babel"}
PAPER = {
    "sets": {"west": ["en", "vi"], "south": ["en", "hi"]},
    "methods": {"lape": {"method": "lape"}, "theirs": {"method": "published-lape"}},
    "patches": {"zero": {"write": 0}, "mean": {"write": "published:mean_mu_act"}},
    "finetuning": {"english": {"source": "babel", "split": "train[:25%]"}},
    "tasks": {
        "xnli": {"kind": "xnli", "source": "babel", "languages": ["hi"], "tuned": "english", "methods": ["lape"]}
    },
    "protocols": {"xnli": {"task": "xnli", "methods": ["theirs"]}},
    "validity": {"methods": ["lape"]},
    "matrix": {"patches": ["zero"]},
    "report": {},
}


def test_a_steps_place_is_what_its_name_says():
    for name, step in steps_of(small(**PAPER), source).items():
        place = (step.stage.name, step.model, step.language_set, step.method, step.entry, step.patch)
        assert "/".join(filter(None, place)) == name
        assert step.patch in ("", "zero")
        assert step.entry in ("", "english", "xnli")


def test_a_language_is_asked_in_the_sets_that_have_it():
    assert [name for name in keys(**PAPER) if name.startswith(("evaluate", "protocols"))] == [
        "evaluate/babel/south/lape/xnli",
        "protocols/babel/south/theirs/xnli",
    ]


def test_a_step_reads_published_statistics_and_a_tuned_model_only_where_it_needs_them():
    steps = steps_of(small(**PAPER), source)
    inputs = {name: {read.stage.name for read in step.inputs} for name, step in steps.items()}
    assert inputs["identify/babel/south/theirs"] == {"published"}
    assert inputs["matrix/babel/south/theirs/zero"] == {"identify", "record"}
    assert inputs["evaluate/babel/south/lape/xnli"] == {"identify", "record", "published", "finetune"}
    assert inputs["validity/babel/west/lape"] == {"record", "nulls"}
    assert not any(name.startswith(("published", "finetune", "nulls")) for name in keys())


@pytest.mark.parametrize(
    ("part", "changes", "kinds"),
    [
        ("finetuning", {"english": {"source": "babel", "adapter": {"rank": 4}}}, {"finetune", "evaluate", "protocols"}),
        ("published_statistics", {"batch_size": 2}, {"published", "identify", "evaluate", "protocols", "matrix"}),
        ("validity", {"methods": ["lape"], "tokens": 50}, {"nulls", "validity"}),
        ("validity", {"methods": ["lape"], "splits": 5}, {"validity"}),
        ("protocols", {"xnli": {"task": "xnli", "methods": ["theirs"], "positions": 32}}, {"protocols"}),
        ("testing", {"resamples": 100}, {"matrix", "evaluate", "protocols"}),
        ("tasks", {"xnli": {**PAPER["tasks"]["xnli"], "languages": ["hi", "en"]}}, {"evaluate", "protocols"}),
        ("published", "mondal-2025", set()),
    ],
)
def test_only_what_depends_on_a_change_runs_again(part, changes, kinds):
    before, after = keys(**PAPER), keys(**(PAPER | {part: changes}))
    assert {name.split("/")[0] for name in before if before[name] != after[name]} == {*kinds, "report"}


@pytest.mark.parametrize("name", ["log.jsonl", "at-work", "sources.json", "study.toml", "step.json", "failed.json"])
@pytest.mark.parametrize("damage", [b"\xff", b"{}", b"[1]\n", b'{"step": []}\n', b"[" * 100_000, b""])
def test_a_study_says_how_it_stands_though_one_of_its_files_is_damaged(tmp_path, name, damage):
    study = Study(small(), tmp_path)
    step = study._plan["record/babel"]
    study.folder.result(step).mkdir(parents=True)
    study.folder.finish(step, 1.0)
    study.folder.fail(study._plan["report"], "why", "where")
    study._sources.remember()
    (tmp_path / "study.toml").write_text(study.show())
    places = {"step.json": study.folder.result(step), "failed.json": study.folder.result(study._plan["report"]).parent}
    folder = places.get(name, tmp_path)
    file = next(folder.glob("*failed.json"), None) if name == "failed.json" else folder / name
    before = file.read_bytes() if file.exists() else b""
    for content in (damage, before[: len(before) // 2] + damage, before + damage):
        file.write_bytes(content)
        with storage.locked(tmp_path / "lock"), suppress(LangNeuronsError):
            again = Study.from_toml(tmp_path)
            if name not in ("study.toml", "sources.json"):
                assert len(again.status()) == len(again.steps)
            again.forecast(1e9)
            again.files()
