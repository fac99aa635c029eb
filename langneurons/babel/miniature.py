"""The miniature tasks: inference and question answering in seven languages, true by construction.

Everything is said with the words of ``lexicon.tsv`` through ``grammar.py``. Which two concepts may stand together in a
clause depends on the split, so a test sentence shares no combination of content words with training. Unlabelled text of
the same kind, in training combinations only and with translations, is for ``scripts/train_babel.py``.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

from langneurons.babel.grammar import (
    LANGUAGES,
    Clause,
    code_switched,
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
    first, second, third = draw.sample(concepts("person"), 3)
    name, other = draw.sample(concepts(kind), 2)
    # All of them, though not all are said: else neutral hypotheses would be about other persons than the rest.
    crossed = product((first, second, third), (name, other))
    if any(_split_of("person", person, kind, concept) != split for person, concept in crossed):
        return None
    premise, hypotheses = (_of_place if kind == "place" else _of_things)(draw, first, second, name, other)
    if not in_split(premise, split):
        return None
    premises = [premise]
    if draw.random() < 0.1:  # what is said of a third person must be kept apart
        beside = _clause(third, kind, other)
        premises.append(replace(beside, number=draw.choice(concepts("number"))) if kind == "thing" else beside)
    return Inference(tuple(draw.sample(premises, len(premises))), draw.choice((None, *concepts("time"))), hypotheses)


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


def _clause(person: str, kind: str, name: str, denied: bool = False) -> Clause:
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


def _draw_clause(draw: random.Random, split: str) -> Clause:
    while True:
        kind = draw.choice(KINDS)
        meant = _clause(draw.choice(concepts("person")), kind, draw.choice(concepts(kind)), draw.random() < 0.25)
        if kind == "thing" and not meant.denied and draw.random() < 0.6:
            meant = replace(meant, number=draw.choice(concepts("number")))
        if kind == "activity" and not meant.denied and draw.random() < 0.5:
            meant = replace(meant, place=draw.choice(concepts("place")))
        if in_split(meant, split):
            return meant


def unlabelled(seed: int) -> Iterator[tuple[str, str, str]]:
    """Say things without end: short texts, each followed by translations, by what is true of it, or by talk about it.

    The talk is English, half of it with nouns of another language: somebody says something, and somebody else "Yes",
    "No" or "Perhaps". What a model learns of agreeing it has to carry over to other languages' sentences by itself.

    Args:
        seed: Another seed gives other texts.

    Yields:
        Language, text and answer (mostly ""), a line each; only combinations of the training split.
    """
    draw = random.Random(f"unlabelled {seed}")
    while True:
        kind = draw.random()
        discussed = kind < 0.5
        clauses = [_draw_clause(draw, "train") for _ in range(draw.choice((1, 1, 2) if discussed else (1, 2, 3, 4)))]
        clauses = list({clause.person: clause for clause in clauses}.values())  # nothing clashes about one person
        said = _said(draw, clauses)
        first = "en" if discussed and draw.random() < 0.5 else draw.choice(LANGUAGES)
        yield first, _text(said, first), ""
        if discussed:
            yield from (("en", claim, answer) for claim, answer in _claims(draw, clauses, first))
            continue
        for other in draw.sample(LANGUAGES, draw.choice((1, 1, 2))):
            language = first if draw.random() < 0.4 else other
            yield language, _text(said if kind < 0.75 else _restated(draw, clauses), language), ""


def _text(said: list[Callable[[str], str]], language: str) -> str:
    return ("" if language == "zh" else " ").join(say(language) for say in said)


def _claims(draw: random.Random, clauses: list[Clause], language: str) -> list[tuple[str, str]]:
    """What somebody says about a text in English, half of it with foreign nouns, and what somebody else says to it."""
    persons = {clause.person for clause in clauses}
    strangers = [person for person in concepts("person") if person not in persons]
    claims = []
    for _ in range(4):
        about, answer = draw.choice(clauses), draw.choice(("Yes", "No", "Perhaps"))
        claim = _claim(draw, about, draw.choice(strangers), answer)
        while not in_split(claim, "train"):
            claim = _claim(draw, about, draw.choice(strangers), answer)
        nouns = draw.choice(("en", language if language != "en" else draw.choice(LANGUAGES)))
        claims.append((code_switched(claim, nouns), f" {answer}."))
    return claims


def _claim(draw: random.Random, about: Clause, stranger: str, answer: str) -> Clause:
    claim = about
    if claim.place is not None and claim.activity is not None:
        claim = replace(claim, **{draw.choice(("place", "activity")): None})
    if answer == "Perhaps":
        return replace(claim, person=stranger)
    if claim.place is not None and not claim.denied:
        affirmed = draw.random() < 0.9
        elsewhere = draw.choice([place for place in concepts("place") if place != claim.place])
        if affirmed:
            return claim if answer == "Yes" else replace(claim, place=elsewhere)
        return replace(claim, place=elsewhere if answer == "Yes" else claim.place, denied=True)
    if answer == "Yes":
        return claim
    if claim.number is not None and draw.random() < 0.8:
        return replace(claim, number=draw.choice([number for number in concepts("number") if number != claim.number]))
    return replace(claim, denied=not claim.denied, number=None)


def _said(draw: random.Random, clauses: list[Clause]) -> list[Callable[[str], str]]:
    """Sentences that say all the clauses, now and then a question among them."""
    said, rest = [], list(clauses)
    while rest:
        joined = len(rest) > 1 and draw.random() < 0.5
        parts, rest = rest[: 1 + joined], rest[1 + joined :]
        time = draw.choice(concepts("time")) if draw.random() < 0.3 else None
        said.append(partial(sentence, parts, time=time))
        if draw.random() < 0.1:
            said.append(_question(draw.choice(clauses)))
    return said


def _restated(draw: random.Random, clauses: list[Clause]) -> list[Callable[[str], str]]:
    """Some of the clauses once more, each alone and perhaps with less: a person at one place is not at another."""
    said = []
    for clause in draw.sample(clauses, min(len(clauses), draw.choice((1, 1, 2)))):
        less = replace(clause, number=None)
        if clause.place is not None and clause.activity is not None:
            less = replace(clause, **{draw.choice(("place", "activity")): None})
        elsewhere = Clause(clause.person, place=draw.choice(concepts("place")), denied=True)
        if less.place not in (None, elsewhere.place) and not less.denied and less.activity is None:
            less = elsewhere if in_split(elsewhere, "train") and draw.random() < 0.4 else less
        said.append(partial(sentence, [less]))
    return said


def _question(meant: Clause) -> Callable[[str], str]:
    if meant.thing is not None:
        thing = meant.thing
        return lambda language: how_many(meant.person, thing, language)
    if meant.activity is not None:
        activity = meant.activity
        return lambda language: who_does(activity, language)
    assert meant.place is not None
    at = meant.place
    return (lambda language: where(meant.person, language)) if meant.denied else (lambda language: who_is(at, language))
