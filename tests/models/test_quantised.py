"""Checkpoints in 4 bits, on the bridge: read, patched and ablated as they are, but not trained."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import langneurons as ln
from langneurons.errors import TrainingError
from langneurons.models import view
from tests.tiny_models import save_tiny, tiny_tokenizer

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'langneurons[large]'")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny model as it is and in 4 bits."""
    root = tmp_path_factory.mktemp("quantised")
    plain = save_tiny(root / "plain", "llama", hidden_size=64, intermediate_size=128)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, device_map={"": "cpu"}).save_pretrained(
        root / "quantised"
    )
    tiny_tokenizer().save_pretrained(root / "quantised")
    return plain, root / "quantised"


@pytest.fixture(scope="module")
def quantised(folders):
    return ln.load_model(folders[1])


def test_it_loads_as_a_bridge_and_computes_what_transformers_computes(folders, quantised):
    seen = view(quantised)
    hf_model = AutoModelForCausalLM.from_pretrained(folders[1]).eval()
    hf_model.set_attn_implementation("eager")
    tokens = torch.arange(4, 36)[None]
    with torch.no_grad():
        torch.testing.assert_close(seen.forward(tokens), hf_model(tokens).logits)
    assert seen.backend == "bridge"


def test_what_a_neuron_writes_is_its_dequantised_column(folders, quantised):
    from bitsandbytes.functional import dequantize_4bit

    hf_model = AutoModelForCausalLM.from_pretrained(folders[1])
    weight = hf_model.model.layers[1].mlp.down_proj.weight
    expected = dequantize_4bit(weight.data, weight.quant_state).T
    torch.testing.assert_close(view(quantised).output_weights(1, "act"), expected.float(), rtol=1e-2, atol=1e-3)


def test_ablating_one_neuron_is_the_same_as_patching_it(quantised):
    words = {language: [f"w{n % 90 + 4} w{n % 7 + 40} w{n % 50 + 9}" for n in range(30)] for language in ("en", "hi")}
    text = ln.HeldoutText.of(quantised, ln.load_corpus(words), 60, 16)
    neurons = ln.NeuronSet.of({"hi": [(1, 7)]}, shape=(2, 128), site="act")
    options = {"resamples": 200, "progress": False}
    alone = ln.ablate(quantised, neurons, text, value=3.0, **options).rows.set_index("language")["effect"]
    table = ln.perplexity_matrix(quantised, text, neurons, value=3.0, controls=0, **options)
    patched = table.rows.set_index("measured")["estimate"]
    assert abs(patched["hi"]) > 1e-4
    assert alone["hi"] == pytest.approx(patched["hi"], abs=1e-3 * max(1, abs(patched["hi"])))


def test_training_it_is_refused_with_what_to_do(quantised):
    neurons = ln.NeuronSet.of({"hi": [(1, 7)]}, shape=(2, 128), site="act")
    with pytest.raises(TrainingError, match=r"quantised \(torch.uint8\).*train the checkpoint that is not quantised"):
        ln.MaskedLoRA(neurons, rank=1, attention=()).prepare(quantised)
