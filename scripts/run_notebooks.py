"""Run the notebooks and keep their outputs with pictures, so that they show something where no script runs.

Usage (from the project's root; needs the extras ``notebooks`` and ``figures``, playwright and a Chromium)::

    make notebooks-run                                                    # all of them
    python -m scripts.run_notebooks notebooks/06_explore_one_neuron.ipynb
    python -m scripts.run_notebooks --pictures notebooks/*.ipynb          # runs nothing: pictures of what is there

GitHub, nbviewer and PDF run no script and drop styles. So an interactive figure gets a PNG beside it, a page with
drawings or coloured tokens becomes a PNG, and widgets leave what stands in their place.
"""

import argparse
import base64
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import plotly.io

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
DRAWN = ("<svg", 'class="tokens"')  # what a page holds that is lost without styles
WIDTH, HEIGHT = 760, 2400  # pixels of a picture, at most
SCALE = 1.5
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
Picture = Callable[[str], bytes]


def run(path: Path, notebook: Any) -> None:
    """Run every cell, in the notebook's folder."""
    import nbclient  # noqa: PLC0415 (pictures alone need no kernel)

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=resources, record_timing=False).execute()


def add_pictures(notebook: Any, picture_of_page: Picture) -> None:
    """Put a picture beside or in place of every output that needs a script or a style."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            data.pop(WIDGET, None)
            if PLOTLY in data:
                data["image/png"] = encoded(plotly.io.to_image(data[PLOTLY], format="png", scale=SCALE, validate=False))
            elif any(mark in data.get("text/html", "") for mark in DRAWN):
                data["image/png"] = encoded(picture_of_page(data.pop("text/html")))


def encoded(picture: bytes) -> str:
    """A picture as notebooks keep it."""
    return base64.b64encode(picture).decode() + "\n"


@contextmanager
def pictures_of_pages() -> Iterator[Picture]:
    """A function that draws HTML in a browser without scripts or network."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 (only this needs it)

    program = next(path for name in BROWSERS if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(
            viewport={"width": WIDTH, "height": 200},
            device_scale_factor=SCALE,
            java_script_enabled=False,
            offline=True,
        )
        page = context.new_page()

        def picture(html: str) -> bytes:
            page.set_content(
                f'<meta charset="utf-8"><style>body {{ font: 14px sans-serif; margin: 8px }}</style>{html}'
            )
            height = min(HEIGHT, page.locator("html").bounding_box()["height"])
            return page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})

        yield picture
        browser.close()


def main() -> None:
    """Parse the command line, and rewrite the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="+")
    parser.add_argument("--pictures", action="store_true", help="run nothing: only draw what the notebooks show")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        notebook = nbformat.read(path, as_version=4)
        if not arguments.pictures:
            run(path, notebook)
        with pictures_of_pages() as picture_of_page:
            add_pictures(notebook, picture_of_page)
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main()
