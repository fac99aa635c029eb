import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import LanguageError, PatchError, StaleArtefactError, TrainingError
from langneurons.models import view
from langneurons.tasks.likelihood import LABELS
from langneurons.training import transfer
from langneurons.training.finetuning import finetune
from langneurons.training.lora import MaskedIA3, MaskedLoRA
from langneurons.training.transfer import transfer_experiment
from langneurons.training.transfer_table import Transfer
from tests.tiny_models import save_tiny

XNLI = Path(__file__).parents[2] / ".." / "shared" / "data" / "xnli"
SHAPE = (2, 48)
OPTIONS = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "resamples": 200, "rank": 2, "progress": False}


def table(seed, premises=6):
    generator = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(4, 101)]
    texts = [" ".join(generator.choice(words, 4)) for _ in range(premises * 4)]
    rows = [
        (texts[4 * row], texts[4 * row + 1 + place], label)
        for row in range(premises)
        for place, label in enumerate(LABELS)
    ]
    return pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ln.load_model(save_tiny(tmp_path_factory.mktemp("tiny"), "mistral"))


@pytest.fixture(scope="module")
def neurons():
    units = {
        name: [(layer, 5 * unit + place) for layer in (0, 1) for unit in range(3)]
        for place, name in enumerate(("en", "hi", "zh"))
    }
    return ln.NeuronSet.of(units, SHAPE, "act")


@pytest.fixture(scope="module")
def task():
    return ln.XNLI.load({"en": table(0)})


@pytest.fixture(scope="module")
def test():
    return ln.XNLI.load({"en": table(1), "hi": table(2), "zh": table(3)})


PATCHES = {"zero": lambda language: ln.SetTo(ln.NeuronSet.of({"x": [(0, 1), (1, 30)]}, SHAPE, "act"), 0.0)}


@pytest.fixture(scope="module")
def run(model, task, test, neurons, tmp_path_factory):
    out = tmp_path_factory.mktemp("experiment")
    asked = {"conditions": ["none", "source", "target", "source+target", "random", "all"], "seeds": 2, "controls": 2}
    before = view(model).fingerprint
    found = transfer_experiment(model, task, test, neurons, patches=PATCHES, out=out, **asked, **OPTIONS)
    assert view(model).fingerprint == before
    assert not view(model).hooked
    return found, out, asked


def test_every_condition_is_trained_with_every_seed_and_evaluated_where_it_should_be(run):
    found, *_ = run
    counts = found.trainings.groupby("condition").size().to_dict()
    assert counts == {"none": 2, "source": 2, "target": 4, "source+target": 4, "random": 4, "all": 2}
    languages = found.rows.groupby(["condition", "target", "patch"])["language"].unique().map(sorted)
    assert languages["none", "", "unpatched"] == ["en", "hi", "zh"]
    assert languages["none", "", "zero"] == ["hi", "zh"]
    assert languages["target", "hi", "unpatched"] == ["en", "hi"]
    assert found.settings["protocol"] == "head"


def test_what_is_trained_is_counted(run):
    found, *_ = run
    cost = found.trainings.groupby("condition")[["neurons", "parameters"]].first()
    assert cost["neurons"].to_dict() == {
        "none": 0,
        "source": 6,
        "target": 6,
        "source+target": 12,
        "random": 6,
        "all": 96,
    }
    head = 3 * 32 + 3
    assert cost["parameters"]["source"] - cost["parameters"]["none"] == 2 * (2 * 32 + 3 * 2)
    assert cost["parameters"]["all"] - cost["parameters"]["none"] == 2 * (2 * 32 + 48 * 2)
    assert cost["parameters"]["none"] > head


def test_a_trained_model_scores_as_it_does_by_hand(run, model, task, test, neurons):
    found, *_ = run
    lora = MaskedLoRA(neurons["hi"], 2, 16, ("gate",), ("q", "k", "v", "o"), seed=1)
    tuned = finetune(
        model, task, lora, languages=["en"], steps=3, batch_size=4, learning_rate=0.01, seed=1, progress=False
    )
    with tuned.attach(model):
        plain = test.with_head(tuned.head).measure(model, "hi")
        with ln.intervene(model, PATCHES["zero"]("hi")):
            patched = test.with_head(tuned.head).measure(model, "hi")
    for name, expected in (("unpatched", plain), ("zero", patched)):
        rows = found.rows.query("condition == 'target' and target == 'hi' and seed == 1 and language == 'hi'")
        rows = rows[rows["patch"] == name]
        assert rows["prediction"].tolist() == expected["prediction"].tolist()
        assert rows["value"].tolist() == expected["accuracy"].tolist()


def test_the_same_call_goes_on_without_training_or_measuring_again(run, model, task, test, neurons, monkeypatch):
    found, out, asked = run
    monkeypatch.setattr("langneurons.training.loop.Loop.run", lambda *given: pytest.fail("trained again"))
    monkeypatch.setattr(ln.XNLI, "measure", lambda *given: pytest.fail("measured again"))
    again = transfer_experiment(model, task, test, neurons, patches=PATCHES, out=out, **asked, **OPTIONS)
    pd.testing.assert_frame_equal(again.rows, found.rows)
    pd.testing.assert_frame_equal(again.trainings, found.trainings)


def test_other_settings_in_the_same_folder_are_refused(run, model, task, test, neurons):
    _, out, asked = run
    with pytest.raises(StaleArtefactError, match="learning_rate"):
        transfer_experiment(model, task, test, neurons, out=out, **asked, **{**OPTIONS, "learning_rate": 0.02})


def test_what_was_measured_is_saved_and_compared(run, tmp_path):
    found, *_ = run
    again = Transfer.load(found.save(tmp_path))
    assert again.effects().keys == ["trained", "language"]
    assert len(again.effects()) == 10
    assert "control_position" in again.effects().rows
    assert len(again.patch_effects()) == 12
    assert "2 seeds cannot give a p-value" in again.verdict()


def test_without_attention_the_condition_none_trains_the_head_alone(model, task, test, neurons):
    found = transfer_experiment(model, task, test, neurons, conditions=["none"], seeds=1, attention=(), **OPTIONS)
    assert found.trainings["parameters"].tolist() == [3 * 32 + 3]


def test_every_training_starts_from_the_head_that_is_given(model, task, test, neurons):
    options = {"conditions": ["none"], "seeds": 1, "targets": ["hi"], **OPTIONS, "learning_rate": 1e-9}
    head = ln.tasks.ClassificationHead.fit(model, task)
    started = transfer_experiment(model, task, test, neurons, head=head, **options)
    expected = test.with_head(head).measure(model, "hi")["prediction"].tolist()
    assert started.rows.query("language == 'hi'")["prediction"].tolist() == expected


def test_another_update_is_trained_where_one_is_given(model, task, test, neurons):
    def make(chosen, seed):
        return None if chosen is None else MaskedIA3(chosen)

    asked = {"conditions": ["none", "source"], "seeds": 1, "targets": ["hi"], "update": make}
    found = transfer_experiment(model, task, test, neurons, **asked, **OPTIONS)
    assert found.trainings["parameters"].tolist() == [99, 105]
    assert "IA3" in found.settings["update"]


def test_patches_are_held_while_a_model_is_trained(model, task, test, neurons, monkeypatch):
    given, patch = [], ln.SetTo(neurons["hi"], 0.0)
    monkeypatch.setattr(
        transfer, "finetune", lambda *a, **options: given.append(options["patches"]) or finetune(*a, **options)
    )
    asked = {"conditions": ["none"], "seeds": 1, "targets": ["hi"]}
    held = transfer_experiment(model, task, test, neurons, **asked, training_patches=patch, **OPTIONS)
    free = transfer_experiment(model, task, test, neurons, **asked, **OPTIONS)
    assert given == [[patch], []]
    assert held.trainings["loss"].item() != free.trainings["loss"].item()


def test_answers_that_are_generated_need_no_head(model, neurons):
    def questions(seed):
        rows = table(seed, 4).rename(columns={"premise": "context", "hypothesis": "question"})
        answers = [[text.split()[0]] for text in rows["context"]]
        return rows.assign(item=[f"q{row}" for row in range(12)], cluster=rows["context"], answers=answers)

    prompts = {name: "{context} {question}" for name in ("en", "hi")}
    asked = ln.XQuAD({"en": questions(4)}, prompts, max_new_tokens=2)
    answered = ln.XQuAD({"en": questions(5), "hi": questions(5)}, prompts, max_new_tokens=2)
    found = transfer_experiment(model, asked, answered, neurons, conditions=["none", "source"], seeds=1, **OPTIONS)
    assert found.rows["metric"].unique().tolist() == ["f1", "exact_match"]
    assert found.settings["protocol"] == "generation"
    assert len(found.effects(metric="exact_match")) == 1


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"task": "test"}, TrainingError, "18 of the test items in 'en' are among the training items"),
        ({"source": "hi", "targets": ["zh"]}, LanguageError, "Unknown training language 'hi'"),
        ({"targets": ["fr"]}, LanguageError, "Unknown language 'fr'"),
        ({"rank": 0}, TrainingError, "rank must be a whole number of at least 1, given 0"),
        ({"conditions": ["sorce"]}, TrainingError, "did you mean 'source'"),
        ({"seeds": 0}, TrainingError, "seeds must be a whole number from 1 to 10,000, or seeds of at least 0, given 0"),
        ({"seeds": []}, TrainingError, "at least one training seed"),
        ({"projections": ["gates"]}, TrainingError, "did you mean 'gate'"),
        ({"patches": {"zero": "patch"}}, PatchError, "should give a patch"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(model, task, test, neurons, monkeypatch, given, error, said):
    monkeypatch.setattr(transfer, "finetune", lambda *a, **options: pytest.fail("trained"))
    asked = {"task": task, "neurons": neurons, **OPTIONS, **given}
    if given.get("task") == "test":
        asked["task"] = test
    with pytest.raises(error, match=said):
        inspect.unwrap(transfer_experiment)(model, test=test, **asked)


def renamed(test, name):
    """A test in English and Hindi, with another name for Hindi."""
    parts = ({"en": part["en"], name: part["hi"]} for part in (test.items, test.templates))
    return dataclasses.replace(test, **dict(zip(("items", "templates"), parts, strict=True)))


@pytest.mark.parametrize("name", ["a/b", "..", "../out", ".hidden", "a\\b", "", "x" * 101, "नी" * 20, "a\0b"])
def test_a_target_that_cannot_be_the_name_of_a_folder_is_refused(model, task, test, name, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "finetune", lambda *a, **options: pytest.fail("trained"))
    named = ln.NeuronSet.of({"en": [(0, 1)], name: [(0, 2)]}, SHAPE, "act")
    for target in ([name], None):
        refusal = "cannot be: a name has 1 to 100 bytes|targets must be a list of texts"  # which hold no NUL
        with pytest.raises((LanguageError, TrainingError), match=refusal):
            transfer_experiment(
                model, task, renamed(test, name), named, targets=target, out=tmp_path / "out", **OPTIONS
            )
    assert [path.name for path in tmp_path.rglob("*")] == []


def test_a_target_of_the_longest_name_is_trained_and_kept(model, task, test, tmp_path):
    name = "x" * 100
    named = ln.NeuronSet.of({"en": [(0, 1)], name: [(0, 2)]}, SHAPE, "act")
    asked = {"conditions": ["random source+target"], "seeds": [10**6], "controls": 2, "out": tmp_path}
    found = transfer_experiment(model, task, renamed(test, name), named, **asked, **{**OPTIONS, "steps": 1})
    assert set(found.rows["language"]) == {"en", name}
    assert len(list((tmp_path / "trainings").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["babel", "mistral"])
def test_the_xnli_files_of_the_hub_are_trained_on(backend, tmp_path):
    if not XNLI.is_dir():
        pytest.skip("The XNLI files are not beside the project.")
    model = ln.load_model("babel" if backend == "babel" else save_tiny(tmp_path, "mistral"))
    seen = view(model)
    shape = (seen.n_layers, seen.width("act"))
    neurons = ln.NeuronSet.of({"en": [(0, 1), (1, 2)], "hi": [(0, 4), (1, 4)]}, shape, "act", seen.fingerprint)
    task = ln.XNLI.load(XNLI, ["en"], split="validation").take(20)
    test = ln.XNLI.load(XNLI, ["en", "hi"], split="test").take(8)
    asked = {"conditions": ["none", "target"], "seeds": 1}
    found = transfer_experiment(model, task, test, neurons, **asked, **OPTIONS)
    assert set(found.scores()["language"]) == {"en", "hi"}
    assert torch.isfinite(torch.tensor(found.trainings["loss"].to_numpy())).all()
