"""How well a model predicts text: perplexity, and the loss under many patches.

Each condition is measured once and kept on disk, so that an interrupted grid goes on.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast

from langneurons import storage
from langneurons.corpora import Corpus
from langneurons.corpora.packing import tokenizer_fingerprint
from langneurons.effects.estimation import effect
from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, PatchError, StorageError, counted
from langneurons.evaluation.heldout_text import HeldoutText
from langneurons.models import ModelView, start_token, view
from langneurons.patches.intervening import check_fits, patching
from langneurons.patches.patch import Patch
from langneurons.run import PIECES_PER_WORKER, Cost, Executor, Progress, alone_in_out, chosen_executor, say
from langneurons.settings import Run, RunOptions, Testing, with_options

BATCH_SIZE = 8
COLUMNS = ["language", "nll", "perplexity", "bits_per_byte", "bits_per_item", "tokens", "bytes", "documents"]
Conditions = Mapping[tuple, Sequence[Patch]]
LanguageRows = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Job:
    """Something to measure under some patches.

    Attributes:
        patches: Patches that are written together while it is measured; none for the unpatched model.
        about: A hash of everything else that decides what comes out, but not of the model.
        score: Measures it.
        generates: Whether the model generates meanwhile.
    """

    patches: Sequence[Patch]
    about: str
    score: Callable[[], pd.DataFrame]
    generates: bool = False


@alone_in_out
def perplexity(
    model: torch.nn.Module, text: HeldoutText | Corpus, *, run: Run = Run(), **options: Unpack[RunOptions]
) -> pd.DataFrame:
    """Measure how well a model predicts text, per language, with whatever is attached to the model at this moment.

    Perplexity and bits per byte compare models and patches within one language. Across languages compare bits per item
    of parallel documents, or each language's change against its own baseline.

    Args:
        model: A model returned by ``load_model``.
        text: Held-out text; a corpus is packed by ``HeldoutText.of``.
        run: Where it runs and is kept, texts per forward pass (8 by default), and progress.
        options: Single fields of ``Run``, such as ``batch_size=16``.

    Returns:
        One row per language, as ``summarise`` gives it.

    Raises:
        CorpusError: If the corpus is empty or has too few tokens.
        ModelError: If the context is longer than the model's, the model has no tokenizer, or a loss is not finite.

    Example:
        >>> from langneurons.evaluation.measuring import perplexity
        >>> phrases = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> text = ln.HeldoutText.of(model, phrases, each="text")
        >>> perplexity(model, text, progress=False).columns.tolist()
        ['language', 'nll', 'perplexity', 'bits_per_byte', 'bits_per_item', 'tokens', 'bytes', 'documents']
    """
    (run,) = with_options(options, run)
    text = HeldoutText.of(model, text)
    if run.out is None and run.executor is None:
        return summarise(text.score(model, run.batch_size or BATCH_SIZE, progress=bool(run.progress)))
    return summarise(measure(model, text, {(): []}, run)[()])


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Draw a table up from rows of loss.

    Args:
        rows: Rows that ``HeldoutText.score`` returned.

    Returns:
        One row per language: language, nll (nats per token), perplexity, bits_per_byte, tokens, bytes, documents; and
        bits_per_item, where each item is one whole document and every language has the same items: bits per parallel
        sentence if the documents are translations of one another.

    Raises:
        EffectError: If there are no rows, or a loss is not finite.

    Example:
        >>> import pandas as pd
        >>> from langneurons.evaluation.measuring import summarise
        >>> row = {"language": "en", "item": 0, "cluster": 0, "nll": 8.0, "tokens": 4, "bytes": 20}
        >>> summarise(pd.DataFrame([row])).loc[0, ["nll", "perplexity", "bits_per_byte"]].round(2).tolist()
        [2.0, 7.39, 0.58]
    """
    if not len(rows):
        raise EffectError("There are no rows to summarise.")
    if lacking := int((~np.isfinite(rows["nll"].to_numpy(float))).sum()):
        raise EffectError(
            f"{lacking} of {len(rows)} rows have a loss that is not finite: no mean can be taken of them."
        )
    sums = {"nats": ("nll", "sum"), "tokens": ("tokens", "sum"), "bytes": ("bytes", "sum")}
    table = rows.groupby("language", sort=False).agg(**sums, documents=("cluster", "nunique")).reset_index()
    bits = table["nats"] / np.log(2)
    table["nll"] = table["nats"] / table["tokens"]
    table["perplexity"] = np.exp(table["nll"])
    table["bits_per_byte"] = bits / table["bytes"]
    if aligned := _aligned(rows):
        table["bits_per_item"] = bits / table["documents"]
    return table.reindex(columns=[column for column in COLUMNS if aligned or column != "bits_per_item"])


def _aligned(rows: pd.DataFrame) -> bool:
    """Whether items are documents, the same ones in every language."""
    alone = bool((rows["item"] == rows["cluster"]).all())
    return alone and len({frozenset(items) for _, items in rows.groupby("language")["item"]}) == 1


def measure(
    model: torch.nn.Module, text: HeldoutText, conditions: Conditions, run: Run = Run()
) -> dict[tuple, pd.DataFrame]:
    """Score a text under every condition.

    Args:
        model: A model returned by ``load_model``; patches that are already written stay written, but then nothing can
            be kept.
        text: The text to score.
        conditions: Name -> the patches written together; none for the unpatched model.
        run: Where it runs and is kept, texts per forward pass (8 by default), and progress.

    Returns:
        Name -> language-model rows: language, item, cluster, nll, tokens, bytes.

    Raises:
        LangNeuronsError: If ``measure_jobs`` refuses something.
    """
    batch_size = run.batch_size or BATCH_SIZE
    jobs = {
        name: Job(patches, text.fingerprint, lambda: text.score(model, batch_size=batch_size))
        for name, patches in conditions.items()
    }
    return measure_jobs(model, jobs, run, cost=lambda: text.cost(model, batch_size))


def measure_jobs(
    model: torch.nn.Module,
    jobs: Mapping[tuple, Job],
    run: Run = Run(),
    then: Callable[[tuple, pd.DataFrame], object] | None = None,
    cost: Callable[[], Cost] | None = None,
) -> dict[tuple, Any]:
    """Measure every job once, and equal ones together.

    Args:
        model: A model returned by ``load_model``; patches that are already written stay written, but then nothing can
            be kept.
        jobs: Jobs by name. All patches are checked before the first is measured.
        run: Where it runs and is kept, and progress.
        then: Makes of a job's name and rows what is returned, in the order of the jobs; by default the rows.
        cost: Estimates what one job will take; by default the first job tells.

    Returns:
        Name -> rows, or what ``then`` made of them.

    Raises:
        PatchError: If a patch does not fit the model, or is of generated positions only where nothing is generated; or
            if something else is attached to the model while ``run.out`` is given.
        SiteMismatchError: If neurons or values belong to another model.
        StorageError: If the folder cannot be written.
        ExecutorError: If the work cannot run where it was asked to.
    """
    model_view, executor = view(model), chosen_executor(run.executor)
    if run.out is not None and model_view.hooked:
        raise PatchError(
            f"Something is attached to {model_view.name!r}, such as a patch, so what is measured cannot be kept for "
            "the model as it is: leave the block first, or leave out= away."
        )
    if run.out is not None:
        storage.check_writable(run.out)
    for job in jobs.values():
        for patch in job.patches:
            check_fits(patch, model_view)
            if not job.generates:
                check_reads_text(patch)
    features = (f"{name} {site.fingerprint}" for name, site in model_view.feature_sites.items())
    shape = (model_view.backend, str(model_view.dtype), str(model_view.context_length))
    plain = (model_view.fingerprint, *shape, *_tokenizer_parts(model_view), *features)
    keys = {
        name: storage.fingerprint(*plain, job.about, *(patch.fingerprint for patch in job.patches))
        for name, job in jobs.items()
    }
    uses = Counter(keys.values())
    different = {key: jobs[name] for name, key in reversed(keys.items())}
    foretell = partial(_foretold, model=model, executor=executor, cost=cost) if run.progress else lambda fresh, _: fresh
    rows = _rows(model, {key: different[key] for key in uses}, run.out and run.out / "rows", executor, foretell)
    by_key: dict[str, pd.DataFrame] = {}
    results: dict[tuple, Any] = {}
    for name, key in Progress(keys.items(), unit="condition", shown=run.progress):
        if key not in by_key:
            by_key[key] = next(rows)
        results[name] = by_key[key] if then is None else then(name, by_key[key])
        uses[key] -= 1
        if not uses[key]:
            del by_key[key]  # with many controls, rows that nobody keeps would fill the memory
    return results


def _tokenizer_parts(model_view: ModelView) -> list[str]:
    """What decides how texts become tokens: the same weights may come with another tokenizer."""
    tokenizer = model_view.tokenizer
    if tokenizer is None:
        return []
    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    rules = tokenizer_fingerprint(tokenizer) if fast else repr(sorted(tokenizer.get_vocab().items()))
    unwritten = [] if start_token(tokenizer) == tokenizer.bos_token_id else ["the start is not written"]
    return [rules, repr(sorted(tokenizer.special_tokens_map.items())), *unwritten]


def _rows(
    model: torch.nn.Module,
    jobs: Mapping[str, Job],
    folder: Path | None,
    executor: Executor,
    foretell: Callable[[Iterator[pd.DataFrame], int], Iterator[pd.DataFrame]],
) -> Iterator[pd.DataFrame]:
    """The rows of every job, in order: those that are kept, and the others as they are measured."""
    paths = {key: None if folder is None else folder / f"{key}.parquet" for key in jobs}
    to_do = {key: jobs[key] for key, path in paths.items() if path is None or not path.exists()}
    fresh = foretell(executor.map(model, measure_job, to_do.values()), len(to_do))
    for key, path in paths.items():
        rows = None if path is None or key in to_do else _kept(path)
        if rows is None:
            rows = next(fresh) if key in to_do else measure_job(model, jobs[key])
            if path is not None:
                storage.write_table(path, rows, sidecar=True)
        yield rows


def _foretold(
    results: Iterator[pd.DataFrame],
    number: int,
    model: torch.nn.Module,
    executor: Executor,
    cost: Callable[[], Cost] | None,
) -> Iterator[pd.DataFrame]:
    """Say what a number of jobs will cost before they start; where no job's cost is known, the time after the first."""
    pieces = executor.pieces(model)

    def tell(each: Cost) -> None:
        of_tokens = f" x {each.tokens:,} tokens" if each.tokens else ""
        total = each.times(number, max(1, pieces // PIECES_PER_WORKER))
        say(replace(total, work=f"Measuring {counted(number, 'condition')}{of_tokens}"))

    tell(Cost() if cost is None else cost())
    start = time.perf_counter()
    for index, rows in enumerate(results):
        if cost is None and index == 0 and pieces == 1:
            tell(Cost(seconds=time.perf_counter() - start))
        yield rows


def measure_job(model: torch.nn.Module, job: Job) -> pd.DataFrame:
    """Measure one job, wherever that is.

    Args:
        model: A model returned by ``load_model``.
        job: The job to measure.
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
    conditions: Mapping[tuple, LanguageRows],
    baseline: LanguageRows,
    keys: Sequence[str],
    settings: Mapping[str, object],
    testing: Testing,
) -> EffectTable:
    """Compare every condition with the unpatched model in every language, as one family.

    Args:
        model: A model returned by ``load_model``.
        text: The text that was scored.
        conditions: Condition -> language -> rows.
        baseline: Language -> rows of the unpatched model.
        keys: Names of a condition's parts, and of the measured language.
        settings: Settings to store beside the text and the model.
        testing: The margin, the interval's level and the resampling.

    Returns:
        Effects: change of the measured language's loss relative to its own baseline.
    """
    testing = testing.in_family(len(conditions) * len(text.languages))
    effects = {
        (*condition, language): effect(
            rows[language], baseline[language], value="nll", per="baseline", lower_is_better=True, testing=testing
        )
        for condition, rows in conditions.items()
        for language in text.languages
    }
    losses = {
        language: float(rows["nll"].to_numpy().sum() / rows["tokens"].to_numpy().sum())
        for language, rows in baseline.items()
    }
    model_view = view(model)
    size = counted(len(effects), "effect")
    family = f"model {model_view.name}, held-out text, nll relative to the unpatched model: {size}"
    about = {"tokens": text.tokens, "text": text.fingerprint, "model": model_view.fingerprint}
    return EffectTable.of(effects, keys, family, {**settings, **about, "nats_per_token": losses})


def split_by_language(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each language's rows, by language."""
    return {str(language): part for language, part in rows.groupby("language", sort=False)}


def _kept(path: Path) -> pd.DataFrame | None:
    try:
        return storage.read_table(path)
    except StorageError:
        return None  # not whole: it is measured, and written over
