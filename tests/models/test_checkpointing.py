"""Gradient checkpointing: the same gradients and patches, less memory kept, every tensor read once."""

from contextlib import nullcontext

import pytest
import torch

from langneurons.models import view
from langneurons.patches import Scale, intervene
from tests.training.small import shift, tiny


@pytest.fixture(
    scope="module",
    params=["llama hooked", "llama bridge", "gpt2 bridge", "opt hooked", "opt bridge", "phi3 bridge", "bloom bridge",
            "gemma2 bridge", "gemma3 bridge", "qwen3 hooked"],
)  # fmt: skip
def model(request, tmp_path_factory):
    model = tiny(tmp_path_factory, *request.param.split())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def gradients_of(model, update, checkpointing):
    seen, tokens, kept = view(model), torch.arange(5, 29).reshape(2, 12), []
    for parameter in update.parameters():
        parameter.grad = None

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with update.attach(model), seen.native_attention():
        if checkpointing:
            with seen.gradient_checkpointing(), saving:
                loss = seen.hidden(tokens).square().mean()
                loss.backward()
        else:
            with saving:
                loss = seen.hidden(tokens).square().mean()
            loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in update.parameters()], sum(kept)


def test_gradients_stay_what_they_are(model):
    forwards = [vars(block).get("forward") for block in model.blocks]
    update = shift(model, units=20)
    update.prepare(model)
    half = shift(model, units=3)
    with intervene(model, Scale(half.neurons, 0.5)):
        loss, plain, kept = gradients_of(model, update, False)
        again, checkpointed, fewer = gradients_of(model, update, True)
    assert torch.equal(loss, again)
    assert all(one.abs().max() > 0 for one in plain)
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
    assert fewer < kept / 3
    assert not view(model).hooked
    assert [vars(block).get("forward") for block in model.blocks] == forwards


@pytest.mark.parametrize("native", [False, True])
def test_every_tensor_is_read_once(model, native):
    seen, update, found = view(model), shift(model), []
    update.prepare(model)
    with (
        update.attach(model),
        seen.reading({"act": lambda layer, values: found.append(layer)}),
        seen.native_attention() if native else nullcontext(),
        seen.gradient_checkpointing(),
    ):
        seen.hidden(torch.arange(5, 17)[None]).sum().backward()
    assert found == [0, 1]


def test_generating_inside_is_as_outside(model):
    seen, prompt = view(model), torch.arange(5, 13)[None]
    outside = seen.generate(prompt, torch.ones_like(prompt), 6)
    with seen.gradient_checkpointing():
        assert seen.generate(prompt, torch.ones_like(prompt), 6) == outside
    assert seen.generate(prompt, torch.ones_like(prompt), 6) == outside
