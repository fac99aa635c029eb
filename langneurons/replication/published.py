"""Published numbers, to stand beside what a study measures: data with its source, named as the study names things.

A number stands beside a measured one where model, task, neurons, language set, language and patch have the same names;
``published_as`` in a study says what a model, method or patch of its own is called there.
"""

from collections.abc import Mapping
from importlib.resources import files
from os.path import isfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from langneurons import storage
from langneurons.errors import StudyError, unknown

SHIPPED = {file.name.removesuffix(".toml"): file for file in (files("langneurons.replication") / "numbers").iterdir()}
UNPATCHED = "unpatched"
PUBLISHED_METRICS = ("accuracy", "f1", "exact_match")  # that the published protocol has, too
Scores = float | list[float]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Row(_Table):
    """Numbers of some neurons of a model.

    Attributes:
        model: Name of the model.
        neurons: Method that chose the neurons.
        set: The language set that was compared; None where the method knows none.
    """

    model: str
    neurons: str
    set: str | None = None


class ScoreRow(_Row):
    """Scores in %, unpatched and by patch: one number, or one per metric.

    Attributes:
        task: Kind of the task, such as "xnli".
        metrics: Metrics by the names they have in langneurons.
        language: Language of the neurons and of the items.
        items: Number of items.
        unpatched: Score without a patch.
        patched: Patch -> score.
    """

    task: str
    metrics: list[str]
    language: str
    items: int
    unpatched: Scores
    patched: dict[str, Scores]


class TrainingRow(_Row):
    """Scores in % after training some neurons beside attention and head, by what was trained.

    Attributes:
        task: Kind of the task.
        metric: Metric by the name it has in langneurons.
        language: The target language.
        patch: Patch under which the trained model was evaluated; "unpatched" for none.
        trained: Condition -> score.
    """

    task: str
    metric: str
    language: str
    patch: str = UNPATCHED
    trained: dict[str, float]


class CountRow(_Row):
    """Number of neurons of each language.

    Attributes:
        counts: Language -> neurons.
    """

    counts: dict[str, int]


class Claim(_Table):
    """A claim without a number, and where a study looks for it.

    Attributes:
        said: The claim in words.
        step: The kind of step that answers it: "matrix", "evaluate" or "factorial".
        task: Kind of the task that it is about; None for all.
        patch: Patch, or operation, that it is about; None for all.
        against: The patch, or operation, that it is said to exceed; None is the unpatched model.
    """

    said: str
    step: str
    task: str | None = None
    patch: str | None = None
    against: str | None = None


class Published(_Table):
    """Numbers of one paper.

    Attributes:
        paper: Its authors, year and address.
        source: Place in the paper where the numbers stand.
        scores: Scores of patched models.
        trainings: Scores of models in which neurons were trained.
        counts: Numbers of neurons.
        claims: Claims without a number.
        repeats: Task -> language -> scores of the same setting, trained again.
    """

    paper: str
    source: str
    scores: list[ScoreRow] = []
    trainings: list[TrainingRow] = []
    counts: list[CountRow] = []
    claims: list[Claim] = []
    repeats: dict[str, dict[str, list[float]]] = {}

    @property
    def models(self) -> list[str]:
        """The models there are numbers of."""
        return list(dict.fromkeys(row.model for row in (*self.scores, *self.trainings, *self.counts)))


def beside(study: Path, name: str) -> str:
    """The name of shipped numbers, or the path of a file of numbers, which is sought beside the study first."""
    near = study.parent / name
    return str(near) if name not in SHIPPED and isfile(near) else name


def read_published(name: str) -> Published:
    """Read published numbers.

    Args:
        name: The name of shipped numbers, such as ``"mondal-2025"``, or a TOML file.

    Raises:
        StudyError: If there are none, or the file is not one of published numbers.

    Example:
        >>> read_published("mondal-2025").models
        ['Llama-3.1-8B', 'Mistral-Nemo']
    """
    if name not in SHIPPED and not isfile(name):
        raise StudyError(f"There are no such published numbers here: {unknown('numbers', name, SHIPPED)}")
    file: Any = SHIPPED.get(name, Path(name))
    return parse_published(storage.read_toml(file, "published numbers from", StudyError), name)


def parse_published(content: Mapping[str, object], name: str) -> Published:
    """Check published numbers.

    Raises:
        StudyError: If a key or value is not one of published numbers.
    """
    try:
        published = Published.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StudyError(f"{name} holds no published numbers: {where}: {first['msg']}.") from error
    for row in published.scores:
        for patch, scores in {UNPATCHED: row.unpatched, **row.patched}.items():
            if len(listed(scores)) != len(row.metrics):
                raise StudyError(
                    f"{name}: {row.model}, {row.language}, {patch}: one number for each metric is needed, there are "
                    f"{len(listed(scores))} for {', '.join(row.metrics)}."
                )
    return published


def listed(scores: Scores) -> list[float]:
    """One number per metric."""
    return scores if isinstance(scores, list) else [scores]
