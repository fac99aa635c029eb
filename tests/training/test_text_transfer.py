"""Transfer experiments on text: what is trained and measured, what is forgotten, and whether the neurons did it."""

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.corpora import pack
from langneurons.errors import TrainingError
from langneurons.models import view
from langneurons.training.conditions import conditions
from langneurons.training.finetuning import finetune
from langneurons.training.lora import MaskedIA3, MaskedLoRA, MaskedRows
from langneurons.training.transfer import transfer_experiment
from langneurons.training.transfer_table import Transfer
from tests.training.small import pairs, questions, tiny

SHAPE, PROJECTIONS = (2, 48), ("gate", "up", "down")
CONDITIONS = ("none", "source", "shared", "exclusive", "random", "all", "lora", "full")
OPTIONS = {"steps": 4, "batch_size": 4, "learning_rate": 0.02, "resamples": 200, "progress": False}
UPDATE = {"form": "rows", "projections": PROJECTIONS, "attention": ()}


def corpus(seed, count=30):
    random, texts = np.random.default_rng(seed), {}
    for first, language in ((4, "en"), (30, "hi"), (60, "zh")):
        starts = random.integers(0, 20, size=count)
        texts[language] = [" ".join(f"w{first + (start + place) % 30}" for place in range(12)) for start in starts]
    return ln.load_corpus(texts)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny(tmp_path_factory)


@pytest.fixture(scope="module")
def neurons():
    units = {"en": (5, 10), "hi": (1, 2, 3, 4), "zh": (3, 4, 20)}
    members = {name: [(layer, unit) for layer in (0, 1) for unit in own] for name, own in units.items()}
    return ln.NeuronSet.of(members, SHAPE, "act")


@pytest.fixture(scope="module")
def heldout(model):
    return ln.HeldoutText.of(model, corpus(1), each="text")


@pytest.fixture(scope="module")
def transfer(model, neurons, heldout, tmp_path_factory):
    out, before = tmp_path_factory.mktemp("experiment"), view(model).fingerprint
    options = {"source": "hi", "conditions": CONDITIONS, "seeds": 2, "controls": 2, **UPDATE, **OPTIONS}
    transfer = transfer_experiment(model, corpus(0), heldout, neurons, out=out, **options)
    assert view(model).fingerprint == before
    return transfer


def test_shared_and_exclusive_neurons_are_the_two_parts_of_the_sources(neurons):
    names = ["source", "shared", "exclusive", "random shared"]
    source, shared, exclusive, *random = conditions(neurons, "hi", ["en"], names, [0, 1])
    assert shared.neurons.indices()[:, 1].tolist() == [3, 4, 3, 4]
    assert exclusive.neurons.indices()[:, 1].tolist() == [1, 2, 1, 2]
    assert set(source.neurons.union()) == {*shared.neurons.union(), *exclusive.neurons.union()}
    assert [len(draw.neurons) for draw in random] == [4, 4]
    assert not any(
        len(draw.neurons["random shared"].union()[np.isin(draw.neurons.union(), neurons.union())]) for draw in random
    )
    with pytest.raises(TrainingError, match="'en' has no neuron that it shares"):
        conditions(neurons, "en", ["hi"], ["shared"])


def test_every_condition_trains_as_much_as_it_should(transfer):
    costs = transfer.trainings.groupby("condition")[["neurons", "parameters"]].first()
    row = 3 * 32
    whole = 2 * (3 * 48 * 32 + 2 * 32 * 32 + 2 * 16 * 32)
    assert costs["parameters"].to_dict() == {
        "none": 0,
        "source": 8 * row,
        "shared": 4 * row,
        "exclusive": 4 * row,
        "random": 8 * row,
        "all": 96 * row,
        "lora": 2 * 3 * (32 + 48) * 2,  # rank 2 is nearest to 768
        "full": whole,
    }
    assert transfer.trainings.groupby("condition").size()["random"] == 4


def test_the_model_as_it_is_and_a_trained_one_score_as_perplexity_says(transfer, model, neurons, heldout):
    scores = transfer.scores().set_index(["condition", "language"])["score"]
    plain = ln.perplexity(model, heldout, progress=False).set_index("language")["bits_per_byte"]
    update = MaskedRows(neurons.select(["hi"]), projections=PROJECTIONS)
    options = {name: OPTIONS[name] for name in ("steps", "batch_size", "learning_rate", "progress")}
    by_seed = []
    for seed in (0, 1):
        tuned = finetune(model, corpus(0), update, languages=["hi"], seed=seed, **options)
        with tuned.attach(model):
            by_seed.append(ln.perplexity(model, heldout, progress=False).set_index("language")["bits_per_byte"])
    for language in ("en", "hi", "zh"):
        assert scores["none", language] == pytest.approx(plain[language], rel=1e-6)
        assert scores["source", language] == pytest.approx(np.mean([of[language] for of in by_seed]), rel=1e-6)
    nll = transfer.scores("nll").set_index(["condition", "language"])["score"]
    expected = ln.perplexity(model, heldout, progress=False).set_index("language")["nll"]
    assert nll["none", "zh"] == pytest.approx(expected["zh"], rel=1e-6)


def test_effects_are_relative_changes_of_the_loss(transfer):
    scores = transfer.scores().set_index(["condition", "language"])["score"]
    learned, forgotten = transfer.effects(on="source"), transfer.effects()
    assert (learned.settings["against"], learned.unit) == ("no training", "%")
    for table, language in ((learned, "hi"), (forgotten, "zh")):
        rows = table.rows.set_index("trained")
        rows = rows if language == "hi" else forgotten.rows.query("language == 'zh'").set_index("trained")
        change = scores["source", language] / scores["none", language] - 1
        assert rows.loc["source", "estimate"] == pytest.approx(change, rel=1e-6)
    assert learned.rows.set_index("trained").loc["source", "estimate"] < 0
    assert learned.settings["lower_is_better"]
    assert "control_position" in learned.rows


def test_whether_the_neurons_did_it_stands_in_the_table(transfer, model, neurons, heldout):
    trainings = transfer.trainings.set_index("condition")
    assert trainings.loc["none", ["moved", "put_back"]].isna().all(axis=None)
    for name in ("source", "shared", "exclusive", "random"):
        assert (trainings.loc[name, "moved"] > 0).all()
        assert trainings.loc[name, "put_back"].tolist() == pytest.approx([1] * len(trainings.loc[name]))
    for name in ("all", "lora", "full"):
        assert (trainings.loc[name, "put_back"] < 0.8).all()
    update = MaskedRows(neurons.select(["hi"]), projections=PROJECTIONS)
    options = {name: OPTIONS[name] for name in ("steps", "batch_size", "learning_rate", "progress")}
    tuned = finetune(model, corpus(0), update, languages=["hi"], **options)
    before = [view(model).projection(layer, target).matrix().clone() for layer in (0, 1) for target in PROJECTIONS]
    tuned.update.merge(model)
    after = [view(model).projection(layer, target).matrix().clone() for layer in (0, 1) for target in PROJECTIONS]
    tuned.update.unmerge(model)
    change = sum(float((new - old).square().sum()) for old, new in zip(before, after, strict=True))
    rows = [torch.tensor([1, 2, 3, 4])] * 2
    norm = sum(
        float(old.index_select(1 if place % 3 == 2 else 0, rows[place // 3]).square().sum())
        for place, old in enumerate(before)
    )
    assert trainings.loc["source", "moved"].iloc[0] == pytest.approx((change / norm) ** 0.5, rel=1e-4)
    assert {"moved", "put_back"} <= set(transfer.scores().columns)
    assert "put back" in str(transfer.table())


@pytest.mark.parametrize("kind", [MaskedRows, MaskedLoRA, MaskedIA3])
def test_neurons_put_back_compute_as_before_and_the_others_as_trained(model, kind):
    neurons = ln.NeuronSet.of({"hi": [(0, 1), (0, 7), (1, 2)]}, SHAPE, "act")
    update = kind(neurons, projections=PROJECTIONS, rank=1)
    update.prepare(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in update.parameters():
            parameter.normal_()
    some = ln.NeuronSet.of({"x": [(0, 7), (1, 30)]}, SHAPE, "act")
    part = update.without(some)

    def merged(update):
        update.merge(model)
        values = [view(model).projection(layer, target).matrix().clone() for layer in (0, 1) for target in PROJECTIONS]
        update.unmerge(model)
        return values

    plain = [view(model).projection(layer, target).matrix().clone() for layer in (0, 1) for target in PROJECTIONS]
    for place, (old, whole, without) in enumerate(zip(plain, merged(update), merged(part), strict=True)):
        expected, of_down = whole.clone(), place % 3 == 2
        if place < 3:
            expected[(slice(None), 7) if of_down else 7] = old[(slice(None), 7) if of_down else 7]
        torch.testing.assert_close(without, expected)
    assert len(update.named_parameters()) == len(part.named_parameters())


def test_tasks_are_measured_beside_text_and_text_beside_tasks(model, neurons, heldout):
    answers = questions(8)
    options = {"targets": ["hi"], "seeds": 1, "conditions": ["none", "source"], **OPTIONS, "steps": 2, "rank": 2}
    transfer = transfer_experiment(model, corpus(0), [heldout, answers], neurons, **UPDATE, **options)
    assert transfer.rows["metric"].unique().tolist() == ["bits_per_byte", "nll", "f1", "exact_match"]
    assert transfer.effects(metric="f1").unit == "points"
    assert transfer.settings["task"] == "text and xquad"
    learned = transfer_experiment(model, pairs(12, languages=("en",)), [pairs(9, 1), heldout], neurons, **options)
    assert learned.scores("bits_per_byte")["score"].gt(0).all()
    assert len(learned.effects(metric="bits_per_byte")) == 1


def test_it_is_saved_printed_and_drawn(transfer, tmp_path):
    again = Transfer.load(transfer.save(tmp_path))
    pd.testing.assert_frame_equal(again.scores(), transfer.scores())
    assert again.verdict().startswith("Against no training, ")
    assert "SD over seeds" in str(again.table())
    figure = again.plot()
    assert "bits per byte" in figure.layout.xaxis.title.text
    assert max(max(trace.x) for trace in figure.data if trace.x is not None and len(trace.x)) < 20


def test_a_text_that_is_trained_on_cannot_be_the_test(model, neurons, tmp_path):
    text = corpus(0)
    packed = pack(text, view(model).tokenizer, 48, tmp_path)
    for data in (packed, text):
        with pytest.raises(TrainingError, match="texts in 'hi' are the training text"):
            transfer_experiment(
                model, data, ln.HeldoutText.of(model, text, context_length=48), neurons, source="hi", **OPTIONS
            )
    with pytest.raises(TrainingError, match="same metric"):
        transfer_experiment(model, text, [corpus(1), corpus(2)], neurons, source="hi", **OPTIONS)
