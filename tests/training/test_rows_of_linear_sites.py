"""Masked updates of chosen rows of q, k and v: only those change, whatever module of transformers holds them."""

import pytest
import torch

import langneurons as ln
from langneurons.errors import TrainingError
from langneurons.models import view
from langneurons.training.lora import MaskedIA3, MaskedLoRA, MaskedRows
from tests.backends import loadable
from tests.models.hugging_face import linears, parts
from tests.training.lora_models import TOKENS, fresh, hf_model, logits_of, some_neurons, trained, weights_of

PAIRS = loadable(
    [("llama", "hooked"), ("qwen3", "bridge"), ("gpt2", "bridge"), ("phi3", "bridge"), ("bloom", "hooked")]
)
each_model = pytest.mark.parametrize("pair", PAIRS, ids="-".join)


def coordinates(model, site) -> ln.NeuronSet:
    return ln.NeuronSet.of({"hi": [(0, 1), (0, 5), (1, 0), (1, 13)], "ur": [(1, 2)]}, view(model).shape(site), site)


def one_of_each_kind(model, site):
    neurons, targets = coordinates(model, site), (site,)
    return [MaskedLoRA(neurons, rank=2, targets=targets), MaskedRows(neurons, targets), MaskedIA3(neurons, targets)]


@each_model
def test_merged_equals_attached_and_only_the_chosen_rows_change(pair):
    model = fresh(*pair)
    plain, before = logits_of(model), weights_of(model)
    for site in ("q", "k", "v"):
        for update in one_of_each_kind(model, site):
            expected = logits_of(model, trained(update, model))
            assert not torch.allclose(expected, plain, atol=1e-4)
            matrices = [view(model).projection(layer, site).matrix().clone() for layer in range(2)]
            update.merge(model)
            torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=5e-5 * max(1, float(plain.std())))
            for layer, chosen in enumerate(update.neurons.mask()):
                moved = (view(model).projection(layer, site).matrix() != matrices[layer]).any(dim=1)
                assert torch.equal(moved, chosen)
            update.unmerge(model)
        assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())


@torch.no_grad()
@each_model
def test_attached_rows_compute_what_the_hugging_face_model_does_with_them_written_in(pair):
    model, site = fresh(*pair), "k"
    rows = MaskedRows(coordinates(model, site), (site,))
    rows.prepare(model)
    hf = hf_model(pair[0])
    saved = {name: weight.clone() for name, weight in hf.named_parameters()}
    for layer, part in enumerate(parts(hf)):
        delta = rows.named_parameters()[f"{layer}.{site}.delta"]
        delta.copy_(torch.randn(delta.shape, generator=torch.Generator().manual_seed(layer)))
        linear = linears(hf, part)[site]
        weight = linear.module.weight if pair[0] != "gpt2" else linear.module.weight.T
        weight[linear.columns[rows.neurons.per_layer()[layer]]] += delta
    expected = hf(TOKENS).logits
    for name, weight in hf.named_parameters():
        weight.copy_(saved[name])
    torch.testing.assert_close(logits_of(model, rows), expected, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("pair", loadable([("llama", "hooked"), ("phi3", "bridge")]), ids="-".join)
def test_saved_updates_are_read_back_and_plain_peft_computes_the_same(pair, tmp_path):
    peft = pytest.importorskip("peft")
    model = fresh(*pair)
    updates = one_of_each_kind(model, "v")
    for update in updates:
        expected = logits_of(model, trained(update, model))
        folder = update.save(tmp_path / type(update).__name__)
        again = type(update).load(folder, model)
        assert again.neurons == update.neurons
        assert torch.equal(logits_of(model, again), expected)
        assert update.moved(model) > 0
        restored = update.without(update.neurons)
        assert restored.moved(model) == 0
    lora = peft.PeftModel.from_pretrained(hf_model(pair[0]), tmp_path / "MaskedLoRA")
    with torch.no_grad():
        torch.testing.assert_close(lora(TOKENS).logits, logits_of(model, updates[0]), rtol=1e-4, atol=5e-5)
    lora.unload()


def test_neurons_of_the_mlp_and_coordinates_of_attention_train_together():
    model = fresh("llama", "auto")
    parts_trained = [MaskedRows(coordinates(model, site), (site,)) for site in ("q", "k", "v")]
    parts_trained.append(MaskedRows(some_neurons(model, "up"), ("gate", "up", "down")))
    text = ln.HeldoutText.of(model, ln.load_corpus({"hi": ["w5 w6 w7 w8 w9 w10"] * 20}), context_length=16)
    tuned = ln.finetune(model, text, parts_trained, steps=2, batch_size=2, progress=False)
    assert len(tuned.updates) == 4
    assert all(update.moved(model) > 0 for update in tuned.updates)


def test_targets_that_do_not_go_with_the_site_are_one_sentence():
    model = fresh("llama", "auto")
    for site, targets, attention, said in (
        ("q", ("gate",), (), "^Units at 'q' have rows or columns in q, and none in 'gate'"),
        ("act", ("gate", "k"), (), "^Units at 'act' have rows or columns in gate, up, down, and none in 'k'"),
        ("v", ("v",), ("q", "v"), "^'v' is trained at the units chosen, so it cannot be trained as a whole, too"),
        ("head", ("v",), (), "^Neurons at 'head' have no rows of their own to train"),
    ):
        with pytest.raises(TrainingError, match=said):
            MaskedRows(ln.NeuronSet.of({"hi": [(0, 1)]}, view(model).shape(site), site), targets, attention)
