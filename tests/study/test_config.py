from contextlib import suppress

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

import langneurons as ln
from langneurons.errors import LangNeuronsWarning, StudyError
from langneurons.study.config import as_toml, parse_config, read_config
from tests.study.small import SMALL, small

XNLI = {"kind": "xnli", "source": "babel"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modles": {}}, "Unknown key in the study 'modles': did you mean 'models'?"),
        ({"text": {**SMALL["text"], "tokns": 3}}, "Unknown key in text 'tokns': did you mean 'tokens'?"),
        ({"matrix": {"control": 3}}, "did you mean 'controls'?"),
        ({"matrix": {"controls": {"draw": 3}}}, "Unknown key in matrix.controls 'draw': did you mean 'draws'?"),
        ({"matrix": {"controls": {"stats": 3}}}, "Unknown key in matrix.controls 'stats'"),
        ({"matrix": {"controls": -1}}, "matrix.controls: draws must be a whole number of at least 0, given -1."),
        ({"testing": {"margn": 0.1}}, "Unknown key in testing 'margn': did you mean 'margin'?"),
        ({"tasks": {"t": {**XNLI, "kind": "xnly"}}}, "Unknown kind of task in tasks.t 'xnly': did you mean 'xnli'?"),
        ({"finetuning": {"f": {"kind": "generation", "source": "babel"}}}, "Unknown kind of task in finetuning.f"),
        (
            {"transfer": {"t": {"source": "babel", "training": {"warmup": 1}}}},
            "transfer.t.training: warmup must be at least 0 and below 1, given 1.",
        ),
        ({"models": {"babel": {"nam": "babel"}}}, "Unknown key in models.babel 'nam': did you mean 'name'?"),
        ({"models": {"babel": {}}}, "models.babel.name is missing"),
        ({"models": {}}, "models = {}"),
        ({"text": {**SMALL["text"], "heldout_context": 0}}, "text.heldout_context = 0"),
        (
            {"recording": {"tokens_per_language": 0}},
            "recording: tokens_per_language must be a whole number of at least 1",
        ),
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
        (
            {"tasks": {"t": {"kind": "xnli", "source": "babel", "prompting": {"temperature": 1}}}},
            "tasks.t.prompting: xnli samples nothing, so temperature must be 0",
        ),
        (
            {"tasks": {"t": {"kind": "generation", "prompting": {"shots": 1}}}},
            "tasks.t.prompting: generation has no solved examples, so shots must be 0",
        ),
        (
            {"tasks": {"t": {"kind": "confusion", "source": "babel", "prompting": {"shots": 1}}}},
            "tasks.t.prompting: confusion has no solved examples, so shots must be 0",
        ),
        (
            {"tasks": {"t": {"kind": "harness", "source": "xcopa_vi", "prompting": {"chat": True, "temperature": 1}}}},
            "tasks.t.prompting: harness samples nothing, so temperature must be 0",
        ),
        (
            {"tasks": {"t": {"kind": "xquad", "source": "babel", "prompting": {"system": "x"}}}},
            "tasks.t.prompting: system must be left out unless chat is true",
        ),
        ({"tasks": {"t": {**XNLI, "languages": ["fr"]}}}, "Unknown language in tasks.t.languages 'fr'"),
        ({"tasks": {"t": {**XNLI, "split": "train[a:b]"}}}, "tasks.t: split must be a split or a part of one"),
        ({"tasks": {"t": {**XNLI, "tuned": "english"}}}, "Unknown finetuning in tasks.t 'english'. Possible: none"),
        ({"tasks": {"t": XNLI}, "protocols": {"p": {"task": "t"}}}, "answers by a head; give tasks.t head or tuned"),
        ({"tasks": {"t": {"kind": "generation"}}, "protocols": {"p": {"task": "t"}}}, "and 't' is generation"),
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
    text = as_toml(small(published="numbers.toml"))
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
        sweep={},
        polysemanticity={"task": "t"},
        transfer={"x": {"source": "babel"}},
        finetuning={"f": {"source": "babel"}},
        factorial={"tasks": "t"},
        validity={},
        patches={"swap": {"write": "add:mean", "also": {"en": 0}}, "published": {"write": "published:zero"}},
        matrix={"patches": ["published"], "controls": {"match": "layer"}},
        run={"out": "runs/x"},
        seed=3,
    )
    text = as_toml(config)
    assert parse_config(tomlkit.parse(text).unwrap()) == config
    assert "batch_size = 8" in text
    assert config.matrix.controls == ln.Controls(draws=20, match="layer", seed=3)
    assert config.factorial.controls.draws == 0
    assert "# dtype is not set" in text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    st.sampled_from(
        [*SMALL, "tasks", "transfer", "ablation", "report", "polysemanticity", "validity", "effects", "sweep"]
    ),
)
@pytest.mark.filterwarnings("ignore:.* uses names of langneurons 0.1.0")
def test_whatever_stands_in_a_study_is_a_study_or_a_sentence(value, place):
    with suppress(StudyError):
        parse_config(SMALL | {place: value})


def test_names_of_the_first_version_go_on_working_and_are_said_once():
    old = {
        "text": {**SMALL["text"], "tokens": 300, "context_length": 64, "sites": "act", "batch_size": 4},
        "recording": None,
        "effects": {"delta": 0.02, "resamples": 500},
        "tasks": {"t": XNLI},
        "polysemanticity": {"task": "t", "items": 9, "position": "last", "permutations": 100, "controls": 3},
        "transfer": {"x": {"source": "babel", "language": "en", "targets": ["hi"], "seeds": 2, "steps": 5, "rank": 2}},
        "finetuning": {"f": {"source": "babel", "betas": [0.95, 0.999], "alpha": 8, "attention": ["q"]}},
    }
    with pytest.warns(LangNeuronsWarning) as warned:
        config = small(**old)
    (warning,) = warned
    for said in ("text.tokens is called recording.tokens_per_language", "effects is called testing", "0.1.0"):
        assert said in str(warning.message)
    training = {"betas": [0.95, 0.999]}
    assert config == small(
        run={"batch_size": 4},
        testing={"margin": 0.02, "resamples": 500},
        tasks={"t": XNLI},
        polysemanticity={
            "task": "t",
            "controls": 3,
            "probing": {"max_items": 9, "position": "last", "permutations": 100},
        },
        transfer={
            "x": {
                "source": "babel",
                "experiment": {"source": "en", "targets": ["hi"], "seeds": 2, "rank": 2},
                "training": {"steps": 5},
            }
        },
        finetuning={"f": {"source": "babel", "training": training, "adapter": {"alpha": 8, "attention": ["q"]}}},
    )


def test_what_an_option_turns_off_is_written_as_none():
    config = small(finetuning={"f": {"source": "babel", "training": {"clip": "none"}}})
    assert config.finetuning["f"].training.clip is None
    assert 'clip = "none"' in as_toml(config)


def test_the_seed_of_a_study_is_that_of_its_settings_unless_they_have_their_own():
    config = small(seed=7, testing={"seed": 2}, matrix={"controls": 4})
    assert (config.testing.seed, config.matrix.controls.seed, config.report.profiling.seed) == (2, 7, 7)


@pytest.mark.parametrize("value", [None, "layer", [1], True, {"": 1}])
def test_a_settings_object_that_is_no_table_is_a_sentence(value):
    for place in ("testing", "run", "recording"):
        with pytest.raises(StudyError, match=rf"{place}"):
            parse_config(SMALL | {place: value})
    with pytest.raises(StudyError, match=r"matrix\.controls"):
        small(matrix={"controls": value if not isinstance(value, bool) else "all"})
