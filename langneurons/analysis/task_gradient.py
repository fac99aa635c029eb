"""task_gradient(): which neurons a task's right answers depend on, and a control task's do not."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.analysis.metrics import measured_languages
from langneurons.analysis.screening import differentiable
from langneurons.errors import TaskError
from langneurons.evaluation.measuring import Job, measure_jobs
from langneurons.identification import NeuronSet, Scores
from langneurons.identification.selection import lowest
from langneurons.models import ModelView, view
from langneurons.models.finite import check_finite
from langneurons.run import Progress, alone_in_out
from langneurons.settings import Run, TaskScoring, TaskScoringOptions, with_options
from langneurons.storage import Column, JsonObject, Result, Table, layout
from langneurons.storage.layouts import Layout
from langneurons.tasks.batching import batches, scoring
from langneurons.tasks.task import Task

BATCH_SIZE = 8
PROCEDURE = "langneurons/task-gradient/1"  # part of the name under which scores are kept
UNCERTAINTY = "sampling variance of clusters of items"
PARTS = ("score", "variance", "control", "control_variance")


@dataclass(frozen=True, eq=False, repr=False)
class TaskGradient(Result, kind="task-gradient", tables=("items",)):
    """What a task's right answers depend on: CULNIG's score of every neuron in each language.

    Attributes:
        parts: "score" and "control", the means over the task's and the control's items, and the variances of these
            means, "variance" and "control_variance".
        items: One row per language and role ("task" or "control"): items, clusters, and probability, the mean p(right
            answer).
        settings: How it was made: model, site, task, control, languages, top.
    """

    layouts: ClassVar[Mapping[str, Layout]] = {
        "items": layout(
            text="language", whole="items clusters", share="probability", choices={"role": ("task", "control")}
        ),
        "settings": layout(text="model fingerprint site task control", texts="languages", share="top"),
    }

    parts: dict[str, Float[Tensor, "language layer neuron"]]
    items: pd.DataFrame
    settings: Mapping[str, Any]

    @property
    def scores(self) -> Scores:
        """The task's score less the control's, of every neuron, with standard errors over clusters of items."""
        return Scores(
            values=self.parts["score"] - self.parts["control"],
            languages=tuple(self.settings["languages"]),
            method=self._method,
            uncertainty=UNCERTAINTY,
            degrees_of_freedom=int(self.items["clusters"].to_numpy().min()) - 1,
            compute_standard_error=lambda: (self.parts["variance"] + self.parts["control_variance"]).sqrt(),
        )

    @cached_property
    def neurons(self) -> NeuronSet:
        """The round(top x layers x width) neurons of each language that score highest, ties by layer and index."""
        settings, scores = self.settings, self.scores
        layers, width = self.parts["score"].shape[1:]
        count = max(1, round(settings["top"] * layers * width))
        rows = zip(settings["languages"], scores.values, strict=True)
        values = {language: own.flatten().double().numpy() for language, own in rows}
        members = {language: lowest(-own, count) for language, own in values.items()}
        scores = {language: values[language][flat] for language, flat in members.items()}
        return NeuronSet(members, (layers, width), settings["site"], settings["fingerprint"], self._method, scores)

    def table(self) -> Table:
        """The items of the task and its control, per language."""
        columns = {"probability": Column("mean p(right answer)")}
        caption = f"{self._method}, {self.settings['model']}: {self.neurons!r}"
        return Table(self.items, columns, caption=caption)

    @property
    def _method(self) -> str:
        settings = self.settings
        return f"task gradient of {settings['task']}, control {settings['control']}, top {settings['top']}"

    def _check_parts(self) -> None:
        shape = self.parts["score"].shape
        languages = self.settings["languages"]
        if len(shape) != 3 or not shape[0] == len(languages) == len(set(languages)) or self.items.empty:
            raise ValueError("it needs the score of every neuron for each language")
        for name in PARTS:
            part = self.parts[name]
            if part.shape != shape or not part.is_floating_point() or not bool(part.isfinite().all()):
                raise ValueError(f"the part {name!r} is not a finite number for every neuron")

    def _write(self, folder: Path) -> JsonObject:
        return {**super()._write(folder), "parts": storage.write_tensors(folder / "parts.safetensors", self.parts)}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        parts = storage.read_tensors(folder / "parts.safetensors", str(content["parts"]))
        return {**super()._read(folder, content), "parts": parts}


@alone_in_out
def task_gradient(
    model: torch.nn.Module,
    task: Task,
    control: Task | None = None,
    languages: Iterable[str] | None = None,
    *,
    task_scoring: TaskScoring = TaskScoring(),
    run: Run = Run(),
    **options: Unpack[TaskScoringOptions],
) -> TaskGradient:
    """Score every neuron by how much the probability of right answers depends on it, and a control task's does not.

    With a_it the activation of neuron i at token t of an item's text x, and p(x) the probability of the right answer
    (all of its tokens, among the whole vocabulary), the score of an item is

        s_i(x) = p(x) max_t a_it dp(x)/da_it

    over all tokens that precede the answer's last, and of a neuron the mean over the task's items less the mean over
    the control's items of max(0, s_i(x)). Of a whole head, a dp/da is summed over its coordinates.

    Source: CULNIG (Yamamoto et al. 2025, arXiv 2510.08284), whose control asks in the same form without what the task
    is about, and whose answers are one token. It scores the gate's output (``site="pre"``), up, q, k and v, and then
    leaves out the highest neurons of a second control: take those away as sets.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it counts, but then nothing can be kept.
        task: A task with right answers of which the likelihood is known: ``ln.XNLI`` without a head, or multiple choice
            of ``ln.tasks.harness``.
        control: A task that needs all but what the neurons are looked for. It has the task's languages, or only one,
            which then serves for all. Without it nothing is subtracted.
        languages: Languages to score; by default all of the task's.
        task_scoring: Site of the neurons, and the share of them to name.
        run: Where it runs and what keeps it; texts per forward and backward pass, 8 by default.
        options: Single fields of ``TaskScoring`` and ``Run``, such as ``top=0.001``.

    Returns:
        ``scores`` of every neuron, and ``neurons``, the set of the highest.

    Raises:
        TaskError: If a task has no right answers as texts.
        LanguageError: If a language is not the task's, or the control has others.
        ModelError: If a score is not finite.

    Example:
        >>> task = ln.XNLI.load("babel", ["en"]).take(2)
        >>> result = ln.analysis.task_gradient(model, task, top=0.001, progress=False)
        >>> result.scores.values.shape == (1, model.cfg.n_layers, model.cfg.d_mlp), len(result.neurons)
        (True, 12)
    """
    task_scoring, run = with_options(options, task_scoring, run)
    model_view, codes = view(model), measured_languages(task.languages, languages)
    tasks = {("task", code): (task, code) for code in codes}
    if control is not None:
        tasks |= {("control", code): (control, _language_of(control, code)) for code in codes}
    jobs = {}
    for key, (of_task, code) in tasks.items():
        if not hasattr(of_task, "gold_texts"):
            raise TaskError(
                f"{of_task.name!r} has no right answers whose likelihood could be read: possible are XNLI and multiple "
                "choice of the harness."
            )
        about = storage.fingerprint(PROCEDURE, key[0], of_task.fingerprint, code, task_scoring.site)
        jobs[key] = Job((), about, partial(_scored, model, of_task, code, key[0], task_scoring.site, run))
    tables = measure_jobs(model, jobs, run)
    shape = model_view.shape(task_scoring.site)

    def stacked(role: str, column: str) -> Tensor:
        nothing = np.zeros(shape)
        values = [tables[role, code][column].to_numpy() if (role, code) in tables else nothing for code in codes]
        return torch.from_numpy(np.stack(values)).float().view(len(codes), *shape)

    parts = {"score": stacked("task", "score"), "variance": stacked("task", "variance")}
    parts |= {"control": stacked("control", "score"), "control_variance": stacked("control", "variance")}
    items = pd.DataFrame(
        {"language": code, "role": role, **table.iloc[0][["items", "clusters", "probability"]]}
        for (role, code), table in tables.items()
    ).astype({"items": int, "clusters": int})
    settings = {
        "model": model_view.described,
        "fingerprint": model_view.fingerprint_at(task_scoring.site),
        "task": task.name,
        "control": "none" if control is None else control.name,
        "languages": codes,
        **task_scoring.model_dump(),
    }
    return TaskGradient(parts, items, settings)


def _language_of(control: Task, code: str) -> str:
    """The language in which a control is asked beside a language of the task."""
    return control.languages[0] if len(control.languages) == 1 else measured_languages(control.languages, [code])[0]


def _scored(model: torch.nn.Module, task: Any, language: str, role: str, site: str, run: Run) -> pd.DataFrame:
    """Score every neuron by one task in one language: mean over items, and its variance, over clusters."""
    batch_size = run.batch_size or BATCH_SIZE
    with scoring(model) as model_view:
        texts, shape = task.gold_texts(model_view, language), model_view.shape(site)
        every = NeuronSet({"all": np.arange(np.prod(shape))}, shape, site, None, "every neuron")
        clusters = [part for _, part in texts.groupby("cluster", sort=False)]
        if len(clusters) < 2:
            raise TaskError(
                f"The items of {task.name!r} in {language!r} are one cluster: at least two are needed, because it is "
                "over clusters that scores vary."
            )
        sums, squares, products = (np.zeros(shape) for _ in range(3))
        sizes, probability = np.array([len(part) for part in clusters]), 0.0
        for part in Progress(clusters, desc=f"{task.name} {language}", unit="cluster", shown=run.progress):
            total = np.zeros(shape)
            for rows, tokens in batches([ids[:-1] for ids in part["tokens"]], batch_size, model_view.context_length):
                of_items, p = _item_scores(model_view, every, tokens, part.iloc[rows])
                total += (of_items.clamp(min=0) if role == "control" else of_items).sum(0).numpy()
                probability += float(p.sum())
            sums, squares, products = sums + total, squares + total**2, products + len(part) * total
    count, number = sizes.sum(), len(clusters)
    mean = sums / count
    # Of a ratio of sums over clusters, by linearisation.
    spread = squares - 2 * mean * products + mean**2 * (sizes**2).sum()
    variance = np.maximum(spread, 0) * number / (number - 1) / count**2
    table = pd.DataFrame({"score": mean.ravel(), "variance": variance.ravel()})
    return table.assign(items=texts["item"].nunique(), clusters=number, probability=probability / count)


def _item_scores(
    model_view: ModelView, every: NeuronSet, tokens: Int[Tensor, "text position"], texts: pd.DataFrame
) -> tuple[Float[Tensor, "text layer neuron"], Float[Tensor, " text"]]:
    """The scores p max_t a_t dp/da_t of every neuron on each text, and p."""
    lengths = torch.tensor([len(ids) for ids in texts["tokens"]])
    answers = [ids[start:] for ids, start in zip(texts["tokens"], texts["given"], strict=True)]
    place = torch.arange(tokens.shape[1] + 1)
    counted = (place >= torch.tensor(texts["given"].tolist())[:, None]) & (place < lengths[:, None])
    owner = torch.repeat_interleave(torch.arange(len(answers)), torch.tensor([len(answer) for answer in answers]))
    with torch.inference_mode(False), torch.enable_grad(), differentiable(model_view, every) as (values, addends):
        losses = model_view.predictions(tokens.clone(), counted.clone()).losses(torch.tensor(np.concatenate(answers)))
        p = torch.zeros(len(answers), device=losses.device).index_add(0, owner.clone().to(losses.device), -losses).exp()
        check_finite(model_view, p.detach(), tokens)
        slopes = torch.autograd.grad(p.sum(), [addends[layer] for layer in range(every.shape[0])])
    unread = (place[None, :-1] >= lengths[:, None] - 1)[..., None]
    by_layer = []
    for layer, slope in enumerate(slopes):
        product = (values[layer] * slope).double().cpu()
        product = product.sum(list(range(3, product.ndim))) if product.ndim > 3 else product
        by_layer.append(product.masked_fill(unread, -torch.inf).amax(1))
    p = p.detach().double().cpu()
    return p[:, None, None] * torch.stack(by_layer, 1), p
