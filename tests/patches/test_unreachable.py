"""Values that an activation function cannot give are counted, and intervene warns of them."""

import runpy
import warnings

import pytest
import torch

import langneurons as ln
from langneurons.errors import LangNeuronsWarning
from langneurons.models import load_model, view
from tests.patches.conftest import logits_of, set_at
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(("architecture", "least"), [("llama", -0.2785), ("gpt2", -0.1701), ("opt", 0.0)])
@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_unreachable_counts_the_values_the_activation_function_cannot_give(load, architecture, least, backend):
    one = load(architecture, backend)
    model, (low, high) = one.view.model, one.view.act_range()
    assert low == pytest.approx(least, abs=1e-4)
    assert high == float("inf")
    neurons = set_at(model, "act")
    values = torch.tensor([least - 0.01, low, 0.0, 5.0, -1.0])
    assert ln.patches.unreachable(model, ln.SetTo(neurons, values, site="act")) == pytest.approx(2 / 5)
    assert ln.patches.unreachable(model, ln.SetTo(neurons, values, site="act", layers=[1])) == pytest.approx(1 / 2)
    assert ln.patches.unreachable(model, ln.SetTo(neurons, low)) == 0
    assert ln.patches.unreachable(model, ln.Clamp(neurons, None, -1.0)) == 1
    assert ln.patches.unreachable(model, ln.Clamp(neurons, -10.0, 10.0)) == 0, (
        "a limit that is never reached is never written"
    )
    assert ln.patches.unreachable(model, ln.Clamp(neurons, low=0.5)) == 0
    assert ln.patches.unreachable(model, ln.Add(neurons, -9.0)) != ln.patches.unreachable(
        model, ln.Add(neurons, -9.0)
    ), "NaN"
    bounded = () if one.view.gated else ("post",)
    for site in ("pre", "post", "head", "resid_post"):
        share = ln.patches.unreachable(model, ln.SetTo(set_at(model, site), -9.0))
        assert share == (1.0 if site in bounded else 0.0), site


@pytest.mark.parametrize(
    ("act_fn", "bounds"),
    [
        (torch.nn.Identity(), (-float("inf"), float("inf"))),
        (torch.nn.LeakyReLU(), (-float("inf"), float("inf"))),
        (torch.nn.Tanh(), (-1.0, 1.0)),
        (torch.nn.Sigmoid(), (0.0, 1.0)),
    ],
)
def test_the_bounds_are_those_of_the_function_the_mlp_calls(act_fn, bounds):
    network = tiny_model("gpt2")
    for block in network.transformer.h:
        block.mlp.act = act_fn
    model = load_model("gpt2", hf_model=network, tokenizer=tiny_tokenizer(), backend="bridge")
    assert view(model).act_range() == bounds
    bounded = float(bounds[1] == 1.0)
    assert ln.patches.unreachable(model, ln.SetTo(set_at(model, "act"), 1.1)) == bounded
    assert ln.patches.unreachable(model, ln.Clamp(set_at(model, "act"), low=1.1)) == bounded
    assert ln.patches.unreachable(model, ln.Clamp(set_at(model, "act"), -5.0, 1.0)) == 0


def test_intervene_warns_of_unreachable_values_where_it_was_called(few, tokens):
    model = few.view.model
    patch = ln.SetTo(set_at(model, "act"), torch.tensor([0.0, -1.0, 0.1, 0.2, 0.3]), site="act")
    with pytest.warns(LangNeuronsWarning, match="20% of the values that Set") as warned, ln.intervene(model, patch):
        pass
    assert len(warned) == 1
    assert "gives -0." in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits_of(model, tokens, ln.SetTo(set_at(model, "act"), 0.0), ln.SetTo(set_at(model, "pre"), -9.0))


def test_the_warning_names_the_line_of_the_user(load, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import langneurons as ln\n"
        "neurons = ln.NeuronSet.of({'hi': [(0, 3)]}, (2, 48), 'act')\n"
        "with ln.intervene(model, ln.SetTo(neurons, -1.0)):\n"
        "    pass\n"
    )
    with pytest.warns(LangNeuronsWarning, match="100% of the values") as caught:
        runpy.run_path(str(script), {"model": load("llama", "auto").view.model})
    assert [(warning.filename, warning.lineno) for warning in caught] == [(str(script), 3)]
