"""The studies of the paper's relatives: a file of their own, so that another process may run them meanwhile."""

import pytest

from langneurons.study.study import Study
from tests.study.hub_files import shrunk
from tests.study.papers import PAPERS, check_study


@pytest.mark.filterwarnings("ignore:.* resamples give no p-value")
@pytest.mark.parametrize("name", [name for name in PAPERS if not name.startswith("paper-")])
def test_a_relatives_study_runs_and_shows_published_against_measured(name, hub, tmp_path):
    check_study(name, hub, tmp_path / name)


@pytest.mark.filterwarnings("ignore::langneurons.errors.LangNeuronsWarning")
@pytest.mark.parametrize(
    "name", ["babel", "kojima-babel", "smollm2", "smollm2-more", "smollm2-text", "sparse-subnetwork"]
)
def test_a_study_without_published_numbers_runs(name, hub, tmp_path):
    states = Study(shrunk(name, hub), tmp_path).run(progress=False)
    assert set(states["state"]) == {"done"}, states.query("state != 'done'")[["step", "why"]].to_string()
