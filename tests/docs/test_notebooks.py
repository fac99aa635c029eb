"""Committed notebooks show their pictures where no script runs, begin alike, and hide their long cells."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLOTLY, PICTURE = "application/vnd.plotly.v1+json", "image/png"
LONG = 20  # lines of a cell that readers have to see

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def shown(path: Path) -> list[dict]:
    return [output["data"] for cell in cells(path, "code") for output in cell["outputs"] if "data" in output]


@each
def test_every_figure_has_a_picture_and_no_output_needs_a_script_or_a_drawing_in_a_page(path):
    pages = ["".join(data.get("text/html", "")) for data in shown(path)]
    assert any(PICTURE in data for data in shown(path))
    assert [data.keys() for data in shown(path) if PLOTLY in data and PICTURE not in data] == []
    assert not [page[:80] for page in pages if re.search(r"<script|<svg|<iframe|class=\"tokens\"", page)]
    assert not [data.keys() for data in shown(path) if "application/vnd.jupyter.widget-view+json" in data]


@each
def test_it_begins_with_a_link_to_colab_a_cell_that_installs_and_its_model_and_texts(path):
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]
    address = f"{repository}/blob/main/notebooks/{path.name}".replace("github.com", "colab.research.google.com/github")
    assert f"]({address})" in source(cells(path, "markdown")[0])
    install, first, *others = map(source, cells(path, "code"))
    assert re.search(r'find_spec\("langneurons"\) is None:\n(    .*\n)*    %pip install', install)
    assert 'os.environ.get("LN_MODEL", ' in first
    assert 'os.environ.get("LN_TEXTS", ' in first
    assert not [cell for cell in others if 'load_corpus("' in cell]


@each
def test_long_cells_are_hidden(path):
    long = [cell for cell in cells(path, "code") if len(source(cell).splitlines()) > LONG]
    assert not [source(cell)[:60] for cell in long if not cell["metadata"].get("jupyter", {}).get("source_hidden")]
