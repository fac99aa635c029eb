"""Tiny models of the families that users load: loaded without reaching outside, they generate as transformers do."""

import socket
import subprocess
import sys
from contextlib import nullcontext
from importlib import metadata

import pytest
import torch
from transformers import GenerationConfig

from langneurons.errors import TrainingError
from langneurons.models import view
from langneurons.models.backends.conversion import reason_against_hooked
from langneurons.training.lora import MaskedLoRA
from tests.tiny_families import FAMILIES, HOOKED, WITH_IMAGES, loaded_once, tiny_family
from tests.tiny_models import tiny_tokenizer
from tests.training.lora_models import ATTENTION, TOKENS, logits_of, mlp_targets, some_neurons, trained

NAMES = [*FAMILIES, *WITH_IMAGES]
STEPS = 16
LENGTHS = (1, 6, 13)
FUSED_IN_UNKNOWN_ORDER = {"falcon-40b", "falcon-rw"}
# The bridge's own attention numbers cached positions anew, in TransformerLens 3.
UNCACHED = {("mpt", False)} if metadata.version("transformer-lens").startswith("3.") else set()


PAIRS = [(name, backend) for name in NAMES for backend in (("hooked", "bridge") if name in HOOKED else ("bridge",))]


@pytest.fixture(autouse=True)
def _neither_network_nor_programs(monkeypatch):
    """Whatever connects, or starts a program, fails the test."""

    def refuse(*arguments, **options):
        pytest.fail(f"load_model reached outside: {arguments}")

    for target, name in [
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket, "create_connection"),
        (socket, "getaddrinfo"),
        (subprocess, "Popen"),
    ]:
        monkeypatch.setattr(target, name, refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setitem(sys.modules, "torchvision", None)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A family's model, from a folder, with each backend."""

    def save(name, folder):
        tiny_family(name).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)

    load_family = loaded_once(tmp_path_factory.mktemp, save)
    return lambda name, backend: view(load_family(name, backend))


def prompts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, 96, (length,), generator=generator) for length in LENGTHS]


def padded(rows):
    width = max(map(len, rows)) + 2
    tokens, mask = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for row, prompt in enumerate(rows):
        tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    return tokens, mask


@torch.no_grad()
def of_transformers(name):
    """What transformers generates from each prompt alone, and where its choices end to be sure beyond rounding."""
    hf_model, settings = tiny_family(name), GenerationConfig(max_new_tokens=STEPS, do_sample=False)
    hf_model.generation_config = GenerationConfig()
    for prompt in prompts():
        out = hf_model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt)[None],
            generation_config=settings,
            return_dict_in_generate=True,
            output_logits=True,
        )
        best = torch.stack(out.logits)[:, 0].topk(2).values
        unsure = (best[:, 0] - best[:, 1] < 1e-4).nonzero().flatten().tolist()
        yield out.sequences[0, len(prompt) :].tolist(), (unsure or [STEPS])[0]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_greedy_generation_equals_that_of_transformers_cached_and_left_padded(load, pair):
    model_view, sure_of = load(*pair), 0
    assert model_view.backend == pair[1]
    expected = list(of_transformers(pair[0]))
    plain = model_view.generate(*padded(prompts()), STEPS)
    with model_view.native_attention():
        native = model_view.generate(*padded(prompts()), STEPS)
    for generated in (plain, native):
        for ids, (whole, sure) in zip(generated, expected, strict=True):
            assert ids[:sure] == whole[:sure]
            sure_of += sure
    assert sure_of >= 0.9 * 2 * STEPS * len(LENGTHS)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_only_a_wrong_cache_is_left_out(load, pair):
    model_view, lengths = load(*pair), []
    with model_view.reading({"act": lambda layer, values: lengths.append(values.shape[1]) if not layer else None}):
        model_view.generate(*padded(prompts()), 3)
    width = max(LENGTHS) + 2
    assert lengths == ([width, width + 1, width + 2] if (pair[0], False) in UNCACHED else [width, 1, 1])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_losses_need_no_whole_logits_and_equal_their_cross_entropy(load, pair, monkeypatch):
    model_view, generator = load(*pair), torch.Generator().manual_seed(4)
    tokens = torch.randint(4, 96, (3, 48), generator=generator)
    counted = torch.rand(3, 48, generator=generator) > 0.3
    counted[:, 0] = False
    for attention in (model_view.native_attention, nullcontext):
        with torch.inference_mode(), attention(), monkeypatch.context() as patch:
            logits = model_view.forward(tokens)[:, :-1][counted[:, 1:]].float()
            patch.setattr(model_view, "forward", lambda *_, **__: pytest.fail("all positions are unembedded"))
            losses = model_view.predictions(tokens, counted).losses(tokens[counted])
        expected = torch.nn.functional.cross_entropy(logits, tokens[counted], reduction="none")
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)


@pytest.mark.hooked
@pytest.mark.parametrize("name", NAMES)
def test_hooked_transformer_is_possible_where_it_is_said_to_be(name):
    assert (reason_against_hooked(tiny_family(name).config) is None) == (name in HOOKED)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@torch.no_grad()
def test_an_update_goes_out_to_peft_and_comes_back(load, pair, tmp_path):
    peft = pytest.importorskip("peft")
    model_view = load(*pair)
    attention = tuple(target for target in ATTENTION if trainable(model_view, target))
    assert "o" in attention
    assert len(attention) == 4 or pair[0] in FUSED_IN_UNKNOWN_ORDER
    targets = mlp_targets(model_view.model)
    update = MaskedLoRA(some_neurons(model_view.model), rank=2, targets=targets, attention=attention)
    with torch.enable_grad():
        trained(update, model_view.model)
    expected = logits_of(model_view.model, update)
    assert not torch.allclose(expected, logits_of(model_view.model), atol=1e-3)
    theirs = peft.PeftModel.from_pretrained(tiny_family(pair[0]), update.save(tmp_path))
    assert not [key for key in theirs.load_adapter(tmp_path, "again").missing_keys if "lora_" in key]
    close = {"rtol": 0, "atol": 2e-5 * max(1.0, float(expected.std()))}
    torch.testing.assert_close(theirs(TOKENS).logits, expected, **close)
    for name in ("langneurons.json", "neurons.json", "parameters.safetensors"):
        (tmp_path / name).unlink()
    torch.testing.assert_close(
        logits_of(model_view.model, MaskedLoRA.load(tmp_path, model_view.model)), expected, **close
    )


def trainable(model_view, target):
    try:
        return model_view.projection(0, target) is not None
    except TrainingError:
        return False
