"""Settings of a step: learning rates and the order of examples; the curve in a notebook."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langneurons.settings import Training
from langneurons.training import loop as watching_module
from langneurons.training.loop import Order, rate
from langneurons.training.resuming import History

LINEAR = Training(learning_rate=2.0, warmup=0.1)


@given(
    count=st.integers(1, 200),
    batch_size=st.integers(1, 9),
    accumulate=st.integers(1, 4),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_every_example_comes_once_an_epoch(count, batch_size, accumulate, seed, epoch):
    lengths = np.random.default_rng(seed).integers(1, 50, count)
    order = Order(lengths, batch_size, accumulate, seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    batches = [batch for step in steps for batch in order.batches(step)]
    assert sorted(np.concatenate(batches)) == list(range(count))
    assert max(map(len, batches)) <= batch_size
    assert all(1 <= len(order.batches(step)) <= accumulate for step in steps)


def test_the_order_follows_from_seed_and_epoch_alone():
    lengths = np.arange(1, 101)

    def epoch(seed, number):
        order = Order(lengths, 4, 1, seed)
        return [batch.tolist() for step in range(25) for batch in order.batches(number * 25 + step)]

    assert epoch(0, 1) == epoch(0, 1)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_little_padding_is_computed():
    lengths = np.random.default_rng(0).integers(5, 60, 2000)
    order = Order(lengths, 16, 1, 0)
    padded = sum(len(batch) * lengths[batch].max() for step in range(125) for batch in order.batches(step))
    assert padded < 1.15 * lengths.sum()


def test_the_learning_rate_rises_and_falls():
    linear = [rate(LINEAR, step, 100) for step in range(100)]
    assert linear[:10] == pytest.approx([2.0 * (step + 1) / 11 for step in range(10)])
    assert linear[10] == 2.0
    assert linear[10:] == sorted(linear[10:], reverse=True)
    assert linear[-1] == pytest.approx(2.0 / 90)
    constant = Training(learning_rate=2.0, warmup=0, schedule="constant")
    assert [rate(constant, step, 7) for step in range(7)] == [2.0] * 7
    assert rate(Training(learning_rate=2.0, warmup=0), 0, 1) == 2.0


def test_a_history_loses_nothing_on_its_way_through_a_tensor():
    history, other = History(), History()
    history.add(0, 0.1, 1e-4, 3.3)
    history.add(0, 0.2, 2e-4, 3.4)
    history.measured([0.75])
    other.restore(history.tensor())
    assert other.table().equals(history.table())
    assert history.table()["step"].tolist() == [1, 2]


def test_a_notebook_shows_a_growing_curve_and_a_terminal_none(monkeypatch):
    pytest.importorskip("anywidget")  # imported before the module it needs is replaced
    shown = []
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    for in_notebook in (False, True):
        monkeypatch.setattr(watching_module, "_in_notebook", lambda answer=in_notebook: answer)
        history = History()
        with watching_module.watching(5, 0, "notebook", None) as watch:
            for loss in (3.0, 2.0, 1.0):
                history.add(0, loss, 1e-4, 1.0)
                watch(history.rows[-1])
        assert len(shown) == int(in_notebook)
    assert list(shown[0].data[0].y) == [3.0, 2.0, 1.0]


def test_outside_a_notebook_there_is_none():
    assert not watching_module._in_notebook()
