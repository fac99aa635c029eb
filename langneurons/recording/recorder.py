"""record(): one pass over a corpus that keeps what every neuron did, exactly and resumably."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from langneurons.corpora import Blocks, Corpus, PackedCorpus, pack
from langneurons.errors import HookSiteError, ModelError, StaleArtefactError, StatisticsError, unknown
from langneurons.models import ModelView, view
from langneurons.recording.accumulation import FOLDS, Grid, GroupedSums
from langneurons.recording.records import GRADIENT, SENTENCE, SENTENCES, LanguageRecord, Sentences, check_optional, held
from langneurons.recording.run_folder import Run, forecast, run_folder
from langneurons.recording.statistics import ActivationStats
from langneurons.recording.sums import Calibration, LanguageSums, features_recorded, recorded_model, relevance_units
from langneurons.run import Executor, chosen_executor

CALIBRATION_BLOCKS = 8
SECONDS_BETWEEN_CHECKPOINTS = 60.0


def record(
    model: torch.nn.Module,
    corpus: Corpus,
    tokens_per_language: int | None = None,
    context_length: int = 512,
    batch_size: int = 8,
    sites: Sequence[str] = ("act",),
    out: str | Path | None = None,
    like: ActivationStats | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
    also: Sequence[str] = (),
    sentences: int = SENTENCES,
    executor: str | Executor | None = None,
) -> ActivationStats:
    """Run a corpus through a model once and keep what every neuron did in every language.

    The result does not depend on batch size, shards, interruptions, executor, or which other languages are recorded.

    Args:
        model: From ``load_model``, or any HookedTransformer or TransformerBridge.
        corpus: From ``load_corpus``. Documents are taken in the corpus' order: shuffle it first if it is sorted.
        tokens_per_language: Counted tokens of each language; None takes as many as the smallest language has.
        context_length: Positions a block, a multiple of 16.
        batch_size: Blocks a forward.
        sites: Among "pre", "act", "post", "head", "resid_post", and names given to ``add_dictionary``.
        out: Folder for the statistics; the same call continues an interrupted run there. None keeps them in memory.
        like: Statistics whose histogram edges (where it has the language) and number of tokens to reuse, so that
            languages, or more of a language, can be added.
        shard: ``(i, n)`` records the i-th of n parts; the sum of the parts' statistics equals recording at once.
        progress: Show the plan, doubts about the corpus and a progress bar on standard error.
        also: What some methods need (their ``needs``): ``"sentence"``, the mean of every neuron over each of some
            documents (8 bytes a neuron and document); ``"gradient"``, every neuron's relevance to the loss (a backward
            pass, about four times the time).
        sentences: Of how many documents a language, spread evenly over its text, for ``also=("sentence",)``; or all.
        executor: Where to run: None here; "ray" cuts the corpus in shards and records them on a Ray cluster
            (``ln.run.RayExecutor`` says more), where ``out`` must be a folder that every machine sees.

    Returns:
        The statistics.

    Raises:
        CorpusError: If a language has too few tokens, or ``context_length`` is no multiple of 16.
        ModelError: If the context is longer than the model's, or the model has no tokenizer.
        StaleArtefactError: If ``out`` holds another recording, or ``like`` is of another model, site or context length.
        ExecutorError: If the work cannot run where it was asked to.

    Example:
        >>> corpus = ln.load_corpus({"en": ["A small text."] * 3, "hi": ["एक छोटा पाठ।"] * 3})
        >>> ln.record(model, corpus, context_length=32, progress=False).languages
        ('en', 'hi')
    """
    seen, sites, also, where = view(model), tuple(sites), check_optional(also), chosen_executor(executor)
    _check_arguments(seen, context_length, batch_size, sites, shard, sentences)
    if like is not None:
        _check_like(like, seen, context_length, sites)
        tokens_per_language = tokens_per_language or int(like.tokens.max())
    plan = {
        "model": seen.fingerprint,
        "backend": seen.backend,
        "dtype": str(seen.dtype),
        "sites": list(sites),
        **{f"features at {site}": found for site, found in features_recorded(seen, sites).items()},
        "context_length": context_length,
        "tokens_per_language": tokens_per_language,
        "corpus": dict(corpus.fingerprints),
        "shard": list(shard),
        "like": None if like is None else like.edges_fingerprint(),
        **({"also": list(also), "sentences": sentences} if also else {}),
    }
    say = (lambda text: tqdm.write(text, file=sys.stderr)) if progress else (lambda text: None)
    with run_folder(out) as folder:
        run = Run(folder, resumable=out is not None)
        run.claim(plan)
        if (done := run.finished()) is not None:
            say(f"{folder} already holds this recording: nothing to do.")
            return done
        if run.resumable or progress:
            run.check_corpus(corpus, say)
        packed = pack(corpus, seen.tokenizer, context_length, folder / "packed", tokens_per_language)
        if progress:
            say(forecast(seen, packed, sites, batch_size, shard, also, sentences))
        pass_ = Pass(seen, packed, _ranges(packed, shard), sites, batch_size, run, like, also, sentences)
        pieces = pass_.cut(where.pieces(model))
        bar = tqdm(total=pass_.blocks, unit="block", disable=not progress, smoothing=0.1)
        with bar:
            if len(pieces) == 1:
                return run.finish(pass_.record(bar))
            found = None
            for piece, part in zip(pieces, where.map(model, recorded_piece, pieces), strict=True):
                found = part if found is None else found + part
                bar.update(piece.blocks)
        assert found is not None
        return run.finish(found)


def recorded_piece(model: torch.nn.Module, piece: "Pass") -> ActivationStats:
    """Record one piece of a pass, wherever that is.

    Args:
        model: The model that the piece is of.
        piece: What to record; it goes on from its checkpoint, if another worker left one.
    """
    with tqdm(disable=True) as bar:
        return piece.record(bar)


@dataclass(frozen=True)
class Pass:
    """One pass over blocks of a packed corpus.

    Attributes:
        ranges: Language -> which of its blocks.
    """

    seen: ModelView
    packed: PackedCorpus
    ranges: Mapping[str, range]
    sites: tuple[str, ...]
    batch_size: int
    run: Run
    like: ActivationStats | None
    also: tuple[str, ...] = ()
    sentences: int = SENTENCES

    @property
    def blocks(self) -> int:
        """How many, in all languages."""
        return sum(map(len, self.ranges.values()))

    def cut(self, pieces: int) -> list["Pass"]:
        """Cut it in so many pieces, or as many as it has blocks; each has a folder of its own.

        Pieces follow each other through the languages, so that most are of one, and only its statistics are sent.
        """
        n = max(1, min(pieces, self.blocks))
        ends = [self.blocks * index // n for index in range(n + 1)]
        folder = self.run.folder.resolve() / "pieces"
        return [
            replace(
                self,
                ranges=dict(_within(self.ranges, start, stop)),
                run=Run(folder / f"{index}-of-{n}", self.run.resumable),
            )
            for index, (start, stop) in enumerate(pairwise(ends))
        ]

    def record(self, bar: tqdm) -> ActivationStats:
        """Record every language at every site."""
        with self.seen.native_attention():
            by_language = {language: self._record(language, bar) for language in self.ranges}
        records = {site: {language: of[site] for language, of in by_language.items()} for site in self.sites}
        return ActivationStats(recorded_model(self.seen, self.sites), self.packed.context_length, records)

    def _record(self, language: str, bar: tqdm) -> dict[str, LanguageRecord]:
        """Record one language at every site, going on from its checkpoint if there is one."""
        blocks = self.ranges[language]
        state = self.run.load(language, self.sites, self.seen.device) or self._start(language, blocks)
        bar.set_description(language)
        bar.update(state.next_block - blocks.start)
        saved_at = time.monotonic()
        with _interrupts_deferred() as interrupted:
            while state.next_block < blocks.stop:
                end = min(state.next_block + self.batch_size, blocks.stop)
                self._add(state, language, range(state.next_block, end))
                bar.update(end - state.next_block)
                state.next_block = end
                due = time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS
                if due or interrupted() or end == blocks.stop:
                    self.run.save(language, state)
                    saved_at = time.monotonic()
                if interrupted():
                    break
        sources = {self.packed.fingerprints[language]: ((blocks.start, blocks.stop),)} if blocks else {}
        tokens = self._counts(language, blocks, FOLDS, _folds)
        if SENTENCE not in self.also:
            return state.records(tokens, sources)
        kept = self._sentences(language)
        of_sentences = self._counts(language, blocks, len(kept.ordinals), lambda batch: kept.rows(batch.document))
        return state.records(tokens, sources, (kept, of_sentences))

    def _start(self, language: str, blocks: range) -> LanguageSums:
        if self.like is not None and language in self.like.languages:
            grids = {site: self.like.records[site][language].grid() for site in self.sites}
        else:
            grids = self._calibrated(language)
        state = LanguageSums.empty(self.seen, grids, self.packed.tokens[language], blocks.start)
        state.grouped |= self._grouped(language, grids)
        return state

    def _grouped(self, language: str, grids: Mapping[str, Grid]) -> dict[tuple[str, str], GroupedSums]:
        """Empty sums of what is optional."""
        made = {}
        if SENTENCE in self.also:
            kept = len(self._sentences(language).ordinals)
            made |= {(SENTENCE, site): GroupedSums.zeros(self._here(grid.units), kept) for site, grid in grids.items()}
        if GRADIENT in self.also:
            units = self._relevance_units(language)
            made |= {(GRADIENT, site): GroupedSums.zeros(self._here(unit), FOLDS) for site, unit in units.items()}
        return made

    def _relevance_units(self, language: str) -> dict[str, Tensor]:
        if self.like is not None and language in self.like.languages:
            known = {site: self.like.records[site][language].tensors for site in self.sites}
            if all(GRADIENT in held(tensors) for tensors in known.values()):
                return {site: tensors["relevance_unit"] for site, tensors in known.items()}
        return relevance_units(self.seen, self._sample(language), self.sites)

    def _sentences(self, language: str) -> Sentences:
        documents = self.packed.document_count(language)
        return Sentences.spread(self.packed.fingerprints[language], documents, self.sentences)

    def _here(self, values: Tensor) -> Tensor:
        return values.to(self.seen.device)

    def _sample(self, language: str) -> Blocks:
        """Blocks spread evenly over the whole language, whatever the shard."""
        n = self.packed.n_blocks(language)
        return self.packed.blocks(language, sorted({i * n // CALIBRATION_BLOCKS for i in range(CALIBRATION_BLOCKS)}))

    def _calibrated(self, language: str) -> dict[str, Grid]:
        batch = self._sample(language)
        calibration = Calibration(self.seen, self.sites, batch.counted.flatten().nonzero()[:, 0])
        with torch.no_grad(), calibration.looking():
            self._forward(batch)
        return calibration.grids()

    def _add(self, state: LanguageSums, language: str, blocks: range) -> None:
        batch = self.packed.blocks(language, blocks)
        folds, sentences = self._here(_folds(batch)), None
        if SENTENCE in self.also:
            sentences = self._here(self._sentences(language).rows(batch.document).flatten())
        with torch.no_grad(), state.adding(self.seen, folds.flatten(), sentences):
            self._forward(batch)
        if GRADIENT in self.also:
            state.add_relevance(self.seen, batch, folds)

    def _forward(self, batch: Blocks) -> None:
        self.seen.forward(self._here(batch.tokens), logits=False)

    def _counts(
        self, language: str, blocks: range, groups: int, group_of: Callable[[Blocks], Tensor]
    ) -> Int[Tensor, " group"]:
        """Counted tokens of each group."""
        tokens = torch.zeros(groups, dtype=torch.int64)
        for start in range(blocks.start, blocks.stop, 1024):
            found = group_of(self.packed.blocks(language, range(start, min(start + 1024, blocks.stop))))
            tokens += torch.bincount(found[found >= 0], minlength=groups)
        return tokens


def _ranges(packed: PackedCorpus, shard: tuple[int, int]) -> dict[str, range]:
    """The blocks of a shard."""
    part, parts = shard
    blocks = {language: packed.n_blocks(language) for language in packed.languages}
    return {language: range(n * part // parts, n * (part + 1) // parts) for language, n in blocks.items()}


def _within(ranges: Mapping[str, range], start: int, stop: int) -> Iterator[tuple[str, range]]:
    """What lies between two places when ranges stand one after the other."""
    before = 0
    for language, blocks in ranges.items():
        inside = blocks[max(0, start - before) : max(0, stop - before)]
        if inside:
            yield language, inside
        before += len(blocks)


def _folds(batch: Blocks) -> Int[Tensor, "block position"]:
    return torch.where(batch.counted, batch.document % FOLDS, -1)


@contextmanager
def _interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Let a batch finish before Ctrl-C takes effect, so that the sums on disk are those of whole batches."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _check_arguments(
    seen: ModelView,
    context_length: int,
    batch_size: int,
    sites: tuple[str, ...],
    shard: tuple[int, int],
    sentences: int,
) -> None:
    if not sites:
        raise HookSiteError(f"No site was given. Possible: {', '.join(seen.sites)}.")
    for site in sites:
        if site not in seen.sites:
            raise HookSiteError(unknown("site", site, seen.sites))
    if context_length > seen.context_length:
        raise ModelError(
            f"A context of {context_length} positions is longer than {seen.name}'s, which is {seen.context_length}."
        )
    if seen.tokenizer is None:
        raise ModelError(f"{seen.name} has no tokenizer: load it with load_model(..., tokenizer=...).")
    if batch_size < 1:
        raise StatisticsError(f"A batch has at least one block, not {batch_size}.")
    part, parts = shard
    if not 0 <= part < parts:
        raise StatisticsError(f"A shard is (i, n) with 0 <= i < n, not {shard}.")
    if sentences < 1:
        raise StatisticsError(f"At least one sentence a language is kept, not {sentences}.")


def _check_like(like: ActivationStats, seen: ModelView, context_length: int, sites: tuple[str, ...]) -> None:
    pairs = {
        "model": (like.model.fingerprint, seen.fingerprint),
        "dtype": (like.model.dtype, str(seen.dtype).removeprefix("torch.")),
        "sites": (like.sites, sites),
        "features": (like.of_features, features_recorded(seen, sites)),
        "context length": (like.context_length, context_length),
    }
    differing = [f"{what} ({theirs} there, {mine} here)" for what, (theirs, mine) in pairs.items() if theirs != mine]
    if differing:
        raise StaleArtefactError(f"like= is a recording that differs in {'; '.join(differing)}.")
