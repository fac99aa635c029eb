"""The studies of the paper's relatives: a file of their own, so that another process may run them meanwhile."""

import pytest

from tests.study.papers import PAPERS, check_study


@pytest.mark.filterwarnings("ignore:.* resamples give no p-value")
@pytest.mark.parametrize("name", [name for name in PAPERS if not name.startswith("paper-")])
def test_a_relatives_study_runs_and_shows_published_against_measured(name, hub, tmp_path):
    check_study(name, hub, tmp_path / name)
