import errno
import hashlib
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import langneurons as ln
from langneurons import storage
from langneurons.errors import CorruptArtefactError, StorageError

STORAGE = Path(storage.__file__).parent


def test_a_failed_write_leaves_what_stood_there_and_no_debris(tmp_path):
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")

    def fail_halfway():
        with storage.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_said_in_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    storage.write_tensors(path, {"x": torch.ones(3)}, sidecar=True)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        storage.write_tensors(path, {"x": torch.zeros(3)}, sidecar=True)
    assert storage.read_tensors(path)["x"].tolist() == [1, 1, 1]


def test_the_real_full_device_is_recognised():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    with pytest.raises(StorageError, match="disk is full"):
        storage.append_line(Path("/dev/full"), "x" * 100_000)


def test_tensors_are_written_to_the_same_bytes_whatever_the_order_of_their_names(tmp_path):
    a, b = torch.arange(3), torch.ones(2, 2)
    first = storage.write_tensors(tmp_path / "1" / "x", {"a": a, "b": b})
    assert first == storage.write_tensors(tmp_path / "2" / "x", {"b": b, "a": a})


@pytest.mark.parametrize("ending", ["", ".sum"])
def test_a_file_that_only_its_name_tells_from_others_does_not_stand_in_for_one(ending, tmp_path):
    storage.write_tensors(tmp_path / "en.safetensors", {"x": torch.ones(3)}, sidecar=True)
    for end in {"", ending}:  # alone, or with the checksum beside it
        (tmp_path / f"en.safetensors{end}").rename(tmp_path / f"hi.safetensors{end}")
    with pytest.raises(CorruptArtefactError, match="checksum"):
        storage.read_tensors(tmp_path / "hi.safetensors")


def test_a_checksum_beside_a_file_is_what_b2sum_writes(tmp_path):
    digest = storage.write_table(tmp_path / "t.parquet", pd.DataFrame({"a": [1]}), sidecar=True)
    assert (tmp_path / "t.parquet.sum").read_text() == f"{digest}  t.parquet\n"
    assert digest == hashlib.blake2b((tmp_path / "t.parquet").read_bytes(), digest_size=16).hexdigest()


def test_equal_tables_give_equal_bytes_that_hold_nothing_of_langneurons(tmp_path):
    table = pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "y"]})
    first, again = (storage.write_table(tmp_path / name / "t.parquet", table) for name in "12")
    assert first == again
    assert b"langneurons" not in (tmp_path / "1" / "t.parquet").read_bytes()
    assert [file.name for file in (tmp_path / "1").iterdir()] == ["t.parquet"]


@pytest.fixture(scope="module")
def summed(tmp_path_factory):
    """A table and tensors with their checksums beside them."""
    folder = tmp_path_factory.mktemp("summed")
    storage.write_table(folder / "t.parquet", pd.DataFrame({"a": [1.5, 2.5]}), sidecar=True)
    storage.write_tensors(folder / "x.safetensors", {"a": torch.tensor([1.5, 2.5])}, sidecar=True)
    return folder


READERS = {
    "t.parquet": lambda path: storage.read_table(path)["a"].tolist(),
    "x.safetensors": lambda path: storage.read_tensors(path)["a"].tolist(),
}


@given(data=st.data())
def test_any_changed_byte_of_a_file_or_of_the_checksum_beside_it_is_noticed(data, summed):
    name = data.draw(st.sampled_from(sorted(READERS)))
    file = summed / (name + data.draw(st.sampled_from(["", ".sum"])))
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    damage = data.draw(st.sampled_from(["changed", "cut", "added"]))
    byte = bytes([content[place] ^ data.draw(st.integers(1, 255))])
    after = {"changed": content[place + 1 :], "cut": b"", "added": content[place:]}[damage]
    damaged = content[:place] + (b"" if damage == "cut" else byte) + after
    file.unlink()  # others may still have the old one mapped
    file.write_bytes(damaged)
    try:
        assert READERS[name](summed / name) == [1.5, 2.5]
    except CorruptArtefactError:
        pass
    else:
        assert file.suffix == ".sum"  # the line still stands there
        assert content.strip() in damaged
    finally:
        file.unlink()
        file.write_bytes(content)
    assert READERS[name](summed / name) == [1.5, 2.5]


@pytest.mark.parametrize("name", READERS)
def test_a_file_without_a_checksum_is_not_whole_but_what_others_wrote_needs_none(name, summed, tmp_path):
    shutil.copy(summed / name, tmp_path)
    with pytest.raises(CorruptArtefactError, match=f"{name} does not fit its checksum"):
        READERS[name](tmp_path / name)
    read = storage.read_table if name == "t.parquet" else storage.read_tensors
    assert list(read(tmp_path / name, foreign=True)["a"]) == [1.5, 2.5]
    assert list(read(tmp_path / name, storage.checksum(summed / name))["a"]) == [1.5, 2.5]


class Killed(BaseException):
    """Ends a write where a kill could."""


@pytest.mark.parametrize("moment", range(1, 5))
def test_a_write_killed_at_any_moment_leaves_the_file_before_or_the_file_after(moment, tmp_path, monkeypatch):
    """There are two moves into place and two flushes to disk; twice in a row, because a second kill may meet more."""
    path = tmp_path / "x.safetensors"

    def write(value):
        storage.write_tensors(path, {"x": torch.tensor([value])}, sidecar=True)

    def killed_while_writing(value):
        calls = []

        def counted(call):
            def maybe(*arguments):
                calls.append(call)
                if len(calls) == moment:
                    raise Killed
                return call(*arguments)

            return maybe

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(os.fsync))
            patch.setattr(os, "replace", counted(os.replace))
            with pytest.raises(Killed):
                write(value)

    killed_while_writing(1.0)
    with pytest.raises(StorageError, match="no such file"):
        storage.read_tensors(path)
    write(2.0)
    killed_while_writing(3.0)
    killed_while_writing(4.0)
    assert storage.read_tensors(path)["x"].tolist() == [2.0]
    write(5.0)
    assert storage.read_tensors(path)["x"].tolist() == [5.0]


def test_many_writers_of_one_folder_do_not_disturb_each_other(tmp_path):
    def write(number):
        for _ in range(3):
            storage.write_table(tmp_path / f"{number}.parquet", pd.DataFrame({"a": [number]}), sidecar=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(16)))
    assert [storage.read_table(tmp_path / f"{number}.parquet")["a"].item() for number in range(16)] == list(range(16))


SAVED = Path(__file__).parent / "data" / "saved-by-0.1.0"


def test_what_0_1_0_wrote_is_read_and_verified(tmp_path):
    """It kept a checksum inside of each file, whose digits counted as zeros, also in what other files recorded."""
    shutil.copytree(SAVED, tmp_path, dirs_exist_ok=True)
    table = ln.effects.EffectTable.load(tmp_path / "effects")
    assert table.keys == ["patched", "measured"]
    rows, tensors = tmp_path / "rows.parquet", tmp_path / "checkpoint.safetensors"
    assert storage.read_table(rows)["value"].tolist() == [0.0, 0.5, 1.0]
    assert storage.read_table(rows).attrs == {}
    assert storage.read_tensors(tensors)["x"].tolist() == [1.5, 2.5]
    for file in (tmp_path / "effects" / "rows.parquet", rows, tensors):
        content = file.read_bytes()
        for place in range(0, len(content), 97):
            file.unlink()
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(CorruptArtefactError):
                {rows: storage.read_table, tensors: storage.read_tensors}.get(
                    file, lambda _: ln.effects.EffectTable.load(tmp_path / "effects")
                )(file)
        file.write_bytes(content)


def test_a_seal_is_verified_whatever_was_changed(tmp_path):
    storage.write_json(tmp_path / "a.json", "langneurons/test/1", {"n": 3, "names": {"x": 1.5}})
    assert storage.read_json(tmp_path / "a.json", "langneurons/test/1") == {"n": 3, "names": {"x": 1.5}}
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("1.5", "1.6"))
    with pytest.raises(CorruptArtefactError, match="checksum"):
        storage.read_json(tmp_path / "a.json", "langneurons/test/1")


def test_a_damaged_table_is_noticed(tmp_path):
    path = tmp_path / "t.parquet"
    storage.write_table(path, pd.DataFrame({"a": [1, 2]}), sidecar=True)
    assert storage.read_table(path)["a"].tolist() == [1, 2]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CorruptArtefactError, match="t.parquet"):
        storage.read_table(path)


def test_every_name_that_is_called_a_file_s_can_be_one_and_stays_in_its_folder(tmp_path):
    refused = ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a\0b", "\ud800", "x" * 101, "न" * 34]
    assert [name for name in refused if storage.names_a_file(name)] == []
    for name in ("en", "zh-Hant", "n.o_t 7", "हिन्दी", "a\nb", "x" * 100):
        assert storage.names_a_file(name)
        storage.write_text(tmp_path / f"source+target-{name}-seed1000000-draw9" / f"{name}.act.safetensors", "x")
    assert len(list(tmp_path.iterdir())) == 6


def test_nothing_but_storage_writes_files_or_pickles():
    writers = re.compile(
        r"\.write_text\(|\.write_bytes\(|torch\.save|pickle\.(dump|load)|Pickler|save_file\(|\.to_parquet\(|json\.dump\("
    )
    for path in STORAGE.parent.rglob("*.py"):
        if path.parent == STORAGE:
            continue
        lines = path.read_text().splitlines()
        if path.name == "executors.py":  # what goes from one process of a run to another is no file
            lines = [line for line in lines if "pickle" not in line.lower()]
        found = [line for line in lines if writers.search(line) and "storage." not in line]
        found = [line for line in found if not line.strip().startswith(("#", '"', ">>>"))]
        assert not found, f"{path}: {found}"
