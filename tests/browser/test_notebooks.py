"""Committed notebooks, as a browser shows them that runs no script: every picture is there."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_a_browser_without_scripts_shows_every_picture_of_a_notebook(path, browser, tmp_path):
    nbconvert = pytest.importorskip("nbconvert", reason="nbconvert is not installed")
    html, _ = nbconvert.HTMLExporter().from_filename(str(path))
    (tmp_path / "page.html").write_text(html, "utf-8")
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri(), wait_until="domcontentloaded")
    boxes = [picture.bounding_box() for picture in page.locator("img[src^='data:image/png']").all()]
    context.close()
    cells = json.loads(path.read_text("utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    assert len(boxes) == len([data for data in outputs if "image/png" in data]) > 0
    assert all(box["width"] > 300 and box["height"] > 50 for box in boxes)
