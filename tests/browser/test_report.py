from pathlib import Path
from typing import Any

import pytest

import langneurons as ln
from langneurons.views.pages import neuron_page
from tests.browser.conftest import Watched
from tests.views.report import made_up


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return ln.write_report(tmp_path_factory.mktemp("report") / "report.html", made_up.findings())


@pytest.fixture
def opened(offline: Watched, report: Path) -> Watched:
    offline.page.goto(report.as_uri())
    return offline


def shown_rows(page: Any) -> list[list[str]]:
    return page.eval_on_selector_all(
        "#neurons tbody tr:not([hidden])", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def test_the_report_opens_without_error_or_request_and_draws_its_figures(opened):
    places = opened.page.locator("[data-figure]")
    for number in range(places.count()):
        places.nth(number).scroll_into_view_if_needed()
        places.nth(number).locator(".main-svg").first.wait_for(timeout=60_000)
    assert places.count() >= 4
    assert opened.errors == []
    assert opened.requests == []


def test_a_cell_of_the_map_leads_to_its_list_and_on_to_a_page(opened):
    page = opened.page
    link = page.locator("table.map a").first
    wanted = link.get_attribute("aria-label")
    link.click()
    rows = shown_rows(page)
    assert wanted.endswith(f"{len(rows)} neurons")
    assert all(f"{row[1]}, layer {row[2]}" in wanted for row in rows)
    assert page.evaluate("document.activeElement.id") == "neurons-heading"
    assert "listed below" in page.locator("#said").text_content()
    page.locator("#neurons tbody tr:not([hidden]) a").first.click()
    anchor = rows[0][3]
    assert page.evaluate("location.hash") == f"#{anchor}"
    assert page.locator(f"article#{anchor} h3").is_visible()
    page.get_by_role("button", name="Show all rows").first.click()
    assert len(shown_rows(page)) == 12
    assert opened.errors == []


def test_the_map_works_from_the_keyboard(opened):
    opened.page.locator("table.map a").first.focus()
    opened.page.keyboard.press("Enter")
    assert 0 < len(shown_rows(opened.page)) < 12


def test_tables_sort_numbers_as_numbers_and_say_so(opened):
    page = opened.page
    header = page.locator("#neurons thead th").nth(5)
    for direction in ("ascending", "descending"):
        header.get_by_role("button").click()
        values = [float(row[5]) for row in shown_rows(page)]
        assert values == sorted(values, reverse=direction == "descending")
        assert header.get_attribute("aria-sort") == direction


def test_tables_filter_by_words(opened):
    page = opened.page
    page.locator(".filter input").first.fill("made l1n")
    assert {row[2] for row in shown_rows(page)} == {"1"}
    assert page.locator(".filter output").first.text_content() == "4 of 12 rows"
    page.locator(".filter input").first.fill("no such row")
    assert shown_rows(page) == []


def test_corpus_text_is_text_and_never_runs(opened):
    page, dialogs = opened.page, []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    article = page.locator("article.ln-neuron").first
    article.locator("details summary").first.click()
    line = article.locator("details li div").first
    line.wait_for()
    assert line.text_content().startswith(made_up.HOSTILE)
    assert page.locator("article script, td script, pre script").count() == 0
    assert dialogs == []
    assert opened.errors == []


def test_even_a_script_that_got_in_would_not_run(opened):
    ran = opened.page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        " document.body.append(script); return window.ran ?? 0; }"
    )
    assert ran == 0


@pytest.mark.parametrize(("language", "direction"), [("hi", "ltr"), ("ur", "rtl"), ("en", "ltr")])
def test_each_script_runs_in_its_own_direction_and_stays_joined(opened, language, direction):
    article = opened.page.locator("article.ln-neuron").first
    article.get_by_text(f"More texts in {language}").click()
    line = article.locator("details[open] li div").first
    line.wait_for()
    assert line.evaluate("element => getComputedStyle(element).direction") == direction
    assert line.text_content() == "".join(made_up.PIECES[language])
    # Text cut into coloured spans is as wide as the same text in one piece: no letter lost its joined form.
    cut, whole = line.evaluate(
        """element => {
          element.style.cssText += "; position: absolute; white-space: pre";
          const range = document.createRange(); range.selectNodeContents(element);
          const cut = range.getBoundingClientRect().width;
          const plain = element.cloneNode(false); plain.textContent = element.textContent; element.after(plain);
          range.selectNodeContents(plain);
          const whole = range.getBoundingClientRect().width; plain.remove();
          return [cut, whole];
        }"""
    )
    assert abs(cut - whole) < 1.0


def test_a_narrow_window_needs_no_sideways_scrolling(offline, report):
    offline.page.set_viewport_size({"width": 360, "height": 740})
    offline.page.goto(report.as_uri())
    assert offline.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_words_tables_and_pages_read_without_a_script(browser, report):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(report.as_uri())
    page.locator("table.map a").first.click()
    assert page.locator("#neurons tbody tr").first.is_visible()
    assert page.locator("article.ln-neuron svg").first.is_visible()
    assert page.locator("article.ln-neuron dd").first.is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_keeps_its_contrast_in_light_and_dark(browser, report, scheme):
    context = browser.new_context(color_scheme=scheme, offline=True)
    page = context.new_page()
    page.goto(report.as_uri())
    ink, paper = page.evaluate(
        "() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light, dark = sorted(map(luminance, (ink, paper)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 7
    context.close()


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_neuron_page_opens_alone(offline, tmp_path):
    given = made_up.findings()
    page = neuron_page(given.profiles, given.profiles.neurons[0], given.stats, None, given.ablation)
    offline.page.goto(page.save(tmp_path / "page.html").as_uri())
    assert offline.page.locator("h3").text_content() == "Layer 0, neuron 0"
    assert offline.page.locator("article .tokens").first.text_content().startswith(made_up.HOSTILE)
    assert offline.errors == []
    assert offline.requests == []
