"""Looking at a fine-tuning while it runs: a bar, a curve in a notebook, events for TensorBoard."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from langneurons.errors import TrainingError

Watch = Callable[[Mapping[str, float]], object]
_REDRAWN = 100  # how often, at most, a curve is drawn anew during a run


@contextmanager
def watching(steps: int, done: int, progress: bool | str, events: Path | None) -> Iterator[Watch]:
    """Give a function that shows a row of the history.

    Args:
        steps: How many there will be.
        done: How many there were before.
        progress: Show a bar on standard error; ``"notebook"``: a curve beside it, where a notebook can show one.
        events: Folder for TensorBoard's events.

    Raises:
        TrainingError: If events are asked for and TensorBoard is not installed.
    """
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=steps, initial=done, unit="step", disable=not progress))
        shown: list[Watch] = [lambda row: _advance(bar, row)]
        if progress == "notebook" and _in_notebook():
            shown.append(_curve(steps))
        if events is not None:
            shown.append(stack.enter_context(_tensorboard(events)))
        yield lambda row: [show(row) for show in shown]


def _advance(bar: Any, row: Mapping[str, float]) -> None:
    bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
    bar.update()


def _in_notebook() -> bool:
    """Whether a kernel runs this, and what draws a live figure is installed."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return False
    try:
        import_module("anywidget")
    except ImportError:
        return False
    return True


def _curve(steps: int) -> Watch:
    """A figure of the loss that grows with it."""
    from IPython.display import display  # noqa: PLC0415 (only where a notebook runs)
    from plotly import graph_objects  # noqa: PLC0415 (takes a while to import)

    figure: Any = graph_objects.FigureWidget(graph_objects.Scatter(x=[], y=[], mode="lines", name="loss"))
    figure.update_layout(xaxis_title="step", yaxis_title="loss", height=300, template="simple_white")
    display(figure)
    every, places, losses = max(1, steps // _REDRAWN), [], []

    def draw(row: Mapping[str, float]) -> None:
        places.append(row["step"])
        losses.append(row["loss"])
        if len(places) % every == 0 or row["step"] == steps:
            figure.data[0].update(x=tuple(places), y=tuple(losses))

    return draw


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Watch]:
    writer = _writer_class()(str(folder))
    try:
        yield lambda row: [
            writer.add_scalar(name, row[name], int(row["step"])) for name in ("loss", "learning_rate", "grad_norm")
        ]
    finally:
        writer.close()


def _writer_class() -> Any:
    try:
        return import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise TrainingError("tensorboard=True needs TensorBoard: pip install tensorboard, or leave it away.") from error
