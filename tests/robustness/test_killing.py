"""Studies killed at random moments end as if they had not been; two processes do not write in one folder."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from langneurons import storage
from langneurons.errors import StorageError
from langneurons.run import working_in
from tests.robustness.killing import STEPS, killed

QUICK = ("record", "matrix", "report")


@pytest.mark.parametrize("kind", QUICK)
def test_a_step_killed_at_random_moments_ends_with_the_same_files(kind, tmp_path):
    found = killed(kind, tmp_path, kills=3)
    assert found.equal
    assert found.kills > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in STEPS if kind not in QUICK])
def test_a_long_step_killed_at_random_moments_ends_with_the_same_files(kind, tmp_path):
    assert killed(kind, tmp_path, kills=2).equal


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    program = (
        "import os, signal; from pathlib import Path; from langneurons.run import working_in\n"
        f"with working_in(Path({str(tmp_path)!r}), 'recording'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -9
    with working_in(tmp_path, "recording"):
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
