import errno
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

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
    storage.write_tensors(path, {"x": torch.ones(3)})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        storage.write_tensors(path, {"x": torch.zeros(3)})
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


def test_a_file_that_only_its_name_tells_from_others_does_not_stand_in_for_one(tmp_path):
    storage.write_tensors(tmp_path / "en.safetensors", {"x": torch.ones(3)})
    (tmp_path / "en.safetensors").rename(tmp_path / "hi.safetensors")
    with pytest.raises(CorruptArtefactError, match="written as 'en"):
        storage.read_tensors(tmp_path / "hi.safetensors")


def test_a_seal_is_verified_whatever_was_changed(tmp_path):
    storage.write_json(tmp_path / "a.json", "langneurons/test/1", {"n": 3, "names": {"x": 1.5}})
    assert storage.read_json(tmp_path / "a.json", "langneurons/test/1") == {"n": 3, "names": {"x": 1.5}}
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("1.5", "1.6"))
    with pytest.raises(CorruptArtefactError, match="checksum"):
        storage.read_json(tmp_path / "a.json", "langneurons/test/1")


def test_a_damaged_table_is_noticed(tmp_path):
    path = tmp_path / "t.parquet"
    storage.write_table(path, pd.DataFrame({"a": [1, 2]}))
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
