"""What the harness' tasks are about: the language of each, its documents as items, and which belong together."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from langneurons.corpora.languages import canonical, scripts_of
from langneurons.errors import LanguageError

# What names an item, and what several items are about, in the documents of tasks that many use: the first that is there
# and tells all items apart, and the first that several items share.
ITEMS = (("link", "question_number"), ("idx",), ("pairID",), ("id",), ("question_id",), ("story_id",))
CLUSTERS = ("link", "passage_id", "flores_passage", "passage", "context", "promptID", "premise")


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
