"""Ways to damage a file, drawn at random but reproducible: by bytes, and by what its format is made of."""

import io
import json
import math
import string
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from langneurons.storage.checksums import seal

Damage = bytes | None  # None stands for a folder in the file's place
Mutation = Callable[[bytes, Random], Damage]
FORGED = "sealed again"  # no damage but an edit, which nothing can tell from the original
HUGE = (10**12, 2**63, -1, -(10**12), 10**400)


def mutated(name: str, data: bytes, others: Mapping[str, bytes], random: Random) -> tuple[str, Damage]:
    """Damage a file in one way.

    Args:
        name: Of the file; its ending decides what may be done to it.
        data: What it holds.
        others: Files of other artefacts that may be put in its place.
        random: Decides.

    Returns:
        What was done, and what the file holds then.
    """
    kinds = dict(_BYTES)
    if others:
        kinds["swapped"] = lambda _, random: others[random.choice(sorted(others))]
    for ending, ways in _FORMATS.items():
        if name.endswith(ending):  # twice as often as by bytes
            kinds |= ways | {f"{way} ": mutation for way, mutation in ways.items()}
    how = random.choice(sorted(kinds))
    return f"{name}: {how.strip()}", kinds[how](data, random)


# ---- bytes ----


def _truncated(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _flipped(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 8))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _run(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 2, 8, 64, 4096)))


def _overwritten(data: bytes, random: Random) -> bytes:
    start, stop = _run(data, random)
    filling = random.choice((bytes(stop - start), b"\xff" * (stop - start), random.randbytes(stop - start)))
    return data[:start] + filling + data[stop:]


def _inserted(data: bytes, random: Random) -> bytes:
    start, stop = _run(data, random)
    return data[:start] + random.randbytes(stop - start) + data[start:]


def _deleted(data: bytes, random: Random) -> bytes:
    start, stop = _run(data, random)
    return data[:start] + data[stop:]


def _digit_changed(data: bytes, random: Random) -> bytes:
    """The most dangerous damage: a number becomes another."""
    places = [place for place, byte in enumerate(data) if chr(byte) in string.digits]
    if not places:
        return _flipped(data, random)
    place = random.choice(places)
    return data[:place] + random.choice(string.digits).encode() + data[place + 1 :]


_BYTES: dict[str, Mutation] = {
    "truncated": _truncated,
    "bits flipped": _flipped,
    "bytes overwritten": _overwritten,
    "bytes inserted": _inserted,
    "bytes deleted": _deleted,
    "a digit changed": _digit_changed,
    "empty": lambda data, random: b"",
    "a folder": lambda data, random: None,
}

# ---- JSON ----


def _odd_value(random: Random) -> Any:
    return random.choice(
        [None, True, 0, 1.5, "", "x", "../../x", [], {}, [[]], math.nan, math.inf, "9" * 5000, *HUGE, [None] * 3]
    )


def _places(content: Any, above: tuple = ()) -> list[tuple]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [found for key, value in items for found in [(*above, key), *_places(value, (*above, key))]]


def _at_random_place(content: Any, random: Random, change: Callable[[Any, Any], None]) -> Any:
    places = _places(content)
    if places:
        *above, key = random.choice(places)
        for step in above:
            content = content[step]
        change(content, key)
    return content


def _json(change: Callable[[Any, Any, Random], None], resealed: bool = False) -> Mutation:
    def mutation(data: bytes, random: Random) -> bytes:
        content = json.loads(data)
        _at_random_place(content, random, lambda holder, key: change(holder, key, random))
        if resealed and "seal" in content:
            content.pop("seal")
            content = seal(content)
        return json.dumps(content).encode()

    return mutation


def _replaced(holder: Any, key: Any, random: Random) -> None:
    holder[key] = _odd_value(random)


def _removed(holder: Any, key: Any, random: Random) -> None:
    del holder[key]


def _renamed(holder: Any, key: Any, random: Random) -> None:
    if isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder.append(holder[key])


def _duplicated(data: bytes, random: Random) -> bytes:
    content = json.loads(data)
    if not isinstance(content, dict) or not content:
        return data
    key = random.choice(sorted(content))
    return data.rstrip()[:-1] + f", {json.dumps(key)}: {json.dumps(_odd_value(random))}}}".encode()


def _nested(data: bytes, random: Random) -> bytes:
    depth = random.choice((100, 5_000, 200_000))
    return data.rstrip()[:-1] + b', "deep": ' + b"[" * depth + b"]" * depth + b"}"


_JSON: dict[str, Mutation] = {
    "JSON value replaced": _json(_replaced),
    "JSON key removed": _json(_removed),
    "JSON key renamed": _json(_renamed),
    f"JSON value replaced, {FORGED}": _json(_replaced, resealed=True),
    f"JSON key removed, {FORGED}": _json(_removed, resealed=True),
    "JSON key duplicated": _duplicated,
    "JSON nested deep": _nested,
}

# ---- safetensors ----


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _with_header(header: dict[str, Any], body: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def _tensor_of(header: dict[str, Any], random: Random) -> dict[str, Any]:
    return header[random.choice(sorted(name for name in header if name != "__metadata__"))]


def _header_length(data: bytes, random: Random) -> bytes:
    header, body = _header(data)
    return _with_header(header, body, random.choice((0, 1, 10**9, 10**12, 2**63, len(data), random.randrange(300))))


def _header_value(data: bytes, random: Random) -> bytes:
    header, body = _header(data)
    _at_random_place(header, random, lambda holder, key: _replaced(holder, key, random))
    return _with_header(header, body)


def _offsets(data: bytes, random: Random) -> bytes:
    header, body = _header(data)
    tensor = _tensor_of(header, random)
    tensor["data_offsets"] = [random.choice((0, 8, *HUGE[:4], len(body))), random.choice((0, 8, *HUGE[:4], len(body)))]
    return _with_header(header, body)


def _dtype(data: bytes, random: Random) -> bytes:
    header, body = _header(data)
    same = random.choice((["F32", "I32", "U32"], ["I64", "F64", "U64"], ["BF16", "F16", "I16"], ["F8_E4M3", "BOOL"]))
    _tensor_of(header, random)["dtype"] = random.choice(same)
    return _with_header(header, body)


def _shape(data: bytes, random: Random) -> bytes:
    header, body = _header(data)
    tensor = _tensor_of(header, random)
    shape = tensor["shape"]
    tensor["shape"] = random.choice((shape[::-1], [*shape, 1], [math.prod(shape)], [10**12], [10**6] * 3, [0], []))
    return _with_header(header, body)


def _names_exchanged(data: bytes, random: Random) -> bytes:
    header, body = _header(data)
    names = sorted(name for name in header if name != "__metadata__")
    one, other = random.choice(names), random.choice(names)
    header[one], header[other] = header[other], header[one]
    return _with_header(header, body)


_SAFETENSORS: dict[str, Mutation] = {
    "header length": _header_length,
    "header value replaced": _header_value,
    "offsets": _offsets,
    "dtype": _dtype,
    "shape": _shape,
    "names exchanged": _names_exchanged,
}

# ---- parquet ----


def _parquet(change: Callable[[pa.Table, Random], pa.Table]) -> Mutation:
    def mutation(data: bytes, random: Random) -> bytes:
        written = io.BytesIO()
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(io.BytesIO(data)), random), written)
        return written.getvalue()

    return mutation


def _column(table: pa.Table, random: Random) -> int:
    return random.randrange(table.num_columns)


def _other_type(table: pa.Table, random: Random) -> pa.Table:
    place = _column(table, random)
    size = len(table)
    values = random.choice(
        (pa.array([None] * size, pa.string()), pa.array(["x"] * size), pa.array([1.5] * size), pa.array([[1]] * size))
    )
    return table.set_column(place, table.column_names[place], values)


def _other_name(table: pa.Table, random: Random) -> pa.Table:
    names = table.column_names
    names[_column(table, random)] = random.choice(("x", names[0]))
    return table.rename_columns(names)


_PARQUET: dict[str, Mutation] = {
    "column dropped": _parquet(lambda table, random: table.remove_column(_column(table, random))),
    "column renamed": _parquet(_other_name),
    "column of another type": _parquet(_other_type),
    "rows dropped": _parquet(lambda table, random: table.slice(0, random.randrange(len(table) + 1))),
}

# ---- text ----


def _line(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    odd = (
        b"\x00\x01",
        b"{",
        b"[[[[",
        b"[" * 5000,
        b"a = 1",
        b"\xff\xfe",
        b"x" * 100_000,
        b"=",
        b"\t\t\t",
        b'{"text": 3}',
    )
    lines[place] = random.choice((b"", random.choice(odd), lines[random.randrange(len(lines))]))
    return b"\n".join(lines)


_TEXT: dict[str, Mutation] = {"a line replaced": _line}

_FORMATS: dict[str, dict[str, Mutation]] = {
    ".json": _JSON,
    ".safetensors": _SAFETENSORS,
    ".parquet": _PARQUET,
    ".toml": _TEXT,
    ".jsonl": _TEXT,
    ".tsv": _TEXT,
    ".txt": _TEXT,
}
