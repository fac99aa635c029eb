"""What several studies read."""

import pytest

from tests.study.hub_files import languages_of, save_checkpoints, save_data
from tests.study.papers import PAPERS
from tests.tasks.toy_task import cloze as cloze


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Tiny checkpoints of the papers' architectures, and data files of the hub's schemas."""
    folder = tmp_path_factory.mktemp("hub")
    save_checkpoints(folder)
    languages = sorted(set().union(*map(languages_of, PAPERS)))
    save_data(folder, dict.fromkeys([*languages, *sorted(languages_of("sparse-subnetwork"))]))
    return folder
