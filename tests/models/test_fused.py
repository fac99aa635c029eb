"""A HookedTransformer's layers are fused where nothing listens inside of them, and TransformerLens' own elsewhere."""

import copy
from collections import Counter

import pytest
import torch
from torch.nn import functional

from langneurons.models import load_model, view
from tests.tiny_families import HOOKED, tiny_family
from tests.tiny_models import tiny_tokenizer

pytestmark = pytest.mark.hooked
INSIDE = ("hook_attn_scores", "hook_pattern", "hook_scale", "hook_normalized")
UNFUSED = "bloom"  # its attention adds a bias to the scores


@pytest.fixture(scope="module")
def models():
    return {}


@pytest.fixture
def pair(models, kernels):
    """A family's model as it is loaded, and one whose forwards are TransformerLens' own."""

    def get(name):
        if name not in models:
            fused, plain = (
                load_model(name, hf_model=tiny_family(name), tokenizer=tiny_tokenizer(), backend="hooked")
                for _ in range(2)
            )
            view(plain).runner.fuse(False)
            models[name] = fused, plain
        kernels.clear()
        return models[name]

    return get


@pytest.fixture
def kernels(monkeypatch):
    """Counts how often the fused kernel ran."""
    calls, kernel = [], functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda *q, **options: calls.append(1) or kernel(*q, **options)
    )
    return calls


def outside(model):
    """The names of all hook points but those inside of what is fused."""
    unused = ("hook_attn_in", "_input", "hook_mlp_in", "hook_result")
    return [name for name in model.hook_dict if not name.endswith((*INSIDE, *unused))]


def values_at(model, names, tokens):
    """What passes some hook points, in order."""
    passed = []
    hooks = [(name, lambda values, hook: passed.append((hook.name, values.clone())) and None) for name in names]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits, passed


def assert_close(values, expected):
    assert (values - expected).abs().max() <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", HOOKED)
@torch.no_grad()
def test_logits_are_those_of_the_plain_forward(pair, kernels, tokens, name):
    fused, plain = pair(name)
    expected = plain(tokens)
    assert not kernels
    assert (fused(tokens) - expected).abs().max() <= 1e-5 * expected.std()
    assert len(kernels) == (0 if name == UNFUSED else fused.cfg.n_layers)


@pytest.mark.parametrize("name", HOOKED)
@torch.no_grad()
def test_padding_on_the_left_and_holes_in_the_mask_are_hidden_as_in_the_plain_forward(pair, kernels, tokens, name):
    fused, plain = pair(name)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    mask[1, 9] = 0
    counted = mask.bool()
    logits, expected = (model(tokens, attention_mask=mask) for model in (fused, plain))
    assert logits.isfinite().all()
    assert_close(logits[counted], expected[counted])
    assert (plain(tokens)[counted] - expected[counted]).abs().max() > 1e-3
    assert bool(kernels) == (name != UNFUSED)


@pytest.mark.parametrize("name", HOOKED)
@torch.no_grad()
def test_generation_sees_the_same_logits_cached_behind_padding_and_several_tokens_at_once(pair, tokens, name):
    from transformer_lens import TransformerLensKeyValueCache  # noqa: PLC0415 (absent from TransformerLens 4)

    def stepwise(model):
        mask = torch.ones_like(tokens)
        mask[0, :3] = 0
        cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
        parts = []
        for start, stop in ((0, 20), (20, 21), (21, 22), (22, 32)):
            given = mask[:, start:stop]
            parts.append(model(tokens[:, start:stop], attention_mask=given, past_kv_cache=cache))
        return torch.cat(parts, dim=1)[:, 3:]

    fused, plain = pair(name)
    assert_close(stepwise(fused), stepwise(plain))


@pytest.mark.parametrize("name", HOOKED)
@torch.no_grad()
def test_every_hook_point_outside_fires_in_the_same_order_with_the_same_values(pair, kernels, tokens, name):
    fused, plain = pair(name)
    names = outside(fused)
    _, passed = values_at(fused, names, tokens)
    assert bool(kernels) == (name != UNFUSED)
    _, expected = values_at(plain, names, tokens)
    assert [point for point, _ in passed] == [point for point, _ in expected]
    for (point, values), (_, of_plain) in zip(passed, expected, strict=True):
        assert values.shape == of_plain.shape, point
        assert_close(values, of_plain)


@pytest.mark.parametrize("name", HOOKED)
@torch.no_grad()
def test_what_is_written_at_a_hook_point_counts_as_in_the_plain_forward(pair, tokens, name):
    fused, plain = pair(name)
    unwritten = plain(tokens)
    for point in outside(fused):
        write = [(point, lambda values, hook: values.flip(1) if values.is_floating_point() else values)]
        logits, expected = (model.run_with_hooks(tokens, fwd_hooks=write) for model in (fused, plain))
        assert_close(logits, expected)
        changes = (expected - unwritten).abs().max() > 1e-4
        assert changes or point == "hook_pos_embed", point


@pytest.mark.parametrize("name", HOOKED)
@torch.no_grad()
def test_a_full_cache_is_that_of_the_plain_forward_to_the_bit(pair, kernels, tokens, name):
    (logits, cache), (expected, expected_cache) = (model.run_with_cache(tokens) for model in pair(name))
    assert torch.equal(logits, expected)
    assert list(cache.keys()) == list(expected_cache.keys())
    for point, values in cache.items():
        assert torch.equal(values, expected_cache[point]), point
    assert not kernels


@pytest.mark.parametrize("inside", INSIDE)
@torch.no_grad()
def test_a_hook_inside_is_called_as_often_as_ever_and_writes(pair, tokens, inside):
    fused, plain = pair("smollm2")

    def run(model):
        calls = Counter()

        def write(values, hook):
            calls[hook.name] += 1
            return values * 1.5

        return model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith(inside), write)]), calls

    (logits, calls), (expected, expected_calls) = run(fused), run(plain)
    assert calls == expected_calls
    assert calls.total() >= fused.cfg.n_layers
    assert_close(logits, expected)


@torch.no_grad()
def test_only_the_layer_that_is_listened_to_is_left_plain(pair, kernels, tokens):
    fused, _ = pair("smollm2")
    _, passed = values_at(fused, ["blocks.1.attn.hook_pattern"], tokens)
    assert len(passed) == 1
    assert len(kernels) == fused.cfg.n_layers - 1


@torch.no_grad()
def test_permanent_hooks_and_hooks_of_all_modules_are_heard(pair, kernels, tokens):
    fused, points = copy.deepcopy(pair("smollm2")[0]), set()
    fused.add_perma_hook("blocks.0.attn.hook_pattern", lambda values, hook: points.add(hook.name))
    fused(tokens)
    assert points == {"blocks.0.attn.hook_pattern"}
    assert len(kernels) == 1

    def note(module, inputs, outputs):
        points.add(getattr(module, "name", None))

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        fused(tokens)
    finally:
        handle.remove()
    assert set(outside(fused)) < points
    assert "blocks.1.ln1.hook_scale" in points


def test_gradients_are_those_of_the_plain_forward_to_the_bit_and_have_gradients_themselves(pair, kernels, tokens):
    gradients = []
    for model in pair("smollm2"):
        loss, weight = model(tokens, return_type="loss"), model.blocks[0].attn.W_Q
        [gradient] = torch.autograd.grad(loss, weight, create_graph=True)
        gradients.append((gradient.detach(), torch.autograd.grad(gradient.square().sum(), weight)[0]))
    for gradient, expected in zip(*gradients, strict=True):
        assert torch.equal(gradient, expected)
        assert gradient.abs().max() > 0
    assert not kernels


@pytest.mark.parametrize("option", ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"])
@torch.no_grad()
def test_options_of_transformer_lens_work_when_they_are_switched_on_later(pair, tokens, option):
    fused, plain = (copy.deepcopy(model) for model in pair("llama-2"))
    for model in (fused, plain):
        getattr(model, f"set_{option}")(True)
    (logits, cache), (expected, expected_cache) = (model.run_with_cache(tokens) for model in (fused, plain))
    assert set(cache.keys()) == set(expected_cache.keys())
    assert set(cache.keys()) > set(pair("llama-2")[1].run_with_cache(tokens)[1].keys())
    assert_close(logits, expected)


@torch.no_grad()
def test_a_copied_model_is_fused_with_weights_of_its_own(pair, kernels, tokens):
    fused, _ = pair("smollm2")
    expected = fused(tokens)
    other = copy.deepcopy(fused)
    kernels.clear()
    assert torch.equal(other(tokens), expected)
    assert len(kernels) == fused.cfg.n_layers
    for part in (other.blocks[0].attn.W_O, other.blocks[0].mlp.W_out, other.blocks[1].ln1.w):
        part.zero_()
        assert not torch.equal(other(tokens), expected)
    assert torch.equal(fused(tokens), expected)


@pytest.mark.parametrize("fault", ["wrong", "broken", "wrong behind a cache"])
@torch.no_grad()
def test_a_model_stays_plain_where_the_fused_layers_are_wrong(pair, monkeypatch, tokens, fault):
    kernel = functional.scaled_dot_product_attention

    def faulty(q, k, v, **options):
        if fault == "broken":
            raise RuntimeError("no kernel")
        wrong = fault == "wrong" or k.shape[2] > q.shape[2]
        return kernel(q, k, v, **options) * (1.01 if wrong else 1)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", faulty)
    hf_model = tiny_family("smollm2")
    hf_model.set_attn_implementation("eager")
    model = load_model("m", hf_model=hf_model, tokenizer=tiny_tokenizer(), backend="hooked")
    assert torch.equal(model(tokens), pair("smollm2")[1](tokens))
    assert view(model).runner.generation_fault is None
