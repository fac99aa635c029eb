"""record(): one pass over a corpus that keeps what every neuron did, exactly and resumably.

``record_caches`` is the same computation on activations that a user already holds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from langneurons.corpora import Corpus, PackedCorpus, pack
from langneurons.corpora.corpus import check_corpus
from langneurons.errors import CorpusError, HookSiteError, ModelError, StaleArtefactError, StatisticsError
from langneurons.models import ModelView, view
from langneurons.recording.accumulation import BINS, FOLDS
from langneurons.recording.passes import Pass, RecordingFolder, recorded_piece
from langneurons.recording.records import GRADIENT, SENTENCE, LanguageRecord, check_optional
from langneurons.recording.statistics import ActivationStats
from langneurons.recording.sums import (
    Calibration,
    LanguageSums,
    features_recorded,
    observing_caches,
    recorded_model,
)
from langneurons.run import Cost, Progress, alone_in_out, chosen_executor, say, timed
from langneurons.settings import Recording, RecordingOptions, Run, with_options

BATCH_SIZE = 8
BACKWARD = 5  # a forward, and one more with the unembedding and its backward pass, in forwards
Caches = Sequence[tuple[Tensor, Any]]


@alone_in_out
def record(
    model: torch.nn.Module,
    corpus: Corpus,
    *,
    like: ActivationStats | None = None,
    shard: tuple[int, int] = (0, 1),
    recording: Recording = Recording(),
    run: Run = Run(),
    **options: Unpack[RecordingOptions],
) -> ActivationStats:
    """Run a corpus through a model once and keep what every neuron did in every language.

    The result does not depend on batch size, shards, interruptions, executor, or which other languages are recorded.

    Args:
        model: A model returned by ``load_model``, or any HookedTransformer or TransformerBridge.
        corpus: A corpus returned by ``load_corpus``. Documents are taken in its order: shuffle it first if it is
            sorted.
        like: Statistics whose histogram edges (where they have the language) and number of tokens to reuse, so that
            languages, or more of a language, can be added.
        shard: ``(i, n)`` records the i-th of n parts; the sum of the parts' statistics equals recording at once.
        recording: What is recorded, from how much text.
        run: Place and way of running, and the folder that keeps the statistics; calling again with that folder
            resumes an interrupted recording. A batch has 8 blocks by default. ``"ray"`` cuts the corpus in shards and
            records them on a Ray cluster, where ``out`` must be a folder that every machine sees.
        options: Single fields of ``Recording`` and ``Run``, such as ``sites=("act", "post")`` or ``out="runs/x"``.

    Returns:
        The statistics.

    Raises:
        CorpusError: If a language has too few tokens.
        ModelError: If the context is longer than the model's, or the model has no tokenizer.
        HookSiteError: If the model has no such site.
        StaleArtefactError: If ``out`` holds another recording, or ``like`` is of another model, site or context length.
        StatisticsError: If an option is out of its bounds.
        ExecutorError: If the work cannot run where it was asked to.

    Example:
        >>> corpus = ln.load_corpus({"en": ["A small text."] * 3, "hi": ["एक छोटा पाठ।"] * 3})
        >>> ln.record(model, corpus, context_length=32, progress=False).languages
        ('en', 'hi')
    """
    recording, run = with_options(options, recording, run)
    recording = recording.model_copy(update={"also": check_optional(recording.also)})
    model_view, executor, progress = view(model), chosen_executor(run.executor), bool(run.progress)
    check_corpus(corpus)
    _check_fits(recording, model_view)
    _check_shard(shard)
    if like is not None:
        _check_like(like, model_view, recording)
        tokens = recording.tokens_per_language or int(like.tokens.max())
        recording = recording.model_copy(update={"tokens_per_language": tokens})
    with RecordingFolder.opened(run.out) as folder:
        folder.claim(_plan(model_view, corpus, recording, shard, like))
        if (statistics := folder.finished()) is not None:
            say(f"{folder.path} already holds this recording: nothing to do.", progress)
            return statistics
        if folder.resumable or progress:
            folder.check_corpus(corpus, partial(say, progress=progress))
        packed = pack(
            corpus,
            model_view.tokenizer,
            recording.context_length,
            folder.path / "packed",
            recording.tokens_per_language,
        )
        batch_size = run.batch_size or BATCH_SIZE
        if progress:
            say(forecast(model_view, packed, recording, batch_size, shard))
        whole = Pass(model_view, packed, _ranges(packed, shard), recording, batch_size, folder, like)
        pieces = whole.cut(executor.pieces(model))
        with Progress(total=whole.blocks, unit="block", shown=progress, smoothing=0.1) as bar:
            if len(pieces) == 1:
                return folder.finish(whole.record(bar))
            return folder.finish(reduce(add, _counted_on(bar, pieces, executor.map(model, recorded_piece, pieces))))


def _plan(
    model_view: ModelView,
    corpus: Corpus,
    recording: Recording,
    shard: tuple[int, int],
    like: ActivationStats | None,
) -> dict[str, Any]:
    """What a recording is of: a folder goes on with the same only."""
    features = features_recorded(model_view, recording.sites)
    optional = {"also": list(recording.also), "sentences": recording.sentences} if recording.also else {}
    return {
        "model": model_view.fingerprint,
        "backend": model_view.backend,
        "dtype": str(model_view.dtype),
        "sites": list(recording.sites),
        **{f"features at {site}": fingerprint for site, fingerprint in features.items()},
        "context_length": recording.context_length,
        "tokens_per_language": recording.tokens_per_language,
        "corpus": dict(corpus.fingerprints),
        "shard": list(shard),
        "like": None if like is None else like.edges_fingerprint(),
        **optional,
    }


def _counted_on(
    bar: Progress, pieces: Sequence["Pass"], statistics: Iterator[ActivationStats]
) -> Iterator[ActivationStats]:
    for piece, piece_statistics in zip(pieces, statistics, strict=True):
        yield piece_statistics
        bar.update(piece.blocks)


@torch.no_grad()
def record_caches(
    model: torch.nn.Module,
    caches: Mapping[str, Caches],
    sites: Sequence[str] = ("act",),
    like: ActivationStats | None = None,
) -> ActivationStats:
    """Make activation statistics of TransformerLens caches; ``record`` is this computation, streamed.

    Args:
        model: The model that made the caches.
        caches: Per language, pairs of tokens ("batch position") and the ActivationCache that ``run_with_cache`` gave
            for them. Each row of tokens counts as one document; special tokens and position 0 are not counted.
        sites: Sites to record, such as "act", or names given to ``add_dictionary``; not those of routers, whose choices
            caches do not hold.
        like: Statistics whose histogram edges to reuse for the languages it has.

    Returns:
        The statistics.

    Raises:
        CorpusError: If a language has no counted token.
        HookSiteError: If a cache lacks a site's hook.
        StatisticsError: If tokens and cache have different shapes.

    Example:
        >>> tokens = model.to_tokens("The boy drinks water.")
        >>> _, cache = model.run_with_cache(tokens)
        >>> ln.record_caches(model, {"en": [(tokens, cache)]}).languages
        ('en',)
    """
    model_view, sites = view(model), tuple(sites)
    _check_sites(sites, model_view)
    by_language = {
        language: _record_caches(model_view, language, pairs, sites, like) for language, pairs in caches.items()
    }
    records = {site: {language: of[site] for language, of in by_language.items()} for site in sites}
    return ActivationStats(recorded_model(model_view, sites), 0 if like is None else like.context_length, records)


def _record_caches(
    model_view: ModelView, language: str, pairs: Caches, sites: tuple[str, ...], like: ActivationStats | None
) -> dict[str, LanguageRecord]:
    caches = [cache for _, cache in pairs]
    folds = _folds_of_rows(model_view.tokenizer, [tokens for tokens, _ in pairs])
    counted = (folds >= 0).nonzero()[:, 0]
    if not len(counted):
        raise CorpusError(f"The caches of {language!r} hold no counted token.")
    positions = sum(len(model_view.cached(cache, sites[0], 0).flatten(0, 1)) for cache in caches)
    if positions != len(folds):
        raise StatisticsError(f"{len(folds)} tokens of {language!r} were given for caches of {positions} positions.")
    if like is not None and language in like.languages:
        grids = {site: like.records[site][language].grid() for site in sites}
    else:
        calibration = Calibration(model_view, sites, counted)
        observing_caches(model_view, caches, sites, calibration.see)
        grids = calibration.grids()
    has_post = all(_holds(model_view, cache, "post") for cache in caches)
    sums = LanguageSums.empty(model_view, grids, len(counted), written=has_post)
    folds_here = folds.to(model_view.device)
    add, add_written = (partial(function, folds=folds_here) for function in (sums.add, sums.add_written))
    observing_caches(model_view, caches, sites, add, add_written if has_post else None)
    return sums.records(torch.bincount(folds[counted], minlength=FOLDS), {})


def _holds(model_view: ModelView, cache: Any, site: str) -> bool:
    """Whether a cache holds a site's values: a filter of names may have left them out."""
    try:
        model_view.cached(cache, site, 0)
    except HookSiteError:
        return False
    return True


def _folds_of_rows(tokenizer: Any, batches: Sequence[Int[Tensor, "batch position"]]) -> Int[Tensor, " token"]:
    """The fold of each token, rows being documents; -1 where it is not counted."""
    folds, rows = [torch.empty(0, dtype=torch.int64)], 0
    for tokens in batches:
        documents = torch.arange(rows, rows + len(tokens))[:, None].expand(tokens.shape)
        folds.append(torch.where(_is_counted(tokenizer, tokens), documents % FOLDS, -1).flatten())
        rows += len(tokens)
    return torch.cat(folds)


def _is_counted(tokenizer: Any, tokens: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
    special = torch.tensor(sorted(tokenizer.all_special_ids) if tokenizer is not None else [], dtype=tokens.dtype)
    counted = ~torch.isin(tokens.cpu(), special)
    counted[:, 0] = False
    return counted


def _ranges(packed: PackedCorpus, shard: tuple[int, int]) -> dict[str, range]:
    """The blocks of a shard."""
    part, parts = shard
    blocks = {language: packed.n_blocks(language) for language in packed.languages}
    return {language: range(n * part // parts, n * (part + 1) // parts) for language, n in blocks.items()}


def _check_fits(recording: Recording, model_view: ModelView) -> None:
    _check_sites(recording.sites, model_view)
    if recording.context_length > model_view.context_length:
        raise ModelError(
            f"A context of {recording.context_length} positions is longer than {model_view.name}'s, which is "
            f"{model_view.context_length}."
        )
    if model_view.tokenizer is None:
        raise ModelError(f"{model_view.name} has no tokenizer: load it with load_model(..., tokenizer=...).")


def _check_sites(sites: Sequence[str], model_view: ModelView) -> None:
    for site in sites:
        model_view.shape(site)  # one that the model lacks is refused


def _check_shard(shard: tuple[int, int]) -> None:
    part, parts = shard
    if not 0 <= part < parts:
        raise StatisticsError(f"A shard is (i, n) with 0 <= i < n, not {shard}.")


def _check_like(like: ActivationStats, model_view: ModelView, recording: Recording) -> None:
    here = {
        "model": model_view.fingerprint[:8],
        "dtype": str(model_view.dtype).removeprefix("torch."),
        "sites": recording.sites,
        "features": features_recorded(model_view, recording.sites),
        "context length": recording.context_length,
    }
    differing = [
        f"{what} ({theirs!s:.80} there, {here[what]!s:.80} here)"
        for what, theirs in like.comparable().items()
        if theirs != here[what]
    ]
    if differing:
        raise StaleArtefactError(f"like= is a recording that differs in {'; '.join(differing)}.")


def forecast(
    model_view: ModelView, packed: PackedCorpus, recording: Recording, batch_size: int, shard: tuple[int, int] = (0, 1)
) -> Cost:
    """Estimate what a recording will take: tokens, memory beside the model, disk, and time from one timed block."""
    sites, also = recording.sites, recording.also
    neurons = sum(math.prod(model_view.shape(site)) for site in sites)
    per_neuron = BINS * 4 + FOLDS * (4 + 8) + 40
    per_neuron += 8 * recording.sentences * (SENTENCE in also) + 8 * FOLDS * (GRADIENT in also)
    languages, counted = len(packed.languages), next(iter(packed.tokens.values()))
    batch = batch_size * packed.context_length * max(model_view.width(site) for site in sites) * 4 * 3
    block = packed.blocks(packed.languages[0], range(1)).tokens.to(model_view.device)
    blocks = sum(packed.n_blocks(language) for language in packed.languages) / shard[1]
    with torch.no_grad():
        seconds = timed(lambda: model_view.forward(block, logits=False))
    return Cost(
        f"Recording {languages} languages x {counted:,} counted tokens of {model_view.name} at {', '.join(sites)} "
        f"({neurons:,} neurons)",
        tokens=blocks * block.numel(),
        passes=BACKWARD if GRADIENT in also else 1,
        memory=per_neuron * neurons + batch,
        disk=per_neuron * neurons * languages,
    ).at(block.numel() / seconds)
