import copy

import pytest

import langneurons as ln
from langneurons.evaluation.paper.statistics import published_statistics
from tests.planted_model import planted

CONTEXT_LENGTH, BATCH_SIZE = 64, 4


@pytest.fixture(scope="package")
def truth():
    return planted()


@pytest.fixture(scope="package")
def corpus(truth):
    return ln.load_corpus(truth.documents)


@pytest.fixture(scope="package", params=["hooked", "bridge"])
def model(request, truth):
    own = copy.deepcopy(truth.model)
    return ln.load_model("planted", hf_model=own, tokenizer=truth.tokenizer, backend=request.param)


@pytest.fixture(scope="package")
def published(model, corpus):
    return published_statistics(model, corpus, context_length=CONTEXT_LENGTH, progress=False)
