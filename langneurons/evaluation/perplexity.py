"""How well a model predicts text in each language: perplexity, bits per byte, bits per parallel sentence."""

from typing import Unpack

import numpy as np
import pandas as pd
import torch

from langneurons.corpora import Corpus
from langneurons.errors import EffectError
from langneurons.evaluation.heldout_text import HeldoutText
from langneurons.evaluation.measuring import BATCH_SIZE, measure
from langneurons.settings import Run, RunOptions, with_options

COLUMNS = ["language", "nll", "perplexity", "bits_per_byte", "bits_per_item", "tokens", "bytes", "documents"]


def perplexity(
    model: torch.nn.Module, text: HeldoutText | Corpus, *, run: Run = Run(), **options: Unpack[RunOptions]
) -> pd.DataFrame:
    """Measure how well a model predicts text, per language, with whatever is attached to the model at this moment.

    Perplexity and bits per byte compare models and patches within one language. Across languages compare bits per item
    of parallel documents, or each language's change against its own baseline.

    Args:
        model: A model returned by ``load_model``.
        text: Held-out text; a corpus is packed by ``HeldoutText.of``.
        run: Where it runs and is kept, texts per forward pass (8 by default), and progress.
        options: Single fields of ``Run``, such as ``batch_size=16``.

    Returns:
        One row per language, as ``summarise`` gives it.

    Raises:
        CorpusError: If the corpus is empty or has too few tokens.
        ModelError: If the context is longer than the model's, or the model has no tokenizer.

    Example:
        >>> from langneurons.evaluation.perplexity import perplexity
        >>> phrases = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> text = ln.HeldoutText.of(model, phrases, each="document")
        >>> perplexity(model, text, progress=False).columns.tolist()
        ['language', 'nll', 'perplexity', 'bits_per_byte', 'bits_per_item', 'tokens', 'bytes', 'documents']
    """
    (run,) = with_options(options, run)
    text = HeldoutText.of(model, text)
    if run.out is None and run.executor is None:
        return summarise(text.score(model, run.batch_size or BATCH_SIZE, progress=bool(run.progress)))
    return summarise(measure(model, text, {(): []}, run)[()])


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Draw a table up from rows of loss.

    Args:
        rows: Rows that ``HeldoutText.score`` returned.

    Returns:
        One row per language: language, nll (nats per token), perplexity, bits_per_byte, tokens, bytes, documents; and
        bits_per_item, where each item is one whole document and every language has the same items: bits per parallel
        sentence if the documents are translations of one another.

    Raises:
        EffectError: If there are no rows.

    Example:
        >>> import pandas as pd
        >>> from langneurons.evaluation.perplexity import summarise
        >>> row = {"language": "en", "item": 0, "cluster": 0, "nll": 8.0, "tokens": 4, "bytes": 20}
        >>> summarise(pd.DataFrame([row])).loc[0, ["nll", "perplexity", "bits_per_byte"]].round(2).tolist()
        [2.0, 7.39, 0.58]
    """
    if not len(rows):
        raise EffectError("There are no rows to summarise.")
    sums = {"nats": ("nll", "sum"), "tokens": ("tokens", "sum"), "bytes": ("bytes", "sum")}
    table = rows.groupby("language", sort=False).agg(**sums, documents=("cluster", "nunique")).reset_index()
    bits = table["nats"] / np.log(2)
    table["nll"] = table["nats"] / table["tokens"]
    table["perplexity"] = np.exp(table["nll"])
    table["bits_per_byte"] = bits / table["bytes"]
    if aligned := _aligned(rows):
        table["bits_per_item"] = bits / table["documents"]
    return table.reindex(columns=[column for column in COLUMNS if aligned or column != "bits_per_item"])


def _aligned(rows: pd.DataFrame) -> bool:
    """Whether items are documents, the same ones in every language."""
    alone = bool((rows["item"] == rows["cluster"]).all())
    return alone and len({frozenset(items) for _, items in rows.groupby("language")["item"]}) == 1
