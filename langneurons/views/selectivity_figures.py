"""Figures of what neurons carry: how much language explains of each, against how much the task does."""

import numpy as np
import plotly.graph_objects as go

from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.views.effect_figures import provenance_of
from langneurons.views.style import COLOURS, FAINT, legend_above, styled

COLOUR_OF = {"language": COLOURS[0], "task": COLOURS[1], "both": COLOURS[2], "neither": "#666666"}
SYMBOL_OF = {"language": "circle", "task": "diamond", "both": "square", "neither": "x"}
BACKGROUND = 2000  # more points of other neurons would show nothing and make a page heavy


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
    others = _add_others(figure, found, seed)
    rows = found.rows.assign(task=found.rows["task_partial"] + found.rows["interaction_partial"])
    for verdict, colour in COLOUR_OF.items():
        chosen = rows[rows["verdict"] == verdict]
        figure.add_scatter(
            x=chosen["language_partial"],
            y=chosen["task"],
            name=f"{verdict} ({len(chosen)})",
            mode="markers",
            marker={"color": colour, "size": 8, "symbol": SYMBOL_OF[verdict], "line": {"color": "white", "width": 1}},
            customdata=chosen[["language", "layer", "neuron", "language_p_adjusted", "task_p_adjusted", "task_bits"]],
            hovertemplate="%{customdata[0]}: layer %{customdata[1]}, neuron %{customdata[2]}<br>"
            "language %{x:.1%} (adjusted p %{customdata[3]:.2g})<br>task %{y:.1%} (adjusted p %{customdata[4]:.2g}, "
            "%{customdata[5]:.2g} bits)<extra></extra>",
        )
    detectable = found.rows["task_detectable"].replace(np.inf, np.nan).median()
    if np.isfinite(detectable):
        grey = {"color": FAINT, "width": 1, "dash": "dot"}
        figure.add_hline(y=detectable, line=grey)  # pyright: ignore[reportArgumentType] (their stub says str)
    about, distinct = found.settings, len(rows[["layer", "neuron"]].drop_duplicates())
    figure.update_xaxes(
        title="share of variance explained by language (partial)", tickformat=".0%", range=[-0.02, 1.02]
    )
    figure.update_yaxes(title=f"share explained by {about['task']} (partial)", tickformat=".3~%", rangemode="tozero")
    styled(
        figure,
        f"What neurons at {about['site']} carry: language and {about['task']}",
        500,
        f"n = {len(rows)} labels of {distinct} neurons, read on {about['items']:,} items in "
        f"{len(found.decomposition.languages)} languages; "
        f"grey: {others:,} other neurons of the model",
        "Partial shares: of the variance over texts that the other sources leave. The task's share is the label's and "
        "its interaction's with language together. Verdicts at a false discovery rate of 5 % within each language's "
        f"neurons. Dotted: what the task must explain in the median neuron to be found with 80 % power "
        f"({detectable:.2%}).",
        provenance_of(about),
    )
    return legend_above(figure)


def _add_others(figure: go.Figure, found: Polysemanticity, seed: int) -> int:
    """Draw some neurons outside the set; how many."""
    own = found.rows["layer"] * found.decomposition.shape[1] + found.rows["neuron"]
    others = np.setdiff1d(np.arange(np.prod(found.decomposition.shape)), own)
    drawn = np.random.default_rng(seed).permutation(others)[:BACKGROUND]
    language, task, interaction = (
        found.decomposition.partial(source).numpy().ravel()[drawn] for source in ("language", "task", "interaction")
    )
    figure.add_scatter(
        x=language,
        y=task + interaction,
        name="other neurons",
        mode="markers",
        marker={"color": "#bbbbbb", "size": 3},
        hoverinfo="skip",
    )
    return len(drawn)
