"""The command line ends with a sentence and its status when it is interrupted, or its output cannot be written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import langneurons as ln
from langneurons.errors import StudyError
from langneurons.study.config import read_config
from tests.robustness.commands import commands, prepared

# A shell that runs the tests in the background makes its children ignore Ctrl-C.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from langneurons.cli import main
sys.stderr.write("ready\\n")
sys.stderr.flush()
main()
"""


def begun(*arguments: object, **streams) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, *map(os.fsencode, map(str, arguments))]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, **streams)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    said = process.communicate(timeout=240)[1].decode(errors="surrogateescape")
    assert "Traceback" not in said, said
    assert "Exception ignored" not in said, said
    return process.returncode, said.partition("ready\n")[2]


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.5, 1, 2])
def test_ctrl_c_is_one_line_from_the_first_moment_on(seconds):
    process = begun("perplexity", "babel", "babel", stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    assert process.stderr.readline() == b"ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=240)[1].decode()
    assert process.returncode == 130, said
    lines = [line for line in said.splitlines() if "%|" not in line and "Measuring" not in line]
    assert lines == ["langneurons: interrupted. Run the same command again to go on from here."]


def test_a_full_disk_under_the_output_is_one_sentence():
    with Path("/dev/full").open("wb") as full:
        status, said = ended(begun("--help", stdout=full))
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("langneurons: Cannot write the output: No space left on device.")


def test_a_reader_that_went_away_ends_the_program_without_a_word():
    process = begun("--help", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert ended(process) == (1, "")


def test_a_closed_output_changes_nothing():
    process = begun("describe", "babel", preexec_fn=lambda: os.close(1))
    assert ended(process) == (0, "")


def test_what_was_computed_is_kept_though_it_cannot_be_shown(tmp_path):
    arguments = commands(prepared(tmp_path / "at"), tmp_path / "out")["ablate"]
    with Path("/dev/full").open("wb") as full:
        status, said = ended(begun(*arguments, "--no-progress", stdout=full))
    assert status == 2, said
    assert len(ln.load(tmp_path / "out" / "ablation").rows)


def test_a_path_that_is_no_text_can_be_written_to_and_shown(tmp_path):
    file = tmp_path / "numbers.toml"
    file.write_text("")
    status, said = ended(begun("study", tmp_path / "\udcff.toml", stdout=subprocess.DEVNULL))
    assert status == 2
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "name is missing; models is missing"),
        (b"\x00\x01\xfe\xff" * 100, "is no TOML file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is no TOML file"),
        (b"name = " + b"[" * 100_000, "is no TOML file"),
        (b"name = " + b"9" * 5_000, "is no TOML file"),
        (b'name = "small"\nmodels = 3\ntext = []\nsets = true\nmethods = nan', "models"),
    ],
)
def test_a_study_that_is_empty_or_no_text_is_a_sentence(tmp_path, content, sentence):
    file = tmp_path / "study.toml"
    file.write_bytes(content)
    with pytest.raises(StudyError) as error:
        read_config(file)
    assert sentence in str(error.value)
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given, policy):
    program = """
import os, sys
from langneurons.cli import main
try:
    main()
except SystemExit:
    print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    command = [sys.executable, "-c", program, "--version"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=True).stdout
    assert output.splitlines()[-1] == f"{policy} False"
