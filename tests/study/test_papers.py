"""The papers' studies run end to end on tiny checkpoints; their reports hold published against measured numbers."""

import re

import pytest

from langneurons.study.study import Study
from tests.study.hub_files import STUDIES, languages_of, save_checkpoints, save_data, shrunk

PAPERS = [path.stem for path in sorted(STUDIES.glob("*.toml")) if path.stem != "demo"]
# What a paper's numbers are, in its report, and one of them.
SHOWN = {
    "paper-babel": ["Patched models", "Trained neurons", "published protocol, here", "80.6 → 79.5"],
    "paper-llama-3.1-8b": ["Patched models", "Trained neurons", "80.6 → 79.5", "80.07 (−0.54)"],
    "paper-mistral-nemo": ["Patched models", "80.6 → 40.8", "sound protocol, here"],
    "tang": ["Neurons of a language", "1,068", "What was said"],
    "language-arithmetics": ["What was said", "points on average"],
    "factorial": ["Patched models", "set at act, head", "80.6 → 79.5", "Each cell over its languages"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    save_checkpoints(folder)
    save_data(folder, sorted(set().union(*map(languages_of, PAPERS))))
    return folder


# So few resamples that large families have no small p-values: here it is shown that everything runs.
@pytest.mark.filterwarnings("ignore:.* resamples give no p-value")
@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_study_runs_and_shows_published_against_measured(name, folder, tmp_path):
    study = Study(shrunk(name, folder), tmp_path / name)
    states = study.run(progress=False)
    assert set(states["state"]) == {"done"}, states.query("state != 'done'")[["step", "why"]].to_string()
    page = study.report().read_text("utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    assert "Published against measured" in text
    for shown in SHOWN[name]:
        assert shown in text, shown
