"""The pretrained model, or a reason to skip."""

import pytest

from scripts.fetch_text import FetchError
from scripts.pretrained import fetch_model


@pytest.fixture(scope="module")
def file():
    try:
        return fetch_model()
    except FetchError as error:
        pytest.skip(str(error))
