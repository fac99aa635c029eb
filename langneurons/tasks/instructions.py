"""Asking a model to answer in a language: short sentences, and what languages are called in them."""

from collections.abc import Mapping

from langneurons.corpora.languages import canonical, language_of, nearest
from langneurons.errors import TaskError, unknown

KINDS = ("english", "source", "target")
Instruction = str | Mapping[str, str]

# What languages are called, by the language of the sentence.
_NAMES = {
    "en": "af=Afrikaans ar=Arabic bn=Bengali bo=Tibetan cs=Czech da=Danish de=German el=Greek en=English es=Spanish "
    "fa=Persian fr=French hi=Hindi id=Indonesian it=Italian ja=Japanese ka=Georgian kk=Kazakh ko=Korean mt=Maltese "
    "nl=Dutch no=Norwegian pl=Polish pt=Portuguese ro=Romanian ru=Russian sk=Slovak sv=Swedish sw=Swahili th=Thai "
    "tl=Tagalog tr=Turkish uk=Ukrainian ur=Urdu vi=Vietnamese zh=Chinese",
    "es": "en=inglés es=español fr=francés hi=hindi ur=urdu vi=vietnamita zh=chino",
    "fr": "en=anglais es=espagnol fr=français hi=hindi ur=ourdou vi=vietnamien zh=chinois",
    "hi": "en=अंग्रेज़ी es=स्पेनिश fr=फ़्रांसीसी hi=हिन्दी ur=उर्दू vi=वियतनामी zh=चीनी",
    "ur": "en=انگریزی es=ہسپانوی fr=فرانسیسی hi=ہندی ur=اردو vi=ویتنامی zh=چینی",
    "vi": "en=Anh es=Tây_Ban_Nha fr=Pháp hi=Hindi ur=Urdu vi=Việt zh=Trung",
    "zh": "en=英语 es=西班牙语 fr=法语 hi=印地语 ur=乌尔都语 vi=越南语 zh=中文",
}  # fmt: skip
_SENTENCES = {
    "en": "Please write your answer in {}.",
    "es": "Escribe tu respuesta en {}.",
    "fr": "Écris ta réponse en {}.",
    "hi": "कृपया अपना उत्तर {} में लिखिए।",
    "ur": "براہ کرم اپنا جواب {} میں لکھیے۔",
    "vi": "Hãy viết câu trả lời bằng tiếng {}.",
    "zh": "请用{}写出你的回答。",
}


def name_of(language: str, called_in: str = "en") -> str | None:
    """What a language is called in another one; None where langneurons does not know.

    Example:
        >>> from langneurons.tasks.instructions import name_of
        >>> name_of("hin_Deva"), name_of("es", called_in="vi"), name_of("qq")
        ('Hindi', 'Tây Ban Nha', None)
    """
    names = dict(entry.split("=") for entry in (nearest(called_in, _NAMES) or "").split())
    name = nearest(language, names)
    return None if name is None else name.replace("_", " ")


def instruction_of(instruction: Instruction, source: str, target: str) -> str:
    """The sentence that asks for an answer in a language.

    Args:
        instruction: The language of the sentence: ``"english"``, that of the question (``"source"``) or that of the
            answer (``"target"``); or language of the answer -> a sentence.
        source: Language of the question.
        target: Language of the answer.

    Raises:
        TaskError: If there is no such kind of instruction, or no sentence in the language or about it.

    Example:
        >>> from langneurons.tasks.instructions import instruction_of
        >>> instruction_of("english", "zh", "hi"), instruction_of("source", "es", "hi")
        ('Please write your answer in Hindi.', 'Escribe tu respuesta en hindi.')
    """
    if isinstance(instruction, Mapping):
        sentence = nearest(target, instruction)
        if not isinstance(sentence, str) or not sentence.strip():
            raise TaskError(
                f"instruction= has no sentence for {target!r}, only for {', '.join(instruction) or 'none'}."
            )
        return sentence
    if instruction not in KINDS:
        raise TaskError(unknown("instruction", instruction, KINDS))
    written_in = {"english": "en", "source": source, "target": target}[instruction]
    sentence, name = nearest(written_in, _SENTENCES), name_of(target, written_in)
    if sentence is None or name is None:
        raise TaskError(
            f"langneurons has no sentence in {canonical(written_in)!r} that asks for an answer in {target!r}: give "
            f"instruction={{{language_of(target)!r}: ...}}, a sentence for each language."
        )
    return sentence.format(name)
