"""How well a model predicts text in each language: perplexity, bits a byte, bits a parallel sentence."""

import numpy as np
import pandas as pd
import torch

from langneurons.corpora import Corpus
from langneurons.errors import EffectError
from langneurons.evaluation.heldout_text import HeldoutText, as_heldout_text

__all__ = ["HeldoutText", "perplexity", "summarise"]

COLUMNS = ["language", "nll", "perplexity", "bits_per_byte", "bits_per_item", "tokens", "bytes", "documents"]


def perplexity(
    model: torch.nn.Module,
    corpus: Corpus | HeldoutText,
    tokens_per_language: int | None = None,
    context_length: int | None = None,
    batch_size: int = 8,
    each: str = "block",
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how well a model predicts text, per language, with whatever is attached to the model at this moment.

    Perplexity and bits a byte compare models and patches within one language. Across languages compare bits an item of
    parallel documents, or each language's change against its own baseline.

    Args:
        model: From ``load_model``.
        corpus: Held-out text; a ``HeldoutText`` is scored as it is.
        tokens_per_language: Counted tokens of each language in blocks; None takes as many as the smallest has.
        context_length: Positions read at once, a multiple of 16; None is 512, or the model's context if shorter.
        batch_size: Blocks, or documents, a forward.
        each: "block" for running text, "document" to read every document alone, as parallel sentences should be.
        progress: Show a progress bar on standard error.

    Returns:
        One row a language, as ``summarise`` gives it.

    Raises:
        CorpusError: If the corpus is empty or has too few tokens, or an argument is out of range.
        ModelError: If the context is longer than the model's, or the model has no tokenizer.

    Example:
        >>> from langneurons.evaluation.perplexity import perplexity
        >>> phrases = ln.load_corpus("babel", ["en", "hi"]).take(20)
        >>> perplexity(model, phrases, each="document", progress=False).columns.tolist()
        ['language', 'nll', 'perplexity', 'bits_per_byte', 'bits_per_item', 'tokens', 'bytes', 'documents']
    """
    text = as_heldout_text(model, corpus, tokens_per_language, context_length, each)
    return summarise(text.score(model, batch_size, progress=progress))


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Draw a table up from rows of loss.

    Args:
        rows: From ``HeldoutText.score``.

    Returns:
        One row a language: language, nll (nats a token), perplexity, bits_per_byte, tokens, bytes, documents; and
        bits_per_item, where each item is one whole document and every language has the same items: bits a parallel
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
