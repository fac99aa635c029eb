import pandas as pd
import pytest

import langneurons as ln
from langneurons.analysis.texts import THIRDS, LabelledTexts
from langneurons.errors import LanguageError, TaskError

TEXTS = {"en": ["a b", "c d", "e f", "g h"], "hi": ["i j", "k l", "m n", "o p"]}


def table(**columns):
    rows = {"item": [0, 1, 2, 3], "cluster": [0, 0, 1, 1], "text": TEXTS["en"], "label": ["x", "y", "x", "y"]}
    return pd.DataFrame(rows | columns)


@pytest.mark.parametrize(
    ("labels", "clusters", "sentence"),
    [
        (["x", "y", "x"], None, "3 labels for the 4 texts of 'en'"),
        (["x", "y", "x", "y"], [0, 1], "2 clusters for the 4 texts of 'en'"),
        (["x", "x", "x", "y"], None, "'y' has 1 item in one cluster"),
        (["x", "y", "x", "y"], [0, 1, 0, 1], "'x' has 2 items in one cluster"),
        (["x", "x", "x", "x"], None, "at least two labels"),
    ],
)
def test_labels_that_cannot_be_compared_are_refused(labels, clusters, sentence):
    with pytest.raises(TaskError, match=sentence):
        LabelledTexts.parallel(TEXTS, labels, clusters)


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({}, "no text"),
        ({"en": table().drop(columns="label")}, "Unknown column 'label'"),
        ({"en": table(text=["a", " ", "b", "c"])}, "item 1 in 'en' is blank"),
        ({"en": table(label=["x", None, "x", "y"])}, "1 of the 4 texts of 'en' have no label"),
        ({"en": table(item=[0, 1, 1, 3])}, "item 1 stands twice"),
        ({"en": table(), "hi": table(label=["y", "y", "x", "x"])}, "item 0 has several values of 'label': 'x' and 'y'"),
        ({"en": table(), "hi": table(cluster=[1, 0, 1, 1])}, "item 0 has several values of 'cluster'"),
    ],
)
def test_malformed_tables_are_refused_with_what_is_wrong(tables, sentence):
    with pytest.raises(TaskError, match=sentence):
        LabelledTexts(tables)


def test_what_is_no_task_is_refused():
    with pytest.raises(TaskError, match="not off 'xnli'"):
        LabelledTexts.of("xnli")


def test_the_text_of_an_inference_is_the_pair_and_its_cluster_the_premise():
    rows = [(f"It rains {place // 2}.", f"It is wet {place}.", place % 3) for place in range(8)]
    table = pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])
    texts = LabelledTexts.of(ln.XNLI.load({"en": table, "hi": table}))
    assert texts.labels == ("contradiction", "entailment", "neutral")
    assert texts.items["hi"]["text"][3] == ("It rains 1.", "It is wet 3.")
    assert texts.known["cluster"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_answers_third_is_where_its_middle_stands_in_the_first_language():
    context = "aaaa bbbb cccc dddd eeee ffff"
    rows = [(str(place), "c", context, "where?", [word]) for place, word in enumerate(context.split() * 2)]
    english = pd.DataFrame(rows, columns=["item", "cluster", "context", "question", "answers"])
    other = english.assign(context=" ".join(reversed(context.split())))
    twice = [part.assign(item=[f"{at}{i}" for i in part["item"]], context=part["context"] + "." * at)
             for part in (english, other) for at in (0, 1)]  # fmt: skip
    texts = LabelledTexts.of({"en": pd.concat(twice[:2]), "hi": pd.concat(twice[2:])})
    expected = ["beginning", "beginning", "middle", "middle", "end", "end"]
    assert texts.known["label"].tolist()[:6] == expected
    assert set(texts.labels) == set(THIRDS)
    assert texts.known["cluster"].nunique() == 2


def test_whole_clusters_are_drawn_the_same_in_every_language():
    labels, clusters = ["x", "y"] * 20, [item // 4 for item in range(40)]
    texts = LabelledTexts.parallel(
        {one: [f"{one} {item}" for item in range(40)] for one in ("en", "hi")}, labels, clusters
    )
    few = texts.take(10)
    assert len(few.known) == 12
    assert few.known["cluster"].value_counts().tolist() == [4, 4, 4]
    assert few.items["en"]["item"].tolist() == few.items["hi"]["item"].tolist()
    assert texts.take(1000).fingerprint == texts.fingerprint != few.fingerprint


def test_a_language_that_is_not_there_is_named():
    texts = LabelledTexts.parallel(TEXTS, ["x", "y", "x", "y"])
    with pytest.raises(LanguageError, match="Possible: en, hi"):
        texts.select(["en", "ur"])
