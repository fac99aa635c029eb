"""Judges: how relevant an answer is to its question, from 0 to 2, whatever language it is in.

The scale and how ratings are read are those of CLaS-Bench (Gurgurov et al. 2026, arXiv 2601.08331); the template is
langneurons' own.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from langneurons import storage
from langneurons.errors import TaskError, check_text, unknown
from langneurons.models import load_model, view
from langneurons.settings import Prompting, whole_number
from langneurons.tasks.completing import complete
from langneurons.tasks.instructions import name_of
from langneurons.tasks.prompting import Prompts, check_no_shots, fitting

Judge = Callable[[pd.DataFrame], Sequence[float | None]]
COLUMNS = ["question", "answer", "source", "target"]
BEST = 2
TEMPLATE = """A question was asked in {source}, and this answer was to be written in {target}. Grade what the answer \
says. Its language does not count: grade it as if you read all languages equally well.

Question:
{question}

Answer:
{answer}

Grades:
2 = it answers this question, in text that makes sense
1 = it has to do with the question, but leaves much out, partly misses the point or is of little use
0 = it has nothing to do with the question, or makes no sense, such as the same words again and again

Say why in one or two sentences. Then end with a line in this form, with the grade as a number: Rating: [[grade]]"""
_RATINGS = (r"Rating: \[\[([012])\]\]", r"\[\[([012])\]\]", r"\b([012])\s*$")  # the first that matches counts


@dataclass(frozen=True, eq=False, repr=False)
class ModelJudge:
    """A model that rates answers; what it reads is a template filled in with question and answer.

    Where a question and an answer exceed the model's context, the answer loses its end. A rating is read as
    ``rating_of`` does. The benchmark samples (temperature 0.7, top_p 0.8) from Qwen3-8B; here ratings are greedy unless
    ``prompting`` has a temperature.

    Args:
        model: A model returned by ``load_model``, other than the one that is judged; or what ``load_model`` loads, a
            folder or the id of a hub model, when the first answer is judged.
        template: Text with ``{question}``, ``{answer}``, and perhaps ``{source}`` and ``{target}``, the English names
            of their languages (or their codes, where langneurons does not know a name).
        max_new_tokens: Maximum number of tokens of a judgement.
        batch_size: Answers per forward pass.
        prompting: How the judge is asked; by default as a chat, where it is a chat model.

    Raises:
        TaskError: If the template lacks a field or has another one, or solved examples should be shown.

    Example:
        >>> ln.tasks.ModelJudge("Qwen/Qwen3-8B", max_new_tokens=256)
        ModelJudge(Qwen/Qwen3-8B)
    """

    model: torch.nn.Module | str | Path
    template: str = TEMPLATE
    max_new_tokens: int = 512
    batch_size: int = 8
    prompting: Prompting = Prompting(chat="auto")

    def __post_init__(self) -> None:
        _check_template(self.template)
        whole_number(self.max_new_tokens, "max_new_tokens", TaskError, least=1)
        whole_number(self.batch_size, "batch_size", TaskError, least=1)
        check_no_shots(self.prompting, "a judge")

    def __repr__(self) -> str:
        name = self.model if isinstance(self.model, str | Path) else view(self.model).name
        return f"ModelJudge({name})"

    @property
    def fingerprint(self) -> str:
        """A hash of the model and of how it is asked; a model that is not loaded is known by its name."""
        model = str(self.model) if isinstance(self.model, str | Path) else view(self.model).fingerprint
        prompting = map(str, self.prompting.changes.items())
        return storage.fingerprint(model, self.template, str(self.max_new_tokens), *prompting)

    def __call__(self, answers: pd.DataFrame) -> list[int | None]:
        """Rate answers.

        Args:
            answers: One row per answer: question, answer, source and target (codes of their languages).

        Returns:
            Per answer 0, 1 or 2, or None where no rating can be read.

        Raises:
            TaskError: If something is attached to the judge, such as a patch, or its context has no room.
        """
        model_view = view(self._loaded)
        if model_view.hooked:
            raise TaskError(
                f"Something is attached to the judge {model_view.name!r}, such as a patch: judge outside that block."
            )
        asking, room = Prompts(model_view, self.prompting), model_view.context_length - self.max_new_tokens
        rows = answers.reindex(columns=COLUMNS).to_dict("records")
        prompts = [fitting(partial(self._ids, asking, row), row["answer"], room)[0] for row in rows]
        limits = (self.max_new_tokens, (), self.batch_size)
        judgements = complete(self._loaded, prompts, *limits, prompting=self.prompting)
        return [rating_of(judgement.text) for judgement in judgements]

    def check_apart(self, model: torch.nn.Module) -> None:
        """Refuse to judge a model by itself, whose patches would judge too.

        Raises:
            TaskError: If the judge is the model, or shares weights with it.
        """
        if isinstance(self.model, str | Path):
            return
        own = set(map(id, self.model.parameters()))
        if self.model is model or any(id(parameter) in own for parameter in model.parameters()):
            raise TaskError(
                f"The judge is {view(model).name!r} itself, so patches of what is judged would be active in the judge: "
                "take another model, or load it a second time."
            )

    @cached_property
    def _loaded(self) -> torch.nn.Module:
        return load_model(self.model) if isinstance(self.model, str | Path) else self.model

    def _ids(self, asking: Prompts, row: dict[str, Any], answer: str) -> list[int]:
        """The tokens of the prompt about some of an answer."""
        names = {side: name_of(row[side]) or row[side] for side in ("source", "target")}
        return asking.ids(self.template.format(**names, question=row["question"], answer=answer))


def rating_of(judgement: str) -> int | None:
    """Read a rating: ``Rating: [[2]]``, or else any ``[[2]]``, or else a 0, 1 or 2 at the very end.

    Example:
        >>> from langneurons.tasks.judging import rating_of
        >>> [rating_of(text) for text in ("[[1]]? No. Rating: [[0]]", "I say [[1]].", "So: 2", "3 of 5", "")]
        [0, 1, 2, None, None]
    """
    matches = (re.search(pattern, judgement.strip()) for pattern in _RATINGS)
    return next((int(match[1]) for match in matches if match), None)


def relevance_of(judge: Judge, answers: pd.DataFrame) -> Float[np.ndarray, " answer"]:
    """Let a judge rate answers.

    Args:
        judge: The judge.
        answers: What it is given: question, answer, source and target.

    Returns:
        Per answer 0, 0.5 or 1, or NaN where the judge gives no rating.

    Raises:
        TaskError: If the judge gives anything but a rating for each answer.
    """
    ratings = list(judge(answers))
    if len(ratings) != len(answers):
        raise TaskError(f"A judge gives one rating for each answer: {len(answers)}, not {len(ratings)}.")
    for rating, question in zip(ratings, answers["question"], strict=True):
        if not (rating is None or rating in range(BEST + 1) or rating != rating):  # the last is NaN
            raise TaskError(
                f"The judge gave {rating!r:.60} to the answer to {question!r:.60}: a rating is 0, 1, 2, or None where "
                "there is none."
            )
    return np.array([np.nan if rating is None else rating for rating in ratings], dtype=float) / BEST


def _check_template(template: str) -> None:
    check_text(template, "template", TaskError)
    try:
        fields = [name for _, name, *_ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise TaskError(f"The template cannot be filled in ({error}): braces that are text are doubled.") from error
    for name in fields:
        if name not in COLUMNS:
            raise TaskError(unknown("field of the template", name, COLUMNS))
    for name in COLUMNS[:2]:
        if name not in fields:
            raise TaskError(f"The template has no {{{name}}}, so the judge would not see it.")
