"""The paper's studies run end to end on tiny checkpoints; the reports hold published against measured numbers."""

import pytest

from tests.study.papers import PAPERS, SHOWN, check_study

OURS = [name for name in PAPERS if name.startswith("paper-")]


def test_every_study_of_a_paper_is_looked_at():
    assert set(SHOWN) == set(PAPERS)
    assert len(OURS) == 3


# So few resamples that large families have no small p-values: here it is shown that everything runs.
@pytest.mark.filterwarnings("ignore:.* resamples give no p-value")
@pytest.mark.parametrize("name", OURS)
def test_the_papers_study_runs_and_shows_published_against_measured(name, hub, tmp_path):
    check_study(name, hub, tmp_path / name)
