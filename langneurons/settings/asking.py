"""What tasks can be asked by, declared once for Python, a study's file and the command line."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from langneurons.errors import LangNeuronsError, TaskError
from langneurons.settings.checking import Count, Settings


class Asking(Settings):
    """Which items of a task are asked, and what its kind can be asked by; each kind has some of these options.

    Example:
        >>> ln.settings.Asking(metric="squad").max_new_tokens
        32
    """

    error: ClassVar[type[LangNeuronsError]] = TaskError

    items: Count = Field(200, description="Premises, questions, documents or prompts per language.")
    split: str | None = Field(
        None,
        pattern=r"^[a-z]+(\[(\d{1,2}%)?:(\d{1,2}%)?\])?$",
        description="Part of the source, such as test or validation[80%:]; by default the kind's usual one.",
        json_schema_extra={"possible": "a split or a part of one, such as test or validation[80%:]"},
    )
    max_new_tokens: Count = Field(32, description="Maximum number of tokens of an answer or a continuation.")
    min_new_tokens: int = Field(0, ge=0, le=10**12, description="generation: tokens before which no text ends.")
    prompt_tokens: Count = Field(16, description="generation: tokens of a document that the model goes on from.")
    beginnings: str | None = Field(
        None, description="generation: language of all prompts; by default each language's own."
    )
    calibration: Literal["content-free", "batch"] | None = Field(
        "content-free", description="xnli: calibration of the label likelihoods; none does without."
    )
    templates: Path | None = Field(None, description="xnli: a TOML file of templates; by default the built-in ones.")
    prompts: Path | None = Field(None, description="xquad: a TOML file of prompts; by default the built-in ones.")
    metric: Literal["mlqa", "squad"] = Field(
        "mlqa", description="xquad: rules by which answers are normalised, those of their language or SQuAD 1.1's."
    )
    question_language: str | None = Field(
        None, description="xquad: language of the questions in MLQA's files; by default that of the paragraphs."
    )
    parallel: bool | None = Field(
        None, description="xquad: whether every language must have the same questions; by default unless from MLQA."
    )
    words: Path | None = Field(
        None, description="confusion: a file of English words, one per line; by default the benchmark's, beside it."
    )
    ask_in: tuple[str, ...] | None = Field(
        None, description="steering: languages of the questions; by default all but the answer's."
    )
    instruction: Literal["english", "source", "target"] | None = Field(
        None,
        description="steering: language of a sentence that asks for the answer's language; by default no sentence.",
    )
    judge: str | None = Field(
        None, description="steering: folder or hub id of a model that rates how relevant answers are."
    )
    include_path: Path | None = Field(None, description="harness: a folder of further tasks, looked in first.")
    fewshot: int | None = Field(
        None, ge=0, le=10**4, description="harness: examples in a prompt; by default shots, or what each task says."
    )
    limit: Count | None = Field(None, description="harness: documents to read of each task, the first; by default all.")

    @property
    def changes(self) -> dict[str, Any]:
        """The options of single kinds of tasks that differ from their defaults.

        Example:
            >>> ln.settings.Asking(items=5, metric="squad").changes
            {'metric': 'squad'}
        """
        options = {name: field.default for name, field in Asking.model_fields.items() if name != "items"}
        return {name: getattr(self, name) for name, default in options.items() if getattr(self, name) != default}
