"""Where texts come from: tables and lists in memory, files, the embedded phrasebook, or a hub data set."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    get_dataset_config_names,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from langneurons import babel
from langneurons.corpora.corpus import Corpus
from langneurons.corpora.files import COMPRESSIONS, KINDS, Row, kind_of, texts_of
from langneurons.corpora.languages import (
    by_canonical_code,
    canonical,
    code_in_name,
    distinct,
    is_code,
    label_of,
    language_of,
    scripts_of,
)
from langneurons.corpora.tables import (
    FEATURES,
    Table,
    by_language,
    quiet,
    split_of,
    table_of,
    text_of,
    with_known_places,
)
from langneurons.errors import CorpusError, LanguageError, StorageError, in_short, warn_user
from langneurons.storage.files import check_regular, path_of

_SPLITS = {"train", "heldout", "test", "dev", "valid", "validation"}
_LANGUAGE = re.compile(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")
_NAMES = f"<language>*{'|'.join(KINDS)}, perhaps with {'|'.join(COMPRESSIONS)}"
_NO_TEXTS = re.compile(
    r"\..*|_.*|(README|LICENSE|LICENCE|NOTICE|SOURCES|CITATION|CHANGELOG)\b.*|.*\.(md|sum|lock)", re.I
)


def load_corpus(
    source: str | Path | Mapping[str, object] | Table,
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
            a dict from language to its texts: a list, a table (a pandas ``DataFrame`` or ``Series``, a ``Dataset``, an
            ``IterableDataset``, a ``DatasetDict`` of splits, a dict of columns, rows as dicts), or a ``Path`` of a
            file or folder;
            one such table with a column ``language``;
            a folder with files ``<language>*.txt`` (a text per line), ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or
            ``.parquet``, all but the last perhaps compressed (``.gz``, ``.bz2``, ``.xz``), or with a folder
            ``<language>`` or ``<date>.<language>`` of such files for each language; or one such file;
            ``"babel"``, the embedded phrasebook of parallel sentences;
            the id of a hub data set with a configuration per language, such as ``"wikimedia/wikipedia"``.
            Codes of languages may be those of FLORES, ISO 639 or BCP-47; the corpus has them as
            ``langneurons.corpora.languages.canonical`` spells them. A warning names files that are left out.
        languages: Languages to load, in this order; by default all, sorted by code. A hub data set needs them.
        text_column: The column of tables that holds the texts.
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
    left_out: list[str] = []
    if isinstance(source, Mapping | pd.DataFrame | Dataset | IterableDataset):
        tables = _from_memory(source, wanted, text_column, split)
    elif str(source) == "babel":
        tables = _from_memory(_phrasebook(babel.FOLDER / "phrasebook.tsv"), wanted, "text", split)
    elif isinstance(source, str) and is_hub_id(source):
        tables = _from_hub(source, wanted, text_column, split, revision)
    elif isinstance(source, str | Path):
        tables, left_out = _from_files(path_of(source), wanted, text_column, split)
    else:
        raise CorpusError(f"A corpus is loaded from a dict, a table, a path or a name, not from {source!r:.60}.")
    for language, table in tables.items():
        if not _LANGUAGE.fullmatch(language):
            raise LanguageError(f"{language!r:.60} is no language code; write it like 'hi' or 'zh-Hant'.")
        if not len(table):
            place = source if isinstance(source, str | Path) else "what was given"
            raise CorpusError(f"{language!r} has no document in {place}: every one is blank.")
    if left_out:
        names = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        warn_user(f"Left out of {source}: {names}. Files are read whose name is {_NAMES}, of the split asked for.")
    return Corpus(tables)


def _choose(wanted: list[str] | None, available: Iterable[str]) -> dict[str, str]:
    """The canonical code of each language that is loaded -> what the source calls it."""
    names = sorted(available, key=str)
    if wanted is None:
        return dict(sorted(by_canonical_code(names, "The source").items()))
    choice = {}
    for language in wanted:
        name = label_of(language, names)
        choice[canonical(name)] = name
    return choice


# ---- a dict, or tables in memory ----


def _from_memory(
    source: Mapping[str, object] | Table,
    wanted: list[str] | None,
    text_column: str,
    split: str,
) -> dict[str, Dataset]:
    if not isinstance(source, Mapping):
        source = by_language(source)
    elif isinstance(source, DatasetDict | IterableDatasetDict) and {str(name) for name in source} <= _SPLITS:
        source = by_language(split_of(source, split, "The data set"))
    if not source:
        raise CorpusError("The dict given has no language; give {'en': [document, ...], ...}.")
    tables = {}
    for language, name in _choose(wanted, source).items():
        documents = source[name]
        if isinstance(documents, Path):
            tables[language] = _from_path(language, documents, text_column, split)
        else:
            tables[language] = table_of(language, documents, text_column, split)
    return tables


def _phrasebook(path: Path) -> dict[str, list[str]]:
    table = pd.read_csv(path, sep="\t", dtype=str, quoting=3, keep_default_na=False)
    return {str(language): table[language].tolist() for language in table.columns if language != "topic"}


# ---- files ----


def _from_files(
    path: Path, wanted: list[str] | None, text_column: str, split: str
) -> tuple[dict[str, Dataset], list[str]]:
    """The table of each language, and the names of what was left out."""
    if path.is_file():
        if (language := code_in_name(path.name)) is None or kind_of(path) is None:
            raise CorpusError(f"{path} is no file named {_NAMES}; give {{'en': Path(...)}} to say its language.")
        return {language: _read([path], text_column) for language in _choose(wanted, [language])}, []
    if not path.is_dir():
        raise CorpusError(f"There is no folder {path}.")
    files, left_out = _files_by_language(path)
    if not files:
        raise CorpusError(f"{path} has no file named {_NAMES}, and no folder <language>.")
    tables = {}
    for language in _choose(wanted, files):
        of_split, others = _of_split(f"{language!r}", files[language], path, split)
        tables[language], left_out = _read(of_split, text_column), left_out + others
    return tables, left_out


def _from_path(language: str, path: Path, text_column: str, split: str) -> Dataset:
    """The texts of one language in a file, or in all files of a folder."""
    path = path_of(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and kind_of(file)]
        return _read(_of_split(f"{language!r}", files, path, split)[0], text_column)
    if not path.is_file():
        raise CorpusError(f"There is no file {path}.")
    if kind_of(path) is None:
        raise CorpusError(f"{path} is no file that can be read: its name should end in {_NAMES.partition('*')[2]}.")
    return _read([path], text_column)


def _files_by_language(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    files: dict[str, list[Path]] = {}
    folders: dict[str, Path] = {}
    left_out = []
    for path in sorted(folder.iterdir()):
        if _NO_TEXTS.fullmatch(path.name):
            continue
        code = path.name.rpartition(".")[2] if path.is_dir() else code_in_name(path.name)
        if code is None or code in _SPLITS or not (kind_of(path) or (path.is_dir() and is_code(code))):
            left_out.append(f"{path.name}/" if path.is_dir() else path.name)
        elif path.is_dir():
            if (older := folders.get(canonical(code))) is not None:
                left_out.append(f"{older.name}/")  # sorted by date, so the newest stays
            folders[canonical(code)] = path
        else:
            files.setdefault(code, []).append(path)
    for code, path in folders.items():
        contents = [file for file in sorted(path.rglob("*")) if file.is_file() and not _NO_TEXTS.fullmatch(file.name)]
        left_out += [str(file.relative_to(folder)) for file in contents if kind_of(file) is None]
        if texts := [file for file in contents if kind_of(file)]:
            files.setdefault(code, []).extend(texts)
        else:
            left_out.append(f"{path.name}/")
    return files, left_out


def _of_split(language: str, files: list[Path], folder: Path, split: str) -> tuple[list[Path], list[str]]:
    """The files of a split, and the names of those that name no split where others name this one."""
    words = {file: set(re.split(r"[^a-z0-9]+", str(file.relative_to(folder)).lower())) for file in files}
    plain = [file for file in files if not words[file] & {*_SPLITS, split.lower()}]
    selected = [file for file in files if split.lower() in words[file]]
    if not selected and split == "train":
        selected, plain = plain, []
    if not selected:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:5])
        raise CorpusError(f"{language} has no file of the split {split!r} in {folder}, only {names}.")
    return selected, [str(file.relative_to(folder)) for file in plain if split == "train"]


def _read(files: list[Path], text_column: str) -> Dataset:
    # What files hold is part of what names the cache, so one that changes is read again.
    for file in files:
        try:
            check_regular(file)
        except StorageError as error:
            raise CorpusError(str(error)) from error
    hashes = [(str(file.resolve()), _content_hash(file)) for file in files]
    try:
        with quiet():
            options = {"files": hashes, "text_column": text_column}
            table = Dataset.from_generator(_rows, features=FEATURES, gen_kwargs=options)
    except (DatasetGenerationError, OSError) as error:
        if isinstance(error.__cause__, CorpusError):
            raise error.__cause__ from None
        raise CorpusError(f"Cannot read {files[0]} into the cache of datasets: {error.__cause__ or error}.") from error
    return with_known_places(table)


def _content_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror or error}.") from error


def _rows(files: list[tuple[str, str]], text_column: str) -> Iterator[Row]:
    empty = True
    for name, _ in files:
        for row in texts_of(Path(name), text_column):
            if str(row["text"]).strip():
                empty = False
                yield dict.fromkeys(FEATURES) | row
    if empty:
        raise CorpusError(f"There is no document in {', '.join(name for name, _ in files[:5])}: all is blank.")


# ---- a hub data set ----


def _from_hub(
    name: str, wanted: list[str] | None, text_column: str, split: str, revision: str | None
) -> dict[str, Dataset]:
    tables = hub_tables(name, wanted, split, revision)
    return {language: text_of(table, name, text_column) for language, table in tables.items()}


def is_hub_id(source: str) -> bool:
    """Whether a text looks like the id of a hub data set, and is no path that exists."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source)) and not path_of(source).exists()


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
            language: load_dataset(name, configs[code], split=split, revision=revision)
            for language, code in _choose(wanted, configs).items()
        }
    except (DatasetNotFoundError, DatasetGenerationError, OSError, ValueError) as error:
        raise CorpusError(
            f"{name} is neither a folder here nor a hub data set that can be read: {in_short(error)}"
        ) from error


def _configs_by_language(configs: Iterable[str]) -> dict[str, str]:
    newest: dict[str, str] = {}
    for config in sorted(configs):
        *_, before, language = ["", *config.split(".")]
        if scripts_of(before) and language_of(before) != language_of(language):
            continue  # "mlqa.de.en" has texts in German and questions in English
        newest[language] = config
    return newest
