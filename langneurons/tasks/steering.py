"""Steering: a question in one language, an answer that should be in another and still answer the question.

The steering score of CLaS-Bench (Gurgurov et al. 2026, arXiv 2601.08331): the harmonic mean of how often answers are in
the target language and how relevant they are. Relevance is judged by ``langneurons.tasks.judging``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from langneurons import storage
from langneurons.corpora.languages import distinct, label_of, language_of, spelled
from langneurons.corpora.loading import is_hub_id
from langneurons.effects.estimation import effect
from langneurons.errors import TaskError, unknown
from langneurons.settings import Prompting, Testing, TestingOptions, whole_number, with_options
from langneurons.tasks import reading
from langneurons.tasks.answers import UNKNOWN
from langneurons.tasks.completing import answers_to
from langneurons.tasks.heads import Head
from langneurons.tasks.instructions import Instruction, instruction_of
from langneurons.tasks.judging import Judge, ModelJudge, relevance_of
from langneurons.tasks.passes import Identify, check_identified, fasttext_language, rule_of
from langneurons.tasks.prompting import check_no_shots
from langneurons.tasks.questions import miniature_prompts
from langneurons.tasks.task import Task

SCORING = "steering/1"  # raised with every change of scoring, so that rows scored otherwise are not used again
COLUMNS = ["item", "cluster", "question"]
ROWS = ["item", "cluster", "language", "source", "question", "prompt", "prediction", "gold", "identified"]
BESIDE = "/"  # between question and source language in the name of an item
Shares = float | Float[np.ndarray, " answer"]
_VARIETIES = {"nn": "no", "yue": "zh"}  # the benchmark counts them as the language


@dataclass(frozen=True, eq=False, repr=False)
class Steering:
    """Parallel questions to be answered in another language; ``Steering.load`` makes it.

    The task's language is that of the answers. An item is a question in one of the languages it is asked in, and a
    cluster holds a question in all of them.

    Args:
        questions: Language of the questions -> one row per question: item, cluster and question; the same items in
            every language.
        languages: Languages of the answers; by default those of the questions.
        ask_in: Languages to ask in, the same whatever language is measured; by default all others.
        judge: Function that rates answers, such as a ``ModelJudge``: from a table with the columns question, answer,
            source and target, one row per answer, to one rating for each, 0, 1, 2, or None where it has none. Without a
            judge only ``forcing`` is scored.
        instruction: What is added to every question, to steer by a prompt: a sentence in "english", or in the language
            of the question ("source") or of the answer ("target"), that asks for the language; or language of the
            answer -> a sentence. By default nothing.
        max_new_tokens: Maximum number of tokens of an answer.
        identify: Function from an answer, in one line, to the code of its language, or to "unknown"; by default
            fastText's lid.176. It is known by its name when results in ``out=`` are used again, and so is ``judge``.
        prompting: Whether questions are messages of a chat, and how the tokens of an answer are chosen.

    Raises:
        TaskError: If questions are malformed or not parallel, none is in another language than an answer, there is no
            such instruction, a package is missing, or solved examples should be shown: there are none.
        LanguageError: If there is no question in a language to ask in, or a language cannot be identified.

    Example:
        >>> questions = {"en": "The children went to", "hi": "बच्चे"}
        >>> row = {"item": ["1"], "cluster": ["1"]}
        >>> tables = {code: pd.DataFrame({**row, "question": text}) for code, text in questions.items()}
        >>> task = ln.tasks.Steering(tables, ("hi",), max_new_tokens=8)
        >>> task.measure(model, "hi")[["item", "prediction", "identified", "forcing"]].to_numpy().tolist()
        [['1/en', ' the school.', 'en', 0.0]]
    """

    questions: Mapping[str, pd.DataFrame]
    languages: tuple[str, ...] = ()
    ask_in: Sequence[str] | None = None
    judge: Judge | None = None
    instruction: Instruction | None = None
    max_new_tokens: int = 256
    identify: Identify | None = None
    prompting: Prompting = Prompting()

    protocol = "generation"
    incomplete = ("steering", "relevance")  # where the judge gives no rating
    generates = True
    reads_text: ClassVar[bool] = False
    objective = Task.objective  # no answer is the right one, so there is nothing to train on

    def __post_init__(self) -> None:
        _check_questions(self.questions)
        languages = distinct(self.languages or self.questions)
        object.__setattr__(self, "languages", tuple(spelled(code, self.questions) or code for code in languages))
        if self.ask_in is not None:
            object.__setattr__(self, "ask_in", tuple(distinct(self.ask_in, self.questions)))
        whole_number(self.max_new_tokens, "max_new_tokens", TaskError, least=1)
        check_identified(self.languages, self.identify)
        check_no_shots(self.prompting, self.name)
        if self.judge is not None and not callable(self.judge):
            raise TaskError(f"A judge is a function of a table of answers, not {self.judge!r:.60}.")
        for language in self.languages:
            self._prompts(language)  # says what cannot be asked

    @classmethod
    def load(
        cls,
        source: str | Path,
        languages: Iterable[str] | None = None,
        split: str = "test",
        *,
        revision: str | None = None,
        ask_in: Iterable[str] | None = None,
        judge: Judge | str | Path | None = None,
        instruction: Instruction | None = None,
        max_new_tokens: int = 256,
        identify: Identify | None = None,
        prompting: Prompting = Prompting(),
    ) -> "Steering":
        """Load parallel questions in several languages.

        Args:
            source: A folder with a file of questions per language, such as the benchmark's ``data/hi.txt`` (a question
                per line, line by line the same in every language), or tables (``.csv``, ``.parquet``) with a column
                ``question``, and perhaps ``question_id`` or ``item``; one such file; the id of a hub data set, such as
                ``"DGurgurov/CLaS-Bench"``, whose only split is "train"; or ``"babel"``, the questions of the miniature
                tasks that come with langneurons.
            languages: Languages of the answers; by default all that have questions. Of a hub data set, questions in
                these languages and in those of ``ask_in`` are loaded.
            split: "test", or a part of it, such as "test[:25%]"; a file that names no split belongs to every one.
            revision: Branch, tag or commit of a hub data set.
            ask_in: Languages to ask in, that of the answer among them if it is listed, as in the benchmark's own runs;
                by default all that have questions but the language of the answer.
            judge: Function that rates answers, see ``Steering``; or the folder or hub id of a model that does.
            instruction: A sentence that asks for the language: "english", "source", "target", or a mapping.
            max_new_tokens: Maximum number of tokens of an answer; the benchmark's own is 1024.
            identify: Function from an answer to the code of its language; by default fastText's lid.176.
            prompting: Whether questions are messages of a chat, as in the benchmark, and how the tokens of an answer
                are chosen; by default plain text, greedily.

        Returns:
            The task.

        Raises:
            TaskError: If a file has no questions or cannot be read, one is blank, or languages have other questions.
            LanguageError: If a language has no questions or cannot be identified.
            CorpusError: If the hub cannot be read.

        Example:
            >>> ln.tasks.Steering.load("babel", ["hi", "zh"], ask_in=["en"], max_new_tokens=8)
            Steering(hi, zh; questions: 480, clusters: 116, asked in: en)
        """
        split, part = reading.sliced(split)
        answered = None if languages is None else distinct(languages)
        sources = None if ask_in is None else distinct(ask_in)
        from_hub = isinstance(source, str) and source != reading.BABEL and is_hub_id(source)
        wanted = [*(answered or ()), *(sources or ())] if from_hub else []
        readers = {".txt": _read_lines, ".csv": reading.csv_of}
        tables = reading.read_items(source, wanted or None, split, readers, [], miniature_prompts, revision)
        questions = {
            language: reading.part_of(_with_items(language, table), part) for language, table in tables.items()
        }
        if isinstance(judge, str | Path):
            judge = ModelJudge(judge)
        options = (judge, instruction, max_new_tokens, identify, prompting)
        return cls(_clustered(questions), tuple(answered or ()), sources, *options)

    def __repr__(self) -> str:
        first = next(iter(self.questions.values()))
        counts = f"questions: {len(first)}, clusters: {first['cluster'].nunique()}"
        asked_in = ", ".join(self.questions if self.ask_in is None else self.ask_in)
        return f"Steering({', '.join(self.languages)}; {counts}, asked in: {asked_in})"

    @property
    def name(self) -> str:
        """Name in tables: "steering", or with an instruction "steering by prompt" and of which kind."""
        if self.instruction is None:
            return "steering"
        return f"steering by prompt ({self.instruction if isinstance(self.instruction, str) else 'own'})"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The scores of each item; without a judge only "forcing"."""
        return ("forcing",) if self.judge is None else ("steering", "forcing", "relevance")

    @property
    def fingerprint(self) -> str:
        """A hash of the questions, of how they are asked, of the length of answers and of how they are judged."""
        judge = "" if self.judge is None else getattr(self.judge, "fingerprint", None) or rule_of(self.judge)
        parts = [str(self.max_new_tokens), rule_of(self.identify or fasttext_language), judge, str(self.ask_in)]
        parts += [str(self.instruction), *map(str, self.prompting.changes.items())]
        return storage.fingerprint(SCORING, *parts, *reading.hashed_texts(self.questions, COLUMNS))

    def with_head(self, head: Head) -> "Steering":
        """The task itself: answers are generated."""
        return self

    def take(self, count: int, seed: int = 0) -> "Steering":
        """Draw some questions at random, the same in every language.

        Questions are taken round-robin over clusters, so that clusters stay balanced.

        Args:
            count: Number of questions; all where there are fewer. Each is asked in every language to ask in.
            seed: Seed of the draw.

        Returns:
            The task with these questions, in their old order.

        Raises:
            TaskError: If ``count`` is below 1.
        """
        return replace(self, questions=reading.drawn(self.questions, count, seed, "questions"))

    def select(self, languages: Iterable[str]) -> "Steering":
        """The same questions, to be answered in some of the languages.

        Raises:
            LanguageError: If the task has no such language.
        """
        return replace(self, languages=tuple(distinct(languages, self.languages)))

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Let a model answer the questions in other languages, with whatever is attached to it at this moment.

        Answers are greedy, unless ``prompting`` has a temperature. No question is left out: where question and answer
        exceed the model's context, the question loses its end.

        Args:
            model: A model returned by ``load_model``.
            language: Language that the answers should be in.
            batch_size: Questions per forward pass.

        Returns:
            One row per question and language it is asked in: item, cluster, language, source (the language it is asked
            in), question, prompt (with the instruction), prediction (the answer), gold (the language), identified (the
            answer's language, or "unknown"), forcing (1 where it is the language, else 0); with a judge also relevance
            (0, 0.5 or 1; NaN without a rating), and steering, the harmonic mean of the two; cut (whether the question
            was), generated (token ids) and stopped (whether the model ended the answer itself).

        Raises:
            LanguageError: If the task has no such language.
            TaskError: If the model has no tokenizer, or its context no room for an answer; or if the judge is the
                model itself, or gives anything but ratings.
        """
        language = label_of(language, self.languages)
        if isinstance(self.judge, ModelJudge):
            self.judge.check_apart(model)
        rows = self._prompts(language)
        completed = answers_to(model, rows["prompt"], self.max_new_tokens, batch_size, self.prompting).to_dict("list")
        answers = completed.pop("prediction")
        rows = rows.assign(prediction=answers, gold=language, identified=[*map(self._language_of, answers)])
        rows["forcing"] = (rows["identified"] == _counted_as(language)).astype(float)
        if self.judge is not None:
            judged = rows[["question", "source"]].assign(answer=[*map(str.strip, answers)], target=language)
            rows["relevance"] = relevance_of(self.judge, judged)
            rows["steering"] = _harmonic(rows["forcing"].to_numpy(), rows["relevance"].to_numpy())
        return rows.reindex(columns=[*ROWS, *self.metrics]).assign(**completed)

    def references(self, language: str) -> dict[str, float]:
        """Find what a model would score that repeats its questions.

        Args:
            language: Language that the answers should be in.

        Returns:
            Without a judge ``"prompt"``: the share of the prompts that are in the language. With one nothing, because
            it has not judged them.

        Raises:
            LanguageError: If the task has no such language.
        """
        language = label_of(language, self.languages)
        if self.judge is not None:
            return {}
        identified = [*map(self._language_of, self._prompts(language)["prompt"])]
        return {"prompt": float(np.mean([code == _counted_as(language) for code in identified]))}

    def _prompts(self, language: str) -> pd.DataFrame:
        """What is asked so that the answer is in a language: one row per question and language it is asked in."""
        others = [code for code in self.questions if code != language]
        if not (sources := others if self.ask_in is None else self.ask_in):
            raise TaskError(
                f"There are questions in {language!r} only, so none can be answered in another language than its own: "
                "give questions in other languages, or languages= of other answers."
            )
        parts = []
        for source in sources:
            table = self.questions[source]
            added = None if self.instruction is None else instruction_of(self.instruction, source, language)
            prompts = [" ".join(filter(None, (question, added))) for question in table["question"]]
            items = [f"{item}{BESIDE}{source}" for item in table["item"]]
            parts.append(table[COLUMNS].assign(item=items, language=language, source=source, prompt=prompts))
        return pd.concat(parts, ignore_index=True)

    def _language_of(self, answer: str) -> str:
        line = " ".join(answer.split())
        return _counted_as((self.identify or fasttext_language)(line)) if line else UNKNOWN


def steering_scores(
    rows: pd.DataFrame,
    by: Sequence[str] = ("language",),
    *,
    testing: Testing = Testing(),
    **options: Unpack[TestingOptions],
) -> pd.DataFrame:
    """Average answers to the benchmark's numbers: the steering score is the harmonic mean of two means over answers.

    Questions are resampled, together in all languages. The interval of the steering score is that of its linear
    approximation.

    Args:
        rows: Rows that ``Steering.measure`` returned, or the rows of an ``Evaluation``.
        by: Columns by which answers are grouped: ``language`` (of the answers), ``source`` (of the questions), both,
            or none for the score over all. Tasks and patches of an evaluation are never mixed.
        testing: The interval's level and the resampling.
        options: Single fields of ``testing``, such as ``resamples=1000``.

    Returns:
        One row per group: the columns of ``by``, answers and judged (numbers of them), forcing (share of the answers in
        the language), relevance (mean over judged answers), steering, and of each its interval (``forcing_low``,
        ``forcing_high``, ...); NaN where no answer is judged, and of intervals with fewer than two questions.

    Raises:
        TaskError: If a column is missing.

    Example:
        >>> answers = {"item": ["1/en", "2/en"], "cluster": ["1", "2"], "language": "hi", "source": "en"}
        >>> rows = pd.DataFrame({**answers, "forcing": [1.0, 1.0], "relevance": [1.0, 0.0]})
        >>> scores = ln.tasks.steering_scores(rows)
        >>> scores[["forcing", "relevance", "steering"]].round(3).to_numpy().tolist()
        [[1.0, 0.5, 0.667]]
    """
    (testing,) = with_options(options, testing)
    rows = _wide(rows)
    groups = list(dict.fromkeys([*(name for name in ("task", "patch") if name in rows), *by]))
    for column in (*groups, "cluster", "forcing"):
        if column not in rows.columns:
            raise TaskError(f"Answers lack a column. {unknown('column', column, rows.columns)}")
    if not groups:
        return pd.DataFrame([_scores(rows, testing)])
    parts = [part for _, part in rows.groupby(groups, sort=False)]
    return pd.DataFrame([{**part.iloc[0][groups].to_dict(), **_scores(part, testing)} for part in parts])


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per answer, also of an evaluation, which has one per answer and metric."""
    if "metric" in rows.columns:
        rows = rows.loc[rows["metric"].isin(["forcing", "relevance"])]
        answer = ["task", "patch", "language", "item", "cluster"]
        rows = rows.set_index([*answer, "metric"])["value"].unstack("metric").reset_index()
        rows = rows.assign(source=[str(item).rpartition(BESIDE)[2] for item in rows["item"]])
    return rows if "relevance" in rows.columns else rows.assign(relevance=np.nan)


def _scores(rows: pd.DataFrame, testing: Testing) -> dict[str, float]:
    """The numbers of some answers, and their intervals."""
    forcing, relevance = rows["forcing"].to_numpy(float), rows["relevance"].to_numpy(float)
    judged = ~np.isnan(relevance)
    rate, mean = forcing.mean(), relevance[judged].mean() if judged.any() else np.nan
    score = _harmonic(rate, mean)
    # The harmonic mean of two means, as a mean of what each answer adds to it, to first order.
    slopes = 2 * (np.array([mean, rate]) / (rate + mean)) ** 2 if rate + mean else np.zeros(2)
    weight = len(rows) / max(judged.sum(), 1)
    linear = score + slopes[0] * (forcing - rate) + slopes[1] * weight * np.where(judged, relevance - mean, 0.0)
    numbers: dict[str, float] = {"answers": len(rows), "judged": int(judged.sum())}
    values = {"forcing": (rate, forcing), "relevance": (mean, relevance), "steering": (score, linear)}
    for name, (number, of_answers) in values.items():
        counted = judged if name == "relevance" else np.full(len(rows), True)
        low, high = _interval(of_answers[counted], rows["cluster"][counted].tolist(), testing)
        numbers |= {name: float(number), f"{name}_low": low, f"{name}_high": high}
    return numbers


def _interval(values: Float[np.ndarray, " answer"], clusters: list[str], testing: Testing) -> tuple[float, float]:
    """The interval of a mean of shares; NaN where there is none."""
    if len(set(clusters)) < 2 or np.isnan(values).any():
        return np.nan, np.nan
    rows = pd.DataFrame({"item": range(len(values)), "cluster": clusters, "value": values})
    size = effect(rows, rows.assign(value=0.0), "value", "row", lower_is_better=False, testing=testing)
    return max(size.low, 0.0), min(size.high, 1.0)


def _harmonic(forcing: Shares, relevance: Shares) -> Shares:
    """The harmonic mean of two shares, 0 where both are; NaN where one is NaN."""
    total = forcing + relevance
    return 2 * forcing * relevance / np.where(total == 0, 1.0, total)


def _counted_as(code: str) -> str:
    """The language that an identified code counts as."""
    language = language_of(code)
    return _VARIETIES.get(language, language)


# ---- reading ----


def _read_lines(path: Path) -> pd.DataFrame:
    """Read a question per line; blank lines at the end are none."""
    text = reading.text_of(path, "a text").rstrip()
    return pd.DataFrame({"question": [line.strip() for line in text.split("\n")] if text else []}, dtype=str)


def _with_items(language: str, table: pd.DataFrame) -> pd.DataFrame:
    """Name every question, by its place in the table where the table does not."""
    text = next((name for name in ("question", "prompt") if name in table), None)
    if text is None:
        raise TaskError(f"The items of {language!r} lack a column. {unknown('column', 'question', table)}")
    reading.check_visible(language, list(table[text]), "question")
    name = next((name for name in ("item", "question_id") if name in table), None)
    items = [str(item) for item in (range(1, len(table) + 1) if name is None else table[name])]
    return pd.DataFrame({"item": items, "question": list(table[text])})


def _clustered(questions: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Put a question in a cluster of its own, in all languages; one that is asked twice is in the first one's."""
    first = next(iter(questions.values()))
    clusters = dict(zip(first["item"], first.groupby("question")["item"].transform("first"), strict=True))
    return {
        language: table.assign(cluster=[clusters.get(item, item) for item in table["item"]]).reindex(columns=COLUMNS)
        for language, table in questions.items()
    }


def _check_questions(questions: Mapping[str, pd.DataFrame]) -> None:
    if not questions:
        raise TaskError("There is no question: give those of at least one language.")
    first, reference = next(iter(questions.items()))
    for language, table in questions.items():
        reading.check_items(language, table, COLUMNS, "question")
        if len(table) != len(reference):
            raise TaskError(
                f"Questions are the same in every language, but there are {len(reference)} in {first!r} and "
                f"{len(table)} in {language!r}."
            )
        for column in COLUMNS[:2]:
            for own, other in zip(table[column], reference[column], strict=True):
                if own != other:
                    raise TaskError(
                        f"Questions are the same in every language, in the same order and clusters, but {language!r} "
                        f"has the {column} {own!r:.60} where {first!r} has {other!r:.60}."
                    )
