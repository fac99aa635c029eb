"""XCOPA, MGSM and XNLI as tasks of the harness over local files, held against the harness' own model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import langneurons as ln
from langneurons.babel import FOLDER

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.models.huggingface import HFLM

from tests.tasks.local_tasks import NAMES, assert_equal_answers, invented, write_tasks

LIMIT = 4  # documents of a task


@pytest.fixture(scope="module", params=["invented", "real"])
def tasks(request, tmp_path_factory, shared_data):
    """A folder of the tasks."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "real":
        return write_tasks(folder, shared_data)
    items = invented(folder)
    return write_tasks(folder, lambda kind: items)


@pytest.fixture(scope="module")
def theirs(babel):
    checkpoint = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return HFLM(checkpoint, tokenizer=babel.tokenizer, batch_size=3, logits_cache=False)


@pytest.mark.parametrize("kind", NAMES)
def test_babel_answers_local_tasks_as_in_transformers(babel, theirs, tasks, kind):
    names = NAMES[kind]
    results = assert_equal_answers(ln.tasks.HarnessModel(babel), theirs, tasks, names, LIMIT)
    task = ln.tasks.harness(names, tasks, limit=LIMIT)
    assert task.languages == tuple(name.rpartition("_")[2] for name in names)
    for name, language in zip(names, task.languages, strict=True):
        rows = task.measure(babel, language)
        for metric in task.metrics:
            reported = results[name][metric if "," in metric else f"{metric},none"]
            assert rows[metric].mean() == pytest.approx(reported, abs=1e-9)


def test_items_are_parallel_and_answers_stand_in_rows(babel, tasks):
    xcopa, mgsm, xnli = (ln.tasks.harness(NAMES[kind], tasks, limit=LIMIT) for kind in ("xcopa", "mgsm", "xnli"))
    for task in (xcopa, mgsm, xnli):
        first, *others = task.items.values()
        assert len(first) == LIMIT
        assert all(table[["item", "cluster"]].equals(first[["item", "cluster"]]) for table in others)
    assert xcopa.references("vi") == {"chance": 0.5}
    assert xnli.items["hi"]["cluster"].tolist() == [0, 0, 0, 1]  # a premise and its three hypotheses
    assert mgsm.metrics == ("exact_match,flexible-extract", "exact_match,remove_whitespace")
    golds = mgsm.measure(babel, "fr")["gold"].tolist()
    assert all(gold.isdigit() for gold in golds)
