import dataclasses

import pandas as pd
import pytest

import langneurons as ln
from langneurons.errors import LanguageError, PatchError, SiteMismatchError
from langneurons.evaluation.results import Evaluation, Factorial
from tests.evaluation.next_word import next_word
from tests.planted.patching import Amplify, setting


@pytest.fixture(scope="module")
def crossed():
    model, _, stats, neurons = setting()
    tasks = [next_word(8), dataclasses.replace(next_word(8), protocol="head")]
    ways = {
        "loud": lambda chosen, stats, language: Amplify(chosen, 4000.0),
        "same": lambda chosen, stats, language: ln.Scale(chosen, 1.0),
    }
    return ln.factorial(
        model, neurons, stats, tasks, ["en", "hi"], ways, ["act"], controls=1, margin=0.2, resamples=400, progress=False
    )


def test_every_cell_of_the_design_has_an_effect_in_every_language(crossed):
    effects = crossed.effects
    assert len(effects) == 2 * 1 * 2 * 2
    assert effects[["operation", "site", "protocol", "language"]].drop_duplicates().shape[0] == 8
    assert {"estimate", "p_holm", "verdict", "control_mean"} <= set(effects.columns)


def test_what_changes_nothing_is_told_from_what_does(crossed):
    summary = crossed.summary.set_index(["operation", "protocol"])
    assert summary.loc[("same", "head"), "no effect"] == 2
    assert summary.loc[("loud", "head"), "worse"] == 2
    assert summary.loc[("loud", "head"), "estimate"] < 0


def test_cells_of_one_sign_are_no_opposites(crossed):
    assert crossed.opposites.empty
    assert "No two cells" in repr(crossed)
    assert "<table" in crossed._repr_html_()


def test_opposite_signs_are_found_and_the_factors_they_differ_in_named():
    items = [("right", 1.0), ("wrong", 0.0)]
    rows = []
    for protocol, turned in (("head", False), ("generation", True)):
        for patch, up in (("unpatched", None), ("set at act", not turned), ("add at post", turned)):
            for item in range(60):
                value = 0.5 if up is None else items[not up][1]
                rows.append((protocol, patch, "hi", item, item, "score", value, "", ""))
    names = ["protocol", "patch", "language", "item", "cluster", "metric", "value", "prediction", "gold"]
    table = pd.DataFrame(rows, columns=names).assign(task="t")
    settings = {"model": "m", "options": {"margin": 0.01, "seed": 0, "resamples": 400}}
    references = pd.DataFrame(columns=["task", "protocol", "metric", "language", "reference", "value"])
    design = pd.DataFrame(
        [("set at act", "set", "act"), ("add at post", "add", "post")], columns=["patch", "operation", "site"]
    )
    found = Factorial(Evaluation(table, references, None, settings), design).opposites
    assert found["differ"].tolist() == ["protocol", "protocol", "operation, site", "operation, site"]
    assert found.loc[0, ["language", "better", "worse"]].tolist() == [
        "hi",
        "set at act, t head",
        "set at act, t generation",
    ]


def test_forcing_a_language_is_no_better_answer(crossed):
    by_head = crossed.evaluation.rows.query("protocol == 'head'")
    forced = by_head.assign(task="language forcing", protocol="generation", value=1 - by_head["value"])
    table = pd.concat([crossed.evaluation.rows, forced], ignore_index=True)
    both = dataclasses.replace(crossed.evaluation, rows=table, controls=None)
    assert Factorial(both, crossed.design).opposites.empty


def test_named_operations_write_what_they_say():
    model, _, stats, neurons = setting()
    found = ln.factorial(model, neurons, stats, next_word(), ["hi"], sites=["act"], resamples=200, progress=False)
    written = found.evaluation.settings["patches"]
    assert [written[f"{name} at act hi"][0].split("(")[0] for name in ("set", "add", "scale", "diffmean")] == [
        "SetTo",
        "Add",
        "Scale",
        "DiffMean",
    ]


def test_languages_default_to_what_everything_has():
    model, _, stats, neurons = setting()
    task = next_word()
    found = ln.factorial(
        model,
        neurons,
        stats.select(["en", "hi"]),
        task,
        operations=["scale"],
        sites=["act"],
        resamples=200,
        progress=False,
    )
    assert found.effects["language"].tolist() == ["en", "hi"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"operations": ["sett"]}, PatchError, "did you mean 'set'"),
        ({"operations": []}, PatchError, "at least one operation"),
        ({"sites": []}, PatchError, "at least one operation and one site"),
        ({"sites": ["post"]}, SiteMismatchError, "post"),
        ({"languages": ["fr"]}, LanguageError, "fr"),
    ],
)
def test_designs_that_cannot_be_run_are_refused(arguments, error, said):
    model, _, stats, neurons = setting()
    with pytest.raises(error, match=said):
        ln.factorial(model, neurons, stats, next_word(), progress=False, **{"sites": ["act"], **arguments})
