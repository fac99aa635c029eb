"""One small result of every kind, with all its tables, and what a reader does with it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

import langneurons as ln
from langneurons.analysis.ablation import Ablation
from langneurons.analysis.attribution import Attribution
from langneurons.analysis.comparison import Comparison
from langneurons.analysis.decomposition import SOURCES, Decomposition, Moments
from langneurons.analysis.polysemanticity import Polysemanticity
from langneurons.analysis.screening import Screen
from langneurons.analysis.task_gradient import PARTS, TaskGradient
from langneurons.analysis.validity.checks import Evidence, Nulls, ValidityTable, validity_table
from langneurons.analysis.validity.reliability import EVERY, FIGURES, SplitHalf
from langneurons.analysis.validity.staying import Survival
from langneurons.evaluation.results import Evaluation, Factorial, design_of
from langneurons.replication.protocols import ProtocolComparison
from langneurons.replication.statistics import ARRAYS, PublishedStatistics
from langneurons.storage import Result
from langneurons.training.finetuned import Finetuned
from tests.planted.transfer import simulated
from tests.views.report import made_up

LANGUAGES = ("en", "hi")
NUMBERS = {"estimate": 0.1, "low": 0.0, "high": 0.2}
ABOUT = {"model": "m", "site": "act", "seed": 0}


def ablation() -> Ablation:
    keys = ["label", "layer", "neuron", "neurons", "language"]
    bare = made_up.ablation(made_up.neuron_set(6))
    draws = [
        {"label": label, "layer": 0, "neuron": 30 + draw, "language": language, "effect": 0.001 * draw}
        for label in made_up.PIECES
        for language in made_up.PIECES
        for draw in range(19)
    ]
    controls = {"control_mean": 0.01, "control_sd": 0.01, "control_low": -0.01, "control_high": 0.03}
    placed = {"control_position": 0.5, "control_p": 0.2, "control_draws": 19.0, "control_pool": "label"}
    return Ablation(bare.rows.assign(**controls, **placed), pd.DataFrame(draws), {**bare.settings, "keys": keys})


def evaluation(patches: tuple[str, ...] = ("zero",)) -> Evaluation:
    about = {"task": "pairs", "protocol": "head", "metric": "accuracy"}
    cells = [(patch, language) for patch in ("unpatched", *patches) for language in LANGUAGES]
    rows = [
        {
            **about,
            "patch": patch,
            "language": language,
            "item": item,
            "cluster": item // 2,
            "value": float(item % 3 > 0),
        }
        for patch, language in cells
        for item in range(12)
    ]
    means = [row for row in rows if row["patch"] != "unpatched"]
    estimates = [
        {**about, "patch": patch, "language": language, "draw": draw, "estimate": 0.01 * draw}
        for patch, language in cells[len(LANGUAGES) :]
        for draw in range(3)
    ]
    references = [{**about, "language": language, "reference": "chance", "value": 1 / 3} for language in LANGUAGES]
    balance = {"sentence": "Controls write as much.", "rows": [{"language": "hi", "write_ratio": 1.1}]}
    options = {"margin": 0.01, "resamples": 200}
    settings = {"model": "m", "options": options, "control_draws": 3, "balance": balance}
    frames = pd.DataFrame(rows).assign(prediction="yes", gold="no"), pd.DataFrame(references)
    return Evaluation(*frames, pd.DataFrame(estimates), settings, pd.DataFrame(means))


def factorial() -> Factorial:
    cells = [("zero", "act"), ("double", "act")]
    return Factorial(evaluation(tuple(f"{operation} at {site}" for operation, site in cells)), design_of(cells))


def decomposition() -> Decomposition:
    values = np.random.default_rng(0).normal(size=(24, 8))
    moments = Moments.of(values, np.arange(24) % 4, 4)
    return Decomposition.of(moments, LANGUAGES, ("no", "yes"), (2, 4), "act")


def polysemanticity() -> Polysemanticity:
    shares = [f"{source}_{kind}" for source in SOURCES for kind in ("share", "partial", "excess", "p")]
    shares += [f"{source}_{kind}" for source in ("language", "task") for kind in ("p_adjusted", "detectable", "bits")]
    rows = [{"language": label, "layer": 1, "neuron": index} for label in LANGUAGES for index in range(2)]
    placed = {"control_mean": 0.1, "control_low": 0.0, "control_high": 0.2, "p_adjusted": 0.5, "detectable": 0.3}
    placed |= {"verdict": "inconclusive"}
    sets = [{"language": label, "carries": "task", "neurons": 2, "count": 1, "share": 0.5} for label in LANGUAGES]
    probes = [{"language": label, "predicts": "task", "k": 1, "accuracy": 0.5, "chance": 0.5} for label in LANGUAGES]
    aurocs = [{**row, "factor": "task", "level": "yes", "auroc": 0.5} for row in rows]
    settings = {**ABOUT, "task": "pairs", "items": 12, "clusters": 6, "cut": 1, "controls": 3, "finest": 100}
    return Polysemanticity(
        pd.DataFrame(rows).assign(**dict.fromkeys(shares, 0.1), verdict=["both", "language", "task", "neither"]),
        pd.DataFrame(sets).assign(**placed),
        pd.DataFrame(probes).assign(**placed),
        pd.DataFrame(aurocs),
        decomposition(),
        {**settings, "least_share": 0.01},
    )


def comparison() -> Comparison:
    rows = pd.DataFrame({"method": ["LAPE", "mean"], "chosen": [3, 4], "jaccard": [0.5, np.nan], "spearman": np.nan})
    rows = rows.assign(jaccard_low=[0.4, np.nan], jaccard_high=[0.6, np.nan], selectivity=[0.1, 0.2])
    overlap = pd.DataFrame({"first": "LAPE", "second": "mean", "language": LANGUAGES, "jaccard": 0.25})
    return Comparison(rows, overlap.assign(jaccard_chance=0.1), {**ABOUT, "notes": ["mean has no halves"]})


def protocols() -> ProtocolComparison:
    row = {"metric": "accuracy", "patch": "zero", "language": "hi", "verdict": "worse", "published_conclusion": "gain"}
    scores = ("published_base", "published_patched", "published_change", "base", "patched", "change", "low", "high")
    row |= dict.fromkeys([*scores, "p_holm", "detectable"], 0.25) | {"published_items": 9, "items": 12, "changes": True}
    return ProtocolComparison(pd.DataFrame([row, {**row, "language": "en", "changes": False}]), {"task": "pairs"})


def published() -> PublishedStatistics:
    arrays = {name: torch.full((2, 2, 4), float(place)) for place, name in enumerate(ARRAYS)}
    return PublishedStatistics(LANGUAGES, "m", {"tokens": 5}, **arrays)


def screen() -> Screen:
    agreement = {"spearman": 0.5, "low": 0.3, "high": 0.7, "recall": 0.5, "recall_low": 0.1, "recall_high": 0.9}
    agreement |= {"k": 2, "n": 20}
    sample = pd.DataFrame({"language": LANGUAGES, "layer": 0, "neuron": 1, "predicted": 0.1, "exact": 0.2})
    settings = {**ABOUT, "languages": list(LANGUAGES), "value": "0.0", "top": 2}
    predicted = torch.arange(16.0).reshape(2, 2, 4)
    return Screen(predicted, pd.DataFrame({"language": LANGUAGES, **agreement}), sample, settings)


def attribution() -> Attribution:
    numbers = {f"{name}{end}": 0.5 for name in ("direct_", "") for end in ("low", "high")}
    numbers |= {"direct": 0.6, "exact": 0.7, "p": 0.01, "p_adjusted": 0.04, "detectable": 0.2}
    rows = pd.DataFrame({"language": LANGUAGES, "layer": 0, "neuron": [1, 2], **numbers, "verdict": "worse"})
    rest = pd.DataFrame({"language": "en", "part": ["neurons", "output"], "layer": [0.0, np.nan], "contribution": 0.5})
    texts = {"before": "", "token_text": " the", "rival_text": " la"}
    points = pd.DataFrame({"language": LANGUAGES, "item": "1", "cluster": ["1", "2"], **texts})
    points = points.assign(token=3, rival=4, rank=2, difference=0.5)
    answers = pd.DataFrame(
        {"language": LANGUAGES, **dict.fromkeys(("answers", "judged", "failed", "left", "points"), 1)}
    )
    settings = {**ABOUT, "languages": list(LANGUAGES), "patch": "unpatched", "resamples": 100, "exact": 1}
    direct = torch.arange(16.0).reshape(2, 2, 4)
    return Attribution(direct, rows.assign(items=6, clusters=6), rest, points, answers, settings)


def task_gradient() -> TaskGradient:
    items = pd.DataFrame({"language": LANGUAGES, "role": ["task", "control"], "items": 4, "clusters": 2})
    settings = {**ABOUT, "fingerprint": "f", "task": "t", "control": "c", "languages": list(LANGUAGES), "top": 0.2}
    parts = {name: torch.arange(16.0).reshape(2, 2, 4) for name in PARTS}
    return TaskGradient(parts, items.assign(probability=0.5), settings)


def split_half() -> SplitHalf:
    numbers = {f"{name}{end}": 0.5 for name in FIGURES for end in ("", "_low", "_high")}
    numbers |= {"jaccard_chance": 0.1, "chosen_first": 3.0, "chosen_second": 3.5}
    return SplitHalf("LAPE()", pd.DataFrame({"language": [*LANGUAGES, EVERY], **numbers}), "the middle of 5", 0.95)


def nulls() -> Nulls:
    rows = pd.DataFrame({"null": ["real", "shuffled"], "share": [np.nan, 0.02], "passes": [None, True], "chosen": 4})
    beyond = {"cutoff_low": np.nan, "cutoff_high": 0.5, "chosen": 2, "beyond": 0.5, "share": 0.25}
    per_language = pd.DataFrame({"null": "shuffled", "language": LANGUAGES, **beyond})
    return Nulls("LAPE()", rows.assign(jaccard=0.5, jaccard_chance=0.1), per_language, 0.05)


def survival() -> Survival:
    numbers = {f"{name}{end}": 0.5 for name in ("stays", "again", "change") for end in ("", "_low", "_high")}
    rows = pd.DataFrame({"method": "LAPE()", "condition": "words", "language": [*LANGUAGES, EVERY], "neurons": 3.0})
    return Survival(rows.assign(**numbers), {"parts": 3, "level": 0.95, "random_share": 0.5})


def validity() -> ValidityTable:
    return validity_table([Evidence("good", recall=1.0, fdr=0.0), Evidence("bad", recall=0.2, fdr=0.5)])


def finetuned() -> Finetuned:
    history = pd.DataFrame({"step": [1, 2], "epoch": [0, 0], "loss": [1.0, 0.5], "learning_rate": 0.1})
    settings = {"learning_rate": 0.1, "batch_size": 4, "updates": ["MaskedLoRA"], "model": "m"}
    about = {"steps": 2, "best_step": 2, "metric": "accuracy", "settings": settings}
    return Finetuned(None, head(), history.assign(grad_norm=1.0, dev=[np.nan, 0.5]), about)


def head() -> ln.tasks.ClassificationHead:
    return ln.tasks.ClassificationHead(torch.eye(3, 4), torch.ones(3), ("a", "b", "c"), "m")


def scored_neurons() -> ln.NeuronSet:
    members = {"en": np.array([1, 5]), "hi": np.array([2])}
    return ln.NeuronSet(members, (2, 4), "act", "m", "made up", {"en": np.array([0.5, 0.25]), "hi": np.array([0.1])})


RESULTS: dict[str, Callable[[], Result]] = {
    "ablation": ablation,
    "activation-statistics": made_up.statistics,
    "attribution": attribution,
    "classification-head": head,
    "comparison": comparison,
    "decomposition": decomposition,
    "effect-table": made_up.matrix,
    "evaluation": evaluation,
    "factorial": factorial,
    "finetuned": finetuned,
    "neuron-set": scored_neurons,
    "nulls": nulls,
    "polysemanticity": polysemanticity,
    "profiles": lambda: made_up.profiles(made_up.neuron_set(3)),
    "protocol-comparison": protocols,
    "published-statistics": published,
    "screen": screen,
    "split-half": split_half,
    "survival": survival,
    "task-gradient": task_gradient,
    "transfer": lambda: simulated({"none": 0.0, "source": 0.1}, seeds=2, clusters=4, resamples=100),
    "validity-table": validity,
}
DRAWN = {"ablation", "activation-statistics", "effect-table", "evaluation", "finetuned", "neuron-set"}
DRAWN |= {"attribution", "polysemanticity", "task-gradient", "transfer", "validity-table"}
# Methods and properties beside those that every result has.
FURTHER = ("sets_table", "probes_table", "overlap_table", "neurons", "sentences", "conclusion", "verdict", "overall")
FURTHER += ("trainable", "fingerprint", "effects", "scores", "counts", "union", "passes", "passing")


def shown(result: Result) -> list[Any]:
    """Everything that a reader sees of a result; a result with a figure gives it last."""
    parts: list[Any] = [repr(result), result._repr_html_()]
    if result.tables or type(result).table is not Result.table:
        table = result.table()
        parts += [table.to_string(), table.to_markdown(), table.latex(), table._repr_html_()]
    return parts


def used(result: Result, drawn: bool = True) -> None:
    """Do with a result all that a reader can: print it, draw it, ask everything that needs no argument."""
    shown(result)
    for name in FURTHER:
        if hasattr(type(result), name):
            answer = getattr(result, name)
            if callable(answer):
                answer = answer()
            repr(answer)
    if drawn and result.kind in DRAWN:
        result.plot(*([(0, 0)] if result.kind == "activation-statistics" else []))
