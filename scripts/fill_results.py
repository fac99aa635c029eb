"""Fill the numbers of a results page from saved results, so that none of them is typed by hand.

Usage (from the project's root)::

    python -m scripts.fill_results docs/results/smollm2.md                        # from the results beside the page
    python -m scripts.fill_results docs/results/smollm2.md --study runs/smollm2   # takes them from a study first

A page names its results in one line, and shows what they hold between markers that readers do not see::

    <!-- results: matrix = matrix/smollm2/all/lape/zero; validity = validity/smollm2/all/lape -->
    <!-- table matrix: patched == measured --> ... <!-- end -->           the rows that a query of pandas selects
    <!-- table validity --> ... <!-- end -->                              all rows
    <!-- table matrix.selectivity --> ... <!-- end -->                    another table of the result
    <!-- value matrix hi hi: effect (%) -->+73.9<!-- end -->              a cell without its interval
    <!-- cell matrix hi hi: effect (%) -->+73.9 [70.1, 77.2]<!-- end -->  with it

Keys are the first columns of the printed table. The results lie in a folder with the page's name, beside it, and a test
fails where the page says anything else than they do.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import langneurons as ln
from langneurons.storage.presenting import Table
from langneurons.study.study import Study

NAMES = re.compile(r"<!-- results: (.*?) -->", re.DOTALL)
TABLE = re.compile(r"<!-- table (?P<name>[\w.]+)(?:: (?P<query>.*?))? -->.*?<!-- end -->", re.DOTALL)
CELL = re.compile(
    r"<!-- (?P<kind>value|cell) (?P<name>[\w.]+) (?P<keys>[^:]*): (?P<column>.*?) -->.*?<!-- end -->", re.DOTALL
)


class PageError(Exception):
    """A page asks for something that its results do not hold."""


def steps_of(page: str) -> dict[str, str]:
    """The results that a page names, and the step of the study that each comes from."""
    named = NAMES.search(page)
    pairs = [] if named is None else [pair.split("=") for pair in named[1].split(";") if pair.strip()]
    return {name.strip(): step.strip() for name, step in pairs}


def take(page: Path, study: Study) -> None:
    """Copy the results that a page names from a study to the folder beside the page."""
    for name, step in steps_of(page.read_text("utf-8")).items():
        target = page.with_suffix("") / name
        ln.storage.remove_folder(target)
        ln.load(study.path(step)).save(target)


def filled(page: Path) -> str:
    """The page with every number as its results have it.

    Raises:
        PageError: If a result, a row or a column does not exist.
    """
    text = page.read_text("utf-8")
    results = {name: ln.load(page.with_suffix("") / name) for name in steps_of(text)}

    def table(marker: re.Match[str]) -> str:
        start = marker[0].partition("-->")[0] + "-->"
        return f"{start}\n{_table(results, marker['name'], marker['query']).to_markdown()}\n<!-- end -->"

    def cell(marker: re.Match[str]) -> str:
        start = marker[0].partition("-->")[0] + "-->"
        content = _cell(_table(results, marker["name"]), marker["keys"].split(), marker["column"])
        return f"{start}{content if marker['kind'] == 'cell' else content.partition(' [')[0]}<!-- end -->"

    return CELL.sub(cell, TABLE.sub(table, text))


def _table(results: dict[str, Any], name: str, query: str | None = None) -> Table:
    """A table of a result, or the rows of it that a query selects."""
    name, _, part = name.partition(".")
    if name not in results:
        raise PageError(f"The page does not name the result {name!r}: it names {', '.join(results)}.")
    result = results[name]
    if query:
        result = replace(result, rows=result.rows.query(query))
    table = getattr(result, f"{part}_table" if part else "table")()
    if not len(table):
        raise PageError(f"No row of {name!r} is {query!r}.")
    return table


def _cell(table: Table, keys: list[str], column: str) -> str:
    """A cell as it is printed."""
    texts = table.texts()
    if column not in texts.columns:
        raise PageError(f"There is no column {column!r}: there are {', '.join(texts.columns)}.")
    rows = texts[(texts.iloc[:, : len(keys)] == keys).all(axis=1)]
    if len(rows) != 1:
        raise PageError(f"{len(rows)} rows begin with {' '.join(keys)}, where one should.")
    return str(rows[column].iloc[0])


def main() -> None:
    """Parse the command line, and fill the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", help="pages to fill, in place")
    parser.add_argument("--study", type=Path, help="folder of a study to take the results from")
    arguments = parser.parse_args()
    for page in arguments.pages:
        if not page.is_file():
            parser.error(f"there is no page {page}")
    try:
        for page in arguments.pages:
            if arguments.study is not None:
                take(page, Study.from_toml(arguments.study))
            page.write_text(filled(page), "utf-8")
    except (PageError, ln.LangNeuronsError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
