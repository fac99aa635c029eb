"""The miniature tasks: true by construction, apart between splits, and not to be had without reading both texts."""

import random
from itertools import combinations, islice

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

import langneurons as ln
from langneurons.babel import LANGUAGES, miniature
from langneurons.babel.grammar import Clause, concepts, sentence
from langneurons.errors import LanguageError, TaskError
from langneurons.tasks.xnli import label_references
from scripts import miniature_text

SPLITS = ("train", "validation", "test")


def follows(premise: tuple[Clause, ...], hypothesis: Clause) -> str:
    """Decide by what the premise says of the person: nobody is at two places, or has two numbers of a thing."""
    verdicts = set()
    for one in premise:
        if one.person != hypothesis.person:
            continue
        for kind in ("place", "activity", "thing"):
            said, asked = getattr(one, kind), getattr(hypothesis, kind)
            miscounted = one.number != hypothesis.number and one.denied == hypothesis.denied
            if said is not None and said == asked and miscounted:
                verdicts.add("contradiction")
            elif said is not None and asked is not None and said == asked:
                verdicts.add("entailment" if one.denied == hypothesis.denied else "contradiction")
            elif said is not None and asked is not None and kind == "place" and not one.denied:
                verdicts.add("entailment" if hypothesis.denied else "contradiction")
    assert len(verdicts) <= 1
    return verdicts.pop() if verdicts else "neutral"


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_what_an_independent_reader_finds(split):
    for one in miniature._inferences(split):
        assert {label: follows(one.premise, said) for label, said in one.hypotheses.items()} == {
            label: label for label in miniature.LABELS
        }


@pytest.mark.parametrize(("kind", "count"), [("person", 3), ("place", 2), ("thing", 2)])
def test_concepts_are_drawn_as_the_standard_library_draws_them(kind, count):
    ours, theirs = random.Random(0), random.Random(0)
    for _ in range(1000):
        assert miniature._drawn_from(ours, concepts(kind), count) == theirs.sample(concepts(kind), count)


def test_splits_share_no_pair_and_no_combination_of_content_words():
    pairs: dict[str, set] = {}
    texts: dict[str, set] = {}
    for split in SPLITS:
        clauses = [said for one in miniature._inferences(split) for said in (*one.premise, *one.hypotheses.values())]
        kinds = ("person", *miniature.KINDS)  # a cook may cook: a name may be of two kinds
        content = [[(kind, name) for kind in kinds if (name := getattr(one, kind))] for one in clauses]
        pairs[split] = {pair for found in content for pair in combinations(found, 2)}
        rows = miniature.mini_xnli(split)["en"]
        texts[split] = {(row["premise"], row["hypothesis"]) for row in rows}
        assert len(texts[split]) == len(rows)
    for one, other in combinations(SPLITS, 2):
        assert not pairs[one] & pairs[other]
        assert not texts[one] & texts[other]


def test_unlabelled_text_is_of_training_combinations_and_of_all_languages():
    lines = list(islice(miniature_text.unlabelled(0), 4000))
    assert {language for language, _, _ in lines} == set(LANGUAGES)
    said = [text for language, text, _ in lines if language == "en"]
    clauses = [
        Clause(person, **{kind: name})
        for kind in miniature.KINDS
        for person in concepts("person")
        for name in concepts(kind)
    ]
    kept = [sentence([one], "en") for one in clauses if not miniature.in_split(one, "train")]
    assert kept
    assert not any(other in text for text in said for other in kept)


def test_only_english_claims_are_answered_and_about_as_often_in_each_way():
    answered = [(language, answer) for language, _, answer in islice(miniature_text.unlabelled(0), 4000) if answer]
    assert {language for language, _ in answered} == {"en"}
    shares = pd.Series([answer for _, answer in answered]).value_counts(normalize=True)
    assert set(shares.index) == {" Yes.", " No.", " Perhaps."}
    assert shares.between(0.25, 0.42).all()


def test_answers_are_what_an_independent_reader_finds():
    draw = random.Random(0)
    said = {"Yes": "entailment", "No": "contradiction", "Perhaps": "neutral"}
    for answer in [*said] * 200:
        about = miniature_text.draw_clause(draw, "train")
        stranger = next(person for person in concepts("person") if person != about.person)
        assert follows((about,), miniature_text.claim_about(draw, about, stranger, answer)) == said[answer]


def test_unlabelled_text_depends_on_its_seed_only():
    assert list(islice(miniature_text.unlabelled(3), 50)) == list(islice(miniature_text.unlabelled(3), 50))
    assert list(islice(miniature_text.unlabelled(3), 50)) != list(islice(miniature_text.unlabelled(4), 50))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_bag_of_words_learned_in_training_does_not_tell_the_label(language):
    train, test = (pd.DataFrame(miniature.mini_xnli(split)[language]) for split in ("train", "test"))
    bag = CountVectorizer(analyzer=list if language == "zh" else str.split)
    bag.fit([*train["premise"], *train["hypothesis"]])

    def both(rows: pd.DataFrame) -> csr_matrix:
        return csr_matrix(hstack([bag.transform(rows["premise"]), bag.transform(rows["hypothesis"])]))

    fitted = LogisticRegression(max_iter=500).fit(both(train), train["label"])
    assert fitted.score(both(test), test["label"]) <= 0.4


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh", "ur"])
def test_neither_the_hypothesis_alone_nor_a_bag_of_characters_tells_the_label(language):
    test = pd.DataFrame(miniature.mini_xnli("test")[language])
    found = label_references(test.assign(cluster=np.arange(len(test)) // 3), miniature.LABELS)
    assert found["majority"] == pytest.approx(1 / 3)
    assert found["hypothesis only"] <= 0.4
    assert found["bag of words"] <= 0.4


def test_the_reader_that_knows_the_words_tells_every_label():
    # The baselines are low because the task needs both texts, not because labels are noise.
    rows = [(one, label) for one in miniature._inferences("test") for label in one.hypotheses]
    assert all(follows(one.premise, one.hypotheses[label]) == label for one, label in rows)


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_stand_in_their_context_once_asked_for(language):
    for row in miniature.mini_xquad("test")[language]:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
        assert row["question"][-1] in "?？؟"


def test_the_answer_is_in_the_sentence_that_the_question_is_about():
    for row in miniature.mini_xquad("test")["en"]:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        told = row["context"]
        about = told[told.rfind(".", 0, start) + 1 : told.index(".", start)].lower()
        named = row["question"].lower().strip("?").replace("how many ", "").replace("where is ", "")
        asked = named.replace("who is ", "").replace(" does", "").replace(" have", "")
        words = [word for word in asked.split() if word not in ("the", "at", "in", "on", "by")]
        assert text.lower() in about
        assert all(word in about for word in words), (about, asked)


def test_miniature_tasks_load_like_any_other():
    task = ln.XNLI.load("babel", ["hi", "en"], split="test")
    assert task.name == "mini_xnli"
    assert task.languages == ("hi", "en")
    assert list(task.items["hi"]["label"]) == list(task.items["en"]["label"])
    questions = ln.XQuAD.load("babel", split="validation")
    assert questions.name == "mini_xquad"
    assert set(questions.languages) == set(LANGUAGES)
    assert questions.items["en"]["cluster"].nunique() == miniature.PARAGRAPHS["validation"]


def test_miniature_tasks_written_as_parquet_are_the_same_task(tmp_path):
    for language, rows in miniature.mini_xnli("test").items():
        pd.DataFrame(rows).to_parquet(tmp_path / f"{language}-test.parquet")
    assert ln.XNLI.load(tmp_path, ["en", "ur"]).fingerprint == ln.XNLI.load("babel", ["en", "ur"]).fingerprint
    assert list(miniature.mini_xquad("test")["en"][0]) == ["id", "context", "question", "answers"]


def test_unknown_splits_and_languages_are_refused_with_what_there_is():
    with pytest.raises(TaskError, match=r"Unknown split 'dev2'.*train, validation, test"):
        ln.XNLI.load("babel", split="dev2")
    with pytest.raises(LanguageError, match="Unknown language 'xx'"):
        ln.XQuAD.load("babel", ["xx"])
