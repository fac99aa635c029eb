"""SmolLM2-135M answers XCOPA, MGSM and XNLI as the harness' own model answers them with the same weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import langneurons as ln
from langneurons.models.gguf import converted_folder
from tests.backends import BACKENDS

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.models.huggingface import HFLM

from tests.tasks.local_tasks import NAMES, assert_equal_answers, write_tasks

LIMIT = {"xcopa": 6, "mgsm": 2, "xnli": 4}  # documents of a task


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, shared_data):
    return write_tasks(tmp_path_factory.mktemp("tasks"), shared_data)


@pytest.fixture(scope="module")
def theirs(file):
    folder = converted_folder(file)
    checkpoint = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return HFLM(checkpoint, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=4, logits_cache=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_harness_is_answered_as_by_its_own_model(file, tasks, theirs, backend):
    ours = ln.tasks.HarnessModel(ln.load_model(file, backend=backend))
    for kind, names in NAMES.items():
        assert_equal_answers(ours, theirs, tasks, names, LIMIT[kind])
