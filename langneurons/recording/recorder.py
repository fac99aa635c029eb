"""record(): one pass over a corpus that keeps what every neuron did, exactly and resumably."""

import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from langneurons import storage
from langneurons.corpora import Blocks, Corpus, PackedCorpus, pack, purity_warnings
from langneurons.errors import HookSiteError, ModelError, StaleArtefactError, StatisticsError, StorageError, unknown
from langneurons.models import SITES, ModelView, view
from langneurons.recording.accumulation import BINS, FOLDS
from langneurons.recording.records import LanguageRecord
from langneurons.recording.statistics import ActivationStats
from langneurons.recording.sums import Calibration, LanguageSums, recorded_model

PLAN = "langneurons/recording/1"
CALIBRATION_BLOCKS = 8
PURITY_SAMPLE = 300
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
) -> ActivationStats:
    """Run a corpus through a model once and keep what every neuron did in every language.

    The result does not depend on batch size, shards, interruptions, or which other languages are recorded with one.

    Args:
        model: From ``load_model``, or any HookedTransformer or TransformerBridge.
        corpus: From ``load_corpus``. Documents are taken in the corpus' order: shuffle it first if it is sorted.
        tokens_per_language: Counted tokens of each language; None takes as many as the smallest language has.
        context_length: Positions a block, a multiple of 16.
        batch_size: Blocks a forward.
        sites: Among "pre", "act", "post", "head", "resid_post".
        out: Folder for the statistics; the same call continues an interrupted run there. None keeps them in memory.
        like: Statistics whose histogram edges (where it has the language) and number of tokens to reuse, so that
            languages, or more of a language, can be added.
        shard: ``(i, n)`` records the i-th of n parts; the sum of the parts' statistics equals recording at once.
        progress: Show the plan, doubts about the corpus and a progress bar on standard error.

    Returns:
        The statistics.

    Raises:
        CorpusError: If a language has too few tokens, or ``context_length`` is no multiple of 16.
        ModelError: If the context is longer than the model's, or the model has no tokenizer.
        StaleArtefactError: If ``out`` holds another recording, or ``like`` is of another model, site or context length.

    Example:
        >>> corpus = ln.load_corpus({"en": ["A small text."] * 3, "hi": ["एक छोटा पाठ।"] * 3})
        >>> ln.record(model, corpus, context_length=32, progress=False).languages
        ('en', 'hi')
    """
    seen, sites = view(model), tuple(sites)
    _check_arguments(seen, context_length, batch_size, sites, shard)
    if like is not None:
        _check_like(like, seen, context_length, sites)
        tokens_per_language = tokens_per_language or int(like.tokens.max())
    plan = {
        "model": seen.fingerprint,
        "backend": seen.backend,
        "dtype": str(seen.dtype),
        "sites": list(sites),
        "context_length": context_length,
        "tokens_per_language": tokens_per_language,
        "corpus": dict(corpus.fingerprints),
        "shard": list(shard),
        "like": None if like is None else like.edges_fingerprint(),
    }
    say = (lambda text: tqdm.write(text, file=sys.stderr)) if progress else (lambda text: None)
    with _run_folder(out) as folder:
        run = Run(folder, resumable=out is not None)
        run.claim(plan)
        if (done := run.finished()) is not None:
            say(f"{folder} already holds this recording: nothing to do.")
            return done
        if run.resumable or progress:
            run.check_corpus(corpus, say)
        packed = pack(corpus, seen.tokenizer, context_length, folder / "packed", tokens_per_language)
        if progress:
            say(forecast(seen, packed, sites, batch_size, shard))
        pass_ = Pass(seen, packed, sites, batch_size, shard, run, like)
        bar = tqdm(total=pass_.blocks, unit="block", disable=not progress, smoothing=0.1)
        with bar, seen.native_attention():
            by_language = {language: pass_.record(language, bar) for language in packed.languages}
        records = {site: {language: of[site] for language, of in by_language.items()} for site in sites}
        return run.finish(ActivationStats(recorded_model(seen, sites), context_length, records))


@dataclass(frozen=True)
class Pass:
    """The one pass over a packed corpus."""

    seen: ModelView
    packed: PackedCorpus
    sites: tuple[str, ...]
    batch_size: int
    shard: tuple[int, int]
    run: "Run"
    like: ActivationStats | None

    @property
    def blocks(self) -> int:
        """Blocks of this shard in all languages."""
        return sum(len(self._range(language)) for language in self.packed.languages)

    def record(self, language: str, bar: tqdm) -> dict[str, LanguageRecord]:
        """Record one language at every site, going on from its checkpoint if there is one."""
        blocks = self._range(language)
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
        return state.records(self._fold_tokens(language, blocks), sources)

    def _range(self, language: str) -> range:
        part, parts = self.shard
        n = self.packed.n_blocks(language)
        return range(n * part // parts, n * (part + 1) // parts)

    def _start(self, language: str, blocks: range) -> LanguageSums:
        if self.like is not None and language in self.like.languages:
            grids = {site: self.like.records[site][language].grid() for site in self.sites}
        else:
            grids = self._calibrated(language)
        return LanguageSums.empty(self.seen, grids, self.packed.tokens[language], blocks.start)

    def _calibrated(self, language: str) -> dict:
        """Edges from blocks spread evenly over the whole language, whatever the shard."""
        n = self.packed.n_blocks(language)
        chosen = sorted({i * n // CALIBRATION_BLOCKS for i in range(CALIBRATION_BLOCKS)})
        batch = self.packed.blocks(language, chosen)
        calibration = Calibration(self.seen, self.sites, batch.counted.flatten().nonzero()[:, 0])
        with torch.no_grad(), calibration.looking():
            self._forward(batch)
        return calibration.grids()

    def _add(self, state: LanguageSums, language: str, blocks: range) -> None:
        batch = self.packed.blocks(language, blocks)
        with torch.no_grad(), state.adding(self.seen, _folds(batch).flatten().to(self.seen.device)):
            self._forward(batch)

    def _forward(self, batch: Blocks) -> None:
        self.seen.forward(batch.tokens.to(self.seen.device), logits=False)

    def _fold_tokens(self, language: str, blocks: range) -> Int[Tensor, " fold"]:
        tokens = torch.zeros(FOLDS, dtype=torch.int64)
        for start in range(blocks.start, blocks.stop, 1024):
            folds = _folds(self.packed.blocks(language, range(start, min(start + 1024, blocks.stop))))
            tokens += torch.bincount(folds[folds >= 0], minlength=FOLDS)
        return tokens


def _folds(batch: Blocks) -> Int[Tensor, "block position"]:
    return torch.where(batch.counted, batch.document % FOLDS, -1)


@dataclass(frozen=True)
class Run:
    """A recording on disk: what it is of, its checkpoints, its result."""

    folder: Path
    resumable: bool

    def claim(self, plan: Mapping[str, Any]) -> None:
        """Make the folder ours, or check that it already is.

        Raises:
            StaleArtefactError: If it holds a recording of something else.
            StorageError: If it holds other files.
        """
        path = self.folder / "recording.json"
        if not path.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise StorageError(f"{self.folder} holds files that are no recording: give another folder as out.")
            storage.write_json(path, PLAN, plan)
            return
        found = storage.read_json(path, PLAN)
        differing = [f"{key} (there {found.get(key)}, here {plan[key]})" for key in plan if found.get(key) != plan[key]]
        if differing:
            raise StaleArtefactError(
                f"{self.folder} holds another recording, which differs in {'; '.join(differing)}. "
                "Give another folder as out."
            )

    def check_corpus(self, corpus: Corpus, say: Callable[[str], None]) -> None:
        """Say what looks wrong with the corpus, and store the purity report where the recording is kept."""
        table = corpus.purity(sample=PURITY_SAMPLE)
        if self.resumable:
            storage.write_table(self.folder / "purity.parquet", table)
        for sentence in purity_warnings(table):
            say(sentence)

    def finished(self) -> ActivationStats | None:
        """The statistics, if the recording was completed before."""
        return ActivationStats.load(self.folder) if (self.folder / "statistics.json").exists() else None

    def load(self, language: str, sites: Sequence[str], device: torch.device) -> LanguageSums | None:
        """A language's checkpoint."""
        path = self._checkpoint(language)
        return LanguageSums.of(storage.read_tensors(path), sites, device) if path.exists() else None

    def save(self, language: str, state: LanguageSums) -> None:
        """Keep a language's sums and how far they reach."""
        if self.resumable:
            storage.write_tensors(self._checkpoint(language), state.tensors())

    def finish(self, statistics: ActivationStats) -> ActivationStats:
        """Write the statistics and drop what only the run needed."""
        if not self.resumable:
            return statistics
        statistics.save(self.folder)
        storage.remove_folder(self.folder / "checkpoints")
        storage.remove_folder(self.folder / "packed")
        return ActivationStats.load(self.folder)

    def _checkpoint(self, language: str) -> Path:
        return self.folder / "checkpoints" / f"{language}.safetensors"


@contextmanager
def _run_folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="langneurons-") as folder:
        yield Path(folder)


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


def forecast(
    seen: ModelView, packed: PackedCorpus, sites: Sequence[str], batch_size: int, shard: tuple[int, int] = (0, 1)
) -> str:
    """Say what a recording will cost: tokens, memory beside the model, disk, and time from one timed block."""
    neurons = sum(seen.n_layers * seen.width(site) for site in sites)
    per_neuron = BINS * 4 + FOLDS * (4 + 8) + 40
    languages = len(packed.languages)
    batch = batch_size * packed.context_length * max(seen.width(site) for site in sites) * 4 * 3
    block = packed.blocks(packed.languages[0], range(1)).tokens.to(seen.device)
    blocks = sum(packed.n_blocks(language) for language in packed.languages) / shard[1]
    seconds = _seconds_of_a_forward(seen, block) * blocks
    return (
        f"Recording {languages} languages x {next(iter(packed.tokens.values())):,} counted tokens of {seen.name} at "
        f"{', '.join(sites)}: {neurons:,} neurons, about {_bytes(per_neuron * neurons + batch)} of memory beside the "
        f"model, {_bytes(per_neuron * neurons * languages)} on disk, {_duration(seconds)}."
    )


def _seconds_of_a_forward(seen: ModelView, block: Int[Tensor, "row position"]) -> float:
    """The quickest of three, the first of which also warms up."""
    taken = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            seen.forward(block, logits=False)
            taken.append(time.perf_counter() - start)
    return min(taken)


def _bytes(n: float | int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def _duration(seconds: float | int) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _check_arguments(
    seen: ModelView, context_length: int, batch_size: int, sites: tuple[str, ...], shard: tuple[int, int]
) -> None:
    if not sites:
        raise HookSiteError(f"No site was given. Possible: {', '.join(SITES)}.")
    for site in sites:
        if site not in SITES:
            raise HookSiteError(unknown("site", site, SITES))
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


def _check_like(like: ActivationStats, seen: ModelView, context_length: int, sites: tuple[str, ...]) -> None:
    pairs = {
        "model": (like.model.fingerprint, seen.fingerprint),
        "dtype": (like.model.dtype, str(seen.dtype).removeprefix("torch.")),
        "sites": (like.sites, sites),
        "context length": (like.context_length, context_length),
    }
    differing = [f"{what} ({theirs} there, {mine} here)" for what, (theirs, mine) in pairs.items() if theirs != mine]
    if differing:
        raise StaleArtefactError(f"like= is a recording that differs in {'; '.join(differing)}.")
