"""Small files that claim to hold much: refused in a sentence, within seconds and 1 GB."""

import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

import langneurons as ln
from langneurons.errors import NeuronSetError, StorageError
from langneurons.storage.tables import check_expansion, read_table

ROOT = Path(__file__).parents[2]
READERS = {
    "corpus": "ln.load_corpus(sys.argv[1])",
    "task": "ln.XNLI.load(sys.argv[1])",
    "table": "storage.read_table(Path(sys.argv[1]) / 'en.parquet', foreign=True)",
}
MEASURED = """
import resource, sys, time
from pathlib import Path
import datasets, pandas, transformers
import langneurons as ln
from langneurons import storage
from langneurons.errors import LangNeuronsError
ln.load_corpus, ln.XNLI
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    {read}
except LangNeuronsError as error:
    print(str(error))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, time.perf_counter() - start)
"""


def constant(path: Path, rows: int, **values: object) -> Path:
    """A parquet file that says the same in every row: dictionaries and run lengths make it small."""
    part = pa.table({name: pa.array([value] * 1_000_000) for name, value in values.items()})
    with pyarrow.parquet.ParquetWriter(path, part.schema, compression="zstd") as file:
        for _ in range(rows // 1_000_000):
            file.write_table(part)
    return path


@pytest.mark.parametrize("kind", READERS)
def test_a_table_of_forty_million_equal_rows_is_refused_in_seconds(kind, tmp_path):
    path = constant(tmp_path / "en.parquet", 40_000_000, text="the same text", premise="a", hypothesis="b", label=0)
    assert path.stat().st_size < 10_000_000
    command = [sys.executable, "-c", MEASURED.format(read=READERS[kind]), str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    sentence, figures = result.stdout.strip().splitlines()
    megabytes, seconds = map(float, figures.split())
    assert "unpacks to over" in sentence
    assert "40,000,000 rows" in sentence
    assert megabytes < 1000
    assert seconds < 20


def test_one_long_text_in_every_row_is_refused(tmp_path):
    table = pa.table({"text": pa.array(["x" * 1_000_000]).dictionary_encode().take(pa.array([0] * 5000))})
    pyarrow.parquet.write_table(table, tmp_path / "en.parquet")
    with pytest.raises(StorageError, match="unpacks to over"):
        read_table(tmp_path / "en.parquet", foreign=True)


def test_ordinary_tables_pass_whatever_they_repeat(tmp_path):
    rows = {"language": ["hi"] * 200_000, "text": [f"text {n}" for n in range(200_000)], "seed": [0] * 200_000}
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    check_expansion(tmp_path / "rows.parquet")
    pd.DataFrame(rows).iloc[:0].to_parquet(tmp_path / "none.parquet")
    check_expansion(tmp_path / "none.parquet")


def masks() -> dict[str, object]:
    indices, one = torch.arange(1000), torch.ones(1, dtype=torch.int64)
    return {
        "meta": [[torch.empty(10**12, dtype=torch.int64, device="meta")]],
        "sparse": [[torch.sparse_coo_tensor(one[None] * 0, one, (10**12,), check_invariants=True)]],
        "expanded": [[torch.zeros(1, dtype=torch.int64).expand(10**9)]],
        "repeated": [[indices] * 10_000],
        "no layer's": [[torch.tensor([2**62])]],
        "negative": [[torch.tensor([-1])]],
        "floats": [[torch.tensor([1.0])]],
        "no list": [torch.tensor([1])],
    }


@pytest.mark.parametrize("kind", masks())
def test_a_mask_that_claims_more_than_it_holds_is_refused(kind, tmp_path):
    torch.save(masks()[kind], tmp_path / "mask.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((NeuronSetError, StorageError), match=r"mask\.pth"):
        ln.NeuronSet.from_rucaibox(tmp_path / "mask.pth", ["en"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kilobytes
