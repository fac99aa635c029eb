"""A private part of a library that has moved is named when a model is loaded, with the versions known to work."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PretrainedConfig

from langneurons.errors import ModelError
from langneurons.models import internals, load_model, view
from tests.tiny_models import tiny_model, tiny_tokenizer


class SilentPoint:
    """A hook point that no longer lists what is attached to it."""

    def __init__(self):
        self.name, self.fwd_hooks = "silent", []

    def add_hook(self, hook):
        pass


def bare() -> nn.Module:
    """A module with none of the parts."""
    return nn.Linear(2, 2)


def listing_plainly() -> nn.Module:
    """A model whose hook points list something else than handles."""
    model = bare()
    model.hook_dict = {"point": SimpleNamespace(fwd_hooks=[print])}
    return model


def bare_tokenizer():
    tokenizer = tiny_tokenizer()
    del tokenizer.init_kwargs
    return tokenizer


REACHED = [
    (lambda: internals.attention_of(bare()), "transformers", "set_attn_implementation"),
    (lambda: internals.incomplete_weights({}), "transformers", "output_loading_info"),
    (lambda: internals.mark_as_prepared(bare_tokenizer(), "x"), "transformers", "tokenizer.init_kwargs"),
    (lambda: internals.count_hooks(bare()), "transformer-lens", "model.hook_dict"),
    (lambda: internals.count_hooks(listing_plainly()), "transformer-lens", "what it lists"),
    (lambda: internals.attach(SilentPoint(), print), "transformer-lens", "HookPoint.fwd_hooks"),
    (lambda: internals.readable_weight(bare(), "W_out"), "transformer-lens", "W_out"),
    (lambda: internals.weight_converter("convert_nothing"), "transformer-lens", "weight_conversions"),
    (lambda: internals.complete(bare(), {}), "transformer-lens", "fill_missing_keys"),
    (lambda: internals.key_value_cache(bare(), 1), "transformer-lens", "init_cache"),
    (lambda: internals.parameter_of(bare(), "W_Q"), "transformer-lens", "W_Q"),
    (lambda: internals.attention_input(bare(), "q"), "transformer-lens", "query_input"),
    (lambda: internals.hugging_face_of(bare()), "transformer-lens", "original_model"),
    (lambda: internals.wrapped_by(bare()), "transformer-lens", "original_component"),
    (lambda: internals.path_of(bare()), "transformer-lens", "name of a bridge's components"),
    (lambda: internals.install_attention(bare(), native=True), "transformer-lens", "keeps its attention"),
    (lambda: internals.run_at(bare(), bare().register_forward_hook(print), last=True), "torch", "_forward_hooks"),
]


@pytest.mark.parametrize(("reach", "library", "part"), REACHED, ids=[part for _, _, part in REACHED])
def test_a_part_that_moved_is_named_with_the_versions_known_to_work(reach, library, part):
    with pytest.raises(ModelError) as caught:
        reach()
    sentence = str(caught.value)
    assert sentence.startswith(f"{library} ")
    assert " has moved " in sentence
    assert part in sentence
    assert f"langneurons was tested with {library} {internals.TESTED[library]}" in sentence


@pytest.mark.hooked
def test_a_moved_converter_is_named_at_load(folders, monkeypatch):
    from transformer_lens.pretrained import weight_conversions  # absent from TransformerLens 4

    monkeypatch.delattr(weight_conversions, "convert_llama_weights")
    with pytest.raises(ModelError, match=r"^transformer-lens .* has moved the converters .* 3\.9 and 4\.3"):
        load_model(folders["llama"])
    load_model(folders["gpt2"])


def test_a_moved_attribute_of_configurations_is_named_at_load(monkeypatch):
    hf_model = tiny_model("llama")
    monkeypatch.delattr(PretrainedConfig, "_attn_implementation")
    with pytest.raises(ModelError, match=r"^transformers .* has moved config\._attn_implementation .* 5\.23"):
        load_model(hf_model=hf_model, tokenizer=tiny_tokenizer())


def test_moved_hook_points_are_named_when_a_model_of_the_user_is_viewed(monkeypatch):
    hf_model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    internals.mark_as_prepared(tokenizer, "x")
    bridge = TransformerBridge.boot_transformers("x/y", hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    owner = next(base for base in TransformerBridge.__mro__ if "hook_dict" in vars(base))
    monkeypatch.delattr(owner, "hook_dict")
    with pytest.raises(ModelError, match=r"^transformer-lens .* has moved model\.hook_dict"):
        view(bridge)
    monkeypatch.undo()
    assert view(bridge).forward(torch.arange(4)[None]) is not None


def test_what_is_said_keeps_the_cause():
    with pytest.raises(ModelError) as caught:
        internals.wrapped_by(bare())
    assert isinstance(caught.value.__cause__, AttributeError)
