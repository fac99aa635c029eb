"""load_model takes any folder or model in memory, computes what Hugging Face computes, and refuses in plain words."""

import json
import resource
import shutil
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import langneurons.babel
from langneurons.errors import HookSiteError, ModelError
from langneurons.models import describe, internals, load_model, loading, view
from langneurons.models.backends import conversion
from langneurons.tasks.batching import token_ids
from tests.backends import BACKENDS, HookedTransformer
from tests.tiny_models import ARCHITECTURES, HOOKED, save_tiny, tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture
def broken(folders, tmp_path):
    """A copy of a good folder, to break."""
    return shutil.copytree(folders["llama"], tmp_path / "broken")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.hooked
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_takes_hooked_transformer_where_transformer_lens_has_it(folders, architecture):
    model = load_model(folders[architecture])
    assert isinstance(model, HookedTransformer) == (architecture in HOOKED)


def test_weights_that_the_converters_would_drop_go_to_the_bridge(tmp_path):
    folder = save_tiny(tmp_path / "biased", "llama", attention_bias=True, mlp_bias=True)
    assert view(load_model(folder)).backend == "bridge"


@pytest.mark.hooked
def test_hooked_is_refused_with_what_the_converters_would_drop(tmp_path):
    folder = save_tiny(tmp_path / "biased", "llama", attention_bias=True, mlp_bias=True)
    with pytest.raises(ModelError, match="its attention has biases"):
        load_model(folder, backend="hooked")


@pytest.mark.parametrize("name", ["my-llama-2", "gemma-7b", "gpt2", "opt", "Meta-Llama-3.1-8B", "bloom 7b1"])
def test_a_folders_name_says_nothing(folders, tmp_path, tokens, name):
    folder = shutil.copytree(folders["qwen2"], tmp_path / name)
    expected = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
    for backend in BACKENDS:
        model = load_model(str(folder), backend=backend)
        assert view(model).name == model.cfg.model_name == name
        with torch.no_grad():
            torch.testing.assert_close(view(model).forward(tokens), expected, rtol=0, atol=2e-5)


@pytest.mark.hooked
def test_a_model_in_memory_is_copied_by_hooked_and_wrapped_by_bridge(tokens):
    hf_model = tiny_model("llama")
    hooked = load_model("mine", hf_model=hf_model)
    with torch.no_grad():
        expected = hf_model(tokens).logits
        hooked.blocks[0].mlp.W_out.zero_()
        assert torch.equal(hf_model(tokens).logits, expected)
    bridge = load_model(hf_model=hf_model, tokenizer=tiny_tokenizer(), backend="bridge")
    assert bridge.original_model is hf_model
    assert view(hooked).name == "mine"
    assert view(bridge).tokenizer.bos_token == "<s>"
    with pytest.raises(ModelError, match="convert it first"):
        load_model(hf_model=tiny_model("llama"), dtype="float16")
    with pytest.raises(ModelError, match="without a tokenizer"):
        load_model(hf_model=tiny_model("gemma2"))


def test_the_checkpoints_tokenizer_is_kept_as_it_is(folders):
    for backend in BACKENDS:
        model = load_model(folders["llama"], backend=backend)
        kept = view(model).tokenizer
        assert (kept.pad_token, kept.bos_token, kept.eos_token) == ("<pad>", "<s>", "</s>")
        assert kept("w5 w6").input_ids == [1, 5, 6]
        assert model.to_tokens("w5 w6").tolist() == [[1, 5, 6]]


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "torch.float32"])
def test_dtypes(folders, tokens, backend, dtype):
    for architecture in ("llama", "gpt2"):
        seen = view(load_model(folders[architecture], backend=backend, dtype=dtype))
        assert str(seen.dtype) == f"torch.{str(dtype).removeprefix('torch.')}"
        with torch.no_grad():
            logits = seen.forward(tokens)
        assert logits.dtype == seen.dtype
        assert logits.isfinite().all()


def test_the_checkpoints_own_dtype_is_the_default_but_babel_is_float32(tmp_path, monkeypatch):
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "b")
    tiny_tokenizer().save_pretrained(tmp_path / "b")
    assert view(load_model(tmp_path / "b")).dtype == torch.bfloat16
    monkeypatch.setattr(langneurons.babel, "FOLDER", tmp_path / "b")
    assert (view(load_model()).dtype, view(load_model()).name) == (torch.float32, "babel")
    assert view(load_model("babel", dtype="bfloat16")).dtype == torch.bfloat16


def test_positions_up_to_the_configurations_context_length_work(folders):
    tokens = torch.randint(4, 101, (1, 96), generator=torch.Generator().manual_seed(2))
    for architecture in HOOKED:
        expected = AutoModelForCausalLM.from_pretrained(folders[architecture])(tokens).logits
        with torch.no_grad():
            logits = view(load_model(folders[architecture])).forward(tokens)
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.hooked
def test_a_wrapping_that_computes_something_else_is_refused(folders, monkeypatch):
    written = conversion.hooked_config
    monkeypatch.setattr(conversion, "hooked_config", lambda *given: change(written(*given)))

    def change(config):
        config.rotary_base *= 1.01
        return config

    with pytest.raises(ModelError, match="computes other logits"):
        load_model(folders["llama"])
    load_model(folders["gpt2"])


def test_under_transformer_lens_4_hooked_is_refused_and_auto_is_bridge(folders, monkeypatch):
    monkeypatch.setattr(internals, "hooked_class", lambda: None)
    assert view(load_model(folders["llama"], backend="bridge")).backend == "bridge"
    assert view(load_model(folders["llama"])).backend == "bridge"
    with pytest.raises(ModelError, match="TransformerLens 4 has no HookedTransformer"):
        load_model(folders["llama"], backend="hooked")


def test_unknown_backend_dtype_and_device_are_named(folders):
    with pytest.raises(ModelError, match="did you mean 'hooked'"):
        load_model(folders["llama"], backend="hook")
    with pytest.raises(ModelError, match="did you mean 'bfloat16'"):
        load_model(folders["llama"], dtype="bfloat")
    with pytest.raises(ModelError, match="Unknown dtype 'int8'"):
        load_model(folders["llama"], dtype=torch.int8)
    with pytest.raises(ModelError, match="Unknown device"):
        load_model(folders["llama"], device="gpu")
    with pytest.raises(ModelError, match="Unknown device 'cuda:99'"):
        load_model(folders["llama"], device="cuda:99")


def test_device_map_takes_the_bridge(folders):
    assert view(load_model(folders["llama"], device_map="cpu")).backend == "bridge"


@pytest.mark.hooked
def test_device_map_and_hooked_cannot_go_together(folders):
    with pytest.raises(ModelError, match="device_map"):
        load_model(folders["llama"], device_map="cpu", backend="hooked")


def test_folders_that_are_no_model_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        load_model(tmp_path / "nothing")


def test_an_unknown_hub_name_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="There is no folder 'nobody/nothing', and no model") as caught:
        load_model("nobody/nothing")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_named_and_can_be_given(broken):
    for file in broken.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*tokenizer="):
        load_model(broken)
    assert view(load_model(broken, tokenizer=tiny_tokenizer())).tokenizer is not None


def test_a_tokenizer_with_ids_beyond_the_vocabulary_is_refused(folders):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["too", "many"])
    with pytest.raises(ModelError, match="do not fit.*up to 102.*101 embeddings"):
        load_model(folders["llama"], tokenizer=tokenizer)


def test_missing_weights_are_named(broken):
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(broken)


@pytest.mark.parametrize("keep", [0, 5, 5000])
def test_truncated_weights_are_refused(broken, keep):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="Cannot load"):
        load_model(broken)


def test_weights_of_another_shape_or_absent_are_refused(broken):
    edit_config(broken, intermediate_size=64)
    with pytest.raises(ModelError, match=r"another shape than .*: model\.layers\.0\.mlp\.down_proj\.weight"):
        load_model(broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="Cannot load"):
        load_model(broken)


def test_weights_that_are_no_numbers_are_refused(broken):
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no numbers in torch.float32"):
        load_model(broken)


def test_a_corrupt_tokenizer_is_refused(broken):
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="Cannot load the tokenizer"):
        load_model(broken)


def test_a_model_without_neurons_in_our_sense_is_refused(tmp_path):
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=101)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(HookSiteError, match="lacks an MLP or an attention"):
        load_model(tmp_path)


def test_a_broken_configuration_is_refused(broken):
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match="Cannot load"):
        load_model(broken)
    (broken / "config.json").write_text('{"model_type": "from-tomorrow"}')
    with pytest.raises(ModelError, match="Cannot load"):
        load_model(broken)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "minimax_m2"}, "mixture of experts"),
        ({"model_type": "llama4_text"}, "mixture of experts"),
        ({"model_type": "jetmoe"}, "mixture of experts"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "xlm-roberta"}, "encoder"),
        ({"model_type": "t5"}, "encoder"),
    ],
)
def test_experts_and_encoders_are_refused_before_any_weight_is_read(tmp_path, settings, said):
    AutoConfig.for_model(**settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=said):
        load_model(tmp_path)


def test_tiny_configurations_are_what_they_say():
    assert {name: tiny_config(name).vocab_size for name in ARCHITECTURES} == dict.fromkeys(ARCHITECTURES, 101)


def test_a_model_that_loads_but_does_not_run_is_refused_with_what_to_do(monkeypatch):
    hf_model = tiny_model("llama")
    monkeypatch.setattr(hf_model, "forward", lambda *inputs, **options: [][0])
    with pytest.raises(ModelError, match=r"does not run \(IndexError.*Compare its config\.json"):
        load_model("x", hf_model=hf_model, tokenizer=tiny_tokenizer())


def test_a_lack_of_memory_is_said_as_it_is(monkeypatch):
    hf_model = tiny_model("llama")

    def forward(*inputs, **options):
        raise torch.OutOfMemoryError("too little")

    monkeypatch.setattr(hf_model, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError, match="too little"):
        load_model("x", hf_model=hf_model, tokenizer=tiny_tokenizer())


HUGE = [
    ({"num_hidden_layers": 10**9}, r"says num_hidden_layers = 1e\+09: more than 1,000"),
    ({"num_hidden_layers": 1e300}, r"says num_hidden_layers = 1e\+300"),
    ({"text_config": {"model_type": "llama", "num_hidden_layers": 10**9}}, r"says num_hidden_layers = 1e\+09"),
    ({"max_position_embeddings": 10**9}, "says max_position_embeddings"),
    ({"num_labels": 10**9}, "says num_labels"),
    ({"num_hidden_layers": 900}, r"describes 7e\+06 of them, and its files have 9e\+04 bytes"),
    ({"vocab_size": 10**9}, r"describes 6\.4e\+10"),
    ({"intermediate_size": 10**12}, r"describes 1\.9e\+14"),
    ({"head_dim": 10**9}, r"describes 7\.7e\+11"),
]


@pytest.mark.parametrize(("changes", "said"), HUGE, ids=[f"{changes}"[:60] for changes, _ in HUGE])
def test_a_configuration_of_more_than_its_files_can_hold_is_refused_at_once(broken, changes, said):
    edit_config(broken, **changes)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ModelError, match=said):
        load_model(broken)
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # in kB, 1 GB


LONG = "x" * 200_000


@pytest.mark.parametrize(
    "changes",
    [
        {"is_encoder_decoder": True, "architectures": [LONG]},
        {"num_local_experts": 3, "architectures": [LONG]},
        {"model_type": LONG},
        {"hidden_act": LONG},
        {"rope_parameters": {"rope_type": LONG}},
        {"dtype": LONG},
        {"num_hidden_layers": LONG},
        {"layer_types": [LONG] * 2},
        {"eos_token_id": LONG},
    ],
    ids=str,
)
def test_a_sentence_never_repeats_what_a_file_says_at_length(broken, changes):
    edit_config(broken, **changes)
    for read in (load_model, describe):
        with pytest.raises(ModelError) as caught:
            read(broken)
        assert len(str(caught.value)) < 500 + len(str(broken))


def test_a_name_of_any_length_is_refused_in_a_sentence():
    for name in (LONG, "/" + LONG, "a/" + LONG):
        with pytest.raises(ModelError) as caught:
            load_model(name)
        assert len(str(caught.value)) < 300


def test_a_tokenizer_that_writes_ids_beyond_the_vocabulary_is_refused(broken):
    path = broken / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [4_000_000], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(content))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>", eos_token="</s>")
    with pytest.raises(ModelError, match="writes ids up to 4000000, the model has 101 embeddings"):
        load_model(broken, tokenizer=tokenizer)


def test_special_tokens_beyond_the_vocabulary_that_no_text_has_are_left_alone(folders):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.convert_tokens_to_ids(["<image>", "[PAD]"]) == [101, 102]
    for backend in BACKENDS:
        model_view = view(load_model(folders["llama"], tokenizer=tokenizer, backend=backend))
        assert model_view.tokenizer("w5 w6")["input_ids"] == [1, 5, 6]
        assert (model_view.tokenizer.pad_token, tokenizer.pad_token) == ("</s>", "[PAD]")
        spelled = torch.tensor([token_ids(model_view, ["w5 <image> w6"])[0]])
        for run in (model_view.forward, model_view.hidden, lambda tokens, v=model_view: v.logits_at(tokens, [0])):
            with pytest.raises(
                ModelError, match="The token id 101 has no embedding in 'llama', whose ids are 0 to 100"
            ):
                run(spelled)
        with pytest.raises(ModelError, match="The token id -1 has no embedding"):
            model_view.generate(torch.tensor([[5, -1]]), torch.ones(1, 2).long(), 2)


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "unk_token"])
def test_a_special_token_beyond_the_vocabulary_that_texts_get_is_refused(folders, name):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({name: "<beyond>"})
    with pytest.raises(ModelError, match="do not fit.*up to 101.*101 embeddings"):
        load_model(folders["llama"], tokenizer=tokenizer)


def test_no_backend_is_advised_that_cannot_hold_the_model(monkeypatch):
    honest = loading.probe_of

    def off_by_one(*given):
        probe = honest(*given)
        return replace(probe, logits=probe.logits + 1)

    monkeypatch.setattr(loading, "probe_of", off_by_one)
    for backend in ("auto", "bridge"):
        with pytest.raises(ModelError, match=r"'bridge' computes other logits than .*, and rounding explains \S+$"):
            load_model("tiny", hf_model=tiny_model("gemma2"), tokenizer=tiny_tokenizer(), backend=backend)
    for backend, other in [("hooked", "bridge"), ("bridge", "hooked")] if HookedTransformer else []:
        with pytest.raises(ModelError, match=rf"'{backend}' computes other logits.* Try backend='{other}'\."):
            load_model("tiny", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer(), backend=backend)
