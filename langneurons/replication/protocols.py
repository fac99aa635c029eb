"""Both protocols side by side: what the published one concludes of a patch, and what can be concluded."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from langneurons.effects.estimation import effect
from langneurons.effects.table import VERDICTS, EffectTable, with_current_names
from langneurons.errors import EffectError, TaskError, counted, warn_user
from langneurons.evaluation.evaluating import Patches, chosen_languages, task_jobs, written_patches
from langneurons.evaluation.measuring import BATCH_SIZE, measure_jobs
from langneurons.evaluation.results import UNPATCHED
from langneurons.models import view
from langneurons.replication.published import PUBLISHED_METRICS
from langneurons.run import alone_in_out
from langneurons.settings import MeasuringOptions, Run, Testing, with_options
from langneurons.storage.layouts import Layout, layout
from langneurons.storage.objects import JsonObject
from langneurons.storage.presenting import P_VALUE, Column, Table
from langneurons.storage.result import Result
from langneurons.tasks.batching import tokenizer_of
from langneurons.tasks.heads import POSITIONS, ClassificationHead, Head, LabelledPairs, Pair, joined_tokens, pairs_of
from langneurons.tasks.task import Task

NO_DIFFERENCE = "no difference"
WITHIN = {"no effect", "slightly better", "slightly worse"}
AGREE = {"gain": {"better"}, "loss": {"worse"}, NO_DIFFERENCE: WITHIN}
# Columns of an effect table, and what they are called beside the published protocol's.
CALLED = {"baseline": "base", "condition": "patched", "estimate": "change", "minimal_detectable": "detectable"}
SOUND = ["base", "patched", "change", "low", "high", "p_holm", "verdict", "detectable", "items"]
Rows = Mapping[tuple[str, str], pd.DataFrame]


@dataclass(frozen=True, eq=False, repr=False)
class ProtocolComparison(Result, kind="protocol-comparison", file="protocols", tables={"rows": "table"}):
    """What the published protocol concludes of each patch, beside the sound one.

    Attributes:
        rows: One row per metric, patch and language. Published: ``published_base``, ``published_patched``,
            ``published_change``, ``published_items``, ``published_conclusion`` (gain, loss, or no difference where the
            change is below the margin; nothing is tested). Sound: ``base``, ``patched``, ``change``, ``low``, ``high``,
            ``p_holm``, ``verdict``, ``detectable``, ``items``. And ``changes``: whether the conclusion does.
        settings: Task, model, margin and the rest of the testing.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "rows": layout(
            text="metric patch language",
            number="published_base published_patched published_change base patched change low high detectable",
            share="p_holm",
            whole="published_items items",
            flag="changes",
            choices={**VERDICTS, "published_conclusion": tuple(AGREE)},
        ),
        "settings": layout(text="task"),
    }

    rows: pd.DataFrame
    settings: Mapping[str, Any]

    @property
    def sentences(self) -> list[str]:
        """Where the conclusion changes, one sentence each."""
        sentences = []
        for row in self.rows.loc[self.rows["changes"]].to_dict("records"):
            conclusion = row["published_conclusion"]
            conclusion = conclusion if conclusion == NO_DIFFERENCE else f"a {conclusion}"
            published = f"{100 * row['published_base']:.1f} -> {100 * row['published_patched']:.1f}"
            interval = f"{100 * row['change']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            sentences.append(
                f"{row['metric']}, {row['language']}, patch {row['patch']}: published {published} on "
                f"{row['published_items']} items, {conclusion}; sound {interval} points on {row['items']} items, "
                f"{row['verdict']} (detectable {100 * row['detectable']:.1f})."
            )
        return sentences

    def table(self) -> Table:
        """The table to print: scores in %, changes in points, and both conclusions."""
        score, change = {"unit": "%", "scale": 100}, {"unit": "points", "scale": 100}
        columns = {
            **{name: Column(**score) for name in ("published_base", "published_patched", "base", "patched")},
            "published_change": Column(**change, signed=True),
            "change": Column(**change, signed=True, bounds=("low", "high")),
            "p_holm": Column("p (Holm)", digits=P_VALUE.digits),
            "detectable": Column(**change),
        }
        return Table(self.rows, columns, caption=self._summary)

    def __repr__(self) -> str:
        return "\n".join([self._summary, *self.sentences])

    @property
    def _summary(self) -> str:
        changes = int(self.rows["changes"].to_numpy().sum())
        return f"{self.settings['task']}: the conclusion changes in {changes} of {len(self.rows)} cells."

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        fields = super()._read(folder, content)
        return {**fields, "settings": with_current_names(fields["settings"])}


@alone_in_out
def compare_protocols(
    model: torch.nn.Module,
    task: Task,
    patches: Patches,
    languages: Iterable[str] | None = None,
    published_head: Head | None = None,
    *,
    testing: Testing = Testing(),
    run: Run = Run(),
    **options: Unpack[MeasuringOptions],
) -> ProtocolComparison:
    """Evaluate the same patches on the same model in the published protocol and in the sound one.

    XQuAD: the same predictions, scored on token ids against one gold answer with long prompts left out, and as SQuAD
    does on all questions. XNLI: read at the padding with long pairs left out, and as the task says. The published
    protocol looks at the difference of two scores, the sound one at the paired effect.

    Departures of the published side: XQuAD is asked as the task says (its prompts, answers ending at a line break), not
    by an English Alpaca template with up to 100 tokens, on all of the task's questions; the last incomplete batch
    (two of XNLI's 5,010 items) is kept.

    Args:
        model: A model returned by ``load_model``.
        task: The task in the sound protocol.
        patches: Patches as ``evaluate`` takes them, such as ``published_patch`` makes.
        languages: Languages to evaluate; by default all of the task.
        published_head: For XNLI, a ``ClassificationHead`` at the position "padding".
        testing: The margin below which a difference counts as none, and the resampling.
        run: Where it runs and is kept, texts per forward pass (8 by default), and progress.
        options: Single fields of ``Testing`` and ``Run``, such as ``margin=0.02`` or ``out="runs/x"``.

    Returns:
        The comparison; printed, it says where the conclusion changes.

    Raises:
        TaskError: If XNLI comes without a published head, or the published protocol does not know the task.
        EffectError: If no patch is given, or the length filter leaves no item.

    Example:
        >>> from langneurons.replication.protocols import compare_protocols
        >>> rows = [(f"q{i}", f"p{i}", f"The box holds {i} books.", "How many?", [str(i)]) for i in range(3)]
        >>> items = pd.DataFrame(rows, columns=["item", "cluster", "context", "question", "answers"])
        >>> task = ln.XQuAD({"en": items}, max_new_tokens=4)
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> zero = {"zero": ln.SetTo(neurons["en"], 0.0)}
        >>> compare_protocols(model, task, zero, resamples=200, progress=False).rows["metric"].tolist()
        ['f1', 'exact_match']
    """
    testing, run = with_options(options, testing, run)
    tasks = {"sound": task, "published": _as_published(task, published_head)}
    languages = chosen_languages([task], languages)
    by_cell = written_patches(patches, languages)
    if not by_cell:
        raise EffectError("No patch was given: there is nothing to compare the unpatched model with.")
    conditions = {(UNPATCHED, language): [] for language in languages} | by_cell
    jobs = {
        (protocol, *name): job
        for protocol, protocol_task in tasks.items()
        for name, job in task_jobs(model, protocol_task, conditions, run.batch_size or BATCH_SIZE).items()
    }
    by_job = measure_jobs(model, jobs, run)
    rows = {(patch, language): by_job["sound", patch, language] for patch, language in conditions}
    published = {
        (patch, language): _published_rows(model, task, language, by_job["published", patch, language])
        for patch, language in conditions
    }
    tables = [compared(metric, list(by_cell), rows, published, testing) for metric in task.metrics]
    model_view = view(model)
    settings = {
        "task": f"{task.name} {task.protocol}",
        "model": f"{model_view.name} ({model_view.fingerprint[:8]})",
        **testing.model_dump(),
        "resamples": testing.samples,
    }
    return ProtocolComparison(pd.concat(tables, ignore_index=True), settings)


def compared(
    metric: str, cells: Sequence[tuple[str, str]], rows: Rows, published: Rows, testing: Testing
) -> pd.DataFrame:
    """Conclude both ways from the rows of every condition.

    Args:
        metric: Column of the rows to compare.
        cells: (patch, language) to conclude about.
        rows: (patch, language) -> rows in the sound protocol, "unpatched" among the patches.
        published: The same in the published protocol.
        testing: The margin and the resampling.

    Returns:
        Rows of a ``ProtocolComparison``.
    """
    effects = {
        (patch, language): effect(
            rows[patch, language], rows[UNPATCHED, language], metric, "row", lower_is_better=False, testing=testing
        )
        for patch, language in cells
    }
    family = EffectTable.of(effects, ("patch", "language"), f"{metric}: {counted(len(effects), 'effect')}")
    sound = family.rows.rename(columns=CALLED)
    scores = {cell: of_cell[metric].to_numpy() for cell, of_cell in published.items()}
    base = np.array([scores[UNPATCHED, language].mean() for _, language in effects], dtype=float)
    patched = np.array([scores[cell].mean() for cell in effects], dtype=float)
    change = patched - base
    conclusions = np.select([np.abs(change) < testing.margin, change > 0], [NO_DIFFERENCE, "gain"], "loss").tolist()
    published_columns = {
        "published_base": base,
        "published_patched": patched,
        "published_change": change,
        "published_items": [len(scores[cell]) for cell in effects],
        "published_conclusion": conclusions,
    }
    agreeing = [verdict in AGREE[conclusion] for conclusion, verdict in zip(conclusions, sound["verdict"], strict=True)]
    about = {"metric": metric, "patch": sound["patch"], "language": sound["language"]}
    sound_columns = {name: sound[name] for name in SOUND}
    return pd.DataFrame({**about, **published_columns, **sound_columns, "changes": ~np.array(agreeing, dtype=bool)})


def _as_published(task: Task, published_head: Head | None) -> Task:
    """The task as the published protocol asks it."""
    if task.metrics[0] not in PUBLISHED_METRICS or not isinstance(task, LabelledPairs):
        raise TaskError(f"Both protocols ask XNLI or XQuAD, not {task.name!r}.")
    if task.generates:
        return task
    if published_head is None:
        raise TaskError(
            f"{task.name!r} in the published protocol needs a head that reads the padding: give published_head=, such "
            'as ClassificationHead.fit(..., position="padding").'
        )
    return task.with_head(published_head)


def _published_rows(model: torch.nn.Module, task: Task, language: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Score rows as the published code does, on the items that its length filter keeps."""
    tokenizer = tokenizer_of(view(model))
    if task.generates:
        rows = rows.loc[kept_by_length(rows["prompt_tokens"].to_numpy())]
        rows = token_id_scores(rows, tokenizer)
    else:
        pairs = pairs_of(cast(LabelledPairs, task).items[language])
        rows = rows.loc[pairs_kept_by_length(pairs, tokenizer)]
    if rows.empty:
        raise EffectError(f"The published length filter leaves no item in {language!r}: there is nothing to compare.")
    return rows


def token_id_scores(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    r"""Score generated answers by their token ids, as the published code does.

    What is wrong: the scores depend on the tokenizer and are not comparable with anybody's: nothing is normalised, only
    the first gold answer counts, and the end-of-sequence token is part of the answer, so that a right answer that goes
    on, or stops at a line break, is no exact match.

    Source: github.com/soumenkm/LangSpecificNeurons, code/xquad_eval.py, ``_calc_metrics_batch``, and code/dataset.py,
    where the gold answer is the text after a space and before the end-of-sequence token.

    Args:
        rows: Rows of ``XQuAD.measure``; the columns item, gold (text) and generated (token ids) are read.
        tokenizer: The model's tokenizer.

    Returns:
        One row per item: item, exact_match (equal lists) and f1 (of the multisets), 0 to 1.

    Raises:
        TaskError: If a column is missing, or the tokenizer has no end-of-sequence token.

    Example:
        >>> from langneurons.replication.protocols import token_id_scores
        >>> ids = model.tokenizer(" green</s>", add_special_tokens=False)["input_ids"]
        >>> rows = pd.DataFrame({"item": ["a", "b"], "gold": ["green", "blue"], "generated": [ids, ids]})
        >>> token_id_scores(rows, model.tokenizer)["exact_match"].tolist()
        [1.0, 0.0]
    """
    for column in ("item", "gold", "generated"):
        if column not in rows.columns:
            raise TaskError(f"The rows have no column {column!r}, only {', '.join(map(str, rows.columns))}.")
    pairs = [
        (list(map(int, ids)), _gold_ids(text, tokenizer))
        for ids, text in zip(rows["generated"], rows["gold"], strict=True)
    ]
    scores = {"exact_match": [float(answer == gold) for answer, gold in pairs], "f1": [_f1(*pair) for pair in pairs]}
    return pd.DataFrame({"item": rows["item"].to_numpy(), **scores})


def kept_by_length(
    prompt_tokens: Sequence[int] | Int[np.ndarray, " item"], limit: int = 511
) -> Bool[np.ndarray, " item"]:
    """Tell which prompts the published filter keeps: those of fewer than 511 tokens.

    What is wrong: a tokenizer that needs more tokens for a language loses its long questions, so that models, and
    languages, are scored on different questions (173 of 238 Hindi ones on Llama-3.1-8B, 227 on Mistral-Nemo).

    Source: github.com/soumenkm/LangSpecificNeurons, code/dataset.py, ``XQADatasetHF``.

    Args:
        prompt_tokens: Tokens of each prompt, special tokens included.
        limit: Number of tokens from which on prompts are dropped.

    Returns:
        True where a prompt is kept.

    Example:
        >>> from langneurons.replication.protocols import kept_by_length
        >>> kept_by_length([510, 511]).tolist()
        [True, False]
    """
    return np.asarray(prompt_tokens, dtype=np.int64) < limit


def pairs_kept_by_length(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, limit: int = 256
) -> Bool[np.ndarray, " item"]:
    """Tell which pairs of texts the published filter keeps: those of fewer than 256 tokens.

    What is wrong: what is long depends on the tokenizer and the language, so that languages and models are scored on
    different items.

    Source: github.com/soumenkm/LangSpecificNeurons, code/dataset.py, ``XNLIDatasetHF``.

    Args:
        pairs: (premise, hypothesis) each.
        tokenizer: The model's tokenizer.
        limit: Number of tokens from which on pairs are dropped; special tokens count.

    Returns:
        True where a pair is kept.

    Raises:
        TaskError: If the tokenizer has no end-of-sequence token.

    Example:
        >>> from langneurons.replication.protocols import pairs_kept_by_length
        >>> pairs = [("It rains.", "It is wet."), ("It rains. " * 50, "It is wet.")]
        >>> pairs_kept_by_length(pairs, model.tokenizer, 32)
        array([ True, False])
    """
    return np.array([len(tokens) < limit for tokens in joined_tokens(pairs, tokenizer)], bool)


def _gold_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.eos_token is None:
        raise TaskError("The tokenizer has no end-of-sequence token, which the published answers end with.")
    return tokenizer(f" {text.strip()}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]


def _f1(answer: list[int], gold: list[int]) -> float:
    shared = (Counter(answer) & Counter(gold)).total()
    return 2 * shared / (len(answer) + len(gold)) if shared else 0.0


class PadPositionHead:
    """The name that version 0.1.0 gave to a ``ClassificationHead`` that reads the padding; it goes with 1.0.

    Args:
        linear: Head with the weights.
        positions: Tokens to which texts are padded, or cut.
    """

    def __new__(cls, linear: ClassificationHead, positions: int = POSITIONS) -> ClassificationHead:
        """Make the head read the padding."""
        _warn_renamed()
        return replace(linear, position="padding", positions=positions)

    @staticmethod
    def fit(*arguments: object, **options: object) -> ClassificationHead:
        """Fit a head that reads the padding, see ``ClassificationHead.fit``.

        Args:
            arguments: Arguments of ``ClassificationHead.fit``.
            options: Options of ``ClassificationHead.fit``.
        """
        _warn_renamed()
        fit = partial(ClassificationHead.fit, position="padding")
        return fit(*arguments, **options)  # pyright: ignore[reportArgumentType]


def _warn_renamed() -> None:
    warn_user('PadPositionHead is ClassificationHead with position="padding"; the old name goes with 1.0.')
