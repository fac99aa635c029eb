"""Answers scored as Mondal et al. 2025 score XQuAD: on token ids, against one gold answer, short prompts only."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from langneurons.errors import TaskError
from langneurons.tasks.heads import Pair, joined_tokens


def token_id_scores(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    r"""Score generated answers by their token ids, as the published code does.

    What is wrong: the scores depend on the tokenizer and are not comparable with anybody's: nothing is normalised, only
    the first gold answer counts, and the end-of-sequence token is part of the answer, so that a right answer that goes
    on, or stops at a line break, is no exact match.

    Source: github.com/soumenkm/LangSpecificNeurons, code/xquad_eval.py, ``_calc_metrics_batch``, and code/dataset.py,
    where the gold answer is the text after a space and before the end-of-sequence token.

    Args:
        rows: Rows of ``XQuAD.measure``; the columns item, gold (text) and generated (token ids) are read.
        tokenizer: The model's tokenizer.

    Returns:
        One row per item: item, exact_match (equal lists) and f1 (of the multisets), 0 to 1.

    Raises:
        TaskError: If a column is missing, or the tokenizer has no end-of-sequence token.

    Example:
        >>> from langneurons.replication.answers import token_id_scores
        >>> ids = model.tokenizer(" green</s>", add_special_tokens=False)["input_ids"]
        >>> rows = pd.DataFrame({"item": ["a", "b"], "gold": ["green", "blue"], "generated": [ids, ids]})
        >>> token_id_scores(rows, model.tokenizer)["exact_match"].tolist()
        [1.0, 0.0]
    """
    for column in ("item", "gold", "generated"):
        if column not in rows.columns:
            raise TaskError(f"The rows have no column {column!r}, only {', '.join(map(str, rows.columns))}.")
    golds = [_gold_ids(text, tokenizer) for text in rows["gold"]]
    generated = [list(map(int, ids)) for ids in rows["generated"]]
    pairs = list(zip(generated, golds, strict=True))
    return pd.DataFrame(
        {
            "item": rows["item"].to_numpy(),
            "exact_match": [float(answer == gold) for answer, gold in pairs],
            "f1": [_f1(answer, gold) for answer, gold in pairs],
        }
    )


def kept_by_length(
    prompt_tokens: Sequence[int] | Int[np.ndarray, " item"], limit: int = 511
) -> Bool[np.ndarray, " item"]:
    """Tell which prompts the published filter keeps: those of fewer than 511 tokens.

    What is wrong: a tokenizer that needs more tokens for a language loses its long questions, so that models, and
    languages, are scored on different questions (173 of 238 Hindi ones on Llama-3.1-8B, 227 on Mistral-Nemo).

    Source: github.com/soumenkm/LangSpecificNeurons, code/dataset.py, ``XQADatasetHF``.

    Args:
        prompt_tokens: Tokens of each prompt, special tokens included.
        limit: Number of tokens from which on prompts are dropped.

    Returns:
        True where a prompt is kept.

    Example:
        >>> from langneurons.replication.answers import kept_by_length
        >>> kept_by_length([510, 511]).tolist()
        [True, False]
    """
    return np.asarray(prompt_tokens, dtype=np.int64) < limit


def pairs_kept_by_length(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, limit: int = 256
) -> Bool[np.ndarray, " item"]:
    """Tell which pairs of texts the published filter keeps: those of fewer than 256 tokens.

    What is wrong: what is long depends on the tokenizer and the language, so that languages and models are scored on
    different items.

    Source: github.com/soumenkm/LangSpecificNeurons, code/dataset.py, ``XNLIDatasetHF``.

    Args:
        pairs: (premise, hypothesis) each.
        tokenizer: The model's tokenizer.
        limit: Number of tokens from which on pairs are dropped; special tokens count.

    Returns:
        True where a pair is kept.

    Raises:
        TaskError: If the tokenizer has no end-of-sequence token.

    Example:
        >>> from langneurons.replication.answers import pairs_kept_by_length
        >>> pairs = [("It rains.", "It is wet."), ("It rains. " * 50, "It is wet.")]
        >>> pairs_kept_by_length(pairs, model.tokenizer, 32)
        array([ True, False])
    """
    return np.array([len(tokens) < limit for tokens in joined_tokens(pairs, tokenizer)], bool)


def _gold_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.eos_token is None:
        raise TaskError("The tokenizer has no end-of-sequence token, which the published answers end with.")
    return tokenizer(f" {text.strip()}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]


def _f1(answer: list[int], gold: list[int]) -> float:
    shared = (Counter(answer) & Counter(gold)).total()
    return 2 * shared / (len(answer) + len(gold)) if shared else 0.0
