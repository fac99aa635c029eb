"""Disks that fill up, output that must not be written: one sentence, nothing wrong that loads, and it goes on."""

import contextlib
import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from langneurons import storage
from langneurons.errors import LangNeuronsError, StorageError
from tests.robustness.artefacts import ARTEFACTS, described
from tests.robustness.commands import commands, prepared, ran

UNFINISHED = {"half a recording", "half a fine-tuning"}  # an earlier state is no wrong one: the tests of kills ask
SEALED = [name for name, one in ARTEFACTS.items() if not one.plain and name not in {*UNFINISHED, "published mask"}]


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("prepared"))


@contextlib.contextmanager
def full_from(write: int) -> Iterator[list[int]]:
    """Let the disk be full from some write on; gives the number of writes asked for."""
    asked, real = [0], os.fsync

    def fsync(descriptor: int) -> None:
        asked[0] += 1
        if asked[0] >= write:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    os.fsync = fsync
    try:
        yield asked
    finally:
        os.fsync = real


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of some size; skipped where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", SEALED)
def test_a_save_that_stops_at_any_file_leaves_nothing_wrong_and_works_afterwards(name, tmp_path):
    artefact = ARTEFACTS[name]
    warnings.simplefilter("ignore")
    artefact.make(_made(tmp_path / "whole"))
    expected = described(artefact.read(tmp_path / "whole"))
    for write in range(1, 12):
        folder = _made(tmp_path / str(write))
        with full_from(write) as asked, contextlib.suppress(StorageError):
            artefact.make(folder)
        assert not list(folder.rglob("*.partial"))
        if asked[0] < write:
            break
        try:
            assert described(artefact.read(folder)) == expected
        except LangNeuronsError:
            artefact.make(folder)
            assert described(artefact.read(folder)) == expected
    assert asked[0] < write


@pytest.mark.parametrize("name", ["record", "identify", "ablate", "polysemanticity", "finetune", "report"])
def test_a_command_on_a_full_disk_says_so_and_goes_on_afterwards(name, at, tmp_path):
    _check_goes_on(commands(at, tmp_path / "out")[name], write=1 if name in ("identify", "report") else 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["perplexity-matrix", "evaluate", "transfer-experiment", "profile", "study"])
@pytest.mark.parametrize("write", [1, 3])
def test_a_long_command_on_a_full_disk_says_so_and_goes_on_afterwards(name, write, at, tmp_path):
    _check_goes_on(commands(at, tmp_path / "out")[name], write)


def test_a_disk_that_is_really_full_is_said_plainly(at, tmp_path):
    with mounted(tmp_path / "small", "64k") as small:
        found = ran(commands(at, small / "out")["record"])
        _check_sentence(found, "disk is full")
        assert not list(small.rglob("*.partial"))


@pytest.mark.parametrize(
    "name", ["record", "identify", "perplexity-matrix", "evaluate", "ablate", "polysemanticity", "finetune"]
)
def test_output_that_must_not_be_written_is_said_plainly(name, at, tmp_path):
    with mounted(tmp_path / "fixed", "4m") as fixed:
        subprocess.run(["mount", "-o", "remount,ro", str(fixed)], check=True)
        _check_sentence(ran(commands(at, fixed / "out")[name]), "Read-only file system")


@pytest.mark.parametrize("name", ["record", "identify", "ablate", "finetune", "report", "study"])
def test_a_file_where_the_folder_should_be_is_said_plainly(name, at, tmp_path):
    (tmp_path / "out").write_text("a file")
    _check_sentence(ran(commands(at, tmp_path / "out")[name]), "out")
    assert (tmp_path / "out").read_text() == "a file"


def test_a_file_that_may_not_grow_is_said_plainly(tmp_path):
    """RLIMIT_FSIZE fails in the middle of a file, where a full disk does, too."""
    program = (
        "import resource, signal, torch; from pathlib import Path; from langneurons import errors, storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        f"try: storage.write_tensors(Path({str(tmp_path / 'x.safetensors')!r}), {{'x': torch.ones(100_000)}})\n"
        "except errors.StorageError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "x.safetensors" in found.stdout
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_that_cannot_be_made_is_said_plainly(at, monkeypatch):
    import langneurons as ln
    from tests.robustness.artefacts import DOCUMENTS, model

    def mkdtemp(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    tiny, corpus = model(), ln.load_corpus(DOCUMENTS)
    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    for work in (ln.record, ln.HeldoutText.of):
        with pytest.raises(StorageError, match="disk is full"):
            work(tiny, corpus, context_length=16)


@pytest.mark.parametrize("write", [1, 2])
def test_what_stood_there_stays_when_the_disk_is_full(write, tmp_path):
    path = tmp_path / "x.safetensors"
    storage.write_tensors(path, {"x": torch.ones(3)}, sidecar=True)
    with full_from(write), pytest.raises(StorageError, match="disk is full"):
        storage.write_tensors(path, {"x": torch.zeros(3)}, sidecar=True)
    assert storage.read_tensors(path)["x"].tolist() == [1, 1, 1]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _check_goes_on(arguments: list[object], write: int) -> None:
    with full_from(write) as asked:
        found = ran(arguments)
    assert asked[0] >= write
    _check_sentence(found, "disk is full")
    assert ran(arguments).status == 0


def _check_sentence(found, words: str) -> None:
    said = [line for line in found.said.replace("\r", "\n").splitlines() if line.startswith("langneurons: ")]
    assert found.status == 2
    assert words in said[-1]
    assert "Traceback" not in found.said
