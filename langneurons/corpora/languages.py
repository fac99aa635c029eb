"""Language codes: what they name, in which script, and the language sets of a paper.

FLORES ("zho_Hans"), ISO 639-1 ("zh"), ISO 639-2 and 639-3 ("zho", "chi", "cmn") and BCP-47 ("zh-Hans", "zh_CN") name
the same languages. ``canonical`` gives each one spelling, and whatever depends on a language asks here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from langneurons.errors import LanguageError, unknown

Value = TypeVar("Value")

# Script -> the languages that are written in it, with their codes of three letters. A language of two letters stands
# for its standard variety, too ("arb" is "ar"); varieties that are told apart have a code of their own ("arz").
_LANGUAGES = {
    "Latn": "aa=aar af=afr ak=aka an=arg ay=aym,ayr az=aze,azj bi=bis bm=bam br=bre bs=bos ca=cat ch=cha co=cos "
    "cs=ces,cze cy=cym,wel da=dan de=deu,ger ee=ewe en=eng eo=epo es=spa et=est,ekk eu=eus,baq ff=ful,fuv fi=fin "
    "fj=fij fo=fao fr=fra,fre fy=fry ga=gle gd=gla gl=glg gn=grn,gug gv=glv ha=hau ho=hmo hr=hrv ht=hat hu=hun "
    "hz=her ia=ina id=ind,in ie=ile ig=ibo ik=ipk io=ido is=isl,ice it=ita jv=jav,jw kg=kon ki=kik kj=kua kl=kal "
    "kr=kau,knc ku=kur,kmr kw=cor la=lat lb=ltz lg=lug li=lim ln=lin lt=lit lu=lub lv=lav,lvs mg=mlg,plt mh=mah "
    "mi=mri,mao ms=msa,may,zsm mt=mlt na=nau nd=nde ng=ndo nl=nld,dut nn=nno no=nor,nob,nb nr=nbl nv=nav ny=nya "
    "oc=oci om=orm,gaz pl=pol pt=por qu=que,quy rm=roh rn=run ro=ron,rum,mo rw=kin sc=srd se=sme sg=sag "
    "sk=slk,slo sl=slv sm=smo sn=sna so=som sq=sqi,alb ss=ssw st=sot su=sun sv=swe sw=swa,swh tk=tuk "
    "tl=tgl,fil tn=tsn to=ton tr=tur tw=twi ts=tso ty=tah uz=uzb,uzn ve=ven vi=vie vo=vol wa=wln wo=wol xh=xho yo=yor "
    "za=zha zu=zul",
    "Cyrl": "ab=abk av=ava ba=bak be=bel bg=bul ce=che cu=chu cv=chv kk=kaz kv=kom ky=kir mk=mkd,mac mn=mon,khk os=oss "
    "ru=rus tg=tgk tt=tat uk=ukr",
    "Arab": "ar=ara,arb ckb fa=fas,per,pes ks=kas ps=pus,pbt sd=snd ug=uig ur=urd arz ary prs azb",
    "Deva": "hi=hin mr=mar ne=nep,npi sa=san pi=pli bho mai mag awa hne gom",
    "Beng": "bn=ben as=asm mni",
    "Hebr": "he=heb,iw yi=yid,ydd,ji",
    "Ethi": "am=amh ti=tir",
    "Tibt": "bo=bod,tib dz=dzo",
    "Hant": "yue",
    "Hans": "wuu",
    "Jpan": "ja=jpn", "Kore": "ko=kor", "Thai": "th=tha", "Laoo": "lo=lao", "Khmr": "km=khm", "Mymr": "my=mya,bur shn",
    "Grek": "el=ell,gre grc", "Armn": "hy=hye,arm", "Geor": "ka=kat,geo", "Guru": "pa=pan", "Gujr": "gu=guj",
    "Orya": "or=ori,ory", "Taml": "ta=tam", "Telu": "te=tel", "Knda": "kn=kan", "Mlym": "ml=mal", "Sinh": "si=sin",
    "Thaa": "dv=div", "Olck": "sat", "Tfng": "zgh", "Yiii": "ii=iii", "Cans": "iu=iku cr=cre oj=oji",
}  # fmt: skip
_SEVERAL = {"zh": ("Hans", "Hant"), "sr": ("Cyrl", "Latn")}  # the script is part of the code wherever it is given
_SCRIPT_OF = {entry.partition("=")[0]: script for script, entries in _LANGUAGES.items() for entry in entries.split()}
_LANGUAGE_OF = (
    {
        code: entry.partition("=")[0]
        for entries in _LANGUAGES.values()
        for entry in entries.split()
        for code in entry.replace("=", ",").split(",")
    }
    | dict.fromkeys(("zh", "zho", "chi"), "zh")
    | dict.fromkeys(("sr", "srp", "scc"), "sr")
)
_REGIONS = {"CN": "Hans", "SG": "Hans", "MY": "Hans", "TW": "Hant", "HK": "Hant", "MO": "Hant"}  # of Chinese
_HAN = {"CJK", "IDEOGRAPHIC"}
# The first words of the letters' names in Unicode.
_LETTERS = {
    "Latn": {"LATIN"}, "Cyrl": {"CYRILLIC"}, "Arab": {"ARABIC"}, "Deva": {"DEVANAGARI"}, "Beng": {"BENGALI"},
    "Hebr": {"HEBREW"}, "Ethi": {"ETHIOPIC"}, "Tibt": {"TIBETAN"}, "Hans": _HAN, "Hant": _HAN, "Hani": _HAN,
    "Jpan": {*_HAN, "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}, "Kore": {"HANGUL", "CJK"}, "Hang": {"HANGUL"},
    "Thai": {"THAI"}, "Laoo": {"LAO"}, "Khmr": {"KHMER"}, "Mymr": {"MYANMAR"}, "Grek": {"GREEK"}, "Armn": {"ARMENIAN"},
    "Geor": {"GEORGIAN"}, "Guru": {"GURMUKHI"}, "Gujr": {"GUJARATI"}, "Orya": {"ORIYA"}, "Taml": {"TAMIL"},
    "Telu": {"TELUGU"}, "Knda": {"KANNADA"}, "Mlym": {"MALAYALAM"}, "Sinh": {"SINHALA"}, "Thaa": {"THAANA"},
    "Olck": {"OL"}, "Mtei": {"MEETEI"}, "Tfng": {"TIFINAGH"}, "Yiii": {"YI"}, "Cans": {"CANADIAN"},
    "Mong": {"MONGOLIAN"}, "Syrc": {"SYRIAC"}, "Cher": {"CHEROKEE"},
}  # fmt: skip
_CODE = re.compile(r"([A-Za-z]{2,3})(?:[-_]([A-Za-z]{4}))?(?:[-_]([A-Za-z]{2}|\d{3}))?")
_IN_NAME = re.compile(
    r"([A-Za-z]{2,3})(?:[-_]([A-Za-z]{4})(?![A-Za-z0-9]))?(?:[-_]([A-Z]{2}|cn|tw|hk)(?![A-Za-z0-9]))?"
)


def canonical(code: object) -> str:
    """Spell a language code in the one way in which langneurons does.

    The language is named by two letters where ISO 639-1 has them. A script is kept where it is not the usual one of the
    language, and always for Chinese and Serbian, which have two; a region is kept where it says more than a script.

    Args:
        code: A code of FLORES, ISO 639 or BCP-47. Whatever is none of these stays as it is.

    Example:
        >>> [canonical(code) for code in ("zho_Hans", "zh-Hans", "zh_CN", "cmn", "zh_TW", "zh")]
        ['zh-Hans', 'zh-Hans', 'zh-Hans', 'zh-Hans', 'zh-Hant', 'zh']
        >>> [canonical(code) for code in ("tha", "hin_Deva", "hin_Latn", "arb_Arab", "pt_br", "my own")]
        ['th', 'hi', 'hi-Latn', 'ar', 'pt-BR', 'my own']
    """
    if not isinstance(code, str):
        raise LanguageError(f"A language is a code such as 'hi', not {code!r:.60}.")
    parts = _CODE.fullmatch(code)
    if parts is None:
        return code
    primary, script, region = parts[1].lower(), (parts[2] or "").title(), (parts[3] or "").upper()
    if (
        primary == "cmn"
    ):  # Mandarin is in simplified characters unless it says otherwise, as in Unicode's likely scripts
        primary, script = "zh", script or _REGIONS.get(region, "Hans")
    language = _LANGUAGE_OF.get(primary, primary)
    if language not in _LANGUAGE_OF and not (parts[2] or parts[3]):
        return code
    if parts[2] and script not in _LETTERS:
        return code
    if language == "zh" and region in _REGIONS:
        script = script or _REGIONS[region]
        region = "" if {"CN": "Hans", "TW": "Hant"}.get(region) == script else region
    if script == _SCRIPT_OF.get(language) or (language == "zh" and script == "Hani"):
        script = ""
    return "-".join(part for part in (language, script, region) if part)


def language_of(code: str) -> str:
    """The language that a code names, without script and region.

    Example:
        >>> language_of("zho_Hant"), language_of("pt-BR"), language_of("tha")
        ('zh', 'pt', 'th')
    """
    return re.split("[-_]", canonical(code))[0]


def scripts_of(code: str) -> frozenset[str]:
    """The scripts that a language is written in, by the first words of their letters' names in Unicode.

    Returns:
        The names; none where the language is not known.

    Example:
        >>> sorted(scripts_of("hin_Latn")), sorted(scripts_of("sr")), sorted(scripts_of("qq"))
        (['LATIN'], ['CYRILLIC', 'LATIN'], [])
    """
    language, *rest = canonical(code).split("-")
    if rest and rest[0] in _LETTERS:
        return frozenset(_LETTERS[rest[0]])
    scripts = _SEVERAL.get(language) or [_SCRIPT_OF[language]] if language in _LANGUAGE_OF else []
    return frozenset(word for script in scripts for word in _LETTERS[script])


def nearest(code: str, values: Mapping[str, Value]) -> Value | None:
    """The value for a language code: for its own spelling, for another spelling of it, or else for its language.

    Example:
        >>> nearest("zh-Hant", {"en": 1, "zh": 2}), nearest("hin_Deva", {"hi": 3}), nearest("ur", {"hi": 3})
        (2, 3, None)
    """
    by_code = {canonical(name): value for name, value in values.items()}
    for name in (canonical(code), language_of(code)):
        if name in by_code:
            return by_code[name]
    return None


def code_in_name(name: str) -> str | None:
    """The canonical code that a file or folder is named after: "zh-Hant" for "zho_Hant.dev.txt"; None without one.

    Example:
        >>> code_in_name("zh-Hans.train.txt"), code_in_name("hi_test.jsonl"), code_in_name("README.md")
        ('zh-Hans', 'hi', None)
    """
    parts = _IN_NAME.match(name)
    if parts is None or name[parts.end(1) : parts.end(1) + 1].isalpha():
        return None
    if parts[1] != parts[1].lower() and parts[1].lower() not in _LANGUAGE_OF:
        return None
    script = parts[2] if parts[2] and parts[2].title() in _LETTERS else None
    region = parts[3] if script or not parts[2] else None
    return canonical("-".join(part for part in (parts[1], script, region) if part))


def is_code(name: str) -> bool:
    """Whether a name, such as a folder's, is the code of a language and nothing else.

    Example:
        >>> is_code("zho_Hans"), is_code("hi"), is_code("notes"), is_code("en_wiki")
        (True, True, False, False)
    """
    parts = _CODE.fullmatch(name)
    return parts is not None and code_in_name(name) is not None and not (parts[2] and parts[2].title() not in _LETTERS)


def label_of(code: object, labels: Iterable[str], what: str = "language") -> str:
    """The one label that a code means, however both are spelled. Every lookup by language asks here.

    A label that is spelled like the code is meant before all others, then another spelling of the same code, then one
    that differs only by a script or a region that one of the two leaves out. A script that a label leaves out is the
    usual one: "zh" is found as "zh-Hans", not as "zh-Hant".

    Args:
        code: The code.
        labels: The labels that are there.
        what: What a label names, for messages.

    Raises:
        LanguageError: If no label is meant, or several may be.

    Example:
        >>> [label_of(code, ["en", "hi", "zh-Hans"]) for code in ("hin_Deva", "HI", "zho_Hans", "zh", "en-GB")]
        ['hi', 'hi', 'zh-Hans', 'zh-Hans', 'en']
    """
    labels = list(dict.fromkeys(labels))
    meant = _meant(code, labels)
    if len(meant) > 1:
        choices = ", ".join(repr(label) for label in meant[:9])
        raise LanguageError(f"The {what} {code!r:.100} may be any of {choices}: give one of these.")
    if not meant:
        raise LanguageError(unknown(what, code, labels))
    return meant[0]


def spelled(code: object, labels: Iterable[str]) -> str | None:
    """The label that ``label_of`` gives; None where it gives none.

    Example:
        >>> spelled("zho_Hans", ["en", "zh-Hans"]), spelled("zh", ["zh-Hans", "zh-Hant"]), spelled("hi", ["en"])
        ('zh-Hans', None, None)
    """
    meant = _meant(code, list(dict.fromkeys(labels)))
    return meant[0] if len(meant) == 1 else None


def _meant(code: object, labels: Sequence[str]) -> list[str]:
    """The labels that a code may mean; several where none of them is nearer than the others."""
    if not isinstance(code, str) or code in labels:
        return [label for label in labels if label == code]
    same = [label for label in labels if canonical(label) == canonical(code)]
    return same or [label for label in labels if _fits(_parts(canonical(code)), _parts(canonical(label)))]


def _parts(code: str) -> tuple[str, str, str] | None:
    """Language, script and region of a canonical code, the last two "" where it leaves them out."""
    parts = _CODE.fullmatch(code)
    return None if parts is None else (parts[1], parts[2] or "", parts[3] or "")


def _fits(code: tuple[str, str, str] | None, label: tuple[str, str, str] | None) -> bool:
    """Whether a code and a label differ only by what one of them leaves out."""
    if code is None or label is None or code[0] != label[0] or code[0] not in _LANGUAGE_OF:
        return False
    usual = _SEVERAL.get(code[0], ("",))
    same_script = code[1] == label[1] or (not code[1] and len(usual) > 1) or (not label[1] and code[1] == usual[0])
    return same_script and (code[2] == label[2] or not (code[2] and label[2]))


def for_languages(values: Mapping[str, Value], languages: Iterable[str]) -> dict[str, Value]:
    """Some values by language, with one for each other language asked for that has a value under a nearby code.

    Example:
        >>> for_languages({"en": 1, "zh": 2}, ["zh-Hans", "ur"])
        {'en': 1, 'zh': 2, 'zh-Hans': 2}
    """
    others = {language: nearest(language, values) for language in languages if language not in values}
    return {**values, **{language: value for language, value in others.items() if value is not None}}


def distinct(languages: object, labels: Iterable[str] | None = None) -> list[str]:
    """The languages, each once; a text instead of a list, and an empty list, are refused.

    Args:
        languages: Codes of languages.
        labels: The labels that are there; with them each language is spelled as its label is.

    Raises:
        LanguageError: If there is no language, or it is not among the labels.

    Example:
        >>> distinct(["hin", "en", "hi"]), distinct(["hin_Deva", "en"], labels=["en", "hi"])
        (['hin', 'en'], ['hi', 'en'])
    """
    if isinstance(languages, str):
        raise LanguageError(
            f"Give the languages as a list, such as [{languages!r:.60}], not as the text {languages!r:.60}."
        )
    if not isinstance(languages, Iterable):
        raise LanguageError(f"Languages are a list of codes, such as ['en', 'hi'], not {languages!r:.60}.")
    unique: dict[str, str] = {}
    labels = None if labels is None else list(labels)
    for language in languages:
        code = canonical(language)
        label = language if labels is None else label_of(language, labels)
        unique.setdefault(code if labels is None else label, label)
    if not unique:
        all_of_them = "Give at least one language, or leave the argument out."
        possible = f"Possible: {', '.join(labels[:30])}." if labels else all_of_them
        raise LanguageError(f"No language was given. {possible}")
    return list(unique.values())


def by_canonical_code(codes: Iterable[str], where: str) -> dict[str, str]:
    """The canonical code of each language -> the code as it is given.

    Raises:
        LanguageError: If two codes name one language.
    """
    original: dict[str, str] = {}
    for code in codes:
        if (name := canonical(code)) in original:
            raise LanguageError(f"{where} has {original[name]!r:.60} and {code!r:.60}, which are both {name!r:.60}.")
        original[name] = code
    return original


# The language sets of Mondal et al. 2025 (arXiv 2503.17456), as their code defines them. A score that compares
# languages depends on which languages it compares: name the set with the result.
SET1 = ("en", "fr", "es", "vi", "id", "ja", "zh")
SET2 = ("en", "fr", "vi", "zh", "bn", "hi", "te", "mr")
SET3 = ("bn", "hi", "ta", "te", "mr", "ur", "kn", "ml", "pa")
SET4 = (*SET1, "bn", "hi", "te")
SET5 = ("en", "fr", "es", "vi", "id", "ja", "zh", "bn", "hi", "ta", "te", "mr", "ur", "kn", "ml", "pa")
SET6 = ("en", "bn", "hi", "ta", "te", "mr", "ur", "kn", "ml", "pa")
SET_XNLI = ("en", "fr", "es", "vi", "zh", "ur", "hi")
