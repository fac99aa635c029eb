"""Where a task's items come from: files of a folder, named by language and split, or a hub data set."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow.parquet
from datasets import ClassLabel, Features

from langneurons.babel.miniature import mini_xquad
from langneurons.corpora.languages import canonical, code_in_name, distinct, label_of
from langneurons.corpora.loading import hub_tables, is_hub_id
from langneurons.corpora.purity import labels_of
from langneurons.errors import CorruptArtefactError, TaskError, in_short, unknown
from langneurons.storage.files import path_of
from langneurons.storage.tables import check_expansion

Source = TypeVar("Source")
Read = Callable[[Path], pd.DataFrame]
Miniature = Callable[[str], Mapping[str, list[dict]]]
BABEL = "babel"
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_PART = re.compile(r"([^\[]+)\[(?:(\d{1,2})%)?:(?:(\d{1,2})%)?\]")
_NO_LANGUAGE = {*SPLITS, "of"}  # "00000-of-00001"
_HUB_COLUMNS = ["id", "context", "question", "answers"]


def sliced(split: str) -> tuple[str, tuple[int, int]]:
    """A split's name, and from which to which % of its items it goes.

    Example:
        >>> sliced("train[:25%]"), sliced("test")
        (('train', (0, 25)), ('test', (0, 100)))
    """
    matched = _PART.fullmatch(split)
    return (split, (0, 100)) if matched is None else (matched[1], (int(matched[2] or 0), int(matched[3] or 100)))


def part_of(table: pd.DataFrame, part: tuple[int, int]) -> pd.DataFrame:
    """The rows of a table from one % of them to another."""
    low, high = (len(table) * percent // 100 for percent in part)
    return table.iloc[low:high].reset_index(drop=True)


def table_of(items: Mapping[str, pd.DataFrame], language: str) -> pd.DataFrame:
    """The items of one language.

    Raises:
        LanguageError: If there are none.
    """
    return items[label_of(language, items)]


def read_items(
    source: str | Path,
    languages: Iterable[str] | None,
    split: str,
    readers: Mapping[str, Read],
    columns: Sequence[str],
    miniature: Miniature,
    revision: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Read a task's table of every language.

    Args:
        source: A folder whose files carry language and split in their path, such as ``test-hi.tsv``,
            ``xquad.hi.json`` or ``hi/test-00000-of-00001.parquet`` (a file that names no split belongs to every one);
            the id of a hub data set with one configuration per language; or ``"babel"``.
        languages: Languages to read, in this order; by default all of a folder, sorted.
        split: ``"train"``, ``"validation"`` (also called dev or valid) or ``"test"``.
        readers: Suffix -> function that reads such a file; ``.parquet`` has one.
        columns: Columns that every table must have.
        miniature: Function from a split to the rows of every language that ``"babel"`` stands for.
        revision: Branch, tag or commit of a hub data set.

    Returns:
        Language -> its rows, in file order; class labels by their names.

    Raises:
        TaskError: If there is no such folder, split or column, or a file cannot be read.
        LanguageError: If a language is not there.
        CorpusError: If a hub data set cannot be read.
    """
    wanted = None if languages is None else distinct(languages)
    names = None if wanted is None else list(map(canonical, wanted))
    if isinstance(source, str) and (source == BABEL or is_hub_id(source)):
        if source == BABEL:
            tables = {language: pd.DataFrame(rows) for language, rows in miniature(_split(split)).items()}
        else:
            data_sets = hub_tables(source, wanted, split, revision)
            tables = {
                language: _named_labels(pd.DataFrame(data_set.with_format(None)[:]), data_set.features)
                for language, data_set in data_sets.items()
            }
        tables = _selected(tables, names or list(tables))
    else:
        readers = {".parquet": _parquet, **readers}
        files = _files(path_of(source), names, split, readers)
        tables = {
            language: pd.concat([readers[path.suffix](path) for path in paths], ignore_index=True)
            for language, paths in files.items()
        }
    for language, table in tables.items():
        check_table(language, table, columns, f" in {source}")
    return tables


def _files(folder: Path, names: list[str] | None, split: str, readers: Mapping[str, Read]) -> dict[str, list[Path]]:
    _split(split)
    if not folder.is_dir():
        raise TaskError(f"There is no folder {folder}.")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in readers]
    by_language: dict[str, list[Path]] = {}
    for path in paths:
        if (language := _language_of(path.relative_to(folder))) is not None:
            by_language.setdefault(language, []).append(path)
    if not by_language:
        kinds = ", ".join(readers)
        raise TaskError(f"{folder} has no file ({kinds}) with a language in its name, such as test-hi.tsv.")
    files = _selected(by_language, names or sorted(by_language))
    return {language: _of_split(paths, folder, split) for language, paths in files.items()}


def _split(name: str) -> str:
    if name not in SPLITS:
        raise TaskError(unknown("split", name, dict.fromkeys(SPLITS.values())))
    return SPLITS[name]


def _selected(sources: Mapping[str, Source], names: Sequence[str]) -> dict[str, Source]:
    return {language: sources[language] for language in distinct(names, sorted(sources))}


def _language_of(path: Path) -> str | None:
    names = [part[start.end() :] for part in path.parts for start in re.finditer(r"(?:^|[._-])(?=[a-z])", part)]
    codes = [code for name in names if (code := code_in_name(name)) is not None and code not in _NO_LANGUAGE]
    # In "new-hi.tsv" only hi is the code of a language; a code of no known language counts where there is no other.
    return next(iter([code for code in codes if labels_of(code)] or codes), None)


def _of_split(paths: list[Path], folder: Path, split: str) -> list[Path]:
    words = {path: re.split(r"[^a-z0-9]+", str(path.relative_to(folder)).lower()) for path in paths}
    splits = {path: {SPLITS[word] for word in words[path] if word in SPLITS} for path in paths}
    of_split = [path for path in paths if not splits[path] or SPLITS[split] in splits[path]]
    if not of_split:
        others = ", ".join(str(path.relative_to(folder)) for path in paths[:5])
        raise TaskError(f"There is no file of the split {split!r} in {folder}, only {others}.")
    return of_split


def _parquet(path: Path) -> pd.DataFrame:
    try:
        check_expansion(path)
        table = pyarrow.parquet.read_table(path)
        return _named_labels(table.to_pandas(), Features.from_arrow_schema(table.schema))
    except CorruptArtefactError as error:
        raise TaskError(str(error)) from error
    except Exception as error:  # the reader of a damaged file has no one kind of error
        raise TaskError(f"{path} is not a whole parquet file ({in_short(error)}).") from error


def _named_labels(table: pd.DataFrame, features: Features) -> pd.DataFrame:
    """Replace the numbers of class labels by their names; -1 is the hub's sign for no label."""
    for column, feature in features.items():
        if isinstance(feature, ClassLabel):
            names = dict(enumerate(feature.names))
            table[column] = [names.get(number, str(number)) for number in table[column]]
    return table


def check_table(language: str, table: pd.DataFrame, columns: Sequence[str], where: str = "") -> None:
    """Check that a table has its columns and an item.

    Raises:
        TaskError: If not.
    """
    if not isinstance(table, pd.DataFrame):
        raise TaskError(f"The items of {language!r}{where} are a DataFrame, not of type {type(table).__name__}.")
    for column in columns:
        if column not in table.columns:
            raise TaskError(f"The items of {language!r}{where} lack a column. {unknown('column', column, table)}")
    if table.empty:
        raise TaskError(f"{language!r} has no item{where}.")


def in_turn(table: pd.DataFrame, column: str, count: int) -> list[int]:
    """Index of a table's first rows, taken round-robin over the values of a column."""
    turn = table.groupby(column).cumcount().to_numpy()  # a value's first, second, ...
    return table.index[np.argsort(turn, kind="stable")[:count]].tolist()


def check_shots(shots: int, items: Mapping[str, pd.DataFrame], examples: Mapping[str, pd.DataFrame]) -> None:
    """Check that every language has as many solved examples as are to be shown.

    Raises:
        TaskError: If not.
    """
    for language in items if shots else ():
        if (count := len(examples.get(language, ()))) != shots:
            raise TaskError(
                f"There are {count} solved examples in {language!r} for shots={shots}: load the task with "
                "prompting=, or give examples=."
            )


COLUMNS = ["item", "cluster", "context", "question", "answers"]
_XQUAD_PARAGRAPHS, _ARTICLE_PARAGRAPHS = 240, 5  # of all of XQuAD, and of each article, which stand in a row


def read_questions(
    source: str | Path, languages: Iterable[str] | None, split: str, revision: str | None = None
) -> dict[str, pd.DataFrame]:
    """Read the questions of several languages.

    Args:
        source: A folder of SQuAD 1.1 files (``.json``) or of parquet with the hub's columns, or the id of a hub data
            set, or "babel" for the miniature questions.
        languages: Languages to read; the first gives the order of items and their clusters.
        split: Name of the split.
        revision: Branch, tag or commit of a hub data set.

    Returns:
        Language -> one row per question: item, cluster, context, question, answers (a list), items in the same order in
        every language that has the same ones.

    Raises:
        TaskError: If a file is malformed, or an answer is not where it should be in its paragraph.
        LanguageError: If a language is not there.
        CorpusError: If a hub data set cannot be read.
    """
    tables = read_items(source, languages, split, {".json": _squad}, _HUB_COLUMNS, mini_xquad, revision)
    tables = {language: _with_answers(language, table) for language, table in tables.items()}
    first = next(iter(tables.values()))
    order = {item: place for place, item in enumerate(first["item"])}
    cluster = dict(zip(first["item"], _clusters(first), strict=True))
    return {
        language: table.assign(cluster=table["item"].map(cluster.get))
        .sort_values("item", key=lambda items: items.map(order.get), ignore_index=True)
        .reindex(columns=COLUMNS)
        for language, table in tables.items()
    }


def check_questions(items: Mapping[str, pd.DataFrame]) -> None:
    """Check that every question is whole and that all languages have the same, in the same order.

    Raises:
        TaskError: If not.
    """
    if not items:
        raise TaskError("There is no item: give those of at least one language.")
    first = next(iter(items))
    for language, table in items.items():
        _check_rows(language, table)
        _check_parallel(first, items[first], language, table)


def other_answers(table: pd.DataFrame) -> list[list[str]]:
    """The first right answers to the other questions about each item's paragraph, one list per item.

    Where the table has a column ``others``, from before some questions were left out, that is it.
    """
    if "others" in table:
        return list(table["others"])
    gold = {context: [answers[0] for answers in rows] for context, rows in table.groupby("context")["answers"]}
    place = table.groupby("context").cumcount()
    return [
        [*gold[context][:at], *gold[context][at + 1 :]] for context, at in zip(table["context"], place, strict=True)
    ]


# ---- reading ----


def _squad(path: Path) -> pd.DataFrame:
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        rows = [
            {"title": article.get("title"), "context": paragraph["context"], **question}
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"{path} is not whole JSON in UTF-8 ({in_short(error)}).") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise TaskError(
            f"{path} is not laid out as SQuAD 1.1, data > paragraphs > context and qas: {in_short(error)}."
        ) from error
    try:
        return pd.DataFrame(rows, columns=None if rows else _HUB_COLUMNS)
    except UnicodeEncodeError as error:
        raise TaskError(f"{path} is not valid Unicode: it holds half a surrogate pair.") from error


def _with_answers(language: str, table: pd.DataFrame) -> pd.DataFrame:
    """Name the items, and make of each one's answers a list of texts."""
    if lacking := int(table["id"].isna().to_numpy().sum()):
        raise TaskError(f"{lacking} questions of {language!r} have no id.")
    rows = zip(table["id"], table["context"], table["answers"], strict=True)
    answers = [_answers(language, str(item), str(context), cell) for item, context, cell in rows]
    return table.assign(item=table["id"].astype(str), answers=answers)


def _answers(language: str, item: str, context: str, cell: Any) -> list[str]:
    """Read SQuAD's list of answers, or the hub's lists of texts and starts, and check where they stand."""
    try:
        if isinstance(cell, Mapping):
            pairs = list(zip(cell["text"], map(int, cell["answer_start"]), strict=True))
        else:
            pairs = [(answer["text"], int(answer["answer_start"])) for answer in cell]
        wrong = [(text, start) for text, start in pairs if context[start : start + len(text)] != text]
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise TaskError(
            f"The answers of item {item!r} in {language!r} are not texts, each with answer_start, but {cell!r:.60}."
        ) from error
    for text, start in wrong:
        stands = context[start : start + len(text)]
        raise TaskError(
            f"The answer {text!r:.60} of item {item!r} in {language!r} is not in its context at {start}, where "
            f"{stands!r:.60} stands."
        )
    return [text for text, _ in pairs]


def _clusters(table: pd.DataFrame) -> list[str]:
    """Name each item's article by its title, or without titles by its first item.

    The hub leaves titles out; there, XQuAD has five paragraphs in a row from each article, and in other data a
    paragraph is a cluster.
    """
    if "title" in table and all(map(_visible, table["title"])):
        return list(table["title"])
    cluster = pd.factorize(table["context"])[0]
    if cluster.max() + 1 == _XQUAD_PARAGRAPHS:
        cluster //= _ARTICLE_PARAGRAPHS
    names: dict[int, str] = {}
    return [names.setdefault(number, item) for number, item in zip(cluster, table["item"], strict=True)]


# ---- checks ----


def _check_rows(language: str, table: pd.DataFrame) -> None:
    check_table(language, table, COLUMNS)
    for item in table["item"][table["item"].duplicated()]:
        raise TaskError(f"The item {item!r} stands twice among those of {language!r}; ids must be distinct.")
    for name in ("context", "question"):
        for item, text in zip(table["item"], table[name], strict=True):
            if not _visible(text):
                raise TaskError(f"The {name} of item {item!r} in {language!r} is blank or no text: {text!r:.60}.")
    for item, answers in zip(table["item"], table["answers"], strict=True):
        if not isinstance(answers, list) or not answers or not all(map(_visible, answers)):
            raise TaskError(f"The item {item!r} in {language!r} needs a list of answers, none blank, not {answers!r}.")


def _check_parallel(first: str, reference: pd.DataFrame, language: str, table: pd.DataFrame) -> None:
    ours, theirs = list(reference["item"]), list(table["item"])
    if alone := sorted(set(ours) ^ set(theirs)):
        raise TaskError(
            f"{first!r} and {language!r} must have the same items, but {len(alone)} are in one of them only, such as "
            f"{alone[0]!r}."
        )
    if ours != theirs or list(reference["cluster"]) != list(table["cluster"]):
        raise TaskError(f"The items of {first!r} and {language!r} stand in different orders or clusters.")


def _visible(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())
