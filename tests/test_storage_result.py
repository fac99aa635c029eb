"""Results: saved, loaded, printed and drawn in one way, shown by a toy."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langneurons import storage
from langneurons.errors import CorruptArtefactError, LangNeuronsError, StaleArtefactError, StorageError
from langneurons.storage.presenting import Column, Table, number
from langneurons.storage.result import MODULES, Result, load, result_kinds


@dataclass(frozen=True, eq=False, repr=False)
class Toy(Result, kind="toy", file="toys", tables=("rows",), optional=("controls",)):
    rows: pd.DataFrame
    settings: Mapping[str, Any]
    controls: pd.DataFrame | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Tabled(Result, kind="table-toy", tables=("rows",)):
    rows: pd.DataFrame
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Listed(Result, kind="listed-toy", file=None):
    """Saved as one JSON file, like a neuron set."""

    names: tuple[str, ...] = ()

    def _write(self, folder: Path) -> storage.JsonObject:
        return {"names": list(self.names)}

    @classmethod
    def _read(cls, folder: Path, content: storage.JsonObject) -> dict[str, Any]:
        return {"names": tuple(content["names"])}


@dataclass(frozen=True, eq=False, repr=False)
class Weighed(Result, kind="weighed-toy", tables={"rows": "table"}):
    """Holds more than tables and settings."""

    rows: pd.DataFrame
    settings: Mapping[str, Any]
    weights: list[float] = field(default_factory=list)

    def _write(self, folder: Path) -> storage.JsonObject:
        return super()._write(folder) | {"weights": self.weights}

    @classmethod
    def _read(cls, folder: Path, content: storage.JsonObject) -> dict[str, Any]:
        return super()._read(folder, content) | {"weights": content["weights"]}


@pytest.fixture
def toy():
    rows = pd.DataFrame({"language": ["hi", "ur"], "layer": [0, 1], "effect": [0.003051, None]})
    return Toy(rows, {"model": "m", "draws": 20}, pd.DataFrame({"draw": [0, 1]}))


@pytest.fixture
def saved(toy, tmp_path):
    return toy.save(tmp_path / "toy")


# ---- saving and loading ----


def test_a_result_is_read_back_from_its_folder_or_its_file(toy, saved):
    for read in (Toy.load, load):
        for path in (saved, str(saved), saved / "toys.json"):
            found = read(path)
            assert isinstance(found, Toy)
            pd.testing.assert_frame_equal(found.rows, toy.rows, check_exact=True)
            pd.testing.assert_frame_equal(found.controls, toy.controls, check_exact=True)
            assert found.settings == toy.settings


def test_the_files_of_a_result_are_its_tables_and_one_json_file(saved):
    assert sorted(file.name for file in saved.iterdir()) == ["controls.parquet", "rows.parquet", "toys.json"]
    content = storage.read_json(saved / "toys.json", "langneurons/toy/1")
    assert content["settings"] == {"draws": 20, "model": "m"}
    assert content["checksums"].keys() == {"rows", "controls"}


def test_optional_tables_may_be_none_and_required_ones_may_not_be_missing(toy, tmp_path):
    folder = Toy(toy.rows, {}).save(tmp_path)
    assert Toy.load(folder).controls is None
    content = storage.read_json(folder / "toys.json", Toy.schema)
    for checksums in ({}, [], {**content["checksums"], "../../x": "0" * 32}, {"rows": 3}):
        storage.write_json(folder / "toys.json", Toy.schema, {**content, "checksums": checksums})
        with pytest.raises(CorruptArtefactError, match="does not (name rows|fit its checksum)"):
            Toy.load(folder)


def test_what_the_current_functions_wrote_is_read(toy, tmp_path):
    checksums = {"rows": storage.write_table(tmp_path / "rows.parquet", toy.rows)}
    content = {"settings": {"model": "m"}, "checksums": checksums}
    storage.write_json(tmp_path / "toys.json", "langneurons/toy/1", content)
    assert Toy.load(tmp_path).settings == {"model": "m"}


def test_a_result_that_is_one_file_is_saved_under_any_name(tmp_path):
    for name in ("a.json", "b"):
        path = Listed(("x", "y")).save(tmp_path / name)
        assert path == tmp_path / name
        assert Listed.load(path) == load(path) == Listed(("x", "y"))


def test_the_same_result_may_be_saved_again(toy, saved):
    Toy(toy.rows.head(1), {**toy.settings, "draws": 5}).save(saved)
    assert len(Toy.load(saved).rows) == 1


@pytest.mark.parametrize("name", ["model", "task", "method", "neurons"])
def test_a_result_of_something_else_is_not_overwritten(toy, saved, name):
    before = {file: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(
        StaleArtefactError, match=rf"toys.json holds another toy.*{name} \(there .*, here other\).*remove"
    ):
        Toy(toy.rows.head(1), {**toy.settings, name: "other"}).save(saved)
    assert {file: file.read_bytes() for file in saved.iterdir()} == before


def test_no_file_of_another_kind_or_program_is_overwritten(toy, saved, tmp_path):
    with pytest.raises(StaleArtefactError, match=r"kind \(there toy, here listed-toy\)"):
        Listed(("x",)).save(saved / "toys.json")
    notes = tmp_path / "notes.txt"
    notes.write_text("mine", "utf-8")
    with pytest.raises(StorageError, match="is no file of langneurons: give another path"):
        Listed(("x",)).save(notes)
    assert notes.read_text("utf-8") == "mine"
    assert len(Toy.load(saved).rows) == len(toy.rows)


def test_tables_that_another_result_of_the_folder_has_are_not_overwritten(toy, saved):
    with pytest.raises(StaleArtefactError, match=r"kind \(there toy, here table-toy\)"):
        Tabled(toy.rows.head(1), {}).save(saved)
    assert len(Toy.load(saved).rows) == len(toy.rows)
    Weighed(toy.rows, {}).save(saved)  # has a table of another name


def test_what_is_broken_may_be_written_again(toy, saved):
    (saved / "toys.json").write_text("{", "utf-8")
    toy.save(saved)
    assert Toy.load(saved).settings == toy.settings


def test_special_parts_take_two_small_methods(toy, tmp_path):
    folder = Weighed(toy.rows, {}, [1.5]).save(tmp_path)
    assert (folder / "table.parquet").exists()
    found = load(folder)
    assert isinstance(found, Weighed)
    assert found.weights == [1.5]


def test_a_missing_table_is_named(saved):
    (saved / "rows.parquet").unlink()
    with pytest.raises(StorageError, match=r"rows\.parquet"):
        load(saved)


@given(data=st.data())
def test_a_changed_byte_of_any_file_is_noticed(data, tmp_path_factory):
    folder = Toy(pd.DataFrame({"a": [1.5, 2.5]}), {"n": 1}).save(tmp_path_factory.mktemp("toy"))
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(content))
    try:
        found = Toy.load(folder)
    except (CorruptArtefactError, StaleArtefactError):
        return
    assert file.suffix == ".json"  # white space
    assert found.rows["a"].tolist() == [1.5, 2.5]
    assert found.settings == {"n": 1}


def test_another_version_or_kind_is_refused(saved):
    content = {"settings": {}, "checksums": {}}
    storage.write_json(saved / "toys.json", "langneurons/toy/2", content)
    for read in (Toy.load, load):
        with pytest.raises(StaleArtefactError, match="'langneurons/toy/2'.*'langneurons/toy/1'"):
            read(saved)
    with pytest.raises(StaleArtefactError, match="weighed-toy/1"):
        Weighed.load(saved / "toys.json")


def test_an_unknown_kind_is_told_the_kinds(tmp_path):
    path = tmp_path / "x.json"
    storage.write_json(path, "langneurons/toi/1", {})
    with pytest.raises(StorageError, match="Unknown kind of result 'toi': did you mean 'toy'.*ablation"):
        load(path)
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(StorageError, match=r"x\.json holds no result"):
        load(path)


def test_a_folder_without_a_result_says_what_was_looked_for(tmp_path, saved):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="empty holds no result.*'langneurons/ablation/1'.*evaluation"):
        load(tmp_path / "empty")
    with pytest.raises(StorageError, match="no such file or folder"):
        load(tmp_path / "nowhere")
    Listed().save(saved / "list.json")
    with pytest.raises(StorageError, match=r"several results: give one of list\.json, toys\.json"):
        load(saved)


def test_every_kind_has_a_module():
    for module in MODULES.values():
        assert find_spec(f"langneurons.{module}")
    assert {"toy", "ablation", "neuron-set"} <= set(result_kinds())


# ---- printing ----


def test_a_result_prints_its_first_table(toy):
    assert repr(toy).splitlines() == ["language layer  effect", "      hi     0 0.00305", "      ur     1       –"]
    assert "<td>0.00305</td>" in toy._repr_html_()
    assert repr(Listed()) == "Listed(names=())"
    assert Listed()._repr_html_() is None
    with pytest.raises(LangNeuronsError, match="Listed has no table"):
        Listed().table()


EFFECTS = pd.DataFrame(
    {
        "language": ["hi", "ur", "zh"],
        "neuron": [14035, 3, 7],
        "selectivity": [0.003051, -0.1234, np.nan],
        "low": [0.0021, -0.2, np.nan],
        "high": [0.0041, -0.1, np.nan],
        "p": [0.0002, 0.049, None],
        "tokens": [372205, 12, 3],
    }
)
COLUMNS = {
    "selectivity": Column(unit="points", scale=100, signed=True, bounds=("low", "high")),
    "p": Column("p (Holm)", digits=2, floor=0.0002),
}


def test_a_table_prints_units_intervals_and_digits_as_its_columns_say():
    texts = Table(EFFECTS, COLUMNS).texts()
    assert list(texts.columns) == ["language", "neuron", "selectivity (points)", "p (Holm)", "tokens"]
    assert texts.to_numpy().tolist() == [
        ["hi", "14035", "+0.305 [+0.21, +0.41]", "<= 0.0002", "372,205"],
        ["ur", "3", "-12.3 [-20, -10]", "0.049", "12"],
        ["zh", "7", "–", "–", "3"],
    ]


def test_nothing_that_is_missing_is_called_nan_or_none():
    table = Table(EFFECTS.assign(text=[None, "x", pd.NA], share=[np.nan, 1.0, 0.5]), COLUMNS, "A title", "A caption")
    for text in (table.to_string(), table._repr_html_(), table.latex(), table.to_markdown()):
        assert not any(word in text for word in ("nan", "NaN", "none", "None", "<NA>", "0.003051"))
        assert "A title" in text
        assert "A caption" in text


def test_title_and_caption_stand_around_the_table():
    lines = Table(EFFECTS, COLUMNS, "Above", "Below.", limit=2).to_string().splitlines()
    assert lines[0] == "Above"
    assert lines[-2:] == ["The first 2 of 3 rows.", "Below."]
    assert len(lines) == 6
    assert Table(EFFECTS.head(0)).to_string() == "(no rows)"


def test_no_tag_link_or_formula_of_a_text_is_one_on_a_page():
    hostile = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) $x$\n"
    table = Table(pd.DataFrame({hostile: [hostile]}), title=hostile, caption=hostile)
    assert table._repr_html_().count("&lt;img") == 4
    assert "<img" not in table._repr_html_() + table.to_markdown()
    assert 'class="tex2jax_ignore mathjax_ignore"' in table._repr_html_()
    assert "](" not in table.to_markdown()
    assert len(table.to_markdown().splitlines()) == 7


def test_html_latex_and_markdown_say_signs_as_they_are():
    odd = pd.DataFrame({"a_b": ["<b>", "50 % & $x_1$ | {y}"], "n": [1.5, np.inf]})
    table = Table(odd, caption="p < 0.05 & more_so")
    assert "&lt;b&gt;" in table._repr_html_()
    assert "<p>p &lt; 0.05 &amp; more_so</p>" in table._repr_html_()
    latex = table.latex()
    assert r"50 \% \& \$x\_1\$ | \{y\} & $\infty$ \\" in latex
    assert r"\caption{p $<$ 0.05 \& more\_so}" in latex
    assert r"\begin{tabular}{lr}" in latex
    assert table.to_markdown().splitlines()[2] == "| &lt;b> | 1.5 |"
    assert table.to_markdown().splitlines()[3] == "| 50 % & $x_1$ \\| {y} | ∞ |"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_three_digits_are_right_for_every_number(value):
    text = number(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.005, abs=1e-300)
    if 1e-5 <= abs(value) < 1e15:
        assert "e" not in text
    assert len(text.lstrip("-0.").replace(".", "").replace(",", "").partition("e")[0]) <= 3 or abs(value) > 999


def test_cells_that_hold_lists_arrays_or_truths_are_printed():
    frame = pd.DataFrame(
        {"a": [[1, 2], np.array([3.5, 4.5]), None], "b": [True, False, None], "seed": [1.0, 2000, None]}
    )
    assert Table(frame).texts().to_numpy().tolist() == [
        ["[1, 2]", "yes", "1"],
        ["[3.5 4.5]", "no", "2000"],
        ["–", "–", "–"],
    ]


# ---- drawing ----


def test_a_result_is_drawn_by_the_figure_of_its_class(toy, monkeypatch):
    drawn = {"Toy": lambda result, top=3: (result, top)}
    monkeypatch.setattr("langneurons.views.plot.FIGURES", drawn)
    assert toy.plot(top=5) == (toy, 5)
    with pytest.raises(LangNeuronsError, match="no figure of Listed. Results that can be drawn: Toy"):
        Listed().plot()
