"""Prompts as a chat or plain text, with solved examples: against transformers' templates and prompts made by hand."""

import json

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.errors import TaskError
from langneurons.models import view
from langneurons.settings import Prompting
from langneurons.tasks import likelihood
from langneurons.tasks.completing import complete, completions
from langneurons.tasks.likelihood import LABELS, Template, label_scores, order_of
from langneurons.tasks.prompting import Prompts, is_chat, turn_end
from langneurons.tasks.questions import apart
from langneurons.tasks.xnli import XNLI
from langneurons.tasks.xquad import XQuAD
from tests.tasks.test_likelihood import naive_score
from tests.tasks.test_xquad import PROMPT, squad, write
from tests.tiny_models import chat_tokenizer, tiny_model, tiny_tokenizer

WORDS = {"entailment": "w10", "neutral": "w11", "contradiction": "w12"}
TEMPLATE = Template("{premise} w4 {hypothesis} {options} w5 {label}", WORDS)
CHAT = Prompting(chat=True)


def tiny(tokenizer, backend="bridge", ends=2):
    hf_model = tiny_model("llama", max_position_embeddings=512)
    hf_model.generation_config.eos_token_id = ends
    return ln.load_model("llama", hf_model=hf_model, tokenizer=tokenizer, backend=backend)


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def model(request):
    return tiny(chat_tokenizer(), request.param)


@pytest.fixture(scope="module")
def plain():
    return tiny(tiny_tokenizer())


def by_transformers(model, *turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    return model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


# What is read


def test_a_chat_prompt_has_the_tokens_that_transformers_gives_it_and_one_beginning(model):
    for prompting, turns in (
        (CHAT, []),
        (Prompting(chat=True, system="w20 w21"), [("system", "w20 w21")]),
    ):
        ids = Prompts(view(model), prompting).ids("w30 w31 ")
        assert ids == by_transformers(model, *turns, ("user", "w30 w31"))
        assert ids.count(model.tokenizer.bos_token_id) == 1
        assert ids[0] == model.tokenizer.bos_token_id
    shown = Prompts(view(model), CHAT, [("w6 ", "w7"), ("w8", " w9")]).ids("w30")
    turns = [("user", "w6"), ("assistant", "w7"), ("user", "w8"), ("assistant", "w9"), ("user", "w30")]
    assert shown == by_transformers(model, *turns)


def test_auto_is_a_chat_where_turns_end_with_a_stop_token_of_the_model(plain):
    end = chat_tokenizer().convert_tokens_to_ids("<|end|>")
    for ends, chat in ((2, False), ([2, end], True)):
        model_view = view(tiny(chat_tokenizer(), ends=ends))
        assert turn_end(model_view) == end
        assert is_chat(model_view, "auto") == chat
        text = Prompts(model_view, Prompting(chat="auto", system="w20")).text("w30 ")
        assert (text == "w30 ") == (not chat)
        assert is_chat(model_view, True)
        assert not is_chat(model_view, False)
    assert not is_chat(view(plain), "auto")


def test_what_cannot_be_a_chat_is_refused_in_a_sentence(plain, model, monkeypatch):
    with pytest.raises(TaskError, match=r"'llama' has no chat template, so chat=True is not possible: .*\"auto\""):
        completions(plain, ["w30"], {}, chat=True)
    with pytest.raises(TaskError, match="system must be left out unless chat is true or \"auto\", given 'Be brief.'"):
        Prompting(system="Be brief.")
    with pytest.raises(TaskError, match="Unknown chat 'atuo': did you mean 'auto'"):
        Prompting(chat="atuo")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}w4"
    monkeypatch.setattr(view(model).tokenizer, "chat_template", refusing)
    with pytest.raises(TaskError, match="refuses messages of system, user .*No system role.* leave out system="):
        Prompts(view(model), Prompting(chat=True, system="w20")).text("w30")


def test_the_end_of_a_turn_ends_an_answer_though_the_model_does_not_say_so(plain):
    prompt = [1, 30, 31, 32]
    [free] = complete(plain, [prompt], 8, stop=())
    end = next(token for token in free.ids[1:] if token != free.ids[0])
    for backend in ("hooked", "bridge"):
        model = tiny(chat_tokenizer(end), backend)
        assert view(model).end_ids == (2,)
        [completion] = complete(model, [prompt], 8, stop=(), prompting=CHAT)
        assert completion.ids == free.ids[: free.ids.index(end) + 1]
        assert completion.stopped
        assert "<|end|>" not in completion.text
        assert complete(model, [prompt], 8, stop=())[0].ids == free.ids
        [longer] = complete(model, [prompt], 8, stop=(), prompting=CHAT, min_new_tokens=8)
        assert (len(longer.ids), end in longer.ids[:-1]) == (8, False)


def test_completions_are_answers_to_messages(model):
    table = completions(model, ["w30 w31", "w40"], {}, max_new_tokens=4, chat=True, system="w20")
    ids = [by_transformers(model, ("system", "w20"), ("user", text)) for text in table["prompt"]]
    expected = complete(model, ids, 4, stop=(), prompting=CHAT)
    assert table["unpatched"].tolist() == [completion.text for completion in expected]
    assert (
        table["unpatched"].tolist()
        != completions(model, ["w30 w31", "w40"], {}, max_new_tokens=4)["unpatched"].tolist()
    )
    with pytest.raises(TaskError, match="no solved examples of completions: shots must be 0, given 2"):
        completions(model, ["w30"], {}, shots=2)


def test_beginnings_are_the_messages_of_a_chat(model):
    texts = [" ".join(f"w{4 + (7 * i + place) % 90}" for place in range(30)) for i in range(3)]
    task = ln.tasks.Generation({"en": pd.DataFrame({"item": range(3), "cluster": range(3), "text": texts})}, None, 5, 6)
    chat = ln.tasks.Generation(task.documents, None, 5, 6, prompting=CHAT)
    rows = chat.measure(model, "en")
    ids = [by_transformers(model, ("user", prompt)) for prompt in rows["prompt"]]
    assert rows["generated"].tolist() == [one.ids for one in complete(model, ids, 6, stop=(), prompting=CHAT)]
    assert rows["prompt"].tolist() == task.measure(model, "en")["prompt"].tolist()
    assert chat.fingerprint != task.fingerprint
    with pytest.raises(TaskError, match="no solved examples of generation"):
        ln.tasks.Generation(task.documents, prompting=Prompting(shots=1))


# XNLI


EXAMPLES = [
    (("w40 w41", "w42"), ("neutral", "entailment", "contradiction"), "neutral"),
    (("w43", "w44 w45"), LABELS, "contradiction"),
]


def label_tokens(monkeypatch, model, prompting, examples=()):
    """The tokens of the first item's alternatives."""
    items, scores = [], likelihood.alternative_scores

    def noting(model, alternatives, *rest):
        items.extend(alternatives)
        return scores(model, alternatives, *rest)

    monkeypatch.setattr(likelihood, "alternative_scores", noting)
    scored, _ = label_scores(model, [("w30 w31", "w32")], [LABELS], [TEMPLATE], None, 8, prompting, examples)
    return items[0], scored[0]


def test_labels_are_scored_behind_examples_in_plain_text_as_written_by_hand(monkeypatch, model):
    items, scores = label_tokens(monkeypatch, model, Prompting(shots=2), EXAMPLES)
    text = (
        "w40 w41 w4 w42 w11 / w10 / w12 w5 w11\n\nw43 w4 w44 w45 w10 / w11 / w12 w5 w12\n\n"
        "w30 w31 w4 w32 w10 / w11 / w12 w5 "
    )
    before = [1, *model.tokenizer(text, add_special_tokens=False).input_ids]
    assert items == tuple((*before, label) for label in (10, 11, 12))
    naive = np.array([naive_score(model, tokens, len(tokens) - 1) for tokens in items])
    np.testing.assert_allclose(scores, naive - np.log(np.exp(naive).sum()), atol=2e-4)


def test_labels_are_scored_as_answers_of_a_chat_as_written_by_hand(monkeypatch, model):
    prompting = Prompting(chat=True, system="w20", shots=2)
    items, scores = label_tokens(monkeypatch, model, prompting, EXAMPLES)
    before = by_transformers(
        model,
        ("system", "w20"),
        ("user", "w40 w41 w4 w42 w11 / w10 / w12 w5"),
        ("assistant", "w11"),
        ("user", "w43 w4 w44 w45 w10 / w11 / w12 w5"),
        ("assistant", "w12"),
        ("user", "w30 w31 w4 w32 w10 / w11 / w12 w5"),
    )
    assert items == tuple((*before, label) for label in (10, 11, 12))
    naive = np.array([naive_score(model, tokens, len(tokens) - 1) for tokens in items])
    np.testing.assert_allclose(scores, naive - np.log(np.exp(naive).sum()), atol=2e-4)


def test_a_long_premise_is_cut_in_a_chat_and_examples_stay_whole(model):
    words = " ".join(f"w{20 + i % 60}" for i in range(700))
    prompting = Prompting(chat=True, shots=2)
    options = {"calibration": None, "prompting": prompting, "examples": EXAMPLES}
    scores, cut = label_scores(model, [(words, "w32")], [LABELS], [TEMPLATE], **options)
    assert cut.tolist() == [True]
    question = Prompts(view(model), prompting, [likelihood._solved(TEMPLATE, *example) for example in EXAMPLES])
    room = 512 - len(question.ids(TEMPLATE.parts("", "w32")[0]))
    kept, whole = label_scores(model, [(" ".join(words.split()[:room]), "w32")], [LABELS], [TEMPLATE], **options)
    assert not whole[0]
    np.testing.assert_allclose(scores, kept, atol=1e-5)


def test_what_precedes_and_follows_a_label_makes_up_the_text():
    template = Template("{{x}} {hypothesis} {label}: {premise} {label}!", {**WORDS, "neutral": "w11 w13"})
    question, answers = template.parts("{label}", "b")
    assert question == "{x} b "
    assert answers[1] == "w11 w13: {label} w11 w13!"
    assert template.filled("{label}", "b") == tuple(question + answer for answer in answers)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_xnli_shows_the_same_balanced_unscored_examples_in_every_language(split):
    task = XNLI.load("babel", ["en", "hi"], split, prompting=Prompting(shots=6, seed=1))
    shown = task.examples
    assert shown["en"]["label"].value_counts().tolist() == [2, 2, 2]
    assert len(shown["en"]) == shown["en"]["premise"].nunique() == 6
    other = XNLI.load("babel", ["en", "hi"], "train" if split == "validation" else "validation").items
    for language in ("en", "hi"):
        rows = other[language].set_index("item").loc[shown["en"]["item"]]
        assert rows["premise"].tolist() == shown[language]["premise"].tolist()
        assert not shown[language]["premise"].isin(task.items[language]["premise"]).any()
    again = XNLI.load("babel", ["en", "hi"], split, prompting=Prompting(shots=6, seed=1))
    assert again.fingerprint == task.fingerprint
    assert task.take(3).examples is shown


def test_examples_of_a_split_that_is_also_scored_are_others(tmp_path):
    rows = [f"premise {i}\thypothesis {i} {label}\t{label}" for i in range(5) for label in LABELS]
    (tmp_path / "en.tsv").write_text("\n".join(["premise\thypothesis\tlabel", *rows]) + "\n")
    task = XNLI.load(tmp_path, ["en"], "test[:60%]", prompting=Prompting(shots=2))
    assert not task.examples["en"]["premise"].isin(task.items["en"]["premise"]).any()
    with pytest.raises(TaskError, match="There are 2 premises to show that are not scored: .* given 3"):
        XNLI.load(tmp_path, ["en"], "test[:60%]", prompting=Prompting(shots=3))
    table = pd.DataFrame([row.split("\t") for row in rows], columns=["premise", "hypothesis", "label"])
    with pytest.raises(TaskError, match="Tables have no other split"):
        XNLI.load({"en": table}, prompting=Prompting(shots=1))
    with pytest.raises(TaskError, match="There are 0 solved examples in 'en' for shots=1"):
        XNLI(task.items, task.templates, prompting=Prompting(shots=1))
    with pytest.raises(TaskError, match="samples nothing: temperature must be 0, given 0.7"):
        XNLI.load({"en": table}, prompting=Prompting(temperature=0.7))


def test_xnli_reads_its_examples_with_the_label_words_of_each_language(monkeypatch, babel):
    task = XNLI.load("babel", ["en", "hi"], prompting=Prompting(shots=2)).take(1)
    texts, tokens = [], Prompts.tokens
    monkeypatch.setattr(Prompts, "tokens", lambda self, given: (texts.append(list(given)), tokens(self, given))[1])
    for language in ("en", "hi"):
        texts.clear()
        task.measure(babel, language)
        template, shown = task.templates[language][0], task.examples[language]
        parts = [
            template.filled(row.premise, row.hypothesis, order_of(0, row.item))[LABELS.index(row.label)]
            for row in shown.itertuples()
        ]
        first = task.items[language].iloc[0]
        parts.append(template.filled(first["premise"], first["hypothesis"], order_of(0, int(first["item"])))[0])
        assert texts[0][0] == "\n\n".join(parts)


# XQuAD


def questions(tmp_path, **options):
    folder = write(tmp_path / "xquad", {language: squad(language) for language in ("en", "hi")})
    prompts = {"en": PROMPT, "hi": PROMPT.replace("w6", "w7")}
    return XQuAD.load(folder, ["en", "hi"], prompts=prompts, max_new_tokens=4, prompting=Prompting(**options))


def test_xquad_shows_examples_about_paragraphs_that_are_not_scored(tmp_path):
    whole, task = questions(tmp_path), questions(tmp_path, shots=4)
    shown = task.examples
    assert shown["en"]["item"].tolist() == shown["hi"]["item"].tolist()
    assert shown["en"]["cluster"].value_counts().tolist() == [2, 1, 1]
    paragraphs = {item.rpartition("-")[0] for item in shown["en"]["item"]}
    assert len(paragraphs) == 4
    scored = [item for item in whole.items["en"]["item"] if item.rpartition("-")[0] not in paragraphs]
    for language in ("en", "hi"):
        assert task.items[language]["item"].tolist() == scored
    assert task.take(3).examples is shown
    with pytest.raises(TaskError, match="There are 15 paragraphs, .* given 15"):
        questions(tmp_path, shots=15)


def test_examples_are_in_every_language_where_languages_have_different_questions():
    """Questions a, d and g are in both languages, and g is about another paragraph in each."""
    places = {
        "en": {"a": "p", "b": "p", "d": "q", "g": "q", "e": "r"},
        "de": {"a": "p", "c": "p", "d": "q", "g": "p", "f": "r"},
    }
    expected = {"a": (["d", "e"], ["d", "f"]), "d": (["a", "b", "e"], ["a", "c", "f"]), "g": (["b", "e"], ["f"])}
    drawn = set()
    items = {
        language: pd.DataFrame(
            {"item": list(about), "cluster": "x", "context": [f"w5 {place}" for place in about.values()]}
        ).assign(question="w6", answers=[["w5"]] * len(about))
        for language, about in places.items()
    }
    for seed in range(12):
        left, examples = apart(items, 1, seed)
        [shown] = examples["en"]["item"]
        assert examples["de"]["item"].tolist() == [shown]
        assert tuple(table["item"].tolist() for table in left.values()) == expected[shown]
        drawn.add(shown)
    assert drawn == set(expected)
    with pytest.raises(TaskError, match="There are 2 paragraphs, .* given 2"):
        apart(items, 2, 0)


def test_xnli_shows_pairs_of_the_official_files(tmp_path):
    header = ("language", "gold_label", "sentence1", "sentence2", "promptID", "pairID")
    for split, count in {"dev": 9, "test": 4}.items():
        rows = [
            (
                language,
                label,
                f"{language} {split} premise {n}",
                f"{language} {label} {n}",
                f"{n}",
                f"{split}{n}{label}",
            )
            for language in ("en", "hi")
            for n in range(count)
            for label in (*LABELS, *(["-"] if n == 0 else []))
        ]
        lines = "\n".join("\t".join(row) for row in (header, *rows))
        (tmp_path / f"xnli.{split}.tsv").write_text(lines + "\n", "utf-8")
    with pytest.warns(match="have the gold label '-'"):
        task = XNLI.load(tmp_path, ["en", "hi"], prompting=Prompting(shots=6))
    shown = task.examples
    assert shown["en"]["item"].tolist() == shown["hi"]["item"].tolist()
    assert shown["en"]["label"].value_counts().tolist() == [2, 2, 2]
    assert shown["hi"]["premise"].str.startswith("hi dev").all()
    assert shown["hi"]["cluster"].is_unique


def test_xquad_prompts_with_examples_are_those_made_by_hand(tmp_path, model):
    for prompting in ({}, {"chat": True, "system": "w20"}):
        task = questions(tmp_path, shots=2, **prompting)
        for language, end in (("en", "w6"), ("hi", "w7")):
            asked = [
                (f"w4 {row.context} w5 {row.question} {end}", row.answers[0])
                for table in (task.examples[language], task.items[language][:1])
                for row in table.itertuples()
            ]
            first = task.items[language].iloc[0]
            ids, cut = task.prompt(view(model), language, first["item"], first["context"], first["question"])
            assert not cut
            if prompting:
                turns = [turn for question, answer in asked for turn in (("user", question), ("assistant", answer))]
                assert ids == by_transformers(model, ("system", "w20"), *turns[:-1])
            else:
                text = "\n\n".join([*(f"{question} {answer}" for question, answer in asked[:-1]), asked[-1][0]])
                assert ids == [1, *model.tokenizer(text, add_special_tokens=False).input_ids]


def test_xquad_is_trained_on_the_prompts_it_is_scored_with(tmp_path, model):
    task = questions(tmp_path, shots=1, chat=True)
    end = model.tokenizer.convert_tokens_to_ids("<|end|>")
    for (prompt, answer), row in zip(task._examples(view(model), "en"), task.items["en"].itertuples(), strict=True):
        assert prompt == task.prompt(view(model), "en", row.item, row.context, row.question)[0]
        assert answer == [model.tokenizer.convert_tokens_to_ids(row.answers[0]), end]


# Evaluation


def test_the_fingerprint_tells_how_a_task_is_asked(tmp_path):
    ways = [
        {},
        {"chat": True},
        {"chat": "auto"},
        {"chat": True, "system": "w20"},
        {"shots": 2},
        {"shots": 2, "seed": 1},
        {"temperature": 0.5},
        {"temperature": 0.5, "seed": 1},
        {"temperature": 0.5, "top_p": 0.9},
    ]
    assert len({questions(tmp_path, **way).fingerprint for way in ways}) == len(ways)
    babel = [XNLI.load("babel", ["en"], prompting=Prompting(**way)) for way in ways[:6]]
    assert len({task.fingerprint for task in babel}) == 6
    for idle in ({"seed": 3}, {"top_p": 0.5}):
        assert questions(tmp_path, **idle).fingerprint == questions(tmp_path).fingerprint


def test_patches_act_on_a_chat_with_examples(tmp_path, model):
    neurons = ln.NeuronSet.of({"en": [(0, i) for i in range(40)]}, shape=(2, 48), site="act")
    task = questions(tmp_path, shots=2, chat=True, temperature=0.8)
    patches = {"off": ln.SetTo(neurons["en"], 0.0)}
    options = {"patches": patches, "resamples": 200, "progress": False}
    evaluation = ln.evaluate(model, task, ["en", "hi"], batch_size=2, **options)
    rows = evaluation.rows.query("metric == 'f1'").set_index(["patch", "language", "item"])["prediction"]
    assert rows.equals(
        ln.evaluate(model, task, ["en", "hi"], batch_size=64, **options)
        .rows.query("metric == 'f1'")
        .set_index(["patch", "language", "item"])["prediction"]
    )
    with ln.intervene(model, patches["off"]):
        assert rows["off"]["hi"].tolist() == task.measure(model, "hi")["prediction"].tolist()
    assert rows["unpatched"]["hi"].tolist() == task.measure(model, "hi")["prediction"].tolist()
    assert rows["off"].tolist() != rows["unpatched"].tolist()


def test_rows_that_another_chat_template_was_measured_with_are_not_used_again(tmp_path):
    model = tiny(chat_tokenizer())
    options = {"out": tmp_path / "out", "progress": False}
    ask = {way: questions(tmp_path, chat=way) for way in (True, False)}
    before = {way: ln.evaluate(model, task, ["en"], **options).rows for way, task in ask.items()}
    view(model).tokenizer.chat_template = view(model).tokenizer.chat_template.replace("<|user|>", "w33")
    view(model).tokenizer.chat_template = "w33 " + view(model).tokenizer.chat_template
    fresh = ask[True].measure(model, "en")["prediction"].tolist()
    assert fresh != before[True].query("metric == 'f1'")["prediction"].tolist()
    options["out"] = tmp_path / "again"
    (tmp_path / "again").mkdir()
    for path in (tmp_path / "out").rglob("*.parquet"):
        target = tmp_path / "again" / path.relative_to(tmp_path / "out")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    rows = ln.evaluate(model, ask[True], ["en"], **options).rows
    assert rows.query("metric == 'f1'")["prediction"].tolist() == fresh


def test_babel_has_no_template_and_is_asked_in_plain_text_by_default(babel):
    plain, auto = (completions(babel, ["Hello"], {}, 4, **way)["unpatched"].tolist() for way in ({}, {"chat": "auto"}))
    assert plain == auto
    assert json.loads(Prompting().model_dump_json())["chat"] is False
    with pytest.raises(TaskError, match="'babel' has no chat template"):
        XNLI.load("babel", ["en"], prompting=CHAT).take(1).measure(babel, "en")
