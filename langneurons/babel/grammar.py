"""The grammar of the miniature tasks: what is meant, and how seven languages say it.

A clause says where a person is, what a person does, or what a person has. The lexicon, ``lexicon.tsv``, holds for every
concept and language the forms that do not follow by rule, separated by ``|``:

- person: English without article, the others as they stand in a sentence; Hindi and Urdu: form, gender, and the oblique
  case where it differs;
- place: with its preposition or postposition (Vietnamese without "ở");
- activity: English and Spanish as a participle, French affirmed and denied, Hindi and Urdu as a stem, which is the last
  word;
- thing: a plural; Spanish, Hindi and Urdu with gender, Vietnamese and Chinese behind their classifier.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "fr", "es", "vi", "zh", "hi", "ur")
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
    return _CLAUSES[language](meant)


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
    return capitalised(_english(meant, language)) + FULL_STOP.get(language, ".")


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
    who = subject(person, language)
    questions = {
        "en": f"Where is {who}?",
        "fr": f"Où est {who} ?",
        "es": f"¿Dónde está {who}?",
        "vi": f"{who} đang ở đâu?",
        "zh": f"{who}在哪里？",
        "hi": f"{who} कहाँ है?",
        "ur": f"{who} کہاں ہے؟",
    }
    return capitalised(questions[language])


def who_is(name: str, language: str) -> str:
    """Ask who is at a place."""
    at = place(name, language)
    return {
        "en": f"Who is {at}?",
        "fr": f"Qui est {at} ?",
        "es": f"¿Quién está {at}?",
        "vi": f"Ai đang {at}?",
        "zh": f"谁在{at}？",
        "hi": f"{at} कौन है?",
        "ur": f"{at} کون ہے؟",
    }[language]


def who_does(activity: str, language: str) -> str:
    """Ask who does something."""
    deed, *_ = forms("activity", activity, language)
    return {
        "en": f"Who is {deed}?",
        "fr": f"Qui {deed} ?",
        "es": f"¿Quién está {deed}?",
        "vi": f"Ai đang {deed}?",
        "zh": f"谁在{deed}？",
        "hi": f"{_before_stem(deed, 'कौन')} रहा है?",
        "ur": f"{_before_stem(deed, 'کون')} رہا ہے؟",
    }[language]


def how_many(person: str, thing: str, language: str) -> str:
    """Ask how many of something a person has."""
    who, what = subject(person, language), forms("thing", thing, language)
    questions = {
        "en": lambda: f"How many {what[0]} does {who} have?",
        "fr": lambda: f"Combien {_of(what[0])} a {who} ?",
        "es": lambda: f"¿{'Cuántas' if what[1] == 'f' else 'Cuántos'} {what[0]} tiene {who}?",
        "vi": lambda: f"{who} có bao nhiêu {what[0]} {what[1]}?",
        "zh": lambda: f"{who}有几{what[0]}{what[1]}？",
        "hi": lambda: f"{_oblique(person, language)} के पास {'कितनी' if what[1] == 'f' else 'कितने'} {what[0]} हैं?",
        "ur": lambda: f"{_oblique(person, language)} کے پاس {'کتنی' if what[1] == 'f' else 'کتنے'} {what[0]} ہیں؟",
    }
    return capitalised(questions[language]())


def _english(meant: Clause, nouns: str = "en") -> str:
    who = subject(meant.person, nouns)
    if meant.thing is not None:
        return f"{who} has {'no ' if meant.denied else ''}{_things(meant, nouns)}"
    deed = "" if meant.activity is None else f" {forms('activity', meant.activity, 'en')[0]}"
    return f"{who} is{' not' if meant.denied else ''}{deed}{_at(meant, nouns)}"


def _french(meant: Clause) -> str:
    who = subject(meant.person, "fr")
    if meant.thing is not None:
        things = _things(meant, "fr")
        return f"{who} n'a pas {_of(things)}" if meant.denied else f"{who} a {'' if meant.number else 'des '}{things}"
    affirmed, denied = ("est", "n'est pas") if meant.activity is None else forms("activity", meant.activity, "fr")
    return f"{who} {denied if meant.denied else affirmed}{_at(meant, 'fr')}"


def _spanish(meant: Clause) -> str:
    who = subject(meant.person, "es") + (" no" if meant.denied else "")
    if meant.thing is not None:
        return f"{who} tiene {_things(meant, 'es')}"
    deed = "" if meant.activity is None else f" {forms('activity', meant.activity, 'es')[0]}"
    return f"{who} está{deed}{_at(meant, 'es')}"


def _vietnamese(meant: Clause) -> str:
    who = subject(meant.person, "vi")
    if meant.thing is not None:
        return f"{who} {'không có' if meant.denied else 'có'} {_things(meant, 'vi')}"
    deed = "" if meant.activity is None else f" {forms('activity', meant.activity, 'vi')[0]}"
    return f"{who} {'không' if meant.denied else 'đang'}{deed}{_at(meant, 'vi')}"


def _chinese(meant: Clause) -> str:
    who = subject(meant.person, "zh")
    if meant.thing is not None:
        return f"{who}{'没有' if meant.denied else '有'}{_things(meant, 'zh')}"
    at = "" if meant.place is None else place(meant.place, "zh")
    if meant.activity is None:
        return f"{who}{'不在' if meant.denied else '在'}{at}"
    return f"{who}{'没在' if meant.denied else '在'}{at}{forms('activity', meant.activity, 'zh')[0]}"


def _hindi(meant: Clause) -> str:
    return _verb_last(meant, "hi", no="नहीं", having="के पास", singular="है", plural="हैं", he="रहा है", she="रही है")


def _urdu(meant: Clause) -> str:
    return _verb_last(meant, "ur", no="نہیں", having="کے پاس", singular="ہے", plural="ہیں", he="رہا ہے", she="رہی ہے")


def _verb_last(
    meant: Clause, language: str, *, no: str, having: str, singular: str, plural: str, he: str, she: str
) -> str:
    no = no if meant.denied else ""
    if meant.thing is not None:
        return _words(_oblique(meant.person, language), having, _things(meant, language), no, plural)
    who = subject(meant.person, language)
    at = "" if meant.place is None else place(meant.place, language)
    if meant.activity is None:
        return _words(who, at, no, singular)
    deed = _before_stem(forms("activity", meant.activity, language)[0], no)
    return _words(who, at, deed, she if forms("person", meant.person, language)[1] == "f" else he)


def _before_stem(deed: str, word: str) -> str:
    """An activity with a word right before its verb."""
    *objects, stem = deed.split(" ")
    return _words(*objects, word, stem)


def _words(*words: str) -> str:
    return " ".join(filter(None, words))


def _at(meant: Clause, language: str) -> str:
    return "" if meant.place is None else f" {place(meant.place, language)}"


def _things(meant: Clause, language: str) -> str:
    assert meant.thing is not None
    if meant.number is not None:
        return counted(meant.number, meant.thing, language)
    form = forms("thing", meant.thing, language)
    return form[-1] if language in ("vi", "zh") else form[0]


def _oblique(person: str, language: str) -> str:
    form, _, *oblique = forms("person", person, language)
    return oblique[0] if oblique else form


def _of(what: str) -> str:
    return f"d'{what}" if what[0] in "aeiouéh" else f"de {what}"


_JOINED = {"en": ", and ", "fr": ", et ", "es": ", y ", "vi": ", còn ", "zh": "，", "hi": ", और ", "ur": "، اور "}
_CLAUSES: dict[str, Callable[[Clause], str]] = {
    "en": _english,
    "fr": _french,
    "es": _spanish,
    "vi": _vietnamese,
    "zh": _chinese,
    "hi": _hindi,
    "ur": _urdu,
}
