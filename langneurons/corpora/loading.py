"""Where texts come from: a dict, a folder, the embedded phrasebook, or a hub data set."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import cast

import pandas as pd
import pyarrow.parquet
from datasets import Dataset, Features, Value, get_dataset_config_names, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from datasets.utils import logging as datasets_logging

from langneurons import babel
from langneurons.corpora.corpus import Corpus, batches
from langneurons.errors import CorpusError, CorruptArtefactError, LanguageError, in_short, unknown
from langneurons.storage.tables import check_expansion

Row = dict[str, str | None]
KINDS = (".txt", ".jsonl", ".parquet")
# What data call the columns that say where a text stands.
PLACES = {"id": ("id",), "document": ("document", "article", "title"), "source": ("source",)}
_TEXT = Features({"text": Value("string")})
_FEATURES = Features({name: Value("string") for name in ("text", *PLACES)})
_SPLITS = {"train", "heldout", "test", "dev", "valid", "validation"}
_LANGUAGE = re.compile(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")
_FILE_OF_LANGUAGE = re.compile(r"([a-z]{2,3})(?![a-zA-Z])")
_FOLDER_OF_LANGUAGE = re.compile(r"(?:.*\.)?([a-z]{2,3})")


def load_corpus(
    source: str | Path | Mapping[str, Iterable[str]],
    languages: Iterable[str] | None = None,
    *,
    text_column: str = "text",
    split: str = "train",
    revision: str | None = None,
) -> Corpus:
    """Load texts per language; blank ones are left out.

    Texts of one document resemble each other, so statistics take documents as units. The columns ``document`` (or
    ``article``, or ``title``), ``source`` and ``id`` of jsonl, parquet and hub data say where a text stands; in a txt
    file blank lines separate documents. Elsewhere every text is a document of its own, and the corpus says so.

    Args:
        source: One of
            a dict, ``{"en": [text, ...]}``;
            a folder with files ``<language>*.txt`` (a text per line), ``.jsonl`` or ``.parquet``, or with a folder
            ``<language>`` or ``<date>.<language>`` of such files for each language;
            ``"babel"``, the embedded phrasebook of parallel sentences;
            the id of a hub data set with a configuration per language, such as ``"wikimedia/wikipedia"``.
        languages: Languages to load, in this order; by default all, sorted by code. A hub data set needs them.
        text_column: The column of jsonl, parquet and hub data that holds the texts.
        split: The split to load. In a folder, ``"heldout"`` takes the files with that word in their name; ``"train"``
            takes those with ``train``, or, where there are none, those that name no split.
        revision: Branch, tag or commit of a hub data set.

    Returns:
        The corpus; its text lies in the cache of the ``datasets`` library, memory-mapped.

    Raises:
        CorpusError: If the source does not exist, is empty, or a file is unreadable; the file is named.
        LanguageError: If a language is not there.

    Example:
        >>> load_corpus({"hi": ["नमस्ते"], "en": ["Hello.", " "]})
        Corpus(en: 1 text, hi: 1 text; every text is a document of its own)
    """
    wanted = None if languages is None else distinct(languages)
    if isinstance(source, Mapping):
        tables = _from_documents(source, wanted)
    elif str(source) == "babel":
        tables = _from_documents(_phrasebook(babel.FOLDER / "phrasebook.tsv"), wanted)
    elif isinstance(source, str) and is_hub_id(source):
        tables = _from_hub(source, wanted, text_column, split, revision)
    else:
        tables = _from_folder(Path(source).expanduser(), wanted, text_column, split)
    for language, table in tables.items():
        if not _LANGUAGE.fullmatch(language):
            raise LanguageError(f"{language!r:.60} is no language code; write it like 'hi' or 'zh-Hant'.")
        if not len(table):
            place = "the dict given" if isinstance(source, Mapping) else source
            raise CorpusError(f"{language!r} has no document in {place}: every one is blank.")
    return Corpus(tables)


def distinct(languages: Iterable[str]) -> list[str]:
    """The languages, each once; a text instead of a list, and an empty list, are refused."""
    if isinstance(languages, str):
        raise LanguageError(f"Give the languages as a list, such as [{languages!r}], not as the text {languages!r}.")
    unique = list(dict.fromkeys(languages))
    if not unique:
        raise LanguageError("Give at least one language, or leave the argument out to take all.")
    return unique


def _choose(wanted: list[str] | None, available: Iterable[str]) -> list[str]:
    possible = sorted(available)
    for language in wanted or []:
        if language not in possible:
            raise LanguageError(unknown("language", language, possible))
    return wanted or possible


# ---- a dict ----


def _from_documents(source: Mapping[str, Iterable[str]], wanted: list[str] | None) -> dict[str, Dataset]:
    if not source:
        raise CorpusError("The dict given has no language; give {'en': [document, ...], ...}.")
    return {language: _table_of(language, source[language]) for language in _choose(wanted, source)}


def _table_of(language: str, documents: Iterable[str]) -> Dataset:
    if isinstance(documents, str):
        raise CorpusError(f"The documents of {language!r} are one text; give a list of documents.")
    texts = list(documents)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise CorpusError(f"Document {index} of {language!r} is of type {type(text).__name__}, not text.")
    try:
        return Dataset.from_dict({"text": [text for text in texts if text.strip()]}, features=_TEXT)
    except UnicodeEncodeError as error:
        raise CorpusError(f"A document of {language!r} is not valid Unicode ({error.reason}).") from error


def _phrasebook(path: Path) -> dict[str, list[str]]:
    table = pd.read_csv(path, sep="\t", dtype=str, quoting=3, keep_default_na=False)
    return {str(language): table[language].tolist() for language in table.columns if language != "topic"}


# ---- a folder ----


def _from_folder(folder: Path, wanted: list[str] | None, text_column: str, split: str) -> dict[str, Dataset]:
    if folder.is_file():
        raise CorpusError(
            f"{folder} is a file; give the folder that holds it, with files named <language>*{'|'.join(KINDS)}."
        )
    if not folder.is_dir():
        raise CorpusError(f"There is no folder {folder}.")
    files = _files_by_language(folder)
    if not files:
        raise CorpusError(f"{folder} has no file named <language>*.txt, .jsonl or .parquet, and no folder <language>.")
    return {
        language: _read(_of_split(language, files[language], folder, split), text_column)
        for language in _choose(wanted, files)
    }


def _files_by_language(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    folders: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        named = _FOLDER_OF_LANGUAGE.fullmatch(path.name) if path.is_dir() else _FILE_OF_LANGUAGE.match(path.name)
        if named is None or named[1] in _SPLITS:
            continue
        if path.is_dir():
            folders[named[1]] = path  # sorted by date, so the newest stays
        elif path.suffix in KINDS:
            files.setdefault(named[1], []).append(path)
    for language, path in folders.items():
        if inside := [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in KINDS]:
            files.setdefault(language, []).extend(inside)
    return files


def _of_split(language: str, files: list[Path], folder: Path, split: str) -> list[Path]:
    words = {file: set(re.split(r"[^a-z0-9]+", str(file.relative_to(folder)).lower())) for file in files}
    selected = [file for file in files if split.lower() in words[file]]
    if not selected and split == "train":
        selected = [file for file in files if not words[file] & _SPLITS]
    if not selected:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:5])
        raise CorpusError(f"{language!r} has no file of the split {split!r} in {folder}, only {names}.")
    return selected


def _read(files: list[Path], text_column: str) -> Dataset:
    # Size and time are part of what names the cache, so a file that changes is read again.
    stamped = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    options = {"files": stamped, "text_column": text_column}
    try:
        with _quiet():
            table = Dataset.from_generator(_rows, features=_FEATURES, gen_kwargs=options)
    except (DatasetGenerationError, OSError) as error:
        if isinstance(error.__cause__, CorpusError):
            raise error.__cause__ from None
        raise CorpusError(f"Cannot read {files[0]} into the cache of datasets: {error.__cause__ or error}.") from error
    return _with_known_places(table)


def _with_known_places(table: Dataset) -> Dataset:
    """Drop ids and sources that some texts lack; a text without document, where others have one, is its own."""
    absent = dict.fromkeys([name for name in PLACES if name in table.column_names], 0)
    for batch in cast(Iterable[pyarrow.Table], table.with_format("arrow").iter(10_000)):
        absent = {name: count + batch[name].null_count for name, count in absent.items()}
    dropped = [name for name, count in absent.items() if count and (name != "document" or count == len(table))]
    table = table.remove_columns(dropped)
    if not absent.get("document") or "document" in dropped:
        return table
    with _quiet():
        return table.map(_with_document, with_indices=True)


def _with_document(row: Mapping[str, str | None], index: int) -> Row:
    return {**row, "document": f"text {index}" if row["document"] is None else row["document"]}


def _rows(files: list[tuple[str, int, int]], text_column: str) -> Iterator[Row]:
    readers = {".txt": _paragraphs, ".jsonl": _objects, ".parquet": _cells}
    empty = True
    for name, size, _ in files:
        path = Path(name)
        if not size:
            raise CorpusError(f"{path} is empty.")
        for row in readers[path.suffix](path, text_column):
            if str(row["text"]).strip():
                empty = False
                yield dict.fromkeys(_FEATURES) | row
    if empty:
        raise CorpusError(f"There is no document in {', '.join(name for name, *_ in files[:5])}: all is blank.")


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
    with path.open("rb") as file:
        for line in file:
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise CorpusError(f"{path} is not UTF-8: byte {start + error.start} cannot be read.") from error
            yield (text if start else text.removeprefix("\ufeff")).rstrip("\r\n")
            start += len(line)


def _objects(path: Path, text_column: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"Line {number} of {path} is not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise CorpusError(f"Line {number} of {path} is not a JSON object but {line[:40]!r}.")
        if text_column not in row:
            raise _missing_column(f"line {number} of {path}", text_column, row)
        text = _text(row[text_column], f"{text_column!r} in line {number} of {path}")
        if any("\ud800" <= letter <= "\udfff" for letter in set(text)):
            raise CorpusError(f"Line {number} of {path} holds half a surrogate pair, which is no character.")
        yield {"text": text, **_places(row, text_column)}


def _places(row: Mapping[str, object], text_column: str) -> Row:
    """Where a text stands, as far as its row says: its id, document and source."""
    columns = _place_columns(row, text_column)
    return {name: None if row[column] is None else str(row[column]) for name, column in columns.items()}


def _place_columns(columns: Iterable[str], text_column: str) -> dict[str, str]:
    """What the data call the id, document and source of a text, those of them that they have."""
    names = set(columns) - {text_column}
    column_of = {name: next((alias for alias in aliases if alias in names), None) for name, aliases in PLACES.items()}
    return {name: column for name, column in column_of.items() if column is not None}


def _cells(path: Path, text_column: str) -> Iterator[Row]:
    try:
        check_expansion(path)
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            if text_column not in file.schema_arrow.names:
                raise _missing_column(str(path), text_column, file.schema_arrow.names)
            columns = _place_columns(file.schema_arrow.names, text_column)
            for batch in file.iter_batches(1000, columns=[text_column, *columns.values()]):
                for row in batch.to_pylist():
                    text = _text(row[text_column], f"{text_column!r} in {path}")
                    yield {"text": text, **_places(row, text_column)}
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


def _missing_column(where: str, text_column: str, columns: Iterable[str]) -> CorpusError:
    hint = unknown("column", text_column, columns).removesuffix(".")
    return CorpusError(f"No documents in {where}. {hint}; name the column of the documents with text_column=.")


@contextmanager
def _quiet() -> Iterator[None]:
    bars, verbosity = not are_progress_bars_disabled(), datasets_logging.get_verbosity()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        datasets_logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


# ---- a hub data set ----


def _from_hub(
    name: str, wanted: list[str] | None, text_column: str, split: str, revision: str | None
) -> dict[str, Dataset]:
    tables = hub_tables(name, wanted, split, revision)
    return {language: _text_of(table, name, text_column) for language, table in tables.items()}


def is_hub_id(source: str) -> bool:
    """Whether a text looks like the id of a hub data set, and is no path that exists."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source)) and not Path(source).exists()


def hub_tables(name: str, wanted: list[str] | None, split: str, revision: str | None) -> dict[str, Dataset]:
    """Load a hub data set that has a configuration per language, such as ``20231101.hi`` or ``xquad.hi``.

    Args:
        name: The data set's id.
        wanted: Languages to load, in this order.
        split: The split to load.
        revision: Branch, tag or commit.

    Raises:
        CorpusError: If it cannot be read, or no languages are given.
        LanguageError: If a language is not there.
    """
    try:
        configs = _configs_by_language(get_dataset_config_names(name, revision=revision))
        if wanted is None:
            raise CorpusError(f"Say which languages of {name} to load; it has {', '.join(sorted(configs)[:30])}.")
        return {
            language: load_dataset(name, configs[language], split=split, revision=revision)
            for language in _choose(wanted, configs)
        }
    except (DatasetNotFoundError, DatasetGenerationError, OSError, ValueError) as error:
        raise CorpusError(f"{name} is neither a folder here nor a hub data set that can be read: {error}") from error


def _configs_by_language(configs: Iterable[str]) -> dict[str, str]:
    newest: dict[str, str] = {}
    for config in sorted(configs):
        language = config.rpartition(".")[2]
        newest[language] = config
    return newest


def _text_of(table: Dataset, name_of_set: str, text_column: str) -> Dataset:
    if text_column not in table.column_names:
        raise _missing_column(name_of_set, text_column, table.column_names)
    if table.features[text_column] not in (Value("string"), Value("large_string")):
        raise CorpusError(f"The column {text_column!r} of {name_of_set} is not text; name another with text_column=.")
    columns = {
        text_column: "text",
        **{column: name for name, column in _place_columns(table.column_names, text_column).items()},
    }
    texts = table.select_columns(list(columns)).rename_columns(columns)
    for name in PLACES:
        if name in texts.column_names:
            texts = texts.cast_column(name, Value("string"))
    documents = chain.from_iterable(batches(texts))
    filled = [index for index, text in enumerate(documents) if text and text.strip()]
    return _with_known_places(texts if len(filled) == len(texts) else texts.select(filled))
