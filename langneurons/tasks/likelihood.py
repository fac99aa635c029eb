"""Templates that ask for a label in words: a text with placeholders and a word for each label, several a language."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import log_softmax

from langneurons import storage
from langneurons.errors import TaskError, unknown
from langneurons.models import ModelView, view
from langneurons.tasks.batching import Tokens, batches, front, scoring, token_ids
from langneurons.tasks.heads import Pair

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
        >>> from langneurons.tasks.likelihood import read_templates
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


CALIBRATIONS = ("content-free", "batch", None)
CONTENT_FREE = ("N/A", "[MASK]", "")
Order = Sequence[str]
Alternatives = tuple[Tokens, ...]


def label_scores(
    model: torch.nn.Module,
    pairs: Sequence[Pair],
    orders: Sequence[Order],
    templates: Sequence[Template],
    calibration: str | None = "content-free",
    batch_size: int = 8,
) -> tuple[Float[np.ndarray, "item label"], Bool[np.ndarray, " item"]]:
    """Score the labels of pairs of texts by the likelihood of the words for them.

    A label's score is log p of everything after what the three filled-in texts share, normalised over the labels. A
    model likes some words whatever was asked: its prior for them is subtracted, template by template. The prior is the
    mean score given content-free texts with the options in the same order (contextual calibration, Zhao et al. 2021),
    or over all pairs measured (batch calibration, Zhou et al. 2023; rows then depend on one another). Departure: both
    average probabilities; averaging their logarithms takes a constant liking for a word away exactly. Scores are
    averaged over the templates.

    Args:
        model: From ``load_model``; whatever is attached to it at this moment counts, for the prior too.
        pairs: (premise, hypothesis) each.
        orders: For each, the labels in the order in which its options are shown.
        templates: At least one.
        calibration: "content-free", "batch" or None.
        batch_size: Texts a forward.

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
    found, cuts = [], []
    for template in templates:
        asked, cut = _fitted(view(model), template, pairs, orders)
        found.append(_calibrated(model, template, asked, orders, calibration, batch_size))
        cuts.append(cut)
    return log_softmax(np.mean(found, 0), axis=1), np.any(cuts, 0)


def alternative_scores(
    model: torch.nn.Module, items: Sequence[Alternatives], batch_size: int = 8
) -> Float[np.ndarray, "item alternative"]:
    """Measure log p of each alternative after the tokens that all alternatives of its item share.

    What is equal, or the beginning of something else, is run once: where alternatives differ in their last token only,
    an item takes one forward.

    Args:
        model: From ``load_model``; whatever is attached to it at this moment counts.
        items: The token ids of each item's alternatives, equally many in every item.
        batch_size: Sequences a forward.

    Returns:
        Natural logarithms, in double precision.

    Raises:
        TaskError: If alternatives share all tokens of one, or not even the first.
    """
    reads: dict[Tokens, list[tuple[int, int, int]]] = {}
    for index, alternatives in enumerate(items):
        shared = _shared(alternatives)
        for which, tokens in enumerate(alternatives):
            reads.setdefault(tokens[:-1], []).append((index, which, shared))
    longer = _longest_extensions(reads)
    runs: dict[Tokens, list[tuple[int, int, int]]] = {}
    for tokens, asked in reads.items():
        runs.setdefault(longer[tokens], []).extend(asked)
    once, scores = list(runs), np.zeros((len(items), len(items[0]) if items else 0))
    with scoring(model) as seen:
        for rows, tokens in batches(once, batch_size, seen.context_length):
            asked = [runs[once[row]] for row in rows]
            places = sorted({place for one in asked for place in _places(items, one)})
            row_of = {place: index for index, place in enumerate(places)}
            for one, logits in zip(asked, seen.logits_at(tokens, [place - 1 for place in places]), strict=True):
                _read(logits, row_of, items, one, scores)
    return scores


def _places(items: Sequence[Alternatives], asked: Sequence[tuple[int, int, int]]) -> set[int]:
    """The places of the tokens whose log-probabilities are wanted."""
    return {place for index, which, first in asked for place in range(first, len(items[index][which]))}


def _read(
    logits: Float[torch.Tensor, "chosen token"],
    row_of: Mapping[int, int],
    items: Sequence[Alternatives],
    asked: Sequence[tuple[int, int, int]],
    scores: Float[np.ndarray, "item alternative"],
) -> None:
    """Sum the log-probabilities of the tokens that a sequence was run for."""
    wanted = sorted(_places(items, asked))
    log_p = torch.log_softmax(logits[[row_of[place] for place in wanted]].float(), dim=1)
    of_place = dict(zip(wanted, log_p, strict=True))
    for index, which, first in asked:
        tokens = items[index][which]
        found = [of_place[place][tokens[place]].double() for place in range(first, len(tokens))]
        scores[index, which] = float(torch.stack(found).sum())


def _shared(alternatives: Alternatives) -> int:
    """Count the tokens that all alternatives begin with."""
    shortest = min(len(tokens) for tokens in alternatives)
    columns = zip(*alternatives, strict=False)
    shared = next((place for place, column in enumerate(columns) if len(set(column)) > 1), shortest)
    if shared == shortest:
        raise TaskError("The tokenizer does not tell the label words apart, or one begins with another: change them.")
    if shared == 0:
        raise TaskError("A template cannot begin with its label where the tokenizer puts no token in front.")
    return shared


def _longest_extensions(sequences: Iterable[Tokens]) -> dict[Tokens, Tokens]:
    """Find for each sequence a longest one that begins with it: a causal model computes the same there."""
    found: dict[Tokens, Tokens] = {}
    longest: Tokens = ()
    # In this order whatever begins with a sequence comes just before it.
    for tokens in sorted(sequences, reverse=True):
        longest = longest if longest[: len(tokens)] == tokens else tokens
        found[tokens] = longest
    return found


def _fitted(
    seen: ModelView, template: Template, pairs: Sequence[Pair], orders: Sequence[Order]
) -> tuple[list[Alternatives], Bool[np.ndarray, " item"]]:
    """Fill in and tokenise a template, with less of the premise where it exceeds the context."""
    asked = _tokens(seen, [template.filled(*pair, order) for pair, order in zip(pairs, orders, strict=True)])
    cut = np.array([_positions(alternatives) > seen.context_length for alternatives in asked], bool)
    for item in np.flatnonzero(cut).tolist():
        asked[item] = _cut(seen, template, pairs[item], orders[item])
    return asked, cut


def _cut(seen: ModelView, template: Template, pair: Pair, order: Order) -> Alternatives:
    premise, hypothesis = pair

    def tokens(characters: int) -> Alternatives:
        return _tokens(seen, [template.filled(premise[:characters], hypothesis, order)])[0]

    lengths = range(len(premise) + 1)
    kept = bisect_right(lengths, seen.context_length, key=lambda length: _positions(tokens(length))) - 1
    if kept < 0:
        raise TaskError(
            f"The hypothesis {hypothesis[:40]!r} does not fit {seen.name!r} even without its premise: template and "
            f"hypothesis take {_positions(tokens(0))} positions of {seen.context_length}."
        )
    return tokens(kept)


def _positions(alternatives: Alternatives) -> int:
    return max(len(tokens) for tokens in alternatives) - 1


def _tokens(seen: ModelView, filled: Sequence[Sequence[str]]) -> list[Alternatives]:
    start, texts = front(seen), [text for texts in filled for text in texts]
    flat = [(*start, *ids) for ids in token_ids(seen, texts)]
    return [tuple(flat[index : index + len(LABELS)]) for index in range(0, len(flat), len(LABELS))]


def _calibrated(
    model: torch.nn.Module,
    template: Template,
    asked: list[Alternatives],
    orders: Sequence[Order],
    calibration: str | None,
    batch_size: int,
) -> Float[np.ndarray, "item label"]:
    """Score one template, less the prior of its words."""
    shown = [tuple(order) if template.shows_options else LABELS for order in orders]
    distinct = list(dict.fromkeys(shown)) if calibration == "content-free" else []
    empty = [template.filled(text, text, order) for order in distinct for text in CONTENT_FREE]
    scores = alternative_scores(model, asked + _tokens(view(model), empty), batch_size)
    scores, priors = np.split(log_softmax(scores, axis=1), [len(asked)])
    if calibration is None:
        return scores
    if calibration == "batch":
        return log_softmax(scores - scores.mean(0), axis=1)
    by_order = priors.reshape(len(distinct), len(CONTENT_FREE), len(LABELS)).mean(1)
    place = np.array([distinct.index(order) for order in shown])
    return log_softmax(scores - by_order[place], axis=1)
