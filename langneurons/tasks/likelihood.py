"""Templates that ask for a label in words, and the likelihood of every label's word."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from string import Formatter

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float
from scipy.special import log_softmax

from langneurons import storage
from langneurons.errors import TaskError, in_short, unknown
from langneurons.models import ModelView, view
from langneurons.settings import Prompting
from langneurons.tasks.continuations import Alternatives, Continuation, alternative_scores, shared_tokens
from langneurons.tasks.heads import Pair
from langneurons.tasks.prompting import Prompts

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
        >>> from langneurons.tasks.likelihood import Template
        >>> template = Template(
        ...     "{premise} So {hypothesis}? {label}", {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}
        ... )
        >>> template.filled("It rains.", "it is wet")
        ('It rains. So it is wet? Yes', 'It rains. So it is wet? Maybe', 'It rains. So it is wet? No')
    """

    text: str
    words: Mapping[str, str]

    def __post_init__(self) -> None:
        try:
            fields = placeholders(self.text)
        except ValueError as error:
            raise TaskError(f"The template {self.text!r:.100} is malformed: {in_short(error)}.") from error
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
        return "options" in placeholders(self.text)

    def filled(self, premise: str, hypothesis: str, order: Sequence[str] = LABELS) -> tuple[str, ...]:
        """Fill in everything.

        Args:
            premise: Text of the premise.
            hypothesis: Text of the hypothesis.
            order: The labels in the order in which the options are shown.

        Returns:
            One text per label, in the order of ``LABELS``.
        """
        question, answers = self.parts(premise, hypothesis, order)
        return tuple(question + answer for answer in answers)

    def parts(self, premise: str, hypothesis: str, order: Sequence[str] = LABELS) -> tuple[str, tuple[str, ...]]:
        """Fill in everything, in two parts.

        Args:
            premise: Text of the premise.
            hypothesis: Text of the hypothesis.
            order: The labels in the order in which the options are shown.

        Returns:
            What stands before the first label, and what follows from there on for each label of ``LABELS``.
        """
        pieces = [(literal, field) for literal, field, *_ in Formatter().parse(self.text)]
        place = [field for _, field in pieces].index("label")
        options = " / ".join(self.words[label] for label in order)
        texts = {"premise": premise, "hypothesis": hypothesis, "options": options, "": ""}

        def joined(part: Sequence[tuple[str, str | None]], word: str) -> str:
            return "".join(literal + {**texts, "label": word}[field or ""] for literal, field in part)

        words = [self.words[label] for label in LABELS]
        answers = tuple(word + joined(pieces[place + 1 :], word) for word in words)
        return joined(pieces[:place], "") + pieces[place][0], answers


Templates = Mapping[str, Sequence[Template]]


def read_templates(path: str | Path | None = None) -> dict[str, tuple[Template, ...]]:
    """Read templates from a TOML file: per language some tables of ``text`` and a word for each label.

    Args:
        path: The file; by default the built-in one, with three templates for each language of XNLI.

    Raises:
        TaskError: If there is no such file, it is not such TOML, or a template is malformed.

    Example:
        >>> from langneurons.tasks.likelihood import read_templates
        >>> read_templates()["hi"][0].words["contradiction"]
        'नहीं'
    """
    file = Path(__file__).with_name("xnli_templates.toml") if path is None else Path(path).expanduser()
    tables = storage.read_toml(file, "templates from", TaskError)
    return {language: tuple(_templates(language, content, file)) for language, content in tables.items()}


def order_of(seed: int, item: int | str) -> tuple[str, ...]:
    """The order in which an item's options are shown: as good as random, the same in every language and condition."""
    return ORDERS[int(storage.fingerprint(str(seed), str(item)), 16) % len(ORDERS)]


def _templates(language: str, tables: object, file: Path) -> Iterator[Template]:
    for table in tables if isinstance(tables, list) else [None]:
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise TaskError(f"{file} has no [[{language}]] tables of a text and a word for each label.")
        if "text" not in table:
            raise TaskError(f"A template of {language!r} in {file} lacks its text.")
        yield Template(table["text"], {key: word for key, word in table.items() if key != "text"})


def placeholders(text: str) -> list[str]:
    """The placeholders of a format string, with their conversions and formats.

    Raises:
        ValueError: If it is no format string.
    """
    parts = [part for part in Formatter().parse(text) if part[1] is not None]
    return [f"{field}{'!' if how else ''}{how or ''}{':' if form else ''}{form}" for _, field, form, how in parts]


CALIBRATIONS = ("content-free", "batch", None)
CONTENT_FREE = ("N/A", "[MASK]", "")
Order = Sequence[str]
Example = tuple[Pair, Order, str]  # its texts, the order in which its options are shown, and its label


def label_scores(
    model: torch.nn.Module,
    pairs: Sequence[Pair],
    orders: Sequence[Order],
    templates: Sequence[Template],
    calibration: str | None = "content-free",
    batch_size: int = 8,
    prompting: Prompting = Prompting(),
    examples: Sequence[Example] = (),
) -> tuple[Float[np.ndarray, "item label"], Bool[np.ndarray, " item"]]:
    """Score the labels of pairs of texts by the likelihood of the words for them.

    A label's score is log p of everything after what the three filled-in texts share, normalised over the labels. A
    model prefers some words whatever the pair: that prior is subtracted, template by template. The prior is the mean
    score given content-free texts with the options in the same order (contextual calibration, Zhao et al. 2021), or
    over all pairs measured (batch calibration, Zhou et al. 2023; rows then depend on one another). Departure: both
    average probabilities; averaging their logarithms removes a constant preference for a word exactly. Scores are
    averaged over the templates.

    Examples are filled in with the words of their labels and stand before every pair, content-free ones too. In a chat,
    what precedes the label is the user's message, and the label begins the model's answer.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it at this moment counts, for the prior too.
        pairs: (premise, hypothesis) each.
        orders: For each pair, the labels in the order in which its options are shown.
        templates: Templates to average over, at least one.
        calibration: "content-free", "batch" or None.
        batch_size: Texts per forward pass.
        prompting: Whether a template is filled in as plain text or as a chat.
        examples: Solved pairs to show in front.

    Returns:
        Log-probabilities of ``LABELS``, and which pairs lost the end of their premise to fit the model's context.

    Raises:
        ModelError: If the model has no tokenizer.
        TaskError: If a text does not fit without any premise, or two labels become the same tokens.

    Example:
        >>> import numpy as np
        >>> from langneurons.tasks.likelihood import label_scores
        >>> from langneurons.tasks.likelihood import LABELS, read_templates
        >>> scores, cut = label_scores(model, [("It rains.", "It is wet.")], [LABELS], read_templates()["en"])
        >>> scores.shape, float(abs(np.exp(scores).sum() - 1)) < 1e-9, bool(cut[0])
        ((1, 3), True, False)
    """
    model_view = view(model)
    scores, cuts = [], []
    for template in templates:
        prompts = Prompts(model_view, prompting, [_solved(template, *example) for example in examples])
        items, cut = _fitting_items(model_view, prompts, template, pairs, orders)
        scores.append(_calibrated(model, prompts, template, items, orders, calibration, batch_size))
        cuts.append(cut)
    return log_softmax(np.mean(scores, 0), axis=1), np.any(cuts, 0)


def gold_texts(
    model_view: ModelView,
    pairs: Sequence[Pair],
    orders: Sequence[Order],
    labels: Sequence[str],
    template: Template,
    prompting: Prompting = Prompting(),
    examples: Sequence[Example] = (),
) -> list[Continuation]:
    """The texts that answer a template rightly.

    Args:
        model_view: View of the model.
        pairs: (premise, hypothesis) each.
        orders: For each pair, the labels in the order in which its options are shown.
        labels: The right label of each pair.
        template: The template.
        prompting: Whether it is filled in as plain text or as a chat.
        examples: Solved pairs to show in front.

    Returns:
        For each pair the tokens of its text, and how many of them precede what tells the labels apart.
    """
    prompts = Prompts(model_view, prompting, [_solved(template, *example) for example in examples])
    items, _ = _fitting_items(model_view, prompts, template, pairs, orders)
    return [
        (alternatives[LABELS.index(label)], shared_tokens(alternatives))
        for alternatives, label in zip(items, labels, strict=True)
    ]


def _fitting_items(
    model_view: ModelView, prompts: Prompts, template: Template, pairs: Sequence[Pair], orders: Sequence[Order]
) -> tuple[list[Alternatives], Bool[np.ndarray, " item"]]:
    """Fill in a template for every pair, with as much of its premise as fits, and say which were cut."""
    items = _tokens(prompts, template, pairs, orders)
    cut = np.array([_positions(alternatives) > model_view.context_length for alternatives in items], bool)
    for item in np.flatnonzero(cut).tolist():
        items[item] = _cut(model_view, prompts, template, pairs[item], orders[item])
    return items, cut


def _cut(model_view: ModelView, prompts: Prompts, template: Template, pair: Pair, order: Order) -> Alternatives:
    """Fill in and tokenise a template with as much of the premise as fits the model's context."""
    premise, hypothesis = pair

    def tokens(characters: int) -> Alternatives:
        return _tokens(prompts, template, [(premise[:characters], hypothesis)], [order])[0]

    lengths, context_length = range(len(premise) + 1), model_view.context_length
    characters = bisect_right(lengths, context_length, key=lambda length: _positions(tokens(length))) - 1
    if characters < 0:
        raise TaskError(
            f"The hypothesis {hypothesis[:40]!r} does not fit {model_view.name!r} even without its premise: template "
            f"and hypothesis take {_positions(tokens(0))} positions of {context_length}."
        )
    return tokens(characters)


def _positions(alternatives: Alternatives) -> int:
    return max(len(tokens) for tokens in alternatives) - 1


def _solved(template: Template, pair: Pair, order: Order, label: str) -> tuple[str, str]:
    question, answers = template.parts(*pair, order)
    return question, answers[LABELS.index(label)]


def _tokens(prompts: Prompts, template: Template, pairs: Sequence[Pair], orders: Sequence[Order]) -> list[Alternatives]:
    texts = []
    for pair, order in zip(pairs, orders, strict=True):
        question, answers = template.parts(*pair, order)
        before = prompts.text(question)
        texts += [before + answer for answer in answers]
    flat = [tuple(ids) for ids in prompts.tokens(texts)]
    return [tuple(flat[index : index + len(LABELS)]) for index in range(0, len(flat), len(LABELS))]


def _calibrated(
    model: torch.nn.Module,
    prompts: Prompts,
    template: Template,
    items: list[Alternatives],
    orders: Sequence[Order],
    calibration: str | None,
    batch_size: int,
) -> Float[np.ndarray, "item label"]:
    """Score one template, less the prior of its words."""
    shown = [tuple(order) if template.shows_options else LABELS for order in orders]
    distinct = list(dict.fromkeys(shown)) if calibration == "content-free" else []
    empty = [((text, text), order) for order in distinct for text in CONTENT_FREE]
    priors = _tokens(prompts, template, [pair for pair, _ in empty], [order for _, order in empty])
    scores = alternative_scores(model, items + priors, batch_size)
    scores, priors = np.split(log_softmax(scores, axis=1), [len(items)])
    if calibration is None:
        return scores
    if calibration == "batch":
        return log_softmax(scores - scores.mean(0), axis=1)
    by_order = reduce(priors, "(order text) label -> order label", "mean", text=len(CONTENT_FREE))
    place = np.array([distinct.index(order) for order in shown])
    return log_softmax(scores - by_order[place], axis=1)
