"""What a report carries inside for its script: all texts of the neurons, and plotly, both compressed."""

import base64
import gzip
import json
from functools import cache
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from langneurons.analysis.profiles.result import Profiles
from langneurons.views.neuron_page import ANCHOR
from langneurons.views.tokens import whole_characters

LEVELS = 30  # of colour, on either side of zero
MIDDLE = 78  # the character code that stands for level 0


def packed(text: str) -> str:
    """Compress a text for a script element; ``DecompressionStream`` reads it back."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def packed_plotly() -> str:
    """The plotly that draws the figures, 4.7 MB of it in 1.9 MB."""
    return packed(get_plotlyjs())


def packed_texts(profiles: Profiles) -> str:
    """Every text of every neuron, each text once, values as levels of colour.

    Returns:
        Compressed JSON: texts, "text -> whole characters"; and examples, anchor -> scale and rows of language, kind
        (its first letter), activation, number of the text, and one character a piece for its value.
    """
    pieces: dict[int, list[str]] = {}
    examples = {}
    for neuron in profiles.neurons:
        found = profiles[neuron].examples.to_dict("records")
        finite = [abs(value) for row in found for value in row["values"] if np.isfinite(value)]
        scale = max(finite, default=0.0) or 1.0
        rows = [_row(row, pieces, profiles, scale) for row in found]
        examples[ANCHOR.format(*neuron)] = {"scale": float(f"{scale:.4g}"), "rows": rows}
    return packed(script_json({"texts": {str(text): kept for text, kept in pieces.items()}, "examples": examples}))


def script_json(content: Any) -> str:
    """JSON that can stand inside a script element, whatever text it holds."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _row(row: dict[str, Any], pieces: dict[int, list[str]], profiles: Profiles, scale: float) -> list[Any]:
    whole = whole_characters(profiles.pieces(row["text"]), list(row["values"]))
    pieces.setdefault(row["text"], [piece for piece, _ in whole])
    levels = "".join(chr(MIDDLE + (round(LEVELS * value / scale) if np.isfinite(value) else 0)) for _, value in whole)
    return [row["language"], row["kind"][0], f"{row['activation']:.3g}".replace("-", "−"), row["text"], levels]
