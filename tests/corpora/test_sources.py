"""Whatever people keep texts in becomes the same corpus, and nothing is left out without a word."""

import bz2
import gzip
import json
import lzma
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from langneurons.corpora import load_corpus
from langneurons.corpora.corpus import Corpus
from langneurons.errors import CorpusError, LangNeuronsWarning, LanguageError

TEXTS = ["Eins, zwei.", 'Er sagte: "drei".', "vier\tfünf", "sechs"]
ROWS = [{"text": text, "article": f"a{index // 2}"} for index, text in enumerate(TEXTS)]
PLAIN = load_corpus({"de": TEXTS})
GROUPED = load_corpus({"de": ROWS})


def contents(corpus: Corpus) -> dict[str, list[str]]:
    return {language: list(texts) for language, texts in corpus.items()}


def stream(rows=ROWS):
    yield from rows


IN_MEMORY = {
    "list": TEXTS,
    "generator": (text for text in TEXTS),
    "array": np.array(TEXTS),
    "series": pd.Series(TEXTS),
    "series with gaps": pd.Series([None, *TEXTS, float("nan"), " "]),
    "frame": pd.DataFrame({"text": TEXTS, "n": range(4)}),
    "frame with gaps": pd.DataFrame({"n": range(6), "text": [None, *TEXTS, np.nan]}, index=[5, 5, 5, 1, 2, 3]),
    "data set": Dataset.from_dict({"text": TEXTS}),
    "formatted data set": Dataset.from_dict({"text": TEXTS}).with_format("numpy"),
    "iterable data set": IterableDataset.from_generator(stream, gen_kwargs={"rows": [{"text": t} for t in TEXTS]}),
    "splits": DatasetDict(train=Dataset.from_dict({"text": TEXTS}), test=Dataset.from_dict({"text": ["no"]})),
    "iterable splits": IterableDatasetDict(
        train=IterableDataset.from_generator(stream, gen_kwargs={"rows": [{"text": t} for t in TEXTS]})
    ),
    "columns": {"text": TEXTS, "n": [1, 2]},
    "rows": [{"text": text} for text in TEXTS],
}


@pytest.mark.parametrize("documents", IN_MEMORY.values(), ids=IN_MEMORY)
def test_every_container_of_texts_is_the_same_corpus(documents):
    assert load_corpus({"de": documents}) == PLAIN


@pytest.mark.parametrize(
    "documents",
    [
        pd.DataFrame(ROWS),
        Dataset.from_list(ROWS),
        IterableDataset.from_generator(stream),
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
        iter(ROWS),
    ],
    ids=["frame", "data set", "iterable", "columns", "rows"],
)
def test_every_table_keeps_the_documents_that_texts_stand_in(documents):
    corpus = load_corpus({"de": documents})
    assert corpus == GROUPED
    assert corpus.groups("de").tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "kind", [pd.DataFrame, Dataset.from_pandas, lambda frame: Dataset.from_pandas(frame).to_iterable_dataset()]
)
@pytest.mark.parametrize("column", ["language", "lang"])
def test_one_table_of_several_languages_is_split_by_its_column(kind, column):
    frame = pd.DataFrame({"text": ["a", "ब", "b", "中"], column: ["eng_Latn", "hin_Deva", "eng_Latn", "zh_TW"]})
    corpus = load_corpus(kind(frame))
    assert contents(corpus) == {"en": ["a", "b"], "hi": ["ब"], "zh-Hant": ["中"]}
    assert contents(load_corpus(kind(frame), ["zho_Hant", "en"])) == {"zh-Hant": ["中"], "en": ["a", "b"]}
    assert contents(load_corpus(DatasetDict(train=Dataset.from_pandas(frame)))) == contents(corpus)


def test_a_data_set_per_language_may_be_a_dict_of_data_sets():
    tables = DatasetDict(en=Dataset.from_dict({"text": ["a"]}), hi=Dataset.from_dict({"text": ["ब"]}))
    assert contents(load_corpus(tables)) == {"en": ["a"], "hi": ["ब"]}


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (pd.DataFrame({"text": ["a"]}), "needs a column 'language', beside 'text'; give {'en': table}"),
        (pd.DataFrame({"text": ["a", "b"], "language": ["en", None]}), "1 of 2 rows have no language"),
        (DatasetDict(test=Dataset.from_dict({"text": ["a"]})), "no split 'train', only 'test'"),
        ({"en": DatasetDict(test=Dataset.from_dict({"text": ["a"]}))}, "'en' has no split 'train', only 'test'"),
        ({"en": pd.DataFrame({"body": ["a"]})}, "Unknown column 'text'.* Possible: body.* text_column="),
        ({"en": Dataset.from_dict({"body": ["a"]})}, "Unknown column 'text'.* Possible: body"),
        ({"en": Dataset.from_dict({"text": [1]})}, "is not text"),
        ({"en": pd.DataFrame({"text": [1, 2]})}, "is not text but 1"),
        ({"en": pd.Series([1, 2])}, "Document 0 of 'en' is of type int"),
        ({"en": [{"body": "a"}]}, "Unknown column 'text'"),
        ({"en": {"body": ["a"]}}, "Unknown column 'text'"),
        ({"en": {"text": ["a"], "id": []}}, "differ in length"),
        ({"en": {"text": "a"}}, "not all lists"),
        ({"en": b"bytes"}, "are one text"),
        ({"en": 5}, "no list but of type int"),
        ({"en": ["a", None]}, "Document 1 of 'en' is of type NoneType"),
        ({"en": Path("nowhere.txt")}, "There is no file nowhere.txt"),
    ],
)  # fmt: skip
def test_what_holds_no_texts_is_refused_in_a_sentence(source, sentence):
    with pytest.raises(CorpusError, match=sentence):
        load_corpus(source)


PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
CSV = 'article,text\na0,"Eins, zwei."\na0,"Er sagte: ""drei""."\na1,vier\tfünf\na1,sechs\n'
IN_FILES = {
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "json": json.dumps(ROWS, indent=1),
    "json of an object": json.dumps({"version": 1, "data": ROWS}),
    "json of columns": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "json a line": "".join(json.dumps(row) + "\n" for row in ROWS),
    "csv": CSV,
    "tsv": "article\ttext\n" + "".join(f"{row['article']}\t{row['text']}\n" for row in ROWS if "\t" not in row["text"]),
}


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("kind", IN_FILES)
def test_every_kind_of_file_is_read_plain_and_compressed(kind, ending, tmp_path):
    path = tmp_path / f"de.{kind.split()[0]}{ending}"
    path.write_bytes(PACKED[ending](IN_FILES[kind].encode()))
    expected = GROUPED if kind != "tsv" else load_corpus({"de": [row for row in ROWS if "\t" not in row["text"]]})
    assert contents(load_corpus(tmp_path)) == contents(expected)
    assert load_corpus(tmp_path) == load_corpus(path) == load_corpus({"deu_Latn": path}) == expected


def test_lines_of_a_compressed_text_file_are_texts(tmp_path):
    (tmp_path / "en.txt.gz").write_bytes(gzip.compress("\ufeffa\r\nb\n".encode()))
    assert contents(load_corpus(tmp_path)) == {"en": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("en.txt.gz", gzip.compress(b"text " * 1000, mtime=0)[:-9], "is not a whole compressed file"),
        ("en.txt.gz", b"text", "is not a whole compressed file"),
        ("en.jsonl.xz", lzma.compress(os.urandom(5000))[:-900], "not a whole compressed file|not UTF-8"),
        ("en.csv.bz2", bz2.compress(b"text\na\n")[:-9], "is not a whole compressed file"),
        ("en.csv", b"text,n\na,1\nb\n", "Line 3 of .* has 1 fields, but the first line has 2"),
        ("en.csv", b"text\nHello, world\n", "Line 2 of .* has 2 fields, but the first line has 1"),
        ("en.csv", b'text\n"Hello\n', "is not a whole csv file"),
        ("en.csv", b"Hello\nworld\n", "Unknown column 'text'"),
        ("en.csv", "text\ncaf\xe9\n".encode("latin-1"), "is not UTF-8"),
        ("en.json", b"[1]", "is of type int, not text"),
        ("en.json", b"3", "holds no list of texts but 3"),
        ("en.json", b'["a"', "is not JSON"),
        ("en.json", b"[" * 100_000, "nested too deep|not JSON"),
        ("en.json", b'{"a": [], "b": []}', "Unknown column 'text'"),
    ],
)
def test_a_damaged_file_is_named(name, data, sentence, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=sentence) as refusal:
        load_corpus(tmp_path)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_field_of_a_csv_file_may_be_long(tmp_path):
    (tmp_path / "en.csv").write_text(f"text\n{'a' * 300_000}\n")
    assert len(load_corpus(tmp_path)["en"][0]) == 300_000


def test_scripts_are_kept_apart_whatever_the_files_are_called(tmp_path):
    for name in ("zh-Hans.txt", "zho_Hant.txt", "hi.txt", "zh.txt"):
        (tmp_path / name).write_text(name)
    corpus = load_corpus(tmp_path)
    expected = {"hi": ["hi.txt"], "zh": ["zh.txt"], "zh-Hans": ["zh-Hans.txt"], "zh-Hant": ["zho_Hant.txt"]}
    assert contents(corpus) == expected
    assert list(corpus["zh_CN"]) == ["zh-Hans.txt"]
    assert "cmn_Hant" in corpus
    assert corpus.select(["zh_TW"]).languages == ("zh-Hant",)
    assert load_corpus(tmp_path, ["zho_Hans", "hin"]).languages == ("zh-Hans", "hi")


def test_a_name_that_is_spelled_as_it_was_asked_for_is_meant():
    tables = {"no": ["no"], "nob": ["nob"], "nor": ["nor"], "hi": ["ब"]}
    assert contents(load_corpus(tables, ["no"])) == {"no": ["no"]}
    assert contents(load_corpus(tables, ["nob"])) == {"no": ["nob"]}
    assert contents(load_corpus(tables, ["hin"])) == {"hi": ["ब"]}
    with pytest.raises(LanguageError, match="may be any of 'nob', 'nor'"):
        load_corpus({"nob": ["a"], "nor": ["b"]}, ["no"])
    with pytest.raises(LanguageError, match="'no' and 'nob', which are both 'no'"):
        load_corpus(tables)


def test_folders_and_files_of_every_name_stand_side_by_side(tmp_path):
    for name in ("zh-Hans/a.txt", "hi/b.txt", "pt_BR/c.csv.gz", "en.jsonl.gz", "ur.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        text = {"csv": "text\nc\n", "jsonl": '{"text": "e"}\n'}.get(path.name.split(".")[1], name)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = load_corpus(tmp_path)
    assert corpus.languages == ("en", "hi", "pt-BR", "ur", "zh-Hans")


@pytest.mark.parametrize(
    "name",
    ["english.txt", "notes.csv", "hi.doc", "hi.txt.zst", "wiki/en.txt", "hi/notes.pdf", "ur/empty.doc", "train/en.txt"],
)
def test_what_is_left_out_is_named(name, tmp_path):
    (tmp_path / "hi.txt").write_text("ब")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("text")
    with pytest.warns(LangNeuronsWarning, match="Left out of") as caught:
        corpus = load_corpus(tmp_path)
    assert contents(corpus) == {"hi": ["ब"]}
    assert name.partition("/")[0] in str(caught[0].message)


def test_files_of_languages_that_were_not_asked_for_and_of_other_splits_are_no_surprise(tmp_path):
    for name in ("hi.train.txt", "hi.test.txt", "en.txt", "README.md", "SOURCES.md", ".hidden.txt"):
        (tmp_path / name).write_text("text")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_corpus(tmp_path, ["hi"]).languages == ("hi",)


def test_a_file_rewritten_with_equal_size_and_time_is_read_again(tmp_path):
    path = tmp_path / "en.txt"
    path.write_text("a\nb\n")
    stamp = path.stat().st_mtime_ns
    assert contents(load_corpus(tmp_path)) == {"en": ["a", "b"]}
    path.write_text("a\nc\n")
    os.utime(path, ns=(stamp, stamp))
    assert contents(load_corpus(tmp_path)) == {"en": ["a", "c"]}


def test_a_file_that_is_only_touched_is_not_read_again(tmp_path):
    path = tmp_path / "en.txt"
    path.write_text("a\n")
    cached = load_corpus(tmp_path).tables["en"].cache_files
    os.utime(path, ns=(1, 1))
    assert load_corpus(tmp_path).tables["en"].cache_files == cached


def test_a_language_under_another_code_is_found_and_an_unknown_one_is_not():
    corpus = load_corpus({"zho_Hans": ["中"], "eng_Latn": ["a"]})
    assert corpus.languages == ("en", "zh-Hans")
    assert corpus.text("cmn", 0) == "中"
    with pytest.raises(LanguageError, match="Unknown language 'zh-Hant'"):
        corpus.text("zh-Hant", 0)
