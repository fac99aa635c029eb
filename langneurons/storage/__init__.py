"""Every file langneurons writes or reads back: JSON, safetensors and parquet, atomic, versioned, checked.

A file appears whole under its name or not at all. JSON artefacts carry a ``schema`` such as
``"langneurons/neuron-set/1"``. Every file carries a seal, the hash of what it holds, which reading verifies before
anything else looks at it. What other programs write, and JSON that was edited by hand, has none.
"""

from langneurons.storage.faults import understood
from langneurons.storage.folders import (
    alone,
    check_writable,
    locked,
    make_temporary_folder,
    names_a_file,
    remove_folder,
    temporary_folder,
)
from langneurons.storage.objects import read_json, read_object, read_toml, schema_of, write_json
from langneurons.storage.sealing import checksum, fingerprint, verify
from langneurons.storage.tables import read_result, read_table, write_result, write_table
from langneurons.storage.tensors import read_tensors, write_tensors
from langneurons.storage.writing import append_line, replacing, write_text

__all__ = [
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
