import pytest

from langneurons.study.steps import steps_of
from tests.study.small import SMALL, small


def source(kind: str, name: str) -> str:
    return f"{kind}:{name}"


def keys(**changes) -> dict[str, str]:
    return {name: step.key for name, step in steps_of(small(**changes), source).items()}


def changed(**changes) -> set[str]:
    before, after = keys(), keys(**changes)
    return {name for name in before if before[name] != after.get(name)}


def test_inputs_come_before_what_depends_on_them():
    steps = steps_of(small(), source)
    places = list(steps)
    assert places[-1] == "report"
    for step in steps.values():
        assert all(places.index(one.name) < places.index(step.name) for one in step.inputs)


def test_a_patch_value_changes_only_what_is_patched_by_it():
    patches = {"zero": {"write": 0}, "mean": {"write": "p90"}}
    assert changed(patches=patches) == {"matrix/babel/two/lape/mean", "report"}


def test_an_option_of_a_method_changes_its_neurons_and_what_is_done_with_them_but_no_recording():
    found = changed(methods={"lape": {"method": "lape", "top": 0.01}})
    assert "record/babel" not in found
    assert {"identify/babel/two/lape", "matrix/babel/two/lape/zero"} <= found


def test_what_cannot_change_a_result_changes_no_key():
    assert changed(text=SMALL["text"] | {"batch_size": 2}) == set()


@pytest.mark.parametrize("text", [{"tokens": 400}, {"context_length": 48}, {"sites": ["act", "post"]}])
def test_what_is_recorded_changes_everything(text):
    assert changed(text=SMALL["text"] | text) == set(keys())


def test_changed_content_of_a_source_changes_what_reads_it():
    before = keys()
    after = {name: step.key for name, step in steps_of(small(), lambda kind, name: f"{kind} changed").items()}
    assert before.keys() == after.keys()
    assert not before.items() & after.items()


def test_a_method_that_needs_more_than_counts_is_recorded_for():
    found = steps_of(small(methods={"ap": {"method": "sentence-ap"}}), source)
    assert found["record/babel"].settings["also"] == ["sentence"]
