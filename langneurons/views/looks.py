"""Colours and fonts of every figure and page, on light and on dark paper; one language has one colour everywhere."""

from collections.abc import Iterable
from typing import Any
from zlib import crc32

import plotly.graph_objects as go

# Eight colours that colour-blind readers tell apart, dark enough for white paper and bright enough for black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#C9689B", "#B8860B", "#3B9ED1", "#7D63C4", "#A65628")
DASHES = ("solid", "dash", "dot", "dashdot")
# Each eight of these have the eight colours, each in another dash; other languages get theirs from their code.
LANGUAGES = (
    ("en", "hi", "fr", "zh", "es", "de", "vi", "ur")
    + ("ru", "ar", "tr", "bg", "sw", "th", "el", "id")
    + ("ja", "bn", "te", "ta", "ko", "it", "pt", "fa")
    + ("mr", "kn", "ml", "pa", "nl", "pl", "cs", "uk")
)
INK, FAINT, RULE, GRID, PAPER = "#222222", "#5a5a5a", "#888888", "#e8e8e8", "#ffffff"
SHADES = [[0.0, "#f3f7fb"], [0.5, "#6aaed6"], [1.0, "#084f99"]]  # for values without a sign
DIVERGING = [[0.0, "#2166ad"], [0.25, "#91c5de"], [0.5, "#f6f6f6"], [0.75, "#f3a582"], [1.0, "#b2182c"]]  # red is more
# Colours on light paper -> the same on dark paper.
DARK = {
    INK: "#e7eaee",
    FAINT: "#a9b1bb",
    RULE: "#7a838e",
    GRID: "#2c333b",
    PAPER: "#15181c",
    "#f3f7fb": "#1c232b",
    "#6aaed6": "#2f78a8",
    "#084f99": "#9ccbee",
    "#2166ad": "#8cc4ea",
    "#91c5de": "#33688c",
    "#f6f6f6": "#20262d",
    "#f3a582": "#8e4a38",
    "#b2182c": "#f29a80",
}
# The Noto faces cover Arabic script, Devanagari and Han where the first ones do not.
FONT = (
    "Inter, 'Noto Sans', 'Segoe UI', Helvetica, Arial, 'Noto Sans Devanagari', 'Nirmala UI', 'Noto Naskh Arabic', "
    "'Noto Sans Arabic', 'Geeza Pro', 'Noto Sans CJK SC', 'Noto Sans SC', 'Microsoft YaHei', sans-serif"
)

_AXIS = {
    "automargin": True,
    "gridcolor": GRID,
    "linecolor": RULE,
    "showline": True,
    "ticks": "",
    "title": {"font": {"size": 14}, "standoff": 10},
    "zeroline": False,
}
_COLORBAR = {"outlinewidth": 0, "thickness": 14, "ticks": "", "title": {"side": "right", "font": {"size": 13}}}
TEMPLATE = go.layout.Template(
    layout={
        "colorway": COLOURS,
        "font": {"family": FONT, "size": 13, "color": INK},
        "hoverlabel": {"align": "left", "font": {"family": FONT}},
        "legend": {"font": {"size": 12}},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "title": {"x": 0.0, "xref": "paper", "xanchor": "left", "font": {"size": 17}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    },
    data={"heatmap": [{"colorbar": _COLORBAR, "xgap": 1, "ygap": 1}]},
)


def place_of(language: str) -> int:
    """The place of a language among the pairs of colour and dash, the same wherever the language is shown.

    Example:
        >>> from langneurons.views.looks import place_of
        >>> place_of("en"), place_of("hi"), place_of("hi") == place_of("hi-Deva")
        (0, 1, True)
    """
    code = language.partition("-")[0]
    return LANGUAGES.index(code) if code in LANGUAGES else crc32(language.encode()) % (len(COLOURS) * len(DASHES))


def colour_of(language: str) -> str:
    """The colour of a language."""
    return COLOURS[place_of(language) % len(COLOURS)]


def lines_of(languages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and dash of each language's curve; where two would share both, the second takes the next that is free."""
    lines: dict[str, dict[str, Any]] = {}
    taken: set[int] = set()
    for language in languages:
        place, places = place_of(language), len(COLOURS) * len(DASHES)
        while place in taken and len(taken) < places:
            place = (place + 1) % places
        taken.add(place)
        lines[language] = {"color": COLOURS[place % len(COLOURS)], "dash": DASHES[place // len(COLOURS)]}
    return lines


def language_styles() -> str:
    """CSS classes c0 to c7 that hold the languages' colours; ``language_class`` names that of a language."""
    return "".join(f".c{place} {{ --own: {colour}; }}\n" for place, colour in enumerate(COLOURS))


def language_class(language: str) -> str:
    """The CSS class that holds a language's colour."""
    return f"c{place_of(language) % len(COLOURS)}"
