"""Next-token training: against a plain loop, what stays as it was, mixtures, resuming, silenced neurons, refusals."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer

import langneurons as ln
import langneurons.training.loop as loop_module
from langneurons.corpora import pack
from langneurons.errors import CorpusError, LanguageError, PatchError, TrainingError
from langneurons.evaluation.measuring import summarise
from langneurons.identification import NeuronSet
from langneurons.models import load_model, view
from langneurons.patches import SetTo, intervene
from langneurons.training.finetuning import finetune
from langneurons.training.loop import Order
from langneurons.training.lora import MaskedLoRA, MaskedRows
from langneurons.training.text import NextToken
from tests.backends import BACKENDS
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.training.small import pairs, questions, shift

PROJECTIONS = ("gate", "up", "down")
QUIET = {"progress": False, "learning_rate": 0.01}


def loaded(folder, backend, dtype=torch.float32, **overrides):
    tiny_tokenizer().save_pretrained(folder)
    hf_model = tiny_model("llama", **overrides).to(dtype)
    return load_model("llama", hf_model=hf_model, tokenizer=AutoTokenizer.from_pretrained(folder), backend=backend)


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("tokenizer"), request.param)


def texts(language, count, words=12, seed=0):
    """Texts of one language's words, which come in runs: something to learn."""
    random, first = np.random.default_rng([seed, len(language), ord(language[0])]), 4 if language == "en" else 50
    starts = random.integers(0, 30, size=count)
    return [" ".join(f"w{first + (start + place) % 40}" for place in range(words)) for start in starts]


def corpus(count=40, seed=0, languages=("en", "hi")):
    return ln.load_corpus({language: texts(language, count, seed=seed) for language in languages})


def neurons_of(model, layers=(0, 1), units=(3, 11, 30), label="hi"):
    shape = (view(model).n_layers, view(model).width("act"))
    return NeuronSet.of({label: [(layer, unit) for layer in layers for unit in units]}, shape, "act")


def rows_of(model, **options):
    return MaskedRows(neurons_of(model, **options), projections=PROJECTIONS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_some_rows_is_a_plain_loop_that_masks_the_gradients_of_whole_matrices(backend, tmp_path):
    model, naive = loaded(tmp_path, backend, torch.float64), tiny_model("llama").double()
    update, text = rows_of(model), ln.HeldoutText.of(model, corpus(), context_length=32)
    options = {"steps": 20, "batch_size": 4, "accumulate": 2, "weight_decay": 0, "learning_rate": 0.01, "warmup": 0}
    tuned = finetune(model, text, update, languages=["hi"], schedule="constant", progress=False, **options)
    blocks = text.packed["hi"].blocks("hi", range(text.packed["hi"].n_blocks("hi")))
    units, masks = torch.tensor([3, 11, 30]), {}
    for name, parameter in naive.named_parameters():
        if "mlp" in name:
            masks[parameter] = torch.zeros_like(parameter)
            masks[parameter][(slice(None), units) if "down" in name else (units, slice(None))] = 1
    before = {parameter: parameter.detach().clone() for parameter in masks}
    optimizer = torch.optim.AdamW(masks, lr=0.01, weight_decay=0)
    order = Order(blocks.attention_mask.sum(1).numpy(), 4, 2, 0)
    for step in range(20):
        rows = np.concatenate(order.batches(step))
        tokens, counted = blocks.tokens[rows], blocks.counted[rows]
        naive.zero_grad()
        chances = naive(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        loss = -chances[counted[:, 1:]].mean()
        loss.backward()
        for parameter, mask in masks.items():
            parameter.grad *= mask
        torch.nn.utils.clip_grad_norm_(masks, 1.0)
        optimizer.step()
        assert tuned.history["loss"][step] == pytest.approx(loss.item(), rel=1e-6)
    tuned.update.merge(model)
    for layer in range(2):
        for target in PROJECTIONS:
            expected = getattr(naive.model.layers[layer].mlp, f"{target}_proj").weight
            assert (expected - before[expected]).abs().max() > 0.05
            torch.testing.assert_close(view(model).projection(layer, target).matrix(), expected, rtol=0, atol=1e-5)


def test_everything_but_the_rows_is_the_same_to_the_bit_after_fifty_steps_with_weight_decay(model):
    model_view, before = view(model), {name: weight.detach().clone() for name, weight in model.named_parameters()}
    matrices = {(n, t): model_view.projection(n, t).matrix().clone() for n in (0, 1) for t in PROJECTIONS}
    tuned = finetune(model, corpus(), rows_of(model), steps=50, batch_size=4, weight_decay=0.5, **QUIET)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    tuned.update.merge(model)
    for (layer, target), matrix in matrices.items():
        changed = (model_view.projection(layer, target).matrix() != matrix).any(0 if target == "down" else 1)
        assert changed.nonzero().flatten().tolist() == [3, 11, 30]
    for name, weight in model.named_parameters():
        assert ".mlp." in name or torch.equal(weight, before[name])
    tuned.update.unmerge(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_training_on_a_language_lowers_the_loss_on_its_other_texts(model):
    heldout = ln.HeldoutText.of(model, corpus(seed=1))
    update = MaskedRows(neurons_of(model, units=range(48)), projections=PROJECTIONS)
    tuned = finetune(model, corpus(), update, languages=["hi"], epochs=20, **QUIET)
    before = ln.perplexity(model, heldout, progress=False).set_index("language")["nll"]
    with tuned.attach(model):
        after = ln.perplexity(model, heldout, progress=False).set_index("language")["nll"]
    assert after["hi"] < 0.7 * before["hi"]
    assert tuned.head is None


def test_a_corpus_is_packed_as_perplexity_packs_it(model):
    for languages in (["en", "hi"], ["hi"]):
        text, objective = corpus(), NextToken(view(model), corpus(), languages)
        heldout = ln.HeldoutText.of(model, text.select(languages))
        assert int(objective.weights.sum()) == sum(heldout.tokens.values())
        with torch.no_grad():
            total = float(objective.loss(view(model), np.arange(len(objective.weights))))
        assert total == pytest.approx(heldout.score(model)["nll"].sum(), rel=1e-5)
        assert objective.fingerprint == NextToken(view(model), heldout, languages).fingerprint


def test_packed_text_is_read_as_it_is(model, tmp_path):
    packed = pack(corpus(), view(model).tokenizer, 48, tmp_path, tokens_per_language=200)
    heldout = ln.HeldoutText.of(model, corpus(), tokens_per_language=200, context_length=48)
    losses = [finetune(model, text, rows_of(model), steps=3, **QUIET).history for text in (packed, heldout)]
    pd.testing.assert_frame_equal(*losses)
    assert NextToken(view(model), packed).weights.sum() == 400


def test_languages_are_mixed_by_their_tokens(model):
    uneven = ln.load_corpus({"en": texts("en", 30), "hi": texts("hi", 9, words=5)})
    alone = ln.HeldoutText.of(model, uneven, each="text")
    options = {"steps": 1, "batch_size": 100, **QUIET}
    for text, tokens in ((alone, alone.tokens), (uneven, {"en": 45, "hi": 45})):
        step = finetune(model, text, rows_of(model), **options)
        table = summarise(ln.HeldoutText.of(model, text).score(model)).set_index("language")
        assert table["tokens"].to_dict() == tokens
        mean = (table["nll"] * table["tokens"]).sum() / table["tokens"].sum()
        assert step.history["loss"].item() == pytest.approx(mean, rel=1e-5)
    assert len(set(alone.tokens.values())) == 2


def test_every_block_is_seen_once_an_epoch_in_an_order_of_the_seed(model, monkeypatch):
    seen, real = [], NextToken.loss
    monkeypatch.setattr(NextToken, "loss", lambda self, v, rows: seen.extend(rows.tolist()) or real(self, v, rows))
    orders = []
    for seed in (0, 0, 1):
        finetune(model, corpus(60), rows_of(model), epochs=2, batch_size=2, seed=seed, **QUIET)
        orders.append([*seen])
        seen.clear()
    number = len(orders[0]) // 2
    assert number > 10
    assert sorted(orders[0][:number]) == sorted(orders[0][number:]) == list(range(number))
    assert orders[0][:number] != orders[0][number:]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("call", [1, 5])
def test_an_interrupted_run_ends_with_the_same_bytes(model, tmp_path, monkeypatch, call):
    given = {"dev": ln.HeldoutText.of(model, corpus(seed=1)), "evaluate_every": 3, "epochs": 4, "batch_size": 4}
    given |= {"save_every": 0.0, **QUIET}
    whole = finetune(model, corpus(), rows_of(model), out=tmp_path / "whole", **given)
    calls, real = [], loop_module.Loop._take

    def interrupt(self, step):
        calls.append(step)
        if len(calls) == call:
            raise KeyboardInterrupt
        real(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(loop_module.Loop, "_take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune(model, corpus(), rows_of(model), out=tmp_path / "parts", **given)
    resumed = finetune(model, corpus(), rows_of(model), out=tmp_path / "parts", **given)
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    assert resumed.fingerprint == whole.fingerprint
    logs = [(tmp_path / folder / "log.jsonl").read_bytes() for folder in ("whole", "parts")]
    assert logs[0] == logs[1]
    values = [tuned.update.state_dict() for tuned in (whole, resumed)]
    assert all(torch.equal(value, values[1][name]) for name, value in values[0].items())


def test_held_out_text_decides_what_is_kept(model):
    dev = ln.HeldoutText.of(model, corpus(seed=1))
    update = MaskedRows(neurons_of(model, units=range(48)), projections=PROJECTIONS)
    options = {"epochs": 30, "batch_size": 2, "evaluate_every": 5, "progress": False, "learning_rate": 0.1}
    tuned = finetune(model, corpus(4), update, languages=["hi"], dev=dev, **options)
    measured = tuned.history.dropna(subset=["dev"]).set_index("step")
    assert tuned.about["best_step"] == measured["dev"].idxmin() != measured.index[-1]
    assert tuned.about["metric"] == "bits_per_byte"
    assert f"best bits_per_byte {measured['dev'].min():.3f}" in repr(tuned)
    with tuned.attach(model):
        table = ln.perplexity(model, dev, progress=False).set_index("language").loc["hi"]
    assert measured["dev"].min() == pytest.approx(table["bits_per_byte"], rel=1e-6)
    assert measured["dev_nll"].min() == pytest.approx(table["nll"], rel=1e-6)


def test_a_corpus_and_a_task_decide_too(model):
    options = {"steps": 2, "evaluate_every": 1, **QUIET}
    of_corpus, of_text = (
        finetune(model, corpus(), rows_of(model), dev=dev, **options)
        for dev in (corpus(seed=1), ln.HeldoutText.of(model, corpus(seed=1)))
    )
    pd.testing.assert_frame_equal(of_corpus.history, of_text.history)
    of_task = finetune(model, corpus(), rows_of(model), dev=questions(4), **options)
    assert of_task.about["metric"] == "f1"
    assert of_task.history["dev"].between(0, 1).all()
    judged_by_text = finetune(model, pairs(6), rows_of(model), dev=corpus(seed=1), **options)
    assert judged_by_text.about["metric"] == "bits_per_byte"


def test_gradient_checkpointing_changes_nothing_that_is_trained(model):
    plain, checkpointed = (
        finetune(model, corpus(), rows_of(model), steps=4, gradient_checkpointing=on, **QUIET) for on in (False, True)
    )
    pd.testing.assert_frame_equal(plain.history, checkpointed.history, rtol=1e-5)


@pytest.mark.parametrize("kind", [MaskedRows, MaskedLoRA])
def test_nothing_is_kept_of_layers_below_the_lowest_that_is_trained(model, monkeypatch, kind):
    recorded, steps, real = {0: set(), 1: set()}, [], NextToken.loss

    def loss(self, model_view, rows):
        readers = {"resid_post": lambda layer, values: recorded[layer].add(values.requires_grad)}
        with model_view.reading(readers):
            return real(self, model_view, rows)

    monkeypatch.setattr(NextToken, "loss", loss)
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: steps.append(self) or step(self, *a))
    update = kind(neurons_of(model, layers=(1,)), targets=("gate", "down"), rank=2)
    tuned = finetune(model, corpus(), update, steps=2, **QUIET)
    assert recorded == {0: {False}, 1: {True}}
    assert all(weight.grad is None for weight in model.parameters())
    kept = {id(optimizer): optimizer for optimizer in steps}
    moments = sum(state["exp_avg"].numel() for (optimizer) in kept.values() for state in optimizer.state.values())
    assert moments == tuned.update.count()


def test_an_update_whose_names_tell_no_layer_is_trained_in_every_layer(model):
    class Nameless(type(shift(model))):
        def named_parameters(self):
            return {f"delta of {name}": value for name, value in super().named_parameters().items()}

    update = Nameless(shift(model).neurons)
    tuned = finetune(model, corpus(), update, steps=2, **QUIET)
    assert all(float(parameter.detach().abs().max()) > 0 for parameter in tuned.update.parameters())


def test_the_loss_has_the_gradient_of_all_logits_at_once(model):
    objective, update = NextToken(view(model), corpus()), rows_of(model)
    rows = np.arange(6)
    tokens, counted = objective._read(rows)
    with update.attach(model):
        objective.loss(view(model), rows).backward()
        gradients = [parameter.grad.clone() for parameter in update.parameters()]
        for parameter in update.parameters():
            parameter.grad = None
        logits = view(model).forward(tokens)[:, :-1][counted[:, 1:]]
        functional.cross_entropy(logits, tokens[counted], reduction="sum").backward()
    for gradient, parameter in zip(gradients, update.parameters(), strict=True):
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-4)


def test_neurons_can_be_silenced_in_training_in_the_test_in_both_and_in_neither(model, tmp_path):
    heldout, update = ln.HeldoutText.of(model, corpus(seed=1)), rows_of(model)
    silent = SetTo(neurons_of(model, units=(5, 17)), 0.0)
    options = {"languages": ["hi"], "epochs": 4, **QUIET}
    tuned = {False: finetune(model, corpus(), update, **options)}
    tuned[True] = finetune(model, corpus(), update, patches=silent, **options)
    losses = {}
    for trained, tested in ((True, True), (True, False), (False, True), (False, False)):
        with tuned[trained].attach(model), intervene(model, *[silent] * tested):
            losses[trained, tested] = ln.perplexity(model, heldout, progress=False)["nll"].iloc[1]
    assert len(set(losses.values())) == 4
    with intervene(model, silent):
        around = finetune(model, corpus(), update, **options)
        with pytest.raises(TrainingError, match="give patches="):
            finetune(model, corpus(), update, out=tmp_path, **options)
    pd.testing.assert_frame_equal(around.history, tuned[True].history)


def test_what_is_silenced_throughout_training_is_not_trained(model):
    update = rows_of(model, units=(3, 11))
    silent = SetTo(neurons_of(model, units=(3,)), 0.0)
    tuned = finetune(model, corpus(), update, patches=silent, steps=5, **QUIET)
    changes = tuned.update.named_parameters()
    for layer in (0, 1):
        assert changes[f"{layer}.gate.delta"].detach().abs().amax(1).gt(0).tolist() == [False, True]
        assert changes[f"{layer}.down.delta"].detach().abs().amax(0).gt(0).tolist() == [False, True]


def test_projections_are_another_name_of_targets(model):
    neurons = neurons_of(model)
    for kind in (MaskedRows, MaskedLoRA, ln.MaskedIA3):
        named = [kind(neurons, rank=2, **{name: PROJECTIONS}) for name in ("projections", "targets")]
        assert named[0].targets == named[1].targets == PROJECTIONS
    with pytest.raises(TrainingError, match="did you mean 'gate'"):
        MaskedRows(neurons, projections=("gates",))


def test_bad_input_is_one_sentence(model, tmp_path):
    text, update = corpus(), rows_of(model)
    head = ln.tasks.ClassificationHead(torch.zeros(2, 32), torch.zeros(2), ("yes", "no"))
    packed = pack(text, view(model).tokenizer, 112, tmp_path)
    empty = ln.corpora.Corpus({})
    for data, options, error, said in (
        (empty, {}, CorpusError, "is empty"),
        (text, {"languages": ["fr"]}, LanguageError, "Unknown language 'fr'"),
        (text, {"dev": corpus(languages=("en",))}, LanguageError, "Unknown dev language 'hi'"),
        (text, {"dev": packed}, TrainingError, "holds no bytes"),
        (packed, {}, TrainingError, "blocks of 112 positions, and 'llama' takes 96"),
        (text, {"head": head}, TrainingError, "no head to start from"),
        (text, {"position": "padding"}, TrainingError, "position='padding' is an option of tasks"),
        (text, {"positions": 24}, TrainingError, "positions=24 is an option of tasks"),
        (text, {"loss_on": "all"}, TrainingError, "loss_on='all' is an option of tasks"),
        (text, {"patience": 2}, TrainingError, "give dev="),
        (["w4 w5"], {}, TrainingError, "not list"),
        (text, {"patches": SetTo(NeuronSet.of({"hi": [(4, 1)]}, (5, 7), "act"), 0.0)}, PatchError, "of 5 layers"),
    ):
        with pytest.raises(error, match=said) as refusal:
            inspect.unwrap(finetune)(model, data, update, steps=1, **{**QUIET, **options})
        assert "\n" not in str(refusal.value)
    with pytest.raises(TrainingError, match="nothing to train without update="):
        finetune(model, text, steps=1, **QUIET)


def test_text_of_another_tokenizer_is_refused(model, tmp_path):
    packed = pack(corpus(), view(ln.load_model("babel")).tokenizer, 64, tmp_path)
    with pytest.raises(TrainingError, match="another tokenizer"):
        finetune(model, packed, rows_of(model), steps=1, **QUIET)


def test_a_short_text_and_one_of_special_tokens_alone_are_no_examples_of_nothing(model):
    text = ln.load_corpus({"en": ["w4", "w5 w6", "<unk>"]})
    alone = ln.HeldoutText.of(model, text, each="text")
    objective = NextToken(view(model), alone)
    assert objective.weights.tolist() == [1, 2]
    assert len(objective.lengths) == 2
