"""Studies killed at random moments end as if they had not been; two processes do not write in one folder."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from langneurons import storage
from langneurons.errors import StorageError
from langneurons.run import working_in
from langneurons.storage import files
from tests.robustness.killing import STEPS, killed

QUICK = ("record", "matrix", "report")


@pytest.mark.parametrize("kind", QUICK)
def test_a_step_killed_at_random_moments_ends_with_the_same_files(kind, tmp_path):
    found = killed(kind, tmp_path, kills=3)
    assert found.equal
    assert found.orphans == ()
    assert found.kills > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in STEPS if kind not in QUICK])
def test_a_long_step_killed_at_random_moments_ends_with_the_same_files(kind, tmp_path):
    found = killed(kind, tmp_path, kills=2)
    assert found.equal
    assert found.orphans == ()


KILLED_WHILE_WRITING = """
import os, signal
from pathlib import Path
from langneurons import storage

folder = Path({folder!r})
with storage.replacing(folder / "deep" / "x.json") as temporary:
    temporary.write_text("half")
    if {unlocked}:
        temporary.rename(folder / "deep" / ".x.json.abcdefgh.partial")  # as version 0.1.0 called it
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _killed_while_writing(folder, times=1, unlocked=False):
    for _ in range(times):
        program = KILLED_WHILE_WRITING.format(folder=str(folder), unlocked=unlocked)
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9


def _names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_many_kills_while_writing_leave_one_file_that_the_next_write_removes(tmp_path):
    _killed_while_writing(tmp_path, times=3)
    assert _names(tmp_path) == [".x.json.partial"]
    storage.write_text(tmp_path / "deep" / "x.json", "whole")
    assert _names(tmp_path) == ["x.json"]
    assert (tmp_path / "deep" / "x.json").read_text() == "whole"


@pytest.mark.parametrize("unlocked", [False, True])
def test_a_folder_that_is_opened_loses_what_killed_processes_left_half_written(unlocked, tmp_path):
    _killed_while_writing(tmp_path, unlocked=unlocked)
    (tmp_path / "deep" / "mine.partial").touch()
    with storage.replacing(tmp_path / "deep" / "y.json") as being_written:
        storage.check_writable(tmp_path)
        assert being_written.exists()
    with working_in(tmp_path, "testing"):
        assert _names(tmp_path) == [".lock", "mine.partial", "y.json"]


REMOVES = """
import sys
from pathlib import Path
from langneurons import storage
print("ready", flush=True)
while not Path(sys.argv[1], "stop").exists():
    storage.remove_orphans(Path(sys.argv[1]))
"""


def test_what_is_being_written_is_never_taken_for_an_orphan(tmp_path):
    """Also where the writer puts another file in the temporary one's place, as that of safetensors does."""
    remover = subprocess.Popen([sys.executable, "-c", REMOVES, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert remover.stdout is not None
        assert remover.stdout.readline() == b"ready\n"
        for number in range(300):
            with storage.replacing(tmp_path / "deep" / f"{number % 3}.safetensors") as temporary:
                save_file({"weight": torch.full((10,), float(number))}, temporary)
            assert load_file(tmp_path / "deep" / f"{number % 3}.safetensors")["weight"][0] == number
    finally:
        (tmp_path / "stop").touch()
        assert remover.wait(timeout=60) == 0


KILLED_ON_A_NETWORK_DRIVE = """
import os, signal, sys
from pathlib import Path
from langneurons import storage
from langneurons.storage import files

files.LOCAL_DRIVES = ()
with storage.replacing(Path(sys.argv[1], "deep", "x.json")) as temporary:
    print(temporary.name, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_on_a_network_drive_only_what_an_ended_process_of_this_machine_left_is_removed(tmp_path, monkeypatch):
    """There the lock of a folder says nothing of other machines, so that their files are never touched."""
    program = [sys.executable, "-c", KILLED_ON_A_NETWORK_DRIVE, str(tmp_path)]
    writer = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdin is not None
    assert writer.stdout is not None
    name = writer.stdout.readline().strip()
    others = [
        name.replace(name[8:16], "0" * 8),  # a process of that number on another machine, or before this one restarted
        name.replace(f"-{writer.pid}-", f"-{os.getpid()}-"),  # a number that another process has since been given
        ".x.json.partial",  # as a local drive calls it
    ]
    for other in others:
        (tmp_path / "deep" / other).touch()
    monkeypatch.setattr(files, "LOCAL_DRIVES", ())
    files._is_local.cache_clear()
    storage.remove_orphans(tmp_path)
    assert _names(tmp_path) == sorted([name, others[0], others[2]])
    writer.communicate("go\n")
    storage.check_writable(tmp_path)
    assert _names(tmp_path) == sorted([others[0], others[2]])
    storage.write_text(tmp_path / "deep" / "x.json", "whole")
    with storage.replacing(tmp_path / "deep" / "y") as first, storage.replacing(tmp_path / "deep" / "y") as second:
        storage.remove_orphans(tmp_path)
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert _names(tmp_path) == sorted([others[0], others[2], "x.json", "y"])
    files._is_local.cache_clear()


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with storage.replacing(tmp_path / "x") as first, storage.replacing(tmp_path / "x") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "x").read_text() == "first"
    assert _names(tmp_path) == ["x"]


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    program = (
        "import os, signal; from pathlib import Path; from langneurons.run import working_in\n"
        f"with working_in(Path({str(tmp_path)!r}), 'recording'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -9
    with working_in(tmp_path, "recording"):
        pass


def _interrupted(folder, name):
    with working_in(folder, "recording"):
        if name is not None:
            (folder / name).write_text("{}")
        raise KeyboardInterrupt


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_a_folder_goes_that_was_made_for_work_that_failed_before_it_kept_anything(tmp_path, there_before, kept):
    folder = tmp_path / "out"
    if there_before:
        folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        _interrupted(folder, "part.json" if kept else None)
    assert folder.exists() == (there_before or kept)
    with working_in(folder, "recording"):
        pass


def test_two_blocks_of_one_process_do_not_hold_one_lock(tmp_path):
    lock = tmp_path / "deep" / "lock"
    with storage.locked(lock) as first:
        with storage.locked(lock) as second, storage.locked(lock) as third:
            assert (first, second, third) == (True, False, False)
        with ThreadPoolExecutor(1) as other_thread:
            assert other_thread.submit(_is_free, lock).result() is False
    assert _is_free(lock)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_files_cannot_be_locked_their_presence_keeps_others_out(tmp_path, monkeypatch, code):
    def refuse(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with storage.locked(tmp_path / "lock") as first, storage.locked(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    assert _is_free(tmp_path / "lock")


def test_a_lock_in_a_place_that_cannot_be_is_said_plainly(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="Cannot write"), storage.locked(tmp_path / "file" / "lock"):
        pass


def _is_free(lock):
    with storage.locked(lock) as free:
        return free
