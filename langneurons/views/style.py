"""How every figure looks: colours, fonts, margins."""

import plotly.graph_objects as go

# Okabe and Ito's eight colours, told apart by colour-blind readers; black comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot")
FONT = "Inter, 'Noto Sans', 'Segoe UI', Helvetica, Arial, sans-serif"


def styled(figure: go.Figure, title: str, height: int) -> go.Figure:
    """Give a figure its title, height and looks, and return it."""
    return figure.update_layout(
        title={"text": title, "x": 0.0, "xref": "paper", "font": {"size": 17}},
        font={"family": FONT, "size": 13, "color": "#222222"},
        paper_bgcolor="white",
        plot_bgcolor="white",
        width=780,
        height=max(height, 280),
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
        colorway=list(COLOURS),
        xaxis={"linecolor": "#888888", "gridcolor": "#eeeeee", "zeroline": False},
        yaxis={"linecolor": "#888888", "gridcolor": "#eeeeee", "zeroline": False},
    )
