"""A language may be spelled in any way wherever it is asked for: each verb gives what it gives for the label itself."""

from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import langneurons as ln
from langneurons.errors import LanguageError, StudyError
from langneurons.study.config import parse_config
from tests.robustness.artefacts import DOCUMENTS, model
from tests.robustness.killing import study_of
from tests.training.small import pairs, questions

FEW: dict[str, Any] = {"resamples": 1000, "progress": False}
CODES = ("hin", "hin_Deva", "HI")


@pytest.fixture(scope="module")
def tiny():
    return model()


@pytest.fixture(scope="module")
def stats(tiny):
    return ln.record(tiny, ln.load_corpus(DOCUMENTS), sites=("act", "post"), context_length=16, progress=False)


@pytest.fixture(scope="module")
def text(tiny):
    return ln.HeldoutText.of(tiny, ln.load_corpus(DOCUMENTS), context_length=16)


def neurons_of(hindi: str) -> ln.NeuronSet:
    return ln.NeuronSet.of({"en": [(0, 1), (1, 3)], hindi: [(0, 3), (1, 7)]}, (2, 48), "act")


def tables(tiny: Any, stats: Any, text: Any, code: str, label: str) -> dict[str, pd.DataFrame]:
    """What every verb gives when Hindi is asked for as ``code``, of neurons that call it ``label``."""
    neurons, doses = neurons_of(label), [ln.evaluation.Dose("set", 0), ln.evaluation.Dose("cumulative", 0.5)]
    training = {"seeds": 1, "steps": 1, "batch_size": 3, "rank": 1, **FEW}
    patches = {"zero": lambda language: ln.SetTo(neurons[language], 0.0)}
    few_exchanges = {"controls": 0, "permutations": 100, "probe_sizes": (), "progress": False}
    labelled = ln.analysis.LabelledTexts.parallel(
        {name: [f"w{5 + i} w{9 + i}" for i in range(8)] for name in ("en", "hi")}, [*"abababab"]
    )
    transfer = ln.transfer_experiment(
        tiny, pairs(9), pairs(6, seed=1), neurons, targets=[code], conditions=["none", "target", "random target"],
        **training, stats=stats,
    )  # fmt: skip
    matrix = ln.perplexity_matrix(tiny, text, neurons, languages=["en", code], controls=2, stats=stats, **FEW)
    return {
        "selection": neurons.select([code]).to_dataframe().assign(language="hi"),
        "matrix": matrix.rows,
        "selectivity": matrix.selectivity,
        "sweep": ln.sweep(tiny, text, neurons, doses, languages=[code], stats=stats, **FEW).rows,
        "evaluation": ln.evaluate(tiny, questions(4), [code], patches, **FEW).rows,
        "factorial": ln.factorial(tiny, neurons, stats, questions(4), [code], operations=["set"], **FEW).summary,
        "ablation": ln.ablate(tiny, neurons_of("hi"), text, languages=[code], **FEW).rows,
        "screen": ln.screen(tiny, text, languages=[code], top=2, sample=20, progress=False).agreement,
        "transfer": transfer.rows,
        "probes": ln.polysemanticity(tiny, neurons_of("hi"), labelled, ["en", code], **few_exchanges).rows,
        "scores": text.score(tiny, languages=[code], progress=False),
        "references": pd.DataFrame([questions(4).references(code)]),
        "measured": questions(4).select([code]).measure(tiny, code),
        "statistics": stats.select([code]).table().frame,
        "folds": pd.DataFrame(stats.fold_probability(code).flatten(1).numpy()),
    }


def test_every_verb_takes_any_spelling_of_a_language(tiny, stats, text):
    expected = tables(tiny, stats, text, "hi", "hi")
    for code in CODES:
        for name, table in tables(tiny, stats, text, code, "hi").items():
            assert_frame_equal(table, expected[name], obj=f"{name} of {code}")


def test_neurons_under_another_spelling_are_those_of_the_texts_language(tiny, stats, text):
    """Also where the same language is compared with itself: a diagonal under two names would be no diagonal."""
    expected = tables(tiny, stats, text, "hi", "hi")
    for name, table in tables(tiny, stats, text, "hi", "hin_Deva").items():
        assert_frame_equal(table, expected[name], obj=name)


def test_two_labels_of_one_language_are_refused_beside_its_text(tiny, text):
    neurons = ln.NeuronSet.of({"hi": [(0, 1)], "hin": [(0, 3)]}, (2, 48), "act")
    assert neurons["hin"].indices().tolist() == [[0, 3]]
    with pytest.raises(LanguageError, match="'hi' and 'hin' are both 'hi'"):
        ln.perplexity_matrix(tiny, text, neurons, controls=0, **FEW)


def test_a_study_has_the_same_steps_however_its_languages_are_spelled(tmp_path):
    plain, other = (study_of(tmp_path, ("matrix", "transfer", "ablate", "evaluate")) for _ in range(2))
    for content, code in ((plain, "hi"), (other, "hin_Deva")):
        content["sets"] = {"two": ["en", code]}
        content["ablation"] = {"languages": [code]}
        content["transfer"]["pairs"]["experiment"]["targets"] = [code]
        content["patches"]["both"] = {"write": 0, "also": {code: 0}}
        content["matrix"]["patches"] = content["transfer"]["pairs"]["patches"] = ["zero"]
    assert parse_config(other).sets == parse_config(plain).sets == {"two": ["en", "hi"]}
    other["ablation"] = {"languages": ["hu"]}
    with pytest.raises(StudyError, match="Unknown language in ablation.languages 'hu'"):
        parse_config(other)
    other["sets"] = {"two": ["hi", "hin"]}
    with pytest.raises(StudyError, match="hi stands there twice"):
        parse_config(other)
