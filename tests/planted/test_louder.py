"""The truth of ``louder_language_neurons`` is as documented."""

import functools

import numpy as np
import pytest
import torch

from langneurons.effects.estimation import effect
from langneurons.effects.placement import placed
from langneurons.identification.neurons import NeuronSet
from langneurons.settings import Controls
from tests.planted.statistics import COST, LOUDER, louder_language_neurons

louder = functools.cache(louder_language_neurons)


def test_language_neurons_fire_in_their_language_and_write_several_times_what_most_neurons_write():
    truth = louder()
    shares = truth.stats.probability()
    for place, language in enumerate(LOUDER):
        own = truth.neurons.mask(language)
        assert own.sum(1).tolist() == [3] * 4
        assert float(shares[place][own].min()) > 0.15
        assert float(shares[torch.arange(3) != place][:, own].max()) < 0.15
        writes = truth.stats.write(language)
        assert 3.5 < float(writes[own].min() / writes.median()) < float(writes[own].max() / writes.median()) < 9
        others = truth.neurons.mask() & ~own
        assert float(writes[others].median() / writes.median()) < 2


def test_there_are_as_many_loud_neurons_of_no_language_as_asked_for_and_some_write_as_much_as_any_language_neuron():
    truth = louder()
    loud = truth.loud.mask()
    assert loud.sum(1).tolist() == [40] * 4
    assert not bool((loud & truth.neurons.mask()).any())
    for language in LOUDER:
        writes = truth.stats.write(language)
        for layer, neuron in truth.neurons[language].indices().tolist():
            near = (writes[layer] / writes[layer, neuron]).log().abs() < 0.2
            assert int((near & loud[layer]).sum()) >= 4


def test_zeroing_costs_what_is_written_whoever_writes_it():
    truth = louder()
    for language in LOUDER:
        writes, baseline = truth.stats.write(language), truth.losses(language)
        for neurons in (truth.neurons[language], truth.loud):
            cost = effect(truth.losses(language, neurons), baseline, resamples=200).estimate
            assert cost / float(writes[neurons.mask()].sum()) == pytest.approx(COST, rel=0.2)


def test_a_set_is_one_more_draw_of_neurons_that_write_as_much_and_none_of_its_magnitude_deciles():
    rejected = {"loud": [], "write": [], "dose": [], "layer+magnitude": []}
    for seed in range(60):
        truth, random = louder_language_neurons(seed), np.random.default_rng(seed)
        draws, spreads = {"loud": [as_loud(truth, random) for _ in range(19)]}, {}
        for match in ("write", "dose", "layer+magnitude"):
            controls = Controls(draws=19, stats=truth.stats, match=match)
            draws[match] = [truth.neurons.matched_control(controls, draw, exclude=truth.neurons) for draw in range(19)]
            balance = truth.neurons.balance(draws[match], controls, exclude=truth.neurons)
            spreads[match] = dict(zip(balance["language"], balance["spread"], strict=True))
        for language in LOUDER:
            cost = truth.changes[language].mean(0)
            value = float(cost[truth.neurons.mask(language)].sum())
            for kind, sets in draws.items():
                spread = spreads.get(kind, {}).get(language, 1.0)
                costs = [float(cost[neurons.mask(language)].sum()) for neurons in sets]
                p = placed(value, costs, spread=spread).p
                rejected[kind].append(p is not None and p <= 0.05)
    rates = {kind: float(np.mean(sets)) for kind, sets in rejected.items()}
    assert rates["layer+magnitude"] > 0.5
    assert 0.02 <= rates["write"] <= 0.08, rates
    assert 0.02 <= rates["dose"] <= 0.08, rates
    assert rates["loud"] <= 0.08, rates


def as_loud(truth, random) -> NeuronSet:
    """As many loud neurons as each language has in every layer."""
    loud = {layer: units.tolist() for layer, units in truth.loud.per_layer().items()}
    members = {
        language: [
            (layer, int(unit))
            for layer, units in loud.items()
            for unit in random.permutation(units)[: int(truth.neurons.mask(language)[layer].sum())]
        ]
        for language in LOUDER
    }
    return NeuronSet.of(members, truth.stats.shape, "act")
