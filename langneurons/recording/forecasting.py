"""What a recording will cost, said before it starts."""

import math
import time
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from langneurons.corpora import PackedCorpus
from langneurons.models import ModelView
from langneurons.recording.accumulation import BINS, FOLDS
from langneurons.recording.optional import GRADIENT, SENTENCE, SENTENCES

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


def _bytes(n: float | int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def _duration(seconds: float | int) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
