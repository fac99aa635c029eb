"""Where a task's items come from: files of a folder, named by language and split, or a hub data set."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features

from langneurons.corpora.loading import distinct, hub_tables, is_hub_id
from langneurons.corpora.purity import identifier
from langneurons.errors import LanguageError, TaskError, in_short, unknown
from langneurons.evaluation.tasks.miniature import SOURCE, Miniature

Found = TypeVar("Found")
Read = Callable[[Path], pd.DataFrame]
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_LANGUAGE_IN_NAME = re.compile(r"(?:^|[./_-])([a-z]{2,3})(?=[./_-])")
_NO_LANGUAGE = {*SPLITS, "of"}  # "00000-of-00001"


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
            the id of a hub data set with a configuration a language; or ``"babel"``.
        languages: Which, in which order; None takes all of a folder, sorted.
        split: ``"train"``, ``"validation"`` (also called dev or valid) or ``"test"``.
        readers: How to read a file, by suffix; ``.parquet`` is known.
        columns: Columns that every table must have.
        miniature: What ``"babel"`` stands for: from split to a data set a language.
        revision: Of a hub data set: a branch, tag or commit.

    Returns:
        Language -> its rows, in file order; class labels by their names.

    Raises:
        TaskError: If there is no such folder, split or column, or a file cannot be read.
        LanguageError: If a language is not there.
        CorpusError: If a hub data set cannot be read.
    """
    wanted = None if languages is None else distinct(languages)
    if isinstance(source, str) and (source == SOURCE or is_hub_id(source)):
        found = hub_tables(source, wanted, split, revision) if source != SOURCE else miniature(_split(split))
        chosen = _chosen(found, wanted or list(found))
        tables = {language: _from_dataset(table) for language, table in chosen.items()}
    else:
        known = {".parquet": _parquet, **readers}
        files = _files(Path(source).expanduser(), wanted, split, known)
        tables = {
            language: pd.concat([known[path.suffix](path) for path in paths], ignore_index=True)
            for language, paths in files.items()
        }
    for language, table in tables.items():
        _check(language, table, columns, str(source))
    return tables


def _files(folder: Path, wanted: list[str] | None, split: str, readers: Mapping[str, Read]) -> dict[str, list[Path]]:
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
    chosen = _chosen(by_language, wanted or sorted(by_language))
    return {language: _of_split(found, folder, split) for language, found in chosen.items()}


def _split(name: str) -> str:
    if name not in SPLITS:
        raise TaskError(unknown("split", name, dict.fromkeys(SPLITS.values())))
    return SPLITS[name]


def _chosen(found: Mapping[str, Found], wanted: Sequence[str]) -> dict[str, Found]:
    for language in wanted:
        if language not in found:
            raise LanguageError(unknown("language", language, sorted(found)))
    return {language: found[language] for language in wanted}


def _language_of(path: Path) -> str | None:
    named = [code for code in _LANGUAGE_IN_NAME.findall(str(path)) if code not in _NO_LANGUAGE]
    # Of "new-hi.tsv" the code that is one of a language; a code that nobody knows is taken where it stands alone.
    known = [code for code in named if code in identifier().labels]
    return next(iter(known or named), None)


def _of_split(paths: list[Path], folder: Path, split: str) -> list[Path]:
    named = {path: _splits_of(path.relative_to(folder)) for path in paths}
    chosen = [path for path in paths if not named[path] or SPLITS[split] in named[path]]
    if not chosen:
        have = ", ".join(str(path.relative_to(folder)) for path in paths[:5])
        raise TaskError(f"There is no file of the split {split!r} in {folder}, only {have}.")
    return chosen


def _splits_of(path: Path) -> set[str]:
    return {SPLITS[word] for word in re.split(r"[^a-z0-9]+", str(path).lower()) if word in SPLITS}


def _parquet(path: Path) -> pd.DataFrame:
    try:
        table = pyarrow.parquet.read_table(path)
        return _named_labels(table.to_pandas(), Features.from_arrow_schema(table.schema))
    except Exception as error:  # the reader of a damaged file has no one kind of error
        raise TaskError(f"{path} is not a whole parquet file ({in_short(error)}).") from error


def _from_dataset(table: Dataset) -> pd.DataFrame:
    return _named_labels(pd.DataFrame(table.with_format(None)[:]), table.features)


def _named_labels(table: pd.DataFrame, features: Features) -> pd.DataFrame:
    """Replace the numbers of class labels by their names; -1 is the hub's sign for no label."""
    for column, feature in features.items():
        if isinstance(feature, ClassLabel):
            names = dict(enumerate(feature.names))
            table[column] = [names.get(number, str(number)) for number in table[column]]
    return table


def _check(language: str, table: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    for column in columns:
        if column not in table.columns:
            raise TaskError(f"The items of {language!r} in {where} lack a column. {unknown('column', column, table)}")
    if table.empty:
        raise TaskError(f"{language!r} has no item in {where}.")
