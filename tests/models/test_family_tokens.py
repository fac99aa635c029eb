"""The families that users load, each with its own kind of tokenizer: recorded, patched, generated from and trained."""

import math

import pytest
import torch
from transformers import GenerationConfig

import langneurons as ln
from langneurons.models import start_token, view
from langneurons.models.running import GeneratedRows
from langneurons.tasks.completing import complete, prompt_ids
from langneurons.training.lora import MaskedLoRA
from tests.backends import loadable
from tests.family_tokenizers import TOKENIZERS, reloaded
from tests.tiny_families import HOOKED, loaded_once, tiny_family
from tests.training.lora_models import logits_of, mlp_targets, trained

PAIRS = loadable(
    (name, backend) for name in TOKENIZERS for backend in (("hooked", "bridge") if name in HOOKED else ("bridge",))
)
PROMPTS = ["The weather is nice today", "मौसम"]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A family's model from a folder such as the hub has, with more rows of embeddings than tokens."""

    def save(name, folder):
        tokenizer = reloaded(name, folder)
        ids = {role: getattr(tokenizer, role) for role in ("bos_token_id", "eos_token_id", "pad_token_id")}
        hf_model = tiny_family(name, vocab_size=16 * math.ceil((len(tokenizer) + 5) / 16), **ids)
        ends = tokenizer.convert_tokens_to_ids(list(TOKENIZERS[name].ends))
        hf_model.generation_config = GenerationConfig(**ids | {"eos_token_id": ends if len(ends) > 1 else ends[0]})
        hf_model.save_pretrained(folder)

    return loaded_once(tmp_path_factory.mktemp, save)


@pytest.fixture(scope="module")
def corpus():
    return ln.load_corpus("babel", ["en", "hi"]).take(30)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_texts_begin_and_end_as_the_family_writes_them(load, pair):
    family, model = TOKENIZERS[pair[0]], load(*pair)
    tokenizer = view(model).tokenizer
    assert type(tokenizer).__name__ in (family.kind.__name__, "TokenizersBackend")
    assert start_token(tokenizer) == (tokenizer.bos_token_id if family.writes_start else None)
    assert set(tokenizer.convert_tokens_to_ids(list(family.ends))) <= set(view(model).end_ids)
    assert tokenizer.decode(tokenizer(PROMPTS[1])["input_ids"], skip_special_tokens=True).strip() == PROMPTS[1]


@pytest.mark.parametrize("name", [name for name, family in TOKENIZERS.items() if family.chat])
def test_a_chat_template_comes_along_and_begins_a_text_once(load, name):
    tokenizer = view(load(name, "bridge")).tokenizer
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) <= (2 if tokenizer.bos_token == "<|im_start|>" else 1)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_family_is_recorded_patched_and_put_back(load, pair, corpus):
    model = load(*pair)
    stats = ln.record(model, corpus, tokens_per_language=120, context_length=32, progress=False)
    assert (stats.tokens >= 120).all()
    neurons = ln.LAPE(top=0.05).identify(stats)
    text = ln.HeldoutText.of(model, corpus, tokens_per_language=100, context_length=32)
    before = text.score(model)["nll"].to_numpy()
    with ln.intervene(model, ln.SetTo(neurons, 0.0)):
        patched = text.score(model)["nll"].to_numpy()
    assert abs(patched - before).max() > 1e-3
    assert (text.score(model)["nll"].to_numpy() == before).all()


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_stop_token_of_a_family_ends_a_completion(load, pair, monkeypatch):
    model = load(*pair)
    tokenizer = view(model).tokenizer
    ids = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    for end in tokenizer.convert_tokens_to_ids(list(TOKENIZERS[pair[0]].ends)):

        def second(rows, logits, end=end):
            """Leave a letter to choose, then what ends the text."""
            return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([end if rows.steps else letter]), 0.0)

        monkeypatch.setattr(GeneratedRows, "allowed", second)
        for completion in complete(model, ids, max_new_tokens=6):
            assert completion.ids == [letter, end]
            assert (completion.text.strip(), completion.stopped) == ("a", True)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_family_is_trained_at_chosen_neurons(load, pair):
    model = load(*pair)
    shape = (view(model).n_layers, view(model).width("act"))
    neurons = ln.NeuronSet.of({"hi": [(0, 1), (1, 5)]}, shape, "act")
    update = MaskedLoRA(neurons, rank=2, targets=mlp_targets(model))
    before = logits_of(model)
    with torch.enable_grad():
        trained(update, model)
    assert float((logits_of(model, update) - before).abs().max()) > 1e-3
    assert torch.equal(logits_of(model), before)
