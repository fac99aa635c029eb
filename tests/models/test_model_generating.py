"""Greedy generation of every architecture on both backends: equal to transformers, batched, cached, patched."""

import warnings
from importlib import metadata

import pytest
import torch
from transformers import GenerationConfig

import langneurons as ln
from langneurons.errors import ModelError
from langneurons.models import internals, load_model, view
from langneurons.tasks.completing import complete
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_model, tiny_tokenizer

STEPS = 8
SOME = [("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked"), ("gemma2", "bridge")]
LENGTHS = (1, 5, 13, 20)
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}


def prompts(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 101, (length,), generator=generator) for length in LENGTHS]


def padded(rows, to=32):
    """Left-padded tokens and their mask."""
    tokens = torch.zeros(len(rows), to, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(rows):
        tokens[row, to - len(prompt) :], mask[row, to - len(prompt) :] = prompt, 1
    return tokens, mask


@torch.no_grad()
def uncached(hf_model, prompt, steps=STEPS):
    """Greedy tokens of one prompt, fed whole at every step, and how many of them are sure."""
    text, margins = prompt[None], []
    for _ in range(steps):
        logits = hf_model(text, use_cache=False).logits[:, -1]
        best = logits.topk(2).values[0]
        margins.append(float(best[0] - best[1]) > 1e-4)
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=1)
    sure = margins.index(False) if False in margins else steps
    return text[0, len(prompt) :].tolist(), sure


def test_a_left_padded_batch_equals_each_prompt_alone_in_transformers_without_a_cache(loaded):
    # The bridges' generate is transformers' own, so the oracle is a loop of plain forwards.
    found = loaded.view.generate(*padded(prompts()), STEPS)
    sure_of = 0
    for ids, prompt in zip(found, prompts(), strict=True):
        expected, sure = uncached(loaded.hf_model, prompt)
        assert ids[:sure] == expected[:sure]
        assert len(ids) == STEPS
        sure_of += sure
    assert sure_of >= 0.9 * STEPS * len(LENGTHS)


@pytest.mark.parametrize("pair", SOME, ids="-".join)
def test_generation_equals_that_of_transformers(load, pair):
    one = load(*pair)
    for prompt in prompts():
        expected = one.hf_model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            generation_config=GenerationConfig(max_new_tokens=STEPS, eos_token_id=None),
        )
        assert one.view.generate(*padded([prompt]), STEPS) == [expected[0, len(prompt) :].tolist()]


@pytest.mark.parametrize("pair", SOME, ids="-".join)
def test_native_attention_generates_the_same(load, pair):
    one = load(*pair)
    plain = one.view.generate(*padded(prompts()), STEPS)
    with one.view.native_attention():
        assert one.view.generate(*padded(prompts()), STEPS) == plain


@pytest.mark.parametrize("pair", SOME, ids="-".join)
def test_rows_end_one_by_one_at_eos_or_where_stop_says(load, pair):
    one = load(*pair)
    free = one.view.generate(*padded(prompts()), STEPS)
    eos = free[1][2]
    found = one.view.generate(*padded(prompts()), STEPS, ends=[eos])
    for ids, whole in zip(found, free, strict=True):
        assert ids == (whole[: whole.index(eos) + 1] if eos in whole else whole)
    assert len({len(ids) for ids in found}) > 1

    calls = []

    def stop(ids):
        calls.append(list(ids))
        return ids[0] == free[2][0] and len(ids) == 3

    found = one.view.generate(*padded(prompts()), STEPS, stop=stop)
    for ids, whole in zip(found, free, strict=True):
        assert ids == whole[: 3 if whole[0] == free[2][0] else STEPS]
    assert all(call in [whole[: len(call)] for whole in free] for call in calls), "a row that ended goes no further"


@pytest.mark.parametrize("pair", SOME, ids="-".join)
def test_the_batch_ends_when_every_row_has_ended_and_hooks_see_every_step(load, pair):
    one, seen = load(*pair), []
    with one.view.reading({"act": lambda layer, values: seen.append((layer, tuple(values.shape[:2])))}):
        one.view.generate(*padded(prompts()), STEPS)
        steps = [shape for layer, shape in seen if layer == 0]
        assert steps == [(4, 32)] + [(4, 1)] * (STEPS - 1)
        assert [layer for layer, _ in seen] == [0, 1] * STEPS
        seen.clear()
        one.view.generate(*padded(prompts()), STEPS, stop=lambda ids: len(ids) == 3)
    assert len(seen) == 2 * 3


def strong(model, positions):
    seen = view(model)
    neurons = ln.NeuronSet.of({"hi": [(0, 0), (0, 5), (1, 1), (1, 20)]}, (seen.n_layers, seen.width("act")), "act")
    return ln.Add(neurons, 6.0, positions=positions)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
@pytest.mark.parametrize("pair", SOME, ids="-".join)
def test_patched_generation_is_that_of_the_models_own_generate(load, pair, positions):
    one = load(*pair)
    model, patch = one.view.model, strong(one.view.model, positions)
    plain = one.view.generate(*padded(prompts()), STEPS)
    with ln.intervene(model, patch):
        patched = one.view.generate(*padded(prompts()), STEPS)
        for prompt, ids in zip(prompts(), patched, strict=True):
            expected = model.generate(prompt[None], max_new_tokens=STEPS, **GREEDY)
            assert expected[0, len(prompt) :].tolist() == ids
    assert patched != plain
    assert one.view.generate(*padded(prompts()), STEPS) == plain
    assert "generate" not in vars(one.view)


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_what_the_checkpoint_says_about_generating_is_set_aside_and_put_back(backend):
    said = GenerationConfig(
        repetition_penalty=5.0, do_sample=True, temperature=2.0, no_repeat_ngram_size=1, max_length=3, num_beams=2
    )
    hf_model = tiny_model("llama")
    hf_model.generation_config = said
    seen = view(load_model("tiny", hf_model=hf_model, tokenizer=tiny_tokenizer(), backend=backend))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = seen.generate(*padded(prompts()), STEPS)
    plain = tiny_model("llama")
    for ids, prompt in zip(found, prompts(), strict=True):
        assert ids == uncached(plain, prompt)[0]
    assert hf_model.generation_config is said


@pytest.mark.parametrize("pair", SOME[:2], ids="-".join)
def test_generation_fills_the_context_to_its_last_position(load, pair):
    one = load(*pair)
    prompt = torch.randint(4, 101, (96 - STEPS,), generator=torch.Generator().manual_seed(5))
    expected, sure = uncached(one.hf_model, prompt)
    [ids] = one.view.generate(*padded([prompt], 96 - STEPS), STEPS)
    assert (len(ids), ids[:sure]) == (STEPS, expected[:sure])


def test_generation_keeps_no_gradients_and_leaves_the_model_able_to_train(load):
    one = load("llama", "auto")
    one.view.generate(*padded(prompts()), 2)
    loss = one.view.forward(prompts()[2][None]).sum()
    loss.backward()
    assert any(weight.grad is not None for weight in one.view.model.parameters())
    one.view.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_every_stop_token_of_the_checkpoint_ends_a_completion(backend):
    free = view(load_model("tiny", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer()))
    [ids] = free.generate(*padded(prompts()[1:2]), STEPS)
    second = next(token for token in ids[1:] if token != ids[0])
    hf_model = tiny_model("llama")
    hf_model.generation_config.eos_token_id = [2, second]
    expected = hf_model.generate(prompts()[1][None], attention_mask=torch.ones(1, 5).long(), max_new_tokens=STEPS)
    model = load_model("tiny", hf_model=hf_model, tokenizer=tiny_tokenizer(), backend=backend)
    assert view(model).end_ids == (2, second)
    [completion] = complete(model, [prompts()[1].tolist()], STEPS, stop=())
    assert completion.ids == expected[0, 5:].tolist() == ids[: ids.index(second) + 1]
    assert (completion.stopped, completion.text) == (True, " ".join(f"w{token}" for token in completion.ids[:-1]))
    [longer] = complete(model, [prompts()[1].tolist()], STEPS, stop=(), min_new_tokens=STEPS)
    assert len(longer.ids) == STEPS
    assert not {2, second} & set(longer.ids[:-1])


@pytest.mark.parametrize("said", [None, -1, [], [2], 2, "</s>", [2, None, "x", -3]])
def test_stop_tokens_that_are_none_are_left_aside(said):
    hf_model = tiny_model("llama")
    hf_model.generation_config.eos_token_id = said
    assert view(load_model("tiny", hf_model=hf_model, tokenizer=tiny_tokenizer())).end_ids == (2,)


def test_an_attention_that_is_wrong_with_a_cache_generates_without_one():
    # MPT's bridge numbers cached positions anew, in TransformerLens 3; transformers' own attention does not.
    hf_model = tiny_family("mpt")
    expected = [uncached(tiny_family("mpt"), prompt) for prompt in prompts()]
    model_view = view(load_model("mpt", hf_model=hf_model, tokenizer=tiny_tokenizer()))
    lengths = []
    with model_view.reading({"act": lambda layer, values: lengths.append(values.shape[1]) if not layer else None}):
        generated = model_view.generate(*padded(prompts()), STEPS)
    assert [ids[:sure] for ids, (_, sure) in zip(generated, expected, strict=True)] == [
        ids[:sure] for ids, sure in expected
    ]
    cached = not metadata.version("transformer-lens").startswith("3.")
    assert lengths == [32, *[1] * (STEPS - 1)] if cached else [32 + step for step in range(STEPS)]


@pytest.mark.hooked
def test_a_backend_that_generates_wrongly_loads_and_refuses_to_generate(monkeypatch):
    key_value_cache = internals.key_value_cache

    def half(model, rows):
        cache = key_value_cache(model, rows)
        for entry in cache.entries:
            append = entry.append
            entry.append = lambda keys, values, append=append: append(keys * 0.5, values)
        return cache

    monkeypatch.setattr(internals, "key_value_cache", half)
    model_view = view(load_model("tiny", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer(), backend="hooked"))
    assert model_view.forward(prompts()[1][None]).isfinite().all()
    with pytest.raises(ModelError, match="'tiny' cannot generate with this backend: its logits differ by"):
        model_view.generate(*padded(prompts()), STEPS)
