"""Tiny checkpoints and local files of exactly the hub's schemas, and a study made small enough to run on them."""

import random
import tomllib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Sequence, Value
from transformers import AutoTokenizer

from langneurons.study.config import parse_config
from langneurons.study.tables import StudyConfig
from tests.tiny_models import save_tiny

STUDIES = Path(__file__).parents[2] / "studies"
WIKIPEDIA = Features({name: Value("string") for name in ("id", "url", "title", "text")})
LABELS = ["entailment", "neutral", "contradiction"]
XNLI = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=LABELS)})
ANSWERS = {"text": Sequence(Value("string")), "answer_start": Sequence(Value("int32"))}
XQUAD = Features({**{name: Value("string") for name in ("id", "context", "question")}, "answers": ANSWERS})


def save_checkpoints(folder: Path) -> None:
    """A Llama and a Mistral of random weights, with babel's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(str(files("langneurons.babel")))
    for name in ("llama", "mistral"):
        sizes = {"intermediate_size": 240, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        save_tiny(folder / name, name, tokenizer=False, pad_token_id=tokenizer.pad_token_id, **sizes, **special)
        tokenizer.save_pretrained(folder / name)


def save_data(folder: Path, languages: Iterable[str]) -> None:
    """Wikipedia, XNLI and XQuAD as the hub's parquet files have them."""
    for place, language in enumerate(languages):
        drawn = random.Random(place)
        # Few letters and words each, so that neurons of random weights tell languages apart, and every one gets some.
        letters = drawn.sample("abcdefghijklmnopqrstuvwxyz", 5)
        words = ["".join(drawn.choices(letters, k=drawn.randint(2, 5))) for _ in range(15)]

        def said(number: int, draw: random.Random = drawn, known: list[str] = words) -> str:
            return " ".join(draw.choices(known, k=number))

        articles = [(str(n), f"https://{language}.wikipedia.org/wiki/{n}", said(2), said(20)) for n in range(100)]
        _write(folder / "wikipedia" / f"20231101.{language}" / "train-00000-of-00001.parquet", articles, WIKIPEDIA)
        for split in ("train", "validation", "test"):
            pairs = [(premise, said(4), label) for premise in (said(9) for _ in range(16)) for label in range(3)]
            _write(folder / "xnli" / language / f"{split}-00000-of-00001.parquet", pairs, XNLI)
        paragraphs = [(number, said(12)) for number in range(8)]
        questions = [
            (f"{n}-{q}", text, said(5) + "?", {"text": [word], "answer_start": [text.index(word)]})
            for n, text in paragraphs
            for q, word in enumerate(text.split()[:5])
        ]
        _write(folder / "xquad" / f"xquad.{language}" / "validation-00000-of-00001.parquet", questions, XQUAD)


def _write(path: Path, rows: list[tuple], features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[place] for row in rows] for place, name in enumerate(features)}
    Dataset.from_dict(columns, features=features).to_parquet(str(path))


# Of up to 21; what is trained in another language is left out.
KEPT = {"en", "hi", "vi", "mt", "cy"}


def shrunk(name: str, folder: Path) -> StudyConfig:
    """A study of the project with only its sources, its languages and its sizes changed."""
    content = _without(tomllib.loads((STUDIES / f"{name}.toml").read_text("utf-8")), languages_of(name) - KEPT)
    for model in content["models"].values():
        family = "mistral" if "istral" in model["name"] else "llama"
        model.update(name=str(folder / family), dtype="float32")
    content["text"].update(
        source=str(folder / "wikipedia"), text_column="text", heldout=0.3, heldout_tokens=200, heldout_context=32
    )
    content["recording"].update(tokens_per_language=400, context_length=32)
    content["run"] = {"batch_size": 16}
    for part in content["methods"].values():
        # Of 480 neurons, of which every language needs some.
        part.update({share: min(0.4, 10 * part[share]) for share in ("top", "share") if share in part})
    _reduced(content.get("published_statistics"), tokens=256)
    _reduced(content.get("validity"), tokens=200, splits=2)
    _reduced(content.get("survival"), tokens=300, altering={"parts": 3})
    _reduced(content.get("matrix"), controls=0)
    for part in content.get("finetuning", {}).values():
        _trained(part, folder, split="train[:25%]" if part["kind"] == "xnli" else "validation[:80%]")
    if name == "smollm2-more":  # tasks of the harness in a study: tests/tasks/test_harness.py
        content["tasks"] = {name: part for name, part in content["tasks"].items() if part["kind"] != "harness"}
    for part in content.get("tasks", {}).values():
        small = {"items": 3, "controls": 0} | ({} if part["kind"] == "xnli" else {"max_new_tokens": 3})
        small |= {"prompt_tokens": 4, "min_new_tokens": 2} if part["kind"] == "generation" else _source(part, folder)
        small |= {"split": "validation[80%:]"} if part["kind"] == "xquad" else {}
        _reduced(part, **small)
    for part in content.get("protocols", {}).values():
        _reduced(part, head_items=6, positions=48)
    for part in content.get("transfer", {}).values():
        of_text = part.get("kind") == "text"
        _trained(part, folder, **({"train_tokens": 200} if of_text else {"test_items": 3}))
        part.setdefault("experiment", {}).update(seeds=2, rank=1)
    _reduced(content.get("factorial"), controls=0)
    _reduced(content.get("ablation"), controls=1)
    _reduced(content.get("sweep"), doses={"constants": [0]})
    if "polysemanticity" in content:
        content["polysemanticity"] |= {"controls": 1, "probing": {"position": "last", "permutations": 100}}
    _reduced(content.get("report"), profiles=1)
    content["testing"] = {"resamples": 200}
    if name == "sparse-subnetwork":  # whose languages are all trained alike
        content["transfer"] = {name: part for name, part in content["transfer"].items() if name.endswith("mt")}
    if name in ("paper-babel", "paper-mistral-nemo"):  # they ask of it what paper-llama-3.1-8b asks (tests/docs)
        del content["validity"]
    if name == "paper-mistral-nemo":
        del content["transfer"]
    if name == "language-arithmetics":  # whose two models are asked the same
        del content["models"]["Mistral-Nemo"]
    return parse_config(content, name)


def _without(content: Any, languages: set[str]) -> Any:
    """A copy in which no list has these languages, and no part one of them as its source."""
    if isinstance(content, dict):
        parts = {name: _without(part, languages) for name, part in content.items()}
        return {name: part for name, part in parts.items() if not _is_about(part, languages)}
    if isinstance(content, list):
        return [part for part in content if part not in languages]
    return content


def _is_about(part: Any, languages: set[str]) -> bool:
    return isinstance(part, dict) and part.get("experiment", {}).get("source") in languages


def _trained(part: dict[str, Any], folder: Path, **sizes: Any) -> None:
    part["training"].pop("epochs", None)
    part["training"].update(steps=2, batch_size=4)
    if "experiment" not in part:
        part.setdefault("adapter", {}).update(rank=1)
    _reduced(part, **sizes, **({} if part.get("kind") == "text" else _source(part, folder)))


def _source(part: dict[str, Any], folder: Path) -> dict[str, str]:
    if part.get("kind") == "confusion":
        return {"source": "babel", "prompting": {}}  # whose tokenizer has no chat template
    return {"source": str(folder / part.get("kind", "xnli"))}


def _reduced(part: dict[str, Any] | None, **sizes: Any) -> None:
    if part is not None:
        part.update(sizes)


def languages_of(name: str) -> set[str]:
    """Every language that a study speaks of."""
    content = tomllib.loads((STUDIES / f"{name}.toml").read_text("utf-8"))
    return {code for codes in content["sets"].values() for code in codes}
