import math
import unicodedata
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import langneurons as ln
from langneurons.errors import NeuronSetError
from langneurons.views.tokens import coloured_text, whole_characters

HOSTILE = "<script>alert(1)</script>"
ALPHABET = st.sampled_from(
    [*"ab <>&\"'", "न", "म", "्", "ी", "ا", "ب", "ِ", "世", "👩", "\u200d", "💻", "🏽", "e", "\u0301"]
)
PIECES = st.lists(st.tuples(st.text(ALPHABET, max_size=3), st.floats(-5, 5)), max_size=12)


class Reader(HTMLParser):
    """What a browser would make of some markup: its elements and its text."""

    def __init__(self, markup):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(str(markup))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(PIECES)
def test_every_character_is_kept_and_none_begins_with_a_mark(pairs):
    pieces, values = [piece for piece, _ in pairs], [value for _, value in pairs]
    shown = whole_characters(pieces, values)
    assert "".join(piece for piece, _ in shown) == "".join(pieces)
    assert all(piece for piece, _ in shown)
    assert not any(unicodedata.category(piece[0]).startswith("M") for piece, _ in shown[1:])
    assert max((abs(value) for _, value in shown), default=0) == max(map(abs, values), default=0) or not "".join(pieces)


@given(PIECES)
def test_a_browser_reads_the_text_and_no_element_of_it(pairs):
    read = Reader(coloured_text([piece for piece, _ in pairs], [value for _, value in pairs]))
    assert read.text == "".join(piece for piece, _ in pairs)
    assert {tag for tag, _ in read.elements} <= {"div", "span"}
    assert read.elements[0] == ("div", {"class": "tokens", "dir": "auto", "style": "white-space:pre-wrap"})


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        (["स", "्", "त", "्री"], ["स्त्री"]),
        (["a", "", "", "b"], ["a", "b"]),
        (["", "a"], ["a"]),
        (["e", "\u0301t"], ["e\u0301t"]),
        (["👩", "", "🏽", "\u200d", "💻"], ["👩🏽\u200d💻"]),
        (["تھ", "ا"], ["تھ", "ا"]),
        (["", ""], []),
    ],
)
def test_pieces_are_joined_only_where_they_share_a_character(pieces, whole):
    assert [piece for piece, _ in whole_characters(pieces, [0.0] * len(pieces))] == whole


def test_the_larger_value_by_size_colours_joined_pieces():
    assert whole_characters(["न", "ी"], [1.0, -2.0]) == [("नी", -2.0)]
    assert whole_characters(["न", "ी"], [math.nan, 1.0]) == [("नी", 1.0)]


def test_colours_are_symmetric_around_zero_and_full_at_the_scale():
    read = Reader(coloured_text(["a", "b", "c", "d", "e"], [4, -2, 0, math.nan, 100], scale=4))
    spans = [attributes for _, attributes in read.elements[1:]]
    assert [span.get("style") for span in spans] == [
        "background:#d55e00aa",
        "background:#0072b255",
        None,
        None,
        "background:#d55e00aa",
    ]
    assert [span.get("title") for span in spans] == ["+4", "-2", "+0", None, "+100"]


def test_without_a_scale_the_largest_value_has_full_colour():
    assert coloured_text(["a"], [0.001]).count("aa") == 1
    assert "background" not in coloured_text(["a"], [0.0])


def test_hostile_text_and_control_characters_are_harmless():
    markup = coloured_text([HOSTILE, "\x00\x1b", "a\nb"], [1, 1, 1])
    assert "<script" not in markup
    assert "␀␛" in markup
    assert "a\nb" in markup


def activations_of(pieces):
    rows = pd.MultiIndex.from_arrays([range(len(pieces)), pieces], names=["position", "token"])
    columns = pd.MultiIndex.from_tuples([(0, 3), (7, 10)], names=["layer", "neuron"])
    return pd.DataFrame([[i, -i] for i in range(len(pieces))], rows, columns, dtype="float32")


def test_circuitsvis_gets_whole_characters_and_cannot_be_escaped_from():
    shown = ln.plot.tokens(activations_of(["न", "ी", "</script>", "<!--"]))
    program, _, props = shown._repr_html_().partition('CircuitsVis.render(\n      "')
    assert props.count("<") == 2  # the end of the script and of the div
    assert props.endswith("</script></div>")
    assert '"tokens": ["\\u0928\\u0940", "\\u003c/script>", "\\u003c!--"]' in props
    assert '"values": [[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]' in props
    assert '"labels": ["layer 0, neuron 3", "layer 7, neuron 10"]' in props
    assert "unpkg" not in program[:2000]
    assert repr(shown) == "Activations of 3 tokens at 2 neurons"


def test_showing_tokens_never_asks_the_network(monkeypatch):
    monkeypatch.setattr("circuitsvis.utils.render.internet_on", lambda: pytest.fail("asked the network"))
    ln.plot.tokens(activations_of(["a"]))._repr_html_()


def test_nothing_to_show_is_refused():
    with pytest.raises(NeuronSetError, match="nothing to show"):
        ln.plot.tokens(activations_of([]))
    with pytest.raises(NeuronSetError, match="nothing to show"):
        ln.plot.tokens(activations_of(["a"]).iloc[:, :0])
