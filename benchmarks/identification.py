"""Identification: LAPE at Llama-3.1-8B's shape with 16 languages, and set operations on what it finds."""

import time
from collections.abc import Iterator

import torch

import langneurons as ln
from benchmarks.measuring import Settings, medians
from benchmarks.rows import Row


def seconds(shape: tuple[int, int, int], rounds: int) -> tuple[float, float, float]:
    """Give the seconds of LAPE's first call in this process, of a later one, and of five set operations.

    Args:
        shape: Languages, layers, neurons a layer.
        rounds: Of which the median is given.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full(shape[:1], 1_000_000)
    active = (torch.rand(shape, generator=generator) ** 3 * 1_000_000).long()
    stats = ln.ActivationStats.from_counts(active, tokens, [f"l{i}" for i in range(shape[0])])
    method = ln.LAPE(top=0.01)
    start = time.perf_counter()
    neurons = method.identify(stats)
    first = time.perf_counter() - start
    one, other = neurons[neurons.languages[0]], neurons[neurons.languages[1]]

    def algebra() -> list[int]:
        made = (one & other, one | other, one - other, neurons & neurons, neurons | neurons)
        return [len(combined) for combined in made]

    taken = medians({"identify": lambda: method.identify(stats), "algebra": algebra}, rounds)
    return first, taken["identify"], taken["algebra"]


def rows(settings: Settings) -> Iterator[Row]:
    """Measure in a process of its own, where the first call is the first."""
    shape = (4, 8, 500) if settings.tiny else (16, 32, 14336)
    first, later, algebra = settings.apart(seconds, shape, settings.rounds)
    what = "LAPE, {1} x {2} neurons, {0} languages".format(*shape)
    yield Row(f"{what}, first call of a process", "", first, "s", at_most=2.0)
    yield Row(f"{what}, later", "", later, "s", at_most=2.0)
    yield Row("five set operations on the result", "", 1000 * algebra, "ms", at_most=50.0)
