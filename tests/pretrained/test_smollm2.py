"""A cut of ``make pretrained``: SmolLM2-135M loaded, recorded, and patched as plain torch hooks patch it."""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import langneurons as ln
from langneurons.models import view
from langneurons.models.gguf import converted_folder
from langneurons.tasks import completions
from tests.backends import BACKENDS

LANGUAGES = ["en", "hi", "zh"]
DTYPES = (torch.float32, torch.float64)
SENTENCE = "मौसम आज बहुत अच्छा है।"


@pytest.fixture(scope="module")
def of_transformers(file):
    """Transformers' own models of the same weights in float32 and float64, and tokens."""
    folder = converted_folder(file)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval() for dtype in DTYPES]
    return models, AutoTokenizer.from_pretrained(folder)(SENTENCE, return_tensors="pt")["input_ids"]


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, file):
    return ln.load_model(file, backend=request.param)


@pytest.fixture(scope="module")
def neurons(model):
    corpus = ln.load_corpus("babel", LANGUAGES)
    stats = ln.record(model, corpus, tokens_per_language=500, context_length=128, progress=False)
    return ln.LAPE(top=0.01).identify(stats)


def zeroed(units, module, inputs, values):
    """Zero what some units of an activation function give."""
    return values.index_fill(-1, units, 0.0)


def assert_equal_but_for_rounding(logits, single, double):
    """Logits are no further from those in float64 than twice what transformers' own in float32 are."""
    own_error = float((single - double).abs().max())
    assert own_error < 1e-4 * float(double.std())
    assert float((logits - double).abs().max()) <= 2 * own_error


@torch.no_grad()
def test_logits_equal_those_of_transformers(model, of_transformers):
    models, tokens = of_transformers
    single, double = (hf_model(tokens).logits for hf_model in models)
    assert_equal_but_for_rounding(view(model).forward(tokens), single, double)


@torch.no_grad()
def test_zeroed_language_neurons_equal_plain_torch_hooks(model, neurons, of_transformers):
    models, tokens = of_transformers
    hindi = neurons["hi"]
    assert len(hindi) > 20
    unpatched = models[0](tokens).logits
    hooks = [
        hf_model.model.layers[layer].mlp.act_fn.register_forward_hook(partial(zeroed, torch.tensor(units.tolist())))
        for layer, units in hindi.to_dataframe().groupby("layer")["neuron"]
        for hf_model in models
    ]
    try:
        single, double = (hf_model(tokens).logits for hf_model in models)
    finally:
        for hook in hooks:
            hook.remove()
    assert float((single - unpatched).abs().max()) > 0.1
    with ln.intervene(model, ln.SetTo(hindi, 0.0)):
        assert_equal_but_for_rounding(view(model).forward(tokens), single, double)


def test_the_capital_of_france_is_paris(model):
    table = completions(model, ["The capital of France is"], {}, max_new_tokens=4)
    assert "Paris" in " ".join(map(str, table.iloc[0]))
