"""What the reports of the papers' studies show, run on tiny checkpoints and files of the hub's schemas."""

import re
from pathlib import Path

from langneurons.study.study import Study
from tests.study.hub_files import STUDIES, shrunk

# Without published numbers.
OURS = (
    *("babel", "clas", "clas-bench", "demo", "kojima-babel"),
    *("smollm2", "smollm2-more", "smollm2-text", "sparse-subnetwork"),
)
PAPERS = [path.stem for path in sorted(STUDIES.glob("*.toml")) if path.stem not in OURS]
# What a paper's numbers are, in its report, and one of them.
SHOWN = {
    "paper-babel": ["Patched models", "Trained neurons", "published protocol, here", "80.6 → 79.5"],
    "paper-llama-3.1-8b": ["Patched models", "Trained neurons", "80.6 → 79.5", "80.07 (−0.54)"],
    "paper-mistral-nemo": ["Patched models", "80.6 → 40.8", "sound protocol, here"],
    "tang": ["Neurons of a language", "1,068", "What was said"],
    "language-arithmetics": ["What was said", "points on average"],
    "factorial": ["Patched models", "set at act, head", "80.6 → 79.5", "Each cell over its languages"],
}


def check_study(name: str, hub: Path, out: Path) -> None:
    """Run every step of a study, shrunk to the checkpoints and files of a folder, and look into its report."""
    study = Study(shrunk(name, hub), out)
    states = study.run(progress=False)
    assert set(states["state"]) == {"done"}, states.query("state != 'done'")[["step", "why"]].to_string()
    text = re.sub(r"<[^>]+>", "", study.report().read_text("utf-8"))
    for shown in ("Published numbers beside measured ones", *SHOWN[name]):
        assert shown in text, shown
