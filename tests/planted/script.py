"""A tiny Llama with neurons that read a script, a language's words in any script, or what is no word at all.

Hindi is written in six letters of Devanagari. Every three of them are a token, so that shuffled letters can be read;
some are words, which also have a token in Latin letters. Kinds of planted neurons, in every layer:

- ``script``: fires on every token in Devanagari, word or not;
- ``word``: fires on the words of Hindi in either script, and on nothing else;
- ``latin``: fires on the words of English.
"""

from collections.abc import Callable
from itertools import product

import torch

import langneurons as ln
from tests.planted.network import LAYERS, SPECIAL, PlantedNetwork, directions, embedding, random_llama, set_gate
from tests.tiny_models import word_tokenizer

LETTERS = "कमनलपत"
WORDS = 20
WIDTH = 60
DOCUMENTS, TEXTS, LENGTH = 24, 4, 12
SYLLABLES = ["".join(letters) for letters in product(LETTERS, repeat=3)]
HINDI = [SYLLABLES[place * 10 + 3] for place in range(WORDS)]
ENGLISH = [f"{first}{second}o" for first, second in product("bdfg", "aeiou")]
PLACES = {"script": 3, "word": 7, "latin": 11}


def planted_script(romanise: Callable[[str], str], seed: int = 0) -> PlantedNetwork:
    """Build the model.

    Args:
        romanise: From a word in Devanagari to Latin letters.
        seed: Seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = directions(generator)
    bias, script, word, latin = axes[:4]
    vocabulary = dict.fromkeys(SPECIAL, torch.zeros_like(bias))
    vocabulary |= {name: bias + script + (word if name in HINDI else 0) for name in SYLLABLES}
    vocabulary |= {romanise(name): bias + word for name in HINDI} | dict.fromkeys(ENGLISH, bias + latin)
    network = random_llama(len(vocabulary), WIDTH, generator, sd=0.15, mlp=0.01, positions=256)
    with torch.no_grad():
        network.model.embed_tokens.weight.copy_(embedding(vocabulary, 0.05, generator))
        for layer in network.model.layers:
            norm = layer.post_attention_layernorm.weight
            weight = layer.mlp.gate_proj.weight * norm
            readable = axes[1:4]  # what is planted is read by planted neurons only
            layer.mlp.gate_proj.weight.copy_((weight - weight @ readable.T @ readable) / norm)
            for name, axis in (("script", script), ("word", word), ("latin", latin)):
                set_gate(layer, PLACES[name], axis - 0.5 * bias)
    return PlantedNetwork(network, word_tokenizer(vocabulary))


def planted_text(seed: int = 0) -> ln.Corpus:
    """Documents in Hindi and English, whose texts have ids that both share."""
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for language, words in (("en", ENGLISH), ("hi", HINDI)):
        rows[language] = [
            {
                "text": " ".join(words[int(place)] for place in torch.randint(WORDS, (LENGTH,), generator=generator)),
                "id": f"{document}-{text}",
                "document": f"document {document}",
            }
            for document in range(DOCUMENTS)
            for text in range(TEXTS)
        ]
    return ln.load_corpus(rows)


def planted(name: str) -> set[tuple[int, int]]:
    """The neurons of one kind."""
    return {(layer, PLACES[name]) for layer in range(LAYERS)}
