"""Pages of results say what the saved results beside them hold."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import langneurons as ln
from scripts.fill_results import PageError, filled, source_of, steps_of

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "<!-- results" in page.read_text("utf-8")
]
PAGE = """# Do they matter?
<!-- results: matrix = matrix/m/all/lape/zero -->
Hindi loses <!-- value matrix hi hi: effect (%) -->1<!-- end --> %, <!-- cell matrix hi hi: effect (%) --><!-- end -->.

<!-- table matrix: patched == measured -->
an older table
<!-- end -->
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_its_results_hold(page):
    assert steps_of(source_of(page).read_text("utf-8"))
    assert filled(page) == page.read_text("utf-8"), f"run: python -m scripts.fill_results {page}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_line_begins_with_a_number_of_results_because_its_marker_would_end_the_paragraph(page):
    lines = page.read_text("utf-8").splitlines()
    assert not [line for line in lines if line.lstrip().startswith(("<!-- cell", "<!-- value"))]


QUESTIONS = [
    ROOT / "docs" / "results" / f"{name}.md"
    for name in (
        "do-they-matter",
        "do-they-help-a-task",
        "does-training-help",
        "what-else-they-carry",
        "are-the-scores-real",
    )
]


@pytest.mark.parametrize("page", QUESTIONS, ids=lambda page: page.stem)
def test_a_question_s_page_has_its_answer_a_figure_a_table_how_to_repeat_it_and_what_would_change_our_mind(page):
    text = page.read_text("utf-8")
    title, _, answer, figure, *_ = text.split("\n\n")
    assert title.endswith("?")
    assert answer.startswith("**")
    assert (ROOT / "figures" / re.fullmatch(r"!\[.+\]\(\.\./figures/(.+)\)", figure)[1]).is_file()
    assert text.count("![") == text.count("<!-- table ") == 1
    assert "\n## How to repeat it\n" in text
    assert "\n## What would change our mind\n\n- " in text


def test_the_gallery_shows_every_figure_that_no_page_of_results_shows():
    pages = [path.read_text("utf-8") for path in (ROOT / "docs" / "results").glob("*.md")]
    assert [
        path.name for path in (ROOT / "figures").glob("*.png") if not any(path.name in text for text in pages)
    ] == []


def test_no_text_of_a_task_is_kept_with_its_results():
    kept = [pd.read_parquet(path) for path in (ROOT / "docs").rglob("rows.parquet")]
    answered = [rows for rows in kept if "gold" in rows]
    assert answered
    for rows in answered:
        assert set(rows["gold"]) | set(rows["prediction"]) == {""}


@pytest.fixture
def page(tmp_path):
    def rows(factor):
        return pd.DataFrame({"item": range(60), "cluster": np.arange(60) // 2, "nll": 2.0 * factor, "tokens": 10})

    spread = np.linspace(0.9, 1.1, 60)
    effects = {
        (patched, measured): ln.effects.effect(rows((1.5 if patched == measured else 1.1) * spread), rows(spread))
        for patched in ("hi", "zh")
        for measured in ("hi", "zh")
    }
    ln.effects.EffectTable.of(effects, ("patched", "measured"), "made up").save(tmp_path / "page" / "matrix")
    path = tmp_path / "page.md"
    path.write_text(PAGE, "utf-8")
    return path


def test_markers_are_filled_and_filling_again_changes_nothing(page):
    text = filled(page)
    sentence = text.splitlines()[2]
    assert sentence.startswith("Hindi loses <!-- value matrix hi hi: effect (%) -->+50<!-- end --> %")
    assert "<!-- cell matrix hi hi: effect (%) -->+50 [" in sentence
    assert "an older table" not in text
    assert text.count("\n| hi | hi |") == text.count("\n| zh | zh |") == 1
    assert "| hi | zh |" not in text
    page.write_text(text, "utf-8")
    assert filled(page) == text


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        ("<!-- value matrix hi: effect (%) --><!-- end -->", "2 rows begin with hi"),
        ("<!-- value matrix hi hi: effect --><!-- end -->", "no column 'effect': there are patched, measured, effect"),
        ("<!-- value sweep hi hi: effect (%) --><!-- end -->", "does not name the result 'sweep'"),
        ("<!-- table matrix: patched == 'ur' --><!-- end -->", "No row of 'matrix'"),
    ],
)
def test_what_the_results_do_not_hold_is_refused(page, marker, sentence):
    page.write_text(PAGE + marker, "utf-8")
    with pytest.raises(PageError, match=sentence):
        filled(page)


def test_some_columns_and_another_page_s_results_can_be_shown(page, tmp_path):
    table = "<!-- table matrix: patched == 'hi' | measured; effect (%) --><!-- end -->\n"
    other = tmp_path / "other.md"
    other.write_text(f"<!-- results of {page} -->\n{table}", "utf-8")
    lines = filled(other).splitlines()
    assert lines[2:4] == ["| measured | effect (%) |", "| --- | --- |"]
    assert lines[4].startswith("| hi | +50 [")
    other.write_text(f"<!-- results of {page} -->\n{table.replace('measured;', 'mesured;')}", "utf-8")
    with pytest.raises(PageError, match="no column 'mesured'"):
        filled(other)


def test_a_changed_result_is_noticed(page):
    page.write_text(filled(page), "utf-8")
    table = ln.load(page.with_suffix("") / "matrix")
    changed = replace(table, rows=table.rows.assign(estimate=2 * table.rows["estimate"]))
    ln.storage.remove_folder(page.with_suffix("") / "matrix")
    changed.save(page.with_suffix("") / "matrix")
    assert filled(page) != page.read_text("utf-8")
