"""Where items are found, and what is said of files that cannot be read."""

import pandas as pd
import pytest

import langneurons as ln
from langneurons.babel.miniature import mini_xnli
from langneurons.errors import LanguageError, TaskError
from langneurons.tasks.reading import read_items

LINE = "It rains.\tIt is wet.\tentailment"
HEADER = "premise\thypothesis\tlabel"


def write(folder, name, *lines, end="\n"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join([HEADER, *lines]).encode())
    return folder


@pytest.mark.parametrize(
    "name",
    ["test-hi.tsv", "xnli.test.hi.tsv", "hi/test.tsv", "hi/xnli-test-00000-of-00001.tsv", "new-hi.test.tsv", "hi.tsv"],
)
def test_language_and_split_are_read_from_the_path(tmp_path, name):
    assert ln.XNLI.load(write(tmp_path, name, LINE)).languages == ("hi",)


def test_a_suffix_is_not_taken_for_a_language(tmp_path):
    write(tmp_path, "notes.tsv", LINE)
    assert ln.XNLI.load(write(tmp_path, "test-hi.tsv", LINE)).languages == ("hi",)


@pytest.mark.parametrize(
    ("names", "languages"),
    [
        (["test-zh-Hans.tsv", "test-zh-Hant.tsv"], ("zh-Hans", "zh-Hant")),
        (["xnli.test.zho_Hans.tsv", "xnli.test.zho_Hant.tsv", "xnli.test.eng_Latn.tsv"], ("en", "zh-Hans", "zh-Hant")),
        (["zh_CN/test.tsv", "zh_TW/test.tsv", "hin/test.tsv"], ("hi", "zh-Hans", "zh-Hant")),
        (["dev-de.tsv", "en-test.tsv"], ("en",)),
    ],
)
def test_scripts_are_kept_apart_and_codes_are_read_however_they_are_spelled(tmp_path, names, languages):
    for name in names:
        write(tmp_path, name, LINE)
    assert ln.XNLI.load(tmp_path, None if len(names) > 2 or "zh" in names[0] else ["en"]).languages == languages
    task = ln.XNLI.load(tmp_path, [languages[-1]])
    assert task.templates[languages[-1]]
    assert len(task.select(languages[-1:]).items[languages[-1]]) == 1


@pytest.mark.parametrize("name", ["val-hi.tsv", "dev-hi.tsv", "validation-hi.tsv", "hi/valid.tsv"])
def test_a_split_has_several_names(tmp_path, name):
    assert len(ln.XNLI.load(write(tmp_path, name, LINE), split="validation").items["hi"]) == 1
    with pytest.raises(TaskError, match="no file of the split 'test'"):
        ln.XNLI.load(tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_as_they_do_on_any_system_and_a_byte_order_mark_is_no_text(tmp_path, end):
    write(tmp_path, "test-hi.tsv", LINE, LINE.replace("wet", 'a "wet\u2028day'), end=end)
    (tmp_path / "test-hi.tsv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "test-hi.tsv").read_bytes())
    items = ln.XNLI.load(tmp_path).items["hi"]
    assert items["hypothesis"].tolist() == ["It is wet.", 'It is a "wet\u2028day.']
    assert items["label"].tolist() == ["entailment"] * 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{HEADER}\n{LINE}\tmore", "Row 1 of .* has 4 fields, its header 3"),
        (f"{HEADER}\nIt rains.\tIt is wet.", "has 2 fields"),
        ("premise\tlabel\na\tentailment", "column 'hypothesis'"),
        (HEADER, "has no item"),
        ("", "column 'premise'"),
    ],
)
def test_a_malformed_table_is_a_sentence(tmp_path, content, said):
    (tmp_path / "test-hi.tsv").write_text(content)
    with pytest.raises(TaskError, match=said):
        ln.XNLI.load(tmp_path)


def test_a_table_that_is_no_utf8_is_a_sentence(tmp_path):
    (tmp_path / "test-hi.tsv").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(TaskError, match="UTF-8"):
        ln.XNLI.load(tmp_path)


def test_a_truncated_parquet_file_is_a_sentence(tmp_path):
    pd.DataFrame({"premise": ["a"]}).to_parquet(tmp_path / "hi.parquet")
    whole = (tmp_path / "hi.parquet").read_bytes()
    (tmp_path / "hi.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TaskError, match="not a whole parquet file"):
        ln.XNLI.load(tmp_path)


@pytest.mark.parametrize(
    ("languages", "split", "error", "said"),
    [
        (["hii"], "test", LanguageError, "did you mean 'hi'"),
        (["hi"], "tset", TaskError, "did you mean 'test'"),
        ([], "test", LanguageError, "at least one language"),
        ("hi", "test", LanguageError, "as a list"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, languages, split, error, said):
    write(tmp_path, "test-hi.tsv", LINE)
    with pytest.raises(error, match=said):
        ln.XNLI.load(tmp_path, languages, split)


def test_a_folder_without_items_says_what_it_should_hold(tmp_path):
    with pytest.raises(TaskError, match="There is no folder"):
        read_items(tmp_path / "nowhere", None, "test", {}, ["premise"], mini_xnli)
    with pytest.raises(TaskError, match="no file .* with a language in its name"):
        read_items(tmp_path, None, "test", {}, ["premise"], mini_xnli)
