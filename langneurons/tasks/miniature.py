"""The miniature tasks that come with langneurons, in exactly the columns and types of the hub's data sets."""

from collections.abc import Callable, Mapping

from datasets import ClassLabel, Dataset, Features, List, Value

from langneurons.babel import miniature
from langneurons.errors import TaskError, unknown
from langneurons.tasks.likelihood import LABELS

SOURCE = "babel"
XNLI_FEATURES = Features(
    {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=list(LABELS))}
)
XQUAD_FEATURES = Features(
    {
        "id": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)
Miniature = Callable[[str], Mapping[str, Dataset]]


def mini_xnli(split: str) -> dict[str, Dataset]:
    """Give the miniature inference task as facebook/xnli is laid out, one data set a language.

    Args:
        split: "train", "validation" or "test"; combinations of content words in one are in no other.

    Returns:
        Language -> data set.

    Raises:
        TaskError: If there is no such split.

    Example:
        >>> from langneurons.tasks.miniature import mini_xnli
        >>> mini_xnli("test")["fr"].features["label"]
        ClassLabel(names=['entailment', 'neutral', 'contradiction'])
    """
    _check(split)
    return {
        language: Dataset.from_list([{**row, "label": LABELS.index(row["label"])} for row in rows], XNLI_FEATURES)
        for language, rows in miniature.mini_xnli(split).items()
    }


def mini_xquad(split: str) -> dict[str, Dataset]:
    """Give the miniature questions as google/xquad is laid out, one data set a language.

    Args:
        split: "train", "validation" or "test".

    Returns:
        Language -> data set.

    Raises:
        TaskError: If there is no such split.
    """
    _check(split)
    found = miniature.mini_xquad(split)
    return {language: Dataset.from_list(rows, XQUAD_FEATURES) for language, rows in found.items()}


def _check(split: str) -> None:
    if split not in miniature.SPLITS:
        raise TaskError(unknown("split", split, miniature.SPLITS))
