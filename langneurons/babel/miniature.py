"""The miniature tasks: inference and question answering in seven languages, true by construction.

Everything is said with the words of ``lexicon.tsv`` through ``grammar.py``. Which two concepts may stand together in a
clause depends on the split, so a test sentence shares no combination of content words with training.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

from langneurons.babel import LANGUAGES
from langneurons.babel.grammar import (
    Clause,
    concepts,
    counted,
    forms,
    how_many,
    sentence,
    subject,
    where,
    who_does,
    who_is,
)

SPLITS = {"train": 1000, "validation": 100, "test": 400}  # premises, each with three hypotheses
PARAGRAPHS = {"train": 800, "validation": 40, "test": 120}  # each with four questions
LABELS = ("entailment", "neutral", "contradiction")
KINDS = ("place", "activity", "thing")


@dataclass(frozen=True)
class Inference:
    """A premise and, for each label, a hypothesis."""

    premise: tuple[Clause, ...]
    time: str | None
    hypotheses: dict[str, Clause]


@cache
def mini_xnli(split: str) -> dict[str, list[dict[str, str]]]:
    """Make the inference items of a split, the same in every language.

    Whether a hypothesis follows depends on premise and hypothesis together: every label is given to hypotheses, and to
    premises, of the same kinds equally often.

    Args:
        split: "train", "validation" or "test".

    Returns:
        Language -> rows of premise, hypothesis and label; three in a row share a premise.

    Example:
        >>> from langneurons.babel.miniature import mini_xnli
        >>> rows = mini_xnli("test")
        >>> len(rows["hi"]), sorted(rows["hi"][0])
        (1200, ['hypothesis', 'label', 'premise'])
    """
    rows: dict[str, list[dict[str, str]]] = {language: [] for language in LANGUAGES}
    for inference, language in product(_inferences(split), LANGUAGES):
        premise = sentence(list(inference.premise), language, inference.time)
        for label, hypothesis in inference.hypotheses.items():
            rows[language].append({"premise": premise, "hypothesis": sentence([hypothesis], language), "label": label})
    return rows


@cache
def _inferences(split: str) -> tuple[Inference, ...]:
    draw = random.Random(f"mini_xnli {split}")
    inferences: dict[tuple[Clause, ...], Inference] = {}
    while len(inferences) < SPLITS[split]:
        inference = _inference(draw, split, ("place", "thing")[len(inferences) % 2])
        if inference is not None and inference.premise not in inferences:
            hypotheses = {label: inference.hypotheses[label] for label in draw.sample(LABELS, 3)}
            inferences[inference.premise] = replace(inference, hypotheses=hypotheses)
    return tuple(inferences.values())


def _inference(draw: random.Random, split: str, kind: str) -> Inference | None:
    """Draw a premise of a kind and its hypotheses; None where concepts drawn may not stand together in the split."""
    first, second, third = _drawn_from(draw, concepts("person"), 3)
    name, other = _drawn_from(draw, concepts(kind), 2)
    # All of them, though not all are said: else neutral hypotheses would be about other persons than the rest.
    beside_person = _beside_persons(kind, split)
    if not all(beside_person[person].issuperset((name, other)) for person in (first, second, third)):
        return None
    premise, hypotheses = (_of_place if kind == "place" else _of_things)(draw, first, second, name, other)
    if not in_split(premise, split):
        return None
    premises = [premise]
    if draw.random() < 0.1:  # what is said of a third person must be kept apart
        beside = clause_about(third, kind, other)
        premises.append(replace(beside, number=draw.choice(concepts("number"))) if kind == "thing" else beside)
    return Inference(tuple(draw.sample(premises, len(premises))), draw.choice((None, *concepts("time"))), hypotheses)


def _drawn_from(draw: random.Random, names: Sequence[str], count: int) -> list[str]:
    """Draw some of up to 21 names, the same as ``draw.sample`` of Python 3.11, but faster: a split needs many draws."""
    pool, sample = list(names), []
    for left in range(len(pool), len(pool) - count, -1):
        place = left
        while place >= left:
            place = draw.getrandbits(left.bit_length())
        sample.append(pool[place])
        pool[place] = pool[left - 1]
    return sample


def _of_place(draw: random.Random, first: str, second: str, name: str, other: str) -> tuple[Clause, dict[str, Clause]]:
    """Who is at one place is not at another."""
    here, there = Clause(first, place=name), Clause(first, place=other)
    unknown = Clause(second, place=draw.choice((name, other)))
    premise = replace(here, activity=draw.choice(concepts("activity"))) if draw.random() < 0.5 else here
    if draw.random() < 0.9:
        return premise, {"entailment": here, "neutral": unknown, "contradiction": there}
    here, there, unknown = (replace(clause, denied=True) for clause in (here, there, unknown))
    return premise, {"entailment": there, "neutral": unknown, "contradiction": here}


def _of_things(draw: random.Random, first: str, second: str, name: str, other: str) -> tuple[Clause, dict[str, Clause]]:
    """Who has so many of a thing has no other number of it, and may have other things."""
    number, wrong = draw.sample(concepts("number"), 2)
    has = Clause(first, thing=name, number=number)
    unknown = draw.choice((Clause(first, thing=other), Clause(second, thing=name)))
    if draw.random() < 0.8:
        counted_wrong = replace(has, number=wrong)
        neutral = replace(unknown, number=draw.choice((number, wrong)))
        return has, {"entailment": has, "neutral": neutral, "contradiction": counted_wrong}
    has_none = Clause(first, thing=name, denied=True)
    neutral = draw.choice((replace(unknown, number=number), replace(unknown, denied=True)))
    true, false = draw.choice(((has, has_none), (has_none, has)))
    return true, {"entailment": true, "neutral": neutral, "contradiction": false}


def clause_about(person: str, kind: str, name: str, denied: bool = False) -> Clause:
    """Say one thing of a person: a place, an activity or a thing."""
    return replace(Clause(person, denied=denied), **{kind: name})


def in_split(meant: Clause, split: str) -> bool:
    """Whether each two content words of a clause may stand together in a split.

    Concepts of each kind are dealt into four groups, and which two groups meet decides: so that in every split every
    concept has equally many partners, and none tells a label by how often it is found.
    """
    return all(
        _split_of(kind, name, other_kind, other) == split
        for kind, other_kind in _SPLIT_OF_GROUPS
        if (name := getattr(meant, kind)) is not None and (other := getattr(meant, other_kind)) is not None
    )


@cache
def _beside_persons(kind: str, split: str) -> dict[str, frozenset[str]]:
    """Person -> the concepts of a kind that may stand with it in a split."""
    return {
        person: frozenset(name for name in concepts(kind) if _split_of("person", person, kind, name) == split)
        for person in concepts("person")
    }


@cache
def _split_of(kind: str, name: str, other_kind: str, other: str) -> str:
    groups = concepts(kind).index(name) % 4, concepts(other_kind).index(other) % 4
    return _SPLIT_OF_GROUPS[kind, other_kind][groups[0] ^ groups[1]]


# By the exclusive or of two groups; such that person, activity and place of one split can all meet.
_SPLIT_OF_GROUPS = {
    ("person", "place"): ("test", "validation", "train", "train"),
    ("person", "thing"): ("test", "validation", "train", "train"),
    ("person", "activity"): ("test", "train", "validation", "train"),
    ("activity", "place"): ("test", "train", "train", "validation"),
}


@cache
def mini_xquad(split: str) -> dict[str, list[dict[str, Any]]]:
    """Make the questions of a split, the same in every language.

    Args:
        split: "train", "validation" or "test".

    Returns:
        Language -> rows of id, context, question and answers (text and answer_start); four in a row share a context.

    Example:
        >>> from langneurons.babel.miniature import mini_xquad
        >>> row = mini_xquad("test")["en"][0]
        >>> start, answer = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        >>> row["context"][start : start + len(answer)] == answer
        True
    """
    rows: dict[str, list[dict[str, Any]]] = {language: [] for language in LANGUAGES}
    for (number, (paragraph, order)), language in product(enumerate(_paragraphs(split)), LANGUAGES):
        sentences = [sentence([paragraph[index]], language) for index in order]
        space = "" if language == "zh" else " "
        context = space.join(sentences)
        for index, (question, answer) in enumerate(_questions(paragraph, language)):
            before = "".join(text + space for text in sentences[: order.index(index)])
            start = context.lower().index(answer.lower(), len(before))
            answers = {"text": [context[start : start + len(answer)]], "answer_start": [start]}
            row = {"id": f"{split}-{number}-{index}", "context": context, "question": question, "answers": answers}
            rows[language].append(row)
    return rows


@cache
def _paragraphs(split: str) -> tuple[tuple[list[Clause], list[int]], ...]:
    """Paragraphs of four clauses about four persons, each with what one question asks for, and their order."""
    draw = random.Random(f"mini_xquad {split}")
    paragraphs = []
    for _ in range(PARAGRAPHS[split]):
        persons = draw.sample(concepts("person"), 4)
        moving = _drawn(draw, split, persons[0], "activity", "place")
        staying = _drawn(draw, split, persons[1], "place", but=moving.place)
        doing = _drawn(draw, split, persons[2], "activity", but=moving.activity)
        having = replace(_drawn(draw, split, persons[3], "thing"), number=draw.choice(concepts("number")))
        paragraphs.append(([moving, staying, doing, having], draw.sample(range(4), 4)))
    return tuple(paragraphs)


def _drawn(draw: random.Random, split: str, person: str, *kinds: str, but: str | None = None) -> Clause:
    """Say something of a person that the split allows, and that another was not said to do, or where."""
    while True:
        names = {kind: draw.choice(concepts(kind)) for kind in kinds}
        clause = replace(Clause(person), **names)
        if but not in names.values() and in_split(clause, split):
            return clause


def _questions(paragraph: list[Clause], language: str) -> list[tuple[str, str]]:
    """A question for each clause of a paragraph, and its answer as the clause says it."""
    moving, staying, doing, having = paragraph
    assert moving.place is not None
    assert staying.place is not None
    assert doing.activity is not None
    assert having.thing is not None
    assert having.number is not None
    return [
        (where(moving.person, language), forms("place", moving.place, language)[0]),
        (who_is(staying.place, language), subject(staying.person, language)),
        (who_does(doing.activity, language), subject(doing.person, language)),
        (how_many(having.person, having.thing, language), counted(having.number, having.thing, language)),
    ]
