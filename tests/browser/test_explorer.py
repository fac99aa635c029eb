"""The explorer in a real JupyterLab: every click goes from the browser to the kernel and back."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

TOKEN = "explorer-test"
CELL = """
import langneurons as ln
model = ln.load_model("babel")
corpus = ln.load_corpus("babel", ["en", "hi", "ur"]).take(25)
stats = ln.record(model, corpus, context_length=64, progress=False)
neurons = ln.LAPE(top=0.004).identify(stats)
explorer = ln.explore(model, stats, neurons, corpus, documents=10)
language, layer = "ur", int(neurons.counts().loc["ur"].idxmax())
print(f"cell: {language} {layer}")
"""
PLACE = """([language, layer]) => {
  const drawn = document.querySelector(".js-plotly-plot");
  drawn.scrollIntoView({block: "center"});
  const box = drawn.getBoundingClientRect(), {xaxis, yaxis} = drawn._fullLayout;
  return [box.x + xaxis._offset + xaxis.d2p(layer), box.y + yaxis._offset + yaxis.d2p(language)];
}"""
PATIENCE = 300_000  # milliseconds: a busy machine may take long to import everything
RETRY = 20_000


def notebook(*sources):
    cells = [
        {"cell_type": "code", "id": f"c{n}", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
        for n, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells})


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab whose files all lie in a temporary folder; its address."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "explore.ipynb").write_text(notebook(CELL.strip(), "explorer"))
    quiet = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    folders = {
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(tmp_path / folder) for name, folder in folders.items()}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--port=0",
        "--ServerApp.port_retries=0",
    ]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={tmp_path / 'work'}"]
    with (tmp_path / "lab.log").open("w") as log:
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield address(tmp_path / "runtime", running, tmp_path / "lab.log")
        finally:
            running.terminate()
            running.wait(30)


def address(runtime: Path, running, log: Path) -> str:
    for _ in range(600):
        if running.poll() is not None:
            pytest.fail(f"JupyterLab ended: {log.read_text()[-2000:]}")
        for file in runtime.glob("jpserver-*.json"):
            if (text := file.read_text()).endswith("}") and "url" in (known := json.loads(text)):
                return known["url"]
        time.sleep(0.1)
    return pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


def run_all_cells(page):
    """Run the cells when the kernel listens: before that, JupyterLab loses what is run or asks for another kernel."""
    from playwright.sync_api import TimeoutError as TooLong  # where it is not installed, the tests are skipped

    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for(state="attached")
    cells = page.locator(".jp-CodeCell")
    for number in range(2):
        waiting = cells.nth(number).locator(".jp-InputPrompt", has_text="[ ]:")
        for _ in range(PATIENCE // RETRY):
            cells.nth(number).locator(".cm-content").click()
            page.keyboard.press("Shift+Enter")
            with suppress(TooLong):
                waiting.wait_for(state="detached", timeout=RETRY)
                break


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cells_neurons_and_ablations_are_clicked_in_jupyterlab(lab, online, tmp_path):
    page = online.page
    page.set_default_timeout(PATIENCE)
    page.goto(f"{lab}lab/tree/explore.ipynb?token={TOKEN}")
    run_all_cells(page)
    page.locator(".js-plotly-plot .heatmaplayer image").wait_for()
    language, layer = page.get_by_text("cell: ur").inner_text().split()[1:]

    x, y = page.evaluate(PLACE, [language, int(layer)])
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    listed = page.locator(".widget-select select option")
    page.get_by_text(f"{language}, layer {layer}:").wait_for()

    page.locator(".widget-select select").select_option(index=0)
    shown = page.locator("article.ln-neuron")
    shown.wait_for()
    index = listed.first.inner_text().split(":")[0]
    assert f"Layer {layer}, neuron {index}" in shown.inner_text()
    assert shown.locator("[dir=auto]").count() > 3

    page.get_by_role("button", name="ablate").click()
    page.get_by_text(f"neuron {index} of layer {layer} set to 0: the loss of this text goes from").wait_for()
    without, patched = page.locator("table:has(caption:has-text('How the model goes on')) td").all()
    assert without.bounding_box()["y"] == patched.bounding_box()["y"]
    page.screenshot(path=tmp_path / "ablated.png")
    page.locator(".widget-select").scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "page.png")

    page.get_by_label("your text").fill("")
    page.get_by_role("button", name="ablate").click()
    page.get_by_text("has no tokens").wait_for()

    elsewhere = [url for url in online.requests if not url.startswith((lab, lab.replace("http", "ws", 1)))]
    assert not elsewhere
    assert not [error for error in online.errors if "plotly" in error.lower() or "widget" in error.lower()]
