"""How likely a model finds what follows a text: answers to choose from, and any other last tokens of texts."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from math import ceil
from typing import TypeVar, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from langneurons.errors import TaskError
from langneurons.models import ModelView
from langneurons.models.finite import check_finite
from langneurons.models.running import Branching, Predictions, close_to
from langneurons.tasks.batching import Tokens, batches, right_padded, scoring

Alternatives = tuple[Tokens, ...]
Continuation = tuple[Tokens, int]  # the tokens of a text, and how many of them are given
Part = TypeVar("Part")
LEAST_SHARED = 8  # tokens: a beginning that is worth a forward of its own
MORE = 2  # times as many parts of texts as whole texts, at most: each has the keys and values of a whole text


def table_of_texts(items: pd.DataFrame, texts: Sequence[Continuation]) -> pd.DataFrame:
    """A text of each item: item, cluster, tokens, and given, how many of them precede what is measured."""
    columns = {"tokens": [tokens for tokens, _ in texts], "given": [start for _, start in texts]}
    return items[["item", "cluster"]].assign(**columns)


def alternative_scores(
    model: torch.nn.Module, items: Sequence[Alternatives], batch_size: int = 8
) -> Float[np.ndarray, "item alternative"]:
    """Measure log p of each alternative after the tokens that all alternatives of its item share.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it at this moment counts.
        items: The token ids of each item's alternatives, equally many in every item.
        batch_size: Sequences per forward pass.

    Returns:
        Natural logarithms, in double precision.

    Raises:
        TaskError: If alternatives share all tokens of one, or not even the first.
        ModelError: If a likelihood is not finite.
    """
    texts = [(tokens, shared_tokens(alternatives)) for alternatives in items for tokens in alternatives]
    scores, _ = continuation_scores(model, texts, batch_size)
    return scores.reshape(len(items), len(items[0]) if items else 0)


def continuation_scores(
    model: torch.nn.Module, texts: Sequence[Continuation], batch_size: int = 8
) -> tuple[Float[np.ndarray, " text"], Bool[np.ndarray, " text"]]:
    """Measure log p of the last tokens of texts, given those before.

    What is equal, or the beginning of something else, is run once: texts that differ in their last token only take one
    forward. What several texts begin with is run once as well, where the model has a key-value cache and this gives the
    same on the first of them.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it at this moment counts.
        texts: The token ids of each text, and how many of them come before what is measured, at least one.
        batch_size: Sequences per forward pass; of beginnings and what follows them up to twice as many, where they have
            no more tokens.

    Returns:
        Natural logarithms, in double precision; and whether each measured token is the likeliest of all in its place.

    Raises:
        ModelError: If a likelihood is not finite.
    """
    with scoring(model) as model_view:
        return _Scoring(model_view, texts, batch_size).run()


class _Scoring:
    """The texts of one call, what has to be run for them, and their scores."""

    def __init__(self, model_view: ModelView, texts: Sequence[Continuation], batch_size: int) -> None:
        self._model_view, self._texts, self._batch_size = model_view, texts, batch_size
        reads: dict[Tokens, list[int]] = {}
        for index, (tokens, _) in enumerate(texts):
            reads.setdefault(tokens[:-1], []).append(index)
        longer = _longest_extensions(reads)
        runs: dict[Tokens, list[int]] = {}
        for tokens, indices in reads.items():
            runs.setdefault(longer[tokens], []).extend(indices)
        self._sequences, self._texts_of = list(runs), list(runs.values())
        self._lengths = [len(sequence) for sequence in self._sequences]
        self._scores, self._likeliest = np.zeros(len(texts)), np.ones(len(texts), bool)

    def run(self) -> tuple[Float[np.ndarray, " text"], Bool[np.ndarray, " text"]]:
        """Run everything, and give the scores."""
        # The last token that is given is run with what follows it, since it predicts the first token that is measured.
        longest = [min(self._texts[index][1] for index in indices) - 1 for indices in self._texts_of]
        families = _families(self._sequences, longest)
        alone = [members[0] for _, members in families if len(members) == 1]
        related = [family for family in families if len(family[1]) > 1]
        related.sort(key=lambda family: (family[0], max(self._lengths[member] for member in family[1])), reverse=True)
        if related and not self._is_right(*related[0]):
            alone, related = list(range(len(self._sequences))), []
        for part in self._divided(related, [shared for shared, _ in related]):
            self._run_families(part)
        for rows, tokens in batches(
            [self._sequences[row] for row in alone], self._batch_size, self._model_view.context_length
        ):
            members = [alone[row] for row in rows]
            answers = self._answer_tokens(members, 0)
            counted = _counted(answers, tokens)
            self._add(self._model_view.predictions(tokens, counted), answers, counted)
            self._check(members, tokens)
        return self._scores, self._likeliest

    def _run_families(self, families: Sequence[tuple[int, list[int]]]) -> None:
        """Run the beginnings of families together, as long as the shortest, and then what follows in each."""
        start = min(shared for shared, _ in families)
        beginnings = right_padded([self._sequences[members[0]][:start] for _, members in families])
        predictions_after = cast(Branching, self._model_view.branching(beginnings))  # tried before
        members = [(row, member) for row, (_, members) in enumerate(families) for member in members]
        members.sort(key=lambda pair: self._lengths[pair[1]], reverse=True)
        for part in self._divided(members, [self._lengths[member] - start for _, member in members]):
            rows, sequences = [row for row, _ in part], [member for _, member in part]
            tokens = right_padded([self._sequences[member][start:] for member in sequences])
            answers = self._answer_tokens(sequences, start)
            counted = _counted(answers, tokens)
            self._add(predictions_after(tokens, rows, counted), answers, counted)
            self._check(sequences, right_padded([self._sequences[member] for member in sequences]))

    def _divided(self, parts: Sequence[Part], lengths: Sequence[int]) -> Iterator[Sequence[Part]]:
        """Divide parts of texts, longest first, into batches with no more tokens than a batch of whole texts has.

        A forward costs time whatever it reads, so that short parts are run up to twice as many at once as whole texts.
        """
        tokens, first = self._batch_size * max(self._lengths), 0
        while first < len(parts):
            most = min(max(tokens // lengths[first], self._batch_size), MORE * self._batch_size)
            remaining = len(parts) - first
            size = ceil(remaining / ceil(remaining / most))  # equal batches rather than a small last one
            yield parts[first : first + size]
            first += size

    def _is_right(self, shared: int, members: Sequence[int]) -> bool:
        """Whether a sequence that is run in two parts gives the logits of the whole."""
        sequence = torch.tensor([self._sequences[members[0]]])
        predictions_after = self._model_view.branching(sequence[:, :shared])
        if predictions_after is None:
            return False
        rest = sequence[:, shared:]
        in_whole, in_rest = (self._answer_tokens(members[:1], start) for start in (0, shared))
        whole = self._model_view.predictions(sequence, _counted(in_whole, sequence))
        return close_to(predictions_after(rest, [0], _counted(in_rest, rest)), whole)

    def _answer_tokens(self, members: Sequence[int], start: int) -> Int[torch.Tensor, "4 token"]:
        """Of every measured token of rows without their first ``start`` tokens: its row, place in it, id and text."""
        rows = [
            (row, place - start, self._texts[index][0][place], index)
            for row, member in enumerate(members)
            for index in self._texts_of[member]
            for place in range(self._texts[index][1], len(self._texts[index][0]))
        ]
        return torch.tensor(rows).T

    def _add(
        self,
        predictions: Predictions,
        answers: Int[torch.Tensor, "4 token"],
        counted: Bool[torch.Tensor, "row predicted"],
    ) -> None:
        """Add the log-probabilities of what is measured to the scores of its texts."""
        row, place, token, text = answers
        ordinal = counted.flatten().cumsum(0).reshape(counted.shape)[row, place] - 1
        first = 0
        for logits in predictions.logits():
            here = (ordinal >= first) & (ordinal < first + len(logits))
            at, targets, texts = ordinal[here] - first, token[here], text[here].numpy()
            log_p = torch.log_softmax(logits, 1)[at.to(logits.device), targets.to(logits.device)]
            np.add.at(self._scores, texts, log_p.double().cpu().numpy())
            np.logical_and.at(self._likeliest, texts, (logits.argmax(1).cpu()[at] == targets).numpy())
            first += len(logits)

    def _check(self, members: Sequence[int], tokens: Int[torch.Tensor, "row position"]) -> None:
        indices = [index for member in members for index in self._texts_of[member]]
        check_finite(self._model_view, torch.tensor(self._scores[indices]), tokens)


def _counted(
    answers: Int[torch.Tensor, "4 token"], tokens: Int[torch.Tensor, "row position"]
) -> Bool[torch.Tensor, "row predicted"]:
    """Where the measured tokens of a batch stand; the last may follow the tokens that are run."""
    counted = torch.zeros(len(tokens), tokens.shape[1] + 1, dtype=torch.bool)
    counted[answers[0], answers[1]] = True
    return counted


def shared_tokens(alternatives: Alternatives) -> int:
    """Count the tokens that all alternatives begin with.

    Raises:
        TaskError: If they share all tokens of one, or not even the first.
    """
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
    extensions: dict[Tokens, Tokens] = {}
    longest: Tokens = ()
    # In this order whatever begins with a sequence comes just before it.
    for tokens in sorted(sequences, reverse=True):
        longest = longest if longest[: len(tokens)] == tokens else tokens
        extensions[tokens] = longest
    return extensions


def _families(sequences: Sequence[Tokens], longest: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Divide sequences into families that begin alike.

    Args:
        sequences: Token sequences.
        longest: How many of the first tokens of each may be run apart from the rest.

    Returns:
        Of each family how many tokens its members share, and their ordinals. A sequence joins the family before it, in
        the order of their tokens, where that saves more tokens than the family saves without it.
    """
    families: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        if families:
            shared, members = families[-1]
            pairs = zip(sequences[members[-1]], sequences[index], strict=False)
            common = min(shared, longest[index], sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
            if common >= LEAST_SHARED and common * len(members) > shared * (len(members) - 1):
                families[-1] = (common, [*members, index])
                continue
        families.append((longest[index], [index]))
    return families
