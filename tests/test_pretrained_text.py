"""The pretrained studies are made ready, or say what they lack."""

import json

import pytest

import langneurons as ln
from scripts.fetch_text import FetchError
from scripts.pretrained import WIKIPEDIA, prepare, source_of, text_of


def test_a_folder_that_does_not_exist_is_refused_and_not_made(tmp_path):
    with pytest.raises(FetchError, match="There is no folder"):
        prepare(tmp_path / "dta", tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_prompts_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(FetchError, match="language-confusion are needed: put them in"):
        source_of("confusion", tmp_path, tmp_path)


def test_text_to_train_on_is_the_folders_or_else_the_hubs(tmp_path):
    assert text_of(WIKIPEDIA, None, tmp_path) == {"source": WIKIPEDIA, "heldout": 0.01}
    assert text_of(WIKIPEDIA, tmp_path, tmp_path) == {"source": WIKIPEDIA, "heldout": 0.01}
    (tmp_path / "text").mkdir()
    assert text_of(WIKIPEDIA, tmp_path, tmp_path) == {"source": str(tmp_path / "text")}


@pytest.fixture
def benchmarks(tmp_path):
    """Two invented items of each benchmark, in the files' own schemas."""
    folder = tmp_path / "data"
    choices = {"premise": "La taza cayó.", "choice1": "Se rompió.", "choice2": "Sonrió.", "question": "effect"}
    lines = {
        "xcopa/test.it.jsonl": [json.dumps({**choices, "label": label, "idx": label}) for label in (0, 1)],
        "mgsm/mgsm_es.tsv": ['Ana tiene «2" lápices. ¿Cuántos?\t2', "Hay 3 y 4. ¿Cuántos?\t7"],
        "xnli/test-fr.tsv": [
            "premise\thypothesis\tlabel",
            'Il "dort.\tIl est éveillé.\tcontradiction',
            "A\tB\tneutral",
        ],
    }
    for name, texts in lines.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("\n".join(texts) + "\n", "utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "language", "prompt", "gold"),
    [
        ("xcopa_it", "it", "La taza cayó quindi", ["se rompió.", "sonrió."]),
        ("mgsm_direct_es", "es", 'Pregunta: Ana tiene «2" lápices. ¿Cuántos?\nRespuesta:', ["2", "7"]),
        ("xnli_fr", "fr", 'Il "dort., correct? Non, Il est éveillé.', None),
    ],
)
def test_a_task_of_the_harness_reads_the_folders_items_with_its_own_prompts(
    benchmarks, tmp_path, name, language, prompt, gold
):
    pytest.importorskip("lm_eval", reason="the extra [harness] is not installed")
    task = ln.tasks.harness(source_of(name, benchmarks, tmp_path / "cache"))
    assert task.languages == (language,)
    assert len(task.items[language]) == 2
    (harness_task,) = task.tasks[language].values()
    documents = list(harness_task.eval_docs)
    text, target = harness_task.doc_to_text(documents[0]), harness_task.doc_to_target(documents[0])
    if name == "xnli_fr":
        assert (harness_task.doc_to_choice(documents[0])[2], int(target)) == (prompt, 2)
    else:
        assert text == prompt
    if name == "mgsm_direct_es":
        assert [str(harness_task.doc_to_target(document)) for document in documents] == gold
        assert harness_task.config.generation_kwargs["max_gen_toks"] == 48
    if name == "xcopa_it":
        assert harness_task.doc_to_choice(documents[0]) == gold
