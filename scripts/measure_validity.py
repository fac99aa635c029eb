"""Is each method's score real? Run every check for every method on one model and write the table.

Usage, from the root of the project: ``python scripts/measure_validity.py texts/ runs/validity --parallel 1700``

Every recording is made once, shared by all methods and kept in the output folder: run again, the script goes on with
what is missing. On babel, 7 languages x 60,000 tokens, six recordings and one second pass take about 20 minutes on two
cores. Written: validity.md, validity.parquet, validity.json, and each check's details beside them.

Recall and FDR on plants come from a tiny model with known neurons (tests/planted_model.py).
"""

import argparse
import json
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
    CHECKS,
    NULLS,
    Check,
    DocumentHeterogeneity,
    Evidence,
    OwnQuantile,
    RedrawnRandom,
    TokenFiring,
    condition,
    firing_by_token,
    halves_by_source,
    nulls_of,
    record_halves,
    record_nulls,
    rerun,
    split_half,
    validity_table,
)
from langneurons.analysis.validity.reliability import Halves, whole
from langneurons.errors import LangNeuronsWarning, StatisticsError
from tests.planted_model import LANGUAGES as PLANTED_LANGUAGES
from tests.planted_model import Planted, planted

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
PLANTED_UNION = {"top": 0.1}


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
    shape = (arguments.tokens, arguments.context, arguments.batch)
    methods = {name: METHODS[name] for name in arguments.methods or METHODS}

    say(f"recording {corpus} and the nulls {', '.join(arguments.nulls)}")
    recorded = record_nulls(model, corpus, *shape, arguments.nulls, seed=arguments.seed, out=out / "recordings")
    say("recording halves by source")
    sources = record_halves(
        model, halves_by_source(corpus), *shape, seed=arguments.seed, out=out / "recordings" / "by-source"
    )
    parallel = recorded_parallel(model, corpus, arguments)
    chosen = {name: method.identify(whole(recorded.real)) for name, method in methods.items()}
    say("counting on which tokens the chosen neurons fire")
    firing = counted(model, corpus, chosen, arguments)
    say("finding what was planted")
    plants = graded_plants(methods)
    selectivity = {} if arguments.selectivity is None else json.loads(arguments.selectivity.read_text("utf-8"))

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
                conditioned=condition(firing, chosen[name]),
                selectivity=selectivity.get(name),
            )
        )
    checks = [
        replace(check, bar=arguments.selectivity_bar) if check.column == "selectivity" else check for check in CHECKS
    ]
    write(evidence, checks, out)
    say(f"wrote {out / 'validity.md'}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="a folder of <language>*.txt in the order of its sources, or 'babel'")
    parser.add_argument("out", type=Path, help="folder for recordings and results")
    parser.add_argument("--model", default="babel")
    parser.add_argument("--backend", default="auto", help="auto, hooked or bridge")
    parser.add_argument("--languages", nargs="+", help="default: all in the folder")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="default: all")
    parser.add_argument("--nulls", nargs="+", choices=NULLS, default=list(NULLS))
    parser.add_argument("--tokens", type=int, default=60_000, help="counted tokens of each language and recording")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--parallel", type=int, help="how many of each language's first documents are parallel")
    parser.add_argument(
        "--selectivity", type=Path, help="JSON file: method -> selectivity of its perplexity matrix, in points"
    )
    parser.add_argument("--selectivity-bar", type=float, default=0.0, help="in points: what matched controls reach")
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


def counted(
    model: torch.nn.Module, corpus: ln.Corpus, chosen: dict[str, ln.NeuronSet], arguments: argparse.Namespace
) -> TokenFiring:
    """One second pass for the neurons of all methods together, kept in the output folder."""
    members = {name: neurons.indices().tolist() for name, neurons in chosen.items()}
    first = next(iter(chosen.values()))
    everyone = ln.NeuronSet.of(members, first.shape, first.site)
    print(f"{len(everyone):,} neurons", file=sys.stderr)
    table, tensors = arguments.out / "firing" / "tokens.parquet", arguments.out / "firing" / "fired.safetensors"
    if table.exists() and tensors.exists():
        stored = storage.read_tensors(tensors)
        firing = TokenFiring(storage.read_table(table), stored["fired"].numpy(), stored["neurons"].numpy())
        if np.isin(flat(everyone), firing.neurons).all() and set(firing.tokens["language"]) == set(corpus.languages):
            return firing
    firing = firing_by_token(
        model, corpus.shuffle(arguments.seed), everyone, arguments.tokens, arguments.context, arguments.batch
    )
    arrays = {"fired": firing.fired, "neurons": firing.neurons}
    storage.write_tensors(tensors, {name: torch.from_numpy(array) for name, array in arrays.items()}, sidecar=True)
    storage.write_table(table, firing.tokens, sidecar=True)
    return firing


def flat(neurons: ln.NeuronSet) -> np.ndarray:
    """Flat indices of all neurons of a set."""
    layers, indices = neurons.indices().numpy().T
    return layers * neurons.shape[1] + indices


def halved(method, real: Halves):
    """Twenty halvings by document where the folds know enough for the method, else the one that was recorded."""
    try:
        return split_half(method, whole(real))
    except StatisticsError:
        return split_half(method, real)


def graded_plants(methods: dict) -> dict[str, dict[str, float]]:
    """Recall of the exclusive plants and FDR, averaged over languages, of methods asked for as many as were planted."""
    truth = planted()
    model = ln.load_model("planted", hf_model=truth.model, tokenizer=truth.tokenizer)
    stats = ln.record(model, ln.load_corpus(truth.documents), context_length=128, progress=False)
    return {name: grades(fitted(method).identify(stats), truth) for name, method in methods.items()}


def fitted(method):
    """The method asked for a share of neurons that suits the planted model."""
    if isinstance(method, ln.LAPE):
        return replace(method, top=0.1, filter_quantile=0.75)
    return replace(method, top=0.1 if isinstance(method, ln.identification.EntropyLambda) else PLANTED_TOP)


def grades(neurons: ln.NeuronSet, truth: Planted) -> dict[str, float]:
    """Recall of the neurons that fire in one language only, and the share of named neurons that belong to none."""
    recall, wrong = [], []
    for language in PLANTED_LANGUAGES:
        named = {(layer, index) for layer, index in neurons[language].indices().tolist()}
        exclusive = truth.truth(language, ("exclusive",))
        recall.append(len(named & exclusive) / len(exclusive))
        if named:
            wrong.append(1 - len(named & truth.truth(language)) / len(named))
    return {"recall": float(np.mean(recall)), "fdr": float(np.mean(wrong)) if wrong else float("nan")}


def write(evidence: list[Evidence], checks: list[Check], out: Path) -> None:
    """The table, and the details of every check."""
    validity_table(evidence, checks).save(out)
    named = [(one.method, one) for one in evidence]
    details = {
        "split_half": [(name, one.split_half.table) for name, one in named if one.split_half is not None],
        "by_source": [(name, one.by_source.table) for name, one in named if one.by_source is not None],
        "parallel": [(name, one.parallel.table) for name, one in named if one.parallel is not None],
        "nulls": [(name, one.nulls.table) for name, one in named if one.nulls is not None],
        "nulls_per_language": [(name, one.nulls.per_language) for name, one in named if one.nulls is not None],
        "conditioned": [(name, one.conditioned) for name, one in named if one.conditioned is not None],
    }
    for name, tables in details.items():
        if tables:
            rows = [table.assign(method=method) for method, table in tables]
            storage.write_table(out / "details" / f"{name}.parquet", pd.concat(rows, ignore_index=True))


if __name__ == "__main__":
    main()
