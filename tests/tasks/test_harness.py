"""The harness' tasks and a model that answers them, held against the harness' own model for transformers."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import langneurons as ln
from langneurons.errors import LanguageError, TaskError
from tests.tasks.harness_files import ASK, CHOICE, CONFIGURATIONS, GENERATE, generation, questions, write_task
from tests.tiny_models import save_tiny

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


@pytest.fixture(scope="module", params=["llama-hooked", "llama-bridge", "gpt2-bridge"])
def both(request, tmp_path_factory):
    """A model, and the harness' own model of the same checkpoint."""
    architecture, backend = request.param.split("-")
    folder = save_tiny(tmp_path_factory.mktemp("models") / architecture, architecture)
    theirs = HFLM(
        AutoModelForCausalLM.from_pretrained(folder), tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=4
    )
    return ln.load_model(str(folder), backend=backend), asked


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every configuration."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, config in CONFIGURATIONS.items():
        write_task(folder, name, **config)
    return folder


@pytest.fixture(scope="module")
def manager(folder):
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluated(model, names, manager, **options):
    """What the harness says of a model: per task its samples and its results."""
    return simple_evaluate(model=model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options)


def test_the_harness_scores_our_model_as_its_own(both, manager):
    model, theirs = both
    expected = evaluated(theirs, CONFIGURATIONS, manager)
    actual = evaluated(ln.tasks.HarnessModel(model, batch_size=3), CONFIGURATIONS, manager)
    for name in CONFIGURATIONS:
        for sample, other in zip(actual["samples"][name], expected["samples"][name], strict=True):
            assert sample["arguments"] == other["arguments"]
            for (response,), (reference,) in zip(sample["resps"], other["resps"], strict=True):
                if isinstance(response, str):
                    assert response == reference, name
                else:
                    np.testing.assert_allclose(np.float64(response), np.float64(reference), atol=1e-4)
        for metric, value in expected["results"][name].items():
            if isinstance(value, float):
                assert actual["results"][name][metric] == pytest.approx(value, rel=1e-4), (name, metric)


def test_a_task_has_the_scores_that_the_harness_reports(both, folder, manager):
    model, theirs = both
    expected = evaluated(theirs, CONFIGURATIONS, manager)
    for name in CONFIGURATIONS:
        task = ln.tasks.harness(name, folder, languages="en")
        rows = task.measure(model, "en")
        for metric in task.metrics:
            reported = metric if "," in metric else f"{metric},none"
            if metric.startswith("p"):
                continue
            assert rows[metric].mean() == pytest.approx(expected["results"][name][reported], abs=1e-9), (name, metric)


def test_probabilities_are_inverse_perplexities_of_each_item(both, folder, manager):
    model, theirs = both
    samples = evaluated(theirs, ["rolling", "last_word"], manager)["samples"]
    rows = ln.tasks.harness("rolling", folder, languages="en").measure(model, "en")
    for row, sample in zip(rows.to_dict("records"), samples["rolling"], strict=True):
        text = sample["target"]
        (log_p,) = sample["filtered_resps"]
        assert row["p_per_word"] == pytest.approx(math.exp(log_p / len(text.split())), rel=1e-4)
        assert row["p_per_byte"] == pytest.approx(math.exp(log_p / len(text.encode())), rel=1e-4)
    rows = ln.tasks.harness("last_word", folder, languages="en").measure(model, "en")
    log_p = [sample["filtered_resps"][0][0] for sample in samples["last_word"]]
    np.testing.assert_allclose(rows["p"], np.exp(log_p), rtol=1e-4)


def test_the_harness_own_command_runs_inside_of_a_patch(tmp_path, folder, manager):
    model = ln.load_model(str(save_tiny(tmp_path / "llama", "llama")))
    neurons = ln.NeuronSet.of({"en": [(0, n) for n in range(24)]}, (2, 48), "act")
    asked = ln.tasks.HarnessModel(model)
    before = evaluated(asked, ["choices"], manager)["samples"]["choices"]
    with ln.intervene(model, ln.SetTo(neurons, 3.0)):
        inside = evaluated(asked, ["choices"], manager)["samples"]["choices"]
        rows = ln.tasks.harness("choices", folder, languages="en").measure(model, "en")
    after = evaluated(asked, ["choices"], manager)["samples"]["choices"]
    scores = [[sample["filtered_resps"] for sample in samples] for samples in (before, inside, after)]
    assert scores[0] == scores[2] != scores[1]
    assert rows["acc"].tolist() == [sample["acc"] for sample in inside]
