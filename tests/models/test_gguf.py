import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import langneurons as ln
from langneurons.errors import ModelError
from langneurons.models import gguf, view
from tests.models.gguf_files import write_gguf

COMMIT = "0" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_a_gguf_file_computes_what_transformers_own_reader_makes_of_it(file, backend):
    reference = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = ln.load_model(file, backend=backend)
    tokens = torch.arange(3, 43)[None]
    with torch.no_grad():
        expected, logits = reference(tokens).logits, model(tokens)
    assert float((logits - expected).abs().max()) <= 1e-5 * float(expected.std())
    assert view(model).name == "tiny.gguf"
    assert view(model).tokenizer.decode(view(model).tokenizer("the")["input_ids"]) == "the"


def test_a_converted_copy_is_read_again_and_another_content_is_another_model(file, cache, monkeypatch, tmp_path):
    first = ln.load_model(file)
    monkeypatch.setattr(gguf, "_write", lambda *arguments: pytest.fail("converted again"))
    moved = tmp_path / "elsewhere.gguf"
    shutil.copy(file, moved)
    assert view(ln.load_model(moved)).fingerprint == view(first).fingerprint
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(cache))
    other = ln.load_model(write_gguf(tmp_path / "other.gguf", seed=1))
    assert view(other).fingerprint != view(first).fingerprint
    assert not list(cache.rglob("*.partial"))


def test_what_a_killed_conversion_left_is_removed_by_the_next(file, cache):
    ln.load_model(file)
    (whole,) = cache.glob("langneurons/gguf/*/gguf.json")
    shutil.move(whole.parent, whole.parent.with_name(f".{whole.parent.name}.partial"))
    ln.load_model(file)
    assert [path.name for path in cache.glob("langneurons/gguf/*") if path.is_dir()] == [whole.parent.name]


def test_the_asked_dtype_is_that_of_the_loaded_weights(file):
    assert view(ln.load_model(file, dtype="bfloat16")).dtype == torch.bfloat16
    assert view(ln.load_model(file)).dtype == torch.float32


def test_a_description_says_how_the_weights_were_stored(file):
    text = str(ln.models.describe(file))
    assert "99.7 % Q8_0" in text
    assert "approximations" in text


def test_a_file_in_a_folder_or_in_a_repository_of_the_hubs_cache_is_named_beside_it(file, tmp_path, monkeypatch):
    by_path = view(ln.load_model(file)).fingerprint
    assert view(ln.load_model(file.parent, gguf_file="tiny.gguf")).fingerprint == by_path
    repository = tmp_path / "hub" / "models--someone--tiny-gguf"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    shutil.copy(file, repository / "snapshots" / COMMIT / "tiny.gguf")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert view(ln.load_model("someone/tiny-gguf", gguf_file="tiny.gguf")).fingerprint == by_path


def test_it_is_saved_as_an_ordinary_folder_on_request(file, tmp_path):
    folder = ln.models.convert_gguf(file, tmp_path / "plain")
    assert view(ln.load_model(folder)).fingerprint == view(ln.load_model(file)).fingerprint
    assert "quantization_config" not in (folder / "config.json").read_text()
    with pytest.raises(ModelError, match="is not empty"):
        ln.models.convert_gguf(file, folder)


def damaged(file: Path, folder: Path, what: str) -> Path:
    copy = folder / "damaged.gguf"
    if what == "no tokenizer":
        return write_gguf(copy, tokenizer=False)
    if what == "architecture":
        return write_gguf(copy, architecture="rwkv7")
    content = file.read_bytes()
    copy.write_bytes({"text": b"{}", "cut": content[: len(content) // 2], "header": content[:100]}[what])
    return copy


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", "does not begin with the letters GGUF"),
        ("cut", "damaged.gguf.*(damaged|incomplete|truncated)"),
        ("header", "damaged.gguf.*(damaged|incomplete|truncated)"),
        ("architecture", "rwkv7"),
        ("no tokenizer", "has no tokenizer"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence_and_leaves_nothing(file, tmp_path, cache, what, message):
    with pytest.raises(ModelError, match=message) as error:
        ln.load_model(damaged(file, tmp_path, what))
    assert len(str(error.value)) < 500
    assert not list(cache.rglob("*.safetensors"))


def test_a_missing_file_or_package_is_named(file, monkeypatch):
    with pytest.raises(ModelError, match="no file .*nothing.gguf"):
        ln.load_model(file.parent / "nothing.gguf")
    with pytest.raises(ModelError) as error:
        ln.load_model("x" * 10_000 + ".gguf")
    assert len(str(error.value)) < 300
    with pytest.raises(ModelError, match="'other.gguf'; its GGUF files: tiny.gguf"):
        ln.load_model(file.parent, gguf_file="other.gguf")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"langneurons\[gguf\]"):
        ln.load_model(file)
