"""Input made to do harm does none: nothing in it runs, leaves its folder, fills the memory, or becomes code."""

import json
import os

import numpy as np
import pytest
import torch

import langneurons as ln
from langneurons import storage
from langneurons.errors import (
    CorruptArtefactError,
    LangNeuronsError,
    LanguageError,
    StatisticsError,
    StorageError,
    StudyError,
    TaskError,
)
from langneurons.models.checkpoints import load_config, load_tokenizer
from langneurons.study.config import read_config
from langneurons.study.stages.report import read_folder
from langneurons.tasks.likelihood import read_templates
from langneurons.tasks.xquad import read_prompts
from tests.tiny_models import tiny_config, tiny_tokenizer
from tests.views.report import made_up

UPWARDS = ["../../x", "a/b", "/etc/x", "..", "a\\b", "\0"]
LOOPS = "{% for i in range(10**12) %}{{ cycler.__init__.__globals__.os.system('touch ran') }}{% endfor %}"


def _folder(folder, **tokenizer):
    tiny_config("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | tokenizer))
    return folder


def test_a_chat_template_is_never_rendered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (_folder(tmp_path, chat_template=LOOPS) / "chat_template.jinja").write_text(LOOPS)
    assert load_tokenizer(tmp_path)("w3 w4")["input_ids"]
    assert not (tmp_path / "ran").exists()


def test_code_in_a_model_folder_is_never_run(tmp_path):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    _folder(tmp_path, auto_map={"AutoTokenizer": [None, "code.Tokenizer"]}, tokenizer_class="Tokenizer")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "code.C"}})
    )
    (tmp_path / "code.py").write_text(code)
    for load in (load_config, load_tokenizer, ln.load_model):
        try:
            load(tmp_path)
        except LangNeuronsError:
            continue
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", UPWARDS)
def test_a_language_never_leads_out_of_its_folder(name, tmp_path):
    with pytest.raises(LanguageError, match="no language code"):
        ln.load_corpus({name: ["a text"]})
    stats = ln.ActivationStats.from_counts(torch.ones(1, 1, 2, dtype=torch.int64), torch.tensor([4]), [name])
    with pytest.raises(StatisticsError, match="file names"):
        stats.save(tmp_path / "deep" / "deeper")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", UPWARDS)
def test_a_table_that_an_artefact_names_never_leads_out_of_its_folder(name, tmp_path):
    made_up.matrix().save(tmp_path)
    content = storage.read_json(tmp_path / "effects.json", "langneurons/effect-table/1")
    content["checksums"] = {**content["checksums"], name: "0" * 32}
    storage.write_json(tmp_path / "effects.json", "langneurons/effect-table/1", content)
    with pytest.raises(CorruptArtefactError, match="does not name"):
        ln.effects.EffectTable.load(tmp_path)


@pytest.mark.parametrize("name", UPWARDS)
def test_a_study_is_named_like_a_file(name, tmp_path):
    (tmp_path / "s.toml").write_text(f"name = {json.dumps(name)}\n")
    with pytest.raises(StudyError, match="name"):
        read_config(tmp_path / "s.toml")


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "{b = " * 50_000, "x" * 900_000])
def test_toml_without_end_is_refused(text, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text(text)
    for read in (read_templates, read_prompts):
        with pytest.raises(TaskError, match="x.toml"):
            read(file)


@pytest.mark.parametrize(
    "header",
    [
        b'{"x": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}',
        b'{"x": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}',
        b"[" * 100_000,
        b"{" + b'"a": {' * 50_000,
    ],
)
@pytest.mark.parametrize("said", [None, 10**12, 2**63])
def test_a_safetensors_header_that_promises_too_much_is_refused(header, said, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes((len(header) if said is None else said).to_bytes(8, "little") + header)
    with pytest.raises(StorageError, match="x.safetensors"):
        storage.read_tensors(file, foreign=True)


def test_names_and_texts_never_become_code_of_a_page(tmp_path):
    flat = np.arange(3)
    hostile = ln.NeuronSet({made_up.HOSTILE: flat, "en": flat + 40}, made_up.SHAPE, "act", made_up.MODEL, "<img src=x>")
    found = made_up.findings(4, neurons={made_up.HOSTILE: hostile})
    page = ln.write_report(tmp_path / "report.html", found).read_text("utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "script-src 'sha256-" in page


@pytest.fixture(params=["pipe", "endless", "folder"])
def no_file(request, tmp_path):
    """A path in a folder with a result, that is no file."""
    made_up.matrix().save(tmp_path / "results")
    path = tmp_path / "results" / "x.json"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


def test_a_pipe_or_an_endless_device_is_refused_before_it_is_opened(no_file):
    for read in (storage.read_object, storage.schema_of, storage.checksum, ln.load, ln.NeuronSet.load):
        with pytest.raises(StorageError, match=r"a pipe, a device|a folder|no result"):
            read(no_file)
    with pytest.raises(StudyError, match="Cannot read"):
        read_config(no_file)


def test_a_report_leaves_out_what_is_no_file(no_file):
    findings, left_out = read_folder(no_file.parent, "Why?")
    assert isinstance(findings.matrix, ln.effects.EffectTable)
    assert left_out == []
    assert isinstance(ln.load(no_file.parent), ln.effects.EffectTable)


def test_an_output_path_that_is_not_utf_8_is_refused_in_a_sentence(tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff")
    for write in (storage.check_writable, made_up.matrix().save, made_up.statistics().save, made_up.neuron_set().save):
        with pytest.raises(StorageError, match="give a name that is UTF-8"):
            write(odd)
    with pytest.raises(StorageError, match="give a name that is UTF-8") as caught:
        ln.write_report(odd, made_up.findings(4))
    str(caught.value).encode()


@pytest.mark.parametrize("letters", [95, 500])
def test_a_report_with_long_labels_is_written(letters, tmp_path):
    label = "long " + "l" * letters
    flat = np.arange(3)
    neurons = ln.NeuronSet({label: flat, label + "2": flat + 40}, made_up.SHAPE, "act", made_up.MODEL, "made up")
    methods = {label: neurons, "m" * letters: neurons}
    page = ln.write_report(tmp_path / "report.html", made_up.findings(4, neurons=methods)).read_text("utf-8")
    assert label in page
    assert "No figure" not in page
