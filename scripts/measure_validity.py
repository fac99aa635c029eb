"""Is each method's score real? Run every check for every method on one model and write the table.

Usage, from the root of the project: ``python scripts/measure_validity.py articles/ runs/validity``

Every recording is made once, shared by all methods and kept in the output folder: run again, the script goes on with
what is missing. Written: validity.md, validity.parquet, validity.json, and each check's details beside them.

Recall and FDR on plants come from a tiny model with known neurons (tests/planted/model.py).
"""

import argparse
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the planted model of the tests

import langneurons as ln
from langneurons import storage
from langneurons.analysis.validity import (
    NULLS,
    DocumentHeterogeneity,
    Evidence,
    OwnQuantile,
    RedrawnRandom,
    nulls_of,
    record_halves,
    record_nulls,
    rerun,
    split_half,
    validity_table,
)
from langneurons.analysis.validity.reliability import Halves, whole
from langneurons.errors import LangNeuronsWarning, StatisticsError
from tests.planted.model import LANGUAGES as PLANTED_LANGUAGES
from tests.planted.model import PlantedModel, planted_model

METHODS = {
    "LAPE": ln.LAPE(),
    "LAPE, the paper's variant": ln.LAPE.mondal(),
    "EntropyLambda": ln.identification.EntropyLambda(),
    "ActivationProbability > 0": ln.ActivationProbability(),
    "ActivationProbability > pooled-p90": ln.ActivationProbability(threshold="pooled-p90"),
    "MeanActivation": ln.identification.MeanActivation(),
    "MeanDifference": ln.MeanDifference(),
    "TokenAP": ln.identification.TokenAP(),
    "AUROC": ln.AUROC(),
    "Random, the same for every text": ln.Random(top=0.00125),
    "Random, drawn anew for every text": RedrawnRandom(),
    "the language's own P90": OwnQuantile(),
    "document heterogeneity": DocumentHeterogeneity(),
}
PLANTED_TOP = 0.04  # of 320 neurons, as many a language as were planted


def main() -> None:
    """Run the checks that are asked for."""
    arguments = parsed()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{(time.monotonic() - started) / 60:5.1f} min] {text}", file=sys.stderr, flush=True)

    warnings.simplefilter("ignore", LangNeuronsWarning)
    out: Path = arguments.out
    model = ln.load_model(arguments.model, backend=arguments.backend)
    corpus = ln.load_corpus(arguments.texts, arguments.languages)
    shape = {
        "tokens_per_language": arguments.tokens,
        "context_length": arguments.context,
        "batch_size": arguments.batch,
        "seed": arguments.seed,
    }
    methods = {name: METHODS[name] for name in arguments.methods or METHODS}

    say(f"recording {corpus} and the nulls {', '.join(arguments.nulls)}")
    recorded = record_nulls(model, corpus, which=arguments.nulls, out=out / "recordings", **shape)
    say("recording halves by source")
    sources = record_halves(model, halves_by_source(corpus), out=out / "recordings" / "by-source", **shape)
    parallel = recorded_parallel(model, corpus, arguments)
    say("finding what was planted")
    plants = graded_plants(methods)

    evidence = []
    for name, method in methods.items():
        say(f"judging {name}")
        evidence.append(
            Evidence(
                method=name,
                **plants[name],
                split_half=halved(method, recorded.real),
                by_source=split_half(method, sources),
                parallel=None if parallel is None else rerun(method, whole(recorded.real), parallel),
                nulls=nulls_of(method, recorded.real, recorded.nulls),
            )
        )
    write(evidence, out)
    say(f"wrote {out / 'validity.md'}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="a folder of texts in the order of their sources, or 'babel'")
    parser.add_argument("out", type=Path, help="folder for recordings and results")
    parser.add_argument("--model", default="babel")
    parser.add_argument("--backend", default="auto", help="auto, hooked or bridge")
    parser.add_argument("--languages", nargs="+", help="default: all in the folder")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="default: all")
    parser.add_argument("--nulls", nargs="+", choices=NULLS, default=list(NULLS))
    parser.add_argument("--tokens", type=int, default=10_000, help="counted tokens of each language and recording")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--parallel", type=int, help="how many of each language's first documents are parallel")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def recorded_parallel(
    model: torch.nn.Module, corpus: ln.Corpus, arguments: argparse.Namespace
) -> ln.ActivationStats | None:
    """The recording of parallel text, as much as there is of it, up to the budget."""
    if arguments.parallel is None:
        return None
    parallel = corpus.take(arguments.parallel)
    out = arguments.out / "recordings" / "parallel"
    return ln.record(model, parallel, context_length=arguments.context, batch_size=arguments.batch, out=out)


def halves_by_source(corpus: ln.Corpus) -> tuple[ln.Corpus, ln.Corpus]:
    """Divide each language's sources into two groups of about equally many characters.

    Where the text does not say its sources, its documents are cut in the order in which they come, which is to be that
    of their sources. The halves are of different sources, which halves of ``corpus.split`` are not.
    """
    halves = [{}, {}]
    for language, table in corpus.tables.items():
        characters = np.array([len(text) for text in table["text"]])
        source_of = corpus.groups(language, "source")
        sizes = np.bincount(source_of, weights=characters)
        second = ((np.cumsum(sizes) - sizes / 2) * 2 >= sizes.sum())[source_of]
        for half, places in zip(halves, (~second, second), strict=True):
            half[language] = table.select(np.flatnonzero(places))
    return ln.Corpus(halves[0]), ln.Corpus(halves[1])


def halved(method, real: Halves):
    """Twenty halvings by document where the folds know enough for the method, else the one that was recorded."""
    try:
        return split_half(method, whole(real))
    except StatisticsError:
        return split_half(method, real)


def graded_plants(methods: dict) -> dict[str, dict[str, float]]:
    """Recall of the exclusive plants and FDR, averaged over languages, of methods asked for as many as were planted."""
    truth = planted_model()
    stats = ln.record(truth.model(), truth.corpus(), context_length=128, progress=False)
    return {name: grades(fitted(method).identify(stats), truth) for name, method in methods.items()}


def fitted(method):
    """The method asked for a share of neurons that suits the planted model."""
    if isinstance(method, ln.LAPE):
        return replace(method, top=0.1, filter_quantile=0.75)
    return replace(method, top=0.1 if isinstance(method, ln.identification.EntropyLambda) else PLANTED_TOP)


def grades(neurons: ln.NeuronSet, truth: PlantedModel) -> dict[str, float]:
    """Recall of the neurons that fire in one language only, and the share of named neurons that belong to none."""
    recall, wrong = [], []
    for language in PLANTED_LANGUAGES:
        named = {(layer, index) for layer, index in neurons[language].indices().tolist()}
        exclusive = truth.of(language, ("exclusive",))
        recall.append(len(named & exclusive) / len(exclusive))
        if named:
            wrong.append(1 - len(named & truth.of(language)) / len(named))
    return {"recall": float(np.mean(recall)), "fdr": float(np.mean(wrong)) if wrong else float("nan")}


def write(evidence: list[Evidence], out: Path) -> None:
    """The table, and the details of every check."""
    validity_table(evidence).save(out)
    named = [(one.method, one) for one in evidence]
    details = {
        "split_half": [(name, one.split_half.rows) for name, one in named if one.split_half is not None],
        "by_source": [(name, one.by_source.rows) for name, one in named if one.by_source is not None],
        "parallel": [(name, one.parallel.rows) for name, one in named if one.parallel is not None],
        "nulls": [(name, one.nulls.rows) for name, one in named if one.nulls is not None],
        "nulls_per_language": [(name, one.nulls.per_language) for name, one in named if one.nulls is not None],
    }
    for name, tables in details.items():
        if tables:
            rows = [table.assign(method=method) for method, table in tables]
            storage.write_table(out / "details" / f"{name}.parquet", pd.concat(rows, ignore_index=True))


if __name__ == "__main__":
    main()
