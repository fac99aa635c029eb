"""One vocabulary over both classes, also for models that the user loaded through TransformerLens."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from langneurons.errors import HookSiteError, ModelError
from langneurons.models import load_model, view
from tests.backends import HookedTransformer, loadable
from tests.tiny_models import tiny_model, tiny_tokenizer


def foreign_hooked(**changes):
    from transformer_lens import HookedTransformerConfig  # absent from TransformerLens 4

    settings = {"d_model": 16, "d_head": 8, "n_heads": 2, "n_layers": 2, "d_mlp": 24, "d_vocab": 50, "n_ctx": 40}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer(HookedTransformerConfig(**{**settings, "act_fn": "gelu", "seed": 0, **changes}))


def test_shape_is_read_from_the_model(loaded):
    seen, config = loaded.view, loaded.hf_model.config
    assert seen.n_layers == config.num_hidden_layers
    assert seen.context_length == 96
    assert seen.width("pre") == seen.width("act") == seen.width("post") == loaded.hf["post"][0].shape[-1]
    assert seen.width("head") == 4
    assert seen.gated == (loaded.architecture not in ("gpt2", "opt", "bloom"))
    assert seen.dtype == torch.float32
    assert seen.device.type == "cpu"
    assert seen.name == loaded.architecture


def test_output_norm_is_the_norm_of_what_a_unit_writes(loaded):
    seen, hf_model = loaded.view, loaded.hf_model
    state = hf_model.state_dict()
    endings = ("down_proj.weight", "mlp.c_proj.weight", "fc2.weight", "dense_4h_to_h.weight")
    downs = [weight for name, weight in state.items() if name.endswith(endings)]
    endings = ("o_proj.weight", "attn.c_proj.weight", "out_proj.weight", "self_attention.dense.weight")
    outs = [weight for name, weight in state.items() if name.endswith(endings)]
    if loaded.architecture == "gpt2":
        downs, outs = [weight.T for weight in downs], [weight.T for weight in outs]
    torch.testing.assert_close(seen.output_norm("post"), torch.stack([down.norm(dim=0) for down in downs]))
    heads = torch.stack([out.unflatten(1, (4, -1)).norm(dim=(0, 2)) for out in outs])
    torch.testing.assert_close(seen.output_norm("head"), heads)


def test_post_follows_from_pre_and_up(loaded, tokens):
    seen, found = loaded.view, {"pre": {}, "post": {}, **({"up": {}} if loaded.view.gated else {})}
    with torch.no_grad(), seen.reading({site: values.__setitem__ for site, values in found.items()}):
        seen.forward(tokens)
    for layer in range(seen.n_layers):
        up = found["up"][layer] if seen.gated else None
        assert torch.equal(seen.post_of(layer, found["pre"][layer], up), found["post"][layer])


def test_up_can_be_read_where_there_is_a_gate_only(load):
    plain = load("gpt2", "bridge").view
    with pytest.raises(HookSiteError, match="has no site 'up': its MLP has no gate"), plain.reading({"up": print}):
        pass


def test_output_weights_are_what_a_change_of_a_unit_adds_to_the_residual_stream(load, tokens):
    # Attention and MLP of these write to the residual stream directly; gemma norms in between.
    for pair in loadable(
        [("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked"), ("opt", "bridge"), ("bloom", "bridge")]
    ):
        seen = load(*pair).view
        for site, rows in (("post", slice(3, 4)), ("head", slice(8, 16))):
            unit, weights = torch.tensor([3 if site == "post" else 1]), seen.output_weights(1, site)
            point = "hook_mlp_out" if site == "post" else "hook_attn_out"
            outs = []
            for step in (0.0, 1.0):
                noting = seen.model.hooks(
                    fwd_hooks=[(f"blocks.1.{point}", lambda values, hook, outs=outs: outs.append(values))]
                )
                writing = seen.writing(site, {1: unit}, lambda layer, now, step=step: torch.full_like(now, step))
                with torch.no_grad(), noting, writing:
                    seen.forward(tokens)
            added = weights[rows].sum(0).expand_as(outs[0])
            torch.testing.assert_close(outs[1] - outs[0], added, rtol=1e-4, atol=1e-5, msg=f"{pair} {site}")


def test_forward_without_logits_runs_the_layers_and_not_the_unembedding(some, tokens):
    layers, columns = [], []
    unembedding = some.view.model.unembed
    handle = unembedding.register_forward_hook(lambda module, inputs, out: columns.append(out.shape[1]))
    with torch.no_grad(), some.view.reading({"pre": lambda layer, values: layers.append(values.shape[:2])}):
        assert some.view.forward(tokens, logits=False) is None
    handle.remove()
    assert layers == [(2, 32)] * 2
    assert sum(columns) <= 1


def test_padding_on_either_side_changes_no_real_token(load, tokens):
    for pair in loadable(
        [("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked"), ("bloom", "hooked"), ("opt", "bridge")]
    ):
        seen = load(*pair).view
        pad, ones = torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 32, dtype=torch.int64)
        with torch.no_grad():
            expected = seen.forward(tokens)
            left = seen.forward(torch.cat([pad, tokens], 1), torch.cat([pad, ones], 1))
            right = seen.forward(torch.cat([tokens, pad], 1), torch.cat([ones, pad], 1))
        torch.testing.assert_close(left[:, 8:], expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(right[:, :32], expected, rtol=0, atol=2e-5)


def test_a_left_padding_tokenizer_does_not_turn_pad_ids_into_padding(folders):
    model = load_model(folders["llama"])
    tokens = torch.tensor([[0, 5, 0, 7]])
    with torch.no_grad():
        expected = view(model).forward(tokens)
        model.tokenizer.padding_side = "left"
        torch.testing.assert_close(view(model).forward(tokens), expected, rtol=0, atol=2e-5)


def test_one_view_a_model_and_both_are_freed_together(folders):
    model = load_model(folders["llama"])
    assert view(model) is view(model)
    assert view(model).model is model
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_a_deep_copy_is_hooked_in_the_copy(folders, tokens, backend):
    model = load_model(folders["llama"], backend=backend)
    other = copy.deepcopy(model)
    calls = []
    assert view(other).model is other
    with torch.no_grad(), view(other).reading({"act": lambda layer, values: calls.append(layer)}):
        logits = view(model).forward(tokens)
        assert calls == []
        assert torch.equal(view(other).forward(tokens), logits)
    assert calls == [0, 1]


@pytest.mark.hooked
@pytest.mark.parametrize("gated", [True, False])
def test_a_hooked_transformer_of_the_user_works(gated):
    model = foreign_hooked(gated_mlp=gated, act_fn="silu" if gated else "gelu")
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.b_in.normal_()
    seen, tokens = view(model), torch.arange(20)[None]
    assert (seen.backend, seen.gated, seen.width("act"), seen.context_length) == ("hooked", gated, 24, 40)
    with torch.no_grad():
        expected = seen.forward(tokens)
        with seen.writing("act", {0: torch.arange(24), 1: torch.arange(24)}, lambda layer, now: now):
            assert torch.equal(seen.forward(tokens), expected)
    assert len(seen.fingerprint) == 32


def test_a_bridge_of_the_user_works_also_in_compatibility_mode(tokens):
    hf_model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.init_kwargs |= {"name_or_path": "x", "add_bos_token": True}
    bridge = TransformerBridge.boot_transformers("x/y", hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    bridge.enable_compatibility_mode()
    seen = view(bridge)
    assert (seen.backend, seen.width("act"), seen.act_fn_name) == ("bridge", 48, "silu")
    with torch.no_grad():
        expected = seen.forward(tokens)
        with seen.writing("act", {0: torch.arange(48)}, lambda layer, now: now):
            assert torch.equal(seen.forward(tokens), expected)


@pytest.mark.hooked
def test_a_model_without_mlps_is_refused():
    with pytest.raises(HookSiteError, match="lacks an MLP"):
        view(foreign_hooked(attn_only=True))


def test_what_is_no_model_of_transformer_lens_is_refused():
    with pytest.raises(ModelError, match="Not a HookedTransformer"):
        view(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="Not a HookedTransformer or TransformerBridge: dict"):
        view({})


@pytest.mark.hooked
def test_a_site_that_fires_twice_a_layer_is_refused():
    model = foreign_hooked()
    block = model.blocks[0]
    block.register_forward_hook(lambda module, inputs, out: (block.mlp(inputs[0]), out)[1])
    with pytest.raises(HookSiteError, match="fire at layers"):
        view(model)


@pytest.mark.hooked
def test_the_fingerprint_is_the_same_for_both_backends_and_follows_the_weights(folders):
    hooked, bridge = (load_model(folders["gpt2"], backend=backend) for backend in ("hooked", "bridge"))
    before = view(hooked).fingerprint
    assert view(bridge).fingerprint == before
    assert view(load_model(folders["gpt2"], dtype="bfloat16")).fingerprint != before
    with torch.no_grad():
        hooked.blocks[1].mlp.W_out[3, 5] *= -1
    assert view(hooked).fingerprint != before


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt2", "gemma2"])
def test_native_attention_changes_speed_and_no_value_and_is_gone_afterwards(load, tokens, architecture):
    seen = load(architecture, "bridge").view
    hf = load(architecture, "bridge").hf
    heads, patterns = {}, []
    pattern = ("blocks.0.attn.hook_pattern", lambda values, hook: patterns.append(1))
    with torch.no_grad(), seen.model.hooks(fwd_hooks=[pattern]):
        with seen.native_attention(), seen.reading({"head": heads.__setitem__}):
            logits = seen.forward(tokens)
        silent = not patterns
        seen.forward(tokens)
    torch.testing.assert_close(logits, hf["logits"][0], rtol=0, atol=2e-5)
    torch.testing.assert_close(heads[1], hf["head"][1], rtol=1e-4, atol=2e-5)
    assert silent == (architecture != "gpt2")
    assert patterns[-1:] == [1]
