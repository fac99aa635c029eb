import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons import storage
from langneurons.errors import EffectError, TaskError
from langneurons.replication import protocols
from langneurons.replication.protocols import AGREE, ProtocolComparison, compare_protocols, compared
from tests.replication.conftest import Backwards
from tests.tiny_models import save_tiny

WORDS = [f"w{number}" for number in range(90)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return ln.load_model(str(save_tiny(tmp_path_factory.mktemp("tiny"), "llama")))


@pytest.fixture(scope="module")
def patches(tiny):
    units = [(layer, unit) for layer in range(2) for unit in range(0, 48, 2)]
    neurons = ln.NeuronSet.of({"hi": units}, (2, 48), "act")
    return {"loud": ln.SetTo(neurons["hi"], 5.0), "same": ln.Scale(neurons["hi"], 1.0)}


def questions(long=0):
    """Twelve questions, the first ``long`` of them beyond what the tiny model's window holds."""
    rows = []
    for number in range(12):
        context = " ".join(WORDS[number : number + 6] * (12 if number < long else 1))
        rows.append((f"q{number}", f"a{number // 2}", context, WORDS[number], [WORDS[number + 1]]))
    table = pd.DataFrame(rows, columns=["item", "cluster", "context", "question", "answers"])
    return ln.XQuAD({"hi": table}, {"hi": "{context} {question}"}, max_new_tokens=4)


def premises():
    labels = ["entailment", "neutral", "contradiction"]
    rows = [(" ".join(WORDS[n : n + 4]), WORDS[n + 7 + k], labels[k]) for n in range(10) for k in range(3)]
    return ln.XNLI.load({"hi": pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])})


def head(tiny, **place):
    weight = torch.randn(3, tiny.cfg.d_model, generator=torch.Generator().manual_seed(0))
    return ln.tasks.ClassificationHead(weight, torch.zeros(3), ("entailment", "neutral", "contradiction"), **place)


PADDING = {"position": "padding", "positions": 32}


def test_both_protocols_score_the_same_predictions(tiny, patches):
    task = questions()
    table = compare_protocols(tiny, task, patches, resamples=200, progress=False).rows.set_index(["metric", "patch"])
    plain = task.measure(tiny, "hi")
    with ln.intervene(tiny, patches["loud"]):
        patched = task.measure(tiny, "hi")
    assert list(plain["prediction"]) != list(patched["prediction"])
    for metric in ("f1", "exact_match"):
        row = table.loc[(metric, "loud")]
        assert row["base"] == pytest.approx(plain[metric].mean())
        assert row["patched"] == pytest.approx(patched[metric].mean())
        expected = protocols.token_id_scores(patched, tiny.tokenizer)[metric].mean()
        assert row["published_patched"] == pytest.approx(expected)


def test_the_published_protocol_leaves_long_questions_out_and_the_sound_one_does_not(tiny, patches, monkeypatch):
    monkeypatch.setattr(protocols, "kept_by_length", lambda tokens: np.asarray(tokens) < 60)
    rows = compare_protocols(tiny, questions(long=3), patches, resamples=200, progress=False).rows
    assert set(rows["published_items"]) == {9}
    assert set(rows["items"]) == {12}


def test_a_filter_that_leaves_nothing_is_said(tiny, patches, monkeypatch):
    monkeypatch.setattr(protocols, "kept_by_length", lambda tokens: np.asarray(tokens) < 2)
    with pytest.raises(EffectError, match="leaves no item in 'hi'"):
        compare_protocols(tiny, questions(), patches, resamples=200, progress=False)


def test_xnli_is_read_at_the_pad_position_and_at_the_last_real_token(tiny, patches):
    task, theirs = premises().with_head(head(tiny)), head(tiny, **PADDING)
    row = compare_protocols(tiny, task, patches, published_head=theirs, resamples=200, progress=False).rows.iloc[0]
    assert row["base"] == pytest.approx(task.measure(tiny, "hi")["accuracy"].mean())
    assert row["published_base"] == pytest.approx(task.with_head(theirs).measure(tiny, "hi")["accuracy"].mean())


def test_conditions_are_pieces_of_work_wherever_and_whenever_they_are_computed(tiny, patches):
    task, executor = premises().with_head(head(tiny)), Backwards()
    options = {"published_head": head(tiny, **PADDING), "resamples": 200, "progress": False}
    there = compare_protocols(tiny, task, patches, executor=executor, **options)
    assert executor.jobs == 2 * 3  # two heads; no patch, and two patches
    pd.testing.assert_frame_equal(there.rows, compare_protocols(tiny, task, patches, **options).rows)


def test_what_changes_nothing_is_no_difference_in_the_published_reading(tiny, patches):
    rows = compare_protocols(tiny, questions(), patches, resamples=200, progress=False).rows
    same = rows.query("patch == 'same'")
    assert set(same["published_conclusion"]) == {"no difference"}
    assert set(same["change"]) == {0.0}


@pytest.mark.parametrize(("shift", "concluded"), [(0.02, "gain"), (-0.02, "loss"), (0.005, "no difference")])
def test_a_raw_difference_is_a_conclusion_in_the_published_reading_only(shift, concluded):
    random = np.random.default_rng(0)
    base = pd.DataFrame({"item": range(100), "cluster": range(100), "f1": random.random(100)})
    patched = base.assign(f1=base["f1"] + shift + random.permutation(np.r_[np.ones(50), -np.ones(50)]) * 0.5)
    rows = {("unpatched", "hi"): base, ("p", "hi"): patched}
    row = compared("f1", [("p", "hi")], rows, rows, ln.Testing(resamples=400)).iloc[0]
    assert (row["published_conclusion"], row["verdict"], row["changes"]) == (concluded, "inconclusive", True)


@pytest.mark.parametrize(("shift", "concluded"), [(0.2, "gain"), (-0.2, "loss"), (0.001, "no difference")])
def test_where_the_evidence_is_clear_both_agree(shift, concluded):
    random = np.random.default_rng(0)
    base = pd.DataFrame({"item": range(100), "cluster": range(100), "f1": random.random(100)})
    patched = base.assign(f1=base["f1"] + shift + 0.01 * random.standard_normal(100))
    rows = {("unpatched", "hi"): base, ("p", "hi"): patched}
    row = compared("f1", [("p", "hi")], rows, rows, ln.Testing(resamples=400)).iloc[0]
    assert row["verdict"] in AGREE[concluded]
    assert not row["changes"]


def test_only_changed_conclusions_are_printed():
    row = {"metric": "f1", "language": "hi", "patch": "zero", "published_base": 0.5, "published_patched": 0.53}
    row |= {"published_items": 90, "published_conclusion": "gain", "change": 0.01, "low": -0.03, "high": 0.05}
    row |= {"items": 100, "verdict": "inconclusive", "detectable": 0.06, "changes": True}
    table = pd.DataFrame([row, {**row, "patch": "mean", "changes": False}])
    text = repr(ProtocolComparison(table, {"task": "xquad generation"}))
    assert text.splitlines() == [
        "xquad generation: the conclusion changes in 1 of 2 cells.",
        "f1, hi, patch zero: published 50.0 -> 53.0 on 90 items, a gain; sound +1.0 [-3.0, +5.0] points on 100 items, "
        "inconclusive (detectable 6.0).",
    ]


def test_a_comparison_is_saved_and_one_of_version_0_1_0_is_read(tiny, patches, tmp_path):
    comparison = compare_protocols(tiny, questions(), patches, resamples=200, margin=0.02, progress=False)
    loaded = ln.load(comparison.save(tmp_path / "here"))
    pd.testing.assert_frame_equal(loaded.rows, comparison.rows)
    assert loaded.settings == comparison.settings
    assert loaded.settings["margin"] == 0.02
    old = {"task": "xquad generation", "model": "m", "delta": 0.02, "seed": 0, "resamples": 200}
    checksum = storage.write_table(tmp_path / "table.parquet", comparison.rows)
    content = {"settings": old, "checksums": {"table": checksum}}
    storage.write_json(tmp_path / "protocols.json", "langneurons/protocol-comparison/1", content)
    read = ProtocolComparison.load(tmp_path)
    assert read.settings["margin"] == 0.02
    assert repr(read).splitlines()[1:] == comparison.sentences


def test_a_table_is_printed_in_the_units_of_its_sentences(tiny, patches):
    table = compare_protocols(tiny, questions(), patches, resamples=200, progress=False).table()
    headings = list(table.texts().columns)
    assert {"published base (%)", "change (points)", "detectable (points)"} <= set(headings)
    assert "low" not in headings


def test_what_cannot_be_compared_is_refused(tiny, patches):
    with pytest.raises(TaskError, match="published_head="):
        compare_protocols(tiny, premises(), patches, progress=False)
    documents = ln.tasks.Generation.of(ln.load_corpus("babel", ["en"]), documents=4)
    with pytest.raises(TaskError, match="ask XNLI or XQuAD, not 'generation'"):
        compare_protocols(tiny, documents, patches, progress=False)
    with pytest.raises(EffectError, match="No patch was given"):
        compare_protocols(tiny, questions(), {}, progress=False)
