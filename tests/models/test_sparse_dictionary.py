"""A sparse autoencoder computes what its architecture says, and goes to disk and back in SAELens' format."""

import json

import pytest
import torch
from safetensors.torch import save_file

from langneurons.errors import CorruptArtefactError, ModelError, StorageError
from langneurons.models.dictionaries import SparseDictionary, SparseDictionaryConfig

X = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))


def made(architecture="topk", **options):
    cfg = SparseDictionaryConfig(8, 24, architecture, "blocks.1.hook_resid_post", **options)
    dictionary, generator = SparseDictionary(cfg), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in dictionary.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return dictionary.requires_grad_(False)


def naive(dictionary, token):
    """One token, one feature after the other."""
    cfg = dictionary.cfg
    x = token - dictionary.b_dec if cfg.apply_b_dec_to_input else token
    wanted = [float(x @ dictionary.W_enc[:, j] + dictionary.b_enc[j]) for j in range(cfg.d_sae)]
    if cfg.architecture == "jumprelu":
        return [max(z, 0) if z > float(dictionary.threshold[j]) else 0.0 for j, z in enumerate(wanted)]
    least = sorted(wanted)[-cfg.k] if cfg.k else -float("inf")
    return [max(z, 0.0) if z >= least else 0.0 for z in wanted]


@pytest.mark.parametrize(
    "dictionary",
    [made("standard"), made("topk", k=3), made("jumprelu"), made("topk", k=24, apply_b_dec_to_input=False)],
    ids=["standard", "topk", "jumprelu", "input as it is"],
)
def test_features_equal_a_loop_over_them(dictionary):
    found = dictionary.encode(X)
    for row in range(2):
        for position in range(7):
            expected = torch.tensor(naive(dictionary, X[row, position]))
            torch.testing.assert_close(found[row, position], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(dictionary.decode(found), found @ dictionary.W_dec + dictionary.b_dec)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    dictionary = made("topk", k=3)
    again = SparseDictionary.load(dictionary.save(tmp_path))
    assert again.cfg == dictionary.cfg
    assert torch.equal(again.encode(X), dictionary.encode(X))


@pytest.mark.parametrize(
    ("name", "value"), [("apply_b_dec_to_input", "false"), ("k", 3.5), ("dtype", "float8"), ("d_in", True)]
)
def test_a_setting_of_the_wrong_type_is_named(name, value, tmp_path):
    made("topk", k=3).save(tmp_path)
    about = json.loads((tmp_path / "cfg.json").read_text())
    del about["seal"]
    (tmp_path / "cfg.json").write_text(json.dumps({**about, name: value}))
    with pytest.raises(StorageError, match=f"{name} is {value!r}"):
        SparseDictionary.load(tmp_path)


@pytest.mark.parametrize("options", [{}, {"apply_b_dec_to_input": False}, {"k": 3}, {"architecture": "jumprelu"}])
def test_saelens_reads_what_we_write_and_we_read_what_it_writes(options, tmp_path):
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed: pip install 'langneurons[sae]'")
    dictionary = made(**{"architecture": "topk" if "k" in options else "standard", **options})
    theirs = sae_lens.SAE.load_from_disk(dictionary.save(tmp_path / "ours"))
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    torch.testing.assert_close(theirs.encode(X), dictionary.encode(X))
    torch.testing.assert_close(theirs.decode(theirs.encode(X)), dictionary.decode(dictionary.encode(X)))
    theirs.save_model(tmp_path / "theirs")
    again = SparseDictionary.load(tmp_path / "theirs")
    assert again.cfg == dictionary.cfg
    assert torch.equal(again.encode(X), dictionary.encode(X))


def test_a_folder_that_saelens_wrote_is_read(tmp_path):
    dictionary = made("jumprelu")
    save_file(
        {name: weight.clone() for name, weight in dictionary.state_dict().items()}, tmp_path / "sae_weights.safetensors"
    )
    about = {
        "d_in": 8, "d_sae": 24, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none", "architecture": "jumprelu",
        "metadata": {"sae_lens_version": "6.12.1", "hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"},
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(about))
    again = SparseDictionary.load(tmp_path)
    assert again.cfg.hook_name == "blocks.1.hook_resid_post"
    assert torch.equal(again.encode(X), dictionary.encode(X))


OLD = {  # what SAELens 3 wrote
    "d_in": 8, "d_sae": 24, "dtype": "torch.float32", "device": "cpu", "model_name": "gpt2-small", "hook_layer": 1,
    "hook_name": "blocks.1.hook_resid_post", "hook_head_index": None, "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": 3}, "apply_b_dec_to_input": True, "finetuning_scaling_factor": False,
    "sae_lens_training_version": "3.20.0", "prepend_bos": True, "dataset_path": "text", "context_size": 128,
    "dataset_trust_remote_code": True, "normalize_activations": "none", "neuronpedia_id": None,
}  # fmt: skip
VERY_OLD = {name: OLD[name] for name in ("d_in", "d_sae", "dtype", "device", "model_name", "prepend_bos")}
VERY_OLD |= {"hook_point": "blocks.1.hook_resid_post", "hook_point_layer": 1, "hook_point_head_index": None}


def folder_of(tmp_path, about, dictionary):
    weights = {name: weight.clone() for name, weight in dictionary.state_dict().items()}
    save_file(weights, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(about))
    return tmp_path


@pytest.mark.parametrize(
    ("about", "architecture"),
    [
        (OLD, "topk"), (VERY_OLD, "standard"), ({**VERY_OLD, "normalize_activations": False}, "standard"),
        ({**OLD, "activation_fn_str": "relu", "activation_fn_kwargs": {}}, "standard"),
        ({**OLD, "activation_fn_str": "relu", "activation_fn_kwargs": {}, "architecture": "jumprelu"}, "jumprelu"),
        ({**OLD, "dtype": "float64"}, "topk"),
    ],
)  # fmt: skip
def test_older_formats_mean_what_they_mean_to_saelens(about, architecture, tmp_path):
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed: pip install 'langneurons[sae]'")
    dictionary = made(architecture, **{"k": 3} if architecture == "topk" else {})
    folder = folder_of(tmp_path, about, dictionary)
    ours, theirs = SparseDictionary.load(folder), sae_lens.SAE.load_from_disk(folder)
    x = X.to(ours.W_enc.dtype)
    assert (ours.cfg.architecture, ours.cfg.hook_name) == (architecture, "blocks.1.hook_resid_post")
    torch.testing.assert_close(ours.encode(x), theirs.encode(x))
    torch.testing.assert_close(ours.decode(ours.encode(x)), theirs.decode(theirs.encode(x)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn='tanh-relu with"),
        ({"activation_fn_kwargs": {}}, "activation_fn='topk with no options'"),
        ({"activation_fn_kwargs": {"k": 3, "postact_fn": "x"}}, "activation_fn="),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor=True"),
        ({"hook_name": "blocks.1.attn.hook_z"}, "reshape_activations='hook_z'"),
        ({"noise": 0.1}, "noise=0.1"),
        ({"architecture": "gated", "activation_fn_str": "relu", "activation_fn_kwargs": {}}, "'gated'"),
    ],
)
def test_an_older_dictionary_that_it_cannot_compute_is_refused(changed, message, tmp_path):
    pytest.importorskip("sae_lens", reason="SAELens is not installed: pip install 'langneurons[sae]'")
    with pytest.raises(ModelError, match=message):
        SparseDictionary.load(folder_of(tmp_path, {**OLD, **changed}, made("topk", k=3)))


def test_without_saelens_an_older_format_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sae_lens.loading.pretrained_sae_loaders", None)
    with pytest.raises(ModelError, match=r"pip install 'langneurons\[sae\]'"):
        SparseDictionary.load(folder_of(tmp_path, OLD, made("topk", k=3)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation_fn_str": "topk"}, "activation_fn_str='topk'"),
        ({"tomorrow": None}, "tomorrow=None"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm=True"),
        ({"architecture": "standard"}, "Only a topk dictionary has k"),
        ({"architecture": "gated"}, "Unknown architecture of a dictionary 'gated'"),
        ({"normalize_activations": "layer_norm"}, "needs SAELens"),
        ({"d_sae": 25}, "its configuration asks for"),
        ({"k": 0}, "needs k from 1"),
    ],
)
def test_what_it_cannot_compute_is_refused(tmp_path, changed, message):
    made("topk", k=3).save(tmp_path)
    about = json.loads((tmp_path / "cfg.json").read_text())
    del about["seal"]
    (tmp_path / "cfg.json").write_text(json.dumps({**about, **changed}))
    with pytest.raises(ModelError, match=message):
        SparseDictionary.load(tmp_path)


def test_a_damaged_or_missing_file_is_said_to_be(tmp_path):
    made("topk", k=3).save(tmp_path / "one")
    weights = tmp_path / "one" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CorruptArtefactError):
        SparseDictionary.load(tmp_path / "one")
    with pytest.raises(StorageError, match="cfg.json"):
        SparseDictionary.load(tmp_path / "two")
    made("topk", k=3).save(tmp_path / "three")
    about = json.loads((tmp_path / "three" / "cfg.json").read_text())
    del about["seal"]
    (tmp_path / "three" / "cfg.json").write_text(json.dumps({**about, "d_sae": "24"}))
    with pytest.raises(StorageError, match="d_sae is '24'"):
        SparseDictionary.load(tmp_path / "three")
    (tmp_path / "three" / "cfg.json").write_text(json.dumps({**about, "metadata": None}))
    assert SparseDictionary.load(tmp_path / "three").cfg.hook_name is None
