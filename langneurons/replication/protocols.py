"""Both protocols side by side: what the published one concludes of a patch, and what can be concluded."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from langneurons import storage
from langneurons.effects.estimation import effect
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, LangNeuronsWarning, TaskError
from langneurons.evaluation.evaluating import Patches, chosen_languages, task_jobs, written_patches
from langneurons.evaluation.evaluation import UNPATCHED
from langneurons.evaluation.measuring import measure_jobs
from langneurons.models import view
from langneurons.replication import answers
from langneurons.replication.published import PUBLISHED_METRICS
from langneurons.run import Executor
from langneurons.settings import Run, Testing
from langneurons.tasks.heads import POSITIONS, ClassificationHead, Head, pairs_of
from langneurons.tasks.task import Task

SCHEMA = "langneurons/protocol-comparison/1"
AGREE = {"gain": "better", "loss": "worse", "no difference": "equivalent"}
Rows = Mapping[tuple, pd.DataFrame]


@dataclass(frozen=True, eq=False, repr=False)
class ProtocolComparison:
    """What the published protocol concludes of each patch, beside the sound one.

    Attributes:
        table: One row a metric, patch and language. Published: ``published_base``, ``published_patched``,
            ``published_change``, ``published_items``, ``published_conclusion`` (gain, loss, or no difference where the
            change is below delta; nothing is tested). Sound: ``base``, ``patched``, ``change``, ``low``, ``high``,
            ``p_holm``, ``verdict``, ``detectable``, ``items``. And ``changes``: whether the conclusion does.
        settings: Task, model, delta.
    """

    table: pd.DataFrame
    settings: Mapping[str, Any]

    @property
    def sentences(self) -> list[str]:
        """Where the conclusion changes, one sentence each."""
        return [_sentence(row) for row in self.table.to_dict("records") if row["changes"]]

    def save(self, path: str | Path) -> Path:
        """Write everything to a folder.

        Returns:
            The folder.
        """
        return storage.write_result(Path(path) / "protocols.json", SCHEMA, self.settings, {"table": self.table})

    @classmethod
    def load(cls, path: str | Path) -> "ProtocolComparison":
        """Read a saved comparison.

        Raises:
            StorageError: If a file is missing.
            CorruptArtefactError: If it is no comparison, or was changed.
        """
        settings, tables = storage.read_result(Path(path) / "protocols.json", SCHEMA, ["table"])
        return cls(tables["table"], settings)

    def __repr__(self) -> str:
        changed = self.sentences
        first = f"{self.settings['task']}: the conclusion changes in {len(changed)} of {len(self.table)} cells."
        return "\n".join([first, *changed])

    def _repr_html_(self) -> str:
        shown = self.table.copy()
        for column in shown.columns:
            if shown[column].dtype == float and column != "p_holm":
                shown[column] = (100 * shown[column]).round(1)
        return shown.to_html(index=False, border=0)


def compare_protocols(
    model: torch.nn.Module,
    task: Task,
    patches: Patches,
    languages: Iterable[str] | None = None,
    published_head: Head | None = None,
    delta: float = 0.01,
    seed: int = 0,
    resamples: int = 5000,
    batch_size: int = 8,
    out: str | Path | None = None,
    progress: bool = True,
    executor: str | Executor | None = None,
) -> ProtocolComparison:
    """Evaluate the same patches on the same model in the published protocol and in the sound one.

    XQuAD: the same predictions, scored on token ids against one gold answer with long prompts left out, and as SQuAD
    does on all questions. XNLI: read at the pad position with long pairs left out, and as the task says. The published
    protocol looks at the difference of two scores, the sound one at the paired effect.

    Departures of the published side: XQuAD is asked as the task says (its prompts, answers ending at a line break), not
    by an English Alpaca template with up to 100 tokens, on all of the task's questions; the last incomplete batch
    (two of XNLI's 5,010 items) is kept.

    Args:
        model: From ``load_model``.
        task: In the sound protocol.
        patches: As for ``evaluate``, such as ``published_patch`` makes.
        languages: Which; None takes all of the task.
        published_head: For XNLI, a ``PadPositionHead``.
        delta: A smaller difference counts as none.
        seed: Of the resampling.
        resamples: Bootstrap and sign-flip samples.
        batch_size: Texts a forward.
        out: Folder that keeps every condition measured.
        progress: Show a progress bar on standard error.
        executor: Where to run, as for ``ln.record``.

    Returns:
        The comparison; printed, it says where the conclusion changes.

    Raises:
        TaskError: If XNLI comes without a published head, or the task is neither XNLI nor XQuAD.
        EffectError: If no patch is given, or the length filter leaves no item.

    Example:
        >>> from langneurons.replication.protocols import compare_protocols
        >>> rows = [(f"q{i}", f"p{i}", f"The box holds {i} books.", "How many?", [str(i)]) for i in range(3)]
        >>> items = pd.DataFrame(rows, columns=["item", "cluster", "context", "question", "answers"])
        >>> task = ln.XQuAD({"en": items}, max_new_tokens=4)
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> zero = {"zero": ln.SetTo(neurons["en"], 0.0)}
        >>> compare_protocols(model, task, zero, resamples=200, progress=False).table["metric"].tolist()
        ['f1', 'exact_match']
    """
    Testing(margin=delta, resamples=resamples)
    sound, published = task, _published(task, published_head)
    chosen = chosen_languages([task], languages)
    written = written_patches(patches, chosen)
    if not written:
        raise EffectError("No patch was given: there is nothing to compare the unpatched model with.")
    conditions = {(UNPATCHED, language): [] for language in chosen} | written
    asked = [sound] if published is sound else [sound, published]
    jobs = {
        (index, *name): job
        for index, one in enumerate(asked)
        for name, job in task_jobs(model, one, conditions, batch_size).items()
    }
    measured = measure_jobs(model, jobs, Run(out=out and Path(out), progress=progress, executor=executor))
    rows = {key[1:]: found for key, found in measured.items() if key[0] == 0}
    theirs = {
        key[1:]: _as_published(model, published, key[2], found)
        for key, found in measured.items()
        if key[0] == len(asked) - 1
    }
    options = {"margin": delta, "seed": seed, "resamples": resamples}
    tables = [_compared(metric, list(written), rows, theirs, options) for metric in sound.metrics]
    seen = view(model)
    settings = {"task": f"{task.name} {task.protocol}", "model": f"{seen.name} ({seen.fingerprint[:8]})", **options}
    return ProtocolComparison(pd.concat(tables, ignore_index=True), settings)


class PadPositionHead:
    """The name that version 0.1.0 gave to a ``ClassificationHead`` that reads the padding; it goes with 1.0.

    Args:
        linear: Head with the weights.
        positions: Tokens to which texts are padded, or cut.
    """

    def __new__(cls, linear: ClassificationHead, positions: int = POSITIONS) -> ClassificationHead:
        """Make the head read the padding."""
        _say_renamed()
        return replace(linear, position="padding", positions=positions)

    @staticmethod
    def fit(*arguments: Any, **options: Any) -> ClassificationHead:
        """Fit a head that reads the padding, see ``ClassificationHead.fit``.

        Args:
            arguments: Arguments of ``ClassificationHead.fit``.
            options: Options of ``ClassificationHead.fit``.
        """
        _say_renamed()
        return ClassificationHead.fit(*arguments, position="padding", **options)


def _say_renamed() -> None:
    message = 'PadPositionHead is ClassificationHead with position="padding"; the old name goes with 1.0.'
    warnings.warn(message, LangNeuronsWarning, stacklevel=3)


def _published(task: Task, published_head: Head | None) -> Task:
    """The task as the published protocol asks it."""
    if task.metrics[0] not in PUBLISHED_METRICS:
        raise TaskError(f"Both protocols ask XNLI or XQuAD, not {task.name!r}.")
    if task.generates:
        return task
    if published_head is None:
        raise TaskError(
            f"{task.name!r} in the published protocol needs a head that reads the padding: give published_head=, such "
            'as ClassificationHead.fit(..., position="padding").'
        )
    return task.with_head(published_head)


def _as_published(model: torch.nn.Module, task: Any, language: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Score rows as the published code does, on the items its length filter keeps."""
    tokenizer = view(model).tokenizer
    if task.generates:
        kept = answers.kept_by_length(rows["prompt_tokens"].to_numpy())
        rows = rows.loc[kept]
        scored = answers.token_id_scores(rows, tokenizer)
    else:
        kept = answers.pairs_kept_by_length(pairs_of(task.items[language]), tokenizer)
        scored = rows.loc[kept]
    if scored.empty:
        raise EffectError(f"The published length filter leaves no item in {language!r}: there is nothing to compare.")
    return scored


def _compared(
    metric: str, cells: Sequence[tuple[str, str]], rows: Rows, theirs: Rows, options: Mapping[str, Any]
) -> pd.DataFrame:
    effects = {
        (patch, language): effect(
            rows[patch, language], rows[UNPATCHED, language], metric, "row", lower_is_better=False, **options
        )
        for patch, language in cells
    }
    table = EffectTable.of(effects, ("patch", "language"), f"{metric}: {len(effects)} effects").rows
    found = []
    for cell in table.to_dict("records"):
        base = theirs[UNPATCHED, cell["language"]][metric].to_numpy()
        patched = theirs[cell["patch"], cell["language"]][metric].to_numpy()
        change = float(patched.mean() - base.mean())
        concluded = "no difference" if abs(change) < options["margin"] else "gain" if change > 0 else "loss"
        found.append(
            {
                "metric": metric,
                "patch": cell["patch"],
                "language": cell["language"],
                "published_base": float(base.mean()),
                "published_patched": float(patched.mean()),
                "published_change": change,
                "published_items": len(patched),
                "published_conclusion": concluded,
                "base": cell["baseline"],
                "patched": cell["condition"],
                "change": cell["estimate"],
                **{name: cell[name] for name in ("low", "high", "p_holm", "verdict")},
                "detectable": cell["minimal_detectable"],
                "items": cell["items"],
                "changes": AGREE[concluded] != cell["verdict"],
            }
        )
    return pd.DataFrame(found)


def _sentence(row: Mapping[str, Any]) -> str:
    published = f"{100 * row['published_base']:.1f} -> {100 * row['published_patched']:.1f}"
    interval = f"{100 * row['change']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return (
        f"{row['metric']}, {row['language']}, patch {row['patch']}: published {published} on {row['published_items']} "
        f"items, a {row['published_conclusion']}".replace("a no ", "no ")
        + f"; sound {interval} points on {row['items']} items, {row['verdict']} (detectable "
        f"{100 * row['detectable']:.1f})."
    )
