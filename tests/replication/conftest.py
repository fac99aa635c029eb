import copy

import pytest

from langneurons.replication.statistics import published_statistics
from langneurons.run import ThisProcess
from tests.planted.model import planted_model

CONTEXT_LENGTH, BATCH_SIZE = 64, 4


class Backwards(ThisProcess):
    """An executor that cuts, and computes the last piece first.

    Attributes:
        jobs: How many it computed.
    """

    jobs = 0

    def pieces(self, model):
        return 4

    def map(self, model, work, jobs):
        given = list(jobs)
        self.jobs += len(given)
        return reversed([work(model, job) for job in reversed(given)])


@pytest.fixture(scope="package")
def truth():
    return planted_model()


@pytest.fixture(scope="package")
def corpus(truth):
    return truth.corpus()


@pytest.fixture(scope="package", params=["hooked", "bridge"])
def model(request, truth):
    return copy.deepcopy(truth).model(request.param)


@pytest.fixture(scope="package")
def published(model, corpus):
    return published_statistics(model, corpus, context_length=CONTEXT_LENGTH, progress=False)
