"""HookedTransformer as load_model builds it: cheap weights, and an ordinary module all the same."""

import copy
import gc
import io
import warnings
import weakref

import pytest
import torch

from langneurons.models import checkpoints, load_model, view
from langneurons.models.backends.conversion import hooked_config
from tests.backends import HookedTransformer
from tests.tiny_models import HOOKED, tiny_model

pytestmark = pytest.mark.hooked


def as_transformer_lens_loads(hf_model, state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(hooked_config(hf_model.config, torch.float32, "x"))
    model.load_state_dict({name: weight.contiguous() for name, weight in state.items()}, strict=False)
    return model.eval()


@pytest.mark.parametrize("architecture", HOOKED)
def test_no_forward_copies_a_transposed_weight_and_logits_are_bit_equal(folders, tokens, architecture):
    model = load_model(folders[architecture])
    plain = as_transformer_lens_loads(tiny_model(architecture), model.state_dict())
    for block in model.blocks:
        if model.cfg.gated_mlp:
            assert all(getattr(block.mlp, name).T.is_contiguous() for name in ("W_gate", "W_in", "W_out"))
        assert block.attn.W_O.permute(2, 0, 1).is_contiguous()
        assert block.attn.W_Q.mT.is_contiguous()
    assert model.W_U.T.is_contiguous()
    difference = (model(tokens) - plain(tokens)).abs().max()  # with gradients, as TransformerLens computes it
    assert difference == 0 or (not model.cfg.gated_mlp and difference < 2e-5)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt2", "bloom"])
def test_state_dict_deepcopy_and_training_work_and_keep_the_layout(folders, tokens, architecture):
    model = load_model(folders[architecture])
    other = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(tokens)
        for parameter in other.parameters():
            parameter.zero_()
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert other.blocks[0].mlp.W_out.stride() == model.blocks[0].mlp.W_out.stride()
    with torch.no_grad():
        assert torch.equal(other(tokens), expected)
    names = {name for name, parameter in model.named_parameters() if isinstance(parameter, torch.nn.Parameter)}
    assert {"blocks.0.mlp.W_in", "blocks.0.mlp.W_out", "unembed.W_U"} <= names
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(tokens, return_type="loss").backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(other(tokens), expected)
        assert torch.equal(model(tokens), expected)


def test_tied_embeddings_become_independent_parameters(folders):
    model = load_model(folders["gpt2"])
    before = model.W_E.clone()
    with torch.no_grad():
        model.W_U.zero_()
    assert torch.equal(model.W_E, before)


def test_nothing_of_the_hugging_face_model_stays_alive(folders, monkeypatch):
    kept = []
    load = checkpoints.load_weights

    def remember(*given):
        hf_model = load(*given)
        kept.append(weakref.ref(hf_model))
        return hf_model

    monkeypatch.setattr(checkpoints, "load_weights", remember)
    model = load_model(folders["llama"])
    gc.collect()
    assert kept[0]() is None
    assert view(model).n_layers == 2
