"""The validity table as a figure: which method passes which check."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from langneurons.errors import StatisticsError
from langneurons.views.style import COLOURS, WIDTH, label_room, layout_of, styled

FAILED, PASSED = COLOURS[4], COLOURS[5]
COLUMN = 92  # pixels


@runtime_checkable
class Checked(Protocol):
    """Methods and checks, such as ``validity_table`` and ``ValidityTable.load`` give."""

    @property
    def rows(self) -> pd.DataFrame:
        """One row a method: every figure, and ``<column>_passes`` for every check."""
        ...

    @property
    def checks(self) -> Sequence[Any]:
        """What passes: column, title, bar, least."""
        ...


def validity(table: Checked) -> go.Figure:
    """Draw which method passes which check, and by how much.

    Args:
        table: From ``langneurons.analysis.validity.validity_table``, or ``ValidityTable.load``.

    Returns:
        A cell for every method and check that was measured: the figure, blue with a tick where it passes the bar that
        stands over the column, orange with a cross where it fails, white with a dash where it was not measured.

    Raises:
        StatisticsError: If nothing was measured.

    Example:
        >>> from langneurons.analysis.validity import Evidence, validity_table
        >>> table = validity_table([Evidence("good", recall=1.0, fdr=0.0), Evidence("bad", recall=0.2, fdr=0.0)])
        >>> ln.plot.validity(table).data[0].z.tolist()
        [[1.0, 1.0], [0.0, 1.0]]
    """
    checks = [check for check in table.checks if bool(table.rows[check.column].notna().to_numpy().any())]
    if not checks:
        raise StatisticsError("The validity table holds no check that was measured: there is nothing to draw.")
    methods = table.rows["method"].tolist()
    verdicts = table.rows[[f"{check.column}_passes" for check in checks]].astype("Float64")
    passes = verdicts.to_numpy(dtype=float, na_value=np.nan)
    figure = go.Figure(
        go.Heatmap(
            z=passes,
            x=[_heading(check) for check in checks],
            y=methods,
            text=[[_in_cell(row, check) for check in checks] for row in table.rows.to_dict("records")],
            texttemplate="%{text}",
            textfont={"color": "black"},
            colorscale=[[0, FAILED], [1, PASSED]],
            zmin=0,
            zmax=1,
            showscale=False,
            hovertemplate="%{y}<br>%{x}<br>%{text}<extra></extra>",
        )
    )
    figure.update_xaxes(side="top", showgrid=False, tickfont={"size": 11}, type="category", tickangle=0)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    left = label_room(methods)
    whole = int((np.nan_to_num(passes, nan=1.0) == 1).all(1).sum())
    styled(
        figure,
        "Is each method's score real? What every check says",
        180 + 40 * len(methods),
        f"n = {len(methods)} methods; ✓ passes the bar over its column, ✗ fails, – not measured; "
        f"{whole} of {len(methods)} fail none",
        "Bars: " + "; ".join(map(str, checks)) + ".",
        "checks of langneurons.analysis.validity on one recording",
        max(WIDTH, left + 40 + COLUMN * len(checks)),
        left,
    )
    return figure.update_layout(margin={"t": layout_of(figure).margin.t + 70, "b": 30})


def _heading(check: Any) -> str:
    words = str(check.title).replace(", ", ",<br>").replace(": ", ":<br>").split(" ")
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 11 and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join([*lines, f"<b>{'≥' if check.least else '≤'} {check.bar:g}</b>"])


def _in_cell(row: dict[Any, Any], check: Any) -> str:
    value, passes = row[check.column], row[f"{check.column}_passes"]
    if pd.isna(value) or pd.isna(passes):
        return "–"
    number = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
    return f"{number} {'✓' if passes else '✗'}"
