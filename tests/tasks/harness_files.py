"""Tasks of the harness on disk, with invented documents: every way in which its configurations ask and score."""

import json
from pathlib import Path
from typing import Any

import yaml

WORDS = [f"w{number}" for number in range(10, 90)]


def words(start: int, count: int) -> str:
    """Some words of the tiny tokenizer."""
    return " ".join(WORDS[(start + step) % len(WORDS)] for step in range(count))


def questions(count: int = 6, offset: int = 0) -> list[dict[str, Any]]:
    """Documents with a passage that two questions share, choices, a right one, a text and its number."""
    return [
        {
            "idx": 100 + number,
            "passage": words(offset + 7 * (number // 2), 6),
            "question": words(offset + 3 * number, 2 + number % 3),
            "choices": [words(offset + 11 * number + step, 1 + (number + step) % 3) for step in range(3)],
            "label": number % 3,
            "targets": [words(offset + number, 1), words(offset + number + 1, 2)],
            "kept": number % 4 != 3,
        }
        for number in range(count)
    ]


def write_task(folder: Path, name: str, docs: list[dict[str, Any]] | None = None, **config: Any) -> str:
    """Write a task's documents and configuration; its name."""
    docs = questions() if docs is None else docs
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(json.dumps(doc, ensure_ascii=False) for doc in docs), "utf-8")
    content = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}}
    content |= {"test_split": "test", "metadata": {"version": 1}, **config}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    return name


ACCURACY = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
EXACT = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
CHOICE = {"output_type": "multiple_choice", "doc_to_target": "label", "metric_list": ACCURACY}
GENERATE = {"output_type": "generate_until", "doc_to_target": "{{targets[0]}}", "metric_list": EXACT}
ASK = "{{passage}} {{question}}"


def generation(*stop: str, tokens: int = 6, **options: Any) -> dict[str, Any]:
    """Keywords of a task's generation."""
    return {"until": list(stop), "max_gen_toks": tokens, "do_sample": False, **options}


# Name -> configuration, by type of task: what is asked, how it is scored.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "choices": CHOICE | {"doc_to_text": ASK, "doc_to_choice": "choices"},
    "letters": CHOICE | {"doc_to_text": ASK, "doc_to_choice": ["w10", "w11", "w12"]},
    "whole_texts": CHOICE
    | {"doc_to_text": "", "doc_to_choice": "{{[passage+' w60 '+question, passage+' w61 '+question, question]}}"},
    "choices_before": CHOICE | {"doc_to_text": "", "doc_to_choice": "choices", "target_delimiter": ""},
    "no_space": CHOICE | {"doc_to_text": ASK + " ", "doc_to_choice": "choices", "target_delimiter": ""},
    "by_length": CHOICE
    | {
        "doc_to_text": ASK,
        "doc_to_choice": "choices",
        "metric_list": [*ACCURACY, {**ACCURACY[0], "metric": "acc_norm"}],
    },
    "by_bytes": CHOICE
    | {"doc_to_text": ASK, "doc_to_choice": "choices", "metric_list": [{**ACCURACY[0], "metric": "acc_bytes"}]},
    "mutual_information": CHOICE
    | {"doc_to_text": ASK, "doc_to_choice": "choices", "metric_list": [{**ACCURACY[0], "metric": "acc_mutual_info"}]},
    "choice_exact": CHOICE | {"doc_to_text": ASK, "doc_to_choice": "choices", "metric_list": [*ACCURACY, EXACT[0]]},
    "described": CHOICE | {"doc_to_text": ASK, "doc_to_choice": "choices", "description": "w20 w21 "},
    "two_shots": CHOICE | {"doc_to_text": ASK, "doc_to_choice": "choices", "num_fewshot": 2, "fewshot_split": "test"},
    "first_shots": CHOICE
    | {
        "doc_to_text": ASK,
        "doc_to_choice": "choices",
        "num_fewshot": 1,
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n"},
    },
    "target_text": CHOICE | {"doc_to_text": ASK, "doc_to_choice": "choices", "doc_to_target": "{{choices[label]}}"},
    "several_targets": CHOICE | {"doc_to_text": ASK, "doc_to_choice": "choices", "doc_to_target": "{{[0, label]}}"},
    "several_texts": CHOICE
    | {
        "doc_to_text": "label",
        "doc_to_choice": "{{[passage, question, passage+' '+question]}}",
        "doc_to_target": "w33",
    },
    "prefix": CHOICE | {"doc_to_text": ASK, "doc_to_choice": "choices", "gen_prefix": "w44"},
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": ASK,
        "doc_to_target": "{{targets[1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            *ACCURACY,
        ],
    },
    "long_answer": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{passage}}",
        "doc_to_target": " ".join([ASK] * 4),
        "metric_list": ACCURACY,
    },
    "longer_than_context": CHOICE | {"doc_to_text": " ".join([ASK] * 20), "doc_to_choice": "choices"},
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": ASK,
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    },
    "rolling_windows": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": " ".join([ASK] * 25),
        "metric_list": [{"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    },
    "answer": GENERATE | {"doc_to_text": ASK, "generation_kwargs": generation()},
    "until": GENERATE | {"doc_to_text": ASK, "generation_kwargs": generation("w1", "w5")},
    "until_at_once": GENERATE | {"doc_to_text": ASK, "generation_kwargs": generation("w")},
    "one_string": GENERATE | {"doc_to_text": ASK, "generation_kwargs": {"until": "w7", "max_gen_toks": 5}},
    "temperature_0": GENERATE | {"doc_to_text": ASK, "generation_kwargs": generation("w3", temperature=0.0)},
    "answer_two_shots": GENERATE
    | {"doc_to_text": ASK, "generation_kwargs": generation(), "num_fewshot": 2, "fewshot_split": "test"},
    "cut_on_the_left": GENERATE | {"doc_to_text": " ".join([ASK] * 20), "generation_kwargs": generation(tokens=9)},
    "any_target": GENERATE
    | {"doc_to_text": ASK, "doc_to_target": "targets", "generation_kwargs": generation(tokens=2)},
    "filters": GENERATE
    | {
        "doc_to_text": ASK,
        "generation_kwargs": generation(),
        "filter_list": [
            {"name": "first", "filter": [{"function": "regex", "regex_pattern": r"(w\d)"}, {"function": "take_first"}]},
            {"name": "strict", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
        ],
    },
    "ignoring": GENERATE
    | {
        "doc_to_text": ASK,
        "generation_kwargs": generation(tokens=1),
        "metric_list": [{**EXACT[0], "regexes_to_ignore": [r"\d"], "ignore_case": True, "ignore_punctuation": True}],
    },
}
