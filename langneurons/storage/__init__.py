"""Every file langneurons writes or reads back: JSON, safetensors and parquet, atomic, versioned, checked.

A file appears whole under its name or not at all. JSON artefacts carry a ``schema`` such as
``"langneurons/neuron-set/1"``. Every file has a checksum, which is verified before anything else looks at the file:
JSON carries its own, a result's JSON those of its tables and tensors, other files have one beside them. What other
programs write, and JSON that was edited by hand, needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langneurons.storage.checksums import checksum, fingerprint, verify
from langneurons.storage.files import (
    alone,
    append_line,
    check_writable,
    locked,
    make_temporary_folder,
    names_a_file,
    remove_folder,
    replacing,
    temporary_folder,
    understood,
    write_text,
)
from langneurons.storage.objects import JsonObject, read_json, read_object, read_toml, schema_of, write_json

if TYPE_CHECKING:
    from langneurons.storage.presenting import Column, Table
    from langneurons.storage.result import Result
    from langneurons.storage.tables import read_result, read_table, write_result, write_table
    from langneurons.storage.tensors import read_tensors, write_tensors

# Imported when they are first used, because pandas and torch take long.
_LATER = {
    "Column": "presenting",
    "Result": "result",
    "Table": "presenting",
    "read_result": "tables",
    "read_table": "tables",
    "read_tensors": "tensors",
    "write_result": "tables",
    "write_table": "tables",
    "write_tensors": "tensors",
}

__all__ = [
    "Column",
    "JsonObject",
    "Result",
    "Table",
    "alone",
    "append_line",
    "check_writable",
    "checksum",
    "fingerprint",
    "locked",
    "make_temporary_folder",
    "names_a_file",
    "read_json",
    "read_object",
    "read_result",
    "read_table",
    "read_tensors",
    "read_toml",
    "remove_folder",
    "replacing",
    "schema_of",
    "temporary_folder",
    "understood",
    "verify",
    "write_json",
    "write_result",
    "write_table",
    "write_tensors",
    "write_text",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'langneurons.storage' has no attribute {name!r}")
    return getattr(import_module(f"langneurons.storage.{_LATER[name]}"), name)
