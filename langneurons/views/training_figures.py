"""Figures of training: the loss of a fine-tuning, and the scores of a transfer experiment's conditions."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from langneurons.effects.table import EffectTable, span
from langneurons.errors import TrainingError, check_kind, warn_user
from langneurons.evaluation.results import UNPATCHED
from langneurons.storage.presenting import Column
from langneurons.training.transfer_table import NAMES, Transfer, is_loss
from langneurons.views.effect_figures import MARGINS, ROW, WIDE, effects, forest, places, provenance_of
from langneurons.views.looks import COLOURS, FAINT
from langneurons.views.style import legend_above, styled

SMOOTHED = 0.05  # share of the steps over which the loss is averaged
SCORE = Column()
RATES = ("learning_rate", "batch_size")  # settings of a fine-tuning that its provenance names


def training(history: pd.DataFrame, about: Mapping[str, object] | None = None) -> go.Figure:
    """Draw the loss of a fine-tuning over its steps, and the development score where it was measured.

    Args:
        history: History of a fine-tuning (``Finetuned.history``): a table with the columns step, loss and dev.
        about: Further facts to print (``Finetuned.about``): metric, best_step and settings.

    Returns:
        The loss of every step, faint, and its running mean; under it, over the same steps, the development score.

    Raises:
        TrainingError: If it is not a history, or holds no step.

    Example:
        >>> history = pd.DataFrame({"step": [1, 2, 3], "loss": [1.1, 0.9, 0.8], "dev": [float("nan"), 0.4, 0.5]})
        >>> [trace.name for trace in ln.plot.training(history).data]
        ['loss', 'running mean', 'dev']
    """
    check_kind(history, pd.DataFrame, "A history of training is a table, Finetuned.history", TrainingError)
    about = about or {}
    if missing := [name for name in ("step", "loss", "dev") if name not in history.columns]:
        raise TrainingError(f"A history of training has no column {missing[0]!r}: give Finetuned.history.")
    if history.empty:
        raise TrainingError("Nothing was trained: the history holds no step.")
    window = max(1, round(SMOOTHED * len(history)))
    metric = str(about.get("metric", "score"))
    scored = bool(history["dev"].notna().to_numpy().any())
    template = "step %{x}<br>%{y:.4g}<extra></extra>"
    faint, bold = {"color": COLOURS[0], "width": 1}, {"color": COLOURS[0], "width": 2}
    steps, losses = history["step"], history["loss"]
    heights = [0.6, 0.4] if scored else [1.0]
    figure = make_subplots(rows=len(heights), shared_xaxes=True, row_heights=heights, vertical_spacing=0.08)
    figure.add_scatter(x=steps, y=losses, name="loss", line=faint, opacity=0.35, hovertemplate=template)
    mean = losses.rolling(window, min_periods=1).mean()
    figure.add_scatter(x=steps, y=mean, name="running mean", line=bold, hovertemplate=template)
    if scored:
        dev = history.loc[history["dev"].notna()]
        marks = {"mode": "lines+markers", "line": {"color": COLOURS[1]}, "row": 2, "col": 1}
        figure.add_scatter(x=dev["step"], y=dev["dev"], name="dev", hovertemplate=template, **marks)
        figure.update_yaxes(title=f"development {metric}", tickformat=".2f", row=2)
    figure.update_xaxes(title="step", row=len(heights))
    figure.update_yaxes(title="loss, nats", row=1)
    settings: Any = about.get("settings", {})
    rates = [f"{name.replace('_', ' ')} {settings[name]:g}" for name in RATES if name in settings]
    best = f", parameters of step {about['best_step']} kept" if "best_step" in about else ""
    styled(
        figure,
        "Fine-tuning: loss" + (", and score on the development set" if scored else ""),
        460 if scored else 360,
        f"n = {len(history):,} steps{best}; running mean over {window} step{'s' * (window > 1)}",
        "Loss: cross-entropy of the training batch at each step, before the step is taken.",
        ", ".join(filter(None, [*(settings.get("updates") or []), *rates, provenance_of(settings)])),
    )
    return legend_above(figure)


def transfer(result: Transfer | EffectTable) -> go.Figure:
    """Draw the scores of a transfer experiment: every language under every training condition.

    Args:
        result: What ``ln.transfer_experiment`` returned. Its effects are drawn by ``ln.plot.effects``.

    Returns:
        A line for each language and condition: the mean score over training seeds with its 95 % interval (thin), the
        standard deviation between seeds (thick), the score without a model, such as chance (ticks), and at the right
        the score and the verdict on its difference from training attention and head only.
    """
    if isinstance(result, EffectTable):
        warn_user("ln.plot.transfer takes a Transfer; draw its effects by ln.plot.effects.")
        return effects(result)
    check_kind(result, Transfer, "This figure is of what ln.transfer_experiment() returns", TrainingError)
    settings, scores = result.settings, result.scores()
    scores = scores.loc[scores["patch"] == UNPATCHED].reset_index(drop=True)
    table = result.effects(result.reference) if len(result.conditions) > 1 else None
    metric, source = str(result.rows["metric"].iloc[0]), settings["source"]
    scale, unit, named = (1, "", metric.replace("_", " ")) if is_loss(metric) else (100, ", %", metric)
    rows = _lines(scores, table, source, scale)
    figure = forest(rows, heading="mean ± SD of seeds, verdict")
    _add_spread(figure, rows)
    figure.update_traces(showlegend=False)
    _add_references(figure, rows, scores, result.references)
    figure.update_layout(xaxis={"title": f"{named}{unit}"})
    seeds, items = (span(scores[name]) for name in ("seeds", "items"))
    names = ", ".join(f"{name}: {NAMES[name]}" for name in result.conditions if name in NAMES)
    styled(
        figure,
        f"Trained on {source}: {named} in every language ({settings['task']}, {settings['protocol']})",
        MARGINS + ROW * len(rows),
        f"n = {seeds} training seeds x {items} items per language; thin: 95 % interval over seeds and clusters, thick: "
        "SD between seeds" + ("" if table is None else f"; verdict against {table.settings['against']}"),
        "One condition was trained: there is nothing to compare it with."
        if table is None
        else " ".join(filter(None, [table.table().caption, f"{names}." if names else ""])),
        provenance_of({**settings, **settings["options"]}),
        WIDE,
    )
    figure.update_layout(showlegend=True)
    return legend_above(figure, heading=20)


def _lines(scores: pd.DataFrame, table: EffectTable | None, source: str, scale: int) -> pd.DataFrame:
    """Rows for ``forest``; several trainings are told apart by their target in the source language."""
    verdicts = {} if table is None else table.rows.set_index(["trained", "language"])["verdict"].to_dict()
    sizes, (digits, unit) = ("score", "low", "high", "seed_sd"), (1, " %") if scale > 1 else (3, "")
    lines = scores.assign(**{name: scale * scores[name].astype(float) for name in sizes}, symbol="circle")
    texts, hovers, names = [], [], []
    for line in lines.to_dict("records"):
        several = line["language"] == source and line["target"] != ""
        names.append(f"{line['condition']} for {line['target']}" if several else line["condition"])
        spread = "" if math.isnan(line["seed_sd"]) else f" ± {line['seed_sd']:.{digits}f}"
        texts.append(f"{line['score']:.{digits}f}{spread}  {verdicts.get((line['condition'], line['language']), '')}")
        score = SCORE.text(line["score"], line["low"], line["high"])
        hovers.append(f"{score}{unit}<br>{line['neurons']:,} neurons and {line['parameters']:,} parameters trained")
    lines = lines.assign(estimate=lines["score"], group=lines["language"], name=names, text=texts, hover=hovers)
    return lines.sort_values("group", kind="stable")


def _add_spread(figure: go.Figure, rows: pd.DataFrame) -> None:
    """The standard deviation between seeds, thick."""
    for number, name in enumerate(dict.fromkeys(rows["name"])):
        part = rows.loc[rows["name"] == name]
        figure.add_scatter(
            x=part["estimate"],
            y=places(part),
            error_x={"array": part["seed_sd"], "thickness": 7, "width": 0, "color": COLOURS[number % len(COLOURS)]},
            mode="markers",
            opacity=0.4,
            marker={"size": 1, "color": COLOURS[number % len(COLOURS)]},
            name=f"{name}, SD between seeds",
            hoverinfo="skip",
        )


def _add_references(figure: go.Figure, rows: pd.DataFrame, scores: pd.DataFrame, references: pd.DataFrame) -> None:
    """Scores without a model, such as chance."""
    symbols = ("line-ns-open", "x-thin-open", "cross-thin-open", "asterisk-open")
    names = [name for name in references["reference"].unique() if name in scores.columns]
    for number, name in enumerate(names):
        figure.add_scatter(
            x=100 * scores.loc[rows.index, name].astype(float),
            y=places(rows),
            mode="markers",
            name=str(name),
            marker={"color": FAINT, "size": 9, "symbol": symbols[number % len(symbols)]},
            meta=str(name),
            hovertemplate="%{y}<br>%{meta}: %{x:.1f} %<extra></extra>",
        )
