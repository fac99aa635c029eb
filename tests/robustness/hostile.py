"""Results whose every text is an attack on the page that shows it."""

import dataclasses
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import pandas as pd

from langneurons.storage import Result

ATTACKS = (
    "<img src=x onerror=ran=1>",
    "<a href='https://evil.example'>x</a>",
    "<script>ran=1</script>",
    "'\"><svg onload=ran=1>",
    "$\\href{javascript:ran=1}{x}$",
    "</script><iframe src=javascript:ran=1>",
    "&lt;b&gt; %{y}",
)
# Words of a closed vocabulary: results with others are refused when they are read.
CLOSED = "unpatched overall real top median random promoted suppressed activity direction baseline row both language "
CLOSED += "task neither label layer neuron neurons none source better worse inconclusive gain loss chance patched "
CLOSED += "measured patch last padding"
RESERVED = {*CLOSED.split(), "no effect", "slightly better", "slightly worse", "no difference", ""}
LABELLED = ("members", "scores")  # mappings whose keys are labels
KEPT = ("options", "keys", "column", "file", "site", "nats_per_token")


def attacked(text: str) -> str:
    """A text with an attack behind it, always the same one."""
    return text if text in RESERVED else text + ATTACKS[crc32(text.encode()) % len(ATTACKS)]


def hostile(value: Any, name: str = "") -> Any:
    """A copy of a result, or of a part of it, with an attack in every text that is free."""
    if isinstance(value, str):
        return attacked(value)
    if isinstance(value, pd.DataFrame):
        return value.assign(**{str(column): [hostile(cell) for cell in value[column]] for column in value.columns})
    if isinstance(value, Mapping):
        inner = {"records": "members"}.get(name, "")
        named = {(attacked(key) if name in LABELLED else key): part for key, part in value.items()}
        return {key: part if key in KEPT else hostile(part, inner) for key, part in named.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init and field.name not in KEPT]
        return dataclasses.replace(value, **{field: hostile(getattr(value, field), field) for field in fields})
    if isinstance(value, list | tuple):
        return type(value)(hostile(part) for part in value)
    return value


def texts_of(result: Result) -> list[str]:
    """The attacks that the texts of a result hold."""
    return [attack for attack in ATTACKS if attack in repr(_strings(result))]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, pd.DataFrame):
        return _strings(value.to_dict("list"))
    if isinstance(value, Mapping):
        return [text for item in value.items() for text in _strings(list(item))]
    if dataclasses.is_dataclass(value):
        return _strings([getattr(value, field.name) for field in dataclasses.fields(value)])
    return [text for part in value for text in _strings(part)] if isinstance(value, list | tuple) else []
