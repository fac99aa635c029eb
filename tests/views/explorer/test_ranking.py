import numpy as np
import pytest
import torch

import langneurons as ln
from langneurons.errors import LanguageError, NeuronSetError
from langneurons.views.trials import ranked, response
from tests.planted.statistics import statistics_from

LANGUAGES = ("en", "hi", "ur")
SHARES = torch.tensor([[[0.1, 0.5, 0.2]], [[0.4, 0.6, 0.9]], [[0.2, 0.1, 0.3]]])


@pytest.fixture
def neurons():
    return ln.NeuronSet.of({"hi": [(0, 0), (0, 1), (0, 2)], "en": [], "control": [(0, 1), (0, 2)]}, (1, 3), "act")


def test_neurons_are_ordered_by_how_far_they_are_ahead_of_the_next_language(neurons):
    table = ranked(neurons, LANGUAGES, SHARES, "hi", 0)
    assert table["neuron"].tolist() == [2, 0, 1]
    assert np.allclose(table["ahead"], [0.6, 0.2, 0.1])
    assert table["where"].tolist() == ["ur", "ur", "en"]


def test_a_label_that_was_not_recorded_keeps_the_order_of_its_neurons(neurons):
    table = ranked(neurons, LANGUAGES, SHARES, "control", 0)
    assert table["neuron"].tolist() == [1, 2]
    assert table["own"].isna().all()
    assert table["where"].tolist() == ["hi", "hi"]


def test_with_one_language_recorded_there_is_nothing_to_be_ahead_of(neurons):
    table = ranked(neurons, ("hi",), SHARES[1:2], "hi", 0)
    assert table["neuron"].tolist() == [0, 1, 2]
    assert table["where"].tolist() == ["", "", ""]
    assert table[["elsewhere", "ahead"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("language", "layer", "error", "sentence"),
    [
        ("fr", 0, LanguageError, "Unknown language 'fr'"),
        ("hi", 1, NeuronSetError, "no layer 1: layers go from 0 to 0"),
        ("hi", -1, NeuronSetError, "no layer -1"),
        ("en", 0, NeuronSetError, "en has no neurons in layer 0: it has some in no layer"),
    ],
)
def test_cells_without_neurons_are_named(neurons, language, layer, error, sentence):
    with pytest.raises(error, match=sentence):
        ranked(neurons, LANGUAGES, SHARES, language, layer)


def test_where_the_sign_means_nothing_the_magnitude_counts():
    values = {language: torch.randn(200, 1, 3) for language in ("en", "hi")}
    assert response(statistics_from(values))[0] == "share active"
    name, found = response(statistics_from(values, site="post"))
    assert name == "mean magnitude"
    assert torch.allclose(found[0], values["en"].abs().mean(0).double(), atol=1e-4)
