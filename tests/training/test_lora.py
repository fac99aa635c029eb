"""Masked updates train the chosen neurons' weights, and no others, on both backends."""

import copy

import pytest
import torch

import langneurons as ln
from langneurons.errors import LangNeuronsWarning, SiteMismatchError, TrainingError
from langneurons.models import view
from langneurons.training.lora import MaskedIA3, MaskedLoRA, MaskedRows, Update
from tests.training.lora_models import (
    ATTENTION,
    FEW,
    PAIRS,
    TOKENS,
    all_neurons,
    every_kind,
    fresh,
    hf_model,
    logits_of,
    loss_of,
    mlp_targets,
    some_neurons,
    trained,
    weights_of,
)

each_model = pytest.mark.parametrize("pair", PAIRS, ids="-".join)
few_models = pytest.mark.parametrize("pair", FEW, ids="-".join)


@each_model
def test_an_update_starts_without_effect_and_follows_every_target_once_trained(pair):
    model = fresh(*pair)
    plain = logits_of(model)
    for update in every_kind(model):
        assert isinstance(update, Update)
        assert torch.equal(logits_of(model, update), plain)
        trained(update, model)
        changed = [name for name, value in update.named_parameters().items() if bool((value != 0).any())]
        assert len(changed) == len(update.parameters())
        assert not torch.allclose(logits_of(model, update), plain, atol=1e-3)
        assert torch.equal(logits_of(model), plain)


@each_model
def test_merged_equals_attached_and_unmerging_restores_every_bit(pair):
    model = fresh(*pair)
    before, fingerprint = weights_of(model), view(model).fingerprint
    for update in every_kind(model):
        expected = logits_of(trained(update, model) and model, update)
        update.merge(model)
        assert view(model).fingerprint != fingerprint
        close = 5e-5 * max(1, float(expected.std()))  # processors round differently; the effect is above 1e-3
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=close)
        with torch.no_grad(), view(model).native_attention():
            torch.testing.assert_close(view(model).forward(TOKENS), expected, rtol=1e-5, atol=close)
        update.unmerge(model)
        assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
        assert view(model).fingerprint == fingerprint


@pytest.mark.parametrize("pair", FEW[:4], ids="-".join)
def test_unselected_neurons_stay_bit_identical_after_fifty_steps_with_weight_decay(pair):
    model = fresh(*pair)
    seen, neurons = view(model), some_neurons(model)
    for update in every_kind(model, attention=()):
        trained(update, model, steps=50, learning_rate=0.01)
        before = weights_of(model)
        matrices = {p.name: seen.projection(p.layer, p.target).matrix().clone() for p in update.pieces}
        update.merge(model)
        for piece in update.pieces:
            new, axis = seen.projection(piece.layer, piece.target).matrix(), 1 if piece.target == "down" else 0
            same = (new == matrices[piece.name]).all(dim=1 - axis)
            chosen = neurons.mask()[piece.layer]
            assert bool(same[~chosen].all())
            assert not bool(same[chosen].any())
        touched = {name for name, weight in weights_of(model).items() if not torch.equal(weight, before[name])}
        assert all(any(part in name for part in ("mlp", "fc")) for name in touched)
        update.unmerge(model)


@few_models
def test_only_the_updates_own_parameters_get_gradients_and_the_models_flags_come_back(pair):
    model = fresh(*pair)
    first = next(iter(model.parameters()))
    first.requires_grad_(False)
    flags = [weight.requires_grad for weight in model.parameters()]
    for update in every_kind(model):
        with update.attach(model):
            loss_of(model).backward()
        assert all(parameter.grad is not None for parameter in update.parameters())
        assert all(weight.grad is None for weight in model.parameters())
        assert [weight.requires_grad for weight in model.parameters()] == flags


def test_nothing_stays_attached_after_an_exception():
    model = fresh("llama", "auto")
    plain, update = logits_of(model), trained(every_kind(fresh("llama", "auto"))[0], model)

    def interrupted():
        with update.attach(model):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(logits_of(model), plain)
    assert all(weight.requires_grad for weight in model.parameters())
    assert not view(model).hooked


def naive(model, update, x_of, layer):
    """What a masked LoRA on gate adds, by a loop over its neurons."""
    A, B = (update.named_parameters()[f"{layer}.gate.{name}"] for name in ("lora_A", "lora_B"))
    added = torch.zeros(*x_of.shape[:-1], view(model).width("act"))
    for row, unit in enumerate(update.neurons.per_layer()[layer].tolist()):
        added[..., unit] = update.alpha / update.rank * (x_of @ (B[row] @ A))
    return added


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@torch.no_grad()
def test_what_is_added_is_low_rank_in_the_true_input_of_the_mlp(backend):
    model = fresh("llama", backend)
    update = MaskedLoRA(some_neurons(model), rank=2)
    with torch.enable_grad():
        trained(update, model)
    inputs = {}
    hf = hf_model("llama")
    handle = hf.model.layers[0].mlp.register_forward_pre_hook(lambda _, given: inputs.update(x=given[0]))
    hf(TOKENS)
    handle.remove()
    pre = {}
    with view(model).reading({"pre": lambda layer, values: pre.setdefault(layer, values.clone())}):
        view(model).forward(TOKENS)
        plain = pre.pop(0)
        pre.clear()
        with update.attach(model):
            view(model).forward(TOKENS)
    torch.testing.assert_close(pre[0] - plain, naive(model, update, inputs["x"], 0), rtol=1e-4, atol=1e-5)


@few_models
def test_several_updates_act_as_if_merged_in_the_order_attached(pair):
    model = fresh(*pair)
    lora, rows, _ = (trained(update, model) for update in every_kind(model))
    factors = trained(MaskedIA3(some_neurons(model)), model)
    twice = trained(MaskedLoRA(some_neurons(model), rank=2, targets=mlp_targets(model), seed=1), model)
    updates = [lora, rows, factors, twice]
    with torch.no_grad(), lora.attach(model), rows.attach(model), factors.attach(model), twice.attach(model):
        expected = view(model).forward(TOKENS)
    fresh_fingerprint = view(model).fingerprint
    for update in updates:
        update._model = None  # each was made for the unmerged weights
        update.merge(model)
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TrainingError, match="reverse order"):
        lora.unmerge(model)
    for update in reversed(updates):
        update.unmerge(model)
    assert view(model).fingerprint == fresh_fingerprint


@few_models
@pytest.mark.parametrize("site", ["pre", "act", "post"])
@torch.no_grad()
def test_patches_see_the_trained_values_whether_entered_before_or_after(pair, site):
    model = fresh(*pair)
    for update in every_kind(model):
        with torch.enable_grad():
            trained(update, model)
        for patch in (ln.SetTo(some_neurons(model, site), 0.7), ln.Scale(some_neurons(model, site), 3.0)):
            with update.attach(model), ln.intervene(model, patch):
                inside = view(model).forward(TOKENS)
            with ln.intervene(model, patch), update.attach(model):
                outside = view(model).forward(TOKENS)
            update.merge(model)
            with ln.intervene(model, patch):
                merged = view(model).forward(TOKENS)
            update.unmerge(model)
            torch.testing.assert_close(inside, merged, rtol=1e-4, atol=5e-5)
            torch.testing.assert_close(outside, merged, rtol=1e-4, atol=5e-5)


@few_models
def test_generation_with_a_cache_and_left_padding_equals_that_of_the_merged_model(pair):
    model = fresh(*pair)
    update = trained(every_kind(model)[0], model)
    tokens, mask = TOKENS.clone(), torch.ones_like(TOKENS)
    tokens[0, :5], mask[0, :5] = 0, 0
    with update.attach(model):
        attached = view(model).generate(tokens, mask, 6)
    update.merge(model)
    assert attached == view(model).generate(tokens, mask, 6)


@few_models
def test_attention_alone_can_be_trained_also_with_native_attention(pair):
    model = fresh(*pair)
    update = MaskedLoRA(None, rank=2, attention=ATTENTION)
    trained(update, model)
    for parameter in update.parameters():
        parameter.grad = None
    with update.attach(model):
        loss_of(model).backward()
        gradients = [parameter.grad.clone() for parameter in update.parameters()]
        for parameter in update.parameters():
            parameter.grad = None
        with view(model).native_attention():
            loss_of(model).backward()
    for parameter, gradient in zip(update.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_attention_starts_equal_whichever_neurons_are_trained():
    model = fresh("llama", "auto")
    updates = [MaskedLoRA(neurons, rank=2, attention=("q",)) for neurons in (None, some_neurons(model))]
    for update in updates:
        update.prepare(model)
    alone, both = (update.named_parameters() for update in updates)
    assert all(torch.equal(alone[name], both[name]) for name in alone)
    assert MaskedLoRA(None, rank=2, attention=("q",), seed=1).prepare(model) is None
    other = MaskedLoRA(None, rank=2, attention=("q",), seed=1)
    other.prepare(model)
    assert not torch.equal(other.parameters()[0], updates[0].parameters()[0])


def test_counts_are_those_of_the_compact_matrices():
    model = fresh("llama", "auto")
    neurons, n = some_neurons(model), 6
    lora, rows, factors = every_kind(model, attention=())
    for update in (lora, rows, factors):
        update.prepare(model)
    assert lora.count() == 2 * (2 * 2 * 32 + n * 2) + (n * 2 + 2 * 2 * 32)
    assert rows.count() == 3 * n * 32
    assert factors.count() == 3 * n
    assert f"{lora.count():,} parameters" in repr(lora)
    assert len(neurons) == n


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_with_every_neuron_it_follows_peft_in_float64(architecture, backend):
    peft = pytest.importorskip("peft")
    model, hf = fresh(architecture, backend, torch.float64), copy.deepcopy(hf_model(architecture, torch.float64))
    targets = mlp_targets(model)
    update = MaskedLoRA(all_neurons(model), rank=3, alpha=5, targets=targets, attention=("o",))
    update.prepare(model)
    names = {piece.module.name: piece for piece in update.pieces}
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(names), fan_in_fan_out=architecture == "gpt2")
    torch.manual_seed(0)  # peft draws what both start from
    theirs = peft.get_peft_model(hf, settings, autocast_adapter_dtype=False)
    assert {parameter.dtype for parameter in update.parameters()} == {torch.float64}
    own = {}
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            module, factor = name.removeprefix("base_model.model.").split(".lora_")
            own[names[module].name + ".lora_" + factor.split(".")[0]] = parameter
    update.load_state_dict(own)
    optimizers = [torch.optim.AdamW(each, lr=0.01, weight_decay=0.1) for each in (own.values(), update.parameters())]
    for _ in range(20):
        theirs.zero_grad()
        logits = theirs(TOKENS).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        with update.attach(model):
            loss_of(model).backward()
        optimizers[1].step()
    # Llama's norms compute in float32 whatever the dtype; parameters move by about 0.2 in twenty steps of Adam.
    tolerance = {"rtol": 1e-7, "atol": 1e-9} if architecture == "gpt2" else {"rtol": 1e-3, "atol": 5e-5}
    for name, parameter in update.named_parameters().items():
        torch.testing.assert_close(parameter, own[name], **tolerance)


def test_a_copy_is_independent():
    model = fresh("llama", "bridge")
    update = trained(every_kind(model)[0], model)
    other = copy.deepcopy(update)
    trained(other, model)
    assert not torch.equal(logits_of(model, other), logits_of(model, update))


def test_state_goes_out_and_in_and_other_keys_or_shapes_are_refused():
    model = fresh("llama", "auto")
    update = trained(every_kind(model)[0], model)
    state = update.state_dict()
    other = every_kind(model)[0]
    other.prepare(model)
    other.load_state_dict(state)
    assert torch.equal(logits_of(model, other), logits_of(model, update))
    name = "0.gate.lora_A"
    with pytest.raises(TrainingError, match="missing: 0.gate.lora_A; unknown: nonsense"):
        other.load_state_dict({("nonsense" if key == name else key): value for key, value in state.items()})
    with pytest.raises(TrainingError, match="shape"):
        other.load_state_dict(state | {name: torch.zeros(3, 3)})


def test_merging_and_attaching_exclude_each_other():
    model = fresh("llama", "auto")
    update = trained(every_kind(model)[0], model)
    with pytest.raises(TrainingError, match="not merged into this model"):
        update.unmerge(model)
    with update.attach(model):
        with pytest.raises(TrainingError, match="attached already"):
            update.merge(model)
        with pytest.raises(TrainingError, match="attached already"), update.attach(model):
            pass
    update.merge(model)
    with pytest.raises(TrainingError, match="unmerge it first"), update.attach(model):
        pass
    with pytest.raises(TrainingError, match="merged already"):
        update.merge(model)
    bridge = fresh("llama", "bridge")
    other = trained(every_kind(bridge)[0], bridge)
    with pytest.raises(TrainingError, match="native_attention"), view(bridge).native_attention():
        other.merge(bridge)


def test_another_model_is_refused():
    update = trained(every_kind(fresh("llama", "auto"))[0], fresh("llama", "auto"))
    changed = fresh("llama", "auto")
    with torch.no_grad():
        next(iter(changed.parameters())).mul_(2)
    with pytest.raises(TrainingError, match="made for the weights"), update.attach(changed):
        pass
    assert logits_of(fresh("llama", "bridge"), update).isfinite().all()
    of_another = ln.NeuronSet.of({"hi": [(0, 1)]}, (2, 48), "act", model="0" * 32)
    with pytest.raises(SiteMismatchError, match="belong to model 00000000"):
        MaskedLoRA(of_another, rank=1).prepare(changed)
    with pytest.raises(TrainingError, match="2 layers x 49"):
        MaskedRows(ln.NeuronSet.of({"hi": [(0, 1)]}, (2, 49), "act")).prepare(changed)
    with pytest.raises(TrainingError, match="no 'up'"):
        MaskedIA3(some_neurons(fresh("gpt2", "auto")), targets=("up",)).prepare(fresh("gpt2", "auto"))


def test_bad_selections_are_refused():
    neurons = ln.NeuronSet.of({"hi": [(0, 1), (1, 2)]}, (2, 48), "act")
    nothing = ln.NeuronSet.of({"hi": []}, (2, 48), "act")
    heads = ln.NeuronSet.of({"hi": [(0, 1)]}, (2, 4), "head")
    for message, arguments in {
        "Nothing would be trained": {"neurons": None},
        "is empty": {"neurons": nothing},
        "'head' have no rows": {"neurons": heads},
        "rank must be a whole number of at least 1": {"neurons": neurons, "rank": 0},
        "did you mean 'gate'": {"neurons": neurons, "rank": 1, "targets": ("gaet",)},
        "as a tuple": {"neurons": neurons, "rank": 1, "targets": "gate"},
        "at least one": {"neurons": neurons, "rank": 1, "targets": ()},
        "named once": {"neurons": neurons, "rank": 1, "targets": ("gate", "gate")},
        "Possible: q, k, v, o": {"neurons": neurons, "rank": 1, "attention": ("z",)},
    }.items():
        with pytest.raises(TrainingError, match=message):
            MaskedLoRA(**arguments)


def test_a_rank_larger_than_the_selection_is_lowered_to_it_with_a_warning():
    neurons = ln.NeuronSet.of({"hi": [(0, 1), (1, 2)]}, (2, 48), "act")
    with pytest.warns(
        LangNeuronsWarning, match="Rank 8 is larger than the selection of 2 neurons and is lowered to it"
    ):
        lora = MaskedLoRA(neurons)
    assert lora.rank == 2


def test_an_update_of_the_same_weights_in_another_dtype_says_how_to_load_them(tmp_path):
    model = fresh("llama", "bridge")
    update = every_kind(model)[0]
    update.prepare(model)
    update.save(tmp_path)
    with pytest.raises(
        TrainingError, match="loaded as bfloat16 and not as float32.* load the model with dtype='float32'"
    ):
        type(update).load(tmp_path, fresh("llama", "bridge", torch.bfloat16))
    assert type(update).load(tmp_path, fresh("llama", "bridge")).rank == update.rank


def test_a_bfloat16_model_keeps_its_dtype_and_trains_in_float32():
    model = fresh("llama", "bridge", torch.bfloat16)
    update = trained(every_kind(model)[0], model)
    assert {parameter.dtype for parameter in update.parameters()} == {torch.float32}
    before = weights_of(model)
    assert logits_of(model, update).dtype == torch.bfloat16
    update.merge(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    update.unmerge(model)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
