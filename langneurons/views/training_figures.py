"""Figures of training: the loss of a fine-tuning, and what conditions of a transfer experiment are worth."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go

from langneurons.effects.table import EffectTable
from langneurons.errors import EffectError, TrainingError
from langneurons.evaluation.evaluation import UNPATCHED
from langneurons.training.transfer_table import NAMES, Transfer
from langneurons.views.effect_figures import MARGINS, ROW, caption_of, effects, forest, places, provenance_of
from langneurons.views.style import COLOURS, legend_above, span, styled

SMOOTHED = 0.05  # of the steps, over which the loss is averaged
WIDE = 860


@runtime_checkable
class Trained(Protocol):
    """A fine-tuning that keeps its history, such as ``Finetuned``."""

    @property
    def history(self) -> pd.DataFrame:
        """One row a step: step, loss, dev."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """What else there is to say."""
        ...


def training(history: pd.DataFrame | Trained) -> go.Figure:
    """Draw the loss of a fine-tuning over its steps, and the development score where it was measured.

    Args:
        history: What ``ln.finetune(...)`` gave, or its history: columns step, loss and dev.

    Returns:
        The loss of every step, faint, its running mean, and the development score on an axis of its own.

    Raises:
        TrainingError: If it is no history, or holds no step.

    Example:
        >>> history = pd.DataFrame({"step": [1, 2, 3], "loss": [1.1, 0.9, 0.8], "dev": [float("nan"), 0.4, 0.5]})
        >>> [trace.name for trace in ln.plot.training(history).data]
        ['loss', 'running mean', 'dev']
    """
    about: Mapping[str, Any] = {} if isinstance(history, pd.DataFrame) else history.about
    rows = history if isinstance(history, pd.DataFrame) else history.history
    lacking = [name for name in ("step", "loss", "dev") if name not in rows.columns]
    if lacking or rows.empty:
        raise TrainingError(
            f"A history of training has no column {lacking[0]!r}: give Finetuned.history."
            if lacking
            else "Nothing was trained: the history holds no step."
        )
    window = max(1, round(SMOOTHED * len(rows)))
    metric = str(about.get("metric", "score"))
    scored = bool(rows["dev"].notna().to_numpy().any())
    figure = _curves(rows, window, metric)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="loss, nats", selector={"side": None})
    kept = f", parameters of step {about['best_step']} kept" if "best_step" in about else ""
    styled(
        figure,
        "Fine-tuning: loss" + (", and score on the development set" if scored else ""),
        420,
        f"n = {len(rows):,} steps{kept}; running mean over {window} step{'s' * (window > 1)}",
        "Loss: cross-entropy of the training batch at each step, before the step is taken.",
        _trained_with(about.get("settings", {})),
    )
    return legend_above(figure).update_layout(margin={"r": 70})


def transfer(table: EffectTable | Transfer) -> go.Figure:
    """Draw what training some neurons was worth in every language.

    Args:
        table: What ``ln.transfer_experiment`` gave: the scores of every condition are drawn. Or a table of
            ``Transfer.effects``: the differences are drawn.

    Returns:
        Of a Transfer, a line for each language and condition: the mean score over training seeds with its 95 % interval
        (thin), the standard deviation between seeds (thick), what the task is worth without a model (ticks), and at the
        right the score and the verdict on its difference from attention and head alone. Of effects, a forest plot in
        points, as ``ln.plot.effects`` draws it; grey ticks are single trainings of as many random neurons.

    Raises:
        EffectError: If the table does not compare trained conditions.
    """
    if isinstance(table, Transfer):
        return _scores(table)
    if table.keys[0] != "trained" or table.keys not in (["trained", "language"], ["trained", "target"]):
        raise EffectError(
            f"This table has the keys {', '.join(table.keys)}; drawn are those of Transfer.effects, which begin with "
            "trained."
        )
    return effects(table)


def _trained_with(settings: Mapping[str, Any]) -> str:
    """Model, updates and seed of a fine-tuning."""
    known = {name: settings[name] for name in ("learning_rate", "batch_size") if name in settings}
    options = [f"{name.replace('_', ' ')} {value:g}" for name, value in known.items()]
    return ", ".join(filter(None, [*settings.get("updates", []), *options, provenance_of(settings)]))


def _scores(found: Transfer) -> go.Figure:
    every = found.scores()
    scores = every.loc[every["patch"] == UNPATCHED].reset_index(drop=True)
    against, verdicts = _verdicts(found)
    rows = _lines(scores, verdicts, found.settings["source"])
    figure = forest(rows, heading="mean ± SD of seeds, verdict")
    _add_spread(figure, rows)
    figure.update_traces(showlegend=False)
    _add_references(figure, rows, scores, found.references)
    metric, source = str(found.rows["metric"].iloc[0]), found.settings["source"]
    figure.update_layout(xaxis={"title": f"{metric}, %"})
    seeds, items = (span(scores[name]) for name in ("seeds", "items"))
    styled(
        figure,
        f"Trained on {source}: {metric} in every language ({found.settings['task']}, {found.settings['protocol']})",
        MARGINS + ROW * len(rows),
        f"n = {seeds} training seeds x {items} items a language; thin: 95 % interval over seeds and clusters, thick: "
        "SD between seeds" + (f"; verdict against {against}" if verdicts else ""),
        _caption(found) if verdicts else "One condition was trained: there is nothing to compare it with.",
        provenance_of({**found.settings, **found.settings["options"]}),
        WIDE,
    )
    figure.update_layout(showlegend=True)
    return legend_above(figure)


def _lines(scores: pd.DataFrame, verdicts: Mapping[tuple[str, str], str], source: str) -> pd.DataFrame:
    """What ``forest`` draws of scores; several trainings for one language are told apart by their target."""
    several = scores["target"].where((scores["language"] == source) & (scores["target"] != ""), "")
    names = scores["condition"] + several.map(lambda target: f" for {target}" if target else "")
    percent: Any = 100 * scores[["score", "low", "high", "seed_sd"]].astype(float)
    cells = zip(scores["condition"], scores["language"], strict=True)
    said = [verdicts.get((str(condition), str(language)), "") for condition, language in cells]
    percent["text"] = [f"{_plus_minus(row)}  {one}" for row, one in zip(percent.to_dict("records"), said, strict=True)]
    lines = percent.assign(estimate=percent["score"], group=scores["language"], name=names, symbol="circle")
    lines["hover"] = [
        f"{row['estimate']:.1f} % [{row['low']:.1f}, {row['high']:.1f}]<br>{neurons:,} neurons, {parameters:,} "
        "parameters trained"
        for row, neurons, parameters in zip(
            lines.to_dict("records"), scores["neurons"], scores["parameters"], strict=True
        )
    ]
    return lines.sort_values("group", key=lambda groups: pd.factorize(groups)[0], kind="stable")


def _plus_minus(row: Mapping[Any, float]) -> str:
    spread = "" if math.isnan(row["seed_sd"]) else f" ± {row['seed_sd']:.1f}"
    return f"{row['score']:.1f}{spread}"


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
    """What the task is worth without a model."""
    symbols = ("line-ns-open", "x-thin-open", "cross-thin-open", "asterisk-open")
    known = [name for name in references["reference"].unique() if name in scores.columns]
    for number, name in enumerate(known):
        figure.add_scatter(
            x=100 * scores.loc[rows.index, name].astype(float),
            y=places(rows),
            mode="markers",
            name=str(name),
            marker={"color": "#555555", "size": 9, "symbol": symbols[number % len(symbols)]},
            hovertemplate=f"%{{y}}<br>{name}: %{{x:.1f}} %<extra></extra>",
        )


def _verdicts(found: Transfer) -> tuple[str, dict[tuple[str, str], str]]:
    """What every condition is compared with, and (condition, language) -> verdict."""
    if len(found.conditions) < 2:
        return "", {}
    table = found.effects(found.reference)
    rows = table.rows
    return table.settings["against"], {
        (str(condition), str(language)): str(verdict)
        for condition, language, verdict in zip(rows["trained"], rows["language"], rows["verdict"], strict=True)
    }


def _caption(found: Transfer) -> str:
    trained = ", ".join(f"{name}: {NAMES[name]}" for name in found.conditions if name in NAMES)
    return f"{caption_of(found.effects(found.reference))}{f' {trained}.' if trained else ''}"


def _curves(rows: pd.DataFrame, window: int, metric: str) -> go.Figure:
    measured = rows.loc[rows["dev"].notna()]
    shown = "step %{x}<br>%{y:.4g}<extra></extra>"
    figure = go.Figure()
    faint, bold = {"color": COLOURS[0], "width": 1}, {"color": COLOURS[0], "width": 2}
    figure.add_scatter(x=rows["step"], y=rows["loss"], name="loss", line=faint, opacity=0.35, hovertemplate=shown)
    mean = rows["loss"].rolling(window, min_periods=1).mean()
    figure.add_scatter(x=rows["step"], y=mean, name="running mean", line=bold, hovertemplate=shown)
    if len(measured):
        marks = {"mode": "lines+markers", "line": {"color": COLOURS[1], "dash": "dash"}, "yaxis": "y2"}
        figure.add_scatter(x=measured["step"], y=measured["dev"], name="dev", hovertemplate=shown, **marks)
        right = {"title": f"development {metric}", "overlaying": "y", "side": "right", "showgrid": False}
        figure.update_layout(yaxis2=right | {"tickformat": ".2f"})
    return figure
