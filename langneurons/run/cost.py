"""What work will cost, said before it starts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

TRIALS, TRIAL_SECONDS = 3, 2.0  # by which work is timed before it starts
WARMING_SECONDS = 15.0  # of a first time, which may have been long only because it was the first


@dataclass(frozen=True)
class Cost:
    """What work will take; 0 is not said.

    Attributes:
        work: What is done, such as "Measuring 85 conditions".
        tokens: Tokens that go through the model.
        passes: Forward passes per token; a backward pass counts as about two.
        memory: Bytes of memory beside the model.
        disk: Bytes on disk.
        seconds: Time in seconds.

    Example:
        >>> from langneurons.run import Cost
        >>> str(Cost("Recording 2 languages", tokens=40_000, memory=12e6).at(rate=200))
        'Recording 2 languages: 40,000 tokens through the model, 12 MB of memory beside it, about 3 minutes.'
    """

    work: str = ""
    tokens: float | int = 0
    passes: float | int = 1
    memory: float | int = 0
    disk: float | int = 0
    seconds: float | int = 0

    def at(self, rate: float | int) -> "Cost":
        """The cost with its time, where the model reads so many tokens per second in forward passes."""
        return replace(self, seconds=self.tokens * self.passes / rate)

    def times(self, number: int, workers: int = 1) -> "Cost":
        """The cost of doing the same several times, by some workers at once; memory is that of one worker."""
        return replace(
            self, tokens=self.tokens * number, disk=self.disk * number, seconds=self.seconds * number / workers
        )

    def __str__(self) -> str:
        parts = [
            f"{self.tokens:,.0f} tokens through the model" if self.tokens else "",
            f"{_bytes(self.memory)} of memory beside {'it' if self.tokens else 'the model'}" if self.memory else "",
            f"{_bytes(self.disk)} on disk" if self.disk else "",
            f"about {_duration(self.seconds)}" if self.seconds else "",
        ]
        said = ", ".join(part for part in parts if part)
        return f"{self.work}: {said}." if said else f"{self.work}."


def timed(work: Callable[[], object]) -> float:
    """Time work in seconds: the quickest of three times, or fewer where they take long, since the first also warms up.

    Args:
        work: Work such as one forward pass, by whose time that of the whole is foretold.
    """
    seconds: list[float] = []
    while len(seconds) < TRIALS and (
        sum(seconds) < TRIAL_SECONDS or (len(seconds) == 1 and seconds[0] < WARMING_SECONDS)
    ):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _bytes(number: float | int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB" if number >= 1e6 else "1 MB"


def _duration(seconds: float | int) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} seconds" if seconds >= 1.5 else "1 second"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
