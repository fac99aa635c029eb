"""Every kind of result that can be drawn draws itself."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import langneurons as ln
from langneurons.analysis.decomposition import Decomposition, Moments
from langneurons.analysis.polysemanticity import VERDICTS, Polysemanticity
from langneurons.analysis.validity import Evidence, validity_table
from langneurons.views.plot import FIGURES
from tests.planted.transfer import simulated
from tests.robustness import results
from tests.views.report import made_up


def finetuned():
    history = pd.DataFrame({"step": [1, 2, 3], "loss": [1.1, 0.9, 0.8], "dev": [np.nan, 0.4, 0.5]})
    return ln.training.Finetuned(None, None, history, {"metric": "accuracy"})


def polysemanticity():
    moments = Moments.of(np.random.default_rng(0).normal(size=(40, 24)), np.arange(40) % 4, 4)
    whole = Decomposition.of(moments, ("en", "hi"), ("no", "yes"), (2, 12), "act")
    columns = {"language": "hi", "verdict": list(VERDICTS), "task_bits": 0.1, "task_detectable": [0.1, 0.2, 0.3, 0.4]}
    rows = whole.rows.iloc[[0, 5, 13, 20]].assign(**columns, language_p_adjusted=0.5, task_p_adjusted=0.5)
    settings = {"items": 20, "site": "act", "task": "cues", "seed": 0}
    return Polysemanticity(rows, pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), whole, settings)


RESULTS = {
    "Ablation": lambda: (made_up.ablation(made_up.neuron_set()),),
    "ActivationStats": lambda: (made_up.statistics(), (0, 1)),
    "Attribution": lambda: (results.attribution(),),
    "EffectTable": lambda: (made_up.matrix(),),
    "Evaluation": lambda: (made_up.evaluation(),),
    "Finetuned": lambda: (finetuned(),),
    "NeuronSet": lambda: (made_up.neuron_set(),),
    "Polysemanticity": lambda: (polysemanticity(),),
    "TaskGradient": lambda: (results.task_gradient(),),
    "Transfer": lambda: (simulated({"none": 0.0, "source": 0.2}, clusters=10, resamples=200),),
    "ValidityTable": lambda: (validity_table([Evidence("good", recall=1.0), Evidence("bad", recall=0.2)]),),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_kind_of_result_that_has_a_figure_is_drawn(name):
    result, *arguments = RESULTS[name]()
    figure = FIGURES[name](result, *arguments)
    assert type(result).__name__ == name
    assert isinstance(figure, go.Figure)
    assert len(figure.data)
    assert figure.layout.meta["caption"]
    texts = [figure.layout.title.text, figure.layout.title.subtitle.text or "", *figure.layout.meta.values()]
    assert "nan" not in " ".join(texts).split()
