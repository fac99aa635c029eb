"""Measure on real data what patches do to XNLI, XQuAD and generation, in the sound and in the published protocol.

Usage, from the root of the project:

    python scripts/measure_tasks.py tasks DATA runs/real --out runs/tasks
    python scripts/measure_tasks.py protocols DATA runs/real --out runs/protocols

``DATA`` holds ``text/<language>.heldout.txt``, ``xnli/{dev,test}-<language>.tsv`` and ``xquad/xquad.<language>.json``;
the statistics are of other text. Every condition is kept in the output folder, and the same command resumes from there.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import langneurons as ln
from langneurons.replication.neurons import act_prob_90p_neurons, published_patch
from langneurons.replication.protocols import compare_protocols
from langneurons.replication.statistics import published_statistics

SOURCE = "en"


def main() -> None:
    """Measure one thing."""
    arguments = parsed()
    stats = ln.ActivationStats.load(arguments.statistics)
    model = ln.load_model(arguments.model, backend=arguments.backend)
    {"tasks": tasks, "protocols": protocols}[arguments.what](model, stats, arguments)


def tasks(model, stats: ln.ActivationStats, arguments: argparse.Namespace) -> None:
    """XNLI by likelihood and by head, XQuAD and generation, with three patches, controls and effects."""
    neurons = ln.LAPE(top=0.01).identify(stats)
    patches = {
        "zero": lambda language: ln.SetTo(neurons[language], 0.0),
        "mean": lambda language: ln.SetTo(neurons[language], stats[language].mean()),
        "p90": lambda language: ln.SetTo(neurons[language], stats[language].quantile(0.9)),
    }
    xnli = ln.XNLI.load(arguments.data / "xnli", stats.languages)
    measured_tasks = [
        xnli.take(200).with_head(fitted_head(model, arguments, premises=830)),
        xquad(arguments.data, stats.languages).take(48),
        prompts(arguments.data, stats, 60, max_new_tokens=24, min_new_tokens=16),
        ln.XNLI.load(arguments.data / "xnli", ["en", "vi", "zh", "hi"]).take(30),  # likelihood takes its time
    ]
    for task in measured_tasks:
        evaluation = ln.evaluate(
            model, task, None, patches, controls=arguments.controls, stats=stats, out=arguments.out, batch_size=16
        )
        report(evaluation, arguments.out / f"{task.name}-{task.protocol}")


def protocols(model, stats: ln.ActivationStats, arguments: argparse.Namespace) -> None:
    """The published interventions on the published neurons, judged in both protocols."""
    languages = ["vi", "hi", "zh"]
    text = ln.load_corpus(arguments.data / "text", languages).shuffle(0)
    published = published_statistics(model, text, tokens_per_language=40_000)
    neurons = act_prob_90p_neurons(published)
    kinds = ("mean_mu_act", "mean_p90_act", "mean_p10_act", "zero")
    patches = {kind: lambda language, kind=kind: published_patch(neurons, published, language, kind) for kind in kinds}
    xnli = ln.XNLI.load(arguments.data / "xnli", stats.languages).take(150)
    development = ln.XNLI.load(arguments.data / "xnli", [SOURCE], split="validation")
    theirs = ln.tasks.ClassificationHead.fit(model, development.take(400), [SOURCE], 16, position="padding")
    compared = [xnli.with_head(fitted_head(model, arguments, 400)), xquad(arguments.data, stats.languages).take(96)]
    for task in compared:
        comparison = compare_protocols(model, task, patches, languages, theirs, out=arguments.out, batch_size=16)
        comparison.save(arguments.out / task.name)
        print(comparison, flush=True)


def fitted_head(model, arguments: argparse.Namespace, premises: int) -> ln.tasks.ClassificationHead:
    """A head fitted on the source language's development set, kept in the output folder."""
    folder = arguments.out / f"head-{premises}"
    if folder.is_dir():
        return ln.tasks.ClassificationHead.load(folder, model)
    development = ln.XNLI.load(arguments.data / "xnli", [SOURCE], split="validation").take(premises)
    head = ln.tasks.ClassificationHead.fit(model, development, [SOURCE], batch_size=16)
    head.save(folder)
    return head


def xquad(data: Path, languages) -> ln.XQuAD:
    """XQuAD in the languages it has."""
    return ln.XQuAD.load(data / "xquad", [name for name in languages if (data / f"xquad/xquad.{name}.json").exists()])


def prompts(data: Path, stats: ln.ActivationStats, documents: int = 100, **options: Any) -> ln.tasks.Generation:
    """English beginnings: is the language of what follows forced?"""
    corpus = ln.load_corpus(data / "text", stats.languages, split="heldout").shuffle(0)
    return ln.tasks.Generation.of(corpus, source=SOURCE, documents=documents, **options)


def report(evaluation: ln.evaluation.Evaluation, folder: Path) -> None:
    """Keep an evaluation and print it."""
    evaluation.save(folder)
    print(evaluation, flush=True)
    print(evaluation.effects().to_markdown(), flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tasks", "protocols"])
    parser.add_argument("data", type=Path)
    parser.add_argument("statistics", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="babel")
    parser.add_argument("--backend", default="bridge", help="auto, hooked or bridge")
    parser.add_argument("--controls", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
