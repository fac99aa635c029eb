"""Classification heads against transformers and scikit-learn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import langneurons as ln
from langneurons import storage
from langneurons.errors import CorruptArtefactError, LanguageError, StorageError, TaskError
from langneurons.models import ModelView
from langneurons.tasks.heads import ClassificationHead, Head, last_hidden
from tests.tiny_models import tiny_model, tiny_tokenizer

MODELS = [
    ("llama", "hooked"),
    ("llama", "bridge"),
    ("gpt2", "hooked"),
    ("opt", "bridge"),
    ("bloom", "hooked"),
    ("gemma3", "bridge"),
]
PAIRS = [
    (" ".join(f"w{4 + (7 * i + j) % 90}" for j in range(1 + 3 * i)), " ".join(f"w{50 + i + j}" for j in range(1 + i)))
    for i in range(9)
]


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def pair(request):
    architecture, backend = request.param
    hf_model = tiny_model(architecture)
    return ln.load_model(
        architecture, hf_model=tiny_model(architecture), tokenizer=tiny_tokenizer(), backend=backend
    ), (hf_model)


@pytest.fixture(scope="module")
def llama():
    return ln.load_model("llama", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer())


def sequence(premise: str, hypothesis: str) -> list[int]:
    tokenizer = tiny_tokenizer()
    premise_ids, hypothesis_ids = tokenizer([premise, hypothesis], add_special_tokens=False).input_ids
    return [1, *premise_ids, 2, *hypothesis_ids]


def clouds(count: int = 300, labels: tuple[str, ...] = ("a", "b", "c"), seed: int = 0):
    """Features on very different scales that tell labels apart, mostly."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(len(labels), 8)) * 1.5
    which = draw.integers(0, len(labels), count)
    features = (centres[which] + draw.normal(size=(count, 8))) * 10.0 ** np.arange(-3, 5) + 7
    return torch.tensor(features).float(), [labels[index] for index in which]


def test_last_hidden_is_what_transformers_has_at_the_last_token(pair):
    model, hf_model = pair
    found = last_hidden(model, PAIRS, batch_size=4)
    for texts, row in zip(PAIRS, found, strict=True):
        with torch.no_grad():
            expected = hf_model.base_model(torch.tensor([sequence(*texts)])).last_hidden_state[0, -1]
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_last_hidden_does_not_depend_on_the_batch(pair):
    model, _ = pair
    alone = last_hidden(model, PAIRS, batch_size=1)
    torch.testing.assert_close(last_hidden(model, PAIRS[::-1], batch_size=5).flip(0), alone, atol=1e-5, rtol=1e-5)


def test_equal_pairs_are_run_once(llama, monkeypatch):
    rows, hidden = [], ModelView.hidden

    def noting(self, tokens, *rest):
        rows.append(len(tokens))
        return hidden(self, tokens, *rest)

    monkeypatch.setattr(ModelView, "hidden", noting)
    found = last_hidden(llama, PAIRS[:2] * 3)
    assert sum(rows) == 2
    assert (found[:2] == found[4:]).all()


def test_a_long_premise_loses_its_end_and_is_said_to_be_cut(llama):
    long = " ".join(f"w{4 + i % 90}" for i in range(200))
    head = ClassificationHead(torch.eye(3, 32), torch.zeros(3), ("a", "b", "c"))
    assert head.cut(llama, [(long, "w9"), ("w8", "w9")]).tolist() == [True, False]
    # <s>, </s> and the hypothesis take three of 96 positions.
    kept = " ".join(long.split()[:93])
    assert not head.cut(llama, [(kept, "w9")])[0]
    torch.testing.assert_close(last_hidden(llama, [(long, "w9")]), last_hidden(llama, [(kept, "w9")]))
    with pytest.raises(TaskError, match="leaves no room in the 96"):
        last_hidden(llama, [("w8", "w9 " * 96)])


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")], ids=len)
def test_standardisation_is_folded_into_the_weights(labels):
    features, gold = clouds(labels=labels)
    head = ClassificationHead.of_features(features, gold, penalty=2.0)
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=2000)).fit(features.numpy(), gold)
    probabilities = torch.softmax(features @ head.weight.T + head.bias, 1)
    np.testing.assert_allclose(probabilities, expected.predict_proba(features.numpy()), atol=2e-3)
    assert head.labels == labels


def test_a_dimension_that_never_changes_does_no_harm():
    features, gold = clouds()
    head = ClassificationHead.of_features(torch.cat([features, torch.ones(len(features), 1)], 1), gold)
    assert torch.isfinite(head.weight).all()


def test_a_head_fitted_on_a_model_reads_what_it_was_fitted_on(llama):
    rows = [(premise, f"w9 {word}", label) for premise, _ in PAIRS for word, label in
            [("w20", "yes"), ("w21", "no"), ("w22", "none")]]  # fmt: skip
    table = pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])

    class Items:
        items = {"en": table, "hi": table.assign(label="yes")}

    head = ClassificationHead.fit(llama, Items(), ["en"], penalty=1e-3)
    assert isinstance(head, Head)
    assert head.labels == ("no", "none", "yes")
    logits = head.logits(llama, list(zip(table.premise, table.hypothesis, strict=True)))
    assert [head.labels[index] for index in logits.argmax(1)] == list(table.label)
    with pytest.raises(TaskError, match="at least two different"):
        ClassificationHead.fit(llama, Items(), ["hi"])
    with pytest.raises(LanguageError, match="zh"):
        ClassificationHead.fit(llama, Items(), ["zh"])
    with pytest.raises(LanguageError, match="No language"):
        ClassificationHead.fit(llama, Items(), [])


def test_logits_see_patches(llama):
    head = ClassificationHead(torch.eye(3, 32), torch.zeros(3), ("a", "b", "c"))
    neurons = ln.NeuronSet.of({"hi": [(1, i) for i in range(40)]}, shape=(2, 48), site="act")
    plain = head.logits(llama, PAIRS)
    with ln.intervene(llama, ln.SetTo(neurons["hi"], 0.0)):
        assert not torch.allclose(head.logits(llama, PAIRS), plain, atol=1e-3)
    assert (head.logits(llama, PAIRS) == plain).all()


def test_a_saved_head_comes_back_the_same(tmp_path, llama):
    features, gold = clouds()
    head = ClassificationHead.of_features(features, gold, model="abc")
    found = ClassificationHead.load(head.save(tmp_path / "head"))
    assert (found.weight == head.weight).all()
    assert (found.bias == head.bias).all()
    assert (found.labels, found.model, found.fingerprint) == (head.labels, head.model, head.fingerprint)
    other = ClassificationHead(head.weight + 1, head.bias, head.labels, head.model)
    assert other.fingerprint != head.fingerprint


def test_a_head_that_reads_padding_comes_back_the_same(tmp_path):
    head = ClassificationHead(torch.eye(2), torch.ones(2), ("a", "b"), position="padding", positions=32)
    found = ln.load(head.save(tmp_path / "head"))
    assert (found.position, found.positions, found.fingerprint) == ("padding", 32, head.fingerprint)


def test_a_head_that_version_0_1_0_saved_is_read_and_keeps_its_fingerprint(tmp_path):
    weight, bias = torch.eye(2), torch.ones(2)
    checksum = storage.write_tensors(tmp_path / "head.safetensors", {"weight": weight, "bias": bias})
    content = {"labels": ["a", "b"], "model": "abc", "checksum": checksum}
    storage.write_json(tmp_path / "head.json", "langneurons/classification-head/1", content)
    head = ClassificationHead.load(tmp_path)
    assert (head.labels, head.model, head.position) == (("a", "b"), "abc", "last")
    assert torch.equal(head.weight, weight)
    assert head.fingerprint == "b8b0870e430d0564ae69790a4656647b"
    assert replace(head, position="padding", positions=48).fingerprint == "9ca1c8a95c7d925075ab0bbe1488e277"


def test_an_unknown_position_is_refused():
    with pytest.raises(TaskError, match="Unknown position 'first'"):
        ClassificationHead(torch.eye(2), torch.zeros(2), ("a", "b"), position="first")


def test_a_damaged_or_missing_head_is_refused(tmp_path):
    folder = ClassificationHead(torch.eye(2), torch.zeros(2), ("a", "b")).save(tmp_path / "head")
    (folder / "head.safetensors").write_bytes(b"x")
    with pytest.raises(CorruptArtefactError):
        ClassificationHead.load(folder)
    with pytest.raises(StorageError):
        ClassificationHead.load(tmp_path / "nowhere")


def test_a_head_of_another_model_or_size_is_refused(tmp_path, llama):
    small = ClassificationHead(torch.eye(3, 16), torch.zeros(3), ("a", "b", "c"))
    with pytest.raises(TaskError, match="reads 16 dimensions; 'llama' has 32"):
        small.logits(llama, PAIRS)
    foreign = ClassificationHead(torch.eye(3, 32), torch.zeros(3), ("a", "b", "c"), model="0123456789")
    with pytest.raises(TaskError, match="fitted on model 01234567"):
        ClassificationHead.load(foreign.save(tmp_path / "head"), llama)


def test_rows_and_labels_must_match():
    with pytest.raises(TaskError, match="as many labels"):
        ClassificationHead(torch.eye(3), torch.zeros(3), ("a", "b"))
    with pytest.raises(TaskError, match="all different"):
        ClassificationHead(torch.eye(2), torch.zeros(2), ("a", "a"))
    with pytest.raises(TaskError, match="one label an item"):
        ClassificationHead.of_features(torch.zeros(3, 2), ["a", "b"])


def test_a_tokenizer_without_a_separator_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    model = ln.load_model("llama", hf_model=tiny_model("llama"), tokenizer=tokenizer)
    with pytest.raises(TaskError, match="neither an end-of-sequence nor a separator"):
        last_hidden(model, PAIRS)


def test_an_empty_batch_is_refused(llama):
    with pytest.raises(TaskError, match="at least one item, not 0"):
        last_hidden(llama, PAIRS, batch_size=0)
