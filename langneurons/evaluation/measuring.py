"""Measuring one text under many patches: each condition once, kept on disk, so that an interrupted grid goes on."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from langneurons import storage
from langneurons.corpora.packing import tokenizer_fingerprint
from langneurons.effects.estimation import effect
from langneurons.effects.table import EffectTable
from langneurons.errors import PatchError, StorageError
from langneurons.evaluation.heldout_text import HeldoutText
from langneurons.models import ModelView, view
from langneurons.patches.intervening import check_fits, patching
from langneurons.patches.patch import Patch
from langneurons.run import Executor, chosen_executor

Conditions = Mapping[tuple, Sequence[Patch]]


@dataclass(frozen=True)
class Job:
    """Something to measure under some patches.

    Attributes:
        patches: Written together while it is measured; none for the unpatched model.
        about: A hash of everything else that decides what comes out, but not of the model.
        score: Measures it.
        generates: Whether the model generates meanwhile.
    """

    patches: Sequence[Patch]
    about: str
    score: Callable[[], pd.DataFrame]
    generates: bool = False


def measure(
    model: torch.nn.Module,
    text: HeldoutText,
    conditions: Conditions,
    out: str | Path | None = None,
    batch_size: int = 8,
    progress: bool = True,
    executor: str | Executor | None = None,
) -> dict[tuple, pd.DataFrame]:
    """Score a text under every condition.

    Args:
        model: From ``load_model``; patches that are already written stay written, but then nothing can be kept.
        text: What to score.
        conditions: Name -> the patches written together; none for the unpatched model.
        out: As for ``measure_jobs``.
        batch_size: Blocks a forward.
        progress: Show a progress bar on standard error.
        executor: Where to run, as for ``ln.record``.

    Returns:
        Name -> language-model rows: language, item, cluster, nll, tokens, bytes.

    Raises:
        LangNeuronsError: As ``measure_jobs``.
    """
    jobs = {
        name: Job(patches, text.fingerprint, lambda: text.score(model, batch_size=batch_size))
        for name, patches in conditions.items()
    }
    return measure_jobs(model, jobs, out, progress, executor=executor)


def measure_jobs(
    model: torch.nn.Module,
    jobs: Mapping[tuple, Job],
    out: str | Path | None = None,
    progress: bool = True,
    then: Callable[[tuple, pd.DataFrame], Any] | None = None,
    executor: str | Executor | None = None,
) -> dict[tuple, Any]:
    """Measure every job once, and equal ones together.

    Args:
        model: From ``load_model``; patches that are already written stay written, but then nothing can be kept.
        jobs: What to measure, by name. All patches are checked before the first is measured.
        out: Folder that keeps what was measured; the same call goes on there.
        progress: Show a progress bar on standard error.
        then: What to keep of a job's name and rows, in the order of the jobs; None keeps the rows.
        executor: Where to run, as for ``ln.record``.

    Returns:
        Name -> rows, or what ``then`` made of them.

    Raises:
        PatchError: If a patch does not fit the model, or is of generated positions only where nothing is generated; or
            if something else is attached to the model while ``out`` is given.
        SiteMismatchError: If neurons or values belong to another model.
        StorageError: If the folder cannot be written.
        ExecutorError: If the work cannot run where it was asked to.
    """
    seen, where = view(model), chosen_executor(executor)
    if out is not None and seen.hooked:
        raise PatchError(
            f"Something is attached to {seen.name!r}, such as a patch, so what is measured cannot be kept for the "
            "model as it is: leave the block first, or leave out= away."
        )
    if out is not None:
        storage.check_writable(Path(out))
    for job in jobs.values():
        for patch in job.patches:
            check_fits(patch, seen)
            if not job.generates:
                check_reads_text(patch)
    features = (f"{name} {site.fingerprint}" for name, site in seen.feature_sites.items())
    shape = (seen.backend, str(seen.dtype), str(seen.context_length))
    plain = (seen.fingerprint, *shape, *_tokenizer_parts(seen), *features)
    keys = {
        name: storage.fingerprint(*plain, job.about, *(patch.fingerprint for patch in job.patches))
        for name, job in jobs.items()
    }
    uses = Counter(keys.values())
    different = {key: jobs[name] for name, key in reversed(keys.items())}
    rows = _rows(model, {key: different[key] for key in uses}, None if out is None else Path(out) / "rows", where)
    by_key: dict[str, pd.DataFrame] = {}
    found: dict[tuple, Any] = {}
    for name, key in tqdm(keys.items(), unit="condition", disable=not progress):
        if key not in by_key:
            by_key[key] = next(rows)
        found[name] = by_key[key] if then is None else then(name, by_key[key])
        uses[key] -= 1
        if not uses[key]:
            del by_key[key]  # with many controls, rows that nobody keeps would fill the memory
    return found


def _tokenizer_parts(seen: ModelView) -> list[str]:
    """What decides how texts become tokens: the same weights may come with another tokenizer."""
    tokenizer = seen.tokenizer
    if tokenizer is None:
        return []
    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    rules = tokenizer_fingerprint(tokenizer) if fast else repr(sorted(tokenizer.get_vocab().items()))
    return [rules, repr(sorted(tokenizer.special_tokens_map.items()))]


def _rows(
    model: torch.nn.Module, jobs: Mapping[str, Job], folder: Path | None, where: Executor
) -> Iterator[pd.DataFrame]:
    """The rows of every job, in order: those that are kept, and the others as they are measured."""
    paths = {key: None if folder is None else folder / f"{key}.parquet" for key in jobs}
    to_do = {key: jobs[key] for key, path in paths.items() if path is None or not path.exists()}
    fresh = where.map(model, measure_job, to_do.values())
    for key, path in paths.items():
        rows = None if path is None or key in to_do else _kept(path)
        if rows is None:
            rows = next(fresh) if key in to_do else measure_job(model, jobs[key])
            if path is not None:
                storage.write_table(path, rows, sidecar=True)
        yield rows


def measure_job(model: torch.nn.Module, job: Job) -> pd.DataFrame:
    """Measure one job, wherever that is.

    Args:
        model: From ``load_model``.
        job: What to measure.
    """
    with patching(view(model), job.patches):
        return job.score()


def check_reads_text(patch: Patch) -> None:
    """Refuse a patch that would do nothing while a text is scored.

    Raises:
        PatchError: If it is of generated positions only.
    """
    if patch.positions == "generated":
        raise PatchError(
            "While a text is scored nothing is generated, so a patch with positions='generated' would do nothing: "
            "possible are 'all' and 'prompt'."
        )


def loss_effects(
    model: torch.nn.Module,
    text: HeldoutText,
    scored: Mapping[tuple, Mapping[str, pd.DataFrame]],
    baseline: Mapping[str, pd.DataFrame],
    keys: Sequence[str],
    settings: Mapping[str, Any],
    **options: Any,
) -> EffectTable:
    """Compare every condition with the unpatched model in every language, as one family.

    Args:
        model: From ``load_model``.
        text: What was scored.
        scored: Condition -> language -> rows.
        baseline: Language -> rows of the unpatched model.
        keys: Names of a condition's parts, and of the measured language.
        settings: What to store beside the options, the text and the model.
        options: Of ``effect``.

    Returns:
        Effects: change of the measured language's loss relative to its own baseline.
    """
    effects = {
        (*name, language): effect(
            rows[language], baseline[language], value="nll", per="baseline", lower_is_better=True, **options
        )
        for name, rows in scored.items()
        for language in text.languages
    }
    seen = view(model)
    family = f"model {seen.name}, held-out text, nll relative to the unpatched model: {len(effects)} effects"
    about = {"tokens": text.tokens, "text": text.fingerprint, "model": seen.fingerprint}
    return EffectTable.of(effects, keys, family, {**options, **settings, **about})


def split_by_language(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each language's rows, by language."""
    return {str(language): part for language, part in rows.groupby("language", sort=False)}


def _kept(path: Path) -> pd.DataFrame | None:
    try:
        return storage.read_table(path)
    except StorageError:
        return None  # not whole: it is measured, and written over
