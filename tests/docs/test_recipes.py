"""The documentation's code runs: every recipe, and every example of an error page."""

import doctest
import functools
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import langneurons as ln

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def recipes() -> dict[str, str]:
    """The code of each recipe by its heading; that before the first heading is "before"."""
    pages = re.split(r"^## (.+)$", "## before\n" + (DOCS / "recipes.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    blocks = {
        heading: re.findall(r"^```python\n(.+?)^```", text, flags=re.MULTILINE | re.DOTALL)
        for heading, text in zip(pages[::2], pages[1::2], strict=True)
    }
    return {heading: "\n".join(found) for heading, found in blocks.items()}


@functools.cache
def begun() -> dict[str, object]:
    """The names that the lines before the first recipe make."""
    names: dict[str, object] = {}
    exec(compile(recipes()["before"], "recipes.md", "exec"), names)
    return names


def test_there_are_recipes_and_each_has_code():
    assert len(recipes()) > 10
    assert all(recipes().values()), [heading for heading, code in recipes().items() if not code]


@pytest.mark.parametrize("heading", [heading for heading in recipes() if heading != "before"])
def test_a_recipe_runs_after_the_first_lines(heading, tmp_path, monkeypatch, capsys):
    names = dict(begun())
    monkeypatch.chdir(tmp_path)
    exec(compile(recipes()[heading], f"recipes.md, {heading}", "exec"), names)


def blocks_of(page: str) -> list[str]:
    """The Python blocks of a page as they are printed."""
    return re.findall(r"^```python\n(.+?)^```", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


ELSEWHERE = ("docs/recipes.md", "docs/formats.md")  # tests of their own run these
WITH_CODE = [
    page
    for page in ["README.md", *sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))]
    if blocks_of(page) and page not in ELSEWHERE
]


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_blocks_of_a_page_run_one_after_the_other_but_those_that_say_what_they_lack(
    page, tmp_path, monkeypatch, capsys
):
    names: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(blocks_of(page), 1):
        if not re.match(r"# not run: (needs|takes) \w", block):
            exec(compile(block, f"{page}, block {number}", "exec"), names)


@pytest.mark.parametrize(
    "page", sorted(path.name for path in (DOCS / "errors").glob("*Error.md")) + ["LangNeuronsWarning.md"]
)
def test_an_error_page_shows_what_really_happens(page, babel, babel_stats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "errors" / page).read_text("utf-8")
    code = "\n".join(re.findall(r"^```pycon\n(.+?)^```", text, flags=re.MULTILINE | re.DOTALL))
    assert code, f"{page} has no example"
    names = {"ln": ln, "torch": torch, "pd": pd, "model": babel, "stats": babel_stats}
    example = doctest.DocTestParser().get_doctest(code, names, page, page, 0)
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(example, out=said.append)
    assert not failed, "".join(said)
