"""The task of going on from beginnings, in their own language or forced into another one."""

import pytest
import torch

import langneurons as ln
from langneurons.errors import LanguageError, TaskError
from langneurons.models import view
from langneurons.tasks.completing import complete, prompt_ids
from langneurons.tasks.generation import Generation
from langneurons.tasks.task import Task


@pytest.fixture(scope="module")
def corpus():
    return ln.load_corpus("babel", ["en", "hi", "zh"])


@pytest.fixture(scope="module")
def task(corpus):
    return Generation.of(corpus, prompt_tokens=6, max_new_tokens=8, source="en", documents=6)


def test_it_is_a_task(task, corpus):
    assert isinstance(task, Task)
    assert (task.name, task.protocol, task.metrics, task.generates) == (
        "language forcing",
        "generation",
        ("in_language",),
        True,
    )
    assert Generation.of(corpus).name == "generation"
    assert task.languages == ("en", "hi", "zh")


def test_with_a_source_prompts_and_items_are_the_same_in_every_language(babel, task):
    rows = {language: task.measure(babel, language, 4) for language in ("en", "hi")}
    same = ["item", "cluster", "prompt", "prediction", "identified", "unknown"]
    assert rows["en"][same].equals(rows["hi"][same])
    assert rows["en"]["gold"].unique().tolist() == ["en"]
    for language, table in rows.items():
        assert (table["in_language"] == (table["identified"] == language)).all()
        assert table["item"].is_unique
    assert rows["hi"]["in_language"].sum() == 0


def test_without_one_each_language_goes_on_from_its_own_documents(babel, corpus):
    own = Generation.of(corpus, prompt_tokens=6, max_new_tokens=12, documents=5)
    for language in ("hi", "zh"):
        rows = own.measure(babel, language)
        for item, prompt in zip(rows["item"], rows["prompt"], strict=True):
            assert corpus.text(language, item).startswith(prompt)
            assert 0 < len(prompt) < len(corpus.text(language, item))
        assert set(rows["identified"]) <= {language, "unknown"}


def test_a_prediction_is_the_completion_of_the_prompt_whatever_the_batch(babel, task):
    rows = task.measure(babel, "en", 4)
    prompts = [prompt_ids(babel.tokenizer, prompt) for prompt in rows["prompt"]]
    assert [len(prompt) <= 7 for prompt in prompts]
    assert [one.text for one in complete(babel, prompts, 8, stop=())] == rows["prediction"].tolist()
    assert task.measure(babel, "en", 1).equals(rows)


def test_a_language_that_steering_forces_is_found(babel, corpus, task):
    seen, sums = view(babel), {}
    for language in ("en", "hi"):
        sums[language] = found = torch.zeros(seen.n_layers, seen.width("resid_post"))
        with (
            torch.no_grad(),
            seen.reading({"resid_post": lambda layer, values, found=found: found[layer].add_(values[0, 1:].mean(0))}),
        ):
            for text in corpus[language][:40]:
                seen.forward(torch.tensor([prompt_ids(babel.tokenizer, text)]))
    units = [(layer, unit) for layer in range(seen.n_layers) for unit in range(sums["hi"].shape[1])]
    residual = ln.NeuronSet.of({"hi": units}, tuple(sums["hi"].shape), "resid_post")
    steer = ln.Add(
        residual, (sums["hi"] - sums["en"]) / 40, site="resid_post", layers=range(seen.n_layers // 2, seen.n_layers)
    )
    with ln.intervene(babel, steer):
        assert task.measure(babel, "hi")["in_language"].mean() > 0.8
        assert task.measure(babel, "en")["in_language"].mean() < 0.2


def test_a_prompt_ends_with_a_whole_character(babel, corpus):
    for tokens in (3, 5, 8):
        rows = Generation.of(corpus, prompt_tokens=tokens, max_new_tokens=1, documents=20).measure(babel, "hi")
        assert not rows["prompt"].str.contains("\ufffd").any()


def test_references_are_how_well_own_text_is_identified(corpus, task):
    assert task.references("en")["own text"] > 0.6  # eight tokens of a short document
    forced = task.references("zh")
    assert list(forced) == ["own text", "en text"]
    assert forced["own text"] > 0.6
    assert forced["en text"] == 0.0
    assert list(Generation.of(corpus).references("en")) == ["own text"]


def test_the_fingerprint_covers_everything_that_decides_the_rows(corpus):
    base = {"prompt_tokens": 4, "max_new_tokens": 4, "documents": 4}
    others = [{"prompt_tokens": 5}, {"max_new_tokens": 5}, {"documents": 5}, {"source": "en"}, {"seed": 1}]
    prints = [Generation.of(corpus, **{**base, **other}).fingerprint for other in ({}, *others)]
    assert len(set(prints)) == len(prints)
    assert Generation.of(corpus, **base).fingerprint == prints[0]


def test_what_cannot_be_a_task_is_refused(babel, corpus, task):
    with pytest.raises(TaskError, match="at least 1, given 0, 32 and 100"):
        Generation.of(corpus, prompt_tokens=0)
    with pytest.raises(LanguageError, match="Unknown source 'es'"):
        Generation.of(corpus, source="es")
    with pytest.raises(TaskError, match="'en' has no document of at least 60 bytes"):
        Generation.of(ln.load_corpus({"en": ["Short."]}))
    for ask in (lambda: task.measure(babel, "fr"), lambda: task.references("fr")):
        with pytest.raises(LanguageError, match="Unknown language 'fr'"):
            ask()
