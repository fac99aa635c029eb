"""A study of seconds, on the embedded model."""

import copy
from typing import Any

from langneurons.study.config import StudyConfig, parse_config

SMALL: dict[str, Any] = {
    "name": "small",
    "question": "Does it work?",
    "models": {"babel": {"name": "babel"}},
    "text": {"source": "babel", "heldout": 0.3, "heldout_tokens": 100, "heldout_context": 32},
    "recording": {"context_length": 64, "tokens_per_language": 300},
    "sets": {"two": ["en", "hi"]},
    "methods": {"lape": {"method": "lape", "top": 0.002}},
    "patches": {"zero": {"write": 0}, "mean": {"write": "mean"}},
    "matrix": {"controls": 0},
    "report": {"profiles": 2},
}


def small(**changes: Any) -> StudyConfig:
    """The study, with parts replaced; a part given as None is left out."""
    content = copy.deepcopy(SMALL) | changes
    return parse_config({name: part for name, part in content.items() if part is not None})
