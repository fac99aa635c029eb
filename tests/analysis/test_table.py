from dataclasses import asdict

import pytest

import langneurons as ln
from langneurons import storage
from langneurons.analysis.validity import CHECKS, Check, Evidence, ValidityTable, nulls_of, split_half, validity_table
from langneurons.errors import StatisticsError
from tests.planted.recordings import recording


@pytest.fixture(scope="module")
def table():
    real, shuffled = recording("real"), recording("shuffled", seed=1)
    methods = {"LAPE": ln.LAPE(top=0.16, filter_quantile=0.8), "mean": ln.identification.MeanActivation(top=0.04)}
    evidence = [
        Evidence(
            name,
            recall=1.0,
            split_half=split_half(method, (real, recording("real", seed=2))),
            nulls=nulls_of(method, real, {"shuffled": shuffled}),
        )
        for name, method in methods.items()
    ]
    return validity_table(evidence, [Check("recall", "recall", 0.9), *CHECKS[3:4], *CHECKS[6:8]])


def test_methods_fail_the_checks_they_should(table):
    assert table.passing == ["LAPE"]
    assert table.failing("null_shuffled") == ["mean"]
    assert table.failing("recall") == []


def test_what_was_not_measured_neither_passes_nor_fails(table):
    assert table.rows["null_source_passes"].isna().all()
    assert table.failing("null_source") == []


def test_the_document_shows_failures_bars_and_chance_and_leaves_out_the_unmeasured(table):
    text = table.to_markdown()
    assert "| method | recall | split-half Jaccard | null: shuffled |" in text
    assert "**" in next(line for line in text.splitlines() if line.startswith("| mean"))
    assert "**" not in next(line for line in text.splitlines() if line.startswith("| LAPE"))
    assert "(chance 0.02)" in text
    assert "null: shuffled: at most 0.05" in text
    printed = repr(table)
    assert "**" not in printed
    assert next(line for line in printed.splitlines() if " mean " in line).count("*") == text.count("**") // 2
    assert "An asterisk marks what fails. Bars: recall: at least 0.9" in printed


def test_a_saved_table_comes_back(table, tmp_path):
    loaded = ValidityTable.load(table.save(tmp_path))
    assert loaded.to_markdown() == table.to_markdown() == (tmp_path / "validity.md").read_text("utf-8")
    assert loaded.checks == table.checks
    assert ln.load(tmp_path).rows.equals(table.rows)


def test_what_an_earlier_version_saved_is_loaded(table, tmp_path):
    checksum = storage.write_table(tmp_path / "validity.parquet", table.rows)
    content = {"checks": [asdict(check) for check in table.checks], "checksum": checksum}
    storage.write_json(tmp_path / "validity.json", "langneurons/validity-table/1", content)
    assert ln.load(tmp_path).to_markdown() == table.to_markdown()


def test_methods_need_names_of_their_own():
    with pytest.raises(StatisticsError, match="different names"):
        validity_table([Evidence("LAPE"), Evidence("LAPE")])
    with pytest.raises(StatisticsError, match="different names"):
        validity_table([])
