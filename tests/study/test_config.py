from contextlib import suppress

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from langneurons.errors import StudyError
from langneurons.study.config import parse_config, read_config, written
from tests.study.small import SMALL, small

XNLI = {"kind": "xnli", "source": "babel"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modles": {}}, "Unknown key in the study 'modles': did you mean 'models'?"),
        ({"text": {**SMALL["text"], "tokns": 3}}, "Unknown key in text 'tokns': did you mean 'tokens'?"),
        ({"matrix": {"control": 3}}, "did you mean 'controls'?"),
        ({"models": {"babel": {"nam": "babel"}}}, "Unknown key in models.babel 'nam': did you mean 'name'?"),
        ({"models": {"babel": {}}}, "models.babel.name is missing"),
        ({"models": {}}, "models = {}"),
        ({"text": {**SMALL["text"], "tokens": 0}}, "text.tokens = 0"),
        ({"matrix": {"patches": ["zeor"]}}, "did you mean 'zero'?"),
        ({"matrix": {"methods": ["lap"]}}, "Unknown method in matrix 'lap': did you mean 'lape'?"),
        ({"matrix": {"sets": ["three"]}}, "Unknown language set in matrix 'three'"),
        ({"polysemanticity": {"task": "xnli"}}, "Unknown task in polysemanticity 'xnli'. Possible: none"),
        ({"name": "../evil"}, "name = '../evil'"),
        ({"models": {"../evil": {"name": "babel"}}}, "../evil"),
        ({"methods": {"lape": {"method": "lap"}}}, "Unknown method 'lap': did you mean 'lape'?"),
        ({"methods": {"lape": {"method": "lape", "tpo": 1}}}, "Unknown option of lape 'tpo': did you mean 'top'?"),
        ({"patches": {"zero": {"write": "p900"}}}, "p0 to p100"),
        ({"patches": {"zero": {"write": "ad:3"}}}, "did you mean 'add'?"),
        ({"patches": {"z": {"write": "published:mean_mu"}}, "matrix": None}, "did you mean 'mean_mu_act'?"),
        (
            {"patches": {"z": {"write": 0, "also": {"fr": 0}}}, "matrix": None},
            "Unknown language in patches.z.also 'fr'",
        ),
        ({"patches": {"z": {"write": 0, "also": {"en": 0}}}}, "matrix writes at one language's neurons"),
        ({"methods": {"l": {"method": "published-lap"}}}, "did you mean 'published-lape'?"),
        ({"methods": {"l": {"method": "published-lape", "tpo": 1}}}, "Unknown option of published-lape 'tpo'"),
        ({"tasks": {"t": {"kind": "xnli"}}}, "tasks.t.source is missing"),
        ({"tasks": {"t": {**XNLI, "languages": ["fr"]}}}, "Unknown language in tasks.t.languages 'fr'"),
        ({"tasks": {"t": {**XNLI, "split": "train[a:b]"}}}, "tasks.t.split = 'train[a:b]'"),
        ({"tasks": {"t": {**XNLI, "tuned": "english"}}}, "Unknown finetuning in tasks.t 'english'. Possible: none"),
        ({"tasks": {"t": XNLI}, "protocols": {"p": {"task": "t"}}}, "answers by a head; give tasks.t head or tuned"),
        ({"tasks": {"t": {"kind": "generation"}}, "protocols": {"p": {"task": "t"}}}, "is of the kind 'generation'"),
        ({"tasks": {"t": XNLI}, "factorial": {"tasks": ["t"], "operations": ["ad"]}}, "did you mean 'add'?"),
        ({"tasks": {"t": XNLI}, "factorial": {"tasks": ["t"], "sites": ["post"]}}, "Unknown site in factorial 'post'"),
        ({"validity": {"nulls": ["shufled"]}}, "did you mean 'shuffled'?"),
        ({"methods": {"p": {"method": "published-lape"}}, "validity": {}}, "name its methods"),
        ({"sets": {"two": ["en", "en"]}}, "en"),
        ({"sets": {"two": []}}, "two"),
    ],
)
def test_what_is_wrong_with_a_study_is_said_before_anything_runs(changes, said):
    with pytest.raises(StudyError) as error:
        small(**changes)
    assert said in str(error.value)


def test_published_numbers_are_sought_beside_the_study(tmp_path):
    (tmp_path / "numbers.toml").write_text("", "utf-8")
    text = written(small(published="numbers.toml"))
    (tmp_path / "study.toml").write_text(text, "utf-8")
    assert read_config(tmp_path / "study.toml").published == str(tmp_path / "numbers.toml")
    (tmp_path / "study.toml").write_text(text.replace("numbers.toml", "tang-2024"), "utf-8")
    assert read_config(tmp_path / "study.toml").published == "tang-2024"


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text("name = ")
    with pytest.raises(StudyError, match="is no TOML file"):
        read_config(file)
    with pytest.raises(StudyError, match="No such file"):
        read_config(tmp_path / "nothing.toml")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(StudyError, match="is no TOML file"):
        read_config(file)


def test_every_default_is_written_and_the_text_reads_back_as_the_same_study():
    config = small(
        tasks={"t": {"kind": "xnli", "source": "babel"}},
        ablation={},
        polysemanticity={"task": "t"},
        transfer={"x": {"source": "babel"}},
        finetuning={"f": {"source": "babel"}},
        factorial={"tasks": "t"},
        validity={},
        patches={"swap": {"write": "add:mean", "also": {"en": 0}}, "published": {"write": "published:zero"}},
        matrix={"patches": ["published"]},
    )
    text = written(config)
    assert parse_config(tomlkit.parse(text).unwrap()) == config
    assert "batch_size = 8" in text
    assert "# dtype is not set" in text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    st.sampled_from([*SMALL, "tasks", "transfer", "ablation", "report", "polysemanticity", "validity", "factorial"]),
)
def test_whatever_stands_in_a_study_is_a_study_or_a_sentence(value, place):
    with suppress(StudyError):
        parse_config(SMALL | {place: value})
