"""`make soak`: 200 steps of mixed work that must not leak, loaders fuzzed, steps killed, folders fought over.

Every kind of result is forged a thousand times, and shown in a browser with an attack in every text; NaN and overflow
go through every verb.

python -m scripts.soak [fuzz | forge | browser | kill | twice | numbers | steps] ...    all without an argument, each in
a process of its own, so that one that dies or hangs is a failure and the others still run; exit status 1 when one fails
"""

import ctypes
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from tests.robustness.fuzzing import Outcome

STEPS, WARM_UP = int(os.environ.get("SOAK_STEPS", "200")), 60
GROWTH_MB = 8.0  # over the steps after the warm-up: less is the allocator's
SEED = int(os.environ.get("SOAK_SEED", "0"))
MUTATIONS = int(os.environ.get("SOAK_MUTATIONS", "600"))  # of an artefact
KILLS = int(os.environ.get("SOAK_KILLS", "10"))  # of a kind of step
FORGERIES = int(os.environ.get("SOAK_FORGERIES", "1000"))  # of a kind of result
MEETINGS = 5  # of two processes in the folder of each function
LONGEST_S = int(os.environ.get("SOAK_LONGEST_S", "7200"))  # of a part; one that hangs does not keep the others waiting
EVERY = int(os.environ.get("SOAK_EVERY", "1"))  # of so many cases one is tried: odd, or some damages are never met


def soak() -> bool:
    """Do the work of all rooms again and again; whether memory and open handles stay as they are."""
    import langneurons as ln
    from tests.robustness.artefacts import DOCUMENTS, LANGUAGES, model
    from tests.training.small import pairs, questions

    tiny, task, questions_task = model(), pairs(24), questions(8)
    corpus = ln.load_corpus(DOCUMENTS)
    stats = ln.record(tiny, corpus, context_length=16, progress=False)
    neurons = ln.LAPE(top=0.1, filter_quantile=0.5).identify(stats)
    patch = ln.SetTo(neurons["hi"], 0.0)
    quiet = {"progress": False}

    def generate(folder: Path) -> None:
        with ln.intervene(tiny, patch):
            tiny.generate(tiny.to_tokens("w3 w4 w5"), max_new_tokens=4, do_sample=False, verbose=False)

    def finetune(folder: Path) -> None:
        update = ln.MaskedLoRA(neurons["hi"], rank=2, targets=("gate",), attention=())
        ln.finetune(tiny, task, update, steps=4, batch_size=4, out=folder, **quiet).save(folder / "saved")
        ln.training.Finetuned.load(folder / "saved")

    def report(folder: Path) -> None:
        ln.write_report(folder / "report.html", ln.Findings("Soak", stats=stats, neurons={"lape": neurons}))

    work: dict[str, Callable[[Path], object]] = {
        "record": lambda folder: ln.record(tiny, corpus, context_length=16, out=folder, **quiet),
        "identify": lambda folder: ln.LAPE(top=0.1, filter_quantile=0.5).identify(stats).save(folder / "n.json"),
        "generate": generate,
        "perplexity": lambda folder: ln.perplexity_matrix(
            tiny,
            ln.HeldoutText.of(tiny, corpus, context_length=16),
            neurons,
            controls=2,
            resamples=100,
            out=folder,
            **quiet,
        ).save(folder / "matrix"),
        "evaluate": lambda folder: ln.evaluate(
            tiny, questions_task, LANGUAGES, patches={"zero": patch}, resamples=100, **quiet
        ).save(folder),
        "ablate": lambda folder: ln.ablate(
            tiny, neurons["hi"], corpus, value=0.0, resamples=100, out=folder, **quiet
        ).save(folder / "saved"),
        "probe": lambda folder: ln.polysemanticity(
            tiny, neurons, task, controls=0, permutations=100, probe_sizes=(1,), out=folder, **quiet
        ).save(folder / "saved"),
        "finetune": finetune,
        "report": report,
        "load": lambda folder: ln.load_corpus(_texts(folder, DOCUMENTS)),
    }
    return _judged(pd.DataFrame(list(_measured(work))))


def _texts(folder: Path, documents: dict[str, list[str]]) -> Path:
    for language, texts in documents.items():
        (folder / f"{language}.txt").write_text("\n".join(texts))
    return folder


def _measured(work: dict[str, Callable[[Path], object]]) -> Iterator[dict[str, float]]:
    for step, name in enumerate((list(work) * STEPS)[:STEPS], start=1):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work[name](Path(folder))
        if step % len(work) == 0:
            yield {"step": step, **_held()}


def _held() -> dict[str, float]:
    """What the process holds after a collection: memory, open files, mapped files, threads."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    return {
        "rss_mb": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20,
        "handles": len(os.listdir("/proc/self/fd")),
        "mapped": len(maps),
        "threads": len(os.listdir("/proc/self/task")),
        "objects": len(gc.get_objects()),
    }


def _judged(held: pd.DataFrame) -> bool:
    print(held.round(1).to_string(index=False))
    after = held[held["step"] > WARM_UP]
    slope = float(np.polyfit(after["step"], after["rss_mb"], 1)[0])
    growth = slope * (STEPS - WARM_UP)
    more = {name: int(after[name].iloc[-1] - after[name].iloc[0]) for name in ("handles", "mapped", "threads")}
    print(f"after {WARM_UP} steps: memory {growth:+.1f} MB by a fitted line (at most {GROWTH_MB:g}), {more}")
    return growth <= GROWTH_MB and all(count <= 0 for count in more.values())


def fuzz() -> bool:
    """Damage every kind of artefact."""
    from tests.robustness.artefacts import ARTEFACTS, model
    from tests.robustness.fuzzing import fuzz as fuzzed

    model()  # loaded once, before the processes fork
    return _tried(fuzzed, {name: round(MUTATIONS * artefact.share) for name, artefact in ARTEFACTS.items()})


def forge() -> bool:
    """Edit and seal again every kind of result, and use it."""
    from tests.robustness.forging import forged
    from tests.robustness.results import RESULTS

    return _tried(forged, dict.fromkeys(RESULTS, FORGERIES))


def browser() -> bool:
    """Show every kind of result, with an attack in every text, in a real browser."""
    tests = [sys.executable, "-m", "pytest", "-q", "-rs", "tests/browser/test_results.py"]
    return subprocess.run(tests, check=False).returncode == 0


def _tried(attempt: Callable[[str, int, int, Path], "Outcome"], counts: dict[str, int]) -> bool:
    """Damage artefacts or results, each kind in a process of its own, so that a crash is seen."""

    def work(name: str, count: int, folder: str, answer: Connection) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = attempt(name, SEED, count, Path(folder))
        answer.send((outcome.counts, outcome.failures))

    rows, failures, forking = [], [], multiprocessing.get_context("fork")
    for name, count in counts.items():
        begun = time.monotonic()
        answer, ask = forking.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:
            process = forking.Process(target=work, args=(name, count, folder, ask))
            process.start()
            ask.close()
            try:
                outcomes, failed = answer.recv()
            except EOFError:
                process.join()
                outcomes, failed = {}, [f"{name}: the process ended with {process.exitcode}"]
            process.join()
        failures += failed
        rows.append({"kind": name, **outcomes, "seconds": time.monotonic() - begun})
        print(rows[-1], *failed, sep="\n", flush=True)
    table = pd.DataFrame(rows).fillna(0)
    counted = table.drop(columns=["kind", "seconds"]).astype(int)
    print(table.round(1).to_string(index=False), f"\n{counted.to_numpy().sum():,} tries: {counted.sum().to_dict()}")
    return not failures


def kill() -> bool:
    """Kill every kind of step at random moments, and compare what comes of it with an unkilled run."""
    from tests.robustness.killing import STEPS as kinds
    from tests.robustness.killing import killed

    fine = True
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            found = killed(kind, Path(folder), KILLS, seed=SEED)
        print(f"{kind}: {found}", flush=True)
        fine &= found.equal and not found.orphans
    return fine


def twice() -> bool:
    """Call every function in one folder from two processes: one works, the other is refused or finds it done."""
    from tests.robustness.verbs import meetings

    fine = True
    with tempfile.TemporaryDirectory() as folder:
        for name, pairs in meetings(Path(folder), MEETINGS, SEED):
            answers = [answer for pair in pairs for answer in pair]
            print(f"{name}: {dict(Counter(answer.partition(' in ')[0] for answer in answers))}", flush=True)
            fine &= all("done" in pair for pair in pairs)
            fine &= all(answer == "done" or answer.startswith("Another process is ") for answer in answers)
    return fine


def numbers() -> bool:
    """Put numbers that are not finite, or too large, into a model, and call every verb."""
    from tests.robustness.numbers import DAMAGES, DTYPES, PLACES, VERBS, Outcome, attempt

    cases = itertools.product(VERBS, DTYPES, PLACES, DAMAGES)
    rows, failures = [], []
    for verb, of_verb in itertools.groupby(itertools.islice(cases, 0, None, EVERY), key=lambda case: case[0]):
        outcome, begun = Outcome(), time.monotonic()
        for case in of_verb:
            attempt(*case, outcome)
        failures += outcome.failures
        rows.append({"verb": verb, **outcome.counts, "seconds": time.monotonic() - begun})
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows).fillna(0)
    counted = table.drop(columns=["verb", "seconds"]).astype(int)
    print(table.round(1).to_string(index=False), f"\n{counted.to_numpy().sum():,} cases: {counted.sum().to_dict()}")
    print("\n".join(failures))
    return not failures


@contextmanager
def _own_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="langneurons-soak-") as folder:
        os.environ |= {"HF_DATASETS_CACHE": folder, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        yield


def _apart(name: str) -> str:
    """Run a part in processes of its own, which end with it, and say what came of it."""
    begun = time.monotonic()
    part = subprocess.Popen([sys.executable, "-m", "scripts.soak", name], start_new_session=True)
    try:
        came = "fine" if part.wait(LONGEST_S) == 0 else "FAILED"
    except subprocess.TimeoutExpired:
        came = f"FAILED, stopped after {LONGEST_S} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(part.pid, signal.SIGKILL)
    return f"{name}: {came} ({time.monotonic() - begun:.0f} s)"


PARTS = {
    "fuzz": fuzz,
    "forge": forge,
    "browser": browser,
    "kill": kill,
    "twice": twice,
    "numbers": numbers,
    "steps": soak,
}

if __name__ == "__main__":
    names = sys.argv[1:] or list(PARTS)
    if wrong := [name for name in names if name not in PARTS]:
        sys.exit(f"There is no part {wrong[0]!r}: possible are {', '.join(PARTS)}.")
    with _own_cache():
        if len(names) == 1:
            results = [f"{names[0]}: {'fine' if PARTS[names[0]]() else 'FAILED'}"]
        else:
            results = [_apart(name) for name in names]
    print(*results, sep="\n")
    sys.exit(any("FAILED" in result for result in results))
