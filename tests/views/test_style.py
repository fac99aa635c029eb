import numpy as np
import plotly.graph_objects as go
import pytest

from langneurons.effects.table import span
from langneurons.views import style
from langneurons.views.style import TEMPLATE, label_room, legend_above, signed, styled


def drawn(names=("en", "hi")):
    return go.Figure([go.Scatter(y=[1, 2], name=name) for name in names])


def test_caption_and_provenance_are_kept_with_the_figure_and_not_drawn():
    figure = styled(drawn(), "A title", 300, caption="What is seen.", provenance="babel")
    assert figure.layout.meta == {"caption": "What is seen.", "provenance": "babel"}
    assert not figure.layout.annotations


def test_every_figure_has_the_one_template():
    assert styled(drawn(), "A title", 300).layout.template == go.Figure(layout={"template": TEMPLATE}).layout.template


def test_a_long_title_is_broken_into_lines_and_given_room():
    short, long = (styled(drawn(), title, 400) for title in ("short", "a very long title " * 8))
    lines = long.layout.title.text.split("<br>")
    assert 1 < len(lines) < 5
    assert max(map(len, lines)) < 80
    drawing = [figure.layout.height - figure.layout.margin.t - figure.layout.margin.b for figure in (short, long)]
    assert drawing[0] == drawing[1]
    assert long.layout.margin.t > short.layout.margin.t


def test_a_legend_above_gets_as_many_rows_as_its_entries_need():
    few, many = (
        legend_above(styled(drawn([f"a language {n}" for n in range(count)]), "A title", 400)) for count in (2, 30)
    )
    assert many.layout.margin.t - few.layout.margin.t > 5 * 22
    assert many.layout.height - many.layout.margin.t == few.layout.height - few.layout.margin.t
    assert few.layout.legend.orientation == "h"


def test_the_title_stays_where_it_was_when_the_figure_grows():
    before = styled(drawn(), "A title", 400)
    above = (1 - before.layout.title.y) * before.layout.height
    after = legend_above(before)
    assert (1 - after.layout.title.y) * after.layout.height == pytest.approx(above)


def test_numbers_have_a_true_minus_and_zero_has_no_sign():
    assert [signed(value) for value in (1.234, -1.234, -0.001, 0.0)] == ["+1.23", "−1.23", "0.00", "0.00"]
    assert (span([3]), span([1, 2000])) == ("3", "1 to 2,000")


def test_long_labels_widen_the_margin():
    assert label_room(["en", "hi"]) == 70
    assert label_room(["ActivationProbability > pooled-p90"]) > 240


LINK = "<a href='https://x.org'>&amp; $x$ %{y}</a>"
SHOWN = "&lt;a href='https://x.org'>&amp;amp; &#36;x&#36; &#37;{y}&lt;/a>"


def test_names_and_texts_in_a_figure_are_shown_letter_for_letter():
    figure = go.Figure(
        go.Bar(x=[LINK, "en"], y=[1, 2], name=LINK, text=[f"<b>{LINK}</b><br>", ""], customdata=[[LINK]])
    )
    figure.add_annotation(text=LINK)
    figure.update_yaxes(title=LINK, ticktext=[LINK], tickvals=[1])
    figure = style.styled(figure, LINK, 300, LINK)
    (bar,), layout = figure.data, figure.layout
    assert list(bar.x) == [SHOWN, "en"]
    assert (bar.name, list(bar.text), bar.customdata[0][0]) == (SHOWN, [f"<b>{SHOWN}</b><br>", ""], SHOWN)
    for text in (layout.title.text, layout.title.subtitle.text, layout.annotations[0].text, layout.yaxis.title.text):
        assert text.replace("\u00a0", " ").removesuffix("<br> ") == SHOWN
    assert layout.yaxis.ticktext == (SHOWN,)
    assert style.title_of(figure).replace("\u00a0", " ") == LINK


@pytest.mark.parametrize("letters", [95, 400, 100_000])
def test_labels_of_any_length_leave_room_for_the_drawing_and_stay_different(letters):
    names = ["x" * letters + end for end in "ab"] + ["y" * letters + "z" * letters + end for end in ("", "y" * letters)]
    figure = style.heatmap(np.eye(4), names, names)
    figure = style.styled(figure, " ".join(names), 300, names[0], left=style.label_room(names, title=True))
    (drawn,) = figure.data
    assert len(set(drawn.y)) == 4
    assert list(drawn.x) == list(drawn.y)
    assert max(map(len, drawn.y)) <= style.LONGEST_LABEL
    assert figure.layout.width - figure.layout.margin.l - figure.layout.margin.r >= style.LEAST_ACROSS
    assert figure.layout.height < 1000
