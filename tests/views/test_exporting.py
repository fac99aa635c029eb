import json
import re
import shutil

import plotly.graph_objects as go
import plotly.io
import pytest

import langneurons as ln
from langneurons.views import style as exporting
from langneurons.views.style import styled

HOSTILE = "<script>alert(1)</script> हिन्दी اردو"


@pytest.fixture
def figure():
    return styled(go.Figure(go.Scatter(y=[1, 2])), "Two points", 300, caption=HOSTILE, provenance="babel " * 60)


def test_a_page_holds_everything_and_escapes_its_caption(tmp_path, figure):
    page = ln.plot.save(figure, tmp_path / "deep" / "figure.html").read_text("utf-8")
    assert "Plotly.newPlot" in page
    caption = re.search("<figcaption>(.*)</figcaption>", page)
    assert caption is not None
    assert caption[1].startswith("&lt;script&gt;alert(1)&lt;/script&gt; हिन्दी اردو<br>babel")
    assert "<script src" not in page
    assert "<title>Two points</title>" in page


def test_the_same_page_without_caption(tmp_path, figure):
    assert (
        "alert(1)&lt;"
        not in ln.plot.save(figure, tmp_path / "f.html", caption=False).read_text("utf-8").split("<figcaption>")[1]
    )


def test_pictures_get_room_for_their_caption_below_the_drawing(figure):
    longer = exporting._with_caption(figure)
    room = longer.layout.height - figure.layout.height
    note = longer.layout.annotations[0]
    assert longer.layout.margin.b == figure.layout.margin.b + room
    assert note.yshift == -figure.layout.margin.b
    assert note.text.count("<br>") + 1 <= room / exporting.LINE
    assert "&lt;script>" in note.text
    assert not figure.layout.annotations


def test_a_figure_of_another_maker_can_be_saved(tmp_path):
    plain = go.Figure(go.Scatter(y=[1, 2]))
    assert exporting._with_caption(plain) is plain
    assert "<figcaption></figcaption>" in ln.plot.save(plain, tmp_path / "f.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["figure.gif", "figure", "figure.htm"])
def test_an_unknown_ending_is_refused_with_the_possible_ones(tmp_path, figure, name):
    with pytest.raises(ln.LangNeuronsError, match=r"Possible: \.html, \.png, \.svg, \.pdf"):
        ln.plot.save(figure, tmp_path / name)


@pytest.mark.parametrize("message", ["Image export requires the Kaleido package", "Kaleido requires Google Chrome"])
def test_without_kaleido_or_chrome_one_sentence_says_what_to_install(tmp_path, figure, monkeypatch, message):
    def fail(*arguments, **options):
        raise RuntimeError(f"\n\n{message}\n\n    $ plotly_get_chrome\n")

    monkeypatch.setattr(plotly.io, "to_image", fail)
    with pytest.raises(ln.LangNeuronsError, match=r"langneurons\[figures\].*Chrome") as raised:
        ln.plot.save(figure, tmp_path / "f.png")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "start"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_pictures_are_drawn_where_a_browser_is(tmp_path, figure, ending, start):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))):
        pytest.skip("no browser to draw with")
    assert ln.plot.save(figure, tmp_path / f"f.{ending}").read_bytes().startswith(start)


def test_what_is_kept_with_a_figure_survives_its_json(figure):
    assert json.loads(figure.to_json())["layout"]["meta"]["caption"] == HOSTILE
