"""Updates survive the disk, and plain peft loads them onto the plain Hugging Face model."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from langneurons.errors import CorruptArtefactError, StorageError, TrainingError
from langneurons.models import view
from langneurons.training.lora import MaskedIA3, MaskedLoRA, MaskedRows
from tests.training.lora_models import (
    ATTENTION,
    PAIRS,
    TOKENS,
    every_kind,
    fresh,
    hf_model,
    logits_of,
    mlp_targets,
    some_neurons,
    trained,
)

KINDS = (MaskedLoRA, MaskedRows, MaskedIA3)


def assert_close_to(logits, expected):
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.std())))


@pytest.mark.parametrize("kind", range(3))
def test_a_saved_update_comes_back_exactly_without_the_model(kind, tmp_path):
    model = fresh("llama", "auto")
    update = trained(every_kind(model)[kind], model)
    loaded = KINDS[kind].load(update.save(tmp_path / "update"))
    assert loaded.neurons == update.neurons
    assert (loaded.rank, loaded.alpha, loaded.targets, loaded.attention) == (2, 16, update.targets, ATTENTION)
    state = loaded.state_dict()
    assert state.keys() == update.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in update.state_dict().items())
    assert torch.equal(logits_of(model, loaded), logits_of(model, update))
    names = {path.name: path.read_bytes() for path in (tmp_path / "update").iterdir()}
    loaded.save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == names


@pytest.mark.parametrize("kind", [MaskedRows, MaskedIA3])
def test_whole_matrices_of_attention_come_back_too(kind, tmp_path):
    model = fresh("llama", "auto")
    update = trained(kind(some_neurons(model), attention=ATTENTION, rank=None), model)
    loaded = kind.load(update.save(tmp_path))
    assert (loaded.rank, loaded.attention, loaded.count()) == (None, ATTENTION, update.count())
    shapes = [piece.selected_shape for piece in loaded.pieces if piece.target in ATTENTION]
    assert shapes == [view(model).projection(layer, target).shape for layer in range(2) for target in ATTENTION]
    assert torch.equal(logits_of(model, loaded), logits_of(model, update))
    assert not torch.equal(logits_of(model, loaded), logits_of(model))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@torch.no_grad()
def test_plain_peft_computes_what_the_attached_update_does(pair, tmp_path):
    peft = pytest.importorskip("peft")
    model = fresh(*pair)
    targets = mlp_targets(model)
    update = MaskedLoRA(some_neurons(model), rank=3, alpha=5, targets=targets, attention=("q", "v", "o"))
    with torch.enable_grad():
        trained(update, model)
    expected = logits_of(model, update)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(hf_model(pair[0])), update.save(tmp_path))
    missing = theirs.load_adapter(tmp_path, "again").missing_keys
    assert not [key for key in missing if "lora_" in key]
    assert_close_to(theirs(TOKENS).logits, expected)


@pytest.mark.parametrize("pair", [("llama", "hooked"), ("phi3", "bridge"), ("gpt2", "hooked")], ids="-".join)
@torch.no_grad()
def test_an_adapter_trained_by_peft_is_read(pair, tmp_path):
    peft = pytest.importorskip("peft")
    model, hf = fresh(*pair), copy.deepcopy(hf_model(pair[0]))
    seen = view(model)
    names = {seen.projection(1, target).hugging_face.name for target in (*mlp_targets(model), "q", "o")}
    transposed = seen.projection(0, "gate").hugging_face.transposed
    theirs = peft.get_peft_model(
        hf, peft.LoraConfig(r=4, lora_alpha=6, target_modules=sorted(names), fan_in_fan_out=transposed)
    )
    theirs.save_pretrained(tmp_path / "untrained")
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    theirs.save_pretrained(tmp_path / "trained")
    update = MaskedLoRA.load(tmp_path / "trained", model)
    assert len(update.neurons) == seen.width("act")
    assert_close_to(logits_of(model, update), theirs(TOKENS).logits)
    untrained = MaskedLoRA.load(tmp_path / "untrained", model)
    assert len(untrained.neurons) == seen.width("act")
    assert torch.equal(logits_of(model, untrained), logits_of(model))
    update.merge(model)
    assert_close_to(logits_of(model), theirs(TOKENS).logits)
    with pytest.raises(TrainingError, match="give model="):
        MaskedLoRA.load(tmp_path / "trained")


def test_our_peft_files_alone_give_the_same_neurons_back(tmp_path):
    model = fresh("llama", "bridge")
    update = MaskedLoRA(some_neurons(model), rank=2, targets=("gate", "up", "down"), attention=("k",))
    trained(update, model).save(tmp_path)
    for name in ("langneurons.json", "neurons.json", "parameters.safetensors"):
        (tmp_path / name).unlink()
    loaded = MaskedLoRA.load(tmp_path, model)
    assert torch.equal(loaded.neurons.mask(), update.neurons.mask())
    assert torch.equal(logits_of(model, loaded), logits_of(model, update))


def test_keys_and_shapes_that_do_not_fit_are_named(tmp_path):
    llama, gpt2 = fresh("llama", "bridge"), fresh("gpt2", "bridge")
    update = trained(MaskedLoRA(some_neurons(llama), rank=2), llama)
    update.save(tmp_path)
    with pytest.raises(TrainingError, match="made for the weights"):
        MaskedLoRA.load(tmp_path, gpt2)
    (tmp_path / "langneurons.json").unlink()
    with pytest.raises(TrainingError, match="fit nothing in .*model.layers.0.mlp.gate_proj"):
        MaskedLoRA.load(tmp_path, gpt2)
    with pytest.raises(TrainingError, match="the model's weight is"):
        MaskedLoRA.load(tmp_path, _wider("llama"))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "is IA3")):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(TrainingError, match=message):
            MaskedLoRA.load(tmp_path, llama)


@pytest.mark.parametrize("damage", ["nan", "inf", "whole", "cube", "row", "number"])
def test_weights_that_are_no_matrix_of_finite_numbers_are_refused(damage, tmp_path):
    llama = fresh("llama", "bridge")
    trained(MaskedLoRA(some_neurons(llama), rank=2), llama).save(tmp_path)
    (tmp_path / "langneurons.json").unlink()
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name, weight = next(iter(tensors.items()))
    tensors[name] = {
        "nan": torch.full_like(weight, float("nan")),
        "inf": torch.full_like(weight, float("inf")),
        "whole": torch.ones_like(weight, dtype=torch.int64),
        "cube": weight[..., None].contiguous(),
        "row": weight[0].clone(),
        "number": torch.tensor(1.0),
    }[damage]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors.sum").unlink(missing_ok=True)
    with pytest.raises(TrainingError, match="is no matrix of finite numbers"):
        MaskedLoRA.load(tmp_path, llama)


def _wider(architecture):
    from langneurons.models import load_model
    from tests.tiny_models import tiny_model, tiny_tokenizer

    hf = tiny_model(architecture, intermediate_size=64)
    return load_model("wider", hf_model=hf, tokenizer=tiny_tokenizer(), backend="bridge")


def test_changed_files_and_other_classes_are_refused(tmp_path):
    model = fresh("llama", "auto")
    with pytest.raises(TrainingError, match="no parameters yet"):
        every_kind(model)[0].save(tmp_path)
    with pytest.raises(StorageError, match="holds no update"):
        MaskedLoRA.load(tmp_path)
    trained(every_kind(model)[0], model).save(tmp_path)
    with pytest.raises(TrainingError, match="holds masked LoRA, not masked rows"):
        MaskedRows.load(tmp_path)
    for name in ("adapter_model.safetensors", "parameters.safetensors", "neurons.json"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptArtefactError):
            MaskedLoRA.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    MaskedLoRA.load(tmp_path)
