"""The pretrained study is made ready, or says what it lacks."""

import pytest

from scripts.fetch_text import FetchError
from scripts.pretrained import prepare


def test_a_folder_that_does_not_exist_is_refused_and_not_made(tmp_path):
    with pytest.raises(FetchError, match="There is no folder"):
        prepare(tmp_path / "dta", tmp_path / "cache")
    assert not list(tmp_path.iterdir())
