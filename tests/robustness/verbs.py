"""Every function that keeps its work in a folder, called on a tiny model, alone and in two processes at once."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

import langneurons as ln
from langneurons.analysis.texts import LabelledTexts
from langneurons.errors import StorageError
from tests.robustness.artefacts import DOCUMENTS, LANGUAGES, model
from tests.training.small import pairs, questions

FEW: dict[str, Any] = {"resamples": 100, "progress": False}
SMALL: dict[str, Any] = {"context_length": 16, "progress": False}
Verb = Callable[[Path], Any]


@cache
def verbs() -> dict[str, Verb]:
    """The functions by name; each takes a folder."""
    return verbs_of(model())


def verbs_of(tiny: Any) -> dict[str, Verb]:
    """The functions of a model."""
    corpus, task = ln.load_corpus(DOCUMENTS), pairs(9)
    stats = ln.record(tiny, corpus, sites=("act", "post"), **SMALL)
    neurons = ln.NeuronSet.of({"en": [(0, 1), (1, 3)], "hi": [(0, 3)]}, (2, 48), "act")
    text = ln.HeldoutText.of(tiny, corpus, context_length=16)
    texts = LabelledTexts.parallel(
        {name: [f"w{5 + i} w{9 + i}" for i in range(8)] for name in LANGUAGES}, [*"abababab"]
    )
    lora = ln.MaskedLoRA(neurons["hi"], rank=1, attention=())
    patches = {"zero": lambda language: ln.SetTo(neurons[language], 0.0)}
    train = {"conditions": ["none", "source"], "seeds": 1, "steps": 1, "batch_size": 3, "rank": 1, **FEW}
    few_exchanges = {"controls": 0, "permutations": 100, "probe_sizes": (), "progress": False}
    doses = [ln.evaluation.Dose("set", 0)]
    return {
        "record": lambda out: ln.record(tiny, corpus, out=out, **SMALL),
        "perplexity": lambda out: ln.perplexity(tiny, text, out=out, progress=False),
        "perplexity_matrix": lambda out: ln.perplexity_matrix(tiny, text, neurons, out=out, **FEW, controls=0),
        "sweep": lambda out: ln.sweep(tiny, text, neurons, doses, out=out, **FEW),
        "evaluate": lambda out: ln.evaluate(tiny, questions(4), LANGUAGES, patches, out=out, **FEW),
        "factorial": lambda out: ln.factorial(tiny, neurons, stats, questions(4), operations=["set"], out=out, **FEW),
        "ablate": lambda out: ln.ablate(tiny, neurons, text, out=out, **FEW),
        "screen": lambda out: ln.screen(tiny, text, top=2, sample=20, out=out, progress=False),
        "profile": lambda out: ln.profile(tiny, neurons, corpus, k=1, out=out, **SMALL),
        "polysemanticity": lambda out: ln.polysemanticity(tiny, neurons, texts, out=out, **few_exchanges),
        "finetune": lambda out: ln.finetune(tiny, task, lora, steps=1, out=out, progress=False),
        "transfer_experiment": lambda out: ln.transfer_experiment(
            tiny, task, pairs(6, seed=1), neurons, targets=["hi"], out=out, **train
        ),
        "nulls": lambda out: ln.nulls(ln.LAPE(top=0.1), tiny, corpus, out=out, **SMALL),
        "compare_methods": lambda out: ln.compare_methods(
            [ln.LAPE(top=0.1)], tiny, corpus, nulls=(), sample=0, out=out, **SMALL
        ),
    }


def hold_all(folder: Path) -> None:
    """In a process: call every function in a folder of its name, and stay in the first forward pass for ever."""
    models = {name: model.__wrapped__() for name in verbs()}
    calls = {name: verbs_of(own)[name] for name, own in models.items()}  # hooks of one are none of another

    def wait(module: torch.nn.Module, *arguments: Any, **options: Any) -> None:
        (folder / f"{threading.current_thread().name}.begun").touch()
        threading.Event().wait()

    torch.nn.Module.__call__ = wait
    for name, call in calls.items():
        threading.Thread(target=call, args=(folder / name,), name=name, daemon=True).start()
    threading.Event().wait()


def started(function: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def meetings(folder: Path, times: int, seed: int = 0) -> Iterator[tuple[str, list[list[str]]]]:
    """Call every function in one folder from two processes, the second at a random moment of the first.

    Yields:
        The function's name, and what became of each of the two, every time: "done", or the sentence that refused it.
    """
    spawn, random = multiprocessing.get_context("spawn"), Random(seed)
    pipes = [(spawn.Pipe(), spawn.Pipe()) for _ in range(2)]
    workers = [started(answer, orders[1], answers[1]) for orders, answers in pipes]
    for name in verbs():
        longest, outcomes = 0.0, []
        for number in range(times + 1):  # alone at first, to know how long it takes
            began, both = time.monotonic(), pipes[: 1 if number == 0 else 2]
            for place, (orders, _) in enumerate(both):
                orders[0].send((name, str(folder / name / str(number)), place * random.uniform(0, longest)))
            became = [answers[0].recv() for _, answers in both]
            longest = longest or time.monotonic() - began
            outcomes += [became] if number else []
        yield name, outcomes
    for worker in workers:
        worker.kill()
        worker.join()


def answer(orders: Any, answers: Any) -> None:
    """In a process: call the function that is ordered, in the folder and after the time that is ordered."""
    calls = verbs()
    while True:
        name, out, wait = orders.recv()
        time.sleep(wait)
        try:
            calls[name](Path(out))
        except StorageError as error:
            answers.send(str(error))
        else:
            answers.send("done")
