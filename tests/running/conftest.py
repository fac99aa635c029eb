"""What tests of executors share: a checkpoint that workers can load, its model, texts, neurons, and workers."""

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

import langneurons as ln
from langneurons.run import ThisProcess
from tests.recording.conftest import documents
from tests.tiny_models import save_tiny

WIDTH = 48
STATISTICS: dict[str, Any] = {"context_length": 32, "progress": False}


def need_ray() -> None:
    """Skip the test where Ray is not installed."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'langneurons[ray]'")


@pytest.fixture(scope="module")
def ray():
    """Two workers on this machine, as long as a file is tested; the executor has to be the first that imports Ray."""
    need_ray()
    yield ln.run.RayExecutor(workers=2)
    importlib.import_module("ray").shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("checkpoint"), "llama")


@pytest.fixture(scope="module")
def tiny(folder):
    return ln.load_model(folder)


@pytest.fixture(scope="module")
def corpus():
    return ln.load_corpus(documents())


@pytest.fixture(scope="module")
def neurons():
    members = {"en": [(0, 1), (0, 7), (1, 3)], "hi": [(0, 2), (1, 5), (1, 40)]}
    return ln.NeuronSet.of(members, shape=(2, WIDTH), site="act")


@dataclass(frozen=True)
class PiecesHere(ThisProcess):
    """An executor that cuts, and computes everything here."""

    number: int

    def pieces(self, model: Any) -> int:
        return self.number


class NeverCalled(ThisProcess):
    """An executor that must find everything done."""

    def map(self, model, work, jobs):
        assert not list(jobs)
        return iter(())
