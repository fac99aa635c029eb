"""Losses: perplexity() and perplexity_matrix() beside forwards of the same texts with the logits of every position."""

from collections.abc import Iterator
from typing import Any

import torch

import langneurons as ln
from benchmarks.llama import BACKENDS, loaded, of_processors, random_llama
from benchmarks.measuring import Settings, medians
from benchmarks.record import NARROW
from benchmarks.rows import Row
from langneurons.evaluation.measuring import perplexity
from langneurons.models import view

LANGUAGES = ("en", "hi")
BASE = "forwards of as many texts with logits"
NEURONS_PER_LAYER = 15  # 1 %


def phrases(model: Any, blocks: int, context: int) -> ln.HeldoutText:
    """Blocks of phrasebook text in two languages, one language's as many as the other's."""
    documents = {language: list(ln.load_corpus("babel", [language]).texts(language)) for language in LANGUAGES}
    repeats = 1 + blocks * context // 1000
    corpus = ln.load_corpus({language: texts * repeats for language, texts in documents.items()})
    return ln.HeldoutText.of(model, corpus, tokens_per_language=blocks * (context - 1), context_length=context)


def upper_neurons(model: Any) -> ln.NeuronSet:
    """Some neurons of every layer in the upper half of a model, by language."""
    layers = range(model.cfg.n_layers // 2, model.cfg.n_layers)
    shape = (model.cfg.n_layers, model.cfg.d_mlp)
    members = {
        language: [(layer, 2 * neuron + index) for layer in layers for neuron in range(NEURONS_PER_LAYER)]
        for index, language in enumerate(LANGUAGES)
    }
    return ln.NeuronSet.of(members, shape, "act")


def forwards(model: Any, text: ln.HeldoutText, batch: int) -> None:
    """Run a model on a text, with the logits of every position."""
    model_view = view(model)
    with torch.inference_mode(), model_view.native_attention():
        for language in text.languages:
            for _, blocks in text.batches(language, batch):
                model_view.forward(blocks.tokens)


def rows(settings: Settings) -> Iterator[Row]:
    """Compare on both backends of a model with many narrow layers and a large vocabulary."""
    for backend, name in BACKENDS.items():
        model = loaded(random_llama(of_processors(settings.tiny)[NARROW]), backend)
        yield from of_model(f"{NARROW}, {name}", model, settings)


def of_model(name: str, model: Any, settings: Settings) -> Iterator[Row]:
    """Compare on one model."""
    blocks, batch, context = (2, 2, 32) if settings.tiny else (8, 8, 256)
    text, neurons = phrases(model, blocks, context), upper_neurons(model)

    def matrix() -> None:
        ln.perplexity_matrix(model, text, neurons, controls=0, resamples=200, batch_size=batch, progress=False)

    ways = {
        BASE: lambda: forwards(model, text, batch),
        "perplexity()": lambda: perplexity(model, text, batch_size=batch, progress=False),
        "perplexity_matrix(), unpatched and patched twice": matrix,
    }
    taken = medians(ways, settings.rounds)
    base = taken.pop(BASE)
    for (way, seconds), passes in zip(taken.items(), (1, 1 + len(LANGUAGES)), strict=True):
        detail = f"{passes * text.positions / seconds:,.0f} tokens/s"
        yield Row(f"{way}, {name}, {batch} x {context}", BASE, seconds / base / passes, detail=detail)
