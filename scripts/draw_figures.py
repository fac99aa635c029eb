"""Draw the README's figures from saved statistics, through a headless Chromium or Chrome.

Usage: ``python scripts/draw_figures.py runs/real --matrix runs/matrix/matrix --sweep runs/sweep/sweep-hi
--tasks runs/tasks/xnli-head``
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from plotly.graph_objects import Figure

import langneurons as ln
from langneurons.demo import clearest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    """Draw every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("statistics", type=Path, help="a folder that record wrote")
    parser.add_argument("--matrix", type=Path, help="a perplexity matrix that was saved")
    parser.add_argument("--sweep", type=Path, help="a sweep that was saved")
    parser.add_argument("--tasks", type=Path, help="an evaluation that was saved")
    parser.add_argument("--language", default="hi", help="whose sweep to draw")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    arguments = parser.parse_args()
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"No browser to draw with: install one of {', '.join(BROWSERS)}.")
    stats = ln.ActivationStats.load(arguments.statistics)
    neurons = ln.LAPE(top=0.01).identify(stats)
    figures = {
        "layer_heatmap": ln.plot.layer_heatmap(neurons),
        "overlap": ln.plot.overlap(neurons),
        "histogram": ln.plot.histogram(stats, clearest(stats, neurons, stats.languages[-1])),
    }
    if arguments.matrix is not None:
        figures["perplexity_matrix"] = ln.plot.perplexity_matrix(ln.EffectTable.load(arguments.matrix))
    if arguments.sweep is not None:
        swept = ln.EffectTable.load(arguments.sweep)
        figures["dose_response"] = ln.plot.dose_response(swept, stats, neurons, arguments.language)
    if arguments.tasks is not None:
        figures["tasks"] = ln.Evaluation.load(arguments.tasks).plot()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        draw(browser, figure, arguments.out / f"{name}.png")


def draw(browser: str, figure: Figure, path: Path) -> None:
    """Screenshot one figure at twice its size."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        figure.write_html(page, config={"displayModeBar": False})
        size = f"{figure.layout.width + 16},{figure.layout.height + 16}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2"]
        flags += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=8000", f"--window-size={size}"]
        subprocess.run(
            [browser, *flags, f"--screenshot={path.resolve()}", page.as_uri()], check=True, capture_output=True
        )


if __name__ == "__main__":
    main()
