"""Every loader on damaged files: a typed error or the right result. `make soak` does the same a hundred times over."""

import zipfile
from random import Random

import pytest

import langneurons as ln
from langneurons.errors import LangNeuronsError, StorageError
from tests.robustness.artefacts import ARTEFACTS
from tests.robustness.fuzzing import fuzz
from tests.robustness.mutations import mutated

MUTATIONS = 100  # of a kind of artefact: a second each
SLOW = {"model": 12, "statistics": 60, "half a recording": 60, "fine-tuned": 40, "masked update": 50}


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_damaged_artefact_gives_a_typed_error_or_the_right_result(name, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    count = SLOW.get(name, round(MUTATIONS * ARTEFACTS[name].share))
    outcome = fuzz(name, seed=1, count=count, folder=tmp_path)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.counts["refused"] > 0
    assert sum(outcome.counts.values()) == count


def test_a_mutation_is_known_by_its_seed():
    data = b'{"a": [1, 2], "seal": "x"}'
    first, again = (mutated("a.json", data, {"b": b"other"}, Random("artefact 3 7")) for _ in range(2))
    assert first == again


def test_a_loader_that_trusts_its_file_is_caught(tmp_path, monkeypatch):
    """The check can fail: without checksums, changed numbers pass as results."""
    monkeypatch.setattr("langneurons.storage.tables.check_whole", lambda *arguments: None)
    outcome = fuzz("kept rows", seed=1, count=60, folder=tmp_path)
    assert any("gave another result" in failure for failure in outcome.failures)


def test_what_a_mask_hides_is_never_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    import torch

    torch.save([[Payload()]], tmp_path / "mask.pth")
    with pytest.raises(StorageError, match="nothing in it was executed"):
        ln.NeuronSet.from_rucaibox(tmp_path / "mask.pth", ["en"])
    assert not (tmp_path / "ran").exists()


def test_a_mask_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "mask.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(StorageError, match="torch file"):
        ln.NeuronSet.from_rucaibox(tmp_path / "mask.pth", ["en"])


def test_one_number_repeated_without_end_is_refused(tmp_path):
    import torch

    torch.save([[torch.tensor([3]).expand(10**12)]], tmp_path / "mask.pth")
    with pytest.raises(LangNeuronsError, match="does not hold"):
        ln.NeuronSet.from_rucaibox(tmp_path / "mask.pth", ["en"], shape=(1, 8))
