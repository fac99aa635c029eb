"""Files of texts: which there are, plain or compressed, and the texts they hold with the documents these stand in."""

import bz2
import csv
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedIOBase, TextIOWrapper
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow.parquet

from langneurons.errors import CorpusError, CorruptArtefactError, LangNeuronsError, in_short, is_unicode, unknown
from langneurons.storage.tables import check_expansion

Row = dict[str, str | None]
# What data call the columns that say where a text stands.
PLACES = {"id": ("id",), "document": ("document", "article", "title"), "source": ("source",)}
COMPRESSIONS: dict[str, Callable[..., object]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def kind_of(path: Path) -> str | None:
    """The ending that says how a file of texts is read, compression aside; None for another file."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1].lower() in COMPRESSIONS:
        kind = suffixes[-2].lower() if len(suffixes) > 1 else ""
        return kind if kind in _READERS and kind != ".parquet" else None
    return path.suffix.lower() if path.suffix.lower() in _READERS else None


def texts_of(path: Path, text_column: str) -> Iterator[Row]:
    """Read the texts of a file, and where they stand.

    Args:
        path: The file.
        text_column: The column that holds the texts, where the file has columns.

    Raises:
        CorpusError: If the file is empty, damaged, or laid out in another way than its name says.
    """
    if not path.stat().st_size:
        raise CorpusError(f"{path} is empty.")
    return _READERS[cast(str, kind_of(path))](path, text_column)


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    """The bytes of a file, decompressed."""
    compressed = path.suffix.lower() in COMPRESSIONS
    try:
        with cast(BufferedIOBase, COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb")) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        what = "is not a whole compressed file" if compressed else "cannot be read"
        raise CorpusError(f"{path} {what} ({in_short(error)}).") from error


def _paragraphs(path: Path, _text_column: str) -> Iterator[Row]:
    """The lines of a file, with the number of their paragraph where blank lines stand between paragraphs."""
    blank = [not line.strip() for line in _lines(path)]
    while blank and blank[-1]:
        blank.pop()
    separated = any(blank[blank.index(False) :]) if False in blank else False
    paragraph = 0
    for line, is_blank in zip(_lines(path), blank, strict=False):
        paragraph += is_blank
        yield {"text": line, "document": f"{path.name}:{paragraph}"} if separated else {"text": line}


def _lines(path: Path) -> Iterator[str]:
    start = 0
    try:
        with _opened(path) as file:
            for line in file:
                text = line.decode()
                yield (text if start else text.removeprefix("\ufeff")).rstrip("\r\n")
                start += len(line)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8: byte {start + error.start} cannot be read.") from error


def _objects(path: Path, text_column: str) -> Iterator[Row]:
    for number, row in json_objects(path, _lines(path), CorpusError):
        yield row_of(row, text_column, f"line {number} of {path}")


def json_objects(
    path: Path, lines: Iterable[str], kind: type[LangNeuronsError]
) -> Iterator[tuple[int, dict[str, object]]]:
    """The JSON object of every line of a file that is not blank, with the line's number; other lines are an error."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise kind(f"Line {number} of {path} is not JSON ({in_short(error)}).") from error
        if not isinstance(row, dict):
            raise kind(f"Line {number} of {path} is not a JSON object but {line[:40]!r}.")
        yield number, row


def _json(path: Path, text_column: str) -> Iterator[Row]:
    """A list of texts or objects, an object with one such list, columns of equal length, or an object a line."""
    try:
        content = json.loads("\n".join(_lines(path)))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:
            yield from _objects(path, text_column)
            return
        raise CorpusError(f"{path} is not JSON ({in_short(error)}).") from error
    except RecursionError as error:
        raise CorpusError(f"{path} is not JSON that can be read: it is nested too deep.") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if isinstance(content.get(text_column), list):
            content = rows_of_columns(content, text_column, str(path))
        else:
            content = lists[0] if len(lists) == 1 and text_column not in content else [content]
    if not isinstance(content, list):
        raise CorpusError(f"{path} holds no list of texts but {content!r:.40}.")
    for index, entry in enumerate(content):
        yield row_of({text_column: entry} if isinstance(entry, str) else entry, text_column, f"entry {index} of {path}")


def rows_of_columns(columns: Mapping[str, object], text_column: str, where: str) -> list[dict[str, object]]:
    """The rows of a table that is given as columns.

    Raises:
        CorpusError: If a column that is needed is no list, or they differ in length.
    """
    lists = {name: columns[name] for name in (text_column, *place_columns(columns, text_column).values())}
    if not all(isinstance(value, list | tuple) for value in lists.values()):
        raise CorpusError(f"The columns {', '.join(lists)} of {where} are not all lists.")
    values = cast(dict[str, list[object]], lists)
    if len({len(column) for column in values.values()}) != 1:
        raise CorpusError(f"The columns {', '.join(lists)} of {where} differ in length.")
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def row_of(row: object, text_column: str, where: str) -> Row:
    """The text of a row of some table, and where it stands.

    Raises:
        CorpusError: If it is no row, lacks the column, or holds something else than text there.
    """
    if not isinstance(row, Mapping):
        raise CorpusError(f"{where[0].upper()}{where[1:]} is of type {type(row).__name__}, not text.")
    if text_column not in row:
        raise missing_column(where, text_column, map(str, row))
    entry = {"text": _text(row[text_column], f"{text_column!r} in {where}"), **places(row, text_column)}
    if not all(is_unicode(text) for text in entry.values() if text):
        raise CorpusError(f"{where[0].upper()}{where[1:]} is not valid Unicode: it holds half a surrogate pair.")
    return entry


def _separated(path: Path, text_column: str) -> Iterator[Row]:
    """The rows of a file with a header; in .tsv quotation marks are part of the text."""
    plain = kind_of(path) == ".tsv"
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with _opened(path) as data, TextIOWrapper(cast(BinaryIO, data), encoding="utf-8-sig", newline="") as file:
            quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
            rows = csv.reader(file, delimiter="\t" if plain else ",", quoting=quoting, strict=True)
            header = next(rows, [])
            if text_column not in header:
                raise missing_column(str(path), text_column, header)
            for row in rows:
                if row and len(row) != len(header):
                    raise CorpusError(
                        f"Line {rows.line_num} of {path} has {len(row)} fields, but the first line has {len(header)}."
                    )
                if row:
                    yield row_of(dict(zip(header, row, strict=True)), text_column, f"line {rows.line_num} of {path}")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error.reason}).") from error
    except csv.Error as error:
        raise CorpusError(f"{path} is not a whole {path.suffix[1:]} file ({in_short(error)}).") from error
    finally:
        csv.field_size_limit(limit)


def places(row: Mapping[str, object], text_column: str) -> Row:
    """Where a text stands, as far as its row says: its id, document and source."""
    columns = place_columns(row, text_column)
    return {name: None if row[column] is None else str(row[column]) for name, column in columns.items()}


def place_columns(columns: Iterable[str], text_column: str) -> dict[str, str]:
    """What the data call the id, document and source of a text, those of them that they have."""
    names = set(columns) - {text_column}
    column_of = {name: next((alias for alias in aliases if alias in names), None) for name, aliases in PLACES.items()}
    return {name: column for name, column in column_of.items() if column is not None}


def _cells(path: Path, text_column: str) -> Iterator[Row]:
    try:
        check_expansion(path)
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            if text_column not in file.schema_arrow.names:
                raise missing_column(str(path), text_column, file.schema_arrow.names)
            columns = place_columns(file.schema_arrow.names, text_column)
            for batch in file.iter_batches(1000, columns=[text_column, *columns.values()]):
                for row in batch.to_pylist():
                    yield row_of(row, text_column, str(path))
    except CorpusError:
        raise
    except CorruptArtefactError as error:
        raise CorpusError(str(error)) from error
    except Exception as error:  # the reader of a damaged file has no one kind of error
        raise CorpusError(f"{path} is not a whole parquet file ({in_short(error)}).") from error


def _text(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(f"{where} is not text but {value!r:.40}; name the column of the documents with text_column=.")
    return value


def missing_column(where: str, text_column: str, columns: Iterable[str]) -> CorpusError:
    """An error that names the columns there are."""
    hint = unknown("column", text_column, columns).removesuffix(".")
    return CorpusError(f"No documents in {where}. {hint}; name the column of the documents with text_column=.")


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".txt": _paragraphs,
    ".jsonl": _objects,
    ".json": _json,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _cells,
}
KINDS = tuple(_READERS)
