"""The grammar of the miniature tasks: what is meant, and how seven languages say it.

A clause says where a person is, what a person does, or what a person has. The lexicon, ``lexicon.tsv``, holds for every
concept and language the forms that do not follow by rule, separated by ``|``:

- person: English without article, the others as they stand in a sentence; Hindi and Urdu: form, gender, and the oblique
  case where it differs;
- place: with its preposition or postposition (Vietnamese without "ở");
- activity: English and Spanish as a participle, French affirmed and denied, Hindi and Urdu as a stem, which is the last
  word;
- thing: a plural; Spanish, Hindi and Urdu with gender, Vietnamese and Chinese behind their classifier;
- clause: sentences to fill in, affirmed and denied; where the verb agrees, two more for a feminine subject;
- question: questions to fill in; where they agree, one more for a feminine thing.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

FULL_STOP = {"zh": "。", "hi": "।", "ur": "۔"}


@dataclass(frozen=True)
class Clause:
    """What is said of a person, by the names of concepts.

    Attributes:
        person: The person.
        activity: What the person does.
        place: The place that the person is at.
        thing: What the person has.
        number: The number of things, as a concept.
        denied: Whether the clause says that it is not so.
    """

    person: str
    activity: str | None = None
    place: str | None = None
    thing: str | None = None
    number: str | None = None
    denied: bool = False


@cache
def lexicon() -> dict[str, dict[str, dict[str, tuple[str, ...]]]]:
    """Read the lexicon: kind -> concept -> language -> forms."""
    lines = Path(__file__).with_name("lexicon.tsv").read_text("utf-8").splitlines()
    header, *rows = [line.split("\t") for line in lines]
    concepts_of: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {}
    for kind, concept, *texts in rows:
        by_language = {language: tuple(text.split("|")) for language, text in zip(header[2:], texts, strict=True)}
        concepts_of.setdefault(kind, {})[concept] = by_language
    return concepts_of


@cache
def concepts(kind: str) -> tuple[str, ...]:
    """The concepts of a kind: person, place, activity, thing, number or time."""
    return tuple(lexicon()[kind])


def forms(kind: str, concept: str, language: str) -> tuple[str, ...]:
    """The forms of a concept in a language."""
    return lexicon()[kind][concept][language]


def subject(person: str, language: str) -> str:
    """A person as the subject of a clause."""
    form = forms("person", person, language)[0]
    return f"the {form}" if language == "en" else form


def place(name: str, language: str) -> str:
    """A place as it stands in a clause."""
    form = forms("place", name, language)[0]
    return f"ở {form}" if language == "vi" else form


def clause(meant: Clause, language: str) -> str:
    """Say a clause, without capital or full stop.

    Example:
        >>> meant = Clause("boy", activity="cook", place="garden")
        >>> clause(meant, "en"), clause(meant, "zh")
        ('the boy is cooking in the garden', '男孩在花园里做饭')
        >>> clause(Clause("boy", thing="apple", number="three"), "hi")
        'लड़के के पास तीन सेब हैं'
    """
    return _said(meant, language, language)


def sentence(parts: list[Clause], language: str, time: str | None = None) -> str:
    """Say one clause, or two joined, perhaps with a time in front, as a sentence.

    Example:
        >>> sentence([Clause("girl", place="boat"), Clause("king", activity="sing", denied=True)], "en", "now")
        'Now, the girl is on the boat, and the king is not singing.'
    """
    text = _JOINED[language].join(clause(part, language) for part in parts)
    if time is not None:
        comma = {"zh": "", "hi": " ", "ur": " ", "vi": " "}.get(language, ", ")
        text = forms("time", time, language)[0] + comma + text
    return capitalised(text) + FULL_STOP.get(language, ".")


def code_switched(meant: Clause, language: str) -> str:
    """Say a clause as an English sentence with the persons, places, things and full stop of another language.

    Example:
        >>> code_switched(Clause("girl", place="kitchen", denied=True), "es")
        'La niña is not en la cocina.'
        >>> code_switched(Clause("girl", thing="book", number="two"), "zh")
        '女孩 has 两本书。'
    """
    return capitalised(_said(meant, "en", language)) + FULL_STOP.get(language, ".")


def capitalised(text: str) -> str:
    """A text with its first letter as a sentence begins."""
    return text[0].upper() + text[1:]


def counted(number: str, thing: str, language: str) -> str:
    """So many of a thing.

    Example:
        >>> counted("two", "knife", "vi"), counted("two", "knife", "zh")
        ('hai con dao', '两把刀')
    """
    many, what = forms("number", number, language)[0], forms("thing", thing, language)
    return {"vi": f"{many} {what[0]} {what[-1]}", "zh": f"{many}{what[0]}{what[-1]}"}.get(language, f"{many} {what[0]}")


def where(person: str, language: str) -> str:
    """Ask where a person is."""
    return _asked("where", language, _who(person, language))


def who_is(name: str, language: str) -> str:
    """Ask who is at a place."""
    return _asked("who is", language, {"at": place(name, language)})


def who_does(activity: str, language: str) -> str:
    """Ask who does something."""
    return _asked("who does", language, _deed(activity, language))


def how_many(person: str, thing: str, language: str) -> str:
    """Ask how many of something a person has."""
    what = forms("thing", thing, language)
    things = {"thing": what[0], "noun": what[-1], "of_thing": _of(what[0])}
    return _asked("how many", language, _who(person, language) | things, "f" in what[1:])


def _asked(question: str, language: str, words: dict[str, str], feminine: bool = False) -> str:
    texts = forms("question", question, language)
    return capitalised(texts[feminine % len(texts)].format(**words))


def _said(meant: Clause, language: str, nouns: str) -> str:
    """A clause in one language, its persons, places and things in the same or in another."""
    words = _who(meant.person, nouns)
    if meant.thing is not None:
        kind, things = "has so many" if meant.number else "has", _things(meant, nouns)
        words |= {"things": things, "of_things": _of(things)}
    else:
        kind = "is at" if meant.activity is None else "does" if meant.place is None else "does at"
        words |= {} if meant.place is None else {"at": place(meant.place, nouns)}
        words |= {} if meant.activity is None else _deed(meant.activity, language)
    texts = forms("clause", kind, language)
    form = 2 * ("f" in forms("person", meant.person, nouns)[1:]) + meant.denied
    return texts[form % len(texts)].format(**words)


def _who(person: str, language: str) -> dict[str, str]:
    """A person as the subject, and in the oblique case."""
    form, *gender_and_oblique = forms("person", person, language)
    return {"who": subject(person, language), "oblique": (gender_and_oblique[1:] or [form])[0]}


def _deed(activity: str, language: str) -> dict[str, str]:
    """An activity as it is affirmed and denied; and its stem, apart from the objects in front."""
    affirmed, *denied = forms("activity", activity, language)
    *objects, stem = affirmed.split(" ")
    return {
        "deed": affirmed,
        "denied": "".join(denied),
        "objects": "".join(f"{word} " for word in objects),
        "stem": stem,
    }


def _things(meant: Clause, language: str) -> str:
    assert meant.thing is not None
    if meant.number is not None:
        return counted(meant.number, meant.thing, language)
    form = forms("thing", meant.thing, language)
    return form[-1] if language in ("vi", "zh") else form[0]


def _of(what: str) -> str:
    return f"d'{what}" if what[0] in "aeiouéh" else f"de {what}"


_JOINED = {"en": ", and ", "fr": ", et ", "es": ", y ", "vi": ", còn ", "zh": "，", "hi": ", और ", "ur": "، اور "}
