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

SHIPPED = {one.name.removesuffix(".toml"): one for one in (files("langneurons.replication") / "numbers").iterdir()}
UNPATCHED = "unpatched"
PUBLISHED_METRICS = ("accuracy", "f1", "exact_match")  # that the published protocol has, too
Scores = float | list[float]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreRow(_Table):
    """Scores in %, unpatched and by patch: one number, or one a metric.

    Attributes:
        model: Which.
        task: "xnli" or "xquad".
        metrics: As langneurons calls them.
        neurons: How the patched neurons were chosen.
        set: The language set that was compared; None where the method knows none.
        language: Whose neurons, and of the items.
        items: How many.
        unpatched: Without a patch.
        patched: Patch -> score.
    """

    model: str
    task: str
    metrics: list[str]
    neurons: str
    set: str | None = None
    language: str
    items: int
    unpatched: Scores
    patched: dict[str, Scores]


class TrainingRow(_Table):
    """Scores in % after training some neurons beside attention and head, by what was trained.

    Attributes:
        model: Which.
        task: Which.
        metric: As langneurons calls it.
        neurons: How the neurons were chosen.
        set: The language set that was compared.
        language: The target.
        patch: Under which the trained model was evaluated; "unpatched" under none.
        trained: Condition -> score.
    """

    model: str
    task: str
    metric: str
    neurons: str
    set: str | None = None
    language: str
    patch: str = UNPATCHED
    trained: dict[str, float]


class CountRow(_Table):
    """How many neurons a language has.

    Attributes:
        model: Which.
        neurons: How they were chosen.
        set: The language set that was compared.
        counts: Language -> neurons.
    """

    model: str
    neurons: str
    set: str | None = None
    counts: dict[str, int]


class Claim(_Table):
    """What is said without a number, and where a study looks for it.

    Attributes:
        said: In words.
        step: The kind of step that answers it: "matrix", "evaluate" or "factorial".
        task: Only this task.
        patch: Only this patch, or operation.
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
        source: Where the numbers were read.
        scores: Of patched models.
        trainings: Of models in which neurons were trained.
        counts: Of neurons.
        claims: What is said without a number.
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
        rows = [*self.scores, *self.trainings, *self.counts]
        return list(dict.fromkeys(row.model for row in rows))


def beside(study: Path, named: str) -> str:
    """Where the published numbers of a study lie: shipped ones by name, else a file, sought beside the study first."""
    near = study.parent / named
    return str(near) if named not in SHIPPED and isfile(near) else named


def read_published(named: str) -> Published:
    """Read published numbers.

    Args:
        named: The name of shipped ones, such as ``"mondal-2025"``, or a TOML file.

    Raises:
        StudyError: If there are none, or the file is not one of published numbers.

    Example:
        >>> read_published("mondal-2025").models
        ['Llama-3.1-8B', 'Mistral-Nemo']
    """
    if named not in SHIPPED and not isfile(named):
        raise StudyError(f"There are no such published numbers here: {unknown('numbers', named, SHIPPED)}")
    place: Any = SHIPPED.get(named, Path(named))
    return parse_published(storage.read_toml(place, "published numbers from", StudyError), named)


def parse_published(content: Mapping[str, Any], named: str) -> Published:
    """Check published numbers.

    Raises:
        StudyError: If a key or value is not one of published numbers.
    """
    try:
        found = Published.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StudyError(f"{named} holds no published numbers: {where}: {first['msg']}.") from error
    for row in found.scores:
        for patch, scores in {UNPATCHED: row.unpatched, **row.patched}.items():
            if len(listed(scores)) != len(row.metrics):
                raise StudyError(f"{named}: {row.model}, {row.language}, {patch}: one number for each metric, please.")
    return found


def listed(scores: Scores) -> list[float]:
    """One number a metric."""
    return scores if isinstance(scores, list) else [scores]
