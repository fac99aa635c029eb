"""The harness' tasks and a model that answers them, held against the harness' own model for transformers."""

import math
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import langneurons as ln
from langneurons.cli import main
from langneurons.errors import LanguageError, TaskError
from tests.tasks.harness_files import ASK, CHOICE, CONFIGURATIONS, GENERATE, generation, questions, write_task
from tests.tiny_models import save_tiny

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tests.tasks.local_tasks import check_samples

ROOT = Path(__file__).parents[2]


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


@pytest.fixture(scope="module", params=["llama-hooked", "llama-bridge", "gpt2-bridge"])
def both(request, manager, tmp_path_factory):
    """A model, and what the harness says of the same checkpoint in transformers, for every configuration."""
    architecture, backend = request.param.split("-")
    folder = save_tiny(tmp_path_factory.mktemp("models") / architecture, architecture)
    checkpoint, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    # Their cache of logits takes the first rows where two requests share tokens but not where the answer begins.
    theirs = HFLM(checkpoint, tokenizer=tokenizer, batch_size=4, logits_cache=False)
    return ln.load_model(str(folder), backend=backend), evaluated(theirs, CONFIGURATIONS, manager)


def evaluated(model, names, manager, **options):
    """What the harness says of a model: per task its samples and its results."""
    return simple_evaluate(model=model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options)


def test_the_harness_scores_our_model_as_its_own(both, manager):
    model, expected = both
    actual = evaluated(ln.tasks.HarnessModel(model, batch_size=3), CONFIGURATIONS, manager)
    for name in CONFIGURATIONS:
        check_samples(actual["samples"][name], expected["samples"][name])
        for metric, value in expected["results"][name].items():
            if isinstance(value, float):
                assert actual["results"][name][metric] == pytest.approx(value, rel=1e-4), (name, metric)


def test_a_task_has_the_scores_that_the_harness_reports(both, folder):
    model, expected = both
    for name in CONFIGURATIONS:
        task = ln.tasks.harness(name, folder, languages="en")
        rows = task.measure(model, "en")
        for metric in task.metrics:
            reported = metric if "," in metric else f"{metric},none"
            if metric.startswith("p"):
                continue
            assert rows[metric].mean() == pytest.approx(expected["results"][name][reported], abs=1e-9), (name, metric)


def test_probabilities_are_inverse_perplexities_of_each_item(both, folder):
    model, expected = both
    samples = expected["samples"]
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


def languages_of(folder, *names: str, **options):
    """The languages of tasks of some names, and their items."""
    for name in names:
        write_task(folder, name, questions(4), **CHOICE, doc_to_text=ASK, doc_to_choice="choices")
    return ln.tasks.harness(list(names), folder, **options)


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("ask_vi", "vi"),
        ("ask_hin_Deva", "hi"),
        ("ask_zho_Hant", "zh-Hant"),
        ("ask_hindi_few_shot_en", "hi"),
        ("ask_full_sw_anatomy", "sw"),
        ("no_ask_fra", "fr"),
    ],
)
def test_the_language_is_in_the_tasks_name(tmp_path, name, language):
    assert languages_of(tmp_path, name).languages == (language,)


def test_a_task_whose_name_says_no_language_needs_it_said(tmp_path):
    with pytest.raises(LanguageError, match="Nothing says which language 'no_language_here' is in: give languages="):
        languages_of(tmp_path, "no_language_here")
    assert languages_of(tmp_path, "no_language_here", languages={"no_language_here": "fra"}).languages == ("fr",)
    task = ln.tasks.Harness.load("no_language_here", ["fr"], include_path=tmp_path)
    assert task.languages == ("fr",)


def test_the_same_documents_are_the_same_items_and_clusters_in_every_language(tmp_path):
    for language, offset in (("en", 0), ("hi", 5), ("vi", 9)):
        write_task(
            tmp_path, f"ask_{language}", questions(6, offset), **CHOICE, doc_to_text=ASK, doc_to_choice="choices"
        )
    task = ln.tasks.harness(["ask_en", "ask_hi", "ask_vi"], tmp_path)
    assert task.languages == ("en", "hi", "vi")
    for table in task.items.values():
        assert table["item"].tolist() == [str(100 + number) for number in range(6)]
        assert table["cluster"].tolist() == [0, 0, 1, 1, 2, 2]  # a passage and its two questions
    some = task.take(2, seed=1)
    assert len({tuple(table["item"]) for table in some.items.values()}) == 1
    assert [len(table) for table in some.items.values()] == [4, 4, 4]
    assert (
        some.fingerprint != task.fingerprint == ln.tasks.harness(["ask_en", "ask_hi", "ask_vi"], tmp_path).fingerprint
    )


def test_a_group_is_its_tasks_and_items_of_two_subjects_stay_apart(tmp_path):
    names = [
        write_task(tmp_path, name, questions(4), **CHOICE, doc_to_text=ASK, doc_to_choice="choices")
        for name in ("exam_hi_history", "exam_hi_physics", "exam_vi_history", "exam_vi_physics")
    ]
    (tmp_path / "exam.yaml").write_text("group: exam\ntask:\n" + "".join(f"  - {name}\n" for name in names))
    task = ln.tasks.harness("exam", tmp_path)
    assert task.languages == ("hi", "vi")
    items = [set(table["item"]) for table in task.items.values()]
    assert (
        items[0]
        == items[1]
        == {f"exam_{subject} {number}" for subject in ("history", "physics") for number in range(100, 104)}
    )


def test_documents_can_be_filtered_limited_and_processed(tmp_path):
    (tmp_path / "kept.py").write_text("def kept(docs):\n    return docs.filter(lambda doc: doc['kept'])\n")
    write_task(tmp_path, "ask_en", questions(8), **CHOICE, doc_to_text=ASK, doc_to_choice="choices")
    file = tmp_path / "ask_en.yaml"
    file.write_text(file.read_text() + "process_docs: !function kept.kept\n")
    items = ln.tasks.harness("ask_en", tmp_path).items["en"]["item"].tolist()
    assert items == ["100", "101", "102", "104", "105", "106"]
    assert ln.tasks.harness("ask_en", tmp_path, limit=2).items["en"]["item"].tolist() == ["100", "101"]


def test_patched_items_are_paired_and_controlled(tmp_path):
    model = ln.load_model(str(save_tiny(tmp_path / "llama", "llama")))
    task = languages_of(tmp_path, "ask_en", "ask_hi")
    neurons = ln.NeuronSet.of({"en": [(0, 3), (1, 5)], "hi": [(0, 7)]}, (2, 48), "act")
    patches = {"strong": lambda language: ln.SetTo(neurons[language], 5.0)}
    evaluation = ln.evaluate(model, task, patches=patches, controls=2, progress=False, resamples=200)
    effects = evaluation.effects().rows
    assert effects["language"].tolist() == ["en", "hi"]
    assert set(evaluation.scores["language"]) == {"en", "hi"}
    assert evaluation.references["value"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_a_generating_task_takes_patches_of_what_is_generated(tmp_path):
    model = ln.load_model(str(save_tiny(tmp_path / "llama", "llama")))
    write_task(tmp_path, "say_en", **GENERATE, doc_to_text=ASK, generation_kwargs=generation("w1"))
    task = ln.tasks.harness("say_en", tmp_path)
    assert (task.generates, task.protocol, task.references("en")) == (True, "generation", {})
    rows = task.measure(model, "en")
    assert rows["prediction"].str.startswith("w").any()
    assert not rows["prediction"].str.contains("w1").any()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("xcopa_vii", r"Unknown task of the harness 'xcopa_vii': did you mean 'xcopa_vi'\?"),
        ("xcopa_vi", r"xcopa_vi cannot be loaded \(.*hub, which has to be reachable once"),
    ],
)
def test_a_task_that_cannot_be_had_is_refused_in_a_sentence(names, message):
    with pytest.raises(TaskError, match=message):
        ln.tasks.harness(names)


def test_a_task_with_nothing_to_pair_and_other_mistakes_are_refused(tmp_path):
    bleu = [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]
    write_task(tmp_path, "say_en", **GENERATE | {"metric_list": bleu}, doc_to_text=ASK, generation_kwargs=generation())
    with pytest.raises(TaskError, match="No metric of 'say_en' is of single items: bleu cannot be used"):
        ln.tasks.harness("say_en", tmp_path)
    with pytest.raises(TaskError, match="limit is at least 1, given 0"):
        ln.tasks.harness("say_en", tmp_path, limit=0)
    with pytest.raises(TaskError, match="There is no folder"):
        ln.tasks.harness("say_en", tmp_path / "nowhere")


def test_samples_and_chats_without_a_template_are_refused(tmp_path):
    model = ln.load_model(str(save_tiny(tmp_path / "llama", "llama")))
    sampled = generation(do_sample=True, temperature=0.7)
    write_task(tmp_path, "say_en", **GENERATE, doc_to_text=ASK, generation_kwargs=sampled)
    with pytest.raises(TaskError, match="Answers are generated greedily; this task samples them"):
        ln.tasks.harness("say_en", tmp_path).measure(model, "en")
    with pytest.raises(TaskError, match="has no chat template"):
        languages_of(tmp_path, "ask_en", chat=True).measure(model, "en")
    plain, auto = (languages_of(tmp_path, "ask_en", chat=chat).measure(model, "en") for chat in (False, "auto"))
    pd.testing.assert_frame_equal(plain, auto)
    with pytest.raises(TaskError, match="temperature=0.5 must be 0"):
        ln.tasks.load_task("harness", "ask_en", prompting=ln.settings.Prompting(temperature=0.5))


def test_a_chat_is_what_the_harness_makes_of_the_same_template(tmp_path):
    folder = save_tiny(tmp_path / "llama", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}w70 {{ m.content }} w71 {% endfor %}{% if add_generation_prompt %}w72 {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    model, theirs = ln.load_model(str(folder)), AutoModelForCausalLM.from_pretrained(folder)
    write_task(tmp_path, "ask_en", **CHOICE, doc_to_text=ASK, doc_to_choice="choices", fewshot_split="test")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "w73", "num_fewshot": 2}
    expected = evaluated(HFLM(theirs, tokenizer=tokenizer, logits_cache=False), ["ask_en"], manager, **options)
    task = ln.tasks.harness("ask_en", tmp_path, chat=True, system="w73", fewshot=2)
    assert task.measure(model, "en")["acc"].tolist() == [sample["acc"] for sample in expected["samples"]["ask_en"]]
    [(prompt, _), *_] = expected["samples"]["ask_en"][0]["arguments"]
    assert prompt.startswith("w70 w73 w71 w70")
    assert prompt.endswith("w72 ")


def test_the_command_line_answers_a_task_from_a_file_and_theirs_loads_our_model(tmp_path, capsys, monkeypatch):
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "ask_en", questions(4), **CHOICE, doc_to_text=ASK, doc_to_choice="choices")
    folder = save_tiny(tmp_path / "llama", "llama")
    task = f"harness:{tmp_path}/tasks/ask_en.yaml"
    monkeypatch.setattr(sys, "argv", ["langneurons", "evaluate", str(folder), "--task", task])
    with suppress(SystemExit):
        main()
    assert "ask_en likelihood" in capsys.readouterr().out
    asked = ln.tasks.HarnessModel.create_from_arg_string(f"pretrained={folder}", {"batch_size": 2, "device": "cuda:0"})
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    assert len(evaluated(asked, ["ask_en"], manager)["samples"]["ask_en"]) == 4


def test_a_missing_package_is_one_sentence():
    program = """
import sys
sys.modules["lm_eval"] = None
import langneurons as ln
for wanted in (lambda: ln.tasks.harness("xcopa_vi"), lambda: ln.tasks.HarnessModel):
    try:
        wanted()
    except ln.errors.LangNeuronsError as error:
        print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    sentences = ended.stdout.splitlines()
    assert len(sentences) == 2
    assert all(text.endswith("need the package lm-eval: pip install 'langneurons[harness]'.") for text in sentences)


def test_a_task_is_sent_to_workers_whole(tmp_path):
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    task = languages_of(tmp_path, "ask_en")
    sent = cloudpickle.loads(cloudpickle.dumps(task))
    model = ln.load_model(str(save_tiny(tmp_path / "llama", "llama")))
    pd.testing.assert_frame_equal(sent.measure(model, "en"), task.measure(model, "en"))
