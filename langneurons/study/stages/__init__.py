"""What a stage of a study is: its table in the file, its steps and what they depend on, how it runs, what it costs."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from pydantic import BaseModel

import langneurons as ln
from langneurons import storage
from langneurons.corpora.languages import label_of, spelled
from langneurons.errors import LanguageError, unknown
from langneurons.settings import Settings
from langneurons.study.tables import Grid, MethodPart, Part, PatchedGrid, PatchPart, StudyConfig, python_only

if TYPE_CHECKING:
    from langneurons.study.work import Work

Source = Callable[[str, str], str]
Piece = tuple[str, dict[str, Any], list[tuple[str, ...]]]
Units = Mapping[str, int]
WITHOUT_EFFECT = {"save_every", "tensorboard"}  # options that no result depends on


@dataclass(frozen=True)
class Step:
    """One thing to compute, and its place in the study.

    Attributes:
        stage: The stage that computes it.
        settings: Everything in the study that its result depends on.
        inputs: The steps whose results it reads.
        model: Name of the model.
        language_set: Name of the language set.
        method: Name of the method.
        entry: Name of the stage's table that it is about, where there may be several.
        patch: Name of the patch.
    """

    stage: "Stage[Any]"
    settings: Mapping[str, Any]
    inputs: "tuple[Step, ...]" = ()
    model: str = ""
    language_set: str = ""
    method: str = ""
    entry: str = ""
    patch: str = ""

    @property
    def name(self) -> str:
        """Such as ``"matrix/babel/all/lape/zero"``."""
        place = (self.stage.name, self.model, self.language_set, self.method, self.entry, self.patch)
        return "/".join(filter(None, place))

    @cached_property
    def key(self) -> str:
        """The hash of everything that the result depends on."""
        content = json.dumps(self.settings, sort_keys=True, ensure_ascii=False)
        keys = [step.key for step in self.inputs]
        return storage.fingerprint(self.stage.name, str(self.stage.version), content, *keys)

    def input(self, stage: str, entry: str = "") -> "Step":
        """The input of a stage."""
        return next(step for step in self.inputs if step.stage.name == stage and entry in ("", step.entry))

    def reads(self, stage: str) -> bool:
        """Whether there is an input of a stage."""
        return any(step.stage.name == stage for step in self.inputs)


@dataclass
class Plan:
    """The steps of a study, each after its inputs.

    Attributes:
        config: The study.
        source: From kind ("model", "text", "task", "numbers") and name of a source to a hash of its content.
        steps: The steps by name.
    """

    config: StudyConfig
    source: Source
    steps: dict[str, Step] = field(default_factory=dict)

    def of(self, stage: str, *place: str) -> Step:
        """The step of a stage at a place: model, language set, method, ..."""
        return self.steps["/".join((stage, *place))]

    def model_settings(self, model: str) -> dict[str, Any]:
        """What decides a model."""
        part = self.config.models[model]
        return {"model": self.source("model", part.name), **part.options, "seed": self.config.seed}

    def text_settings(self, model: str) -> dict[str, Any]:
        """What decides a model and the text that it reads."""
        text = self.config.text.model_dump(include={"text_column", "revision", "heldout"})
        text["source"] = self.source("text", self.config.text.source)
        return {**self.model_settings(model), "text": text}

    def patch_settings(self, patches: Mapping[str, PatchPart]) -> dict[str, Any]:
        """What patches write; where one has the dose of another, also that one and the text it is measured on."""
        text = self.config.text.model_dump(include={"heldout_tokens", "heldout_context"})
        settings = {name: patch.settings for name, patch in patches.items()}
        for name, patch in patches.items():
            if patch.dose_of is not None:
                settings[name]["dose_of"] = {**self.config.patches[patch.dose_of].settings, **text}
        return settings

    def published(self, model: str, *readers: MethodPart | PatchPart) -> list[tuple[str, ...]]:
        """The place of the published statistics, where a method or a patch reads them."""
        others = [self.config.patches[part.dose_of] for part in readers if isinstance(part, PatchPart) and part.dose_of]
        return [("published", model)] if any(part.published for part in (*readers, *others)) else []


PartType = TypeVar("PartType", bound=BaseModel)


class Stage(Generic[PartType]):
    """One kind of work in a study; a subclass says what it is in its class statement.

    Attributes:
        name: What its steps' names begin with.
        version: Raised when the same settings give other results, so that what an older langneurons computed runs
            again; 1 was that of 0.1.0.
        table: The table of the file that it reads, "" for those that every study has.
        part: The class of that table, between the brackets of the class statement.
        several: Whether there may be several such tables, by name.
        always: Whether the table is there with its defaults where the file has none.
        verb: The function of ``ln`` that computes it.
        section: What the report calls its results, "" where it shows none.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 2
    table: ClassVar[str] = ""
    part: ClassVar[type[BaseModel]] = Part
    several: ClassVar[bool] = False
    always: ClassVar[bool] = False
    verb: ClassVar[str] = ""
    section: ClassVar[str] = ""

    def __init_subclass__(cls, **attributes: str | bool | int) -> None:
        """Take the attributes that the class statement gives, and the class of its tables."""
        super().__init_subclass__()
        (part,) = get_args(vars(cls)["__orig_bases__"][0])
        if isinstance(part, type):
            cls.part = part
        for name, value in attributes.items():
            setattr(cls, name, value)

    def parts(self, config: StudyConfig) -> dict[str, PartType]:
        """Its tables in a study by name, a single one under ""."""
        value = getattr(config, self.table, None)
        return {} if value is None else value if isinstance(value, dict) else {"": value}

    def part_of(self, config: StudyConfig, step: Step) -> PartType:
        """The table that a step is about."""
        return self.parts(config)[step.entry]

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """Its steps for a model."""
        raise NotImplementedError

    def mistakes(self, config: StudyConfig) -> Iterator[str]:
        """What is wrong with its tables, found before anything runs."""
        for name, part in self.parts(config).items():
            where = f"{self.table}.{name}" if name else self.table
            if isinstance(part, Grid):
                yield from misnamed("method", where, part.methods, config.methods)
                yield from misnamed("language set", where, part.sets, config.sets)
            if isinstance(part, PatchedGrid):
                yield from misnamed("patch", where, part.patches, config.patches)
            languages = [code for name in getattr(part, "sets", None) or config.sets for code in config.sets[name]]
            yield from misnamed_languages(f"{where}.languages", getattr(part, "languages", None), languages)
            yield from self.mistakes_in(config, where, part)

    def mistakes_in(self, config: StudyConfig, where: str, part: PartType) -> Iterator[str]:
        """What is wrong with one of its tables."""
        return iter(())

    def run(self, step: Step, part: PartType, work: "Work") -> Any:
        """Compute a step.

        Args:
            step: The step.
            part: The table that it is about.
            work: Loads what it needs.

        Returns:
            The result to save in the step's folder; None where it has been written there.

        Raises:
            LangNeuronsError: Whatever is wrong with it.
        """
        raise NotImplementedError

    def tokens(self, step: Step, part: PartType, config: StudyConfig, units: Units) -> float:
        """Tokens that a step reads, in forward passes.

        Args:
            step: The step.
            part: The table that it is about.
            config: The study.
            units: Site -> units that the model has there; none where the model is not on this machine.
        """
        return 0

    def disk(self, step: Step, part: PartType, config: StudyConfig, units: Units) -> int:
        """Bytes of a step's result, as far as they can be foretold; the arguments are those of ``tokens``."""
        return 0

    def load(self, folder: Path) -> Any:
        """A step's result, for the report."""
        return ln.load(folder)


class NeuronStage(Stage[PartType]):
    """A stage that does something with the neurons of each method in each language set.

    Its table and verb are called as its steps, and its section as its table, where nothing else is said.

    Attributes:
        judged: Whether effects are part of the result, so that it depends on the study's ``testing``.
        own: Name of the folder of its own work; without one, it measures conditions, which all steps share.
    """

    judged: ClassVar[bool] = False
    own: ClassVar[str] = ""

    def __init_subclass__(cls, **attributes: str | bool | int) -> None:
        """Take the attributes that the class statement gives."""
        names = {"table": attributes["name"], "verb": attributes["name"], **attributes}
        super().__init_subclass__(**{"section": names["table"], **names})

    def steps(self, plan: Plan, model: str) -> Iterator[Step]:
        """Its steps for a model."""
        config = plan.config
        for language_set, languages in config.sets.items():
            for method in config.methods:
                for entry, part in self.parts(config).items():
                    if not isinstance(part, Grid) or part.covers(method, language_set):
                        place = (model, language_set, method)
                        for patch, settings, further in self.work_on(plan, part, model, languages):
                            identified, recorded = plan.of("identify", *place), plan.of("record", model)
                            inputs = (identified, recorded, *(plan.of(*names) for names in further))
                            settings = {**settings, "languages": languages, "seed": config.seed}
                            settings |= {"testing": keyed(config.testing)} if self.judged else {}
                            yield Step(self, settings, inputs, *place, entry, patch)

    def settings(self, part: PartType, step: Step, work: "Work") -> dict[str, Any]:
        """The settings objects that its function takes: those of its table, the study's testing, and where it runs."""
        groups = {name: value for name, value in part if isinstance(value, Settings)}
        groups |= {"testing": work.config.testing} if self.judged else {}
        return {**groups, "run": work.own(step, self.own) if self.own else work.measuring}

    def work_on(self, plan: Plan, part: PartType, model: str, languages: Sequence[str]) -> Iterator[Piece]:
        """What is done with one neuron set.

        Args:
            plan: The steps so far.
            part: The stage's table.
            model: Name of the model.
            languages: Languages of the set.

        Yields:
            Name of the patch or "", the settings, and places of further steps whose results it reads.
        """
        raise NotImplementedError


def keyed(settings: BaseModel, *without: str) -> dict[str, Any]:
    """Settings as they enter a key: what a result depends on.

    Args:
        settings: A settings object or a table.
        without: Names of fields that no result depends on here.
    """
    nested = {name: keyed(value) for name, value in settings if isinstance(value, BaseModel) and name not in without}
    left_out = {*nested, *without, *WITHOUT_EFFECT, *python_only(type(settings))}
    return settings.model_dump(mode="json", exclude=left_out) | nested


def misnamed(what: str, where: str, names: Iterable[str] | None, possible: Iterable[str]) -> Iterator[str]:
    """Say of every name that does not exist what is possible."""
    choices = list(dict.fromkeys(possible))
    yield from (unknown(f"{what} in {where}", name, choices) for name in names or () if name not in choices)


def misnamed_languages(where: str, codes: Iterable[str] | None, possible: Iterable[str]) -> Iterator[str]:
    """Say of every language that does not exist, however it is spelled, what is possible."""
    languages = list(dict.fromkeys(possible))
    for code in codes or ():
        try:
            label_of(code, languages, f"language in {where}")
        except LanguageError as error:
            yield str(error)


def among(wanted: Sequence[str] | None, languages: Sequence[str]) -> list[str]:
    """Those of the wanted languages that are in a language set, all of it where none are named."""
    return [label for code in (languages if wanted is None else wanted) if (label := spelled(code, languages))]
