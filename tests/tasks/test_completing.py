"""Completions in order, whatever batch they were in, ending where they should."""

import inspect
import warnings

import pytest
import torch

import langneurons as ln
from langneurons.errors import PatchError, TaskError
from langneurons.models import view
from langneurons.tasks.completing import complete, completions, prompt_ids
from tests.models.conftest import folders, load, tokens  # noqa: F401 (fixtures)

TEXTS = [
    "The children",
    "नमस्ते दुनिया",
    "El presidente de la República dijo ayer que",
    "A",
    "今天天气很好，我们去",
    "Il y a des gens qui pensent que les enfants doivent aller à l'école tous les jours, mais",
]


@pytest.fixture(params=["hooked", "bridge"])
def tiny(request, load):  # noqa: F811
    return load("llama", request.param).view.model


def ids_of(model, texts=TEXTS):
    return [prompt_ids(model.tokenizer, text) for text in texts]


def test_a_prompt_begins_as_corpora_do(babel):
    assert prompt_ids(babel.tokenizer, "Hello")[0] == babel.tokenizer.bos_token_id
    assert babel.tokenizer.bos_token_id not in prompt_ids(babel.tokenizer, "Hello")[1:]


def test_completions_come_in_the_order_given_and_do_not_depend_on_the_batch(babel):
    prompts = ids_of(babel)
    alone = [complete(babel, [prompt], 12, stop=())[0] for prompt in prompts]
    for batch_size in (1, 4, 64):
        assert complete(babel, prompts, 12, stop=(), batch_size=batch_size) == alone
    assert complete(babel, prompts[::-1], 12, stop=()) == alone[::-1]
    assert complete(babel, [], 12) == []


def test_a_completion_is_what_a_loop_of_whole_forwards_writes(babel):
    seen = view(babel)
    for prompt, found in zip(ids_of(babel), complete(babel, ids_of(babel), 6, stop=()), strict=True):
        text = list(prompt)
        with torch.no_grad():
            for _ in found.ids:
                text.append(int(seen.forward(torch.tensor([text]))[0, -1].argmax()))
        assert text[len(prompt) :] == found.ids


def test_a_text_ends_before_its_stop_string_and_before_eos(babel):
    prompts = ids_of(babel)
    free = complete(babel, prompts, 12, stop=())
    eos = babel.tokenizer.eos_token_id
    for one in free:
        assert one.stopped == (one.ids[-1] == eos)
        assert "</s>" not in one.text
        assert eos not in one.ids[:-1]
    stop = free[0].text.strip()[3:5]
    cut = complete(babel, prompts, 12, stop=(stop, "never"))[0]
    assert cut.stopped
    assert cut.text == free[0].text[: free[0].text.index(stop)]
    assert cut.ids == free[0].ids[: len(cut.ids)]
    assert len(cut.ids) < len(free[0].ids)


def test_a_stop_string_counts_only_after_the_first_visible_character(babel):
    prompts = ids_of(babel, ["The children went to"])
    [free] = complete(babel, prompts, 12, stop=())
    assert free.text.startswith(" ")
    [found] = complete(babel, prompts, 12, stop=(" ",))
    assert found.text == " " + free.text.split()[0]


def test_half_a_character_at_the_end_is_no_text(babel):
    for limit in range(1, 12):
        assert not any("\ufffd" in one.text for one in complete(babel, ids_of(babel), limit, stop=()))


def test_a_prompt_may_fill_the_context_and_no_more(tiny):
    prompt = [4 + index % 90 for index in range(91)]
    [found] = complete(tiny, [prompt], 5, stop=())
    assert len(found.ids) <= 5
    with pytest.raises(
        TaskError, match="Prompt 1 has 92 tokens, and with 5 new ones it exceeds the context of 'llama'"
    ):
        complete(tiny, [prompt, [*prompt, 4]], 5)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1, 5], []], {}, "Prompt 1 is empty"),
        ([[1]], {"max_new_tokens": 0}, "at least 1, given 0 and 8"),
        ([[1]], {"batch_size": 0}, "at least 1, given 4 and 0"),
        ([[1]], {"stop": "\n"}, "stop is a sequence of strings"),
        ([[1]], {"stop": ("",)}, "that are not empty"),
    ],
)
def test_what_cannot_be_completed_is_refused(tiny, prompts, options, message):
    with pytest.raises(TaskError, match=message):
        complete(tiny, prompts, **{"max_new_tokens": 4, **options})


def test_a_text_in_place_of_token_ids_is_refused_with_what_makes_them(tiny):
    with pytest.raises(TaskError, match="not the text 'It rains.': prompt_ids"):
        inspect.unwrap(complete)(tiny, ["It rains."], max_new_tokens=4)


def test_dropout_is_off_and_the_model_is_left_as_it_was(tiny):
    tiny.train()
    complete(tiny, [[1, 5]], 2)
    assert tiny.training
    tiny.eval()


def neurons_of(model):
    seen = view(model)
    return ln.NeuronSet.of({"hi": [(0, 0), (1, 3)]}, (seen.n_layers, seen.width("act")), "act")


def test_completions_side_by_side_are_those_under_each_patch(babel):
    patch = ln.SetTo(neurons_of(babel), 50.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = completions(babel, TEXTS[:3], {"one": patch, "two": [patch, ln.Scale(neurons_of(babel), 0.5)]}, 6)
        assert table.columns.tolist() == ["prompt", "unpatched", "one", "two"]
        assert table["prompt"].tolist() == TEXTS[:3]
        prompts = ids_of(babel)[:3]
        assert table["unpatched"].tolist() == [one.text for one in complete(babel, prompts, 6, stop=())]
        with ln.intervene(babel, patch):
            assert table["one"].tolist() == [one.text for one in complete(babel, prompts, 6, stop=())]


def test_a_table_in_a_notebook_shows_tags_as_text(babel):
    table = completions(babel, ["<script>alert(1)</script>"], {}, 2)
    assert "<script>" not in table._repr_html_()


def test_a_patch_that_does_not_fit_is_refused_before_anything_runs(babel):
    other = ln.NeuronSet.of({"hi": [(0, 0)]}, (2, 48), "act")
    with pytest.raises(PatchError):
        completions(babel, ["Hello"], {"one": ln.SetTo(other, 0.0)})
    for name in ("prompt", "unpatched"):
        with pytest.raises(TaskError, match=f"cannot be called '{name}'"):
            completions(babel, ["Hello"], {name: ln.SetTo(neurons_of(babel), 0.0)})
