"""Tests of HookedTransformer, marked `hooked` or parametrised with "hooked", are skipped where there is none.

So are tests of real data where these are not beside the checkout.
"""

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "hooked: needs HookedTransformer, which TransformerLens 4 no longer has")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from tests.backends import BACKENDS  # only where tests are collected: a process that hands them out need not wait

    if "hooked" in BACKENDS:
        return
    for item in items:
        if item.get_closest_marker("hooked") or _asks_for_hooked(item):
            item.add_marker(pytest.mark.skip(reason="TransformerLens 4 has no HookedTransformer"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Gives the folder of some real data, or skips the test."""

    def folder(name: str) -> Path:
        path = Path(__file__).parents[2] / "shared" / "data" / name
        if not path.is_dir():
            pytest.skip(f"there are no real data at {path}")
        return path

    return folder


def _asks_for_hooked(item: pytest.Item) -> bool:
    given = getattr(item, "callspec", None)
    return given is not None and any("hooked" in _words(value) for value in given.params.values())


def _words(value: object) -> tuple[object, ...]:
    """A pair of architecture and backend, or one written as "llama hooked" or "llama-hooked"."""
    if isinstance(value, str):
        return tuple(value.replace("-", " ").split())
    return value if isinstance(value, tuple) else ()
