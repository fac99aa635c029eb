import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, Sequence, Value

import langneurons as ln
from langneurons.errors import LanguageError, TaskError
from langneurons.models import view
from langneurons.tasks import reading, xquad
from langneurons.tasks.answers import exact_match, f1
from langneurons.tasks.completing import Completion, prompt_ids
from langneurons.tasks.task import Task
from langneurons.tasks.xquad import XQuAD, read_prompts
from tests.tiny_models import save_tiny

HUB = Features(
    {
        "id": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": Sequence({"text": Value("string"), "answer_start": Value("int32")}),
    }
)
PROMPT = "w4 {context} w5 {question} w6"


@pytest.fixture(autouse=True, scope="module")
def datasets_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module", params=[("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked")], ids="-".join)
def tiny(request, tmp_path_factory):
    architecture, backend = request.param
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny", architecture)
    return ln.load_model(str(folder), backend=backend)


@pytest.fixture(scope="module")
def real(shared_data):
    return XQuAD.load(shared_data("xquad"))


def words(language: str, *numbers: int, n: int = 12) -> str:
    generator = np.random.default_rng([*language.encode(), *numbers])
    return " ".join(f"w{word}" for word in generator.integers(4, 101, n))


def squad(language: str, articles: int = 3, paragraphs: int = 5, questions: int = 2, titles: bool = True) -> dict:
    """SQuAD 1.1 of one language: the answer to question k is word k of the paragraph."""
    data = []
    for article in range(articles):
        made = []
        for place in range(paragraphs):
            context = words(language, article, place)
            spans = [sum(len(word) + 1 for word in context.split()[:k]) for k in range(questions)]
            qas = [
                {
                    "id": f"{article}-{place}-{k}",
                    "question": words(language, article, place, k, n=4),
                    "answers": [{"text": context.split()[k], "answer_start": spans[k]}],
                }
                for k in range(questions)
            ]
            made.append({"context": context, "qas": qas})
        data.append({"paragraphs": made, **({"title": f"Article_{article}"} if titles else {})})
    return {"data": data, "version": "1.1"}


def write(folder: Path, content: dict[str, dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for language, one in content.items():
        (folder / f"xquad.{language}.json").write_text(json.dumps(one, ensure_ascii=False), "utf-8")
    return folder


def hub_table(content: dict) -> Dataset:
    rows = [
        {
            "id": question["id"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {
                "text": [one["text"] for one in question["answers"]],
                "answer_start": [one["answer_start"] for one in question["answers"]],
            },
        }
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    return Dataset.from_list(rows, features=HUB)


def write_hub(folder: Path, content: dict[str, dict]) -> Path:
    for language, one in content.items():
        file = folder / f"xquad.{language}" / "validation-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        hub_table(one).to_parquet(str(file))
    return folder


def task_of(tmp_path: Path, *languages: str, **options) -> XQuAD:
    folder = write(tmp_path / "xquad", {language: squad(language) for language in languages})
    return XQuAD.load(folder, languages, prompts=dict.fromkeys(languages, PROMPT), **options)


# ---- loading ----


def test_squad_files_give_the_same_items_in_every_language(tmp_path):
    turned = squad("hi")
    turned["data"].reverse()
    task = XQuAD.load(write(tmp_path, {"en": squad("en"), "hi": turned}), ["hi", "en"])
    assert isinstance(task, Task)
    assert task.languages == ("hi", "en")
    assert repr(task) == "XQuAD(hi, en; questions in each: 30, clusters: 3)"
    english, hindi = task.items["en"], task.items["hi"]
    assert english["item"].tolist() == hindi["item"].tolist()
    assert hindi["item"].iloc[0] == "2-0-0"
    assert english["cluster"].tolist() == hindi["cluster"].tolist()
    assert hindi["cluster"].iloc[0] == "Article_2"
    assert all(answers == [context.split()[int(item[-1])]] for item, _, context, _, answers in english.to_numpy())


def test_the_hubs_schema_gives_the_items_of_the_squad_files_with_a_paragraph_as_cluster(tmp_path):
    content = {language: squad(language) for language in ("en", "hi")}
    hub = XQuAD.load(write_hub(tmp_path / "hub", content))
    files = XQuAD.load(write(tmp_path / "files", content))
    for language in ("en", "hi"):
        left, right = hub.items[language], files.items[language]
        pd.testing.assert_frame_equal(left.drop(columns="cluster"), right.drop(columns="cluster"))
    assert hub.items["hi"]["cluster"].tolist() == [f"{item[:-1]}0" for item in hub.items["hi"]["item"]]


def test_a_hub_id_is_read_from_the_hub(monkeypatch):
    asked = []

    def tables(name, wanted, split, revision):
        asked.append((name, wanted, split, revision))
        return {language: hub_table(squad(language)) for language in wanted}

    monkeypatch.setattr(reading, "hub_tables", tables)
    task = XQuAD.load("google/xquad", ["es", "en"], revision="main")
    assert asked == [("google/xquad", ["es", "en"], "validation", "main")]
    assert task.languages == ("es", "en")


def test_all_of_xquad_without_titles_has_its_48_articles_as_clusters(tmp_path):
    content = squad("en", articles=48, questions=1)
    titled = XQuAD.load(write(tmp_path / "files", {"en": content})).items["en"]["cluster"]
    untitled = XQuAD.load(write_hub(tmp_path / "hub", {"en": content})).items["en"]["cluster"]
    assert untitled.nunique() == 48
    assert titled.groupby(untitled).nunique().eq(1).all()
    assert untitled.iloc[7] == "1-0-0"


def without(content: dict, *keys: str) -> dict:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                for key in keys:
                    del question[key]
    return content


def changed(content: dict, **values) -> dict:
    content["data"][1]["paragraphs"][0]["qas"][1].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (without(squad("hi"), "question"), "'hi' in .* lack a column. Unknown column 'question'"),
        (without(squad("hi"), "answers"), "Unknown column 'answers'"),
        (changed(squad("hi"), id="0-0-0"), "'0-0-0' stands twice among those of 'hi'"),
        (
            changed(squad("hi"), answers=[{"text": "w4", "answer_start": 900}]),
            "answer 'w4' of item '1-0-1' in 'hi' is ",
        ),
        (changed(squad("hi"), answers=[{"text": "w4"}]), "not texts, each with answer_start"),
        (changed(squad("hi"), answers=None), "not texts, each with answer_start"),
        (changed(squad("hi"), answers=[]), "1 of 30 questions of 'hi' have no answer, such as '1-0-1'"),
        (changed(squad("hi"), question=" "), "question of item '1-0-1' in 'hi' is blank"),
        (changed(squad("hi"), id="new"), "'en' and 'hi' must have the same items, but 2 .* such as '1-0-1'"),
        ({"data": squad("hi")["data"][:2]}, "but 10 are in one of them only, such as '2-0-0'"),
        ({"data": []}, "'hi' has no item"),
        ({"version": "1.1"}, "not laid out as SQuAD 1.1"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, "not laid out as SQuAD 1.1"),
        ([], "not laid out as SQuAD 1.1"),
    ],
)
def test_malformed_items_are_refused_with_their_place(tmp_path, content, said):
    folder = write(tmp_path, {"en": squad("en"), "hi": content})
    with pytest.raises(TaskError, match=said) as refusal:
        XQuAD.load(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("bytes_of", [lambda whole: whole[: len(whole) // 2], lambda whole: b"\xff\xfe" + whole])
def test_truncated_and_garbled_files_are_named(tmp_path, bytes_of):
    folder = write(tmp_path, {"hi": squad("hi")})
    file = folder / "xquad.hi.json"
    file.write_bytes(bytes_of(file.read_bytes()))
    with pytest.raises(TaskError, match=r"xquad\.hi\.json is not whole JSON"):
        XQuAD.load(folder)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{context}", r"lacks \{question\}"),
        ("{context} {question} {hint}", "Unknown placeholder 'hint'"),
        ("{contxt} {question}", "did you mean 'context'"),
        ("{context!r} {question}", "Unknown placeholder 'context!r'"),
        ("{context:{question}} {question}", "Unknown placeholder"),
        ("{context} {question} {}", "Unknown placeholder ''"),
        ("{context} {question", "malformed"),
    ],
)
def test_prompts_that_cannot_be_filled_in_are_refused(tmp_path, template, said):
    folder = write(tmp_path, {"hi": squad("hi")})
    with pytest.raises(TaskError, match=said):
        XQuAD.load(folder, prompts={"hi": template})


@pytest.mark.parametrize("metric", ["squd", "mlqa "])
def test_an_unknown_metric_is_refused(tmp_path, metric):
    with pytest.raises(TaskError, match="Unknown metric .* Possible: mlqa, squad"):
        task_of(tmp_path, "en", metric=metric)
    with pytest.raises(TaskError, match="Unknown metric"):
        f1("a", ["a"], "en", metric)


def test_a_language_without_prompt_is_refused_and_a_file_can_give_it(tmp_path):
    folder = write(tmp_path / "xquad", {"sw": squad("sw")})
    with pytest.raises(TaskError, match="no prompt for 'sw', only for ar, de"):
        XQuAD.load(folder)
    file = tmp_path / "prompts.toml"
    file.write_text('sw = "{context} {question} Jibu:"', "utf-8")
    assert XQuAD.load(folder, prompts=file).prompts == {"sw": "{context} {question} Jibu:"}
    for content, said in (("sw = 3", "not a text but 3"), ("sw = ", "is no TOML file")):
        file.write_text(content, "utf-8")
        with pytest.raises(TaskError, match=said):
            XQuAD.load(folder, prompts=file)
    with pytest.raises(TaskError, match="Cannot read prompts from"):
        XQuAD.load(folder, prompts=tmp_path / "none.toml")


def test_prompts_come_for_every_language_of_xquad_and_belong_to_it():
    prompts = read_prompts()
    assert list(prompts) == ["ar", "de", "el", "en", "es", "fr", "hi", "ro", "ru", "th", "tr", "ur", "vi", "zh"]
    assert len({prompt.splitlines()[0] for prompt in prompts.values()}) == len(prompts)
    for prompt in prompts.values():
        *_, context, question, answer = prompt.splitlines()
        assert context.endswith("{context}")
        assert question.endswith("{question}")
        assert answer[-1] in ":："
        assert not prompt[0].isspace()


def test_a_number_below_one_is_refused(tmp_path):
    with pytest.raises(TaskError, match="at least 1, given 0"):
        task_of(tmp_path, "en", max_new_tokens=0)
    with pytest.raises(TaskError, match="the least is 1"):
        task_of(tmp_path, "en").take(0)


# ---- taking ----


def test_taken_questions_are_the_same_in_every_language_and_spread_over_articles(tmp_path):
    task = task_of(tmp_path, "en", "hi")
    taken = task.take(7, seed=1)
    items = taken.items["en"]["item"].tolist()
    assert items == taken.items["hi"]["item"].tolist() == task.take(7, seed=1).items["hi"]["item"].tolist()
    assert sorted(taken.items["en"]["cluster"].value_counts()) == [2, 2, 3]
    assert items == [item for item in task.items["en"]["item"] if item in items]  # in their old order
    assert items != task.take(7, seed=2).items["en"]["item"].tolist()
    assert set(task.take(3, seed=1).items["en"]["item"]) < set(items)
    assert len(task.take(1000).items["en"]) == 30


def test_every_question_is_as_likely_to_be_taken(tmp_path):
    task = task_of(tmp_path, "en")
    counts = pd.concat([task.take(9, seed).items["en"]["item"] for seed in range(200)]).value_counts()
    assert len(counts) == 30
    assert counts.between(35, 90).all()  # 60 expected, standard deviation 6.5


def test_the_fingerprint_follows_from_items_prompts_and_length_alone(tmp_path):
    task = task_of(tmp_path, "en", "hi")
    again = task_of(tmp_path, "hi", "en")
    assert task.fingerprint == again.fingerprint
    assert XQuAD(task.items, {**task.prompts, "zh": "other"}).fingerprint == task.fingerprint
    others = [
        task.take(5),
        XQuAD(task.items, {**task.prompts, "hi": PROMPT + "!"}),
        XQuAD(task.items, task.prompts, max_new_tokens=31),
        XQuAD(task.items, task.prompts, metric="squad"),
        XQuAD({"en": task.items["en"]}, task.prompts),
        XQuAD({name: table.assign(question="w9") for name, table in task.items.items()}, task.prompts),
    ]
    assert len({task.fingerprint, *(other.fingerprint for other in others)}) == 7


# ---- measuring ----


def test_the_metric_squad_decides_scores_and_references(monkeypatch, babel):
    golds = [["天气很好"], ["很好。"]]
    rows = [(f"q{n}", "x", "天气很好。很好。", "好吗?", answers) for n, answers in enumerate(golds)]
    items = {"zh": pd.DataFrame(rows, columns=["item", "cluster", "context", "question", "answers"])}
    monkeypatch.setattr(xquad, "complete", lambda *_, **__: [Completion([2], text, True) for text in ("天气", "很好")])
    mlqa, squad = (XQuAD(items, metric=metric) for metric in ("mlqa", "squad"))
    assert mlqa.measure(babel, "zh")[["f1", "exact_match"]].to_numpy().tolist() == [[pytest.approx(2 / 3), 0], [1, 1]]
    assert squad.measure(babel, "zh")[["f1", "exact_match"]].to_numpy().tolist() == [[0, 0], [0, 0]]
    assert mlqa.references("zh") == {"another answer": pytest.approx(2 / 3)}
    assert squad.references("zh") == {"another answer": 0}


def test_answers_are_scored_against_every_gold_and_kept_as_tokens(tmp_path, monkeypatch, babel):
    items = {
        "en": pd.DataFrame(
            {
                "item": ["a", "b", "c"],
                "cluster": ["x", "x", "y"],
                "context": ["The Broncos won in 2016."] * 3,
                "question": ["Who won?", "When?", "What?"],
                "answers": [["The Broncos", "Denver"], ["2016"], ["nothing"]],
            }
        )
    }
    asked = []

    def scripted(model, prompts, max_new_tokens, batch_size, prompting):
        asked.extend([babel.tokenizer.decode(prompt) for prompt in prompts])
        assert (max_new_tokens, batch_size, prompting) == (5, 3, ln.settings.Prompting())
        return [Completion([5, 2], " denver", True), Completion([6], " in 2016", False), Completion([2], "", True)]

    monkeypatch.setattr(xquad, "complete", scripted)
    rows = XQuAD(items, max_new_tokens=5).measure(babel, "en", batch_size=3)
    assert rows.columns.tolist() == (
        ["item", "cluster", "prediction", "gold", "f1", "exact_match", "cut", "generated", "prompt_tokens", "stopped"]
    )
    assert asked[0].removeprefix("<s>") == read_prompts()["en"].format(
        context="The Broncos won in 2016.", question="Who won?"
    )
    assert rows["prediction"].tolist() == ["denver", "in 2016", ""]
    assert rows["gold"].tolist() == ["The Broncos", "2016", "nothing"]
    assert rows["f1"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert rows["exact_match"].tolist() == [1, 0, 0]
    assert rows["generated"].tolist() == [[5, 2], [6], [2]]
    assert rows["stopped"].tolist() == [True, False, True]
    assert not rows["cut"].any()


def test_a_model_is_measured_on_every_item_whatever_the_batch_size(tmp_path, tiny):
    task = task_of(tmp_path, "en", "hi", max_new_tokens=4)
    rows = task.measure(tiny, "hi", batch_size=7)
    table = task.items["hi"]
    pd.testing.assert_frame_equal(rows, task.measure(tiny, "hi", batch_size=1))
    assert rows["item"].tolist() == table["item"].tolist()
    assert rows["cluster"].tolist() == table["cluster"].tolist()
    for row, answers in zip(rows.itertuples(), table["answers"], strict=True):
        assert 1 <= len(row.generated) <= 4
        assert row.prediction == tiny.tokenizer.decode(row.generated, skip_special_tokens=True).strip()
        assert row.f1 == f1(row.prediction, answers, "hi")
        assert row.exact_match == exact_match(row.prediction, answers, "hi")


def test_a_patch_in_force_is_measured(tmp_path, tiny):
    task = task_of(tmp_path, "en", max_new_tokens=4).take(5)
    seen = view(tiny)
    units = [(layer, unit) for layer in range(seen.n_layers) for unit in range(seen.width("act"))]
    everything = ln.NeuronSet.of({"en": units}, (seen.n_layers, seen.width("act")), "act")
    before = task.measure(tiny, "en")["generated"].tolist()
    with ln.intervene(tiny, ln.SetTo(everything, 5.0)):
        assert task.measure(tiny, "en")["generated"].tolist() != before
    assert task.measure(tiny, "en")["generated"].tolist() == before


def test_a_long_paragraph_loses_its_end_and_no_item_is_dropped(tmp_path, tiny):
    short = task_of(tmp_path, "en", max_new_tokens=6)
    long = words("en", n=200)
    items = short.items["en"].assign(context=[long, *short.items["en"]["context"][1:]])
    rows = XQuAD({"en": items}, short.prompts, 6).measure(tiny, "en")
    assert len(rows) == 30
    assert rows["cut"].tolist() == [True] + [False] * 29
    assert rows["prompt_tokens"].iloc[0] == view(tiny).context_length - 6


def test_what_is_left_of_a_paragraph_is_its_longest_beginning_that_fits(babel, monkeypatch):
    context = "नील नदी अफ़्रीका में है। " * 200
    question = {"item": "a", "cluster": "x", "context": context, "question": "नदी कहाँ है?", "answers": ["अफ़्रीका"]}
    task = XQuAD({"hi": pd.DataFrame([question])}, max_new_tokens=10)
    asked: list[list[int]] = []
    monkeypatch.setattr(
        xquad, "complete", lambda model, prompts, *_, **__: asked.extend(prompts) or [Completion([2], "", True)]
    )
    rows = task.measure(babel, "hi")
    assert rows["cut"].all()
    assert rows["prompt_tokens"].iloc[0] == len(asked[0]) <= 1014
    before, after = task.prompts["hi"].format(context="\0", question=question["question"]).split("\0")
    text = babel.tokenizer.decode(asked[0]).removeprefix("<s>")
    kept = text.removeprefix(before).removesuffix(after)
    assert text == before + kept + after
    assert context.startswith(kept)
    longer = before + context[: len(kept) + 1] + after
    assert len(prompt_ids(babel.tokenizer, longer)) > 1014


def test_a_question_that_leaves_no_room_and_a_model_without_tokenizer_are_refused(tmp_path, tiny, monkeypatch):
    task = task_of(tmp_path, "en", max_new_tokens=90)
    with pytest.raises(TaskError, match="'0-0-0' in 'en' takes 8 tokens without its paragraph"):
        task.measure(tiny, "en")
    with pytest.raises(LanguageError, match="did you mean 'en'"):
        task.measure(tiny, "enx")
    monkeypatch.setattr(view(tiny), "tokenizer", None)
    with pytest.raises(TaskError, match="no tokenizer"):
        task.measure(tiny, "en")


# ---- references ----


def test_the_reference_is_the_f1_of_the_other_answers_of_the_paragraph(tmp_path):
    def table(*golds: list[str]) -> pd.DataFrame:
        contexts = ["one"] * 3 + ["two"]
        names = list("abcd")
        return pd.DataFrame(
            {"item": names, "cluster": contexts, "context": contexts, "question": names, "answers": [*golds]}
        )

    task = XQuAD({"en": table(["red car"], ["red", "blue"], ["blue sky"], ["red"])})
    # a: mean(F1(red), F1(blue sky)) = mean(2/3, 0); b: mean(red car 2/3, blue sky 2/3); c: mean(0, F1(red) = 0).
    assert task.references("en") == {"another answer": pytest.approx((1 / 3 + 2 / 3 + 0) / 3)}
    alone = {"en": task.items["en"].iloc[[0, 3]].reset_index(drop=True)}
    assert XQuAD(alone).references("en") == {}
    assert [task.take(1, seed).references("en") for seed in range(40)].count({}) < 40
    assert all(0 <= value <= 1 for seed in range(9) for value in task.take(2, seed).references("en").values())
    with pytest.raises(LanguageError):
        task.references("hi")


# ---- real data ----


def test_real_xquad_is_whole_and_its_articles_are_found_without_titles(real, shared_data, tmp_path):
    assert {len(table) for table in real.items.values()} == {1190}
    assert real.items["en"]["cluster"].nunique() == 48
    folder = shared_data("xquad")
    content = {name: json.loads((folder / f"xquad.{name}.json").read_text("utf-8")) for name in ("zh", "hi")}
    hub = XQuAD.load(write_hub(tmp_path, content))
    assert hub.items["zh"]["cluster"].nunique() == 48
    assert real.items["zh"]["cluster"].groupby(hub.items["zh"]["cluster"]).nunique().eq(1).all()
    for language in real.languages:
        [reference] = real.references(language).values()
        assert 0.01 < reference < 0.1


def test_babel_answers_real_questions_in_two_languages(real, babel):
    task = real.take(4)
    for language in ("es", "zh"):
        rows = task.measure(babel, language)
        assert rows["item"].tolist() == task.items["en"]["item"].tolist()
        assert rows[["f1", "exact_match"]].stack().between(0, 1).all()
        assert not rows["prediction"].str.contains("\n").any()
