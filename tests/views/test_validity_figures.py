import numpy as np
import pytest

import langneurons as ln
from langneurons.analysis.validity import Evidence, validity_table
from langneurons.errors import StatisticsError


def test_every_measured_check_says_its_bar_and_who_passes():
    table = validity_table(
        [Evidence("good", recall=1.0, fdr=0.0), Evidence("bad", recall=0.2, fdr=0.5), Evidence("half", recall=0.95)]
    )
    figure = ln.plot.validity(table)
    shown = figure.data[0]
    assert list(shown.y) == ["good", "bad", "half"]
    assert np.array_equal(shown.z, [[1, 1], [0, 0], [1, np.nan]], equal_nan=True)
    assert [list(row) for row in shown.text] == [["1.00 ✓", "0.00 ✓"], ["0.20 ✗", "0.50 ✗"], ["0.95 ✓", "–"]]
    assert [heading.split("<b>")[1] for heading in shown.x] == ["≥ 0.9</b>", "≤ 0.1</b>"]
    assert "2 of 3 fail none" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_a_table_read_back_gives_the_same_figure(tmp_path):
    table = validity_table([Evidence("good", recall=1.0), Evidence("bad", recall=0.2)])
    again = type(table).load(table.save(tmp_path))
    assert ln.plot.validity(again).to_json() == ln.plot.validity(table).to_json()


def test_a_table_without_measurements_is_refused():
    with pytest.raises(StatisticsError, match="nothing to draw"):
        ln.plot.validity(validity_table([Evidence("unmeasured")]))
