"""The Language Confusion Benchmark: does a model answer in the language that it is asked in, or asked for?

Marchisio et al. 2024 (arXiv 2406.20052). Answers are judged by ``langneurons.tasks.passes``.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from langneurons import storage
from langneurons.babel.miniature import mini_xquad
from langneurons.corpora.languages import distinct, label_of
from langneurons.errors import TaskError
from langneurons.settings import Prompting, whole_number
from langneurons.storage.files import path_of
from langneurons.tasks import reading
from langneurons.tasks.completing import answers_to
from langneurons.tasks.heads import Head
from langneurons.tasks.passes import (
    Identify,
    check_languages,
    english_words,
    fasttext_language,
    has_checked_words,
    language_passes,
    rule_of,
)
from langneurons.tasks.prompting import check_no_shots
from langneurons.tasks.questions import miniature_prompts
from langneurons.tasks.task import Task

SCORING = "confusion/1"  # raised with every change of scoring, so that rows scored otherwise are not used again
COLUMNS = ["item", "cluster", "prompt"]
WORDS = "words"  # the benchmark's file of English words
_REQUESTED = "{language_requested}"  # in the benchmark's phrasings, such as "reply in {language_requested}"


@dataclass(frozen=True, eq=False, repr=False)
class Confusion:
    """Prompts whose answers should be in one language; ``Confusion.load`` makes it.

    Args:
        items: Language of the answers -> one row per prompt: item, cluster (of prompts that ask the same) and prompt.
        words: English words that answers in another script than Latin are searched for, see ``language_passes``.
        max_new_tokens: Maximum number of tokens of an answer.
        identify: Function from a line to the code of its language, or to "unknown"; by default fastText's lid.176. It
            is known by its name when results in ``out=`` are used again.
        name: Name in tables.
        prompting: Whether prompts are messages of a chat, and how the tokens of an answer are chosen.

    Raises:
        TaskError: If prompts are malformed, English words or a package are missing, or solved examples should be shown:
            there are none.
        LanguageError: If a language cannot be identified, or not be divided into words.

    Example:
        >>> prompts = pd.DataFrame([{"item": "1", "cluster": "1", "prompt": "आज"}])
        >>> task = ln.tasks.Confusion({"hi": prompts}, words=["morning"], max_new_tokens=24)
        >>> task.measure(model, "hi")[["prediction", "line_pass", "word_pass"]].to_numpy().tolist()
        [[' सुबह राजा के पास पाँच थैले हैं।', 1.0, 1.0]]
    """

    items: Mapping[str, pd.DataFrame]
    words: Collection[str] | None = None
    max_new_tokens: int = 100
    identify: Identify | None = None
    name: str = "confusion"
    prompting: Prompting = Prompting()

    protocol = "generation"
    metrics = ("line_pass", "word_pass", "judged")
    generates = True
    reads_text: ClassVar[bool] = False
    objective = Task.objective  # no answer is the right one, so there is nothing to train on

    def __post_init__(self) -> None:
        if not self.items:
            raise TaskError("There is no prompt: give those of at least one language.")
        whole_number(self.max_new_tokens, "max_new_tokens", TaskError, least=1)
        for language, table in self.items.items():
            reading.check_items(language, table, COLUMNS, "prompt")
        check_languages(self.items, self.words, self.identify)
        check_no_shots(self.prompting, self.name)

    @classmethod
    def load(
        cls,
        source: str | Path,
        languages: Iterable[str] | None = None,
        split: str = "test",
        *,
        revision: str | None = None,
        words: str | Path | Collection[str] | None = None,
        max_new_tokens: int = 100,
        identify: Identify | None = None,
        prompting: Prompting = Prompting(),
    ) -> "Confusion":
        """Load the prompts of several languages.

        A prompt that asks for an answer in another language has the same item in every language: files with the
        benchmark's column ``phrasing`` hold such prompts, row by row. Other prompts have items of their own in each
        language, unless a column ``item`` names them; a column ``cluster`` says which of them belong together.

        Args:
            source: A folder with CSV files per language, each with a column ``prompt``, such as ``okapi/hi.csv``: one
                set of the benchmark or a folder of several; the id of a hub data set; or ``"babel"``, the questions of
                the miniature tasks that come with langneurons.
            languages: Languages of the answers; by default all of a folder, sorted.
            split: "test", or a part of it, such as "test[:25%]"; a file that names no split belongs to every one.
            revision: Branch, tag or commit of a hub data set.
            words: A file of English words, one per line, or the words themselves; by default the file ``words`` of the
                folder or of the nearest folder above it that has one.
            max_new_tokens: Maximum number of tokens of an answer.
            identify: Function from a line to the code of its language, or to "unknown"; by default fastText's lid.176.
            prompting: Whether prompts are messages of a chat, and how the tokens of an answer are chosen; by default
                plain text, greedily.

        Returns:
            The task.

        Raises:
            TaskError: If a file has no column ``prompt`` or cannot be read, a prompt is blank, or English words or a
                package are missing.
            LanguageError: If a language is not there, cannot be identified, or not be divided into words.
            CorpusError: If the hub cannot be read.

        Example:
            >>> ln.tasks.Confusion.load("babel", ["en", "hi"], max_new_tokens=8)
            Confusion(en, hi; prompts in each: 480, clusters: 120)
        """
        split, part = reading.sliced(split)
        readers = {".csv": partial(_read_csv, folder=path_of(source, TaskError))}
        tables = reading.read_items(source, languages, split, readers, ["prompt"], miniature_prompts, revision)
        items = {language: reading.part_of(_with_items(language, table), part) for language, table in tables.items()}
        words = english_words(_nearby_words(source) if words is None else words)
        return cls(items, words, max_new_tokens, identify, prompting=prompting)

    def __repr__(self) -> str:
        prompts = _span(len(table) for table in self.items.values())
        clusters = _span(len(set(table["cluster"])) for table in self.items.values())
        return f"Confusion({', '.join(self.items)}; prompts in each: {prompts}, clusters: {clusters})"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that answers should be in."""
        return tuple(self.items)

    @property
    def fingerprint(self) -> str:
        """A hash of the prompts, of how they are asked, of the length of answers and of how they are judged."""
        words = english_words(self.words) or () if any(map(has_checked_words, self.items)) else ()
        rule = rule_of(self.identify or fasttext_language)
        parts = [str(self.max_new_tokens), rule, *sorted(words), *map(str, self.prompting.changes.items())]
        return storage.fingerprint(SCORING, *parts, *reading.hashed_texts(self.items, COLUMNS))

    def with_head(self, head: Head) -> "Confusion":
        """The task itself: answers are generated."""
        return self

    def take(self, count: int, seed: int = 0) -> "Confusion":
        """Draw some prompts of each language at random, the same where languages have the same ones.

        Prompts are taken round-robin over clusters, so that clusters stay balanced.

        Args:
            count: Number of prompts per language; all where there are fewer. A smaller draw of a seed is part of a
                larger one.
            seed: Seed of the draw.

        Returns:
            The task with these prompts, in their old order.

        Raises:
            TaskError: If ``count`` is below 1.
        """
        return replace(self, items=reading.drawn(self.items, count, seed, "prompts"))

    def select(self, languages: Iterable[str]) -> "Confusion":
        """The same prompts in some of the languages.

        Raises:
            LanguageError: If the task has no such language.
        """
        return replace(self, items={language: self.items[language] for language in distinct(languages, self.items)})

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Let a model answer the prompts of one language, with whatever is attached to it at this moment.

        Answers are greedy, unless ``prompting`` has a temperature. No prompt is left out: where prompt and answer
        exceed the model's context, the prompt loses its end.

        Args:
            model: A model returned by ``load_model``.
            language: Language that the answers should be in.
            batch_size: Prompts per forward pass.

        Returns:
            One row per prompt: item, cluster, prompt, prediction (the answer), gold (the language); line_pass,
            word_pass and judged (1 or 0, see ``language_passes``: the benchmark's line pass rate is the mean of
            line_pass by that of judged, its word pass rate the mean of word_pass by that of line_pass); cut (whether
            the prompt was), generated (token ids) and stopped (whether the model ended the answer itself).

        Raises:
            LanguageError: If the task has no such language.
            TaskError: If the model has no tokenizer, or its context no room for an answer.
        """
        language = label_of(language, self.items)
        table = self.items[language]
        answers = answers_to(model, table["prompt"], self.max_new_tokens, batch_size, self.prompting).to_dict("list")
        passes = self._passes(answers["prediction"], language)
        return table[COLUMNS].assign(
            prediction=answers.pop("prediction"),
            gold=language,
            **{metric: passes[metric].to_numpy() for metric in self.metrics},
            **answers,
        )

    def references(self, language: str) -> dict[str, float]:
        """Find what a model would score that repeats its prompts.

        Args:
            language: Language that the answers should be in.

        Returns:
            ``"prompt"``: the share of the prompts that pass by lines as if they were answers.

        Raises:
            LanguageError: If the task has no such language.
        """
        language = label_of(language, self.items)
        passes = self._passes(list(self.items[language]["prompt"]), language)
        return {"prompt": float(np.mean(passes["line_pass"]))}

    def _passes(self, answers: list[str], language: str) -> pd.DataFrame:
        table = pd.DataFrame({"completion": answers, "language": language})
        return language_passes(table, self.words, self.identify)


def _read_csv(path: Path, folder: Path) -> pd.DataFrame:
    """Read a set's prompts in one language, and call the set by its folder."""
    return reading.csv_of(path).assign(set="/".join(path.parent.relative_to(folder).parts))


def _nearby_words(source: str | Path) -> Path | list[str] | None:
    """The file of English words that belongs to a folder, if there is one; of "babel" the words that it knows."""
    if source == reading.BABEL:
        return [word for row in mini_xquad("test")["en"] for word in re.findall(r"\w+", row["context"].lower())]
    folder = path_of(source, TaskError).resolve()
    files = (parent / WORDS for parent in (folder, *folder.parents))
    return next((file for file in files if file.is_file()), None)


def _with_items(language: str, table: pd.DataFrame) -> pd.DataFrame:
    """Name every prompt, and put those in a cluster that differ only in how and where they ask for a language."""
    reading.check_visible(language, list(table["prompt"]), "prompt")
    optional = ("set", "phrasing", "item", "cluster")
    rows = table[["prompt"]].assign(**{name: table[name].fillna("") if name in table else "" for name in optional})
    number = rows.groupby("set").cumcount().astype(str)
    own = [
        "/".join(filter(None, (prompts, "" if phrasing else language, row)))
        for prompts, phrasing, row in zip(rows["set"], rows["phrasing"], number, strict=True)
    ]
    rows["item"] = rows["item"].where(rows["item"] != "", own)
    question = [_question(prompt, phrasing) for prompt, phrasing in zip(rows["prompt"], rows["phrasing"], strict=True)]
    first = rows.groupby(question)["item"].transform("first")
    return rows.assign(cluster=rows["cluster"].where(rows["cluster"] != "", first)).reindex(columns=COLUMNS)


def _question(prompt: str, phrasing: str) -> str:
    """The words of a prompt without those that ask for a language, whose name begins with a capital."""
    before, requested, after = phrasing.strip().partition(_REQUESTED)
    if requested:
        prompt = re.sub(rf"\b(?i:{re.escape(before)})[A-Z]\w*(?i:{re.escape(after)})", "", prompt)
    return " ".join(re.findall(r"\w+", prompt.casefold())) or prompt


def _span(counts: Iterable[int]) -> str:
    least, *_, most = sorted([*counts] * 2)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
