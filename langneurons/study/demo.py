"""The whole study in small: record the phrasebook on babel, name each language's neurons, patch them, show it all."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pandas as pd
import torch

import langneurons as ln
from langneurons.tasks import completions
from langneurons.tasks.answers import identify
from langneurons.views.findings import of_matrix

TOP = 0.01
HELDOUT_TOKENS = 600
CONTROLS = 2
PAGES = 70  # neurons that get one
TEXTS = 80  # a language that their pages choose from
STEERED = ("hi", "zh", "fr")
STRENGTH = 0.35  # of the difference of means, at every layer: less leaves French out, more repeats itself
PROMPTS = ("The weather today is", "My grandmother lives in", "The children went to")
BEGINNINGS = 20
DOSE_TOKENS = 200  # of English, on which doses are made equal


def run_demo(out: Path) -> str:
    """Run the demo and return what to tell the user.

    Args:
        out: Folder for the statistics, the neuron sets and the page.

    Returns:
        A readable summary, the files' places, and what to try next.
    """
    model, corpus = ln.load_model("babel"), ln.load_corpus("babel")
    train, heldout = corpus.split(heldout=0.3, seed=0)
    recorded = ln.record(model, train, context_length=256, sites=("act", "resid_post"), out=out / "statistics")
    stats = recorded.at("act")
    lape = ln.LAPE(top=TOP).identify(stats)
    pooled = ln.ActivationProbability(threshold="pooled-p90", top=TOP / len(stats.languages)).identify(stats)
    lape.save(out / "neurons.lape.json")
    pooled.save(out / "neurons.pooled-p90.json")
    summary = summarise(stats, lape, pooled)
    text = ln.HeldoutText.of(model, heldout, HELDOUT_TOKENS, context_length=128)
    matrix = ln.perplexity_matrix(model, text, lape, controls=CONTROLS, stats=stats, out=out / "matrix")
    matrix.save(out / "matrix" / "effects")
    neurons = lape.clearest(stats, PAGES)
    profiles = ln.profile(model, neurons, train, stats, k=3, documents=TEXTS)
    profiles.save(out / "profiles")
    resolution, concluded = detectable(stats), list(of_matrix(matrix))
    sides, shares = steering(model, heldout, recorded, lape)
    page = ln.write_report(
        out / "index.html",
        ln.Findings(
            "Which neurons of babel belong to which language?",
            sure=[resolution],
            stats=stats,
            neurons={"LAPE": lape, "pooled-p90": pooled},
            matrix=matrix,
            profiles=profiles,
            provenance=[introduction(stats)],
            config="langneurons demo",
        ),
    )
    return "\n".join(
        [
            "",
            summary.to_string(index=False),
            "",
            f"LAPE {len(lape)} neurons, pooled-p90 {len(pooled)}, Jaccard overlap {_jaccard(lape, pooled):.2f}.",
            resolution,
            *concluded,
            "",
            "How the model goes on (the residual stream moved towards a language at every layer):",
            *(f"  {prompt} ...\n{_listed(sides[prompt].to_dict())}" for prompt in sides),
            "",
            f"How many of {BEGINNINGS} other English beginnings go on in the language:",
            shares.to_string(index=False),
            "",
            f"Statistics and neuron sets: {out}",
            f"Report: {page} (open it in a browser)",
            "",
            "Next: record your own text,",
            "  langneurons record babel FOLDER --languages en,hi --out runs/mine",
            "  langneurons identify runs/mine",
            "and patch what was found, on files named <language>.heldout.txt in the same folder,",
            "  langneurons perplexity-matrix babel FOLDER --neurons runs/mine/neurons.lape.json --statistics runs/mine",
            "or follow notebooks/01_find_language_neurons.ipynb and 02_patch_and_measure.ipynb.",
        ]
    )


def introduction(stats: "ln.ActivationStats") -> str:
    """Say what was read, and what the two methods keep."""
    return (
        f"babel was recorded on {int(stats.tokens[0]):,} counted tokens of each of {len(stats.languages)} languages, "
        f"seven tenths of its phrasebook; the rest is held out. LAPE keeps the {TOP:.0%} of its "
        f"{stats.shape[0] * stats.shape[1]:,} MLP neurons whose activation probability is most uneven over languages; "
        "pooled-p90 keeps, for each language, the neurons that most often exceed the 90th percentile of their values "
        "in all languages together."
    )


def summarise(stats: "ln.ActivationStats", lape: "ln.NeuronSet", pooled: "ln.NeuronSet") -> pd.DataFrame:
    """One row per language: neurons each method names, their overlap, and the clearest neuron with its interval."""
    low, high = ln.ActivationProbability().scores(stats).interval()
    probability = stats.probability()
    rows = []
    for position, language in enumerate(stats.languages):
        ((layer, index),) = lape[language].clearest(stats).indices().tolist()
        own, others = probability[position, layer, index], probability[:, layer, index].clone()
        others[position] = -1
        rows.append(
            {
                "language": language,
                "LAPE": len(lape[language]),
                "pooled-p90": len(pooled[language]),
                "overlap": f"{_jaccard(lape[language], pooled[language]):.2f}",
                "clearest": f"L{layer} N{index}",
                "active in it": f"{own:.2f} [{low[position, layer, index]:.2f}, {high[position, layer, index]:.2f}]",
                "most elsewhere": f"{others.max():.2f} ({stats.languages[int(others.argmax())]})",
            }
        )
    return pd.DataFrame(rows)


def steering(
    model: torch.nn.Module, heldout: "ln.Corpus", stats: "ln.ActivationStats", neurons: "ln.NeuronSet"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Continue English beginnings as the model is, without English's neurons, and moved towards other languages.

    The residual stream is moved by a part of the difference of means at every layer; a language's neurons, and others
    that write as much, by as much of theirs as has the same dose.

    Returns:
        Three beginnings with their continuations side by side; and the share of beginnings that go on in the language.
    """
    text = ln.HeldoutText.of(model, heldout.select(["en"]), DOSE_TOKENS, context_length=64)
    act, controls = stats.at("act"), ln.Controls(draws=CONTROLS, stats=stats.at("act"), match="dose")
    patches: dict[str, ln.patches.Patch | list[ln.patches.Patch]] = {
        "English's neurons off": ln.SetTo(neurons["en"], 0.0)
    }
    for language in STEERED:
        direction = ln.DiffMean.everywhere(stats.at("resid_post"), language, strength=STRENGTH)
        own = ln.DiffMean(neurons[language], act, language)
        others = [own.matched_control(controls, draw) for draw in range(CONTROLS)]
        patches[f"towards {language}"] = direction
        for name, patch in {"neurons": own, **{f"control {draw}": other for draw, other in enumerate(others)}}.items():
            patches[f"{name} of {language}"] = ln.evaluation.at_dose_of(model, patch, direction, text)
    beginnings = [*PROMPTS, *(" ".join(words.split()[:4]) for words in islice(heldout.texts("en"), BEGINNINGS))]
    table = completions(model, beginnings, patches, max_new_tokens=12, batch_size=len(beginnings))
    named = {name: identify(list(table[name])[len(PROMPTS) :], stats.languages) for name in ["unpatched", *patches]}

    def share(language: str, *names: str) -> str:
        count = sum(named[name].count(language) for name in names)
        return f"{count / (BEGINNINGS * len(names)):.0%}"

    shares = [
        {
            "continued in": language,
            "unpatched": share(language, "unpatched"),
            "residual stream moved": share(language, f"towards {language}"),
            "its neurons, same dose": share(language, f"neurons of {language}"),
            "control neurons, same dose": share(language, *(f"control {d} of {language}" for d in range(CONTROLS))),
        }
        for language in STEERED
    ]
    shown = ["unpatched", "English's neurons off", *(f"towards {language}" for language in STEERED)]
    sides = table.loc[: len(PROMPTS) - 1, ["prompt", *shown]].set_index("prompt").T
    return sides, pd.DataFrame(shares)


def detectable(stats: "ln.ActivationStats") -> str:
    """Say how small a difference between two languages' activation probabilities could be seen."""
    error = ln.ActivationProbability().scores(stats).standard_error().median()
    # Two independent standard errors, two-sided 5 % test, 80 % power: (1.96 + 0.84) * sqrt(2).
    smallest = 2.8 * 2**0.5 * float(error)
    return (
        f"With {int(stats.tokens[0]):,} tokens per language, this recording can detect a difference of {smallest:.3f} "
        "or more between a typical neuron's activation probabilities in two languages (80 % power, two-sided 5 % test, "
        "jackknife over documents)."
    )


def _listed(continuations: Mapping[str, str]) -> str:
    width = max(map(len, continuations))
    return "\n".join(f"    {name:<{width}}  {text.strip()}" for name, text in continuations.items())


def _jaccard(left: "ln.NeuronSet", right: "ln.NeuronSet") -> float:
    a, b = left.mask(), right.mask()
    return float((a & b).sum() / (a | b).sum().clamp(min=1))
