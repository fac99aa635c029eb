"""Files of neuron sets: those of another method are not overwritten."""

from dataclasses import replace

import pytest

import langneurons as ln
from langneurons.errors import StaleArtefactError

NEURONS = ln.NeuronSet.of(
    {"hi": [(0, 3)], "ur": [(1, 2)]}, shape=(2, 8), site="act", model="m", method="LAPE(top=0.01)"
)


@pytest.mark.parametrize("name", ["n.json", "n.csv", "n.pth"])
def test_neurons_of_the_same_method_replace_those_of_an_earlier_recording(tmp_path, name):
    later = ln.NeuronSet.of({"hi": [(1, 7)], "ur": []}, (2, 8), "act", "m", NEURONS.method)
    for neurons in (NEURONS, later):
        neurons.write(tmp_path / name)
    assert ln.NeuronSet.read(tmp_path / name) == later


@pytest.mark.parametrize("name", ["n.json", "n.csv", "n.pth"])
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"method": "Contrast()"}, r"method (there LAPE(top=0.01), here Contrast())"),
        ({"method": "LAPE(top=0.02)"}, r"method (there LAPE(top=0.01), here LAPE(top=0.02))"),
        ({"site": "post"}, "site (there act, here post)"),
        ({"model": "other"}, "model (there m, here other)"),
        ({"members": {"hi": NEURONS.members["hi"]}}, "languages (there ['hi', 'ur'], here ['hi'])"),
    ],
)
def test_neurons_that_were_made_otherwise_are_not_overwritten(tmp_path, name, change, difference):
    path = NEURONS.write(tmp_path / name)
    with pytest.raises(StaleArtefactError) as refusal:
        replace(NEURONS, **change).write(path)
    assert difference in str(refusal.value)
    assert "give another path (--out on the command line), or remove this one" in str(refusal.value)
    assert ln.NeuronSet.read(path) == NEURONS
