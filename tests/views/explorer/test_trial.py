import numpy as np
import pytest
import torch

import langneurons as ln
from langneurons.errors import ModelError, PatchError, TaskError
from langneurons.models import view
from langneurons.views.trials import Trial, try_out

TEXT = "The boy drinks water."


@pytest.fixture(scope="module")
def neurons(babel_stats):
    pairs = [(layer, index) for layer in range(babel_stats.shape[0]) for index in range(200)]
    return ln.NeuronSet.of({"hi": pairs}, babel_stats.shape, "act")


def losses(model, text):
    """Each token's loss, one at a time, as a loop would have it."""
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False).input_ids]
    with torch.no_grad():
        probabilities = model(torch.tensor([ids]))[0].double().softmax(-1)
    return [-float(probabilities[place - 1, ids[place]].log()) for place in range(1, len(ids))]


def test_losses_are_those_of_the_model_without_and_with_the_patch(babel, neurons):
    trial = try_out(babel, ln.SetTo(neurons, 0.0), TEXT, "many neurons")
    assert np.allclose(trial.tokens["unpatched"], losses(babel, TEXT), atol=1e-4)
    with ln.intervene(babel, ln.SetTo(neurons, 0.0)):
        assert np.allclose(trial.tokens["patched"], losses(babel, TEXT), atol=1e-4)
    assert "".join(trial.tokens["token"]) == TEXT
    assert not view(babel).hooked


def test_continuations_are_those_without_and_with_the_patch(babel, neurons):
    trial = try_out(babel, ln.SetTo(neurons, 0.0), TEXT, "many neurons", new_tokens=8)
    table = ln.tasks.completions(babel, [TEXT], {"patch": ln.SetTo(neurons, 0.0)}, max_new_tokens=8)
    assert [trial.unpatched, trial.patched] == table.loc[0, ["unpatched", "patch"]].tolist()


def test_the_sentence_says_the_loss_before_and_after_and_that_it_is_one_text(babel, neurons):
    trial = try_out(babel, ln.SetTo(neurons, 0.0), TEXT, "many neurons set to 0")
    before, after = trial.tokens[["unpatched", "patched"]].mean()
    change = f"{100 * (after / before - 1):+.2f} %"
    assert trial.sentence.startswith(f"many neurons set to 0: the loss of this text goes from {before:.3f} to ")
    assert change in trial.sentence
    assert "one text" in repr(trial)
    assert "one text" in trial._repr_html_()
    assert trial.note == ""


def test_values_that_the_activation_function_cannot_give_are_said(babel, neurons):
    trial = try_out(babel, ln.SetTo(neurons, -5.0), TEXT, "many neurons")
    assert "cannot reach 100% of the values written: its smallest value is -0.278" in trial.note


def test_a_text_without_a_loss_is_said_to_have_none(babel, neurons):
    tokens = try_out(babel, ln.SetTo(neurons, 0.0), TEXT, "").tokens.iloc[:1].assign(unpatched=np.nan, patched=np.nan)
    assert Trial("a", tokens, "", "").sentence == "a: the text is one token, which nothing predicts."


def test_what_the_model_writes_is_escaped(babel, neurons):
    trial = try_out(babel, ln.SetTo(neurons, 0.0), "<script>alert(1)</script>", "<b>")
    hostile = Trial("<b>", trial.tokens, "<img src=x>", "</td>")._repr_html_()
    assert not {"<script", "<img", "<b>: "} & {part for part in ("<script", "<img", "<b>: ") if part in hostile}


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("", ModelError, "has no tokens"),
        ("word " * 2000, ModelError, "context holds"),
        ("word " * 505, TaskError, "exceeds the context"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(babel, neurons, text, error, sentence):
    with pytest.raises(error, match=sentence):
        try_out(babel, ln.SetTo(neurons, 0.0), text, "")
    assert not view(babel).hooked


def test_neurons_of_another_shape_are_refused(babel):
    with pytest.raises(PatchError, match="layers x"):
        try_out(babel, ln.SetTo(ln.NeuronSet.of({"hi": [(0, 0)]}, (2, 4), "act"), 0.0), TEXT, "")
