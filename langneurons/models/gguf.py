"""GGUF files: read once by transformers' own reader, kept as a plain folder in the cache, and loaded from there.

Quantised weights are approximations of those that the model was published with; the folder says how they were stored.
"""

import copy
import hashlib
import json
import os
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from langneurons import storage
from langneurons.errors import ModelError, in_short
from langneurons.models.checkpoints import reading, without_debris
from langneurons.storage.files import said_plainly

ORIGIN = "gguf.json"  # in a folder that was converted: how the weights were stored
_MAGIC = b"GGUF"


def is_gguf(name: str | Path, gguf_file: str | None = None) -> bool:
    """Whether a model is to be read from a GGUF file."""
    return gguf_file is not None or (str(name).lower().endswith(".gguf") and not os.path.isdir(name))


def convert_gguf(name: str | Path, out: str | Path, gguf_file: str | None = None, revision: str | None = None) -> Path:
    """Write a GGUF file as an ordinary Hugging Face folder: float32 weights, configuration and tokenizer.

    Args:
        name: The file; or a folder or hub repository that holds it.
        out: The folder to write; it must not exist, or be empty.
        gguf_file: Name of the file in the folder or repository.
        revision: Branch, tag or commit of a hub repository.

    Returns:
        The folder.

    Raises:
        ModelError: If there is no such file, the package gguf is missing, the file is damaged, its architecture is
            none that transformers reads, or it has no tokenizer.
        StorageError: If the folder cannot be written.
    """
    file, folder = _located(name, gguf_file, revision), Path(out).expanduser()
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"The folder {str(folder)!r} is not empty: give another one to convert {file.name!r} into.")
    _write(file, _origin(file), folder)
    return folder


def converted_folder(name: str | Path, gguf_file: str | None = None, revision: str | None = None) -> Path:
    """Find the converted copy of a GGUF file in the cache, or make it.

    The cache lies in Hugging Face's (``HF_HOME``), under the checksum of the file's content.

    Args:
        name: The file; or a folder or hub repository that holds it.
        gguf_file: Name of the file in the folder or repository.
        revision: Branch, tag or commit of a hub repository.

    Raises:
        ModelError: As ``convert_gguf``.
    """
    file = _located(name, gguf_file, revision)
    with file.open("rb") as content:
        checksum = hashlib.file_digest(content, "sha256").hexdigest()
    folder = Path(constants.HF_HOME) / "langneurons" / "gguf" / checksum
    while not (folder / ORIGIN).is_file():
        with storage.locked(folder.with_name(f"{checksum}.lock")) as free:
            if free and not (folder / ORIGIN).is_file():
                _convert(file, folder)
        if not free:  # another process converts it
            time.sleep(0.2)
    return folder


def _convert(file: Path, folder: Path) -> None:
    storage.remove_folder(folder)  # one that is not whole
    with storage.replacing_folder(folder) as partial, without_debris():
        _write(file, _origin(file), partial)


def stored_as(folder: str | Path) -> str:
    """Say how the weights of a converted folder were stored; "" for any other folder.

    Example:
        >>> stored_as("a folder that was not converted")
        ''
    """
    path = Path(folder) / ORIGIN
    if not path.is_file():
        return ""
    origin = json.loads(path.read_text("utf-8"))
    shares = ", ".join(f"{100 * share:.3g} % {kind}" for kind, share in origin["weights"].items())
    return f"{shares} in {origin['file']}"


def _located(name: str | Path, gguf_file: str | None, revision: str | None) -> Path:
    """The file on this machine, downloaded where it is on the hub."""
    place = storage.path_of(name, ModelError)
    if gguf_file is None or os.path.isfile(place):
        if not os.path.isfile(place):
            raise ModelError(f"There is no file {str(place)!r:.200}.")
        return place
    if os.path.isdir(place):
        if not (place / gguf_file).is_file():
            files = ", ".join(sorted(path.name for path in place.glob("*.gguf"))) or "none"
            raise ModelError(f"The folder {str(place)!r} has no file {gguf_file!r}; its GGUF files: {files}.")
        return place / gguf_file
    with reading(name, f"file {gguf_file!r}"):
        return Path(hf_hub_download(str(name), gguf_file, revision=revision))


def _origin(file: Path) -> dict[str, object]:
    """What the folder keeps of how the file's weights were stored.

    Raises:
        ModelError: If it cannot be read, or has no tokenizer.
    """
    if find_spec("gguf") is None:
        raise ModelError(f"Reading {file.name!r} needs the package gguf: pip install 'langneurons[gguf]'.")
    from gguf import GGUFReader

    with file.open("rb") as content:
        if content.read(len(_MAGIC)) != _MAGIC:
            raise ModelError(f"{str(file)!r} is no GGUF file: it does not begin with the letters GGUF.")
    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
    except Exception as error:  # a file can be damaged in every way there is
        raise ModelError(f"{str(file)!r} is truncated or damaged ({in_short(error)}): fetch it again.") from error
    sizes = Counter[str]()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise ModelError(f"{str(file)!r} has no tokenizer: convert the original checkpoint with its tokenizer.")
    total = sum(sizes.values())
    shares = {kind: size / total for kind, size in sizes.most_common()}
    return {"file": file.name, "architecture": architecture, "weights": shares}


def _write(file: Path, origin: dict[str, object], folder: Path) -> None:
    options = {"gguf_file": file.name}
    with reading(file, f"weights (architecture {origin['architecture']!r})"):
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **options)
    with reading(file, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config")  # the folder holds plain weights
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.generation_config = model.generation_config
    with said_plainly(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    storage.write_text(folder / ORIGIN, json.dumps(origin, indent=1))
