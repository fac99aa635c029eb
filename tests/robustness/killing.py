"""Kills a study while a kind of step runs, again and again, and compares what comes of it with an unkilled run.

Everything runs in children of a server that imported what they need: so a kill lands in the work, not in imports. The
server itself computes nothing, because what has used OpenMP cannot be forked.
"""

import contextlib
import io
import multiprocessing
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from langneurons.study.config import parse_config
from langneurons.study.study import Study
from tests.robustness.commands import prepared

STEPS = ("record", "identify", "matrix", "evaluate", "ablate", "polysemanticity", "transfer", "profile", "report")


@dataclass(frozen=True)
class Killed:
    """What came of kills.

    Attributes:
        kills: How many hit the study at work.
        equal: Whether every step was done in the end, with the files of an unkilled run.
        failed: Why steps were not done.
        orphans: Files that an unkilled run does not leave, hidden ones too.
    """

    kills: int
    equal: bool
    failed: tuple[str, ...]
    orphans: tuple[str, ...]


def study_of(at: Path, kinds: tuple[str, ...] = STEPS) -> dict[str, Any]:
    """A study of seconds on a tiny model, with some kinds of step; ``at`` is a prepared folder."""
    content: dict[str, Any] = {
        "name": "tiny",
        "models": {"tiny": {"name": str(at / "model")}},
        "text": {
            "source": str(at / "texts"),
            "heldout_tokens": 60,
            "heldout_context": 16,
        },
        "recording": {"context_length": 16},
        "sets": {"two": ["en", "hi"]},
        "methods": {"lape": {"method": "lape", "top": 0.1, "filter_quantile": 0.5}},
        "patches": {"zero": {"write": 0}},
        "report": {"profiles": 2 if "profile" in kinds else 0},
    }
    if "matrix" in kinds:
        content["matrix"] = {"controls": 0}
    if {"evaluate", "polysemanticity"} & set(kinds):
        source = {"kind": "xquad", "source": str(at / "questions"), "split": "validation"}
        content["tasks"] = {"asked": {**source, "max_new_tokens": 4, "items": 9}}
    if "ablate" in kinds:
        content["ablation"] = {}
    if "polysemanticity" in kinds:
        content["polysemanticity"] = {"task": "asked", "controls": 0, "probing": {"permutations": 100}}
    if "transfer" in kinds:
        experiment = {"seeds": 2, "attention": [], "conditions": ["none", "source"], "targets": ["hi"]}
        part = {"source": str(at / "items"), "training": {"steps": 3, "batch_size": 3}, "experiment": experiment}
        content["transfer"] = {"pairs": part}
    return content


def killed(kind: str, folder: Path, kills: int, seed: int = 0) -> Killed:
    """Kill a study ``kills`` times while steps of one kind run, and finish it.

    Args:
        kind: Of ``STEPS``.
        folder: To work in.
        kills: How often.
        seed: Of the moments.
    """
    in_child(prepared, folder / "at").join()
    content = study_of(folder / "at", (kind,))
    in_child(run_study, content, folder / "whole").join()
    whole = Study(parse_config(content), folder / "whole")
    length = sum(seconds for name, seconds in whole.folder.seconds_by_name().items() if name.startswith(kind))
    random, hit = Random(f"{kind} {seed}"), 0
    run = folder / "run"
    for _ in range(kills):
        hit += _killed_once(content, run, kind, random.uniform(0, max(length, 0.05)))
    in_child(run_study, content, run).join()
    resumed = Study(parse_config(content), run)
    resumed.check()
    left = resumed.status().query("state != 'done'")
    orphans = sorted(_files(run) - _files(folder / "whole") - {f"begun-{kind}"})
    return Killed(hit, resumed.files() == whole.files() and left.empty, tuple(left["why"]), tuple(orphans))


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _killed_once(content: dict[str, Any], run: Path, kind: str, after: float) -> bool:
    """Let a child run the study, and kill it some time after it began a step of the kind; whether it was at work."""
    study = Study(parse_config(content), run)
    for step in study.status().query("state == 'done'")["step"]:
        if step.startswith(kind):  # it escaped, and is to be killed from its beginning on
            shutil.rmtree(study.path(step))
            shutil.rmtree(run / "work", ignore_errors=True)
    (run / f"begun-{kind}").unlink(missing_ok=True)
    child = in_child(run_study, content, run)
    while child.is_alive() and not (run / f"begun-{kind}").exists():
        time.sleep(0.01)
    child.join(after)
    at_work = child.is_alive()
    child.kill()
    child.join()
    return at_work


def in_child(function: Any, *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start a function in a process that has imported what it needs."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["langneurons.study.study", __name__])
    child = server.Process(target=function, args=arguments)
    child.start()
    return child


def run_study(content: dict[str, Any], run: Path) -> None:
    """Run a study, and leave a file ``begun-KIND`` where a step of that kind has begun."""
    study = Study(parse_config(content), run)

    def say(line: str) -> None:
        if line.endswith("...") and (kind := line.split("] ")[1].split("/")[0].split(" ")[0]) in STEPS:
            (run / f"begun-{kind}").touch()

    with contextlib.redirect_stderr(io.StringIO()):
        study.run(say=say, progress=False)
