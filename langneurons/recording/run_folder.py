"""A recording on disk: what it is of, its checkpoints, its result."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from langneurons import storage
from langneurons.corpora import Corpus, PackedCorpus, purity_warnings
from langneurons.errors import StaleArtefactError, StorageError
from langneurons.models import ModelView
from langneurons.recording.accumulation import BINS, FOLDS
from langneurons.recording.records import GRADIENT, SENTENCE, SENTENCES
from langneurons.recording.statistics import ActivationStats
from langneurons.recording.sums import LanguageSums

PLAN = "langneurons/recording/1"
PURITY_SAMPLE = 300


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
            if any(not one.name.startswith(".") for one in self.folder.glob("*")):
                raise StorageError(f"{self.folder} holds files that are no recording: give another folder as out.")
            storage.write_json(path, PLAN, plan)
            return
        found = storage.read_json(path, PLAN)
        differing = [
            f"{key} (there {found.get(key)}, here {plan.get(key)})"
            for key in {**plan, **found}
            if found.get(key) != plan.get(key)
        ]
        if differing:
            raise StaleArtefactError(
                f"{self.folder} holds another recording, which differs in {'; '.join(differing)}. "
                "Give another folder as out."
            )

    def check_corpus(self, corpus: Corpus, say: Callable[[str], None]) -> None:
        """Say what looks wrong with the corpus, and store the purity report where the recording is kept."""
        table = corpus.purity(sample=PURITY_SAMPLE)
        if self.resumable:
            storage.write_table(self.folder / "purity.parquet", table, sidecar=True)
        for sentence in purity_warnings(table):
            say(sentence)

    def finished(self) -> ActivationStats | None:
        """The statistics, if the recording was completed before."""
        return ActivationStats.load(self.folder) if (self.folder / "statistics.json").exists() else None

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
        """Write the statistics and drop what only the run needed."""
        if not self.resumable:
            return statistics
        statistics.save(self.folder)
        storage.remove_folder(self.folder / "checkpoints")
        storage.remove_folder(self.folder / "packed")
        storage.remove_folder(self.folder / "pieces")
        return ActivationStats.load(self.folder)

    def _checkpoint(self, language: str) -> Path:
        return self.folder / "checkpoints" / f"{language}.safetensors"


@contextmanager
def run_folder(out: str | Path | None) -> Iterator[Path]:
    """Give the folder to record in, and keep others out; a temporary one where none is asked for."""
    if out is not None:
        with storage.alone(Path(out), "recording"):
            yield Path(out)
        return
    with storage.temporary_folder() as folder:
        yield folder


BACKWARD = 5  # a forward, and one more with the unembedding and its backward pass, in forwards


def forecast(
    seen: ModelView,
    packed: PackedCorpus,
    sites: Sequence[str],
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    also: Sequence[str] = (),
    sentences: int = SENTENCES,
) -> str:
    """Say what a recording will cost: tokens, memory beside the model, disk, and time from one timed block."""
    neurons = sum(math.prod(seen.shape(site)) for site in sites)
    per_neuron = BINS * 4 + FOLDS * (4 + 8) + 40
    per_neuron += 8 * sentences * (SENTENCE in also) + 8 * FOLDS * (GRADIENT in also)
    languages = len(packed.languages)
    batch = batch_size * packed.context_length * max(seen.width(site) for site in sites) * 4 * 3
    block = packed.blocks(packed.languages[0], range(1)).tokens.to(seen.device)
    blocks = sum(packed.n_blocks(language) for language in packed.languages) / shard[1]
    seconds = _seconds_of_a_forward(seen, block) * blocks * (BACKWARD if GRADIENT in also else 1)
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


def _bytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
