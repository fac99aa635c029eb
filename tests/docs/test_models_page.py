"""The table of docs/models.md says what the tests of families run."""

import re
from pathlib import Path

from tests.family_tokenizers import TOKENIZERS
from tests.tiny_families import FAMILIES, HOOKED, WITH_IMAGES, tiny_family

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")


def test_every_family_of_the_table_is_described_as_it_is_tested():
    rows = [
        [cell.strip(" `") for cell in row.strip("|").split("|")] for row in PAGE.splitlines() if "ForCausalLM" in row
    ]
    assert [row[0] for row in rows] == list(TOKENIZERS)
    for name, _, architecture, hooked, bridge, start, ends in rows:
        assert architecture == tiny_family(name).config.architectures[0]
        assert (hooked, bridge) == ("yes" if name in HOOKED else "no", "yes")
        assert start == ("yes" if TOKENIZERS[name].writes_start else "no")
        assert int(ends) == len(TOKENIZERS[name].ends)


def test_the_other_families_are_listed_by_backend():
    both, bridge, vision = (
        re.split(r",\s+", re.search(rf"{words}:\s([^.:]*(?:\.\d[^.:]*)*)\.", PAGE)[1])
        for words in ("On both backends", "TransformerBridge alone", "Text towers of models that also see")
    )
    others = [name for name in FAMILIES if name not in TOKENIZERS]
    assert both == [name for name in others if name in HOOKED]
    assert bridge == [name for name in others if name not in HOOKED]
    assert vision == list(WITH_IMAGES)
