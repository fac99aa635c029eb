"""Features against neurons: which are more selective for language, and which for a task's labels?

Usage, from the root of the project, once ``train_dictionary.py`` has run::

    python scripts/measure_features.py texts/ runs/dictionaries runs/features

At the layers that dictionaries were trained on, four kinds of units are compared: the dictionary's features, the MLP's
neurons (``act``), coordinates of the residual stream (a basis that means nothing: the control), and features of a
random dictionary of the same shape, which are as sparse but learned nothing. Written: features.parquet, with the means
over units that change at all, weighted equally and by their variance, of what language, the task's label and their
interaction explain (type II), and the mean share of a unit's firing that is in the language where it fires most
(languages weighted equally: 1 is a unit of one language, 1 / languages a unit of none).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import langneurons as ln
from langneurons import storage
from langneurons.analysis.decomposition import Decomposition
from langneurons.analysis.reading import decompose
from langneurons.models.dictionaries import SparseDictionary, add_dictionary, remove_dictionary

SOURCES = ("language", "task", "interaction")


def main() -> None:
    """Record, decompose and compare."""
    arguments = parsed()
    torch.manual_seed(arguments.seed)
    model = ln.load_model(arguments.model)
    trained = {int(folder.name[5:]): SparseDictionary.load(folder) for folder in arguments.dictionaries.glob("layer*")}
    trained = dict(sorted(trained.items()))
    add_dictionary(model, trained, name="features")
    add_dictionary(model, {layer: random_like(dictionary) for layer, dictionary in trained.items()}, name="random")
    task = ln.XNLI.load(arguments.task)
    corpus = ln.load_corpus(arguments.texts)
    sites = {"features": range(len(trained)), "random": range(len(trained)), "act": trained, "resid_post": trained}
    stats = ln.record(model, corpus, tokens_per_language=arguments.tokens, context_length=256, sites=tuple(sites))
    rows = []
    for site, places in sites.items():
        parts = decompose(model, task, site=site, position=arguments.position, max_items=arguments.items)
        for place, layer in zip(places, trained, strict=True):
            rows.append({"layer": layer, "units": site, **described(parts, stats.at(site), place)})
    remove_dictionary(model, "features")
    remove_dictionary(model, "random")
    table = pd.DataFrame(rows).sort_values("layer", kind="stable")
    storage.write_table(arguments.out / "features.parquet", table)
    print(table.round(3).to_string(index=False), file=sys.stderr)


def random_like(dictionary: SparseDictionary) -> SparseDictionary:
    """A dictionary of the same shape, as it is before it is trained, centred where the trained one is."""
    untrained = SparseDictionary(dictionary.cfg).requires_grad_(False)
    untrained.b_dec.copy_(dictionary.b_dec)
    return untrained


def described(parts: Decomposition, stats: ln.ActivationStats, place: int) -> dict[str, float]:
    """What the units of one layer carry."""
    variance = torch.from_numpy(parts.squares["total"])[place]
    changing = variance > 0
    numbers: dict[str, float] = {"n": len(changing), "changing": int(changing.sum())}
    for source, share in shares(parts, place):
        numbers[source] = float(share[changing].mean())
        numbers[f"{source}, by variance"] = float((share * variance).sum() / variance.sum())
    if stats.site not in ("resid_post", "head"):
        p = stats.probability()[:, place]
        firing = p.sum(0) > 0
        numbers["firing in one language"] = float((p.amax(0) / p.sum(0))[firing].mean())
    return numbers


def shares(parts: Decomposition, place: int) -> Iterator[tuple[str, Tensor]]:
    """Each source's share of the variance of one layer's units."""
    for source in SOURCES:
        yield source, parts.share(source)[place]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("dictionaries", type=Path, help="holds layer<l> folders")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="babel")
    parser.add_argument("--task", default="babel", help="as ln.XNLI.load takes it")
    parser.add_argument("--position", choices=["mean", "last"], default="mean", help="a unit's value on a text")
    parser.add_argument("--items", type=int, default=None, help="how many; all by default")
    parser.add_argument("--tokens", type=int, default=20_000, help="of each language, to see where units fire")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
