import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import langneurons as ln
from langneurons.errors import LanguageError, NeuronSetError, TrainingError
from langneurons.settings import CONDITIONS
from langneurons.training.conditions import POSSIBLE, conditions, report_random
from tests.planted.statistics import statistics_from

SHAPE = (3, 40)


def labelled(seed=0, sizes=(6, 5, 4)):
    generator = np.random.default_rng(seed)
    drawn = {}
    for language, size in zip(("en", "hi", "zh"), sizes, strict=True):
        units = generator.choice(SHAPE[0] * SHAPE[1], size, replace=False)
        drawn[language] = [divmod(int(unit), SHAPE[1]) for unit in units]
    return ln.NeuronSet.of(drawn, SHAPE, "act")


def by_name(*arguments, **options):
    found = {}
    for one in conditions(*arguments, **options):
        found.setdefault(one.name, []).append(one)
    return found


def per_layer(neurons):
    return neurons.counts().sum(axis=0).tolist()


def test_every_condition_trains_the_neurons_that_its_name_says():
    neurons = labelled()
    found = by_name(neurons, "en", ["hi", "zh"], ["none", "source", "target", "source+target", "all"])
    assert [one.neurons for one in found["none"]] == [None]
    assert found["source"][0].neurons.indices().tolist() == neurons["en"].indices().tolist()
    assert [one.target for one in found["target"]] == ["hi", "zh"]
    assert found["target"][1].neurons.indices().tolist() == neurons["zh"].indices().tolist()
    both = neurons.mask("en") | neurons.mask("hi")
    assert torch.equal(found["source+target"][0].neurons.mask(), both)
    assert bool(found["all"][0].neurons.mask().all())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["random", "random target", "random source+target"]))
def test_random_neurons_match_layer_counts_and_have_no_label(seed, name):
    neurons = labelled(seed)
    like = {"random": "source", "random target": "target", "random source+target": "source+target"}[name]
    found = by_name(neurons, "en", ["hi", "zh"], [like, name], seeds=[0, 3], controls=2)
    for one in found[name]:
        original = next(other for other in found[like] if other.target == one.target)
        assert per_layer(one.neurons) == per_layer(original.neurons)
        assert not bool((one.neurons.mask() & neurons.mask()).any())


def test_every_seed_and_draw_has_random_neurons_of_its_own_and_the_same_when_asked_again():
    drawn = by_name(labelled(), "en", ["hi"], ["random"], seeds=range(4), controls=3)["random"]
    assert [(one.seed, one.draw) for one in drawn] == [(seed, draw) for seed in range(4) for draw in range(3)]
    assert len({one.neurons for one in drawn}) == 12
    alone = by_name(labelled(), "en", ["hi"], ["none", "random"], seeds=[2], controls=1)["random"]
    assert alone[0].neurons == drawn[6].neurons


def test_with_statistics_random_neurons_match_the_magnitude_in_the_source_language():
    generator = torch.Generator().manual_seed(0)
    size = torch.linspace(0.01, 10, SHAPE[1]).expand(SHAPE)
    values = {"en": size * torch.randn(400, *SHAPE, generator=generator)}
    values["hi"] = size.flip(1) * torch.randn(400, *SHAPE, generator=generator)
    stats = statistics_from(values)
    neurons = ln.NeuronSet.of({"en": [(0, 38)], "hi": [(1, 38), (2, 1)]}, SHAPE, "act")
    found = by_name(
        neurons, "en", ["hi"], ["random", "random target"], seeds=range(5), controls=ln.Controls(draws=1, stats=stats)
    )
    loud = [int(unit) for one in found["random"] for _, unit in one.neurons.indices()]
    assert min(loud) >= 30
    for one in found["random target"]:
        units = {int(layer): int(unit) for layer, unit in one.neurons.indices()}
        assert units[1] >= 30
        assert units[2] < 10


def test_random_neurons_are_reported_beside_the_sets_they_stand_for():
    size = torch.linspace(1, 2, SHAPE[1]).expand(SHAPE)
    values = torch.randn(400, *SHAPE, generator=torch.Generator().manual_seed(0))
    stats = statistics_from({"en": size * values, "hi": size * values})
    neurons = ln.NeuronSet.of({"en": [(0, 20), (1, 10)], "hi": [(1, 30)]}, SHAPE, "act")
    controls = ln.Controls(draws=2, stats=stats)
    selections = conditions(neurons, "en", ["hi"], ["none", "random", "random target"], range(3), controls)
    balance = report_random(selections, neurons, "en", controls)["balance"]
    assert [(row["language"], row["neurons"]) for row in balance["rows"]] == [("random", 2), ("random target hi", 1)]
    of_random = [condition.neurons for condition in selections if condition.name == "random"]
    write = stats.write("en").flatten().numpy()
    written = np.mean([write[draw.union()].sum() for draw in of_random])
    assert balance["rows"][0]["write_ratio"] == pytest.approx(written / write[[20, 50]].sum())
    assert balance["sentence"].startswith("Controls: 6 draws, matched by write; they write ")
    assert report_random(selections[:1], neurons, "en", controls) == {}


def test_conditions_come_in_the_order_asked_and_once():
    asked = ["all", "none", "all"]
    assert [one.name for one in conditions(labelled(), "en", ["hi", "hi"], asked)] == ["all", "none"]
    assert set(CONDITIONS) < set(POSSIBLE)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"names": ["sorce"]}, TrainingError, "did you mean 'source'"),
        ({"names": []}, TrainingError, "at least one condition"),
        ({"targets": []}, TrainingError, "at least one target language"),
        ({"seeds": []}, TrainingError, "at least one training seed"),
        ({"seeds": [1, 1]}, TrainingError, "different numbers"),
        ({"targets": ["hi", "en"]}, TrainingError, "both the source and a target"),
        ({"controls": 0}, TrainingError, "at least one draw"),
        ({"targets": ["fr"]}, LanguageError, "Unknown language 'fr'"),
        ({"neurons": labelled(sizes=(6, 0, 4))}, TrainingError, "'hi' has no neurons"),
        ({"neurons": labelled(sizes=(100, 10, 5))}, NeuronSetError, "too few for a control"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(given, error, said):
    asked = {"neurons": labelled(), "source": "en", "targets": ["hi"], **given}
    with pytest.raises(error, match=said):
        inspect.unwrap(conditions)(**asked)
