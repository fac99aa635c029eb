"""Tasks of the harness over local files in the schemas of XCOPA, MGSM and XNLI: of invented items, or the real ones."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

TEMPLATES = Path(__file__).with_name("templates")
FILES = {"xcopa": "val.{}.jsonl", "mgsm": "mgsm_{}.tsv", "xnli": "dev-{}.tsv"}
# What each template says in a language.
WORDS: dict[str, dict[str, dict[str, str]]] = {
    "xcopa": {
        "it": {"cause": "perché", "effect": "quindi"},
        "vi": {"cause": "bởi vì", "effect": "vì vậy"},
        "zh": {"cause": "因为", "effect": "所以"},
    },
    "mgsm": {
        "en": {"question": "Question", "answer": "Answer"},
        "es": {"question": "Pregunta", "answer": "Respuesta"},
        "fr": {"question": "Question", "answer": "Réponse"},
        "zh": {"question": "问题", "answer": "答案"},
    },
    "xnli": {
        "en": {"right": "right", "yes": "Yes", "also": "Also", "no": "No"},
        "hi": {"right": "सही", "yes": "हाँ", "also": "इसलिए", "no": "नहीं"},
        "zh": {"right": "正确", "yes": "是的", "also": "所以", "no": "不是的"},
    },
}
NAMES = {kind: [f"local_{kind}_{language}" for language in words] for kind, words in WORDS.items()}


def write_tasks(folder: Path, data: Callable[[str], Path]) -> Path:
    """Fill every template in, once for each language.

    Args:
        folder: Folder to write configurations to.
        data: Gives the folder of a kind's files.

    Returns:
        The folder.
    """
    for kind, words in WORDS.items():
        template = Template((TEMPLATES / f"{kind}.yaml").read_text("utf-8"))
        for language, own in words.items():
            file = data(kind) / FILES[kind].format(language)
            text = template.substitute(own, language=language, file=json.dumps(str(file)))
            (folder / f"{kind}_{language}.yaml").write_text(text, "utf-8")
    return folder


def invented(folder: Path) -> Path:
    """Write files of invented items, in the schemas of the real ones."""
    labels = ("entailment", "neutral", "contradiction")
    rows: dict[str, Callable[[str, int], str]] = {
        "xcopa": lambda language, number: json.dumps(
            {
                "premise": f"{number + 2} {language} rain fell.",
                "choice1": f"The street was wet {number}.",
                "choice2": "A cat slept.",
                "question": ("cause", "effect")[number % 2],
                "label": number % 2,
                "idx": number,
                "changed": False,
            }
        ),
        "mgsm": lambda language, number: f'"{language}" has {number + 2} pears and eats one. How many?\t{number + 1}',
        "xnli": lambda language, number: f'"It rains in {language} {number // 3}.\tIt is wet.\t{labels[number % 3]}',
    }
    for kind, words in WORDS.items():
        for language in words:
            lines = [rows[kind](language, number) for number in range(6)]
            header = ["premise\thypothesis\tlabel"] if kind == "xnli" else []
            (folder / FILES[kind].format(language)).write_text("\n".join([*header, *lines]) + "\n", "utf-8")
    return folder


def assert_equal_answers(ours: Any, theirs: Any, folder: Path, names: Iterable[str], limit: int) -> dict[str, Any]:
    """The harness is answered alike by two models: likelihoods within 1e-4, the same texts and the same scores.

    Args:
        ours: A ``HarnessModel``.
        theirs: The harness' own model of the same checkpoint.
        folder: Folder of the tasks.
        names: The tasks.
        limit: Documents of each.

    Returns:
        The scores of each task.
    """
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    options: Any = {"tasks": list(names), "task_manager": manager, "limit": limit, "bootstrap_iters": 0}
    actual, expected = (simple_evaluate(model=model, **options) for model in (ours, theirs))
    assert actual is not None and expected is not None  # noqa: PT018 (for the type checker)
    for name in names:
        check_samples(actual["samples"][name], expected["samples"][name])
    assert actual["results"] == expected["results"]
    return actual["results"]


def check_samples(actual: Iterable[dict], expected: Iterable[dict]) -> None:
    """Check that the harness sent two models the same requests and had the same answers."""
    for sample, other in zip(actual, expected, strict=True):
        assert sample["arguments"] == other["arguments"]
        for (response,), (reference,) in zip(sample["resps"], other["resps"], strict=True):
            if isinstance(response, str):
                assert response == reference
            else:
                np.testing.assert_allclose(np.float64(response), np.float64(reference), atol=1e-4)
