"""Results that somebody edited and sealed again: nothing can tell them from others but what they hold."""

import json
import shutil
import warnings
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet

from langneurons.errors import LangNeuronsError
from langneurons.storage.checksums import checksum, seal
from tests.robustness import mutations
from tests.robustness.fuzzing import LIMIT_S, Hung, Outcome, _limited, _readable, _where
from tests.robustness.results import RESULTS, used

UPWARDS = ("../../x", "../hi", "/etc/passwd", "..", "a/b")
ODD_CELLS = (
    None,
    -1,
    10**9,
    2**62,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../hi",
    "<img src=x>",
    "y" * 9000,
)


def _cell_replaced(table: pa.Table, random: Random) -> pa.Table:
    """Another value of the column's own type, in one row or in all."""
    if not len(table):
        return table
    place, row = random.randrange(table.num_columns), random.randrange(len(table))
    column = table.column(place)
    rows = range(len(table)) if random.random() < 0.3 else (row,)
    values = column.to_pylist()
    for each in rows:
        values[each] = random.choice(ODD_CELLS)
    try:
        replaced = pa.array(values, column.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return table.set_column(place, table.column_names[place], pa.array([str(value) for value in values]))
    return table.set_column(place, table.column_names[place], replaced)


def _rows_repeated(table: pa.Table, random: Random) -> pa.Table:
    start = random.randrange(len(table) + 1)
    return pa.concat_tables([table, table.slice(start, random.choice((1, len(table))))])


def _pointing_up(holder: dict, key: object, random: Random) -> None:
    holder[key] = random.choice(UPWARDS)


FORGERIES = {
    ".json": {
        "value replaced": mutations._json(mutations._replaced),
        "value that points upwards": mutations._json(_pointing_up),
        "key removed": mutations._json(mutations._removed),
        "key renamed": mutations._json(mutations._renamed),
    },
    ".parquet": {
        **mutations._PARQUET,
        "cell replaced": mutations._parquet(_cell_replaced),
        "rows repeated": mutations._parquet(_rows_repeated),
    },
    ".safetensors": {name: mutations._SAFETENSORS[name] for name in ("dtype", "shape", "names exchanged")},
}


def forge(folder: Path, random: Random) -> str:
    """Change one file of a saved result, and seal everything again.

    Returns:
        What was done.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix in FORGERIES)
    file = random.choice(files)
    way = random.choice(sorted(FORGERIES[file.suffix]))
    before = checksum(file)
    data = FORGERIES[file.suffix][way](file.read_bytes(), random)
    assert data is not None
    file.write_bytes(data)
    for manifest in folder.rglob("*.json"):
        content = json.loads(manifest.read_text("utf-8").replace(before, checksum(file)))
        content.pop("seal", None)
        manifest.write_text(json.dumps(seal(content)), "utf-8")
    return f"{file.name}: {way}"


def forged(kind: str, seed: int, count: int, folder: Path) -> Outcome:
    """Forge results of one kind, and use those that are not refused.

    Args:
        kind: A kind of result.
        seed: Seed of the forgeries.
        count: Number of forgeries.
        folder: An empty folder to work in.
    """
    result, outcome = RESULTS[kind](), Outcome()
    name = "result.json" if result.file is None and kind != "factorial" else ""
    result.save(folder / "whole" / name)
    used(type(result).load(folder / "whole" / name))
    for number in range(count):
        random = Random(f"{kind} {seed} {number}")
        shutil.copytree(folder / "whole", folder / "forged")
        forgery = forge(folder / "forged", random)
        verdict = _verdict(type(result), folder / "forged" / name, drawn=number % 10 == 0)
        shutil.rmtree(folder / "forged")
        outcome.counts[verdict if verdict in ("refused", "refused in use", "legal") else "failed"] += 1
        if verdict not in ("refused", "refused in use", "legal"):
            outcome.failures.append(f"{kind}, seed {seed}, forgery {number} ({forgery}): {verdict}")
    return outcome


def _verdict(kind: type, path: Path, drawn: bool) -> str:
    loaded = False
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = kind.load(path)
            loaded = True
            used(result, drawn)
    except LangNeuronsError as error:
        if not _readable(str(error)):
            return f"said badly: {error}"
        return "refused in use" if loaded else "refused"
    except Hung:
        return f"took longer than {LIMIT_S} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]} at {_where(error)}{' (in use)' if loaded else ''}"
    return "legal"
