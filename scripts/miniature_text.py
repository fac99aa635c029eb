"""Text for training babel: clauses of the miniature tasks, translated, restated and talked about, without labels.

Only combinations of content words of the training split occur, see ``langneurons.babel.miniature``.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from langneurons.babel import LANGUAGES
from langneurons.babel.grammar import (
    Clause,
    code_switched,
    concepts,
    how_many,
    sentence,
    where,
    who_does,
    who_is,
)
from langneurons.babel.miniature import KINDS, clause_about, in_split


def draw_clause(draw: random.Random, split: str) -> Clause:
    """Draw a clause that a split allows."""
    while True:
        kind = draw.choice(KINDS)
        meant = clause_about(draw.choice(concepts("person")), kind, draw.choice(concepts(kind)), draw.random() < 0.25)
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
        clauses = [draw_clause(draw, "train") for _ in range(draw.choice((1, 1, 2) if discussed else (1, 2, 3, 4)))]
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
        claim = claim_about(draw, about, draw.choice(strangers), answer)
        while not in_split(claim, "train"):
            claim = claim_about(draw, about, draw.choice(strangers), answer)
        nouns = draw.choice(("en", language if language != "en" else draw.choice(LANGUAGES)))
        claims.append((code_switched(claim, nouns), f" {answer}."))
    return claims


def claim_about(draw: random.Random, about: Clause, stranger: str, answer: str) -> Clause:
    """Claim something to which the answer is "Yes", "No" or "Perhaps", of a clause or of a stranger."""
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
