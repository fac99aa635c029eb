"""What users give by mistake in a path's or a text's place, and files that are none, end in a sentence."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import langneurons as ln
from langneurons import storage
from langneurons.analysis.texts import LabelledTexts
from langneurons.errors import (
    CorpusError,
    LangNeuronsError,
    NeuronSetError,
    PatchError,
    StorageError,
    TaskError,
    check_text,
    in_short,
)
from langneurons.evaluation.evaluating import written_patches
from langneurons.study.config import read_config

READERS = {
    "corpus": ln.load_corpus,
    "result": ln.load,
    "neurons": ln.NeuronSet.load,
    "mask": lambda path: ln.NeuronSet.from_rucaibox(path, ["en"]),
    "xnli": ln.XNLI.load,
    "xquad": ln.tasks.XQuAD.load,
    "model": ln.load_model,
    "update": ln.MaskedLoRA.load,
    "head": ln.tasks.ClassificationHead.load,
    "dictionary": ln.models.SparseDictionary.load,
    "study": read_config,
}
NO_PATHS = {
    "a text": "The river is wide and the road is long. " * 200,
    "a long name": "x/" + "y" * 300,
    "half a pair": "a\ud800",
    "code 0": "a\0b",
    "the home of nobody": "~nobody-of-this-name/x",
}


@pytest.mark.parametrize("kind", NO_PATHS)
@pytest.mark.parametrize("reader", READERS)
def test_what_can_be_no_path_is_said_in_a_short_sentence(reader, kind):
    with pytest.raises(LangNeuronsError) as error:
        READERS[reader](NO_PATHS[kind])
    assert 20 < len(str(error.value)) < 300


@pytest.mark.parametrize("path", [5, None, b"x"])
def test_what_is_no_path_at_all_is_said(path):
    with pytest.raises(StorageError, match="A path is a text or a Path, not"):
        storage.path_of(path)


ENDLESS = """
import sys
import langneurons as ln
from langneurons.errors import LangNeuronsError
from tests.robustness.test_given import READERS
for reader, path in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        READERS[reader](path)
    except LangNeuronsError as error:
        print(reader, error, flush=True)
"""


@pytest.mark.parametrize("name", ["pipe", "zero"])
def test_pipes_and_endless_devices_are_never_read(name, tmp_path):
    """In a process of bounded memory and time."""
    place = tmp_path / "pipe"
    if name == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "en.txt").write_text("Hello.")
    place.rename(folder / "hi.txt")
    readers = {name: folder / "hi.txt" for name in ("mask", "study", "result")} | {"corpus": folder}
    process = subprocess.run(
        [sys.executable, "-c", ENDLESS, *(str(part) for pair in readers.items() for part in pair)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)),
        timeout=100,
    )
    refused = [line.split()[0] for line in process.stdout.splitlines() if "it is a pipe, a device or a link" in line]
    assert refused == [*readers]


def test_links_that_lead_nowhere_are_said(tmp_path):
    (tmp_path / "en.txt").write_text("Hello.")
    (tmp_path / "hi.txt").symlink_to(tmp_path / "hi.txt")
    with pytest.raises(CorpusError, match="it is a link to nothing, or to itself"):
        ln.load_corpus(tmp_path)
    with pytest.raises(StorageError):
        storage.check_writable(tmp_path / "hi.txt")


HALF = "a\ud800"


def test_half_a_surrogate_pair_is_said_wherever_a_text_or_a_name_is_given(tmp_path):
    table = pd.DataFrame({"text": pd.Series(["a", HALF], dtype=object), "language": "en"})
    places = pd.DataFrame({"text": ["a", "b"], "language": "en", "id": pd.Series(["x", HALF], dtype=object)})
    for source in (table, places, {"en": ["a", HALF]}):
        with pytest.raises(CorpusError, match="half a surrogate pair"):
            ln.load_corpus(source)
    (tmp_path / "xquad.en.json").write_text(
        '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "1", "question": "q\\ud800", "answers": '
        '[{"text": "a"}]}]}]}]}'
    )
    with pytest.raises(TaskError, match="half a surrogate pair"):
        ln.tasks.XQuAD.load(tmp_path, ["en"])
    with pytest.raises(TaskError, match="half a surrogate pair"):
        LabelledTexts.parallel({"en": [HALF, "b", "c", "d"], "hi": ["a", "b", "c", "d"]}, [1, 2, 1, 2])
    with pytest.raises(NeuronSetError, match="half a surrogate pair"):
        ln.NeuronSet.of({HALF: [(0, 1)]}, (2, 8), "act")
    patch = ln.SetTo(ln.NeuronSet.of({"hi": [(0, 1)]}, (2, 8), "act"), 0.0)
    with pytest.raises(PatchError, match="half a surrogate pair"):
        written_patches({HALF: patch}, ["hi"])
    with pytest.raises(PatchError, match="A patch's name is a text, not 1"):
        check_text(1, "patch's name", PatchError)


def test_a_table_with_one_column_twice_is_refused():
    table = pd.DataFrame([["hi", "ur", 0, 1]], columns=["language", "language", "layer", "neuron"])
    with pytest.raises(NeuronSetError, match="several columns 'language'"):
        ln.NeuronSet.from_dataframe(table, shape=(2, 8), site="act")


def test_an_error_of_another_library_is_never_quoted_whole(tmp_path):
    (tmp_path / "x.json").write_text("[" * 50_000)
    assert len(in_short(ValueError("9" * 50_000))) < 200
    with pytest.raises(StorageError) as error:
        ln.NeuronSet.load(tmp_path / "x.json")
    assert len(str(error.value)) < 500
