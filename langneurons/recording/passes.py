"""One pass over the blocks of a packed corpus, and the folder on disk that it can go on from."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from langneurons import storage
from langneurons.corpora import Blocks, Corpus, PackedCorpus, purity_warnings
from langneurons.corpora.corpus import UNGROUPED
from langneurons.errors import StatisticsError, StorageError
from langneurons.models import ModelView
from langneurons.models.finite import refusal
from langneurons.recording.accumulation import FOLDS, Grid, GroupedSums
from langneurons.recording.records import GRADIENT, SENTENCE, LanguageRecord, Sentences, held
from langneurons.recording.statistics import ActivationStats
from langneurons.recording.sums import Calibration, LanguageSums, recorded_model, relevance_units
from langneurons.run import Progress, working_in
from langneurons.settings import Recording

PLAN = "langneurons/recording/1"
PURITY_SAMPLE = 300
CALIBRATION_BLOCKS = 8
SECONDS_BETWEEN_CHECKPOINTS = 60.0


@dataclass(frozen=True)
class RecordingFolder:
    """A recording on disk: what it is of, its checkpoints, its result.

    Attributes:
        path: The folder.
        resumable: Whether it outlives the run; a temporary one keeps no checkpoints.
    """

    path: Path
    resumable: bool

    @classmethod
    @contextmanager
    def opened(cls, out: Path | None) -> Iterator["RecordingFolder"]:
        """Give the folder to record in, and keep others out; a temporary one where ``out`` is None."""
        if out is not None:
            with working_in(out, "recording"):
                yield cls(out, resumable=True)
            return
        with storage.temporary_folder() as folder:
            yield cls(folder, resumable=False)

    def claim(self, plan: Mapping[str, Any]) -> None:
        """Make the folder ours, or check that it already is.

        Raises:
            StaleArtefactError: If it holds a recording of something else.
            StorageError: If it holds other files.
        """
        file = self.path / "recording.json"
        if not file.exists():
            if any(not path.name.startswith(".") for path in self.path.glob("*")):
                raise StorageError(f"{self.path} holds files that are no recording: give another folder as out.")
            storage.write_json(file, PLAN, plan)
            return
        storage.check_same(self.path, "recording", storage.read_json(file, PLAN), plan)

    def check_corpus(self, corpus: Corpus, say: Callable[[str], None]) -> None:
        """Say what looks wrong with the corpus, and store the purity report where the recording is kept."""
        table = corpus.purity(sample=PURITY_SAMPLE)
        if not any(map(corpus.grouped, corpus.languages)):
            say(f"In this corpus {UNGROUPED}. To keep an article's texts together, add a column 'document'.")
        if self.resumable:
            storage.write_table(self.path / "purity.parquet", table, sidecar=True)
        for sentence in purity_warnings(table):
            say(sentence)

    def finished(self) -> ActivationStats | None:
        """The statistics, if the recording was completed before; drops what only the run needed."""
        if not (self.path / "statistics.json").exists():
            return None
        for name in ("checkpoints", "packed", "pieces"):
            storage.remove_folder(self.path / name)
        return ActivationStats.load(self.path)

    def load(self, language: str, sites: Sequence[str], device: torch.device) -> LanguageSums | None:
        """A language's checkpoint."""
        path = self._checkpoint(language)
        if not path.exists():
            return None
        with storage.understood(path):
            return LanguageSums.of(storage.read_tensors(path), sites, device)

    def save(self, language: str, state: LanguageSums) -> None:
        """Keep a language's sums and how far they reach."""
        if self.resumable:
            storage.write_tensors(self._checkpoint(language), state.tensors(), sidecar=True)

    def finish(self, statistics: ActivationStats) -> ActivationStats:
        """Write the statistics; where the folder outlives the run, give them as they are read from it."""
        if self.resumable:
            statistics.save(self.path)
        return self.finished() or statistics

    def _checkpoint(self, language: str) -> Path:
        return self.path / "checkpoints" / f"{language}.safetensors"


def recorded_piece(model: torch.nn.Module, piece: "Pass") -> ActivationStats:
    """Record one piece of a pass, wherever that is.

    Args:
        model: The model that the piece is of.
        piece: What to record; it goes on from its checkpoint, if another worker left one.
    """
    with Progress(shown=False) as bar:
        return piece.record(bar)


@dataclass(frozen=True)
class Pass:
    """One pass over blocks of a packed corpus.

    Attributes:
        model_view: The model.
        packed: The corpus.
        ranges: Language -> the blocks of it to record.
        recording: What is recorded.
        batch_size: Blocks per forward pass.
        folder: Folder of the checkpoints.
        like: Statistics whose histogram edges to reuse.
    """

    model_view: ModelView
    packed: PackedCorpus
    ranges: Mapping[str, range]
    recording: Recording
    batch_size: int
    folder: RecordingFolder
    like: ActivationStats | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that are recorded."""
        return self.recording.sites

    @property
    def blocks(self) -> int:
        """Number of blocks in all languages."""
        return sum(map(len, self.ranges.values()))

    def cut(self, pieces: int) -> list["Pass"]:
        """Cut it in so many pieces, or as many as it has blocks; each has a folder of its own.

        Pieces follow each other through the languages, so that most are of one, and only its statistics are sent.
        """
        n = max(1, min(pieces, self.blocks))
        ends = [self.blocks * index // n for index in range(n + 1)]
        folder = self.folder.path.resolve() / "pieces"
        return [
            replace(
                self,
                ranges=dict(_within(self.ranges, start, stop)),
                folder=RecordingFolder(folder / f"{index}-of-{n}", self.folder.resumable),
            )
            for index, (start, stop) in enumerate(pairwise(ends))
        ]

    def record(self, bar: Progress) -> ActivationStats:
        """Record every language at every site."""
        with self.model_view.native_attention():
            by_language = {language: self._record(language, bar) for language in self.ranges}
        records = {site: {language: of[site] for language, of in by_language.items()} for site in self.sites}
        return ActivationStats(recorded_model(self.model_view, self.sites), self.packed.context_length, records)

    def _record(self, language: str, bar: Progress) -> dict[str, LanguageRecord]:
        """Record one language at every site, going on from its checkpoint if there is one."""
        blocks = self.ranges[language]
        state = self.folder.load(language, self.sites, self.model_view.device) or self._start(language, blocks)
        bar.set_description(language)
        bar.update(state.next_block - blocks.start)
        saved_at = time.monotonic()
        with _interrupts_deferred() as interrupted:
            while state.next_block < blocks.stop:
                end = min(state.next_block + self.batch_size, blocks.stop)
                for part in self._parts(range(state.next_block, end)):
                    self._add(state, language, part)
                bar.update(end - state.next_block)
                state.next_block = end
                due = time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS
                if due or interrupted() or end == blocks.stop:
                    self.folder.save(language, state)
                    saved_at = time.monotonic()
                if interrupted():
                    break
        sources = {self.packed.fingerprints[language]: ((blocks.start, blocks.stop),)} if blocks else {}
        tokens = self._counts(language, blocks, FOLDS, lambda batch: self._folds(language, batch))
        if SENTENCE not in self.recording.also:
            return state.records(tokens, sources)
        sentences = self._sentences(language)
        counts = self._counts(language, blocks, len(sentences.ordinals), lambda batch: sentences.rows(batch.text))
        return state.records(tokens, sources, (sentences, counts))

    def _start(self, language: str, blocks: range) -> LanguageSums:
        if self.like is not None and language in self.like.languages:
            grids = {site: self.like.records[site][language].grid() for site in self.sites}
        else:
            grids = self._calibrated(language)
        state = LanguageSums.empty(self.model_view, grids, self.packed.tokens[language], blocks.start)
        state.grouped |= self._grouped(language, grids)
        return state

    def _grouped(self, language: str, grids: Mapping[str, Grid]) -> dict[tuple[str, str], GroupedSums]:
        """Empty sums of what is optional."""
        sums = {}
        if SENTENCE in self.recording.also:
            count = len(self._sentences(language).ordinals)
            sums |= {(SENTENCE, site): GroupedSums.zeros(self._here(grid.units), count) for site, grid in grids.items()}
        if GRADIENT in self.recording.also:
            units = self._relevance_units(language)
            sums |= {(GRADIENT, site): GroupedSums.zeros(self._here(unit), FOLDS) for site, unit in units.items()}
        return sums

    def _relevance_units(self, language: str) -> dict[str, Tensor]:
        if self.like is not None and language in self.like.languages:
            recorded = {site: self.like.records[site][language].tensors for site in self.sites}
            if all(GRADIENT in held(tensors) for tensors in recorded.values()):
                return {site: tensors["relevance_unit"] for site, tensors in recorded.items()}
        return relevance_units(self.model_view, self._sample(language), self.sites)

    def _sentences(self, language: str) -> Sentences:
        texts = self.packed.text_count(language)
        return Sentences.spread(self.packed.fingerprints[language], texts, self.recording.sentences)

    def _folds(self, language: str, batch: Blocks) -> Int[Tensor, "block position"]:
        """The fold of each token's document, -1 where the token is not counted."""
        documents = torch.from_numpy(self.packed.groups(language)[batch.text.numpy()])
        return torch.where(batch.counted, documents % FOLDS, -1)

    def _here(self, values: Tensor) -> Tensor:
        return values.to(self.model_view.device)

    def _sample(self, language: str) -> Blocks:
        """Blocks spread evenly over the whole language, whatever the shard."""
        n = self.packed.n_blocks(language)
        return self.packed.blocks(language, sorted({i * n // CALIBRATION_BLOCKS for i in range(CALIBRATION_BLOCKS)}))

    def _calibrated(self, language: str) -> dict[str, Grid]:
        batch = self._sample(language)
        calibration = Calibration(self.model_view, self.sites, batch.counted.flatten().nonzero()[:, 0])
        with torch.no_grad(), calibration.looking():
            self._forward(batch)
        return calibration.grids()

    def _parts(self, blocks: range) -> list[range]:
        """The blocks that share a forward pass: each by itself where experts multiply the tokens of all together.

        The last bits of a product depend on its number of rows, which is here the number of tokens that chose an
        expert.
        """
        return [range(block, block + 1) for block in blocks] if self.model_view.routers else [blocks]

    def _add(self, state: LanguageSums, language: str, blocks: range) -> None:
        batch = self.packed.blocks(language, blocks)
        folds, sentences = self._here(self._folds(language, batch)), None
        if SENTENCE in self.recording.also:
            sentences = self._here(self._sentences(language).rows(batch.text).flatten())
        try:
            with torch.no_grad(), state.adding(self.model_view, folds.flatten(), sentences):
                self._forward(batch)
            if GRADIENT in self.recording.also:
                state.add_relevance(self.model_view, batch, folds)
        except StatisticsError as error:
            where = refusal(self.model_view, batch.tokens, counted=batch.counted)
            raise StatisticsError(f"{language!r} cannot be recorded. {where or error}") from error

    def _forward(self, batch: Blocks) -> None:
        self.model_view.forward(self._here(batch.tokens), logits=False)

    def _counts(
        self, language: str, blocks: range, groups: int, group_of: Callable[[Blocks], Tensor]
    ) -> Int[Tensor, " group"]:
        """Counted tokens of each group."""
        tokens = torch.zeros(groups, dtype=torch.int64)
        for start in range(blocks.start, blocks.stop, 1024):
            group = group_of(self.packed.blocks(language, range(start, min(start + 1024, blocks.stop))))
            tokens += torch.bincount(group[group >= 0], minlength=groups)
        return tokens


def _within(ranges: Mapping[str, range], start: int, stop: int) -> Iterator[tuple[str, range]]:
    """What lies between two places when ranges stand one after the other."""
    before = 0
    for language, blocks in ranges.items():
        inside = blocks[max(0, start - before) : max(0, stop - before)]
        if inside:
            yield language, inside
        before += len(blocks)


@contextmanager
def _interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Let a batch finish before Ctrl-C takes effect, so that the sums on disk are those of whole batches."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield lambda: bool(interrupts)
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt
