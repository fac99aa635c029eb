"""The loop of a fine-tuning: steps in their order, evaluations, the best parameters, checkpoints and stopping."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from langneurons.errors import TrainingError
from langneurons.models import ModelView
from langneurons.models.finite import first_origin
from langneurons.patches import Patch, intervene
from langneurons.run import Progress
from langneurons.settings import Training
from langneurons.storage import understood
from langneurons.tasks.task import Objective
from langneurons.training.lora import Update
from langneurons.training.masked import frozen
from langneurons.training.resuming import History, RunFolder

Watch = Callable[[Mapping[str, float]], object]
_REDRAWN = 100  # largest number of times that a curve is redrawn during a run
_POOL = 8  # batches whose examples are sorted by length together: more would waste less padding, and mix less


@contextmanager
def watching(steps: int, first: int, progress: bool | str, events: Path | None) -> Iterator[Watch]:
    """Give a function that shows a row of the history.

    Args:
        steps: Number of steps in all.
        first: Number of steps that were taken before.
        progress: Whether to show a bar on standard error; ``"notebook"`` adds a curve where a notebook can show one.
        events: Folder for TensorBoard's events; None writes none.

    Raises:
        TrainingError: If events are asked for and TensorBoard is not installed.
    """
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(total=steps, initial=first, unit="step", shown=progress))

        def advance(row: Mapping[str, float]) -> None:
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            bar.update()

        shown: list[Watch] = [advance]
        if progress == "notebook" and _in_notebook():
            shown.append(_curve(steps))
        if events is not None:
            shown.append(stack.enter_context(_tensorboard(events)))
        yield lambda row: [show(row) for show in shown]


def _in_notebook() -> bool:
    """Whether this runs in a notebook, and the package for live figures is installed."""
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
    """Show a figure of the loss that grows during the run."""
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


def rate(training: Training, step: int, steps: int) -> float:
    """Find the learning rate of a step.

    Args:
        training: Settings of the training.
        step: Index of the step, from 0.
        steps: Number of steps.

    Returns:
        It rises in equal parts during the warm-up, then stays or falls to nearly 0; it is never 0.
    """
    warm = round(training.warmup * steps)
    if step < warm:
        share = (step + 1) / (warm + 1)
    else:
        share = 1.0 if training.schedule == "constant" else (steps - step) / (steps - warm)
    return float(training.learning_rate * share)


class Order:
    """The examples of each step: every example once per epoch, in an order that seed and epoch alone decide.

    Examples of similar length share a batch, so that little padding is computed; which do changes with every epoch.

    Args:
        lengths: Number of tokens of each example.
        batch_size: Examples per forward pass.
        accumulate: Forward passes per step.
        seed: Seed for the order.
    """

    def __init__(self, lengths: Int[np.ndarray, " example"], batch_size: int, accumulate: int, seed: int) -> None:
        self._lengths, self._batch_size, self._accumulate, self._seed = lengths, batch_size, accumulate, seed
        self._epoch: tuple[int, list[np.ndarray]] | None = None
        batches = -(-len(lengths) // batch_size)
        self.steps_per_epoch = -(-batches // accumulate)

    def batches(self, step: int) -> list[Int[np.ndarray, " row"]]:
        """The batches of a step, from 0: the indices of their examples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][place * self._accumulate : (place + 1) * self._accumulate]

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([self._seed, epoch])
        rows, pool = random.permutation(len(self._lengths)), _POOL * self._batch_size
        batches = []
        for start in range(0, len(rows), pool):
            near = rows[start : start + pool]
            near = near[np.argsort(self._lengths[near], kind="stable")]
            batches += [near[first : first + self._batch_size] for first in range(0, len(near), self._batch_size)]
        return [batches[index] for index in random.permutation(len(batches))]


@dataclass(frozen=True)
class Dev:
    """What decides which parameters are kept.

    Attributes:
        metrics: Names of what is measured; the first decides.
        lower_is_better: Whether a smaller value of it is better.
        measure: Measures the model as it is, by every metric.
    """

    metrics: Sequence[str]
    lower_is_better: bool
    measure: Callable[[], Sequence[float]]


class Loop:
    """A fine-tuning that can stop after any step and continue exactly.

    Args:
        model_view: The model.
        objective: What is minimised.
        updates: The updates that are trained, prepared for the model.
        training: Settings of the training.
        patches: Patches that are held while the model is trained and evaluated.
        dev: What decides which parameters are kept; None where nothing is evaluated.
        folder: Folder for checkpoints; None keeps none.

    Attributes:
        steps: Number of steps, if it does not stop early.
        history: One row per step.
        best_step: The step after which the parameters had the values that are kept at the end.
        stopped_early: Whether evaluations no longer improved.
    """

    def __init__(
        self,
        model_view: ModelView,
        objective: Objective,
        updates: Sequence[Update],
        training: Training,
        patches: Sequence[Patch] = (),
        dev: Dev | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        self._view, self._objective, self._updates, self._training = model_view, objective, updates, training
        self._patches, self._dev, self._folder = patches, dev, folder
        self.parameters = trained_parameters(objective, updates)
        self._order = Order(objective.lengths, training.batch_size, training.accumulate, training.seed)
        self.steps = training.steps or training.epochs * self._order.steps_per_epoch
        self._optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.history = History(() if dev is None else dev.metrics)
        self.best_step, self.stopped_early, self.done = 0, False, False
        self._best: dict[str, Tensor] | None = None
        self._best_score, self._since_best = -math.inf, 0
        self._whole, self._saved = True, time.monotonic()

    @property
    def step(self) -> int:
        """Number of steps that were taken."""
        return len(self.history.rows)

    def run(self, watch: Watch) -> None:
        """Train until it is done; then the parameters are the best, or the last where nothing is evaluated.

        Args:
            watch: Shown every row of the history.

        Raises:
            TrainingError: If the loss or its gradient is not finite.
        """
        with _left_as_it_was(self._view.model), ExitStack() as stack:
            for update in self._updates:
                stack.enter_context(update.attach(self._view.model))
            stack.enter_context(intervene(self._view.model, *self._patches))
            try:
                while not self.done:
                    self._stretch(watch)
                    self._end_stretch()
            except KeyboardInterrupt:
                # In the middle of a change parameters belong to no step: the previous checkpoint counts.
                if self._whole:
                    self._save()
                raise
        self._saved_result()

    def restore(self) -> None:
        """Continue from the last checkpoint of the folder, if there is one."""
        checkpoint = None if self._folder is None else self._folder.load()
        if self._folder is None or checkpoint is None:
            return
        tensors, about = checkpoint
        with understood(self._folder.checkpoint):
            self.history.restore(tensors["history"])
            self._set({name: tensors[f"parameter.{name}"] for name in self.parameters})
            state = {
                index: {name: tensors[f"optimizer.{index}.{name}"] for name in about["optimizer"]}
                for index in range(len(self.parameters) if about["optimizer"] else 0)
            }
            self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
            if about["best_step"] and not about["done"]:
                self._best = {name: tensors[f"best.{name}"] for name in self.parameters}
            self.best_step, self._since_best = about["best_step"], about["since_best"]
            self._best_score = -math.inf if about["best_score"] is None else about["best_score"]
            self.stopped_early, self.done = about["stopped_early"], about["done"]

    def _stretch(self, watch: Watch) -> None:
        """Take steps up to the next evaluation, or the end."""
        with ExitStack() as stack:
            stack.enter_context(self._view.native_attention())
            if self._training.gradient_checkpointing:
                stack.enter_context(self._view.gradient_checkpointing())
            stack.enter_context(self._view.without_gradients(_first_trained(self._updates, self._view.n_layers)))
            for step in range(self.step, self._next_stop()):
                self._take(step)
                watch(self.history.rows[-1])
                if time.monotonic() - self._saved > self._training.save_every:
                    self._save()

    def _next_stop(self) -> int:
        if self._dev is None:
            return self.steps
        every = self._training.evaluate_every or self._order.steps_per_epoch
        # A run that stopped between a step and its evaluation begins with the evaluation.
        last = self.step - 1 if self.history.rows and math.isnan(self.history.rows[-1]["dev"]) else self.step
        return min(self.steps, (last // every + 1) * every)

    def _take(self, step: int) -> None:
        learning_rate = rate(self._training, step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad()
        loss = self._backward(step)
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self._training.clip or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(self._failure(step, loss, norm))
        self._whole = False
        self._optimizer.step()
        self.history.add(step // self._order.steps_per_epoch, loss, learning_rate, norm)
        self._whole = True

    def _backward(self, step: int) -> float:
        """Gradients of the mean loss over all batches of a step, whatever their sizes."""
        batches = self._order.batches(step)
        counted = sum(int(self._objective.weights[rows].sum()) for rows in batches)
        total = torch.zeros((), dtype=torch.float64)
        for rows in batches:
            with torch.autocast(self._view.device.type, torch.bfloat16, enabled=bool(self._training.bfloat16)):
                loss = self._objective.loss(self._view, rows) / counted
            loss.backward()
            total = total.to(loss.device) + loss.detach()
        return float(total)

    def _end_stretch(self) -> None:
        if self._dev is not None:
            scores = self._dev.measure()
            score = -scores[0] if self._dev.lower_is_better else scores[0]
            self._whole = False
            self.history.measured(scores)
            self._since_best += 1
            if score > self._best_score:
                self._best = self._copied()
                self._best_score, self.best_step, self._since_best = score, self.step, 0
            self.stopped_early = self._since_best >= (self._training.patience or math.inf) and self.step < self.steps
        self.done = self.stopped_early or self.step >= self.steps
        self._whole = True
        if not self.done:
            self._save()

    def _saved_result(self) -> None:
        if self._best is not None:
            self._set(self._best)
        else:
            self.best_step = self.step
        self._best = None
        self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._folder is None:
            return
        state = {} if self.done else self._optimizer.state_dict()["state"]
        tensors = {f"parameter.{name}": values for name, values in self._copied().items()}
        tensors |= {f"best.{name}": values for name, values in (self._best or {}).items()}
        for index, moments in state.items():
            tensors |= {f"optimizer.{index}.{name}": values for name, values in moments.items()}
        about = {
            "optimizer": sorted(next(iter(state.values()), {})),
            "best_step": self.best_step,
            "best_score": self._best_score if math.isfinite(self._best_score) else None,
            "since_best": self._since_best,
            "stopped_early": self.stopped_early,
            "done": self.done,
        }
        self._folder.save({**tensors, "history": self.history.tensor()}, about)
        self.history.write_log(self._folder.log)

    def _copied(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _failure(self, step: int, loss: float, norm: float) -> str:
        checkpoint = "It came before the first checkpoint"
        if self._folder is None:
            checkpoint = "Nothing was kept: give out= to keep checkpoints"
        elif self._folder.checkpoint.exists():
            checkpoint = f"The last good checkpoint is {self._folder.checkpoint}"
        return (
            f"At step {step + 1} of {self.steps} the loss is {loss} and its gradient's norm {norm}, which is not "
            f"finite (learning rate {rate(self._training, step, self.steps):.3g}{self._origin(step)}). {checkpoint}; a "
            "lower learning_rate or clip may help."
        )

    def _origin(self, step: int) -> str:
        """Where in the model the numbers of a step stop being finite."""
        for rows in self._order.batches(step):
            if (origin := first_origin(self._view, partial(self._objective.loss, self._view, rows))) is not None:
                where, row, _ = origin
                return f"; {where}, on training item {int(rows[row])}"
        return ""


def trained_parameters(objective: Objective, updates: Sequence[Update]) -> dict[str, nn.Parameter]:
    """Everything that is trained, by name."""
    parameters = dict(objective.parameters())
    for index, update in enumerate(updates):
        parameters |= {f"{index}.{name}": parameter for name, parameter in update.named_parameters().items()}
    return parameters


def _first_trained(updates: Sequence[Update], layers: int) -> int:
    """The lowest layer that an update trains something in, by the names of its parameters; 0 where they do not say."""
    named = [name.partition(".")[0] for update in updates for name in update.named_parameters()]
    return min((int(layer) if layer.isdecimal() else 0 for layer in named), default=layers)


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Inside the block no dropout and no gradients of the model's own parameters; afterwards all is as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with frozen(model):
            yield
    finally:
        for module in training:
            module.training = True
