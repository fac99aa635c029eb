"""Every setting of an adapter that peft wrote means what it means to peft, or is refused by name."""

import copy
import json
from dataclasses import fields

import pytest
import torch

from langneurons.errors import CorruptArtefactError, LangNeuronsError, TrainingError
from langneurons.training.lora import MaskedLoRA
from tests.training.lora_models import TOKENS, fresh, hf_model, logits_of

peft = pytest.importorskip("peft")
TARGETS = ["q_proj", "v_proj", "gate_proj", "down_proj"]
SAME_FUNCTION = {
    "regular expression": {"alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 64}},
    "alternatives": {"alpha_pattern": {r".*\.(q|v)_proj": 64, "gate_proj": 1.5}},
    "anchored": {"alpha_pattern": {r"^model\.layers\.0\.mlp\.down_proj": 64}},
    "end of a name": {"alpha_pattern": {"mlp.down_proj": 64}},
    "part of a word, which matches nothing": {"alpha_pattern": {"_proj": 64, "proj": 64, "0.self_attn": 64}},
    "the first that matches": {"alpha_pattern": {"layers.[01].mlp.gate_proj": 64, "gate_proj": 1}},
    "ranks": {"rank_pattern": {r"layers\.\d+\.self_attn\.[qk]_proj": 2, r"1\.mlp\..*": 5}},
    "ranks and alphas": {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {r"(v|down)_proj": 12}},
    "rank-stabilised": {"use_rslora": True},
    "rank-stabilised, with patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {r"q_\w+": 7},
    },
    "some layers": {"layers_to_transform": [1]},
    "excluded modules": {"exclude_modules": r".*0\.mlp.*"},
    "a start by the eigenvectors of activations": {"init_lora_weights": "eva"},
    "dropout": {"lora_dropout": 0.5},
}


def adapter(folder, **options):
    """Save an adapter of peft with random weights, and compute logits as peft does that reads it."""
    with pytest.warns() if options.get("init_lora_weights") == "eva" else torch.no_grad():
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", **options)
    theirs = peft.get_peft_model(copy.deepcopy(hf_model("llama")), config).eval()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(theirs.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        theirs.save_pretrained(folder)
        return as_peft_computes(folder)


def as_peft_computes(folder):
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(copy.deepcopy(hf_model("llama")), folder)(TOKENS).logits


def change(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("options", SAME_FUNCTION.values(), ids=SAME_FUNCTION)
@torch.no_grad()
def test_the_function_is_peft_s(options, tmp_path):
    expected, model = adapter(tmp_path, **options), fresh("llama", "bridge")
    update = MaskedLoRA.load(tmp_path, model)
    torch.testing.assert_close(logits_of(model, update), expected, rtol=0, atol=1e-5 * max(1, float(expected.std())))


def test_a_pattern_that_is_a_regular_expression_sets_the_scale(tmp_path):
    adapter(tmp_path, alpha_pattern={r"layers\.1\.self_attn\.q_proj": 64})
    forms = {piece.name: piece.form for piece in MaskedLoRA.load(tmp_path, fresh("llama", "bridge")).pieces}
    assert {name: form.alpha / form.rank for name, form in forms.items() if name.endswith("q")} == {"0.q": 2, "1.q": 16}


REFUSED = {
    "DoRA": ({"use_dora": True}, "uses use_dora"),
    "other modules": ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
    "a bias": ({"bias": "lora_only"}, "with bias 'lora_only'"),
    "biases of B": ({"lora_bias": True}, "uses lora_bias"),
    "parameters": ({"target_parameters": ["mlp.gate_proj.weight"]}, "uses target_parameters"),
    "tokens": ({"trainable_token_indices": [3]}, "uses trainable_token_indices"),
    "repeated layers": ({"layer_replication": [[0, 2], [1, 2]]}, "uses layer_replication"),
    "activation by tokens": ({"alora_invocation_tokens": []}, "uses alora_invocation_tokens"),
    "routing": ({"arrow_config": {}}, "uses arrow_config"),
    "quantised groups": ({"use_qalora": True}, "uses use_qalora"),
    "a start that changes the model": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes"),
    "fused projections of old peft": ({"enable_lora": [True, False]}, "uses enable_lora"),
    "a setting that peft does not have": ({"use_tomorrows_lora": False}, "'use_tomorrows_lora', which is no setting"),
    "an alpha that is no number": ({"alpha_pattern": {"q_proj": "64"}}, "not a number but '64'"),
    "a pattern that is no expression": ({"alpha_pattern": {"(q_proj": 64}}, "no regular expression"),
    "patterns that are no object": ({"rank_pattern": ["q_proj"]}, "not laid out"),
    "a flag that is no flag": ({"use_rslora": "false"}, "not true or false but 'false'"),
    "another rank": (
        {"rank_pattern": {r"layers\.1.*": 2}},
        "gives model.layers.1.* rank 2, but its weights have rank 4",
    ),
    "untargeted modules": ({"target_modules": ["q_proj"]}, "holds weights of model.layers.0.mlp.down_proj"),
    "untargeted layers": ({"layers_to_transform": 0}, "holds weights of model.layers.1"),
}


@pytest.fixture(scope="module")
def llama():
    return fresh("llama", "bridge")


@pytest.fixture(scope="module")
def plain_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    return folder, adapter(folder), (folder / "adapter_config.json").read_text()


@pytest.mark.parametrize(("settings", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_masked_lora_cannot_compute_is_refused_by_name(settings, sentence, llama, plain_adapter):
    folder, _, text = plain_adapter
    (folder / "adapter_config.json").write_text(text)
    change(folder, **settings)
    with pytest.raises((TrainingError, CorruptArtefactError), match=sentence) as refusal:
        MaskedLoRA.load(folder, llama)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("name", [field.name for field in fields(peft.LoraConfig)] + ["enable_lora", "merge_weights"])
@pytest.mark.parametrize("value", [True, "text", [1], {"a": 1}, 2.5], ids=repr)
@torch.no_grad()
def test_whatever_a_setting_is_the_function_is_peft_s_or_it_is_refused(name, value, llama, plain_adapter):
    folder, expected, text = plain_adapter
    (folder / "adapter_config.json").write_text(text)
    change(folder, **{name: value})
    try:
        update = MaskedLoRA.load(folder, llama)
    except LangNeuronsError:
        return
    if (name, value) == ("use_rslora", True) or name == "lora_alpha":
        expected = as_peft_computes(folder)
    torch.testing.assert_close(logits_of(llama, update), expected, rtol=0, atol=1e-5 * max(1, float(expected.std())))


def test_an_adapter_of_the_first_peft_is_read(llama, plain_adapter):
    folder, expected, _ = plain_adapter
    old = {
        "base_model_name_or_path": "x", "bias": "none", "enable_lora": None, "fan_in_fan_out": False,
        "inference_mode": True, "lora_alpha": 8, "lora_dropout": 0.05, "merge_weights": False, "modules_to_save": None,
        "peft_type": "LORA", "r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(old))
    with torch.no_grad():
        update = MaskedLoRA.load(folder, llama)
        torch.testing.assert_close(
            logits_of(llama, update), expected, rtol=0, atol=1e-5 * max(1, float(expected.std()))
        )


def test_without_peft_a_sentence_says_what_to_install(llama, plain_adapter, monkeypatch):
    folder, _, text = plain_adapter
    (folder / "adapter_config.json").write_text(text)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(TrainingError, match=r"pip install 'langneurons\[peft\]'"):
        MaskedLoRA.load(folder, llama)
