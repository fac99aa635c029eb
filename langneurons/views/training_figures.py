"""Figures of training: the loss of a fine-tuning, and what conditions of a transfer experiment changed."""

from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go

from langneurons.errors import EffectError, TrainingError
from langneurons.evaluation.effect_table import EffectTable
from langneurons.views.effect_figures import effects
from langneurons.views.style import COLOURS, styled

SMOOTHED = 0.05  # of the steps, over which the loss is averaged
PLACES = ("language", "target")


def training(history: pd.DataFrame) -> go.Figure:
    """Draw the loss of a fine-tuning over its steps, and the development score where it was measured.

    Args:
        history: Of ``ln.finetune(...)``: columns step, loss and dev.

    Returns:
        The loss of every step, faint, its running mean, and the development score on an axis of its own.

    Raises:
        TrainingError: If it is no history, or holds no step.

    Example:
        >>> history = pd.DataFrame({"step": [1, 2, 3], "loss": [1.1, 0.9, 0.8], "dev": [float("nan"), 0.4, 0.5]})
        >>> [trace.name for trace in ln.plot.training(history).data]
        ['loss', 'running mean', 'dev']
    """
    lacking = [name for name in ("step", "loss", "dev") if name not in history.columns]
    if lacking or history.empty:
        raise TrainingError(
            f"A history of training has no column {lacking[0]!r}: give Finetuned.history."
            if lacking
            else "Nothing was trained: the history holds no step."
        )
    window = max(1, round(SMOOTHED * len(history)))
    mean = history["loss"].rolling(window, min_periods=1).mean()
    measured = history.loc[history["dev"].notna()]
    shown = "step %{x}<br>%{y:.4g}"
    figure = go.Figure()
    faint = {"color": COLOURS[0], "width": 1}
    figure.add_scatter(x=history["step"], y=history["loss"], name="loss", line=faint, opacity=0.35, hovertemplate=shown)
    bold = {"color": COLOURS[0], "width": 2}
    figure.add_scatter(x=history["step"], y=mean, name="running mean", line=bold, hovertemplate=shown)
    if len(measured):
        marks = {"mode": "lines+markers", "line": {"color": COLOURS[1]}, "yaxis": "y2", "hovertemplate": shown}
        figure.add_scatter(x=measured["step"], y=measured["dev"], name="dev", **marks)
        right = {"title": "development score", "overlaying": "y", "side": "right", "showgrid": False}
        # Beside the figure the legend would stand on the right axis.
        above = {"orientation": "h", "x": 0.3, "y": 1.12}
        figure.update_layout(yaxis2=right | {"tickformat": ".2f"}, legend=above)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="loss", selector={"side": None})
    return styled(figure, "Fine-tuning", 420).update_layout(margin={"r": 70})


def transfer(table: EffectTable) -> go.Figure:
    """Draw what training some neurons changed in every language, against what it was compared with.

    Args:
        table: From ``Transfer.effects``.

    Returns:
        A forest plot in points, as ``ln.plot.effects`` draws it; grey ticks are single trainings of as many random
        neurons.

    Raises:
        EffectError: If the table does not compare trained conditions.
    """
    place = next((name for name in PLACES if table.keys == ["trained", name]), None)
    if place is None:
        raise EffectError(
            f"This table has the keys {', '.join(table.keys)}; drawn are those of Transfer.effects, which begin with "
            "trained."
        )
    names = {"trained": "patch", place: "language"}
    drawn = None if table.controls is None else table.controls.rename(columns=names)
    settings = {**table.settings, "keys": ["patch", "language"]}
    figure = effects(replace(table, rows=table.rows.rename(columns=names), controls=drawn, settings=settings))
    figure.update_traces(
        selector={"name": "matched controls"},
        name="random neurons",
        hovertemplate="%{y}<br>random neurons: %{x:+.2f}<extra></extra>",
    )
    measured, against = table.settings["measured"], table.settings["against"]
    figure.update_xaxes(title=f"{measured}, points, against {against}")
    where = "other languages" if place == "language" else str(table.settings["source"])
    return figure.update_layout(title={"text": f"Trained on {table.settings['source']}: {measured} in {where}"})
