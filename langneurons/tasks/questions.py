"""Questions about paragraphs in the layout of SQuAD 1.1, which XQuAD and MLQA have: read, checked and paired."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from langneurons.babel.miniature import mini_xquad
from langneurons.corpora.languages import canonical, spelled
from langneurons.errors import LanguageError, TaskError, in_short, unknown
from langneurons.storage.files import path_of
from langneurons.tasks.reading import check_table, files_of, in_turn, read_items, text_of

_HUB_COLUMNS = ["id", "context", "question", "answers"]
Tables = dict[str, pd.DataFrame]
COLUMNS = ["item", "cluster", "context", "question", "answers"]
_XQUAD_PARAGRAPHS, _ARTICLE_PARAGRAPHS = 240, 5  # of all of XQuAD, and of each article, which stand in a row
_MLQA = re.compile(r"context-([a-z]+(?:[_-][a-z]+)?)-question-([a-z]+(?:[_-][a-z]+)?)\.", re.IGNORECASE)


def read_questions(
    source: str | Path,
    languages: Iterable[str] | None,
    split: str,
    revision: str | None = None,
    asked_in: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Read the questions of several languages.

    Args:
        source: A folder of SQuAD 1.1 files (``.json``) or of parquet with the hub's columns, or the id of a hub data
            set, or "babel" for the miniature questions.
        languages: Languages of the paragraphs to read; the first gives the order of items and their clusters.
        split: Name of the split.
        revision: Branch, tag or commit of a hub data set.
        asked_in: Language of the questions in MLQA's files; by default that of the paragraphs.

    Returns:
        Language -> one row per question: item, cluster, context, question, answers (a list), items in the same order in
        every language, each in the cluster of the first language that has it.

    Raises:
        TaskError: If a file is malformed, a question has no answer, or an answer is not where it should be in its
            paragraph.
        LanguageError: If a language is not there.
        CorpusError: If a hub data set cannot be read.
    """
    if asked_in is not None and not is_mlqa(source):
        raise TaskError(
            f"{source} has no files such as test-context-de-question-en.json: leave question_language= out."
        )

    def choose(language: str, paths: list[Path]) -> list[Path]:
        return _asked_in(asked_in or language, paths)

    tables = read_items(source, languages, split, {".json": _squad}, _HUB_COLUMNS, mini_xquad, revision, choose)
    tables = {language: _with_answers(language, table) for language, table in tables.items()}
    clusters: dict[str, str] = {}
    for table in tables.values():
        articles = list(zip(table["item"], _clusters(table), strict=True))
        same = {article: clusters[item] for item, article in reversed(articles) if item in clusters}
        clusters |= {item: same.get(article, article) for item, article in articles if item not in clusters}
    order = {item: place for place, item in enumerate(clusters)}
    return {
        language: table.assign(cluster=table["item"].map(clusters.get))
        .sort_values("item", key=lambda items: items.map(order.get), ignore_index=True)
        .reindex(columns=COLUMNS)
        for language, table in tables.items()
    }


def is_mlqa(source: str | Path) -> bool:
    """Whether a source has files named as MLQA's, such as ``test-context-de-question-en.json``.

    The language of such a file is that of the context, in which the answers are.
    """
    path = path_of(source)
    return path.exists() and any(_MLQA.search(file.name) for file in files_of(path, [".json"])[1])


def miniature_prompts(split: str) -> dict[str, list[dict[str, str]]]:
    """The questions of the miniature XQuAD without their paragraphs.

    Args:
        split: "train", "validation" or "test".

    Returns:
        Language -> rows of item, cluster (the paragraph) and prompt, the same items in every language.

    Example:
        >>> from langneurons.tasks.questions import miniature_prompts
        >>> miniature_prompts("test")["en"][0]["item"]
        'test-0-0'
    """
    return {
        language: [
            {"item": row["id"], "cluster": row["id"].rpartition("-")[0], "prompt": row["question"]} for row in rows
        ]
        for language, rows in mini_xquad(split).items()
    }


def check_questions(items: Mapping[str, pd.DataFrame], parallel: bool = True) -> None:
    """Check that every question is whole and stands in one cluster, and that languages have the same questions.

    Args:
        items: Language -> its questions.
        parallel: Whether all languages must have the same, in the same order.

    Raises:
        TaskError: If not.
    """
    if not items:
        raise TaskError("There is no item: give those of at least one language.")
    first = next(iter(items))
    for language, table in items.items():
        _check_rows(language, table)
        if parallel:
            _check_parallel(first, items[first], language, table)
    if len(torn := (rows := questions_of(items))[rows["item"].duplicated()]):
        raise TaskError(f"The item {torn['item'].tolist()[0]!r} is in different clusters in different languages.")


def questions_of(items: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Item and cluster of every question that any language has, those of the first language first."""
    rows = pd.concat([table[["item", "cluster"]] for table in items.values()])
    return rows.loc[~rows.duplicated().to_numpy()].reset_index(drop=True)


def other_answers(table: pd.DataFrame) -> list[list[str]]:
    """The first right answers to the other questions about each item's paragraph, one list per item.

    Where the table has a column ``others``, from before some questions were left out, that is it.
    """
    if "others" in table:
        return list(table["others"])
    gold = {context: [answers[0] for answers in rows] for context, rows in table.groupby("context")["answers"]}
    place = table.groupby("context").cumcount()
    return [
        [*gold[context][:at], *gold[context][at + 1 :]] for context, at in zip(table["context"], place, strict=True)
    ]


def only(items: Mapping[str, pd.DataFrame], names: Iterable[str]) -> Tables:
    """Some of the questions, by name, in the languages that have them, in their old order."""
    wanted = set(names)
    return {
        language: table.loc[[item in wanted for item in table["item"]]].reset_index(drop=True)
        for language, table in items.items()
    }


def apart(items: Mapping[str, pd.DataFrame], shots: int, seed: int) -> tuple[Tables, Tables]:
    """Draw solved examples, the same in every language, one per paragraph, and leave their paragraphs out of the items.

    Args:
        items: Language -> its questions.
        shots: Number of examples.
        seed: Seed of the draw.

    Returns:
        The questions that are left, and the examples.

    Raises:
        TaskError: If no paragraph would be left to score.
    """
    first = next(iter(items.values()))
    common = set.intersection(*(set(table["item"]) for table in items.values()))
    first = first.loc[[item in common for item in first["item"]]]
    shuffled = first.iloc[np.random.default_rng(seed).permutation(len(first))].drop_duplicates("context")
    if len(shuffled) <= shots:
        raise TaskError(
            f"There are {len(shuffled)} paragraphs, of which at least one must be left to score: shots must be below "
            f"that, given {shots}."
        )
    names = list(first["item"].loc[in_turn(shuffled, "cluster", shots)])
    examples = {language: table.set_index("item").loc[names].reset_index() for language, table in items.items()}
    # Translations may join paragraphs: what is left out in one language is left out in all, so that they stay parallel.
    about: set[str] = set()
    for language, table in items.items():
        paragraphs = set(examples[language]["context"])
        about |= {item for item, text in zip(table["item"], table["context"], strict=True) if text in paragraphs}
    return only(items, {item for table in items.values() for item in table["item"]} - about), examples


# ---- reading ----


def _asked_in(language: str, paths: list[Path]) -> list[Path]:
    """Of MLQA's files with paragraphs in one language, those with questions in one language; other files all."""
    by_language: dict[str, list[Path]] = {}
    for path in paths:
        if match := _MLQA.search(path.name):
            by_language.setdefault(canonical(match[2]), []).append(path)
    if not by_language:
        return paths
    if (label := spelled(language, by_language)) is None:
        name = f"{paths[0].name} and the like"
        raise LanguageError(f"{name}: {unknown('question_language', language, by_language)}")
    return by_language[label]


def _squad(path: Path) -> pd.DataFrame:
    try:
        content = json.loads(text_of(path, "whole JSON"))
        rows = [
            {"title": article.get("title"), "context": paragraph["context"], **question}
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path} is not whole JSON in UTF-8 ({in_short(error)}).") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise TaskError(
            f"{path} is not laid out as SQuAD 1.1, data > paragraphs > context and qas: {in_short(error)}."
        ) from error
    try:
        return pd.DataFrame(rows, columns=None if rows else _HUB_COLUMNS)
    except UnicodeEncodeError as error:
        raise TaskError(f"{path} is not valid Unicode: it holds half a surrogate pair.") from error


def _with_answers(language: str, table: pd.DataFrame) -> pd.DataFrame:
    """Name the items, and make of each one's answers a list of texts."""
    if lacking := int(table["id"].isna().to_numpy().sum()):
        raise TaskError(f"{lacking} questions of {language!r} have no id.")
    rows = zip(table["id"], table["context"], table["answers"], strict=True)
    answers = [_answers(language, str(item), str(context), cell) for item, context, cell in rows]
    impossible = list(table["is_impossible"]) if "is_impossible" in table else [False] * len(table)
    unanswered = [
        item for item, texts, flag in zip(table["id"], answers, impossible, strict=True) if flag is True or not texts
    ]
    if unanswered:
        raise TaskError(
            f"{len(unanswered)} of {len(table)} questions of {language!r} have no answer, such as {unanswered[0]!r}: "
            "questions without one, as in SQuAD 2.0, cannot be scored, so leave them out of the file."
        )
    return table.assign(item=table["id"].astype(str), answers=answers)


def _answers(language: str, item: str, context: str, cell: Any) -> list[str]:
    """Read SQuAD's list of answers, or the hub's lists of texts and starts, and check where they stand."""
    try:
        if isinstance(cell, Mapping):
            pairs = list(zip(cell["text"], map(int, cell["answer_start"]), strict=True))
        else:
            pairs = [(answer["text"], int(answer["answer_start"])) for answer in cell]
        wrong = [(text, start) for text, start in pairs if context[start : start + len(text)] != text]
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise TaskError(
            f"The answers of item {item!r} in {language!r} are not texts, each with answer_start, but {cell!r:.60}."
        ) from error
    for text, start in wrong:
        stands = context[start : start + len(text)]
        raise TaskError(
            f"The answer {text!r:.60} of item {item!r} in {language!r} is not in its context at {start}, where "
            f"{stands!r:.60} stands."
        )
    return [text for text, _ in pairs]


def _clusters(table: pd.DataFrame) -> list[str]:
    """Name each item's article by its title, or without titles by its first item.

    The hub leaves titles out; there, XQuAD has five paragraphs in a row from each article, and in other data a
    paragraph is a cluster.
    """
    if "title" in table and all(map(_visible, table["title"])):
        return list(table["title"])
    cluster = pd.factorize(table["context"])[0]
    if cluster.max() + 1 == _XQUAD_PARAGRAPHS:
        cluster //= _ARTICLE_PARAGRAPHS
    names: dict[int, str] = {}
    return [names.setdefault(number, item) for number, item in zip(cluster, table["item"], strict=True)]


# ---- checks ----


def _check_rows(language: str, table: pd.DataFrame) -> None:
    check_table(language, table, COLUMNS)
    for item in table["item"][table["item"].duplicated()]:
        raise TaskError(f"The item {item!r} stands twice among those of {language!r}; ids must be distinct.")
    for name in ("context", "question"):
        for item, text in zip(table["item"], table[name], strict=True):
            if not _visible(text):
                raise TaskError(f"The {name} of item {item!r} in {language!r} is blank or no text: {text!r:.60}.")
    for item, answers in zip(table["item"], table["answers"], strict=True):
        if not isinstance(answers, list) or not answers or not all(map(_visible, answers)):
            raise TaskError(f"The item {item!r} in {language!r} needs a list of answers, none blank, not {answers!r}.")


def _check_parallel(first: str, reference: pd.DataFrame, language: str, table: pd.DataFrame) -> None:
    ours, theirs = list(reference["item"]), list(table["item"])
    if alone := sorted(set(ours) ^ set(theirs)):
        raise TaskError(
            f"{first!r} and {language!r} must have the same items, but {len(alone)} are in one of them only, such as "
            f"{alone[0]!r}: give parallel=False where that is as it should be."
        )
    if ours != theirs or list(reference["cluster"]) != list(table["cluster"]):
        raise TaskError(f"The items of {first!r} and {language!r} stand in different orders or clusters.")


def _visible(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())
