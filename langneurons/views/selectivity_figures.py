"""Figures of what neurons carry: how much language explains of each, against how much the task does."""

import numpy as np
import plotly.graph_objects as go

from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.views.style import COLOURS, styled

COLOUR_OF = {"language": COLOURS[0], "task": COLOURS[1], "both": COLOURS[2], "neither": "#888888"}
BACKGROUND = 3000  # more points of other neurons would show nothing and make a page heavy


def selectivity(found: Polysemanticity, seed: int = 0) -> go.Figure:
    """Draw how much of each neuron's variance language explains, against how much the task does.

    Args:
        found: From ``ln.polysemanticity``.
        seed: Of the draw of other neurons.

    Returns:
        A scatter of partial shares (language across; task up, the label's and its interaction's together), a colour for
        each verdict; behind them, in grey, neurons outside the set, at most 3000 drawn at random. The dotted line is
        what a label must explain to be found with 80 % power, in the median neuron.

    Example:
        >>> from langneurons.analysis.selectivity.polysemanticity import polysemanticity
        >>> from langneurons.analysis.selectivity.texts import LabelledTexts
        >>> texts = {"en": ["It rains.", "Dry.", "Rain.", "Sun."], "fr": ["Il pleut.", "Sec.", "Pluie.", "Soleil."]}
        >>> task = LabelledTexts.parallel(texts, ["wet", "dry", "wet", "dry"], name="weather")
        >>> neurons = ln.LAPE(top=0.001).identify(stats)
        >>> found = polysemanticity(model, neurons, task, controls=0, permutations=100, probe_sizes=(), progress=False)
        >>> selectivity(found).data[0].name
        'other neurons'
    """
    figure = go.Figure()
    _add_others(figure, found, seed)
    rows = found.rows.assign(task=found.rows["task_partial"] + found.rows["interaction_partial"])
    for verdict, colour in COLOUR_OF.items():
        chosen = rows[rows["verdict"] == verdict]
        figure.add_scatter(
            x=chosen["language_partial"],
            y=chosen["task"],
            name=f"{verdict} ({len(chosen)})",
            mode="markers",
            marker={"color": colour, "size": 8, "line": {"color": "white", "width": 1}},
            customdata=chosen[["language", "layer", "neuron", "language_p_adjusted", "task_p_adjusted", "task_bits"]],
            hovertemplate="%{customdata[0]}: layer %{customdata[1]}, neuron %{customdata[2]}<br>"
            "language %{x:.1%} (adjusted p %{customdata[3]:.2g})<br>task %{y:.1%} (adjusted p %{customdata[4]:.2g}, "
            "%{customdata[5]:.2g} bits)<extra></extra>",
        )
    detectable = found.rows["task_detectable"].replace(np.inf, np.nan).median()
    if np.isfinite(detectable):
        grey = {"color": "#888888", "width": 1, "dash": "dot"}
        figure.add_hline(y=detectable, line=grey)  # pyright: ignore[reportArgumentType] (their stub says str)
    figure.update_xaxes(title="share explained by language (partial)", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(title="share explained by the task (partial)", tickformat=".1%", rangemode="tozero")
    items, site = f"{found.settings['items']:,} items", found.settings["site"]
    return styled(figure, f"What neurons at {site} carry: language and {found.settings['task']} ({items})", 480)


def _add_others(figure: go.Figure, found: Polysemanticity, seed: int) -> None:
    own = found.rows["layer"] * found.decomposition.shape[1] + found.rows["neuron"]
    others = np.setdiff1d(np.arange(np.prod(found.decomposition.shape)), own)
    drawn = np.random.default_rng(seed).permutation(others)[:BACKGROUND]
    language, task, interaction = (
        found.decomposition.partial(source).numpy().ravel()[drawn] for source in ("language", "task", "interaction")
    )
    figure.add_scattergl(
        x=language,
        y=task + interaction,
        name="other neurons",
        mode="markers",
        marker={"color": "#cccccc", "size": 3},
        hoverinfo="skip",
    )
