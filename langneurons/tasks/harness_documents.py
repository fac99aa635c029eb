"""What the harness' tasks are about: the language of each, its documents as items, and which belong together."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from langneurons.corpora.languages import canonical, scripts_of
from langneurons.errors import LanguageError

# What names an item, and what several items are about, in the documents of tasks that many use: the first that is there
# and tells all items apart, and the first that several items share.
ITEMS = (("link", "question_number"), ("idx",), ("pairID",), ("id",), ("question_id",), ("story_id",))
CLUSTERS = ("link", "passage_id", "flores_passage", "passage", "context", "promptID", "premise")

YAML, WRITTEN = (".yaml", ".yml"), (".yaml", ".yml", ".py")  # of a task; of whatever decides what it asks


def local_files(source: str) -> list[Path]:
    """Find the files that tasks on this machine are made of: configurations, functions and documents.

    Args:
        source: Names of tasks, YAML files of tasks, or a folder of them, divided by commas.

    Returns:
        All configurations and functions in the folders of what is named, and the documents that those configurations
        name, each once, sorted; nothing for names of tasks alone.
    """
    roots = [Path(name.strip()).expanduser() for name in source.split(",")]
    files: set[Path] = set()
    waiting = [path for root in roots for path in _beside(root)]
    while waiting:
        if (path := waiting.pop()) not in files:
            content = {} if path.suffix == ".py" else _content(path)
            included = [Path(path.parent, name) for name in _texts(content.get("include"))]
            waiting += filter(Path.is_file, included)
            files |= {path, *_documents(content)}
    return sorted(files)


def _beside(root: Path) -> Iterator[Path]:
    """Configurations and functions in a folder and those inside, or beside a configuration."""
    if root.is_dir():
        yield from (path for path in root.rglob("*") if path.suffix in WRITTEN and path.is_file())
    elif root.suffix in YAML and root.is_file():
        yield from (path for path in root.parent.iterdir() if path.suffix in WRITTEN and path.is_file())


def _content(configuration: Path) -> dict[str, Any]:
    """What a configuration says; nothing where it is malformed, as loading the task says."""
    try:
        content = yaml.load(configuration.read_text("utf-8"), _Plain)  # noqa: S506 (a safe loader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _documents(content: Mapping[str, Any]) -> Iterator[Path]:
    """The local files of documents that a configuration names."""
    options = content.get("dataset_kwargs")
    within = [options.get(key) for key in ("data_files", "data_dir")] if isinstance(options, dict) else []
    for name in _texts([content.get("dataset_path"), *within]):
        for path in map(Path, glob(name)):
            yield from (inner for inner in ([path] if path.is_file() else path.rglob("*")) if inner.is_file())


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list | dict):
        for inner in content.values() if isinstance(content, dict) else content:
            yield from _texts(inner)


class _Plain(yaml.SafeLoader):
    """Reads a configuration without calling its functions."""


_Plain.add_multi_constructor("!", lambda loader, tag, node: None)


def choices_of(task: Any, sample: Mapping[str, Any]) -> int:
    """The number of choices of a document, 0 where it has none.

    Args:
        task: The harness' task.
        sample: What the harness logs of the document.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0
    requests = len(sample["arguments"])
    return requests // 2 if "acc_mutual_info" in sample["metrics"] else requests


def items_of(task: Any, name: str, rest: str, samples: Sequence[Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """The documents of a task: task, doc, item, cluster, choices.

    Args:
        task: The harness' task.
        name: Its name.
        rest: What to put in front of items and clusters, so that those of several tasks stay apart; perhaps nothing.
        samples: What the harness logs of each document under each filter.
    """
    docs = [filtered[0]["doc"] for filtered in samples]
    places = [filtered[0]["doc_id"] for filtered in samples]
    ids = next((of_docs for fields in ITEMS if (of_docs := _values(docs, fields)) and _distinct(of_docs)), places)
    shared = (_values(docs, (field,)) for field in CLUSTERS)
    clusters = next((pd.factorize(np.array(each))[0].tolist() for each in shared if each and not _distinct(each)), ids)
    front = f"{rest} " if rest else ""
    table = pd.DataFrame({"task": name, "doc": places, "item": ids, "cluster": clusters})
    if front:
        table = table.assign(item=[f"{front}{each}" for each in ids], cluster=[f"{front}{each}" for each in clusters])
    return table.assign(choices=[choices_of(task, filtered[0]) for filtered in samples])


def _values(docs: Sequence[Any], fields: Sequence[str]) -> list[str]:
    """Some fields of all documents as texts; none where a document lacks one."""
    if not all(isinstance(doc, Mapping) and all(doc.get(field) is not None for field in fields) for doc in docs):
        return []
    return [" ".join(str(doc[field]) for field in fields) for doc in docs]


def _distinct(values: Sequence[str]) -> bool:
    return len(set(values)) == len(values)


def in_parallel(items: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Give all languages the clusters of one where they have the same items: translations may give two texts one.

    Args:
        items: Language -> its items, as ``items_of`` gives them.
    """
    first = items["en"] if "en" in items else next(iter(items.values()))
    if any(list(table["item"]) != list(first["item"]) for table in items.values()):
        return dict(items)
    return {language: table.assign(cluster=first["cluster"]) for language, table in items.items()}


def language_of_task(name: str, task: Any, languages: str | Mapping[str, str] | None) -> tuple[str, str]:
    """The language of a task, and its name without it.

    A code with a script counts first, then a language's English name, a code at the end, the name of the data set's
    part, and a code elsewhere.

    Args:
        name: The task's name.
        task: The harness' task.
        languages: Task -> its language; or the language of tasks whose names say none.

    Raises:
        LanguageError: If nothing says which language it is in.

    Example:
        >>> from types import SimpleNamespace
        >>> task = SimpleNamespace(get_config=lambda name: None)
        >>> language_of_task("belebele_hin_Deva", task, None), language_of_task("mmlu_hindi_few_shot_en", task, None)
        (('hi', 'belebele'), ('hi', 'mmlu_few_shot_en'))
    """
    if isinstance(languages, Mapping) and name in languages:
        return canonical(languages[name]), name
    words = name.split("_")
    last, before = len(words) - 1, range(len(words) - 2, 0, -1)  # a name begins with what is asked
    with_script = [(place, 2) for place in before if len(words[place + 1]) == 4]
    english = [(place, 1) for place in (last, *before) if words[place].lower() in _english_names()]
    part = _code(str(task.get_config("dataset_name")))
    for place, size in (*with_script, *english, (last, 1), *([] if part else ((place, 1) for place in before))):
        if code := _code("_".join(words[place : place + size])):
            return code, "_".join(words[:place] + words[place + size :])
    if part:
        return part, name
    if isinstance(languages, str):
        return canonical(languages), name
    raise LanguageError(f"Nothing says which language {name!r} is in: give languages={{{name!r}: 'en'}}, or another.")


def _code(text: str) -> str:
    """The canonical code of a language by its code or its English name; "" where a text is neither."""
    code = canonical(_english_names().get(text.lower(), text))
    return code if scripts_of(code) else ""


@cache
def _english_names() -> dict[str, str]:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return {name: code for code, name in LANGUAGES.items()}
