import copy
import warnings
from dataclasses import replace

import pytest
import torch

import langneurons as ln
from langneurons.errors import LangNeuronsWarning, LanguageError, NeuronSetError, PatchError, StatisticsError
from langneurons.replication.neurons import INTERVENE_BY, act_prob_90p_neurons, lape_neurons, published_patch
from langneurons.replication.statistics import ARRAYS, PublishedStatistics
from tests.planted.model import LANGUAGES
from tests.replication import naive


def made_up(p: torch.Tensor, languages: tuple[str, ...] = ("en", "hi", "zh")) -> PublishedStatistics:
    """Statistics with these shares, all other arrays zero."""
    arrays = {name: torch.zeros_like(p) for name in ARRAYS}
    return PublishedStatistics(languages, "a model", {}, **(arrays | {"act_prob_zero": p, "act_prob_90p": p}))


def places(neurons: ln.NeuronSet, language: str) -> set[tuple[int, int]]:
    return {(int(layer), int(neuron)) for layer, neuron in neurons[language].indices()}


def recall(neurons: ln.NeuronSet, truth, kind: str) -> float:
    found, planted = 0, 0
    for language in LANGUAGES:
        own = {place for place, owner in truth.neurons[kind].items() if owner in (language, "")}
        found, planted = found + len(own & places(neurons, language)), planted + len(own)
    return found / planted


def test_the_own_percentile_misses_the_planted_language_neurons_that_lape_finds(published, truth):
    share = 0.1
    assert recall(act_prob_90p_neurons(published, share), truth, "exclusive") <= 2 * share
    assert recall(lape_neurons(published, top=share, filter_quantile=0.75), truth, "exclusive") == 1


def test_the_own_percentile_prefers_neurons_of_a_topic(published, truth):
    """Documents differ in topic: that is the difference between batches that the score ranks by."""
    neurons = act_prob_90p_neurons(published, 0.1)
    assert recall(neurons, truth, "topic") > recall(neurons, truth, "exclusive") + 0.2


@pytest.mark.parametrize("share", [0.00125, 0.01, 0.5])
def test_each_language_gets_its_share_of_highest_scores(share):
    p = torch.rand(3, 4, 300, generator=torch.Generator().manual_seed(0))
    neurons = act_prob_90p_neurons(made_up(p), share)
    assert neurons.site == "act"
    for number, language in enumerate(("en", "hi", "zh")):
        best = p[number].flatten().topk(round(share * 1200)).indices.tolist()
        assert places(neurons, language) == {divmod(flat, 300) for flat in best}
        assert neurons.scores[language].min() == pytest.approx(float(p[number].flatten()[best].min()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [5, 20, 10**6])
def test_lape_equals_the_naive_port_with_and_without_ties(seed, levels):
    p = torch.randint(0, levels, (3, 4, 250), generator=torch.Generator().manual_seed(seed)) / levels
    expected = naive.lape(dict(zip(("en", "hi", "zh"), p, strict=True)), 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangNeuronsWarning)
        found = lape_neurons(made_up(p), top=0.05)
    assert {language: places(found, language) for language in found.languages} == expected


def test_lape_keeps_ties_beyond_what_was_asked():
    p = torch.full((3, 1, 100), 0.2)
    p[0, 0, :10] = 0.9
    assert len(lape_neurons(made_up(p), top=0.02, filter_quantile=0.9)) == 10


def test_lape_with_an_infinite_cutoff_labels_every_neuron_that_passes_and_says_so():
    p = torch.full((3, 1, 100), 0.2)
    p[0, 0, :3] = torch.tensor([0.9, 0.8, 0.7])
    with pytest.warns(LangNeuronsWarning, match="Only 3 neurons pass the filter and 50 are wanted"):
        neurons = lape_neurons(made_up(p), top=0.5)
    assert {language: len(neurons[language]) for language in neurons.languages} == {"en": 3, "hi": 0, "zh": 0}
    assert naive.lape({"en": p[0], "hi": p[1], "zh": p[2]}, 0.5)["en"] == places(neurons, "en")


def test_lape_is_the_sound_mondal_variant_where_neither_ties_nor_the_filter_bite():
    counts = torch.randint(0, 10**6, (3, 4, 250), generator=torch.Generator().manual_seed(0))
    languages = ["en", "hi", "zh"]
    sound = ln.LAPE.mondal(top=0.05).identify(
        ln.ActivationStats.from_counts(counts, torch.full((3,), 10**6), languages)
    )
    found = lape_neurons(made_up((counts / 10**6).float()), top=0.05)
    assert all(places(found, language) == places(sound, language) for language in languages)


def test_lape_depends_on_the_language_set(published):
    pair = lape_neurons(published, ["hi", "ur"], top=0.1, filter_quantile=0.75)
    assert pair.languages == ("hi", "ur")
    assert places(pair, "hi") != places(lape_neurons(published, top=0.1, filter_quantile=0.75), "hi")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: act_prob_90p_neurons(s, 0.0), StatisticsError),
        (lambda s: act_prob_90p_neurons(s, 0.0001), StatisticsError),
        (lambda s: lape_neurons(s, ["hi"]), StatisticsError),
        (lambda s: lape_neurons(s, ["hi", "fr"]), LanguageError),
        (lambda s: lape_neurons(s, top=2.0), StatisticsError),
    ],
)
def test_what_cannot_be_chosen_is_said(published, call, error):
    with pytest.raises(error):
        call(published)


@torch.no_grad()
def by_hand(hf_model, tokens, neurons, values):
    """Write values at the activation function's output, neuron by neuron, with torch hooks."""
    handles = []
    for layer, block in enumerate(hf_model.model.layers):

        def write(_, inputs, out, layer=layer):
            for place, neuron in neurons:
                if place == layer:
                    out[..., neuron] = values[place, neuron]

        handles.append(block.mlp.act_fn.register_forward_hook(write))
    logits = hf_model(tokens).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.filterwarnings("ignore::langneurons.errors.LangNeuronsWarning")
@pytest.mark.parametrize("intervene_by", ["mean_mu_act", "mean_p10_act", "zero", "neg10"])
def test_the_patch_writes_what_the_published_hook_writes(model, truth, published, intervene_by):
    neurons = act_prob_90p_neurons(published, 0.1)
    tokens = torch.randint(4, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    if intervene_by.startswith("mean"):
        values = published.values(intervene_by, "hi").values
    else:
        values = torch.full(published.shape, {"zero": 0.0, "neg10": -10.0}[intervene_by])
    hf_model = copy.deepcopy(truth.hf_model)
    expected = by_hand(hf_model, tokens, places(neurons, "hi"), values)
    with torch.no_grad(), ln.intervene(model, published_patch(neurons, published, "hi", intervene_by)):
        found = model(tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, truth.hf_model(tokens).logits, atol=1e-3)


def test_the_published_values_are_out_of_reach_of_the_activation_function(model, published):
    patch = published_patch(act_prob_90p_neurons(published, 0.1), published, "hi", "mean_p5_act")
    with pytest.warns(LangNeuronsWarning, match="cannot come from"), ln.intervene(model, patch):
        pass


@pytest.mark.parametrize("intervene_by", INTERVENE_BY)
def test_every_published_value_can_be_written(published, intervene_by):
    patch = published_patch(act_prob_90p_neurons(published, 0.1), published, "ur", intervene_by)
    assert patch.neurons.languages == ("ur",)


def test_patches_that_cannot_be_are_refused(published):
    neurons = act_prob_90p_neurons(published, 0.1)
    with pytest.raises(PatchError, match="mean_p90_act"):
        published_patch(neurons, published, "hi", "p90")
    with pytest.raises(LanguageError):
        published_patch(neurons, published, "fr", "zero")
    with pytest.raises(NeuronSetError, match="not of the model"):
        published_patch(replace(neurons, model="another"), published, "hi", "zero")
