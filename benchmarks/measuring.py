"""Time and memory: ways run in turn in one process, and functions run in a process of their own."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

Way = Callable[[], object]
_PROCESS = Path("/proc/self")
_PAGE = 4096 / 1e6  # MB; memory is seen in pages, and no step takes less than one


@dataclass(frozen=True)
class Settings:
    """How everything is measured.

    Attributes:
        rounds: How often every way is run, one unmeasured round aside.
        tiny: Whether only to see that everything runs; the numbers mean nothing then.
        device: Where the rows of ``benchmarks.gpu`` are measured, or None for nowhere.
    """

    rounds: int = 5
    tiny: bool = False
    device: str | None = None

    def apart(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module in a process of its own, for its memory or its first call; tiny, in this one."""
        if self.tiny:
            return function(*arguments)
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(function, *arguments).result()


def medians(ways: dict[str, Way], rounds: int, device: str = "cpu") -> dict[str, float]:
    """Run every way in turn, round after round, and give each one's median seconds.

    Args:
        ways: By name.
        rounds: Measured rounds; one more comes before them.
        device: Where they run; its queue is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, way in ways.items():
            _wait(device)
            start = time.perf_counter()
            way()
            _wait(device)
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def memory_is_seen(device: str = "cpu") -> bool:
    """Whether memory can be measured: a GPU's always, a process' on Linux."""
    return on_gpu(device) or (_PROCESS / "clear_refs").exists()


def peak(way: Way, device: str = "cpu") -> float:
    """Run something and give the most memory held meanwhile, in MB: the device's, or this process'."""
    if on_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
        way()
        return torch.cuda.max_memory_allocated(device) / 1e6
    (_PROCESS / "clear_refs").write_text("5")  # forgets the peak so far, such as that of imports and loading
    way()
    return _resident("VmHWM")


def added_memory(made: Callable[[str, bool, ExitStack], Way], way: str, tiny: bool) -> float:
    """Give the MB that three steps of a way add to this process at their peak."""
    with ExitStack() as stack:
        step = made(way, tiny, stack)
        before = held()
        return max(_PAGE, peak(lambda: [step() for _ in range(3)]) - before)


def held(device: str = "cpu") -> float:
    """Give the memory that is held at this moment, in MB: the device's, or this process'."""
    return torch.cuda.memory_allocated(device) / 1e6 if on_gpu(device) else _resident("VmRSS")


def on_gpu(device: str) -> bool:
    """Whether a device is a GPU."""
    return torch.device(device).type == "cuda"


def _wait(device: str) -> None:
    if on_gpu(device):
        torch.cuda.synchronize(device)


def _resident(kind: str) -> float:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024 / 1e6
