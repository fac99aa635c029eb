import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import LangNeuronsWarning, LanguageError, TaskError
from langneurons.models import view
from langneurons.replication import PadPositionHead
from langneurons.replication.protocols import pairs_kept_by_length
from langneurons.tasks.heads import ClassificationHead, Head, last_hidden
from tests.tiny_models import tiny_model, tiny_tokenizer

PAIRS = [("w4 w5 w6", "w7 w8"), ("w9", "w10"), (" ".join(["w11"] * 60), "w12 w13")]
POSITIONS = 48


@pytest.fixture(scope="module", params=["llama-hooked", "llama-bridge", "gpt2-hooked", "bloom-hooked", "gemma2-bridge"])
def loaded(request):
    """A tiny model, and the Hugging Face model it was made of."""
    architecture, backend = request.param.split("-")
    hf_model = tiny_model(architecture)
    own = copy.deepcopy(hf_model)
    return ln.load_model("tiny", hf_model=own, tokenizer=tiny_tokenizer(), backend=backend), hf_model


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


@pytest.fixture
def task():
    rows = [(f"w{4 + i} w{5 + i}", f"w{20 + i}", ("yes", "no")[i % 2]) for i in range(12)]
    table = pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])

    class Pairs:
        items = {"en": table, "hi": table.iloc[:0]}

    return Pairs()


def last_position(model, pairs, batch_size=8, positions=256):
    return last_hidden(model, pairs, batch_size, "padding", positions)


def padded(head, positions):
    return replace(head, position="padding", positions=positions)


@torch.no_grad()
def by_hand(hf_model, pairs, positions):
    """The published preparation, and the Hugging Face model itself."""
    tokenizer = tiny_tokenizer()
    texts = [premise + f" {tokenizer.eos_token} " + hypothesis for premise, hypothesis in pairs]
    tokenizer.padding_side = "right"
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=512, return_tensors="pt")
    tokens, mask = encoded["input_ids"][:, :positions], encoded["attention_mask"][:, :positions]
    return hf_model.base_model(input_ids=tokens, attention_mask=mask).last_hidden_state[:, -1, :]


def test_it_reads_the_last_position_as_the_published_code_does_on_both_backends(loaded):
    model, hf_model = loaded
    expected = by_hand(hf_model, PAIRS, POSITIONS)
    torch.testing.assert_close(last_position(model, PAIRS, positions=POSITIONS), expected, atol=1e-4, rtol=1e-4)


def test_the_position_is_padding_and_its_distance_from_the_text_matters(model):
    near, far = (last_position(model, PAIRS[:1], positions=positions) for positions in (16, 48))
    if model.cfg.positional_embedding_type != "alibi":
        assert not torch.allclose(near, far, atol=1e-3)


def test_a_pair_does_not_depend_on_its_neighbours(model):
    together = last_position(model, PAIRS, batch_size=3, positions=POSITIONS)
    alone = torch.cat([last_position(model, [pair], positions=POSITIONS) for pair in PAIRS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_no_hook_stays_behind(model):
    last_position(model, PAIRS, positions=POSITIONS)
    assert not view(model).hooked


def test_patches_count(model):
    seen = view(model)
    neurons = ln.NeuronSet.of({"hi": [(0, i) for i in range(20)]}, (seen.n_layers, seen.width("act")), "act")
    plain = last_position(model, PAIRS, positions=POSITIONS)
    with ln.intervene(model, ln.SetTo(neurons["hi"], 0.0)):
        patched = last_position(model, PAIRS, positions=POSITIONS)
    assert not torch.allclose(plain, patched, atol=1e-4)


def test_it_is_a_head_and_its_logits_are_linear_in_what_it_reads(model):
    width = model.cfg.d_model
    linear = ClassificationHead(torch.randn(3, width), torch.randn(3), ("entailment", "neutral", "contradiction"))
    head = padded(linear, POSITIONS)
    assert isinstance(head, Head)
    expected = last_position(model, PAIRS, positions=POSITIONS) @ linear.weight.T + linear.bias
    torch.testing.assert_close(head.logits(model, PAIRS), expected)
    assert head.cut(model, PAIRS).tolist() == [False, False, True]


def test_a_fitted_head_labels_what_it_was_fitted_on(model, task):
    head = ClassificationHead.fit(model, task, ["en"], penalty=0.01, position="padding", positions=32)
    pairs = list(zip(task.items["en"]["premise"], task.items["en"]["hypothesis"], strict=True))
    predicted = np.array(head.labels)[head.logits(model, pairs).argmax(1)]
    assert (predicted == task.items["en"]["label"]).all()


def test_fingerprints_tell_heads_apart(model):
    width = model.cfg.d_model
    linear = ClassificationHead(torch.ones(2, width), torch.zeros(2), ("yes", "no"))
    prints = {padded(linear, 32).fingerprint, padded(linear, 48).fingerprint, linear.fingerprint}
    assert len(prints) == 3
    assert padded(linear, 32).fingerprint == padded(linear, 32).fingerprint


def test_the_old_name_goes_on_working_and_says_so(model, task):
    linear = ClassificationHead(torch.ones(2, model.cfg.d_model), torch.zeros(2), ("yes", "no"))
    with pytest.warns(LangNeuronsWarning, match='position="padding"'):
        assert PadPositionHead(linear, 32).fingerprint == padded(linear, 32).fingerprint
    with pytest.warns(LangNeuronsWarning, match='position="padding"'):
        head = PadPositionHead.fit(model, task, ["en"], penalty=0.01, positions=32)
    same = ClassificationHead.fit(model, task, ["en"], penalty=0.01, position="padding", positions=32)
    assert head.fingerprint == same.fingerprint


def test_what_does_not_fit_is_said(model, task):
    width = model.cfg.d_model
    foreign = ClassificationHead(torch.ones(2, width), torch.zeros(2), ("yes", "no"), model="another model")
    with pytest.raises(TaskError, match="another"):
        padded(foreign, 32).logits(model, PAIRS)
    with pytest.raises(TaskError, match="takes 1 to 96 positions"):
        last_position(model, PAIRS)
    with pytest.raises(TaskError, match="at least one item"):
        last_position(model, PAIRS, batch_size=0, positions=32)
    with pytest.raises(LanguageError, match="fr"):
        ClassificationHead.fit(model, task, ["fr"], position="padding", positions=32)
    with pytest.raises(LanguageError, match="No language"):
        ClassificationHead.fit(model, task, [], position="padding", positions=32)


def test_the_filter_counts_every_token_and_drops_the_long():
    # <s> + premise + </s> + hypothesis: 7, 4 and 64 tokens
    assert pairs_kept_by_length(PAIRS, tiny_tokenizer(), limit=7).tolist() == [False, True, False]
    assert pairs_kept_by_length(PAIRS, tiny_tokenizer(), limit=8).tolist() == [True, True, False]
    assert pairs_kept_by_length(PAIRS, tiny_tokenizer()).tolist() == [True, True, True]
    assert pairs_kept_by_length([], tiny_tokenizer()).tolist() == []


def test_a_tokenizer_without_an_end_of_sequence_is_refused_and_its_padding_is_the_end_where_it_has_none():
    without = tiny_tokenizer()
    without.eos_token = None
    with pytest.raises(TaskError, match="end-of-sequence"):
        pairs_kept_by_length(PAIRS, without)


def test_without_a_padding_token_the_end_of_sequence_pads():
    hf_model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    own = last_position(
        ln.load_model("tiny", hf_model=hf_model, tokenizer=tokenizer, backend="hooked"), PAIRS[:1], 8, 32
    )
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    model = ln.load_model("tiny", hf_model=tiny_model("llama"), tokenizer=tokenizer, backend="hooked")
    found = last_position(model, PAIRS[:1], positions=32)
    tokens = torch.tensor([[1, 4, 5, 6, 2, 7, 8, *[2] * 25]])
    mask = (torch.arange(32) < 7).long()[None]
    with torch.no_grad():
        expected = tiny_model("llama").base_model(input_ids=tokens, attention_mask=mask).last_hidden_state[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(own, found, atol=1e-3)
