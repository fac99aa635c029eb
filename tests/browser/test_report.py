import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import langneurons as ln
from langneurons.views.pages import neuron_page
from tests.browser.conftest import Watched
from tests.views.report import made_up

AXE = ("node_modules/axe-core/axe.min.js", os.environ.get("AXE_CORE", "axe.min.js"))


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
    page.locator("#neurons tbody tr:not([hidden]) a").last.click()
    anchor = rows[-1][3]
    assert page.evaluate("location.hash") == f"#{anchor}"
    page.locator(f"article#{anchor} h3").wait_for()
    page.locator("#neurons-heading ~ .filter").get_by_role("button", name="Show all rows").first.click()
    assert len(shown_rows(page)) == 12
    assert opened.errors == []


def test_the_map_works_from_the_keyboard(opened):
    opened.page.locator("table.map a").first.focus()
    opened.page.keyboard.press("Enter")
    assert 0 < len(shown_rows(opened.page)) < 12


def test_tables_sort_numbers_as_numbers_from_the_largest_and_say_so(opened):
    page = opened.page
    header = page.locator("#neurons thead th").nth(5)
    for direction in ("descending", "ascending"):
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


def test_tables_filter_by_column(opened):
    page = opened.page
    column = page.locator("#neurons thead th").nth(5).text_content()
    every = [float(row[5]) for row in shown_rows(page)]
    middle = sorted(every)[6]
    page.get_by_label(f"Filter by {column}").fill(f"> {middle}")
    assert sorted(float(row[5]) for row in shown_rows(page)) == sorted(value for value in every if value > middle)
    page.locator("#neurons").get_by_label("Filter by language").select_option("hi")
    assert all(row[1] == "hi" and float(row[5]) > middle for row in shown_rows(page))


def test_a_table_is_saved_as_csv_with_intervals_in_columns_and_no_formula(opened, tmp_path):
    page = opened.page
    table = page.locator("#matrix")
    with page.expect_download() as download:
        page.locator("#matrix-heading ~ .filter").get_by_role("button", name="Download CSV").first.click()
    download.value.save_as(tmp_path / "matrix.csv")
    frame = pd.read_csv(tmp_path / "matrix.csv")
    assert download.value.suggested_filename == "matrix.csv"
    assert len(frame) == table.locator("tbody tr").count() == 9
    change = next(name for name in frame.columns if f"{name} low" in frame.columns)
    assert (frame[f"{change} low"] <= frame[change]).all()
    assert frame[change].max() == pytest.approx(20, abs=1)


def test_pages_are_searched_and_turned_from_the_keyboard(opened):
    page = opened.page
    page.locator(".finder:not([hidden])").wait_for()
    first = page.locator("#neuron-page article").get_attribute("id")
    page.locator("#next-neuron").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelector('#neuron-page article').id !== '{first}'")
    assert page.locator("#place-of-neuron").text_content() == "2 of 12"
    page.locator("#find-neuron").fill("layer 2 ur")
    options = page.locator("#choose-neuron option").evaluate_all("options => options.map(option => option.value)")
    assert options
    assert all(option.startswith("L2N") for option in options)
    page.locator("#find-neuron").press("Enter")
    page.locator(f"article#{options[0]}").wait_for()
    page.locator("#neuron-page").get_by_role("link").first.click()  # a similar neuron
    page.wait_for_function(f"document.querySelector('#neuron-page article').id !== '{options[0]}'")
    page.go_back()
    page.locator(f"article#{options[0]}").wait_for()
    assert opened.errors == []


def test_words_are_explained_where_the_focus_or_the_pointer_is(opened):
    page = opened.page
    word = page.locator(".sure .term").first
    word.focus()
    shown = page.locator("#meaning")
    assert shown.is_visible()
    described = word.get_attribute("aria-describedby")
    assert shown.text_content() == page.locator(f"#{described}").text_content().strip()
    page.keyboard.press("Escape")
    assert not shown.is_visible()
    word.hover()
    page.mouse.move(1, 1)
    word.hover()
    assert shown.is_visible()


def test_figures_follow_dark_mode_while_the_page_is_open(opened):
    page = opened.page
    background = "getComputedStyle(document.querySelector('[data-figure] .main-svg')).backgroundColor"
    page.locator("[data-figure] .main-svg").first.wait_for(timeout=60_000)
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{background} === 'rgb(21, 24, 28)'")


def test_print_holds_what_matters_on_few_pages(browser, report):
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(report.as_uri())
    for place in page.locator("[data-figure]").all():
        place.evaluate("place => place.closest('details')?.removeAttribute('open')")
    page.wait_for_timeout(3000)
    assert page.pdf(format="A4").count(b"/Type /Page\n") <= 15
    context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 400)])
def test_axe_finds_nothing_serious(browser, report, scheme, width):
    axe = next((path for path in map(Path, AXE) if path.is_file()), None)
    if axe is None:
        pytest.skip(f"axe-core is not installed: no file of {', '.join(AXE)} (npm install axe-core)")
    context = browser.new_context(
        color_scheme=scheme, offline=True, bypass_csp=True, viewport={"width": width, "height": 900}
    )
    page = context.new_page()
    page.goto(report.as_uri())
    page.locator(".finder:not([hidden])").wait_for()
    page.evaluate(axe.read_text("utf-8"))
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = {each["id"] for each in result["violations"] if each["impact"] in ("serious", "critical")}
    assert serious == set()
    context.close()


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
