"""Patches inside generate: with and without key-value cache, in batches, at prompt and at generated positions."""

import warnings
from functools import partial

import pytest
import torch

import langneurons as ln
from langneurons.errors import LangNeuronsWarning
from tests.patches.conftest import SITES, hooks_left, set_at
from tests.patches.naive import naive_greedy, naively

STEPS = 6
PROMPT = torch.tensor([[1, 64, 29, 39, 33]])
POSITIONS = (("all",), ("prompt",), ("generated",), ("prompt", "generated"))


@pytest.fixture(autouse=True)
def _plain_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangNeuronsWarning)
        yield


def greedy(model, prompt, **options):
    """Generate a fixed number of tokens."""
    settings = {"max_new_tokens": STEPS, "do_sample": False, "stop_at_eos": False, "verbose": False, **options}
    return model.generate(prompt, **{"return_type": "tokens", **settings})


def hf_greedy(hf_model, prompt):
    """The same through transformers, which pads and stops only where it is told to."""
    hf_model.generation_config.eos_token_id = None
    mask = torch.ones_like(prompt)
    return hf_model.generate(prompt, attention_mask=mask, max_new_tokens=STEPS, do_sample=False)


def strong(model, site, positions=("all",)):
    """Patches strong enough to change what a tiny model says, and the same for the oracle."""
    neurons = set_at(model, site)
    changes = {(layer, unit): lambda now: now + 6.0 for layer, unit in neurons.indices().tolist()}
    return [ln.Add(neurons, 6.0, positions=one) for one in positions], dict.fromkeys(positions, changes)


@pytest.mark.parametrize("positions", POSITIONS, ids="+".join)
@pytest.mark.parametrize("site", SITES)
def test_generation_equals_feeding_the_hugging_face_model_token_by_token(few, site, positions):
    model = few.view.model
    patches, changes = strong(model, site, positions)
    for prompt in (PROMPT, PROMPT[:, 1:2]):
        expected, margin = naive_greedy(few.hf_model, prompt, STEPS, site, changes)
        assert margin > 1e-4
        with ln.intervene(model, *patches):
            cached = greedy(model, prompt)
            uncached = greedy(model, prompt, use_past_kv_cache=False)
        assert torch.equal(cached, expected)
        assert torch.equal(uncached, expected)


def test_positions_make_a_difference_and_prompt_plus_generated_is_all(few):
    model = few.view.model
    found = {}
    for positions in POSITIONS:
        with ln.intervene(model, *strong(model, "act", positions)[0]):
            found[positions] = tuple(greedy(model, PROMPT)[0].tolist())
    assert found["prompt", "generated"] == found["all",]
    assert len({found["all",], found["prompt",], found["generated",], tuple(greedy(model, PROMPT)[0].tolist())}) == 4


def test_a_forward_of_its_own_is_all_prompt(few, tokens):
    model = few.view.model
    outside = [("prompt", "all"), ("generated", None)]
    for positions, like in outside:
        with torch.no_grad(), ln.intervene(model, *strong(model, "act", (positions,))[0]):
            found = few.view.forward(tokens)
        with torch.no_grad(), ln.intervene(model, *(strong(model, "act", (like,))[0] if like else [])):
            assert torch.equal(found, few.view.forward(tokens))


@pytest.mark.parametrize("positions", POSITIONS[:3], ids="+".join)
def test_each_generate_in_a_block_has_its_own_prompt(few, tokens, positions):
    model = few.view.model
    patches, changes = strong(model, "act", positions)
    with ln.intervene(model, *patches):
        first, _, second = greedy(model, PROMPT), few.view.forward(tokens), greedy(model, PROMPT[:, :3])
        third = greedy(model, first, use_past_kv_cache=False)
    for found, prompt in ((first, PROMPT), (second, PROMPT[:, :3]), (third, first)):
        assert torch.equal(found, naive_greedy(few.hf_model, prompt, STEPS, "act", changes)[0])


@pytest.mark.parametrize("positions", POSITIONS[:3], ids="+".join)
@pytest.mark.parametrize("pair", [("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked"), ("opt", "bridge")])
def test_a_left_padded_batch_equals_one_text_after_the_other(load, pair, positions):
    one = load(*pair)
    model, patches = one.view.model, strong(one.view.model, "act", positions)[0]
    texts = ["w64 w29 w39 w33 w59 w5", "w50", "w16 w95 w43"]
    with ln.intervene(model, *patches):
        together = model.generate(texts, max_new_tokens=STEPS, do_sample=False, stop_at_eos=False, verbose=False)
        alone = [
            model.generate(text, max_new_tokens=STEPS, do_sample=False, stop_at_eos=False, verbose=False)
            for text in texts
        ]
    for text, found, expected in zip(texts, together, alone, strict=True):
        words, others = found.split(), expected.split()
        assert words[: len(text.split())] == others[: len(text.split())] == text.split()
        prompt = model.to_tokens(text)
        changes = strong(model, "act", positions)[1]
        unsure = first_unsure(one.hf_model, prompt, changes)
        assert words[: len(text.split()) + unsure] == others[: len(text.split()) + unsure]


def first_unsure(hf_model, prompt, changes):
    """How many tokens are generated before the two best are less than 1e-4 apart."""
    margins = [naive_greedy(hf_model, prompt, steps, "act", changes)[1] for steps in range(1, STEPS + 1)]
    return sum(margin >= 1e-4 for margin in margins)


@pytest.mark.parametrize("positions", POSITIONS[:3], ids="+".join)
@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_a_stream_generates_what_generate_does_whatever_runs_between_its_items(load, tokens, positions, backend):
    one = load("llama", backend)
    model, patches = one.view.model, strong(one.view.model, "act", positions)[0]
    forward = torch.no_grad()(partial(one.view.forward, tokens))
    options = {"max_tokens_per_yield": 1, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with ln.intervene(model, *patches):
        expected, plain = greedy(model, PROMPT), forward()
        stream, pieces = model.generate_stream(PROMPT, max_new_tokens=STEPS, **options), []
        for piece in stream:
            assert torch.equal(forward(), plain), "a forward between two items is all prompt"
            pieces.append(piece)
        next(abandoned := model.generate_stream(PROMPT, max_new_tokens=STEPS, **options))
        assert torch.equal(forward(), plain)
        assert torch.equal(greedy(model, PROMPT), expected)
        abandoned.close()
    found = torch.cat([torch.as_tensor(piece).reshape(1, -1) for piece in pieces], dim=1)
    assert torch.equal(found[:, -STEPS:], expected[:, -STEPS:])


@pytest.mark.parametrize("positions", POSITIONS, ids="+".join)
def test_the_hugging_face_generate_inside_a_bridge_is_patched(load, positions):
    for architecture in ("llama", "gpt2"):
        one = load(architecture, "bridge")
        model = one.view.model
        patches, changes = strong(model, "act", positions)
        expected, _ = naive_greedy(one.hf_model, PROMPT, STEPS, "act", changes)
        with ln.intervene(model, *patches):
            assert torch.equal(hf_greedy(model.original_model, PROMPT), expected)
            settings = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": -1}
            assert torch.equal(model.hf_generate(PROMPT, **settings), expected)
            assert torch.equal(greedy(model, PROMPT), expected)


def test_greedy_generation_equals_transformers_with_torch_hooks(few):
    model = few.view.model
    for site in SITES:
        patches, changes = strong(model, site)
        with naively(few.hf_model, site, changes["all"]):
            expected = hf_greedy(few.hf_model, PROMPT)
        with ln.intervene(model, *patches):
            assert torch.equal(greedy(model, PROMPT), expected)


def test_generate_is_the_classes_own_again_and_no_hook_remains_when_it_fails(few):
    model, before = few.view.model, hooks_left(few.view.model)
    patches = strong(model, "act", ("prompt", "generated"))[0]
    generators = [model] if few.view.backend == "hooked" else [model, model.original_model]
    plain = greedy(model, PROMPT)

    def fail(values, hook):
        raise RuntimeError("planted")

    for name in ("generate", "generate_stream"):
        outer, inner = ln.intervene(model, *patches), ln.intervene(model, *patches)
        failing = model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", fail)])
        with pytest.raises(RuntimeError, match="planted"), outer, inner, failing:
            list(getattr(model, name)(PROMPT, max_new_tokens=STEPS, verbose=False))
        assert hooks_left(model) == before
        assert not any({"generate", "generate_stream"} & set(vars(generator)) for generator in generators)
    assert model.generate.__func__ is type(model).generate
    assert torch.equal(greedy(model, PROMPT), plain)


def test_a_generate_that_the_user_put_on_the_model_is_followed_and_kept(load):
    model = load("llama", "auto").view.model
    patches, changes = strong(model, "act", ("generated",))
    own = partial(type(model).generate, model)
    model.generate = own
    try:
        with ln.intervene(model, *patches):
            found = greedy(model, PROMPT)
        assert vars(model)["generate"] is own
    finally:
        del model.generate
    expected, _ = naive_greedy(load("llama", "auto").hf_model, PROMPT, STEPS, "act", changes)
    assert torch.equal(found, expected)
