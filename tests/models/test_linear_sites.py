"""Sites up, q, k and v are what linear modules of the Hugging Face model give; writing there is writing at those."""

from contextlib import nullcontext

import pytest
import torch

from langneurons.errors import HookSiteError
from langneurons.models import load_model, view
from langneurons.models.sites import LINEAR_SITES
from tests.backends import BACKENDS, loadable, unfused
from tests.models.hugging_face import hf_set
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_tokenizer

# Grouped heads, norms of queries and keys, fused matrices in turn and by head, and a window.
NAMES = ("llama", "qwen3", "gemma3", "gpt2", "phi3", "bloom")
PAIRS = loadable([(name, "hooked") for name in NAMES if name != "gemma3"] + [(name, "bridge") for name in NAMES])
UNITS = torch.tensor([0, 3, 13])


def sites_of(model_view):
    return [site for site in LINEAR_SITES if site in model_view.sites]


@torch.no_grad()
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_patch_equals_the_hand_made_one_in_whichever_way_attention_runs(pair, load, tokens):
    loaded = load(*pair)
    for site in sites_of(loaded.view):
        with hf_set(loaded.hf_model, 1, site, UNITS, 0.7):
            expected = loaded.hf_model(tokens, use_cache=False).logits
        assert (expected - loaded.hf["logits"][0]).abs().max() > 1e-3
        for attention in (nullcontext(), loaded.view.native_attention()):
            write = loaded.view.writing(site, {1: UNITS}, lambda layer, now: torch.full_like(now, 0.7))
            with attention, write:
                torch.testing.assert_close(loaded.view.forward(tokens), expected, rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_transformers_own_attention_shows_the_same_values_once_a_layer(name, load, tokens):
    loaded, values = load(name, "bridge"), {}
    readers = {
        site: lambda layer, tensor, site=site: values.setdefault((site, layer), []).append(tensor.clone())
        for site in sites_of(loaded.view)
    }
    with loaded.view.native_attention(), loaded.view.reading(readers):
        loaded.view.forward(tokens)
    assert len(values) == 2 * len(readers)
    for (site, layer), tensors in values.items():
        [only] = tensors
        torch.testing.assert_close(only, loaded.hf[site][layer], rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("pair", loadable([("llama", "hooked"), ("qwen3", "bridge"), ("phi3", "bridge")]), ids="-".join)
def test_generation_with_a_cache_sees_the_patch_at_every_step(pair, load):
    loaded, prompts = load(*pair), torch.tensor([[1, 5, 6, 7]])
    for site in sites_of(loaded.view):
        with hf_set(loaded.hf_model, 0, site, UNITS, 2.0):
            expected = loaded.hf_model.generate(prompts, max_new_tokens=6, do_sample=False)[0, 4:].tolist()
        for attention in (nullcontext(), loaded.view.native_attention()):
            write = loaded.view.writing(site, {0: UNITS}, lambda layer, now: torch.full_like(now, 2.0))
            with attention, write:
                [ids] = loaded.view.generate(prompts, torch.ones_like(prompts), 6, ends=[2])
            assert ids == expected[: len(ids)]


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, backend in PAIRS if backend == "hooked"])
def test_fused_layers_hand_on_what_plain_layers_do(name, load, tokens):
    model_view, runs = load(name, "hooked").view, []
    for layers in (nullcontext(), unfused(model_view.model)):
        values = {}
        readers = {
            site: lambda layer, tensor, site=site, values=values: values.__setitem__((site, layer), tensor.clone())
            for site in sites_of(model_view)
        }
        with layers, model_view.reading(readers):
            model_view.forward(tokens)
        runs.append(values)
    assert runs[0].keys() == runs[1].keys()
    for key, tensor in runs[0].items():
        torch.testing.assert_close(tensor, runs[1][key], rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_writing_up_inside_or_outside_writing_act_gives_both_factors(backend, load, tokens):
    model_view, unit = load("llama", backend).view, torch.tensor([4])
    posts = []
    for order in ([("act", 0.5), ("up", 3.0)], [("up", 3.0), ("act", 0.5)]):
        first, second = (
            model_view.writing(site, {0: unit}, lambda layer, now, value=value: torch.full_like(now, value))
            for site, value in order
        )
        keep = {"post": lambda layer, post: posts.append(post[..., 4]) if layer == 0 else None}
        with first, second, model_view.reading(keep):
            model_view.forward(tokens)
    for post in posts:
        torch.testing.assert_close(post, torch.full_like(post, 1.5))


@pytest.mark.parametrize("pair", loadable([("llama", "hooked"), ("qwen3", "bridge")]), ids="-".join)
def test_a_coordinate_of_v_writes_the_rows_of_every_head_that_reads_it(pair, load):
    loaded = load(*pair)
    matrix = loaded.hf_model.model.layers[1].self_attn.o_proj.weight  # d_model x (4 heads x d_head), in 2 groups
    by_group = matrix.view(32, 2, 2, -1)
    expected = by_group.square().sum((0, 2)).sqrt().flatten()
    torch.testing.assert_close(loaded.view.output_norm("v")[1], expected.detach())
    assert (loaded.view.output_norm("k") == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_attention_of_a_mixture_of_experts_is_read_and_patched_as_by_hooks_of_transformers(name, tmp_path, tokens):
    hf_model = tiny_family(name).eval()
    hf_model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model_view = view(load_model(tmp_path))
    for site in ("q", "k", "v"):
        module, outputs, values = getattr(hf_model.model.layers[1].self_attn, f"{site}_proj"), [], []
        keep = {site: lambda layer, tensor, values=values: values.append(tensor.clone()) if layer == 1 else None}
        with module.register_forward_hook(lambda module, inputs, output, outputs=outputs: outputs.append(output)):
            hf_model(tokens, use_cache=False)
        with model_view.reading(keep):
            model_view.forward(tokens)
        torch.testing.assert_close(values[0], outputs[0], rtol=1e-4, atol=2e-5)
        with module.register_forward_hook(lambda module, inputs, output: output.index_fill(-1, UNITS, 0.7)):
            expected = hf_model(tokens, use_cache=False).logits
        assert (expected - hf_model(tokens, use_cache=False).logits).abs().max() > 1e-3
        with model_view.writing(site, {1: UNITS}, lambda layer, values: torch.full_like(values, 0.7)):
            torch.testing.assert_close(model_view.forward(tokens), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_up_is_refused_where_the_mlp_has_no_gate(backend, load):
    model_view = load("gpt2", backend).view
    assert "up" not in model_view.sites
    for use in (model_view.width, lambda site: model_view.writing(site, {}, lambda layer, now: now)):
        with pytest.raises(HookSiteError, match="^'gpt2' has no site 'up': its MLP has no gate"):
            use("up")


def test_q_is_refused_where_transformers_fuses_it_in_an_order_that_is_not_known(tmp_path):
    tiny_family("falcon-40b").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model_view = view(load_model(tmp_path))
    assert not {"q", "k", "v"} & set(model_view.sites)
    with (
        pytest.raises(HookSiteError, match="has no site 'q': no hook of TransformerLens sees"),
        model_view.reading({"q": lambda layer, values: None}),
    ):
        pass
