"""Controls write what the neurons write that they stand for, and tables say how well."""

import numpy as np
import pytest
import torch

import langneurons as ln
from langneurons.errors import LangNeuronsWarning, LanguageError, NeuronSetError
from langneurons.identification.neurons import report_balance
from tests.planted.statistics import statistics_from

SHAPE = (2, 400)


@pytest.fixture(scope="module")
def stats():
    """Statistics in which a few neurons of each layer write several times what most write."""
    random = torch.Generator().manual_seed(0)
    scales = {language: torch.exp(0.7 * torch.randn(*SHAPE, generator=random)) for language in ("hi", "ur")}
    shift = 0.5 * torch.randn(*SHAPE, generator=random)
    values = {name: (torch.randn(200, *SHAPE, generator=random) + shift) * scale for name, scale in scales.items()}
    return statistics_from(values, output_norm=torch.ones(SHAPE))


@pytest.fixture(scope="module")
def neurons(stats):
    """In every layer ten of the neurons that write most in Hindi, every third of them."""
    order = stats.write("hi").argsort(dim=1, descending=True)
    return ln.NeuronSet.of(
        {"hi": [(layer, int(unit)) for layer in range(2) for unit in order[layer, 20:50:3]]}, SHAPE, "act"
    )


def draws_of(neurons, controls, n=10):
    return [neurons.matched_control(controls, draw) for draw in range(n)]


def test_controls_of_equal_write_are_of_the_same_layer_outside_the_set_and_random(stats, neurons):
    controls = ln.Controls(stats=stats)
    draws = draws_of(neurons, controls)
    (row,) = neurons.balance(draws, controls).to_dict("records")
    assert 0.95 <= row["write_ratio"] <= 1.05
    assert abs(row["write_difference"]) < 0.1
    assert row["without_candidate"] == 0
    for draw in draws:
        assert draw.counts().equals(neurons.counts())
        assert len(draw & neurons) == 0
    assert len({draw.members["hi"].tobytes() for draw in draws}) == 10
    log_write = stats.write("hi").log().ravel().numpy()
    for draw in draws:
        pairs = np.sort(log_write[draw.members["hi"]]) - np.sort(log_write[neurons.members["hi"]])
        assert np.abs(pairs).max() <= controls.caliper


def test_the_old_controls_write_less_and_random_ones_much_less(stats, neurons):
    ratios = {}
    for match in ("write", "layer+magnitude", "layer"):
        controls = ln.Controls(stats=stats, match=match)
        ratios[match] = neurons.balance(draws_of(neurons, controls), controls)["write_ratio"][0]
    assert ratios["write"] > 0.95
    assert ratios["layer"] < 0.6


def test_controls_of_equal_dose_write_the_same_in_sum_in_every_layer(stats, neurons):
    write = stats.write("hi").numpy()
    for draw in draws_of(neurons, ln.Controls(stats=stats, match="dose")):
        for layer in range(2):
            mine, theirs = (write[layer][of.mask("hi")[layer].numpy()] for of in (neurons, draw))
            assert abs(theirs.sum() - mine.sum()) <= write[layer].max() / 2
            assert len(theirs) > len(mine)


def test_a_layer_that_cannot_write_as_much_gives_all_it_has_and_the_table_says_so(stats):
    strongest = stats.write("hi").argsort(dim=1, descending=True)[:, :300]
    neurons = ln.NeuronSet.of({"hi": [(0, int(unit)) for unit in strongest[0]]}, SHAPE, "act")
    controls = ln.Controls(stats=stats, match="dose", draws=2)
    with pytest.warns(LangNeuronsWarning, match="Controls of hi do not write what the neurons write"):
        report = report_balance(neurons, controls)["balance"]
    assert len(neurons.matched_control(controls)) == 100
    assert report["rows"][0]["write_ratio"] < 0.5
    with pytest.raises(NeuronSetError, match="Layer 0 has 200 neurons too few .* match='dose'"):
        neurons.matched_control(ln.Controls(stats=stats))


def test_neurons_without_equal_in_their_layer_are_counted_and_get_the_nearest(stats):
    strongest = stats.write("hi").argsort(dim=1, descending=True)[0, :3]
    neurons = ln.NeuronSet.of({"hi": [(0, int(unit)) for unit in strongest]}, SHAPE, "act")
    controls = ln.Controls(stats=stats, caliper=0.02)
    draws = draws_of(neurons, controls, 3)
    (row,) = neurons.balance(draws, controls).to_dict("records")
    assert row["without_candidate"] >= 1
    assert row["write_ratio"] < 1
    assert row["eligible"] == SHAPE[1] - 3


def test_controls_can_be_active_as_often_too(stats, neurons):
    active = stats["hi"].probability().values.ravel().numpy()
    spread = {}
    for firing in (False, True):
        controls = ln.Controls(stats=stats, firing=firing, caliper=0.3)
        drawn = draws_of(neurons, controls)
        apart = [np.sort(active[draw.members["hi"]]) - np.sort(active[neurons.members["hi"]]) for draw in drawn]
        spread[firing] = float(np.abs(apart).mean())
    assert spread[True] < 0.05 < spread[False]


def test_neurons_specific_to_the_language_can_be_spared(stats, neurons):
    p = stats.probability()
    specific = (p[0] - p[1]).ravel().numpy()
    bar = np.quantile(specific, 0.7)
    for draw in draws_of(neurons, ln.Controls(stats=stats, spare=0.3)):
        assert (specific[draw.members["hi"]] <= bar).all()


def test_balance_is_the_standardised_difference_by_hand(stats, neurons):
    controls = ln.Controls(stats=stats, match="layer")
    draw = neurons.matched_control(controls)
    (row,) = neurons.balance([draw], controls).to_dict("records")
    for name, values in (
        ("write_difference", np.log(stats.write("hi").numpy().ravel())),
        ("active_difference", stats["hi"].probability().values.double().numpy().ravel()),
    ):
        mine, theirs = values[neurons.members["hi"]], values[draw.members["hi"]]
        assert row[name] == pytest.approx((mine.mean() - theirs.mean()) / np.sqrt((mine.var() + theirs.var()) / 2))


def test_what_cannot_be_matched_is_refused_in_one_sentence(stats, neurons):
    with pytest.raises(NeuronSetError, match="needs statistics: give stats=, or match='layer'"):
        neurons.matched_control(ln.Controls(match="write"))
    other = ln.NeuronSet.of({"zh": [(0, 3)]}, SHAPE, "act")
    with pytest.raises(LanguageError, match="Unknown language 'zh'.*can be matched by 'layer' only"):
        other.matched_control(ln.Controls(stats=stats))
    assert len(other.matched_control(ln.Controls(stats=stats, match="layer"))) == 1
    assert report_balance(neurons, ln.Controls(draws=0)) == {}
