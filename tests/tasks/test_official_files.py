"""XNLI, MLQA and XQuAD as they are distributed: invented files in the official layouts, written and read back."""

import bz2
import gzip
import json
import lzma
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

import langneurons as ln
from langneurons.corpora import loading
from langneurons.errors import LangNeuronsWarning, LanguageError, TaskError
from langneurons.models import view
from langneurons.tasks.likelihood import LABELS
from langneurons.tasks.xquad import XQuAD

LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
COLUMNS = (
    *("language", "gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse"),
    *("sentence2_parse", "sentence1", "sentence2", "promptID", "pairID", "genre", "label1", "label2", "label3"),
    *("label4", "label5", "sentence1_tokenized", "sentence2_tokenized", "match"),
)
QUOTED = "He said: \"It's raining"  # a quotation mark that nothing closes
PROMPT = "{context} {question}"
MLQA = {"en": range(12), "de": range(2, 9), "hi": (*range(0, 12, 2), 12)}  # the questions of each language


# ---- XNLI ----


def official_rows(languages: Iterable[str] = LANGUAGES, prompts: int = 4, **changes: str) -> list[dict[str, str]]:
    """Three pairs per prompt in every language; pairs are numbered from 101, and languages follow each other."""
    rows = []
    for language in languages:
        for pair in range(3 * prompts):
            prompt, label = divmod(pair, 3)
            sentences = (f"{language}: {QUOTED} {prompt}.", f'"{language}" {pair}')
            rows.append(
                dict.fromkeys(COLUMNS, "")
                | {"language": language, "gold_label": LABELS[label], "genre": "facetoface", "match": "True"}
                | {"sentence1": sentences[0], "sentence2": sentences[1]}
                | {"promptID": str(prompt + 1), "pairID": str(pair + 101)}
                | {f"label{annotator}": LABELS[label] for annotator in range(1, 6)}
                | {"sentence1_tokenized": sentences[0], "sentence2_tokenized": sentences[1]}
                | changes
            )
    return rows


def write_tsv(path: Path, rows: list[dict[str, str]], columns: Iterable[str] = COLUMNS) -> Path:
    columns = list(columns)
    lines = ["\t".join(columns), *("\t".join(row[column] for column in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    """The official objects have no parses, and the five labels in a list."""
    left = [name for name in COLUMNS if not name.endswith("parse") and name[:-1] != "label"]
    objects = [
        {"annotator_labels": [row[f"label{n}"] for n in range(1, 6)], **{name: row[name] for name in left}}
        for row in rows
    ]
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in objects), "utf-8")
    return path


WRITERS = {"tsv": write_tsv, "jsonl": write_jsonl}


@pytest.fixture(params=list(WRITERS))
def write(request):
    def written(folder: Path, rows: list[dict[str, str]], split: str = "test") -> Path:
        return WRITERS[request.param](folder / f"xnli.{split}.{request.param}", rows)

    return written


@pytest.mark.parametrize("as_file", [False, True], ids=["folder", "file"])
def test_the_official_file_holds_every_language_with_pairs_as_items_and_prompts_as_clusters(tmp_path, write, as_file):
    path = write(tmp_path, official_rows())
    write(tmp_path, official_rows(prompts=2), "dev")
    task = ln.XNLI.load(path if as_file else tmp_path)
    assert task.languages == LANGUAGES
    for language, table in task.items.items():
        assert table["item"].tolist() == [str(pair) for pair in range(101, 113)]
        assert table["cluster"].tolist() == [str(prompt) for prompt in (1, 2, 3, 4) for _ in range(3)]
        assert table["premise"].tolist() == [f"{language}: {QUOTED} {prompt}." for prompt in range(4) for _ in LABELS]
        assert table["hypothesis"].tolist() == [f'"{language}" {pair}' for pair in range(12)]
        assert table["label"].tolist() == list(LABELS) * 4
    assert len(ln.XNLI.load(tmp_path, ["hi"], "dev").items["hi"]) == 6


def test_a_folder_with_both_official_formats_has_its_items_once(tmp_path):
    for make in WRITERS.values():
        make(tmp_path / f"xnli.test.{make.__name__[6:]}", official_rows())
    (tmp_path / "._xnli.test.tsv").write_bytes(b"\x00\x05\x16\x07")  # what unpacking on another system leaves behind
    assert len(ln.XNLI.load(tmp_path, ["en", "zh"]).items["zh"]) == 12


def test_both_formats_give_the_same_task(tmp_path):
    tasks = [ln.XNLI.load(make(tmp_path / f"xnli.test.{kind}", official_rows())) for kind, make in WRITERS.items()]
    assert tasks[0].fingerprint == tasks[1].fingerprint


def test_tabs_and_line_ends_within_sentences_of_jsonl_are_text(tmp_path):
    rows = official_rows(["en", "hi"])
    rows[0]["sentence1"] = "one\ttwo\nthree\u2028four"
    task = ln.XNLI.load(write_jsonl(tmp_path / "xnli.test.jsonl", rows))
    assert task.items["en"]["premise"][0] == "one\ttwo\nthree\u2028four"


def test_pairs_are_put_beside_each_other_by_their_id_not_by_their_row(tmp_path, write):
    english, hindi = official_rows(["en"]), official_rows(["hi"])
    mixed = [row for both in zip(english, reversed(hindi), strict=True) for row in both]
    straight = ln.XNLI.load(write(tmp_path, english + hindi))
    turned = ln.XNLI.load(write(tmp_path, mixed))
    for language in ("en", "hi"):
        pd.testing.assert_frame_equal(turned.items[language], straight.items[language])


def test_pairs_without_a_gold_label_are_left_out_everywhere_with_a_warning(tmp_path, write):
    rows = official_rows(["en", "hi"])
    for row in rows:
        if row["pairID"] == "103" or (row["pairID"], row["language"]) == ("107", "hi"):
            row["gold_label"] = "-"
    path = write(tmp_path, rows)
    with pytest.warns(LangNeuronsWarning, match="^2 of 12 items have the gold label '-'") as warned:
        task = ln.XNLI.load(path)
    assert len(warned) == 1
    for table in task.items.values():
        assert table["item"].tolist() == [str(pair) for pair in range(101, 113) if pair not in (103, 107)]
    with pytest.raises(TaskError, match="No item has a gold label: all 12 are '-'"):
        ln.XNLI.load(write(tmp_path, official_rows(["en"], gold_label="-")))


def test_a_whole_file_warns_of_nothing(tmp_path, write):
    path = write(tmp_path, official_rows())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ln.XNLI.load(path, ["en", "hi"])


def test_take_draws_the_same_prompts_in_every_language(tmp_path, write):
    part = ln.XNLI.load(write(tmp_path, official_rows(prompts=20))).take(5, seed=2)
    [drawn] = {tuple(table["item"]) for table in part.items.values()}
    assert len(drawn) == 15
    assert part.items["th"]["cluster"].nunique() == 5


@pytest.mark.parametrize("code", ["zho_Hans", "zh-CN", "zh", "cmn"])
def test_a_language_is_asked_for_under_any_spelling(tmp_path, write, code):
    task = ln.XNLI.load(write(tmp_path, official_rows()), ["hin_Deva", code])
    assert task.languages == ("hi", "zh")


@pytest.mark.parametrize(("ending", "opened"), [(".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open)])
def test_official_files_may_be_compressed(tmp_path, write, ending, opened):
    path = write(tmp_path, official_rows())
    plain = ln.XNLI.load(path).fingerprint
    compressed = path.with_name(path.name + ending)
    with opened(compressed, "wb") as file:
        file.write(path.read_bytes())
    path.unlink()
    assert ln.XNLI.load(tmp_path).fingerprint == plain
    compressed.write_bytes(compressed.read_bytes()[:-9])
    with pytest.raises(TaskError, match="is not a .* in UTF-8"):
        ln.XNLI.load(tmp_path)


@pytest.mark.parametrize("column", ["sentence1", "sentence2", "promptID", "pairID", "language"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, column):
    path = write_tsv(tmp_path / "xnli.test.tsv", official_rows(), [name for name in COLUMNS if name != column])
    with pytest.raises(TaskError, match=f"xnli.test.tsv .*column '{column}'.*match") as refusal:
        ln.XNLI.load(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("rows", "languages", "error", "said"),
    [
        (official_rows(), ["ja"], LanguageError, "Unknown language 'ja'.*Possible: ar, bg, de"),
        (official_rows(["en", "hi"]), ["en", "ur"], LanguageError, "Unknown language 'ur'.*Possible: en, hi"),
        (official_rows(gold_label="neutrl"), ["hi"], TaskError, "Row 0 of 'hi': Unknown label 'neutrl': did you mean"),
        (official_rows(pairID="7"), ["hi"], TaskError, "Two items of 'hi' have the pairID '7'"),
        (official_rows()[:-1], ["en", "zh"], TaskError, "'zh' has 11 items and 'en' 12: they are not parallel"),
        (
            official_rows(["en"]) + [row | {"pairID": f"9{row['pairID']}"} for row in official_rows(["hi"])],
            None,
            TaskError,
            "'hi' has 12 items that 'en' has not, such as '9101'",
        ),
        ([], None, TaskError, "no item|no column"),
    ],
)
def test_what_is_wrong_with_official_files_is_one_sentence(tmp_path, write, rows, languages, error, said):
    path = write(tmp_path, rows)
    with pytest.raises(error, match=said) as refusal:
        ln.XNLI.load(path, languages)
    assert "\n" not in str(refusal.value)


def test_a_split_that_is_not_there_is_named(tmp_path, write):
    write(tmp_path, official_rows(), "dev")
    with pytest.raises(TaskError, match=r"no file of the split 'test' in .*, only xnli\.dev\."):
        ln.XNLI.load(tmp_path)


@pytest.mark.parametrize("line", ["{", "[1]", '{"premise": "\\ud800"}'])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    (tmp_path / "xnli.test.jsonl").write_text(line + "\n", "utf-8")
    with pytest.raises(TaskError, match=r"xnli\.test\.jsonl"):
        ln.XNLI.load(tmp_path)


def test_the_translated_training_files_stand_beside_the_official_ones(tmp_path):
    write_tsv(tmp_path / "xnli.test.tsv", official_rows())
    for language in ("en", "hi"):
        pairs = [("p", f"{language} h {n}", label) for n, label in enumerate((*LABELS[:2], "contradictory"))]
        rows = [dict(zip(("premise", "hypo", "label"), pair, strict=True)) for pair in pairs]
        write_tsv(tmp_path / f"multinli.train.{language}.tsv", rows, ("premise", "hypo", "label"))
    training = ln.XNLI.load(tmp_path, split="train")
    assert training.items["hi"]["label"].tolist() == list(LABELS)
    assert len(ln.XNLI.load(tmp_path, ["hi", "th"]).items["th"]) == 12


def test_a_file_named_by_one_language_gives_its_rows_only(tmp_path):
    write_tsv(tmp_path / "xnli.test.hi.tsv", official_rows())
    task = ln.XNLI.load(tmp_path)
    assert task.languages == ("hi",)
    assert len(task.items["hi"]) == 12


# ---- MLQA ----


def mlqa(context: str, question: str, items: Iterable[int] = range(12), **extra: object) -> dict:
    """Articles of three questions, one paragraph each, with titles in the language of the paragraphs."""
    data: dict[int, list[dict]] = {}
    for item in items:
        answer = f"{context}{item}"
        asked = {"question": f"{question} asks {item}", "id": f"id{item}", **extra}
        answers = [{"text": answer, "answer_start": 4}]
        data.setdefault(item // 3, []).append(
            {"context": f"The {answer} is here.", "qas": [asked | {"answers": answers}]}
        )
    articles = [{"title": f"{context} article {n}", "paragraphs": paragraphs} for n, paragraphs in data.items()]
    return {"version": 1.0, "data": articles}


def write_mlqa(folder: Path, questions: Mapping[str, Iterable[int]] = MLQA, split: str = "test") -> Path:
    (folder / split).mkdir(parents=True)
    for context, items in questions.items():
        for question in questions:
            shared = [item for item in items if item in questions[question]]
            name = f"{split}-context-{context}-question-{question}.json"
            (folder / split / name).write_text(json.dumps(mlqa(context, question, shared)), "utf-8")
    return folder


def load(folder: Path, languages: Iterable[str] | None = None, split: str = "test", **options) -> XQuAD:
    return XQuAD.load(folder, languages, split, prompts=dict.fromkeys((*MLQA, "zh-Hans"), PROMPT), **options)


def ids(*items: int) -> list[str]:
    return [f"id{item}" for item in items]


def test_mlqa_has_the_questions_of_each_language_in_the_order_and_clusters_of_the_first(tmp_path):
    task = load(write_mlqa(tmp_path), ["de", "en", "hi"])
    assert task.name == "mlqa"
    assert repr(task) == "XQuAD(questions: de 7, en 12, hi 7; clusters: 5)"
    assert task.items["de"]["item"].tolist() == ids(*range(2, 9))
    assert task.items["en"]["item"].tolist() == ids(*range(2, 9), 0, 1, 9, 10, 11)
    assert task.items["hi"]["item"].tolist() == ids(2, 4, 6, 8, 0, 10, 12)
    clusters = {f"id{item}": f"de article {item // 3}" for item in range(9)}
    clusters |= {f"id{item}": "en article 3" for item in (9, 10, 11)} | {"id12": "hi article 4"}
    for table in task.items.values():
        assert table["cluster"].tolist() == [clusters[item] for item in table["item"]]


def test_the_language_is_that_of_the_paragraph_and_the_question_language_can_be_chosen(tmp_path):
    folder = write_mlqa(tmp_path)
    own, crossed = load(folder, ["hi"]), load(folder, ["hi"], question_language="eng_Latn")
    assert own.items["hi"]["question"][0] == "hi asks 0"
    assert crossed.languages == ("hi",)
    assert crossed.items["hi"]["question"].tolist() == [f"en asks {item}" for item in range(0, 12, 2)]
    assert crossed.items["hi"]["answers"][1] == ["hi2"]
    with pytest.raises(LanguageError, match="Unknown question_language 'fr'.*Possible: de, en, hi"):
        load(folder, ["hi"], question_language="fr")
    only = folder / "test" / "test-context-hi-question-en.json"
    assert load(only, question_language="en").fingerprint == crossed.fingerprint
    with pytest.raises(LanguageError, match="Unknown question_language 'hi'.*Possible: en"):
        load(only)


def test_a_question_language_of_other_files_is_refused(tmp_path):
    (tmp_path / "xquad.en.json").write_text(json.dumps(mlqa("en", "en")), "utf-8")
    with pytest.raises(TaskError, match="no files such as test-context-de-question-en.json"):
        load(tmp_path, question_language="en")


def test_each_split_of_mlqa_is_read(tmp_path):
    write_mlqa(write_mlqa(tmp_path), {"en": range(3), "de": range(3)}, "dev")
    assert len(load(tmp_path, ["en"]).items["en"]) == 12
    assert repr(load(tmp_path, ["en", "de"], "dev")) == "XQuAD(en, de; questions in each: 3, clusters: 1)"


def test_take_draws_the_same_questions_wherever_they_are(tmp_path):
    task = load(write_mlqa(tmp_path))
    for seed in range(5):
        part = task.take(6, seed)
        drawn = {item for table in part.items.values() for item in table["item"]}
        assert len(drawn) == 6
        for language, table in part.items.items():
            assert table["item"].tolist() == [item for item in task.items[language]["item"] if item in drawn]
        assert drawn < {item for table in task.take(9, seed).items.values() for item in table["item"]}


def test_a_draw_without_a_language_says_so(tmp_path):
    task = load(write_mlqa(tmp_path, {"en": range(30), "hi": [0]}))
    with pytest.raises(TaskError, match="None of the 1 questions drawn is in 'hi': take more than 1"):
        [task.take(1, seed) for seed in range(20)]


def test_parts_of_a_split_share_no_question_between_languages(tmp_path):
    folder = write_mlqa(tmp_path)
    low, high = (load(folder, ["hi", "de", "en"], part) for part in ("test[:50%]", "test[50%:]"))
    parts = [{item for table in task.items.values() for item in table["item"]} for task in (low, high)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(ids(*range(13)))


def test_unequal_questions_are_refused_where_files_are_not_mlqas_unless_that_is_said(tmp_path):
    for language, items in MLQA.items():
        (tmp_path / f"tydiqa.{language}.dev.json").write_text(json.dumps(mlqa(language, language, items)), "utf-8")
    with pytest.raises(TaskError, match="'de' and 'en' must have the same items, but 5 .*: give parallel=False"):
        load(tmp_path, split="dev")
    assert {len(table) for table in load(tmp_path, split="dev", parallel=False).items.values()} == {7, 12}
    with pytest.raises(TaskError, match="must have the same items"):
        load(write_mlqa(tmp_path / "mlqa"), parallel=True)


def test_items_torn_between_clusters_are_refused():
    row = {"item": "a", "cluster": "x", "context": "c", "question": "q", "answers": ["c"]}
    tables = {"en": pd.DataFrame([row]), "hi": pd.DataFrame([row | {"cluster": "y"}])}
    with pytest.raises(TaskError, match="item 'a' is in different clusters in different languages"):
        XQuAD(tables, parallel=False)


def test_evaluate_pairs_each_language_with_itself(tmp_path, babel):
    task = load(write_mlqa(tmp_path), max_new_tokens=3)
    neurons = ln.NeuronSet.of({"en": [(0, 1), (1, 2)]}, view(babel).shape("post"), "post")
    evaluation = ln.evaluate(babel, task, patches={"zero": ln.SetTo(neurons["en"], 0.0)}, resamples=200, progress=False)
    counts = evaluation.rows.groupby(["patch", "language"])["item"].nunique()
    expected = {language: len(items) for language, items in MLQA.items()}
    assert counts["zero"].to_dict() == counts["unpatched"].to_dict() == expected
    effects = evaluation.effects(metric="f1").rows.set_index("language")
    assert effects["items"].to_dict() == expected
    scores = evaluation.scores.set_index(["metric", "patch", "language"]).sort_index()["items"]
    assert scores["f1", "unpatched"].to_dict() == expected


def test_the_hubs_mlqa_is_read_where_question_and_paragraph_have_one_language(monkeypatch):
    names = [f"mlqa.{context}.{question}" for context in ("ar", "de", "zh") for question in ("ar", "de", "zh")]
    monkeypatch.setattr(loading, "get_dataset_config_names", lambda *_, **__: [*names, "mlqa-translate-train.de"])
    monkeypatch.setattr(loading, "load_dataset", lambda _, config, **__: Dataset.from_dict({"config": [config]}))
    tables = loading.hub_tables("facebook/mlqa", ["de", "zh"], "test", None)
    assert {code: table["config"][0] for code, table in tables.items()} == {"de": "mlqa.de.de", "zh": "mlqa.zh.zh"}


# ---- questions without an answer ----


@pytest.mark.parametrize("as_flag", [True, False])
def test_unanswerable_questions_are_refused_in_a_sentence(tmp_path, as_flag):
    content = mlqa("hi", "hi", is_impossible=False)
    (tmp_path / "xquad.hi.json").write_text(json.dumps(content), "utf-8")
    assert len(load(tmp_path, split="validation").items["hi"]) == 12
    for paragraph in content["data"][1]["paragraphs"]:
        paragraph["qas"][0].update({"is_impossible": True} if as_flag else {"answers": []})
    (tmp_path / "xquad.hi.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(TaskError, match=r"3 of 12 questions of 'hi' have no answer, such as 'id3': .* SQuAD 2\.0"):
        load(tmp_path, split="validation")


# ---- real files ----


def test_the_real_files_have_as_many_items_as_ever(shared_data):
    for split, count in (("dev", 2490), ("test", 5010)):
        task = ln.XNLI.load(shared_data("xnli"), ["hi", "en"], split)
        assert {len(table) for table in task.items.values()} == {count}
        assert task.items["hi"]["cluster"].nunique() == count // 3
    questions = XQuAD.load(shared_data("xquad"))
    assert {len(table) for table in questions.items.values()} == {1190}


def test_real_pairs_in_the_official_layout_are_the_same_items(shared_data, tmp_path, write):
    """Wrapped in the official columns, the real sentences come back as they are."""
    task = ln.XNLI.load(shared_data("xnli"), ["en", "ur", "zh"], "dev")
    blank = dict.fromkeys(COLUMNS, "")
    rows = [
        blank
        | {"language": language, "pairID": str(item + 1), "promptID": str(cluster + 1)}
        | {"sentence1": premise, "sentence2": hypothesis, "gold_label": label}
        for language, table in task.items.items()
        for item, premise, hypothesis, label, cluster in table.to_numpy()
    ]
    official = ln.XNLI.load(write(tmp_path, rows, "dev"), ["en", "ur", "zh"], "dev")
    for language, table in task.items.items():
        texts = ["premise", "hypothesis", "label"]
        pd.testing.assert_frame_equal(official.items[language][texts], table[texts])
        assert official.items[language]["cluster"].nunique() == table["cluster"].nunique()


def test_real_questions_have_the_same_items_under_flores_codes(shared_data, tmp_path):
    for code, name in (("zho_Hans", "zh"), ("hin_Deva", "hi")):
        content = (shared_data("xquad") / f"xquad.{name}.json").read_bytes()
        with gzip.open(tmp_path / f"xquad.{code}.json.gz", "wb") as file:
            file.write(content)
    task = XQuAD.load(tmp_path)
    assert task.languages == ("hi", "zh-Hans")
    real = XQuAD.load(shared_data("xquad"), ["hi", "zh"])
    pd.testing.assert_frame_equal(task.items["zh-Hans"], real.items["zh"])
    assert task.references("zho_Hans") == real.references("zh")
