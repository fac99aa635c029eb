import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import langneurons as ln
from langneurons.analysis.profiling import (
    activity,
    completed,
    named,
    pieces_of,
    script_of,
    standardised,
    token_changes,
)
from langneurons.errors import (
    CorruptArtefactError,
    NeuronSetError,
    SiteMismatchError,
    StaleArtefactError,
    StatisticsError,
)
from langneurons.models import view
from tests.analysis.ablation_models import texts, tiny
from tests.planted.model import planted_model
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def truth():
    return planted_model(documents=40)


@pytest.fixture(scope="module")
def model(truth):
    return truth.model()


@pytest.fixture(scope="module")
def corpus(truth):
    return truth.corpus()


@pytest.fixture(scope="module")
def stats(model, corpus):
    return ln.record(model, corpus, context_length=64, progress=False)


@pytest.fixture(scope="module")
def neurons(truth, model):
    return truth.exclusive(model, ("en", "hi"))


@pytest.fixture(scope="module")
def profiles(model, corpus, neurons, stats):
    return ln.profile(model, neurons, corpus, stats, k=2, context_length=16, similar=3, progress=False)


def test_a_planted_neuron_is_most_active_on_texts_of_its_language(profiles, neurons):
    for language in neurons.languages:
        for layer, index in neurons[language].indices().tolist():
            top = profiles[(layer, index)].examples.query("kind == 'top' and rank == 0").set_index("language")
            assert top["activation"].idxmax() == language


def test_texts_carry_every_token_with_the_value_that_activations_gives(model, neurons, profiles):
    layer, index = profiles.neurons[0]
    row = profiles[layer, index].examples.iloc[0]
    text = "".join(profiles.pieces(row["text"]))
    found = ln.activations(model, text, neurons)[layer, index].to_numpy()
    assert np.allclose(found, row["values"], atol=1e-5)
    assert np.isclose(max(row["values"]), row["activation"])
    assert bool(profiles.texts.loc[row["text"], "cut"])


def test_every_kind_stands_for_every_language_and_neuron(profiles, corpus):
    counted = profiles.examples.groupby(["language", "layer", "neuron", "kind"]).size()
    assert set(counted) == {2}
    assert len(counted) == len(profiles) * len(corpus.languages) * 3


@pytest.mark.parametrize("offsets", [[(0, 3), (3, 7)], [(0, 3), (4, 7)], [(0, 7), (0, 7)]])
def test_pieces_are_the_text_however_a_tokenizer_counts_spaces_and_bytes(offsets):
    assert "".join(pieces_of("Two cats", offsets)) == "Two cat"


@pytest.mark.parametrize(("architecture", "backend"), [("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked")])
def test_promoted_tokens_follow_the_final_norm_and_the_unembedding(architecture, backend):
    plain = tiny_model(architecture)
    if architecture == "llama":
        direction, weight = plain.model.layers[1].mlp.down_proj.weight[:, 7], plain.model.norm.weight
    else:
        direction, weight = plain.transformer.h[1].mlp.c_proj.weight[7], plain.transformer.ln_f.weight
        direction = direction - direction.mean()
    expected = (direction * weight) @ plain.get_output_embeddings().weight.T
    found = token_changes(view(tiny(architecture, backend)), "act", 1, torch.tensor([7]))
    assert torch.allclose(found[0], (expected - expected.mean()).detach(), atol=1e-5)


def test_a_zero_centred_norm_weight_counts_from_one():
    plain = tiny_model("gemma2")
    direction, weight = plain.model.layers[0].mlp.down_proj.weight[:, 3], 1 + plain.model.norm.weight
    expected = (direction * weight) @ plain.get_output_embeddings().weight.T
    found = token_changes(view(tiny("gemma2", "bridge")), "post", 0, torch.tensor([3]))
    assert torch.allclose(found[0], (expected - expected.mean()).detach(), atol=1e-4)


def test_heads_have_no_output_tokens_and_coordinates_have():
    seen = view(tiny("llama", "auto"))
    assert token_changes(seen, "head", 0, torch.tensor([0])) is None
    assert token_changes(seen, "resid_post", 0, torch.tensor([0])).shape == (1, 101)
    heads = ln.NeuronSet.of({"hi": [(0, 1)]}, (2, 4), "head")
    found = ln.profile(tiny("llama", "auto"), heads, texts(), k=1, progress=False)
    assert found.outputs.empty
    assert found.similar.empty


def test_similar_neurons_are_those_a_naive_search_finds(model, stats, profiles):
    layer, index = profiles.neurons[0]
    cells = activity(stats).numpy().reshape(-1, 2 * 160)
    with np.errstate(invalid="ignore", divide="ignore"):
        naive = np.nan_to_num(np.corrcoef(cells.T)[layer * 160 + index])
    naive[layer * 160 + index] = 0
    found = profiles[layer, index].similar.query("by == 'activity'")
    assert np.allclose(found["similarity"].abs(), np.sort(np.abs(naive))[::-1][:3], atol=1e-4)
    weights = torch.cat([view(model).output_weights(number, "act") for number in range(2)]).detach()
    cosine = torch.nn.functional.cosine_similarity(weights[layer * 160 + index], weights, dim=1)
    cosine[layer * 160 + index] = 0
    written = profiles[layer, index].similar.query("by == 'direction'")
    assert np.allclose(written["similarity"].abs(), cosine.abs().topk(3).values, atol=1e-5)


def test_neurons_that_never_change_are_like_none():
    assert bool((standardised(torch.ones(5, 2, 3)) == 0).all())


def test_profiles_are_read_back_as_they_were(profiles, tmp_path):
    again = ln.analysis.Profiles.load(profiles.save(tmp_path / "profiles"))
    assert repr(again) == repr(profiles)
    assert len(again.table()) == len(profiles)
    assert repr(ln.load(tmp_path / "profiles")) == repr(profiles)
    one, other = again[profiles.neurons[1]], profiles[profiles.neurons[1]]
    assert [list(row) for row in one.examples["values"]] == [list(row) for row in other.examples["values"]]
    assert one.similar.equals(other.similar)
    (tmp_path / "profiles" / "outputs.parquet").write_bytes(b"half")
    with pytest.raises(CorruptArtefactError):
        ln.analysis.Profiles.load(tmp_path / "profiles")


def test_what_belongs_to_another_model_or_site_is_refused(model, corpus, neurons, stats, profiles):
    foreign = ln.NeuronSet.of({"en": [(0, 1)]}, (2, 160), "act", "0" * 32)
    with pytest.raises(SiteMismatchError, match="belong to model 00000000"):
        ln.profile(model, foreign, corpus, progress=False)
    with pytest.raises(StaleArtefactError, match="profile that model"):
        profiles.check(foreign)
    with pytest.raises(StaleArtefactError, match="of site 'act'"):
        profiles.check(ln.NeuronSet.of({"en": [(0, 1)]}, (2, 160), "post"))
    with pytest.raises(NeuronSetError, match="2 layers x 48"):
        ln.profile(model, ln.NeuronSet.of({"en": [(0, 1)]}, (2, 48), "act"), corpus, progress=False)
    with pytest.raises(NeuronSetError, match="the nearest is"):
        profiles[(1, 159)] if (1, 159) not in profiles else profiles[(1, 158)]
    with pytest.raises(StatisticsError, match="similar must be a whole number of at least 0, given -1"):
        ln.profile(model, neurons, corpus, similar=-1, progress=False)


def test_the_clearest_neurons_are_those_furthest_ahead(truth, stats, neurons):
    every = ln.NeuronSet.of({"en": [(0, unit) for unit in range(160)]}, (2, 160), "act", neurons.model)
    kept = every.clearest(stats, 3).indices()[:, 1]
    probability = stats.probability()[:, 0]
    ahead = probability[stats.languages.index("en")] - probability[
        [place for place, language in enumerate(stats.languages) if language != "en"]
    ].amax(0)
    assert set(kept.tolist()) == set(ahead.topk(3).indices.tolist())
    with pytest.raises(NeuronSetError, match="At least one"):
        every.clearest(stats, 0)


def test_labels_share_the_places_among_the_clearest(stats, neurons):
    kept = neurons.clearest(stats, 4)
    assert [len(kept[language]) for language in kept.languages] == [2, 2]
    assert len(neurons.clearest(stats, 10_000)) == len(neurons)


def test_scripts_and_parts_of_characters_are_named(babel):
    assert [script_of(text) for text in ("नमस्ते", " the", "سلام", "中文", "42", "")] == [
        "Devanagari",
        "Latin",
        "Arabic",
        "Chinese",
        "other",
        "other",
    ]
    assert script_of(completed(bytes.fromhex("E0A4"))) == "Devanagari"
    assert completed(bytes.fromhex("A4")) == ""
    seen = view(babel)
    lead = seen.tokenizer.convert_tokens_to_ids("à")
    assert named(seen, lead)[0] == "0xE0"


def test_a_page_has_neuronpedias_field_names_and_holds_what_the_profile_holds(profiles, stats):
    neuron = profiles.neurons[0]
    profile, page = profiles[neuron], profiles.to_neuronpedia(neuron, stats, model_id="planted")
    assert json.loads(json.dumps(page, allow_nan=False)) == page
    assert set(page) == {
        "modelId", "layer", "index", "pos_str", "pos_values", "neg_str", "neg_values", "maxActApprox", "frac_nonzero",
        "activations",
    }  # fmt: skip
    names = {"modelId": "planted", "layer": str(neuron[0]), "index": str(neuron[1])}
    assert {name: page[name] for name in names} == names
    promoted = profile.outputs.query("effect == 'promoted'")
    assert dict(zip(page["pos_str"], page["pos_values"], strict=True)) == dict(
        zip(promoted["token"], promoted["change"], strict=True)
    )
    assert max(page["neg_values"]) <= min(page["pos_values"])
    assert page["maxActApprox"] == profile.examples["activation"].max()
    active = sum(int(stats._of(language).record.tensors["active"].sum(0)[neuron]) for language in stats.languages)
    assert page["frac_nonzero"] == pytest.approx(active / int(stats.tokens.sum()))
    assert len(page["activations"]) == len(profile.examples)
    for activation, (_, row) in zip(page["activations"], profile.examples.iterrows(), strict=True):
        assert activation["tokens"] == profiles.pieces(row["text"])
        assert activation["values"] == list(row["values"])
        assert activation["values"][activation["maxValueTokenIndex"]] == activation["maxValue"] == row["activation"]
        assert activation["minValue"] == min(row["values"])
        assert activation.items() >= names.items()


def test_a_page_needs_no_statistics_but_not_another_models(profiles, stats):
    neuron = profiles.neurons[0]
    assert "frac_nonzero" not in profiles.to_neuronpedia(neuron)
    with pytest.raises(StaleArtefactError):
        profiles.to_neuronpedia(neuron, stats.at("pre") if "pre" in stats.sites else _of_another_model(stats))
    with pytest.raises(NeuronSetError, match="hold no neuron"):
        profiles.to_neuronpedia((0, 10**6))


def _of_another_model(stats):
    return replace(stats, model=replace(stats.model, fingerprint="e" * 32))
