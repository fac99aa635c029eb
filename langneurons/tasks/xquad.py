"""XQuAD and MLQA: questions about a paragraph, in several languages, answered by generation.

Artetxe et al. 2020 (arXiv 1910.11856), Lewis et al. 2020 (arXiv 1910.07475). Scores are SQuAD's exact match and F1,
normalised per language or as SQuAD does.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from langneurons import storage
from langneurons.corpora.languages import distinct, for_languages, label_of
from langneurons.errors import TaskError, TrainingError, in_short, unknown
from langneurons.models import ModelView, view
from langneurons.settings import Prompting, Training
from langneurons.tasks.answers import check_metric, exact_match, f1
from langneurons.tasks.batching import tokenizer_of
from langneurons.tasks.completing import complete, continuation_ids, end_ids
from langneurons.tasks.heads import Head
from langneurons.tasks.likelihood import placeholders
from langneurons.tasks.objectives import Answering, Example
from langneurons.tasks.prompting import Prompts, Solved, turn_end
from langneurons.tasks.questions import (
    COLUMNS,
    apart,
    check_questions,
    is_mlqa,
    only,
    other_answers,
    questions_of,
    read_questions,
)
from langneurons.tasks.reading import BABEL, check_shots, checked_draw, part_of, sliced, table_of

SCORING = "xquad/1"  # raised with every change of scoring, so that rows on disk that were scored otherwise are not used
PLACEHOLDERS = ("context", "question")


def read_prompts(path: str | Path | None = None) -> dict[str, str]:
    """Read prompt templates, one per language, from a TOML file.

    Args:
        path: The file; by default the one that comes with langneurons.

    Returns:
        Language -> template, in which ``{context}`` and ``{question}`` stand for an item's.

    Raises:
        TaskError: If the file cannot be read or holds anything but texts.

    Example:
        >>> read_prompts()["en"].splitlines()[-2:]
        ['Question: {question}', 'Answer:']
    """
    file = Path(__file__).with_name("xquad_prompts.toml") if path is None else Path(path).expanduser()
    templates = storage.read_toml(file, "prompts from", TaskError)
    for language, template in templates.items():
        if not isinstance(template, str):
            raise TaskError(f"The prompt of {language!r} in {file} is not a text but {template!r:.40}.")
    return templates


@dataclass(frozen=True, eq=False, repr=False)
class XQuAD:
    """Questions about paragraphs in several languages; ``XQuAD.load`` makes it.

    Args:
        items: Language -> one row per question: item (its id) and cluster (the article, or the paragraph where articles
            are unknown), both the same in every language; context, question, and answers, a list of right ones.
        prompts: Language -> template with ``{context}`` and ``{question}``.
        max_new_tokens: Maximum number of tokens of an answer.
        name: Name in tables.
        metric: How answers are normalised before they are compared: "mlqa", by the rules of their language, or "squad",
            by those of SQuAD 1.1, whatever the language.
        parallel: Whether every language must have the same questions.
        prompting: Whether prompts are plain text or a chat, how many solved examples precede each question, and how the
            tokens of an answer are chosen.
        examples: Language -> table of those examples, with the columns of ``items``.

    Raises:
        TaskError: If the items are malformed or differ between languages, a prompt is missing or malformed, or there
            are not as many examples as should be shown.

    Example:
        >>> question = {"item": "q1", "cluster": "Nile", "context": "The Nile is 6,650 km long.",
        ...             "question": "How long is the Nile?", "answers": ["6,650 km"]}
        >>> task = XQuAD({"en": pd.DataFrame([question])})
        >>> task
        XQuAD(en; questions in each: 1, clusters: 1)
        >>> task.measure(model, "en")[["item", "gold", "cut"]]
          item      gold    cut
        0   q1  6,650 km  False
    """

    items: Mapping[str, pd.DataFrame]
    prompts: Mapping[str, str] = field(default_factory=read_prompts)
    max_new_tokens: int = 32
    name: str = "xquad"
    metric: str = "mlqa"
    parallel: bool = True
    prompting: Prompting = Prompting()
    examples: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    protocol = "generation"
    metrics = ("f1", "exact_match")
    generates = True
    reads_text: ClassVar[bool] = False
    shows_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_questions(self.items, self.parallel)
        check_metric(self.metric)
        if self.max_new_tokens < 1:
            raise TaskError(f"max_new_tokens is at least 1, given {self.max_new_tokens}.")
        for language in self.items:
            _check_prompt(language, self.prompts)
        check_shots(self.prompting.shots, self.items, self.examples)

    @classmethod
    def load(
        cls,
        source: str | Path,
        languages: Iterable[str] | None = None,
        split: str = "validation",
        *,
        revision: str | None = None,
        prompts: str | Path | Mapping[str, str] | None = None,
        max_new_tokens: int = 32,
        metric: str = "mlqa",
        question_language: str | None = None,
        parallel: bool | None = None,
        prompting: Prompting = Prompting(),
    ) -> "XQuAD":
        """Load the questions of several languages.

        Args:
            source: A folder with a SQuAD 1.1 file per language, such as ``xquad.hi.json`` or MLQA's
                ``test-context-hi-question-hi.json`` (perhaps compressed), or with parquet of the hub's columns (id,
                context, question, answers); one such file; the hub's ``"google/xquad"``; or ``"babel"``, the miniature
                questions that come with langneurons.
            languages: Languages to load, first the one that gives the order of items; by default all of a folder,
                sorted.
            split: "validation" (the hub has no other), "train" or "test", or a part of one, such as "validation[:50%]";
                a file that names no split belongs to every one.
            revision: Branch, tag or commit of a hub data set.
            prompts: Templates per language, or a TOML file of them; by default those that come with langneurons.
            max_new_tokens: Maximum number of tokens of an answer.
            metric: How answers are normalised before they are compared: "mlqa", by the rules of their language, or
                "squad", by those of SQuAD 1.1, whatever the language, as XTREME does.
            question_language: Language of the questions in MLQA's files; by default that of the paragraphs, which is
                the language by which everything goes, as answers are in it.
            parallel: Whether every language must have the same questions; by default True, but for MLQA's files, where
                not every question is in every language.
            prompting: Whether prompts are plain text or a chat, how many solved examples precede each question, and how
                the tokens of an answer are chosen. Examples are about paragraphs of different articles where there are
                enough; no question about those paragraphs is scored.

        Returns:
            The task.

        Raises:
            TaskError: If a file, an item or a prompt is malformed, a question has no answer, or languages have
                different items.
            LanguageError: If a language is not there.
            CorpusError: If the hub cannot be read.
        """
        templates = prompts if isinstance(prompts, Mapping) else read_prompts(prompts)
        split, part = sliced(split)
        of_mlqa = source != BABEL and is_mlqa(source)
        items = read_questions(source, languages, split, revision, question_language)
        items = only(items, part_of(questions_of(items), part)["item"])
        items, examples = apart(items, prompting.shots, prompting.seed) if prompting.shots else (items, {})
        name = "mini_xquad" if source == BABEL else "mlqa" if of_mlqa else "xquad"
        parallel = not of_mlqa if parallel is None else parallel
        templates = for_languages(templates, items)
        return cls(items, templates, max_new_tokens, name, metric, parallel, prompting, examples)

    def __repr__(self) -> str:
        clusters = questions_of(self.items)["cluster"].nunique()
        counts = {len(table) for table in self.items.values()}
        if len(counts) == 1:
            return f"XQuAD({', '.join(self.languages)}; questions in each: {counts.pop():,}, clusters: {clusters:,})"
        each = ", ".join(f"{language} {len(table):,}" for language, table in self.items.items())
        return f"XQuAD(questions: {each}; clusters: {clusters:,})"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it has items in."""
        return tuple(self.items)

    @property
    def fingerprint(self) -> str:
        """A hash of the items and of everything that decides how they are asked and scored, but not of the model."""
        texts = [
            text
            for language, table in sorted(self.items.items())
            for text in (language, self.prompts[language], _as_json(table))
        ]
        examples = (
            [_as_json(self.examples[language]) for language in sorted(self.items)] if self.prompting.shots else []
        )
        asking = map(str, self.prompting.changes.items())
        scoring = SCORING if self.metric == "mlqa" else f"{SCORING} {self.metric}"
        return storage.fingerprint(scoring, str(self.max_new_tokens), *texts, *asking, *examples)

    def objective(
        self,
        model_view: ModelView,
        languages: Iterable[str] | None = None,
        training: Training = Training(),
        head: Head | None = None,
    ) -> Answering:
        """The loss of the first right answer to every question and of its end, see ``Task.objective``."""
        if head is not None:
            raise TrainingError("A task that generates has no head to start from: leave head= away.")
        names = self.languages if languages is None else distinct(languages, self.items)
        return Answering((example for name in names for example in self._examples(model_view, name)), training)

    def with_head(self, head: Head) -> "XQuAD":
        """The task itself: answers are generated."""
        return self

    def take(self, count: int, seed: int = 0) -> "XQuAD":
        """Draw some questions at random, the same in every language that has them.

        Questions are taken round-robin over clusters, so that clusters stay balanced. Where languages have different
        questions, they are drawn from those of all languages, so that some have fewer than ``count``.

        Args:
            count: Number of questions; all where there are fewer. A smaller draw of a seed is part of a larger one.
            seed: Seed of the draw.

        Returns:
            The task with these questions, in their old order.

        Raises:
            TaskError: If ``count`` is below 1, or a language has none of the questions drawn.
        """
        count, seed = checked_draw(count, seed, "questions")
        questions = questions_of(self.items)
        order = np.random.default_rng(seed).permutation(len(questions))
        turn = questions.iloc[order].groupby("cluster").cumcount().to_numpy()  # a cluster's first, second, ...
        drawn_items = list(questions["item"].iloc[order[np.argsort(turn, kind="stable")[:count]]])
        items = {language: table.assign(others=other_answers(table)) for language, table in self.items.items()}
        items = only(items, drawn_items)
        for language, table in items.items():
            if table.empty:
                raise TaskError(
                    f"None of the {len(drawn_items)} questions drawn is in {language!r}: take more than {count}."
                )
        return replace(self, items=items)

    def select(self, languages: Iterable[str]) -> "XQuAD":
        """The same questions in some of the languages.

        Raises:
            LanguageError: If the task has no such language.
        """
        return replace(self, items={language: self.items[language] for language in distinct(languages, self.items)})

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Let a model answer the questions of one language, with whatever is attached to it at this moment.

        Answers are greedy, unless ``prompting`` has a temperature, and end at a newline, a stop token or after
        ``max_new_tokens``. No question is left out: where the prompt and an answer exceed the model's context, the end
        of the paragraph is cut.

        Args:
            model: A model returned by ``load_model``.
            language: Language of the questions.
            batch_size: Maximum number of prompts per forward pass; answers do not depend on it.

        Returns:
            One row per question: item, cluster, prediction and gold (texts; the first right answer), f1, exact_match,
            cut (whether the paragraph was), generated (token ids, with the end-of-sequence token), prompt_tokens and
            stopped (whether the answer ended by itself).

        Raises:
            LanguageError: If the task has no such language.
            TaskError: If the model has no tokenizer, or its context no room for a question.
        """
        language, model_view = label_of(language, self.items), view(model)
        table = self.items[language]
        questions = zip(table["item"], table["context"], table["question"], strict=True)
        prompts, cut = zip(*(self.prompt(model_view, language, *question) for question in questions), strict=True)
        completions = complete(model, prompts, self.max_new_tokens, batch_size=batch_size, prompting=self.prompting)
        predictions, answers = [completion.text.strip() for completion in completions], list(table["answers"])
        pairs = list(zip(predictions, answers, strict=True))
        return pd.DataFrame(
            {
                "item": table["item"],
                "cluster": table["cluster"],
                "prediction": predictions,
                "gold": [golds[0] for golds in answers],
                "f1": [f1(prediction, golds, language, self.metric) for prediction, golds in pairs],
                "exact_match": [exact_match(prediction, golds, language, self.metric) for prediction, golds in pairs],
                "cut": cut,
                "generated": [completion.ids for completion in completions],
                "prompt_tokens": [len(prompt) for prompt in prompts],
                "stopped": [completion.stopped for completion in completions],
            }
        )

    def references(self, language: str) -> dict[str, float]:
        """Find what a model would score that answers well, but another question about the same paragraph.

        Args:
            language: Language of the questions.

        Returns:
            ``"another answer"``: the mean F1 of the first right answers to the other questions about the paragraph,
            over the items whose paragraph has others (those that ``take`` left out included); nothing where none has.

        Raises:
            LanguageError: If the task has no such language.
        """
        table = table_of(self.items, language)
        scores = [
            float(np.mean([f1(other, golds, language, self.metric) for other in others]))
            for others, golds in zip(other_answers(table), table["answers"], strict=True)
            if others
        ]
        return {"another answer": float(np.mean(scores))} if scores else {}

    def prompt(
        self, model_view: ModelView, language: str, item: str, context: str, question: str
    ) -> tuple[list[int], bool]:
        """Tokenise a prompt with as much of the context, from its beginning, as leaves room for the answer.

        Args:
            model_view: View of the model.
            language: Language whose template is filled in.
            item: Name of the question, for messages.
            context: The paragraph.
            question: The question.

        Returns:
            Token ids, and whether the context was cut.

        Raises:
            TaskError: If the model has no tokenizer, or there is no room for the question.
        """
        tokenizer_of(model_view, TaskError)  # says if there is none
        prompts = Prompts(model_view, self.prompting, self._solved(language))

        def prompt_with(letters: int) -> list[int]:
            return prompts.ids(self.prompts[language].format(context=context[:letters], question=question))

        room = model_view.context_length - self.max_new_tokens
        if len(whole := prompt_with(len(context))) <= room:
            return whole, False
        letters = bisect_right(range(len(context)), room, key=lambda count: len(prompt_with(count))) - 1
        if letters < 0:
            raise TaskError(
                f"The question {item!r} in {language!r} takes {len(prompt_with(0))} tokens without its paragraph, and "
                f"with {self.max_new_tokens} new ones it exceeds the context of {model_view.name!r}, "
                f"{model_view.context_length}."
            )
        return prompt_with(letters), True

    def _examples(self, model_view: ModelView, language: str) -> Iterator[Example]:
        """Every question's prompt, as it is evaluated, and the tokens of its first right answer and its end."""
        table, tail, space = table_of(self.items, language), self.prompts[language].rpartition("}")[2], " "
        prompts, tokenizer = Prompts(model_view, self.prompting), tokenizer_of(model_view)
        ends = end_ids(tokenizer)
        if prompts.chat:
            tail, space, turn = prompts.text(""), "", turn_end(model_view)
            ends = ends if turn is None else [turn]
        columns = (table[column] for column in ("item", "context", "question", "answers"))
        for item, context, question, answers in zip(*columns, strict=True):
            prompt, _ = self.prompt(model_view, language, item, context, question)
            answer = continuation_ids(tokenizer, tail, space + answers[0])[: self.max_new_tokens - 1]
            yield prompt, answer + ends

    def _solved(self, language: str) -> list[Solved]:
        if not self.prompting.shots:
            return []
        table = self.examples[language]
        columns = (table[column] for column in ("context", "question", "answers"))
        template = self.prompts[language]
        return [
            (template.format(context=context, question=question), f" {answers[0]}")
            for context, question, answers in zip(*columns, strict=True)
        ]


def _as_json(table: pd.DataFrame) -> str:
    return str(table[COLUMNS].to_json(orient="values", force_ascii=False))


def _check_prompt(language: str, prompts: Mapping[str, str]) -> None:
    if language not in prompts:
        languages = ", ".join(prompts) or "none"
        raise TaskError(f"There is no prompt for {language!r}, only for {languages}: give one with prompts=.")
    if not isinstance(prompts[language], str):
        raise TaskError(f"The prompt of {language!r} is not a text but {prompts[language]!r:.40}.")
    try:
        fields = placeholders(prompts[language])
    except ValueError as error:
        raise TaskError(
            f"The prompt of {language!r} is malformed ({in_short(error)}): double braces that are text."
        ) from error
    for name in fields:
        if name not in PLACEHOLDERS:
            raise TaskError(
                f"The prompt of {language!r} cannot be filled in. {unknown('placeholder', name, PLACEHOLDERS)}"
            )
    for name in PLACEHOLDERS:
        if name not in fields:
            raise TaskError(f"The prompt of {language!r} lacks {{{name}}}: {prompts[language]!r:.80}.")
