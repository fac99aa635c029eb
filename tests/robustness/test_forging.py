"""Results edited by hand and sealed again are refused in a sentence, or can be used. `make soak` forges a thousand."""

import json
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons import storage
from langneurons.errors import LangNeuronsError, StorageError
from langneurons.storage.checksums import seal
from tests.robustness.forging import forged
from tests.robustness.results import RESULTS, ablation, evaluation, scored_neurons, used
from tests.views.report import made_up

FORGERIES = 15


def test_every_kind_of_result_is_forged():
    assert {kind for kind in storage.result.result_kinds() if "toy" not in kind} == set(RESULTS) - {"factorial"}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_forged_result_is_refused_in_a_sentence_or_can_be_used(kind, tmp_path):
    outcome = forged(kind, seed=1, count=FORGERIES, folder=tmp_path)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.counts["refused"] > 0


@pytest.mark.parametrize("kind", [kind for kind, make in RESULTS.items() if hasattr(make(), "settings")])
def test_a_setting_that_holds_nothing_is_refused_in_a_sentence_or_can_be_used(kind, tmp_path):
    whole = RESULTS[kind]()
    for name in [*whole.settings, "balance", "methods", "min_effect", "nats_per_token", "own_unit", "updates"]:
        result = RESULTS[kind]()
        result.settings[name] = None
        with suppress(LangNeuronsError):
            used(ln.load(result.save(tmp_path / name)))


OPTIONAL = [
    (kind, table, column)
    for kind, make in RESULTS.items()
    for table, expected in getattr(type(make()), "layouts", {}).items()
    for column in sorted(expected.optional)
    if isinstance(getattr(make(), table, None), pd.DataFrame)
]


@pytest.mark.parametrize(("kind", "table", "column"), OPTIONAL)
def test_a_result_without_an_optional_column_is_refused_in_a_sentence_or_can_be_used(kind, table, column, tmp_path):
    result = RESULTS[kind]()
    if column in getattr(result, table):
        getattr(result, table).pop(column)
    with suppress(LangNeuronsError):
        used(ln.load(result.save(tmp_path)))


def _edited(path, change):
    content = json.loads(path.read_text("utf-8"))
    content.pop("seal")
    change(content)
    path.write_text(json.dumps(seal(content)), "utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [10**12, 10**12]}, "A shape is"),
        ({"shape": [2.5, 4]}, "no whole number"),
        ({"shape": "24"}, "'shape', which must be a list of numbers"),
        ({"site": 3}, "'site', which must be text"),
        ({"members": [["en", [1.5]]], "scores": []}, "no whole number"),
        ({"members": [["en", [True]]]}, "'values', which must be a list of numbers"),
        ({"members": [["en", [1]], ["en", [2]]], "scores": []}, "stands there twice"),
        ({"members": [["en", [99]]], "scores": []}, "outside 0 to 7"),
        ({"members": [["en", [5, 1]]], "scores": []}, "must increase"),
        ({"scores": [["zh", [0.5]]]}, "has scores but no neurons"),
    ],
)
def test_a_neuron_set_edited_by_hand_is_refused_where_it_makes_no_sense(change, message, tmp_path):
    path = scored_neurons().save(tmp_path / "neurons.json")
    _edited(path, lambda content: content.update(change))
    with pytest.raises(LangNeuronsError, match=message):
        ln.NeuronSet.load(path)


def test_a_neuron_set_edited_by_hand_loads_where_it_makes_sense(tmp_path):
    path = scored_neurons().save(tmp_path / "neurons.json")
    _edited(path, lambda content: content.update(members=[["ur", [0, 7]]], scores=[]))
    assert ln.NeuronSet.load(path).members["ur"].tolist() == [0, 7]


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [("verdict", "great", "must be one of"), ("p", 1.5, "from 0 to 1"), ("items", -1, "whole number")],
)
def test_a_column_is_refused_by_its_kind(attribute, value, message, tmp_path):
    forged_result = ablation()
    forged_result.rows.loc[0, attribute] = value
    forged_result.save(tmp_path)
    with pytest.raises(StorageError, match=message):
        ln.load(tmp_path)


def test_rows_that_lack_the_unpatched_model_are_refused_when_they_are_read(tmp_path):
    result = evaluation()
    rows = result.rows.query("patch != 'unpatched' or language != 'hi'")
    ln.evaluation.Evaluation(rows, result.references, None, result.settings).save(tmp_path)
    with pytest.raises(StorageError, match="hi was not measured unpatched on the same items"):
        ln.load(tmp_path)


@pytest.mark.parametrize("name", ["../hi", "/etc/passwd", "..", ".hidden", "a/b", "\0", "x" * 300])
@pytest.mark.parametrize("key", ["order", "sites"])
def test_a_name_in_forged_statistics_never_leads_out_of_their_folder(key, name, tmp_path):
    folder = made_up.statistics().save(tmp_path / "deep" / "statistics")
    (tmp_path / "deep" / "hi.act.safetensors").write_bytes((folder / "hi.act.safetensors").read_bytes())

    def point_up(content):
        content[key] = [name]
        content["languages"][name] = content["languages"]["hi"]
        content["checksums"][f"{name}.act.safetensors"] = content["checksums"]["hi.act.safetensors"]

    _edited(folder / "statistics.json", point_up)
    with pytest.raises(StorageError, match="no names of files"):
        ln.ActivationStats.load(folder)


def test_lists_where_single_values_belong_are_refused(tmp_path):
    result = evaluation()
    rows = result.rows.assign(gold=[["a", "b"]] * len(result.rows))
    ln.evaluation.Evaluation(rows, result.references, None, result.settings).save(tmp_path)
    with pytest.raises(StorageError, match="lists in 'gold'"):
        ln.load(tmp_path)


def test_numbers_that_no_computer_holds_are_refused(tmp_path):
    folder = ablation().save(tmp_path)
    _edited(folder / "ablation.json", lambda content: content["settings"].update(margin=10**400))
    with pytest.raises(StorageError, match="'margin', which must be a finite number") as caught:
        ln.load(folder)
    assert len(str(caught.value)) < 300


def test_missing_numbers_stay_missing(tmp_path):
    result = ablation()
    result.rows.loc[0, ["low", "high", "p"]] = np.nan
    loaded = ln.load(result.save(tmp_path))
    pd.testing.assert_frame_equal(loaded.rows, result.rows)
