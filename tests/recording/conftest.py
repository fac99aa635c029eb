import os
import signal

import pytest
import torch

import langneurons as ln
from langneurons.recording.sums import LanguageSums
from tests.tiny_models import save_tiny

LANGUAGES = ("en", "hi", "zh")


def documents(seed: int = 0, n: int = 40) -> dict[str, list[str]]:
    """Documents of random length in the tiny tokenizer's words; each language prefers some of them."""
    generator = torch.Generator().manual_seed(seed)
    texts = {}
    for position, language in enumerate(LANGUAGES):
        texts[language] = []
        for _ in range(n):
            length = int(torch.randint(3, 40, (1,), generator=generator))
            words = torch.randint(4 + 25 * position, 60 + 20 * position, (length,), generator=generator)
            texts[language].append(" ".join(f"w{int(word)}" for word in words))
    return texts


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    return ln.load_model(str(tiny_folder))


@pytest.fixture(scope="session")
def corpus():
    return ln.load_corpus(documents())


@pytest.fixture(scope="session")
def whole(tiny, corpus):
    return record(tiny, corpus)


@pytest.fixture
def interrupted_at(monkeypatch):
    """Lets Ctrl-C come when so many parts of a recording have been begun; gives a list with an entry for each."""

    def interrupt(count: int) -> list[int]:
        adding, calls = LanguageSums.adding, []

        def interrupted(self, *arguments):
            calls.append(1)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGINT)
            return adding(self, *arguments)

        monkeypatch.setattr(LanguageSums, "adding", interrupted)
        return calls

    return interrupt


def record(model, corpus, **options):
    return ln.record(model, corpus, **{"context_length": 32, "progress": False, **options})


def same(left: ln.ActivationStats, right: ln.ActivationStats) -> bool:
    """Whether two statistics hold the same bytes."""
    if left.manifest() != right.manifest():
        return False
    return all(
        torch.equal(value, right.records[site][language].tensors[name])
        for site, records in left.records.items()
        for language, record in records.items()
        for name, value in record.tensors.items()
    )
