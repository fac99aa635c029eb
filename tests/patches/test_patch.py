"""Patches are checked when they are made: what does not fit is refused in a sentence."""

import dataclasses
import math

import jaxtyping
import numpy as np
import pytest
import torch

import langneurons as ln
from langneurons.errors import LanguageError, NeuronSetError, PatchError, SiteMismatchError, StatisticsError
from langneurons.recording.site_values import SiteValues
from tests.planted.statistics import statistics_from

SHAPE = (3, 8)
UNITS = [(0, 3), (2, 1), (2, 6)]
PLANTED = "planted0" * 4


def neurons_at(site="act", units=UNITS, model=None):
    return ln.NeuronSet.of({"hi": units}, SHAPE, site, model)


def values_at(site="act", model="m", fill=None):
    values = torch.arange(24.0).view(SHAPE) if fill is None else torch.full(SHAPE, fill)
    return SiteValues(values, site, model, "hi")


def planted(languages=("en", "hi", "zh"), site="act"):
    generator = torch.Generator().manual_seed(0)
    return statistics_from({one: torch.randn(50, *SHAPE, generator=generator) for one in languages}, site=site)


def test_values_come_in_the_order_of_the_set_whatever_they_are_given_as():
    neurons, expected = neurons_at(), {0: [3.0], 2: [17.0, 22.0]}
    full = torch.arange(24.0).view(SHAPE)
    for value, options in (
        (values_at(), {}),
        (full, {"site": "act"}),
        (torch.tensor([3.0, 17.0, 22.0]), {"site": "act"}),
        (torch.tensor([3, 17, 22]), {"site": "act"}),
    ):
        patch = ln.SetTo(neurons, value, **options)
        assert {layer: patch.values_of(layer)["value"].tolist() for layer in patch.by_layer} == expected
    assert {layer: units.tolist() for layer, units in patch.by_layer.items()} == {0: [3], 2: [1, 6]}
    assert ln.SetTo(neurons, 2).values_of(2) == {"value": 2.0}
    assert ln.SetTo(neurons, torch.tensor(2.0)).values_of(2)["value"].tolist() == [2.0, 2.0]
    assert ln.SetTo(neurons).values_of(0) == {"value": 0.0}


def test_layers_leave_the_others_out_but_not_their_values_order():
    patch = ln.SetTo(neurons_at(), torch.tensor([3.0, 17.0, 22.0]), site="act", layers=range(1, 3))
    assert list(patch.by_layer) == [2]
    assert patch.values_of(2)["value"].tolist() == [17.0, 22.0]
    assert list(ln.SetTo(neurons_at(), 1.0, layers=(layer for layer in (0, 1))).by_layer) == [0]


def test_what_each_kind_writes():
    neurons = neurons_at(units=[(0, 1)])
    now = torch.tensor([[[-2.0, 0.5, 3.0]]])
    for patch, expected in (
        (ln.SetTo(neurons, 4.0), [4.0, 4.0, 4.0]),
        (ln.Add(neurons, 1.0), [-1.0, 1.5, 4.0]),
        (ln.Scale(neurons, -2), [4.0, -1.0, -6.0]),
        (ln.Clamp(neurons, -1.0, 2.0), [-1.0, 0.5, 2.0]),
        (ln.Clamp(neurons, low=0), [0.0, 0.5, 3.0]),
        (ln.Clamp(neurons, None, 0.0), [-2.0, 0.0, 0.0]),
    ):
        assert patch.written(now, **patch.values_of(0)).tolist() == [[expected]]


def test_diffmean_is_the_mean_of_a_language_minus_the_mean_of_the_others():
    stats = planted()
    patch = ln.DiffMean(neurons_at(model=PLANTED), stats, "hi", strength=2)
    means = stats.mean()
    difference = 2 * (means[1] - (means[0] + means[2]) / 2)
    for layer, units in patch.by_layer.items():
        torch.testing.assert_close(patch.values_of(layer)["difference"], difference[layer, units].float())


def test_diffmean_everywhere_has_every_unit_of_the_site():
    patch = ln.DiffMean.everywhere(planted(site="resid_post"), "hi", layers=[1], positions="generated")
    assert patch.neurons.site == "resid_post"
    assert len(patch.neurons) == 24
    assert list(patch.by_layer) == [1]
    assert patch.positions == "generated"
    assert patch.values_of(1)["difference"].shape == (8,)


def test_equal_patches_have_equal_fingerprints_and_others_have_not():
    neurons = neurons_at()
    three = torch.tensor([3.0, 17.0, 22.0])
    same = [ln.SetTo(neurons, values_at()), ln.SetTo(neurons, three, site="act"), ln.SetTo(neurons_at(), values_at())]
    assert len({patch.fingerprint for patch in same}) == 1
    other = [
        *same,
        ln.SetTo(neurons, 0.0),
        ln.SetTo(neurons, 1e-9),
        ln.Add(neurons, 0.0),
        ln.Scale(neurons, 0.0),
        ln.Clamp(neurons, low=0.0),
        ln.Clamp(neurons, high=0.0),
        ln.SetTo(neurons, 0.0, positions="prompt"),
        ln.SetTo(neurons, 0.0, layers=[2]),
        ln.SetTo(neurons_at("post"), 0.0),
        ln.SetTo(neurons_at(units=UNITS[:2]), 0.0),
        ln.SetTo(neurons, three.flip(0), site="act"),
        ln.DiffMean(neurons, planted(), "hi"),
        ln.DiffMean(neurons, planted(), "en"),
    ]
    assert len({patch.fingerprint for patch in other}) == len(other) - 2


def test_a_patch_says_what_it_does():
    neurons = neurons_at()
    what = "NeuronSet of 3 neurons at act (3 layers x 8): hi 3"
    for patch, expected in (
        (ln.SetTo(neurons, 0.0), f"SetTo({what}, value=0)"),
        (ln.SetTo(neurons, values_at("act")), f"SetTo({what}, value=values of hi at act)"),
        (ln.Add(neurons, torch.ones(3), site="act", layers=[2]), f"Add({what}, value=(3,) values, layers 2 to 2)"),
        (ln.Scale(neurons, 2.5, positions="prompt"), f"Scale({what}, factor=2.5, prompt only)"),
        (ln.Clamp(neurons, -1, None), f"Clamp({what}, low=-1)"),
    ):
        assert repr(patch) == expected


def refused(error, make):
    """The sentence with which something is refused."""
    with pytest.raises(error) as raised:
        make()
    assert len(str(raised.value).splitlines()) == 1
    assert str(raised.value).endswith(".")
    return str(raised.value)


def test_values_of_the_wrong_shape_are_refused():
    text = refused(PatchError, lambda: ln.SetTo(neurons_at(), torch.zeros(3, 7), site="act"))
    assert "have shape (3, 7)" in text
    assert "(3, 8)" in text
    assert "(3,)" in text
    assert "(2,)" in refused(PatchError, lambda: ln.Scale(neurons_at(), torch.zeros(2), site="act"))
    other = SiteValues(torch.zeros(4, 8), "act", "m", "hi")
    assert "(4, 8)" in refused(PatchError, lambda: ln.SetTo(neurons_at(), other))


def test_a_raw_tensor_must_say_its_site():
    text = refused(PatchError, lambda: ln.SetTo(neurons_at(), torch.zeros(3)))
    assert "give site=, such as site='act'" in text


def test_values_of_another_site_are_refused_unless_allowed():
    for make in (
        lambda **o: ln.SetTo(neurons_at(), values_at("pre"), **o),
        lambda **o: ln.SetTo(neurons_at(), torch.zeros(3), site="pre", **o),
        lambda **o: ln.Clamp(neurons_at(), None, values_at("pre"), **o),
    ):
        assert "Values of site 'pre' would be written at site 'act'" in refused(SiteMismatchError, make)
        make(allow_site_mismatch=True)
    written = ln.SetTo(neurons_at(), values_at("pre"), allow_site_mismatch=True)
    assert written.values_of(2)["value"].tolist() == [17.0, 22.0]


def test_values_of_another_model_are_refused_unless_allowed():
    neurons = neurons_at(model="a" * 16)
    text = refused(SiteMismatchError, lambda: ln.SetTo(neurons, values_at(model="b" * 16)))
    assert text.startswith("The values belong to model bbbbbbbb, the neurons to model aaaaaaaa:")
    ln.SetTo(neurons, values_at(model="b" * 16), allow_site_mismatch=True)
    ln.SetTo(neurons, values_at(model="a" * 16))
    assert "planted0" in refused(SiteMismatchError, lambda: ln.DiffMean(neurons, planted(), "hi"))


def test_values_of_heads_are_refused_because_they_are_norms():
    for allowed in (False, True):
        make = lambda: ln.SetTo(neurons_at("head"), values_at("head"), allow_site_mismatch=allowed)  # noqa: B023, E731
        assert "norms of heads' outputs" in refused(PatchError, make)


def test_a_set_without_neurons_or_with_neurons_that_do_not_exist_is_refused():
    assert "is empty" in refused(PatchError, lambda: ln.SetTo(neurons_at(units=[]), 0.0))
    assert "8" in refused(NeuronSetError, lambda: neurons_at(units=[(0, 8)]))
    assert "3" in refused(NeuronSetError, lambda: neurons_at(units=[(3, 0)]))
    refused(NeuronSetError, lambda: neurons_at(units=[(-1, 0)]))


def test_layers_outside_the_model_or_without_neurons_are_refused():
    assert (
        refused(PatchError, lambda: ln.SetTo(neurons_at(), 0.0, layers=range(20, 32)))
        == "There is no layer 20: the model has layers 0 to 2."
    )
    assert "no layer -1" in refused(PatchError, lambda: ln.SetTo(neurons_at(), 0.0, layers=[-1, 0]))
    text = refused(PatchError, lambda: ln.SetTo(neurons_at(), 0.0, layers=[1]))
    assert text == "No neuron of the set lies in layers [1]: they lie in 0, 2."
    refused(PatchError, lambda: ln.SetTo(neurons_at(), 0.0, layers=[]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    assert f"the value {bad}" in refused(PatchError, lambda: ln.SetTo(neurons_at(), bad))
    assert "1 of the 3 values" in refused(
        PatchError, lambda: ln.Add(neurons_at(), torch.tensor([0.0, bad, 1.0]), site="act")
    )
    refused(PatchError, lambda: ln.SetTo(neurons_at(), torch.tensor(bad)))
    refused(PatchError, lambda: ln.Scale(neurons_at(), values_at(fill=bad)))
    refused(PatchError, lambda: ln.Clamp(neurons_at(), low=bad))
    refused(PatchError, lambda: ln.DiffMean(neurons_at(), planted(), "hi", strength=bad))


def test_values_that_are_not_finite_elsewhere_do_no_harm():
    values = values_at()
    values.values[1, 5] = math.nan
    ln.SetTo(neurons_at(), values)


def test_a_clamp_without_limits_or_with_crossed_ones_is_refused():
    assert "low=, high= or both" in refused(PatchError, lambda: ln.Clamp(neurons_at()))
    assert "low lies above its high for 3 of 3 neurons" in refused(PatchError, lambda: ln.Clamp(neurons_at(), 1.0, 0.5))
    text = refused(PatchError, lambda: ln.Clamp(neurons_at(), torch.tensor([0.0, 2.0, 2.0]), 1, site="act"))
    assert "for 2 of 3 neurons" in text
    ln.Clamp(neurons_at(), 0.5, 0.5)


@pytest.fixture
def unchecked():
    """As users run it: annotations are checked in tests only."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_what_is_no_value_is_refused(unchecked):
    for value, kind in (
        (None, "NoneType"),
        ("0.5", "str"),
        ([0.1, 0.2, 0.3], "list"),
        (np.zeros(3), "ndarray"),
        (planted()["hi"], "Responses"),
    ):
        text = refused(PatchError, lambda value=value: ln.SetTo(neurons_at(), value))
        assert text == f"A value is a number, SiteValues or a tensor, not {kind}."
    assert ln.SetTo(neurons_at(), np.float32(0.5)).values_of(0) == {"value": 0.5}


def test_unknown_positions_are_refused(unchecked):
    text = refused(PatchError, lambda: ln.SetTo(neurons_at(), 0.0, positions="promt"))
    assert text == "Unknown positions 'promt': did you mean 'prompt'? Possible: all, prompt, generated."


def test_diffmean_needs_the_language_another_one_and_the_site():
    text = refused(LanguageError, lambda: ln.DiffMean(neurons_at(), planted(), "ur"))
    assert text == "Unknown language 'ur'. Possible: en, hi, zh."
    assert "Only 'hi' was recorded" in refused(LanguageError, lambda: ln.DiffMean(neurons_at(), planted(["hi"]), "hi"))
    text = refused(SiteMismatchError, lambda: ln.DiffMean(neurons_at("post"), planted(), "hi"))
    assert "'post'" in text
    counts = ln.ActivationStats.from_counts(torch.ones(2, *SHAPE).long(), torch.tensor([5, 5]), ["en", "hi"])
    refused(StatisticsError, lambda: ln.DiffMean(neurons_at(), counts, "hi"))


def test_layers_may_be_given_as_a_generator_and_copied():
    neurons = ln.NeuronSet.of({"hi": [(0, 1), (1, 2)]}, (2, 8), "act")
    patch = ln.SetTo(neurons, 0.0, layers=(layer for layer in [1]))
    assert set(dataclasses.replace(patch).by_layer) == {1}


def test_set_goes_on_working_and_keeps_its_fingerprint():
    assert ln.patches.Set is ln.SetTo
    neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 2)]}, (2, 8), "act")
    patch = ln.patches.Set(neurons, 0.5)
    assert repr(patch) == "SetTo(NeuronSet of 2 neurons at act (2 layers x 8): hi 2, value=0.5)"
    # As version 0.1.0 named the conditions that it kept.
    assert patch.fingerprint == "a4e0ad968b958ea9d024a4c7df5469ba"
    assert ln.Add(neurons, 0.5).fingerprint == "0465d776a154f72d4d0410ef371259ec"


def test_the_control_of_a_patch_reads_its_values_at_other_neurons():
    values, neurons = values_at(), neurons_at()
    control = ln.SetTo(neurons, values, layers=[2], positions="prompt").matched_control(ln.Controls(seed=1), draw=2)
    assert control.neurons == neurons.matched_control(ln.Controls(seed=1), draw=2)
    assert (control.layers, control.positions) == ((2,), "prompt")
    assert control.by_layer.keys() == {2}
    assert control.values_of(2)["value"].tolist() == values[2, control.by_layer[2]].tolist()


def test_controls_of_patches_avoid_what_any_patch_at_their_site_writes():
    patches = {
        ("zero", "hi"): [ln.SetTo(neurons_at(), 0.0), ln.SetTo(neurons_at("pre", [(0, 0)]), 1.0)],
        ("zero", "en"): [ln.SetTo(neurons_at(units=[(0, 4), (2, 5)]), 0.0)],
    }
    stats = [planted(("hi", "en"), site) for site in ("act", "pre")]
    drawn = ln.patches.control_patches(patches, ln.Controls(draws=3, stats=stats, match="layer"))
    assert list(drawn) == [(*name, draw) for draw in range(3) for name in patches]
    written = {tuple(unit) for unit in [*UNITS, (0, 4), (2, 5)]}
    for (_, language, _), control in drawn.items():
        assert [patch.neurons.site for patch in control] == [patch.neurons.site for patch in patches["zero", language]]
        assert not written & {tuple(unit) for unit in control[0].neurons.indices().tolist()}
    assert ln.patches.control_patches(patches, ln.Controls(draws=0)) == {}
