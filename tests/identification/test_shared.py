"""Shared and exclusive neurons: where a neuron is above the bar, and where it is highest."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import langneurons as ln
from langneurons.errors import LanguageError
from langneurons.identification import Contrast
from langneurons.identification.neurons import NeuronSet, united
from langneurons.recording.statistics import ActivationStats
from langneurons.training.conditions import conditions

# Neuron 0: Hindi's alone. 1: of Hindi and Urdu, more of Urdu. 2: English's alone. 3 to 39: hardly ever active.
SHARES = torch.full((3, 1, 40), 1)
SHARES[0, 0, 2] = 80
SHARES[1, 0, [0, 1]] = torch.tensor([90, 60])
SHARES[2, 0, 1] = 85


@pytest.fixture(scope="module")
def stats():
    return ActivationStats.from_counts(SHARES, torch.tensor([100, 100, 100]), ["en", "hi", "ur"])


@pytest.fixture(scope="module")
def neurons(stats):
    return ln.LAPE(top=3 / 40, filter_quantile=0.95).identify(stats)


def units(neurons):
    return {label: (flat % neurons.shape[1]).tolist() for label, flat in neurons.members.items()}


def test_a_planted_neuron_of_two_languages_is_shared_and_one_of_one_language_exclusive(neurons):
    assert units(neurons) == {"en": [2], "hi": [0, 1], "ur": [1]}
    assert units(neurons.shared()) == {"en": [], "hi": [1], "ur": [1]}
    assert units(neurons.exclusive()) == {"en": [2], "hi": [0], "ur": []}
    assert units(neurons.shared("hi", "ur")) == {"en": [], "hi": [1], "ur": [1]}
    assert len(neurons.shared("en", "ur")) == 0


def test_a_neuron_above_the_bar_in_a_language_but_highest_in_another_is_shown_so(neurons):
    table = neurons.to_dataframe().set_index(["language", "neuron"])
    assert table.loc[("hi", 1), ["above", "highest"]].tolist() == ["hi, ur", "ur"]
    assert table.loc[("hi", 0), ["above", "highest"]].tolist() == ["hi", "hi"]
    assert neurons.highest_elsewhere()["hi"].tolist() == [1]
    printed = neurons.table().frame.set_index("language")
    assert printed.loc["hi", ["neurons", "of no other language", "higher in another"]].tolist() == [2, 1, 1]
    assert printed.loc["ur", "higher in another"] == 0


def test_one_language_of_a_set_still_knows_the_others(neurons):
    hindi = neurons["hi"]
    assert units(hindi.exclusive()) == {"hi": [0]}
    assert units(hindi.shared("hi", "ur")) == {"hi": [1]}
    assert units(hindi.shared("ur")) == {"hi": [1]}
    with pytest.raises(LanguageError, match="'urd'|'xx'"):
        hindi.shared("xx")
    assert neurons.spelled_like(["hin", "eng", "urd"]).shared("hin", "urd").members["hin"].tolist() == [1]


def test_scores_stay_with_their_neurons(neurons):
    kept = neurons.exclusive()
    place = neurons.members["hi"].tolist().index(0)
    assert kept.scores["hi"].tolist() == [neurons.scores["hi"][place]]


def test_everything_survives_save_load_merge_csv_and_tables(neurons, tmp_path):
    expected = neurons.to_dataframe()
    assert {"above", "highest"} <= set(expected.columns)
    copies = {
        "json": NeuronSet.load(neurons.save(tmp_path / "neurons.json")),
        "csv": NeuronSet.read(neurons.write(tmp_path / "neurons.csv")),
        "table": NeuronSet.from_dataframe(expected),
        "merged": neurons["en"].merge(neurons["hi"], neurons["ur"]),
    }
    for name, copy in copies.items():
        assert copy == neurons, name
        columns = ["language", "layer", "neuron", "above", "highest"]
        assert copy.to_dataframe()[columns].equals(expected[columns]), name
        assert units(copy["hi"].exclusive()) == {"hi": [0]}, name
    assert units(united([neurons["hi"], neurons["en"]]).exclusive()) == {"all": [0, 2]}
    assert units((neurons["hi"] & neurons["ur"]).shared("hi", "ur")) == {"hi&ur": [1]}


def test_a_file_without_them_still_loads_and_goes_by_its_labels(neurons, tmp_path):
    path = neurons.save(tmp_path / "neurons.json")
    from langneurons.storage.objects import read_json, write_json

    content = {
        name: value for name, value in read_json(path, NeuronSet.schema).items() if name not in ("above", "highest")
    }
    write_json(
        path, NeuronSet.schema, {name: value for name, value in content.items() if name not in ("schema", "checksum")}
    )
    older = NeuronSet.load(path)
    assert older.highest == {}
    assert units(older["hi"].exclusive()) == {"hi": [0]}
    assert "highest" not in older.to_dataframe().columns
    assert "higher in another" not in older.table().frame.columns


def test_sets_that_disagree_where_a_neuron_is_highest_do_not_say(neurons):
    other = replace(neurons, highest={"en": np.array([1]), "hi": np.array([0])})
    merged = neurons.merge(other)
    assert merged.languages_highest(np.array([0, 1, 2])) == ["hi", "", "en"]


def test_controls_belong_to_no_language_that_the_method_named(stats, neurons):
    control = neurons.matched_control()
    assert control.highest == {}
    assert {label: flat.tolist() for label, flat in control.above.items()} == {
        label: flat.tolist() for label, flat in control.members.items()
    }


def test_equally_high_languages_both_have_the_neuron(stats):
    even = SHARES.clone()
    even[1, 0, 1] = 85
    neurons = ln.LAPE(top=3 / 40).identify(
        ActivationStats.from_counts(even, torch.tensor([100] * 3), ["en", "hi", "ur"])
    )
    assert neurons.languages_highest(np.array([1])) == ["hi, ur"]
    assert neurons.highest_elsewhere()["hi"].tolist() == []


def test_rankings_compare_their_scores_and_random_neurons_are_highest_nowhere(stats):
    ranked = Contrast(top=2 / 40).identify(stats)
    assert ranked.languages_highest(np.array([0, 1, 2])) == ["hi", "ur", "en"]
    assert ln.identification.Random(top=0.1).identify(stats).highest == {}


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["en", "hi", "ur"]), st.sets(st.integers(0, 7)), min_size=1))
def test_shared_and_exclusive_are_the_two_parts_of_every_label(members):
    pairs = {label: [(0, unit) for unit in own] for label, own in members.items()}
    neurons = NeuronSet.of(pairs, (1, 8), "act")
    for label, own in members.items():
        elsewhere = set().union(*(other for name, other in members.items() if name != label))
        assert set(neurons.shared().members[label].tolist()) == own & elsewhere
        assert set(neurons[label].exclusive().members[label].tolist()) == own - elsewhere


def test_transfer_trains_the_same_shared_and_exclusive_neurons(neurons):
    shared, exclusive = conditions(neurons, "hi", ["ur"], ["shared", "exclusive"])
    assert shared.neurons is not None
    assert shared.neurons.union().tolist() == neurons["hi"].shared().union().tolist()
    assert exclusive.neurons is not None
    assert exclusive.neurons.union().tolist() == [0]
