"""Text with a value per token: coloured whole characters that read well in any script, and CircuitsVis' view of them.

Corpus text is hostile: everything here is escaped.
"""

import math
import unicodedata
from collections.abc import Sequence

import pandas as pd
import torch
from circuitsvis.tokens import colored_tokens_multi
from markupsafe import Markup, escape

from langneurons.errors import NeuronSetError
from langneurons.views.looks import FONT

POSITIVE, NEGATIVE = "#d55e00", "#0072b2"  # Okabe and Ito's vermilion and blue
DENSEST = 170  # of 255: text stays legible through the colour, on light and on dark pages
JOINER = "\u200d"
ZERO_WIDTH_JOINERS = ("\u200c", JOINER)
SKIN_TONES = tuple(map(chr, range(0x1F3FB, 0x1F400)))
VIRAMA = 9  # the canonical combining class of signs that bind a consonant to the next
# Control characters have no glyph, and some are not allowed in HTML: their pictures stand for them.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
# CircuitsVis sets each token as a box, from left to right: letters of one word would not join, words stand in reverse.
READABLE = """<style>
.langneurons-tokens .colored-tokens { unicode-bidi: plaintext; text-align: start; font-family: FONT; }
.langneurons-tokens .colored-tokens > span > span { display: inline !important; margin: 0 !important;
  border: 0 !important; }
</style>""".replace("FONT", FONT)
CALL = 'CircuitsVis.render(\n      "'


def coloured_text(pieces: Sequence[str], values: Sequence[float], scale: float | None = None) -> Markup:
    """Colour each token of a text by its value: vermilion above zero, blue below.

    Args:
        pieces: The characters of each token, as ``ln.activations`` gives them; together they are the text. An empty
            piece goes on with a character of the piece before.
        values: One value per piece; values that are not finite give no colour.
        scale: Size of the values that give full colour; by default the largest in the text.

    Returns:
        One ``<div>``, escaped; a token's value shows when the pointer rests on it. Pieces that share a character, such
        as a letter and its vowel sign, are one span with the larger of their values, so that every script is shaped and
        read as ever.

    Example:
        >>> from langneurons.views.tokens import coloured_text
        >>> coloured_text(["a", "<b>"], [0.0, 2.0])
        Markup('<div class="tokens" dir="auto" ...>a</span><span ...#d55e00aa" title="+2">&lt;b&gt;</span></div>')
    """
    shown = whole_characters(pieces, values)
    finite = [abs(value) for _, value in shown if math.isfinite(value)]
    full = float(scale or max(finite, default=0.0) or 1.0)
    spans = Markup("").join(_span(piece, value, full) for piece, value in shown)
    return Markup('<div class="tokens" dir="auto" style="white-space:pre-wrap">{}</div>').format(spans)


def whole_characters(pieces: Sequence[str], values: Sequence[float]) -> list[tuple[str, float]]:
    """Join pieces until each holds whole characters: letters with their marks, joined emoji, bound consonants.

    Args:
        pieces: The characters of each token.
        values: One value per piece.

    Returns:
        Joined pieces, each with the largest value of its parts, by size; together they are the text.

    Example:
        >>> whole_characters(["न", "म", "स", "्", "ते", ""], [0, 1, 2, -3, 1, -1])
        [('न', 0.0), ('म', 1.0), ('स्ते', -3.0)]
    """
    joined: list[tuple[str, float]] = []
    for piece, value in zip(pieces, values, strict=True):
        before = joined[-1][0] if joined else None
        if before is not None and _goes_on(before, piece):
            joined[-1] = (before + piece, _larger(joined[-1][1], float(value)))
        else:
            joined.append((piece, float(value)))
    return [(piece, value) for piece, value in joined if piece]


def tokens(activations: pd.DataFrame) -> "TokenView":
    """Show neurons' activations on a text token by token, with CircuitsVis: choose a neuron, or rest on a token.

    Args:
        activations: Table that ``ln.activations`` returned, of few neurons.

    Returns:
        A view that notebooks show, offline too. It carries CircuitsVis' whole program, about 1.3 MB.

    Raises:
        NeuronSetError: If there is no token or no neuron to show.

    Example:
        >>> neurons = ln.LAPE(top=0.002).identify(stats)
        >>> ln.plot.tokens(ln.activations(model, "Good morning!", neurons["hi"]))
        Activations of 4 tokens at ... neurons
    """
    if activations.empty:
        raise NeuronSetError("There is nothing to show: give ln.activations(...) of a text and at least one neuron.")
    pieces = activations.index.get_level_values("token").tolist()
    columns = [whole_characters(pieces, column) for column in activations.to_numpy().T.tolist()]
    shown = [piece.translate(PICTURES) for piece, _ in columns[0]]
    values = torch.tensor([[value for _, value in column] for column in columns]).T
    labels = [f"layer {layer}, neuron {neuron}" for layer, neuron in activations.columns]
    program, call, props = colored_tokens_multi(shown, values, labels).local_src.partition(CALL)
    # CircuitsVis writes token text into a script as it is: a token with </script> in it would end the script.
    harmless = props.removesuffix("</script>").replace("<", r"\u003c")
    html = f'<div class="langneurons-tokens">{READABLE}{program}{call}{harmless}</script></div>'
    return TokenView(html, f"{len(shown)} tokens at {len(labels)} neurons")


class TokenView:
    """A CircuitsVis view that a notebook shows without asking the network.

    Args:
        html: The view and its program.
        about: Its content in words.
    """

    def __init__(self, html: str, about: str) -> None:
        self.html, self.about = html, about

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Activations of {self.about}"


def _goes_on(before: str, piece: str) -> bool:
    """Whether a piece begins within the last character of the piece before."""
    if not piece or not before:
        return True
    first, last = piece[0], before[-1]
    mark = unicodedata.category(first).startswith("M") or first in ZERO_WIDTH_JOINERS or first in SKIN_TONES
    return mark or last == JOINER or (unicodedata.combining(last) == VIRAMA and first.isalpha())


def _larger(*values: float) -> float:
    """The finite value of the largest size."""
    return max(filter(math.isfinite, values), key=abs, default=math.nan)


def _span(piece: str, value: float, full: float) -> Markup:
    text = escape(piece.translate(PICTURES))
    if not math.isfinite(value):
        return Markup("<span>{}</span>").format(text)
    density = round(DENSEST * min(1.0, abs(value) / full))
    colour = f"{POSITIVE if value > 0 else NEGATIVE}{density:02x}"
    style = Markup(' style="background:{}"').format(colour) if density else ""
    return Markup('<span{} title="{}">{}</span>').format(style, f"{value:+.3g}", text)
