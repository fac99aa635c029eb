"""Every kind of result, with an attack in every free text, as a notebook and as a report show it."""

import html

import pytest
from plotly.offline import get_plotlyjs

import langneurons as ln
from tests.browser.conftest import Watched
from tests.robustness import results
from tests.robustness.hostile import ATTACKS, hostile
from tests.robustness.results import DRAWN, RESULTS
from tests.views.report import made_up

PAGE = "<!doctype html><meta charset=utf-8><title>results</title><script>{}</script><body>{}</body>"
EVIL = "a[href*='evil'], [*|href*='evil'], img, iframe, svg[onload], [onerror]"


def _opened(watched: Watched, path) -> Watched:
    watched.page.on("dialog", lambda dialog: dialog.dismiss())
    watched.page.goto(path.as_uri())
    return watched


def _harmless(watched: Watched) -> None:
    assert watched.page.evaluate("window.ran") is None
    # Plotly's own pictures of a colour scale are the only images.
    evil = watched.page.eval_on_selector_all(EVIL, "all => all.map(one => one.outerHTML.slice(0, 200))")
    assert [each for each in evil if "data:image/png" not in each] == []
    assert watched.requests == []
    assert watched.errors == []


@pytest.mark.parametrize("kind", RESULTS)
def test_no_text_of_a_result_becomes_code_or_a_link_in_a_notebook(kind, offline, tmp_path):
    result = hostile(RESULTS[kind]())
    parts = [result._repr_html_() or f"<pre>{html.escape(repr(result))}</pre>"]
    if result.kind in DRAWN:
        figure = result.plot(*([(0, 0)] if kind == "activation-statistics" else []))
        parts.append(figure.to_html(full_html=False, include_plotlyjs=False, div_id="figure"))
    (tmp_path / "page.html").write_text(PAGE.format(get_plotlyjs(), "".join(parts)), "utf-8")
    page = _opened(offline, tmp_path / "page.html").page
    shown = page.evaluate("document.body.innerText")
    if result.kind in DRAWN:
        page.locator("#figure .main-svg").first.wait_for(timeout=60_000)
        points = "[...document.getElementById('figure').data.keys()].map(n => ({curveNumber: n, pointNumber: 0}))"
        page.evaluate(f"try {{ Plotly.Fx.hover('figure', {points}) }} catch (error) {{}}")
        shown += "".join(page.eval_on_selector_all("#figure text", "all => all.map(one => one.textContent)"))
    assert any(attack in shown for attack in ATTACKS), "the test shows no attack"
    _harmless(offline)


def test_a_name_is_shown_letter_for_letter_in_a_figure_and_where_the_pointer_rests(offline, tmp_path):
    names = [f"{attack}{place}" for place, attack in enumerate(ATTACKS)]
    sets = {name: ln.NeuronSet.of({"en": [(0, place)]}, (1, 8), "act") for place, name in enumerate(names)}
    figure = ln.plot.layer_profile(sets).to_html(full_html=False, include_plotlyjs=False, div_id="figure")
    (tmp_path / "page.html").write_text(PAGE.format(get_plotlyjs(), figure), "utf-8")
    page = _opened(offline, tmp_path / "page.html").page
    page.locator("#figure .legend .traces").first.wait_for(timeout=60_000)
    legend = page.eval_on_selector_all("#figure .legendtext", "all => all.map(one => one.textContent)")
    assert legend == [f"{name} (1)" for name in names]
    page.evaluate(
        f"Plotly.Fx.hover('figure', [...Array({len(names)}).keys()].map(n => ({{curveNumber: n, pointNumber: 0}})))"
    )
    hovers = page.eval_on_selector_all("#figure .hovertext", "all => all.map(one => one.textContent)")
    for name in names:
        assert any(hover.startswith(f"{name}, layer 0") for hover in hovers), hovers
    _harmless(offline)


def test_no_text_of_any_result_becomes_code_or_a_link_in_a_report(offline, tmp_path):
    given = made_up.findings(6)
    extra = {kind: RESULTS[name]() for kind, name in (("transfer", "transfer"), ("validity", "validity-table"))}
    extra |= {"evaluation": results.evaluation(), "factorial": results.factorial()}
    extra |= {"polysemanticity": results.polysemanticity()}
    found = hostile(made_up.findings(6, **extra, published={ATTACKS[1]: results.evaluation().references}))
    assert found.question != given.question
    page = _opened(offline, ln.write_report(tmp_path / "report.html", found)).page
    places = page.locator("[data-figure]")
    for number in range(places.count()):
        places.nth(number).scroll_into_view_if_needed()
        places.nth(number).locator(".main-svg").first.wait_for(timeout=60_000)
    assert places.count() > 6
    assert all(attack in page.evaluate("document.body.textContent") for attack in ATTACKS)
    _harmless(offline)
