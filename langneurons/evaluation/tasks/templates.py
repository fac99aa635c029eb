"""Templates that ask for a label in words: a text with placeholders and a word for each label, several a language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from string import Formatter
from typing import Any

from langneurons import storage
from langneurons.errors import TaskError, unknown

LABELS = ("entailment", "neutral", "contradiction")
NEEDED, POSSIBLE = ("premise", "hypothesis", "label"), ("premise", "hypothesis", "label", "options")
ORDERS = tuple(permutations(LABELS))


@dataclass(frozen=True)
class Template:
    """A text that asks how a hypothesis relates to a premise, and the words that answer.

    Args:
        text: With ``{premise}``, ``{hypothesis}``, ``{label}`` and perhaps ``{options}``, the words to choose from.
        words: Label -> its word.

    Raises:
        TaskError: If a placeholder is missing or unknown, or the words are not one for each label, all different.

    Example:
        >>> from langneurons.evaluation.tasks.templates import Template
        >>> template = Template(
        ...     "{premise} So {hypothesis}? {label}", {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}
        ... )
        >>> template.filled("It rains.", "it is wet")
        ('It rains. So it is wet? Yes', 'It rains. So it is wet? Maybe', 'It rains. So it is wet? No')
    """

    text: str
    words: Mapping[str, str]

    def __post_init__(self) -> None:
        fields = _placeholders(self.text)
        for field in fields:
            if field not in POSSIBLE:
                raise TaskError(f"In the template {self.text!r}: {unknown('placeholder', field, POSSIBLE)}")
        for field in NEEDED:
            if field not in fields:
                raise TaskError(f"The template {self.text!r} lacks the placeholder {{{field}}}.")
        words = [self.words.get(label) for label in LABELS]
        if (
            set(self.words) != set(LABELS)
            or not all(word and word.strip() for word in words)
            or len(set(words)) != len(LABELS)
        ):
            raise TaskError(
                f"The template {self.text!r} needs a word for each of {', '.join(LABELS)}, all different, not "
                f"{dict(self.words)}."
            )

    @property
    def shows_options(self) -> bool:
        """Whether the order of the options matters."""
        return "options" in _placeholders(self.text)

    def filled(self, premise: str, hypothesis: str, order: Sequence[str] = LABELS) -> tuple[str, ...]:
        """Fill in everything.

        Args:
            premise: Text.
            hypothesis: Text.
            order: The labels in the order in which the options are shown.

        Returns:
            One text a label, in the order of ``LABELS``.
        """
        options = " / ".join(self.words[label] for label in order)
        given = {"premise": premise, "hypothesis": hypothesis, "options": options}
        return tuple(self.text.format(label=self.words[label], **given) for label in LABELS)


Templates = Mapping[str, Sequence[Template]]


def read_templates(path: str | Path | None = None) -> dict[str, tuple[Template, ...]]:
    """Read templates from a TOML file: per language some tables of ``text`` and a word for each label.

    Args:
        path: The file; None reads the built-in ones, three for each language of XNLI.

    Raises:
        TaskError: If there is no such file, it is not such TOML, or a template is malformed.

    Example:
        >>> from langneurons.evaluation.tasks.templates import read_templates
        >>> read_templates()["hi"][0].words["contradiction"]
        'नहीं'
    """
    file = Path(__file__).with_name("xnli_templates.toml") if path is None else Path(path).expanduser()
    tables = storage.read_toml(file, "templates from", TaskError)
    return {language: tuple(_templates(language, found, file)) for language, found in tables.items()}


def order_of(seed: int, item: int) -> tuple[str, ...]:
    """The order in which an item's options are shown: as good as random, the same in every language and condition."""
    return ORDERS[int(storage.fingerprint(str(seed), str(item)), 16) % len(ORDERS)]


def _templates(language: str, found: Any, file: Path) -> list[Template]:
    shaped = isinstance(found, list) and all(isinstance(table, dict) for table in found)
    if not shaped or not all(isinstance(value, str) for table in found for value in table.values()):
        raise TaskError(f"{file} has no [[{language}]] tables of a text and a word for each label.")
    for table in found:
        if "text" not in table:
            raise TaskError(f"A template of {language!r} in {file} lacks its text.")
    return [Template(table["text"], {key: word for key, word in table.items() if key != "text"}) for table in found]


def _placeholders(text: str) -> set[str]:
    try:
        parts = [part for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise TaskError(f"The template {text!r} is malformed: {error}.") from error
    return {f"{field}{'!' if how else ''}{how or ''}{':' if form else ''}{form}" for _, field, form, how in parts}
