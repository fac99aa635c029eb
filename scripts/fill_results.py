"""Fill the numbers of a page from saved results, so that none of them is typed by hand.

Usage (from the project's root)::

    python -m scripts.fill_results docs/results/babel.md                      # from the results beside the page
    python -m scripts.fill_results docs/results/babel.md --study runs/babel   # takes them from a study first
    python -m scripts.fill_results README.md                                  # from the results of another page

A page names its results in one line, and shows what they hold between markers that readers do not see::

    <!-- results: matrix = matrix/babel/all/lape/zero; validity = validity/babel/all/* -->    joined, where several
    <!-- results of docs/results/babel.md -->                              in a page that shows those of another
    <!-- table validity --> ... <!-- end -->                               all rows
    <!-- table matrix: patched == measured --> ... <!-- end -->            the rows that a query of pandas selects
    <!-- table matrix | patched; effect (%) --> ... <!-- end -->           some columns, without title and caption
    <!-- table matrix.selectivity --> ... <!-- end -->                     another table of the result
    <!-- table transfer.table: language == 'hi' --> ... <!-- end -->       rows of what is printed
    <!-- table transfer.effects.random --> ... <!-- end -->                one that takes a word
    <!-- value matrix hi hi: effect (%) -->+73.9<!-- end -->               a cell without its interval
    <!-- cell matrix hi hi: effect (%) -->+73.9 [70.1, 77.2]<!-- end -->   with it

Keys are the first columns of the printed table, in quotes where they hold spaces. The results lie in a folder with the
page's name, beside it, and a test fails where a page says anything else than they do.
"""

import argparse
import fnmatch
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import langneurons as ln
from langneurons.analysis.validity.checks import ValidityTable
from langneurons.storage.presenting import Table
from langneurons.study.study import Study

ROOT = Path(__file__).parents[1]
NAMES = re.compile(r"<!-- results: (.*?) -->", re.DOTALL)
ELSEWHERE = re.compile(r"<!-- results of (\S+) -->")
TABLE = re.compile(
    r"<!-- table (?P<name>[\w.-]+)(?:: (?P<query>[^|]*?))?(?: \| (?P<columns>.*?))? -->.*?<!-- end -->", re.DOTALL
)
CELL = re.compile(
    r"<!-- (?P<kind>value|cell) (?P<name>[\w.-]+) (?P<keys>[^:]*): (?P<column>.*?) -->.*?<!-- end -->", re.DOTALL
)


class PageError(Exception):
    """A page asks for something that its results do not hold."""


def steps_of(page: str) -> dict[str, str]:
    """The results that a page names, and the steps of the study that each comes from."""
    named = NAMES.search(page)
    pairs = [] if named is None else [pair.split("=") for pair in named[1].split(";") if pair.strip()]
    return {name.strip(): steps.strip() for name, steps in pairs}


def source_of(page: Path) -> Path:
    """The page whose results a page shows: itself, or the one that it names."""
    elsewhere = ELSEWHERE.search(page.read_text("utf-8"))
    return page if elsewhere is None else ROOT / elsewhere[1]


def take(page: Path, study: Study) -> None:
    """Copy the results that a page names from a study to the folder beside the page."""
    for name, pattern in steps_of(page.read_text("utf-8")).items():
        steps = fnmatch.filter(study.steps, pattern)
        if not steps:
            raise PageError(f"No step of the study is {pattern!r}: it has {', '.join(study.steps)}.")
        results = [ln.load(study.path(step)) for step in steps]
        target = page.with_suffix("") / name
        ln.storage.remove_folder(target)
        (ValidityTable.joined(results) if len(results) > 1 else without_texts(results[0])).save(target)
        for text in target.glob("*.md"):
            text.unlink()  # it would be taken for a page of the documentation


def without_texts(result: Any) -> Any:
    """The result without the answers of a task, which are text of somebody's data."""
    answers = {"gold", "prediction"} & set(getattr(result, "rows", ()))
    return replace(result, rows=result.rows.assign(**dict.fromkeys(answers, ""))) if answers else result


def filled(page: Path) -> str:
    """The page with every number as its results have it.

    Raises:
        PageError: If a result, a row or a column does not exist.
    """
    source = source_of(page)
    results = {name: ln.load(source.with_suffix("") / name) for name in steps_of(source.read_text("utf-8"))}

    def table(marker: re.Match[str]) -> str:
        start = marker[0].partition("-->")[0] + "-->"
        shown = _table(results, marker["name"], marker["query"], marker["columns"])
        return f"{start}\n{shown.to_markdown()}\n<!-- end -->"

    def cell(marker: re.Match[str]) -> str:
        start = marker[0].partition("-->")[0] + "-->"
        content = _cell(_table(results, marker["name"]), shlex.split(marker["keys"]), marker["column"])
        return f"{start}{content if marker['kind'] == 'cell' else content.partition(' [')[0]}<!-- end -->"

    return CELL.sub(cell, TABLE.sub(table, page.read_text("utf-8")))


def _table(results: dict[str, Any], name: str, query: str | None = None, columns: str | None = None) -> Table:
    """A table of a result, or the rows and columns of it that a page asks for."""
    name, *part = name.split(".")
    if name not in results:
        raise PageError(f"The page does not name the result {name!r}: it names {', '.join(results)}.")
    result = _part(results[name], *part)
    if query:
        rows = "frame" if isinstance(result, Table) else "rows"
        result = replace(result, **{rows: getattr(result, rows).query(query)})
    table = result if isinstance(result, Table) else result.table()
    if not len(table):
        raise PageError(f"No row of {name!r} is {query!r}.")
    if columns is None:
        return table
    texts = table.texts()
    names = [column.strip() for column in columns.split(";")]
    for column in names:
        _check_column(texts.columns, column)
    return Table(texts[names])


def _part(result: Any, part: str = "", *words: str) -> Any:
    """The result itself, or what one of its methods gives."""
    if not part:
        return result
    return getattr(result, f"{part}_table" if hasattr(result, f"{part}_table") else part)(*words)


def _cell(table: Table, keys: list[str], column: str) -> str:
    """A cell as it is printed."""
    texts = table.texts()
    _check_column(texts.columns, column)
    rows = texts[(texts.iloc[:, : len(keys)] == keys).all(axis=1)]
    if len(rows) != 1:
        raise PageError(f"{len(rows)} rows begin with {' '.join(keys)}, where one should.")
    return str(rows[column].iloc[0])


def _check_column(columns: Any, column: str) -> None:
    if column not in columns:
        raise PageError(f"There is no column {column!r}: there are {', '.join(columns)}.")


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
