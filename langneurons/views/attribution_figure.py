"""The figure of an attribution: what neurons add to a token's logit, exactly and by the direct path."""

import plotly.graph_objects as go

from langneurons.analysis.attribution import Attribution
from langneurons.corpora.languages import label_of
from langneurons.errors import EffectError, check_kind
from langneurons.views import style
from langneurons.views.effect_figures import provenance_of
from langneurons.views.style import COLOURS, error_bars, styled


def attribution(result: Attribution, language: str | None = None, top: int = 20) -> go.Figure:
    """Draw what neurons add to logit(token) - logit(rival), those that add most on top.

    Args:
        result: What ``ln.analysis.confusion_point`` or ``ln.analysis.attribute`` returned.
        language: Language of the answers; by default the first.
        top: Number of neurons to draw.

    Raises:
        LanguageError: If there is no point in the language.

    Example:
        >>> result = ln.analysis.attribute(model, "The children went to", (" the", " a"), exact=20, progress=False)
        >>> ln.plot.attribution(result).data[0].name
        'exact'
    """
    check_kind(result, Attribution, "This figure is of what ln.analysis.confusion_point() returns", EffectError)
    language = result.languages[0] if language is None else label_of(language, result.languages)
    rows = result.rows.loc[result.rows["language"] == language]
    rows = rows.loc[rows["exact"].abs().sort_values(ascending=False, kind="stable").index[:top]]
    names = [f"layer {row['layer']}, {row['neuron']}" for row in rows.to_dict("records")]
    figure = go.Figure()
    for number, (name, low, high) in enumerate((("exact", "low", "high"), ("direct", "direct_low", "direct_high"))):
        ends = rows[[name, low, high]].set_axis([name, "low", "high"], axis=1)
        tested = bool(ends["low"].notna().all())
        figure.add_scatter(
            x=ends[name],
            y=[place + (number - 0.5) / 3 for place in range(len(ends))],
            error_x=error_bars(ends, name, color=COLOURS[number], thickness=1.5, width=2) if tested else None,
            mode="markers",
            name=name,
            marker={"color": COLOURS[number], "size": 7},
            hovertemplate=f"%{{x:+.3g}}, {name}<extra></extra>",
        )
    figure.add_vline(x=0, line_width=1, line_color="#555555")
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6])
    figure.update_xaxes(title="contribution to the logit of the token minus that of its rival")
    points = result.points.loc[result.points["language"] == language]
    subtitle = f"n = {len(points)} points in {points['cluster'].nunique()} clusters; right: pushes the token"
    title = "What neurons add where the token is written"
    about, height, left = provenance_of(result.settings), 190 + 24 * len(names), style.label_room(names)
    return style.legend_above(styled(figure, title, height, subtitle, result.caption, about, left=left))
