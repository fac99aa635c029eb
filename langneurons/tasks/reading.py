"""Where a task's items come from: files named by language and split, files of all languages, or a hub data set."""

import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
import pandas as pd
import pyarrow.parquet
from datasets import ClassLabel, Features

from langneurons.corpora.files import COMPRESSIONS
from langneurons.corpora.languages import canonical, code_in_name, distinct, label_of
from langneurons.corpora.loading import hub_tables, is_hub_id
from langneurons.corpora.purity import labels_of
from langneurons.errors import CorruptArtefactError, TaskError, in_short, unknown
from langneurons.settings import whole_number
from langneurons.storage.files import path_of
from langneurons.storage.tables import check_expansion

Source = TypeVar("Source")
Read = Callable[[Path], pd.DataFrame]
Choose = Callable[[str, list[Path]], list[Path]]
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
LANGUAGE = "language"  # the column of a file that holds several


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
    choose: Choose = lambda language, paths: paths,
) -> dict[str, pd.DataFrame]:
    """Read a task's table of every language.

    Args:
        source: A folder whose files carry language and split in their path, such as ``test-hi.tsv``,
            ``xquad.hi.json`` or ``hi/test-00000-of-00001.parquet`` (a file that names no split belongs to every one),
            or whose files have a column ``language``, such as ``xnli.test.tsv``; one such file; the id of a hub data
            set with one configuration per language; or ``"babel"``. All but parquet may be compressed.
        languages: Languages to read, in this order; by default all of a folder, sorted.
        split: ``"train"``, ``"validation"`` (also called dev or valid) or ``"test"``.
        readers: Suffix -> function that reads such a file; ``.parquet`` has one. Of one table in several formats the
            first is read.
        columns: Columns that every table must have.
        miniature: Function from a split to the rows of every language that ``"babel"`` stands for.
        revision: Branch, tag or commit of a hub data set.
        choose: Function from a language and its files of the split to those that are read; by default all.

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
        tables = _from_files(path_of(source), names, _split(split), readers, choose)
    for language, table in tables.items():
        check_table(language, table, columns, f" in {source}")
    return tables


def files_of(source: Path, kinds: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder of a source, and the files in it that can be read; of one table in several formats the first.

    Args:
        source: A folder, or one file.
        kinds: Suffixes that can be read, compression aside.

    Raises:
        TaskError: If there is no such folder.
    """
    if not source.exists():
        raise TaskError(f"There is no folder {source}.")
    folder, paths = (source.parent, [source]) if source.is_file() else (source, sorted(source.rglob("*")))
    order = {path: kinds.index(kind) for path in paths if path.is_file() and (kind := _kind(path)) in kinds}
    first: dict[Path, Path] = {}
    for path in sorted(order, key=lambda path: (order[path], path)):
        first.setdefault(_bare(path), path)
    return folder, sorted(first.values())


def text_of(path: Path, what: str) -> str:
    """The text of a file, decompressed, without a byte order mark.

    Args:
        path: The file.
        what: What it should hold, for messages.

    Raises:
        TaskError: If it cannot be read, is not whole, or is not UTF-8.
    """
    try:
        with cast(BinaryIO, COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb")) as file:
            return file.read().decode("utf-8-sig")
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise TaskError(f"{path} is not {what} in UTF-8 ({in_short(error)}).") from error


def csv_of(path: Path) -> pd.DataFrame:
    """A file of comma-separated text.

    Args:
        path: The file.

    Raises:
        TaskError: If it cannot be read.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} is not a table of comma-separated UTF-8 text ({in_short(error)}).") from error


def _from_files(
    source: Path, names: list[str] | None, split: str, readers: Mapping[str, Read], choose: Choose
) -> dict[str, pd.DataFrame]:
    folder, paths = files_of(source, list(readers))
    by_language: dict[str | None, list[Path]] = {}
    for path in paths:
        by_language.setdefault(_language_of(_bare(path.relative_to(folder))), []).append(path)
    shared = by_language.pop(None, [])
    named = {language: files for language, files in by_language.items() if language is not None}
    if not (named or shared):
        kinds = ", ".join(readers)
        raise TaskError(f"{source} has no file ({kinds}) with a language in its name, such as test-hi.tsv.")
    # A file of all languages, such as xnli.test.tsv, counts where no file of one language is of the split.
    of_one = [path for files in named.values() for path in files if _is_of(split, path, folder)]
    if not named or (not of_one and any(split in _splits(path, folder) for path in shared)):
        return _selected_rows([(path, readers[_kind(path)](path)) for path in _of_split(shared, folder, split)], names)
    files = _selected(named, names or sorted(named))
    files = {language: choose(language, _of_split(paths, folder, split)) for language, paths in files.items()}
    parts = {language: [readers[_kind(path)](path) for path in paths] for language, paths in files.items()}
    tables = {language: pd.concat(of_language, ignore_index=True) for language, of_language in parts.items()}
    return {language: _rows_of(language, table) for language, table in tables.items()}


def _rows_of(language: str, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one language of a file that is named by it, and may hold others as well."""
    codes = list(table[LANGUAGE]) if LANGUAGE in table else []
    if len(set(codes)) < 2:
        return table
    label = label_of(language, codes)
    return table.loc[[code == label for code in codes]].reset_index(drop=True)


def _selected_rows(tables: list[tuple[Path, pd.DataFrame]], names: list[str] | None) -> dict[str, pd.DataFrame]:
    """The rows of each language of files that hold several."""
    for path, table in tables:
        if LANGUAGE not in table:
            raise TaskError(
                f"{path} has no language in its name, such as test-hi.tsv, and no column {LANGUAGE!r} but "
                f"{', '.join(map(str, table)) or 'none'}."
            )
        if table.empty:
            raise TaskError(f"{path} has no item.")
    table = pd.concat([table for _, table in tables], ignore_index=True)
    rows = {str(code): part for code, part in table.groupby(table[LANGUAGE].map(canonical), sort=True)}
    return {code: part.reset_index(drop=True) for code, part in _selected(rows, names or list(rows)).items()}


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
    of_split = [path for path in paths if _is_of(split, path, folder)]
    if not of_split:
        others = ", ".join(str(path.relative_to(folder)) for path in paths[:5])
        raise TaskError(f"There is no file of the split {split!r} in {folder}, only {others}.")
    return of_split


def _is_of(split: str, path: Path, folder: Path) -> bool:
    return split in (_splits(path, folder) or {split})


def _splits(path: Path, folder: Path) -> set[str]:
    """The splits that a file names."""
    words = re.split(r"[^a-z0-9]+", str(path.relative_to(folder)).lower())
    return {SPLITS[word] for word in words if word in SPLITS}


def _kind(path: Path) -> str:
    """The ending that says how a file is read, compression aside; "" for a file that is hidden or never compressed."""
    plain = _plain(path)
    readable = not path.name.startswith(".") and (plain == path or plain.suffix.lower() != ".parquet")
    return plain.suffix.lower() if readable else ""


def _plain(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path


def _bare(path: Path) -> Path:
    """A file's path without what says its format."""
    return _plain(path).with_suffix("")


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


def checked_draw(count: int, seed: int, what: str) -> tuple[int, int]:
    """How many items to draw, at least one, and the seed, as whole numbers; ``what`` names the items in an error."""
    count, seed = whole_number(count, "count", TaskError), whole_number(seed, "seed", TaskError, least=0)
    if count < 1:
        raise TaskError(f"Cannot take {count} {what}: the least is 1.")
    return count, seed


def drawn(tables: Mapping[str, pd.DataFrame], count: int, seed: int, what: str) -> dict[str, pd.DataFrame]:
    """Some rows of each table, drawn round-robin over its clusters, in their old order.

    Args:
        tables: Language -> its rows.
        count: Number of rows; all where there are fewer.
        seed: Seed of the draw.
        what: What the rows are, such as "prompts".

    Raises:
        TaskError: If ``count`` is below 1.
    """
    count, seed = checked_draw(count, seed, what)
    return {language: _drawn(table, count, seed) for language, table in tables.items()}


def hashed_texts(tables: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> list[str]:
    """What a fingerprint hashes of some columns of tables: each language and its content, by language."""
    return [
        part
        for language, table in sorted(tables.items())
        for part in (language, str(table[list(columns)].to_json(orient="values", force_ascii=False)))
    ]


def _drawn(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    order = np.random.default_rng(seed).permutation(len(table))
    turn = table.iloc[order].groupby("cluster").cumcount().to_numpy()  # a cluster's first, second, ...
    return table.iloc[np.sort(order[np.argsort(turn, kind="stable")[:count]])].reset_index(drop=True)


def check_items(language: str, table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Check that a table has its columns, that its items are distinct, and that no text is blank.

    Args:
        language: The language of the items.
        table: The items.
        columns: Columns that it must have, the text last.
        what: What the text is, such as "prompt".

    Raises:
        TaskError: If not.
    """
    check_table(language, table, columns)
    for item in table["item"][table["item"].duplicated()]:
        raise TaskError(f"The item {item!r} stands twice among those of {language!r}; names must be distinct.")
    check_visible(language, list(table[columns[-1]]), what)


def check_visible(language: str, texts: Sequence[object], what: str) -> None:
    """Check that no text is blank.

    Args:
        language: The language of the texts.
        texts: The texts.
        what: What they are, such as "prompt".

    Raises:
        TaskError: If one is.
    """
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise TaskError(f"{what.capitalize()} {number} of {language!r} is blank or no text: {text!r:.60}.")


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
