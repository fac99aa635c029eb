"""Free generation: in which language does the model go on, and can a patch force another one?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from langneurons import storage
from langneurons.corpora import Corpus, load_corpus
from langneurons.corpora.languages import distinct, label_of
from langneurons.errors import TaskError
from langneurons.models import view
from langneurons.settings import Prompting, whole_number
from langneurons.tasks.answers import UNKNOWN, identify
from langneurons.tasks.batching import token_ids, tokenizer_of
from langneurons.tasks.completing import complete
from langneurons.tasks.heads import Head
from langneurons.tasks.prompting import Prompts, check_no_shots
from langneurons.tasks.reading import checked_draw
from langneurons.tasks.task import Task

SCORING = "generation/1"  # raised with every change of scoring, so that rows scored otherwise are not used again
LEAST_DOCUMENT = 60  # UTF-8 bytes: a prompt, and a continuation long enough to be identified
BYTES_PER_TOKEN = 3  # few, so that references are measured on text no longer than completions are


@dataclass(frozen=True, eq=False)
class Generation:
    """Beginnings of documents to continue, scored by whether the continuation is in the measured language.

    With a ``source`` this is language forcing: the prompts are in the source language whatever language is measured, so
    that without a patch hardly any continuation is in another one. Without, prompts are in the measured language, and a
    patch can only do damage. ``Generation.of`` makes it.

    Args:
        documents: Language -> item, cluster (both the document's ordinal) and text.
        source: Language of the prompts; by default the measured language itself.
        prompt_tokens: Tokens of a document that the model reads, at most half of them.
        max_new_tokens: Maximum number of tokens that it generates.
        min_new_tokens: Tokens that it generates before it may end the text; short texts cannot be identified.
        prompting: Whether a beginning is the message of a chat, and how tokens are chosen.

    Raises:
        TaskError: If solved examples should be shown: there are none.
    """

    documents: Mapping[str, pd.DataFrame] = field(repr=False)
    source: str | None = None
    prompt_tokens: int = 16
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    prompting: Prompting = Prompting()

    protocol = "generation"
    metrics = ("in_language",)
    generates = True
    reads_text: ClassVar[bool] = True
    objective = Task.objective  # no continuation is the right one, so there is nothing to train on

    def __post_init__(self) -> None:
        check_no_shots(self.prompting, "generation")

    @classmethod
    def load(
        cls,
        source: str | Path | Corpus,
        languages: Iterable[str] | None = None,
        split: str = "heldout",
        *,
        beginnings: str | None = None,
        documents: int = 100,
        prompt_tokens: int = 16,
        max_new_tokens: int = 32,
        min_new_tokens: int = 0,
        seed: int = 0,
        prompting: Prompting = Prompting(),
    ) -> "Generation":
        """Load text and choose the documents whose beginnings are prompts, see ``of``.

        Args:
            source: A corpus, or anything that ``load_corpus`` reads.
            languages: Languages that can be measured; by default all of the text.
            split: Part of the text: files with this word in their name, where there are such files.
            beginnings: Language of all prompts, the ``source`` of ``of``; by default the measured language.
            documents: Maximum number of documents per language.
            prompt_tokens: Tokens of a document that the model reads, at most half of them.
            max_new_tokens: Maximum number of tokens that the model generates.
            min_new_tokens: Tokens that the model generates before it may end the text.
            seed: Seed for the choice of documents.
            prompting: Whether a beginning is the message of a chat, and how tokens are chosen.

        Raises:
            LangNeuronsError: If ``load_corpus`` or ``of`` refuses something.
        """
        names = None if languages is None else _with_source(languages, beginnings)
        if isinstance(source, Corpus):
            corpus = source if names is None else source.select(names)
        else:
            corpus = load_corpus(source, names, split=split)
        return cls.of(corpus, prompt_tokens, max_new_tokens, beginnings, documents, seed, min_new_tokens, prompting)

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        prompt_tokens: int = 16,
        max_new_tokens: int = 32,
        source: str | None = None,
        documents: int = 100,
        seed: int = 0,
        min_new_tokens: int = 0,
        prompting: Prompting = Prompting(),
    ) -> "Generation":
        """Choose the documents whose beginnings are prompts.

        Args:
            corpus: Text in every language that can be measured, and in which a continuation can be identified.
            prompt_tokens: Tokens of a document that the model reads, at most half of them.
            max_new_tokens: Maximum number of tokens that it generates.
            source: Language of all prompts; by default the measured language.
            documents: Maximum number of documents per language; short ones (below 60 UTF-8 bytes) are left out.
            seed: Seed for the choice of documents.
            min_new_tokens: Tokens that the model generates before it may end the text, at most ``max_new_tokens``.
            prompting: Whether a beginning is the message of a chat, and how tokens are chosen; by default plain text,
                continued greedily.

        Returns:
            The task.

        Raises:
            TaskError: If a number is below 1, or a language has no document long enough.
            LanguageError: If the corpus lacks the source.

        Example:
            >>> task = ln.tasks.Generation.of(ln.load_corpus("babel", ["en", "hi"]), source="en", documents=4)
            >>> task.name, task.languages
            ('language forcing', ('en', 'hi'))
        """
        prompt_tokens = whole_number(prompt_tokens, "prompt_tokens", TaskError)
        max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", TaskError)
        min_new_tokens = whole_number(min_new_tokens, "min_new_tokens", TaskError)
        documents, seed = (
            whole_number(documents, "documents", TaskError),
            whole_number(seed, "seed", TaskError, least=0),
        )
        if min(prompt_tokens, max_new_tokens, documents) < 1:
            raise TaskError(
                f"prompt_tokens, max_new_tokens and documents are at least 1, given {prompt_tokens}, "
                f"{max_new_tokens} and {documents}."
            )
        if not 0 <= min_new_tokens <= max_new_tokens:
            raise TaskError(f"min_new_tokens is 0 to max_new_tokens ({max_new_tokens}), given {min_new_tokens}.")
        if source is not None:
            source = label_of(source, corpus.languages, "source")
        identify([], corpus.languages)  # says now which language cannot be identified
        tables = {language: _documents(language, texts, documents, seed) for language, texts in corpus.items()}
        return cls(tables, source, prompt_tokens, max_new_tokens, min_new_tokens, prompting)

    @property
    def name(self) -> str:
        """Name in tables: "generation", or with a source "language forcing"."""
        return "generation" if self.source is None else "language forcing"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that can be measured; a continuation is identified as one of them, or as none."""
        return tuple(self.documents)

    @property
    def fingerprint(self) -> str:
        """A hash of the documents and of how they are continued."""
        parts = [str(self.source), f"{self.prompt_tokens} {self.min_new_tokens} {self.max_new_tokens}"]
        for language, table in self.documents.items():
            parts += [language, *table["item"].astype(str), *table["text"]]
        return storage.fingerprint(SCORING, *parts, *map(str, self.prompting.changes.items()))

    def with_head(self, head: Head) -> "Generation":
        """The task itself: continuations are generated."""
        return self

    def take(self, count: int, seed: int = 0) -> "Generation":
        """Keep some documents of each language.

        Args:
            count: Number of documents; all where there are fewer.
            seed: Not needed: ``of`` has put the documents in a random order.

        Raises:
            TaskError: If ``count`` is below 1.
        """
        count, _ = checked_draw(count, 0, "documents")
        return replace(self, documents={language: table[:count] for language, table in self.documents.items()})

    def select(self, languages: Iterable[str]) -> "Generation":
        """The same documents in some of the languages, and in that of the prompts.

        Raises:
            LanguageError: If the task does not have a language.
        """
        names = _with_source(distinct(languages, self.documents), self.source)
        return replace(self, documents={language: self.documents[language] for language in names})

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Let a model continue every prompt, with whatever is attached to it at this moment.

        Args:
            model: A model returned by ``load_model``.
            language: Language in which the continuations should be.
            batch_size: Prompts per forward pass.

        Returns:
            One row per document: item, cluster, prompt, prediction (the continuation), gold (the language), identified
            (a language or "unknown", as for continuations of a few letters), in_language (1 or 0), unknown (1 or 0),
            generated (token ids) and stopped (whether the model ended the text itself).

        Raises:
            LanguageError: If the task does not have the language.
            TaskError: If prompt and continuation exceed the model's context.
            ModelError: If the model has no tokenizer.
        """
        language = label_of(language, self.documents)
        table = self.documents[self.source or language]
        model_view = view(model)
        tokenizer, asking = tokenizer_of(model_view), Prompts(model_view, self.prompting)
        prompts = [_prompt(tokenizer, ids, self.prompt_tokens) for ids in token_ids(model_view, list(table["text"]))]
        beginnings = [_decoded(tokenizer, ids) for ids in prompts]
        inputs = [asking.ids(text) for text in beginnings] if asking.chat else [asking.front + ids for ids in prompts]
        options = {"min_new_tokens": self.min_new_tokens, "prompting": self.prompting}
        completions = complete(model, inputs, self.max_new_tokens, (), batch_size, **options)
        identified = identify([completion.text for completion in completions], self.languages)
        return pd.DataFrame(
            {
                "item": table["item"],
                "cluster": table["cluster"],
                "prompt": beginnings,
                "prediction": [completion.text for completion in completions],
                "gold": language,
                "identified": identified,
                "in_language": [float(code == language) for code in identified],
                "unknown": [float(code == UNKNOWN) for code in identified],
                "generated": [completion.ids for completion in completions],
                "stopped": [completion.stopped for completion in completions],
            }
        )

    def references(self, language: str) -> dict[str, float]:
        """Share of the language's own text, cut to the length of a completion, that is identified as the language.

        That is what a perfect writer of the language would reach, and with ``source`` also what one would reach who
        writes in that language: only identification makes mistakes.

        Raises:
            LanguageError: If the task does not have the language.
        """
        language = label_of(language, self.documents)
        others = {} if self.source in (None, language) else {f"{self.source} text": self.source}
        return {name: self._share(code, language) for name, code in {"own text": language, **others}.items()}

    def _share(self, written: str, language: str) -> float:
        rest = []
        for data in (text.encode() for text in self.documents[written]["text"]):
            start = min(self.prompt_tokens * BYTES_PER_TOKEN, len(data) // 2)
            rest.append(data[start : start + self.max_new_tokens * BYTES_PER_TOKEN].decode(errors="ignore"))
        return float(np.mean([code == language for code in identify(rest, self.languages)]))


def _with_source(languages: Iterable[str], source: str | None) -> list[str]:
    """Some languages, and that of the prompts."""
    names = dict.fromkeys(languages)
    return list(names if source is None else {**names, source: None})


def _documents(language: str, texts: Sequence[str], count: int, seed: int) -> pd.DataFrame:
    """Documents that are long enough, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()
    long = (index for index in order if len(str(texts[index]).encode()) >= LEAST_DOCUMENT)
    if not (indices := list(islice(long, min(count, len(order))))):
        raise TaskError(f"{language!r} has no document of at least {LEAST_DOCUMENT} bytes to go on from.")
    return pd.DataFrame({"item": indices, "cluster": indices, "text": [texts[index] for index in indices]})


def _prompt(tokenizer: PreTrainedTokenizerBase, ids: list[int], prompt_tokens: int) -> list[int]:
    """The beginning of a document, ending with a whole character."""
    longest = min(prompt_tokens, max(len(ids) // 2, 1))
    whole = (n for n in range(longest, 0, -1) if not _decoded(tokenizer, ids[:n]).endswith("\N{REPLACEMENT CHARACTER}"))
    return ids[: next(whole, longest)]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
