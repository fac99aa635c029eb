"""Results: what verbs return; they are saved, loaded, printed and drawn in one way."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from langneurons.errors import CorruptArtefactError, LangNeuronsError, StorageError, unknown
from langneurons.storage.files import check_regular, path_of, said_plainly, understood
from langneurons.storage.hub import Shareable, located
from langneurons.storage.layouts import Layout, check_fields
from langneurons.storage.objects import ADVICE, JsonObject, check_same, read_json, read_object, schema_of, write_json
from langneurons.storage.presenting import Table
from langneurons.storage.tables import read_table, write_table

# Settings that say what a result is of, and by what method.
ORIGIN = ("model", "fingerprint", "site", "sites", "context_length", "task", "tasks", "method", "methods", "neurons")
AnyResult = TypeVar("AnyResult", bound="Result")

# Kind of result -> module of langneurons that defines its class; it is imported when such a result is loaded.
MODULES = {
    "ablation": "analysis.ablation",
    "activation-statistics": "recording.statistics",
    "attribution": "analysis.attribution",
    "classification-head": "tasks.heads",
    "comparison": "analysis.comparison",
    "decomposition": "analysis.decomposition",
    "effect-table": "effects.table",
    "evaluation": "evaluation.results",
    "finetuned": "training.finetuned",
    "neuron-set": "identification.neurons",
    "nulls": "analysis.validity.checks",
    "polysemanticity": "analysis.polysemanticity",
    "profiles": "analysis.profiles",
    "protocol-comparison": "replication.protocols",
    "published-statistics": "replication.statistics",
    "screen": "analysis.screening",
    "split-half": "analysis.validity.reliability",
    "survival": "analysis.validity.staying",
    "task-gradient": "analysis.task_gradient",
    "transfer": "training.transfer_table",
    "validity-table": "analysis.validity.checks",
}

_CLASSES: dict[str, type["Result"]] = {}


class Result(Shareable):
    """Base of everything that a verb returns: tables, and the settings they belong to.

    A subclass is a frozen dataclass that says what it is in its class statement::

        @dataclass(frozen=True, eq=False, repr=False)
        class Ablation(Result, kind="ablation", tables=("rows",), optional=("controls",)):
            rows: pd.DataFrame
            controls: pd.DataFrame | None
            settings: Mapping[str, Any]

    Saved, it is a folder with ``<file>.json`` (schema, settings, the tables' checksums) and a parquet file for each
    table. A class that holds more than tables and settings overrides ``_write`` and ``_read``. A class that prints
    more than its first table overrides ``table`` or ``__repr__``. Its ``layouts`` say which columns its tables have and
    what its settings hold; files of another layout are refused when they are read, and so are those whose parts do not
    fit each other, by ``_check_parts``.

    Attributes:
        kind: Short name of the class in the schema of its files, "" where it is not saved by itself.
        schema: Schema of its JSON file, ``"langneurons/<kind>/<version>"``.
        file: Name of its JSON file without the ending; None where a path names the file itself, not its folder.
        tables: Attribute -> name of its parquet file without the ending.
        optional: Those of the tables that may be None.
        layouts: Attribute -> what the table or the settings must hold.
    """

    kind: ClassVar[str] = ""
    schema: ClassVar[str] = ""
    file: ClassVar[str | None] = None
    tables: ClassVar[Mapping[str, str]] = {}
    optional: ClassVar[frozenset[str]] = frozenset()
    layouts: ClassVar[Mapping[str, Layout]] = {}

    def __init_subclass__(
        cls,
        kind: str = "",
        version: int = 1,
        file: str | None = "",
        tables: Sequence[str] | Mapping[str, str] = (),
        optional: Sequence[str] = (),
    ) -> None:
        """Register a kind of result.

        Args:
            kind: Short name in the schema of its files; without one, the class is not saved by itself.
            version: Version of its files, raised whenever older ones can no longer be read.
            file: Name of its JSON file without the ending, by default the kind; None where a path names the file.
            tables: Attributes that are DataFrames; a mapping also says under which names they are saved.
            optional: Further attributes that are DataFrames or None.
        """
        super().__init_subclass__()
        if kind:
            files = dict(tables) if isinstance(tables, Mapping) else {name: name for name in tables}
            cls.kind, cls.schema = kind, f"langneurons/{kind}/{version}"
            cls.file = kind if file == "" else file
            cls.tables = files | {name: name for name in optional}
            cls.optional = frozenset(optional)
            _CLASSES[kind] = cls

    def save(self, path: str | Path) -> Path:
        """Write everything: tables first, and last the JSON file, without which nothing counts as saved.

        Args:
            path: The folder; where the class is saved as one JSON file, that file.

        Returns:
            The path.

        Raises:
            StaleArtefactError: If another kind of result stands there, or one of another model, site, task, method or
                options of the method; nothing is overwritten then.
            StorageError: If the path names a file of another program, or cannot be written.
        """
        path = path_of(path)
        file = path if self.file is None else path / f"{self.file}.json"
        self._check_replaces(file)
        write_json(file, self.schema, self._write(path))
        return path

    @classmethod
    def load(cls: type[AnyResult], path: str | Path) -> AnyResult:
        """Read what ``save`` wrote.

        Args:
            path: The folder, or the JSON file in it; or ``hub:user/repo/name``.

        Raises:
            StorageError: If a file is missing.
            CorruptArtefactError: If it is another kind of file, or was truncated or changed.
            StaleArtefactError: If it was written in another version of its schema.
        """
        path = located(path)
        if cls.file is None and path.is_dir():
            path = _file_in(path)
        file = path if cls.file is None or path.is_file() else path / f"{cls.file}.json"
        content = read_json(file, cls.schema)
        with understood(file):
            fields = cls._read(file.parent, content)
            check_fields(file, cls.layouts, fields)
            result = cls(**fields)
            result._check_parts()
        return result

    def table(self) -> Table:
        """The table to print; by default the first of its tables, all columns.

        Raises:
            LangNeuronsError: If it has no table.
        """
        for name in self.tables:
            return Table(getattr(self, name))
        raise LangNeuronsError(f"{type(self).__name__} has no table to print.")

    def plot(self, *arguments: Any, **options: Any) -> Any:
        """Draw it.

        Args:
            arguments: Arguments of its figure in ``ln.plot``.
            options: Options of its figure in ``ln.plot``.

        Returns:
            A plotly figure.

        Raises:
            LangNeuronsError: If there is no figure of it.
        """
        figures = import_module("langneurons.views.plot").FIGURES
        for base in type(self).__mro__:
            if base.__name__ in figures:
                return figures[base.__name__](self, *arguments, **options)
        raise LangNeuronsError(
            f"There is no figure of {type(self).__name__}. Results that can be drawn: {', '.join(sorted(figures))}."
        )

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str | None:
        plain = not self.tables and type(self).table is Result.table
        return None if plain else self.table()._repr_html_()

    def _check_parts(self) -> None:
        """Raise a ValueError or KeyError where what was read does not fit together; by default everything does."""

    def _check_replaces(self, file: Path) -> None:
        """Refuse to overwrite what is no earlier version of this result."""
        here = {"kind": self.kind}
        with said_plainly(file, "write"):
            others = [other for other in sorted(file.parent.glob("*.json")) if other != file] if self.tables else []
            for other in filter(Path.is_file, others):
                kind, tables = _tables_of(other)
                if set(tables) & set(self.tables.values()):
                    check_same(file.parent, "result", {"kind": kind}, here)
            if not file.is_file() or not file.stat().st_size:
                return
        if not (kind := _kind_of(file)) and self.file is None:
            raise StorageError(f"{file} is no file of langneurons: {ADVICE}.")
        check_same(file, "result", {"kind": kind or self.kind}, here)
        if schema_of(file) == self.schema:
            with suppress(CorruptArtefactError):  # what is broken is worth nothing
                with understood(file):
                    there = self._origin_of(read_object(file))
                check_same(file, self.kind.replace("-", " "), there, self._origin)

    @property
    def _origin(self) -> JsonObject:
        """What an earlier version of this result must have been made with."""
        made_with = self._origin_of({"settings": dict(getattr(self, "settings", vars(self)))})
        return json.loads(json.dumps(made_with))  # as it is in a file

    @classmethod
    def _origin_of(cls, content: JsonObject) -> JsonObject:
        """What a result was made with, of what its JSON file holds."""
        settings = content.get("settings", content)
        return {name: settings[name] for name in ORIGIN if name in settings}

    def _save_into(self, folder: Path) -> None:
        self.save(folder / f"{self.kind}.json" if self.file is None else folder)

    def _about(self) -> dict[str, object]:
        """What the card on the hub says: by default what the settings hold."""
        settings = dict(getattr(self, "settings", {}))
        names = {"model": "model", "fingerprint": "weights", "corpus": "corpus", "method": "method"}
        stated = {name: settings.pop(key) for key, name in names.items() if key in settings}
        return {
            **stated,
            "options": {key: value for key, value in settings.items() if isinstance(value, str | int | float)},
        }

    def _write(self, folder: Path) -> JsonObject:
        """Write every file but the JSON file, and say what that holds."""
        frames = {name: frame for field, name in self.tables.items() if (frame := getattr(self, field)) is not None}
        checksums = {name: write_table(folder / f"{name}.parquet", frame) for name, frame in frames.items()}
        return {"settings": dict(getattr(self, "settings", {})), "checksums": checksums}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        """The constructor's arguments: what the JSON file and the files beside it hold."""
        settings, checksums = content.get("settings"), content.get("checksums")
        required = {name for field, name in cls.tables.items() if field not in cls.optional}
        if (
            not isinstance(settings, dict)
            or not isinstance(checksums, dict)
            or not required <= set(checksums) <= set(cls.tables.values())
        ):
            raise CorruptArtefactError(
                f"{folder / f'{cls.file}.json'} does not name {', '.join(sorted(required))}, no other tables than "
                f"{', '.join(cls.tables.values())}, and the settings: save it again."
            )
        frames = {name: read_table(folder / f"{name}.parquet", str(digest)) for name, digest in checksums.items()}
        return {"settings": settings, **{field: frames.get(name) for field, name in cls.tables.items()}}


def load(path: str | Path) -> Result:
    """Read a saved result of any kind.

    Args:
        path: Folder that the result was saved to, or its JSON file; or ``hub:user/repo/name`` for what ``push_to_hub``
            uploaded, with ``@`` and a branch, tag or commit where one is meant.

    Returns:
        The result: an ``Evaluation``, an ``Ablation``, a ``NeuronSet``, ...

    Raises:
        StorageError: If there is no result, there are several in the folder, or the hub cannot be reached.
        CorruptArtefactError: If it was truncated or changed.
        StaleArtefactError: If it was written in another version of its schema.
    """
    path = located(path)
    file = path if path.is_file() else _file_in(path)
    kind = _kind_of(file)
    if kind not in (kinds := result_kinds()):
        raise StorageError(f"{file} holds no result. {unknown('kind of result', kind, kinds)}")
    if kind not in _CLASSES:
        import_module(f"langneurons.{MODULES[kind]}")
    return _CLASSES[kind].load(file)


def result_kinds() -> list[str]:
    """Kinds of results that can be loaded."""
    return sorted({*MODULES, *_CLASSES})


def _file_in(folder: Path) -> Path:
    """The JSON file of the one result in a folder."""
    if not folder.is_dir():
        check_regular(folder)
        raise StorageError(f"Cannot read {folder}: there is no such file or folder.")
    kinds = result_kinds()
    files = [file for file in sorted(folder.glob("*.json")) if file.is_file() and _kind_of(file) in kinds]
    if not files:
        raise StorageError(
            f"{folder} holds no result: none of its JSON files has a schema such as 'langneurons/ablation/1'. Kinds of "
            f"results: {', '.join(kinds)}."
        )
    if len(files) > 1:
        raise StorageError(f"{folder} holds several results: give one of {', '.join(file.name for file in files)}.")
    return files[0]


def _tables_of(file: Path) -> tuple[str, list[str]]:
    """The kind of the result that a JSON file belongs to, and its tables; of another file neither."""
    try:
        kind, checksums = _kind_of(file), read_object(file).get("checksums")
    except StorageError:
        return "", []
    return (kind, list(checksums)) if kind in result_kinds() and isinstance(checksums, dict) else ("", [])


def _kind_of(file: Path) -> str:
    matched = re.fullmatch(r"langneurons/([\w-]+)/\d+", schema_of(file))
    return matched[1] if matched else ""
