"""XNLI: its items, both protocols on a model of known accuracy, references."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

import langneurons as ln
from langneurons.errors import LanguageError, TaskError
from langneurons.tasks.heads import ClassificationHead
from langneurons.tasks.likelihood import LABELS, Template
from langneurons.tasks.task import Task
from langneurons.tasks.xnli import XNLI, cross_validated_accuracy, label_references
from tests.planted.classifier import DAMAGED, LANGUAGES, planted_classifier

SCORES = [f"score_{label}" for label in LABELS]


@pytest.fixture(scope="module")
def planted():
    return planted_classifier()


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def model(request, planted):
    return planted.model(request.param)


@pytest.fixture(params=["likelihood", "head"])
def task(request, planted) -> XNLI:
    return planted.task if request.param == "likelihood" else planted.task.by_head(planted.head)


@pytest.fixture
def real(shared_data) -> Path:
    return shared_data("xnli")


def table(premises: int = 4, language: str = "en") -> pd.DataFrame:
    rows = [(f"{language} premise {i}", f"{language} {i} {label}", label) for i in range(premises) for label in LABELS]
    return pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])


def write_tsv(folder: Path, language: str, items: pd.DataFrame, split: str = "test") -> None:
    lines = ["\t".join(items.columns), *("\t".join(map(str, row)) for row in items.itertuples(index=False))]
    (folder / f"{split}-{language}.tsv").write_text("\n".join(lines) + "\n", "utf-8")


# The model of known accuracy


def test_planted_accuracy_is_found_exactly(planted, model, task):
    for language in LANGUAGES:
        rows = task.measure(model, language)
        assert rows["prediction"].tolist() == planted.predictions[False][language]
        assert rows["accuracy"].sum() == planted.right(language) == 96


def test_planted_damage_is_found_in_its_language_only(planted, model, task):
    with ln.intervene(model, planted.patch):
        for language in LANGUAGES:
            rows = task.measure(model, language)
            assert rows["prediction"].tolist() == planted.predictions[True][language]
            assert (rows["accuracy"].sum() < 96) == (language == DAMAGED)
    assert planted.right(DAMAGED, patched=True) == 70


def test_rows_are_whole(planted, model, task):
    assert isinstance(task, Task)
    rows = task.measure(model, "en")
    columns = ["item", "cluster", "prediction", "gold", "accuracy", *SCORES, "cut"]
    assert list(rows.columns) == columns
    assert rows["item"].tolist() == list(range(120))
    assert rows["cluster"].tolist() == [item // 3 for item in range(120)]
    np.testing.assert_allclose(np.exp(rows[SCORES]).sum(axis=1), 1, atol=1e-9)
    assert [LABELS[index] for index in rows[SCORES].to_numpy().argmax(1)] == rows["prediction"].tolist()
    assert not rows["cut"].any()


def test_rows_do_not_depend_on_the_batch_size(model, task):
    one, many = (task.measure(model, "hi", batch_size=size) for size in (1, 64))
    np.testing.assert_allclose(one[SCORES], many[SCORES], atol=1e-5)
    assert one.drop(columns=SCORES).equals(many.drop(columns=SCORES))


def test_an_item_scores_the_same_among_fewer(model, task):
    whole, part = task.measure(model, "zh"), task.take(7, seed=3).measure(model, "zh")
    assert len(part) == 21
    same = whole.set_index("item").loc[part["item"]]
    np.testing.assert_allclose(same[SCORES], part[SCORES], atol=1e-5)
    assert same["cluster"].tolist() == part["cluster"].tolist()


@pytest.mark.parametrize("calibration", ["content-free", "batch", None])
def test_every_calibration_answers(planted, model, calibration):
    rows = replace(planted.task, calibration=calibration).measure(model, "en")
    assert rows["accuracy"].sum() == planted.right("en")


def test_a_head_may_have_its_labels_in_any_order(planted, model):
    order = [2, 0, 1]
    head = planted.head
    turned = ClassificationHead(head.weight[order], head.bias[order], tuple(head.labels[index] for index in order))
    rows, same = (planted.task.by_head(one).measure(model, "en") for one in (head, turned))
    pd.testing.assert_frame_equal(rows, same)


def test_a_head_fitted_on_one_language_answers_another(planted, model):
    head = ClassificationHead.fit(model, planted.task, ["en"])
    # It learns the cues, which are wrong in a fifth of the items.
    rows = planted.task.by_head(head).measure(model, "zh")
    assert rows["prediction"].tolist() == planted.predictions[False]["zh"]


def test_a_premise_too_long_is_cut_and_never_dropped(planted, model, task):
    long = {name: one.assign(premise="en1 " * 90 + one["premise"]) for name, one in planted.task.items.items()}
    rows = replace(task, items=long).measure(model, "en")
    assert rows["cut"].all()
    assert rows["accuracy"].sum() == planted.right("en")


# Items


def test_tsv_is_read_as_it_stands(tmp_path):
    items = table()
    items.loc[0, "premise"] = 'He said: "NA'
    items.loc[1, "hypothesis"] = "null"
    for language in ("hi", "en"):
        write_tsv(tmp_path, language, items)
    task = XNLI.load(tmp_path)
    assert task.languages == ("en", "hi")
    assert task.items["en"]["premise"][0] == 'He said: "NA'
    assert task.items["hi"]["hypothesis"][1] == "null"


def test_parquet_of_the_hub_schema_is_read(tmp_path):
    items = table()
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=LABELS)})
    for language in ("en", "hi"):
        numbered = items.assign(label=[LABELS.index(label) for label in items["label"]])
        (tmp_path / language).mkdir()
        Dataset.from_pandas(numbered, features=features).to_parquet(tmp_path / language / "test-00000-of-00001.parquet")
    task = XNLI.load(tmp_path, ["hi", "en"])
    assert task.languages == ("hi", "en")
    assert task.items["en"]["label"].tolist() == items["label"].tolist()


def test_plain_numbers_are_labels_in_the_order_of_the_hub(tmp_path):
    items = table().assign(label=[0, 1, 2] * 4)
    pyarrow.parquet.write_table(pa.Table.from_pandas(items), tmp_path / "test-en.parquet")
    write_tsv(tmp_path, "hi", items)
    task = XNLI.load(tmp_path)
    assert task.items["en"]["label"].tolist() == task.items["hi"]["label"].tolist() == list(LABELS) * 4


def test_clusters_are_the_premises_of_the_first_language():
    english, hindi = table(), table(language="hi")
    english.loc[9:11, "premise"] = english["premise"][0]
    hindi["premise"] = "एक"
    task = XNLI.load({"en": english, "hi": hindi})
    expected = [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]
    assert task.items["en"]["cluster"].tolist() == task.items["hi"]["cluster"].tolist() == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda items: items.drop(columns="label"), "Unknown column 'label'"),
        (lambda items: items.rename(columns={"premise": "premises"}), "did you mean 'premises'"),
        (lambda items: items.assign(label="neutrl"), "Row 0 of 'hi': Unknown label 'neutrl': did you mean 'neutral'"),
        (lambda items: items.assign(label=[*items["label"][:-1], -1]), r"Row 11 of 'hi' has no label \(-1\)"),
        (lambda items: items.assign(premise=["", *items["premise"][1:]]), "Row 0 of 'hi' has an empty premise"),
        (lambda items: items.assign(hypothesis=[" ", *items["hypothesis"][1:]]), "has an empty hypothesis"),
        (lambda items: items.assign(id=["x", "x", *range(10)]), "Two items of 'hi' have the id 'x'"),
        (lambda items: items[:0], "'hi' has no item"),
        (lambda items: items[:-3], "'hi' has 9 items and 'en' 12: they are not parallel"),
        (lambda items: items.assign(label=["neutral", *items["label"][1:]]), "Row 0 is 'neutral' in 'hi' and 'ent"),
    ],
)
@pytest.mark.parametrize("from_files", [True, False], ids=["files", "tables"])
def test_malformed_items_are_refused_in_a_sentence(tmp_path, change, said, from_files):
    tables = {"en": table(), "hi": change(table())}
    for language, items in tables.items():
        write_tsv(tmp_path, language, items)
    with pytest.raises(TaskError, match=said):
        XNLI.load(tmp_path if from_files else tables)


def test_a_garbled_file_is_refused(tmp_path):
    (tmp_path / "test-en.tsv").write_bytes(b"premise\thypothesis\tlabel\n\xff\xfe\t\xff\n")
    with pytest.raises(TaskError, match="not a table of tab-separated text in UTF-8"):
        XNLI.load(tmp_path)
    (tmp_path / "test-en.tsv").write_text("premise\thypothesis\tlabel\na\tb\tneutral\tmore\tmore\n" + "a\tb\n")
    with pytest.raises(TaskError):
        XNLI.load(tmp_path)


def test_what_cannot_be_answered_is_refused_before_anything_is_measured(planted, model):
    with pytest.raises(TaskError, match="No template in 'ja'"):
        XNLI.load({"ja": table()})
    assert XNLI.load({"ja": table()}, head=planted.head).languages == ("ja",)
    with pytest.raises(TaskError, match="Unknown calibration 'none'"):
        XNLI.load({"en": table()}, calibration="none")
    with pytest.raises(TaskError, match="labels of XNLI"):
        planted.task.by_head(ClassificationHead(torch.eye(2), torch.zeros(2), ("yes", "no")))
    with pytest.raises(LanguageError, match="did you mean 'en'"):
        XNLI.load({"en": table()}, languages=["enx"])
    for ask in (planted.task.references, lambda name: planted.task.measure(model, name)):
        with pytest.raises(LanguageError, match="Unknown language 'fr'"):
            ask("fr")
    with pytest.raises(TaskError, match="no language"):
        XNLI.load({})


def test_take_draws_the_same_premises_in_every_language():
    task = XNLI.load({"en": table(30), "hi": table(30, "hi")})
    part = task.take(5, seed=1)
    english, hindi = part.items["en"], part.items["hi"]
    assert len(english) == 15
    assert english["item"].tolist() == hindi["item"].tolist() == sorted(english["item"])
    assert english["cluster"].nunique() == 5
    assert part.take(5).fingerprint == part.fingerprint
    assert task.take(5, seed=2).fingerprint != part.fingerprint
    assert len(task.take(99).items["en"]) == 90
    with pytest.raises(TaskError, match="least is 1"):
        task.take(0)


def test_the_fingerprint_tells_what_decides_scores(planted):
    task = planted.task
    others = [
        replace(task, calibration=None),
        replace(task, seed=1),
        replace(task, templates=XNLI.load({"en": table()}).templates),
        task.by_head(planted.head),
        task.by_head(ClassificationHead(planted.head.weight + 1, planted.head.bias, LABELS)),
        replace(task, items={"en": task.items["en"]}),
        replace(task, items={**task.items, "en": task.items["en"].assign(premise="x")}),
    ]
    found = {one.fingerprint for one in [task, *others]}
    assert len(found) == 8
    assert replace(task).fingerprint == task.fingerprint
    assert replace(task.by_head(planted.head), calibration=None).fingerprint == others[3].fingerprint


# References


def test_a_hypothesis_that_gives_its_label_away_is_found():
    items = table(30).assign(hypothesis=[f"{i} {label[0] * 3}" for i in range(30) for label in LABELS])
    found = XNLI.load({"en": items}).references("en")
    assert list(found) == ["chance", "majority", "hypothesis only", "bag of words"]
    assert (found["chance"], found["majority"]) == (1 / 3, 1 / 3)
    assert found["hypothesis only"] > 0.95
    assert found == XNLI.load({"en": items}).references("en")


def test_a_label_told_by_the_premise_alone_is_hidden_from_the_hypothesis():
    draw = np.random.default_rng(0)
    labels = draw.permutation(np.repeat(LABELS, 60))
    rows = [(i, f"{i} {label[0] * 4}", f"word {draw.integers(9)}", label) for i, label in enumerate(labels)]
    found = label_references(pd.DataFrame(rows, columns=["cluster", "premise", "hypothesis", "label"]), LABELS)
    assert found["hypothesis only"] < 0.5
    assert found["bag of words"] > 0.95


def test_no_cluster_is_learned_by_heart():
    # The same text, and label, three times a cluster: found only by a classifier that saw the cluster.
    draw = np.random.default_rng(1)
    labels = draw.permutation(np.repeat(LABELS, 20))
    rows = [(i, "p", f"only{i}here", label) for i, label in enumerate(labels) for _ in range(3)]
    items = pd.DataFrame(rows, columns=["cluster", "premise", "hypothesis", "label"])
    assert label_references(items, LABELS)["hypothesis only"] < 0.6


def test_too_few_premises_give_no_classifier_reference():
    assert list(XNLI.load({"en": table(4)}).references("en")) == ["chance", "majority"]
    gold = np.array(["a"] * 5 + ["b"])
    from scipy.sparse import csr_matrix

    assert cross_validated_accuracy(csr_matrix(np.eye(6)), gold, np.array([0, 1, 2, 3, 4, 4])) == pytest.approx(5 / 6)


# Real items


def test_real_items_are_parallel_premises_of_three(real):
    task = XNLI.load(real, ["en", "hi", "zh"])
    for items in task.items.values():
        assert len(items) == 5010
        assert (items.groupby("cluster")["label"].nunique() == 3).mean() > 0.99
    assert task.items["en"]["cluster"].nunique() == 1670


def test_real_items_are_answered_by_babel(real, babel):
    task = XNLI.load(real, ["en", "hi"], split="dev").take(4)
    head = ClassificationHead.fit(babel, task, ["en"])
    for language in task.languages:
        for one in (task, task.by_head(head)):
            rows = one.measure(babel, language, batch_size=16)
            assert len(rows) == 12
            assert np.isfinite(rows[SCORES]).all(axis=None)


@pytest.mark.parametrize("text", ["{premise!x} {hypothesis} {label}", "{premise:d} {hypothesis} {label}"])
def test_a_template_takes_texts_as_they_are(text):
    with pytest.raises(TaskError, match="Unknown placeholder 'premise"):
        Template(text, {"entailment": "yes", "neutral": "maybe", "contradiction": "no"})


def test_clusters_are_the_premises_of_english_whatever_comes_first():
    rows = [("a", "x", "entailment"), ("b", "y", "neutral"), ("b", "z", "contradiction")]
    table = pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])
    merged = table.assign(premise="one text for both")
    task = XNLI.load({"ur": merged, "en": table})
    assert task.items["ur"]["cluster"].tolist() == [0, 1, 1]
