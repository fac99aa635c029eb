"""A tiny Llama with neurons that read a script, a language's words in any script, or what is no word at all.

Hindi is written in six letters of Devanagari, English in six others. Every three of them are a token, so that shuffled
letters can be read; some are words, and those of Hindi also have a token in Latin letters. Kinds of planted
neurons, in every layer:

- ``script``: fires on every token in Devanagari, word or not;
- ``word``: fires on the words of Hindi in either script, and on nothing else;
- ``latin``: fires on the words of English.
"""

from itertools import product

import torch

import langneurons as ln
from tests.planted.network import LAYERS, SPECIAL, PlantedNetwork, directions, embedding, random_llama, set_gate
from tests.tiny_models import word_tokenizer

LETTERS = dict(zip("कमनलपत", "kmnlpt", strict=True))  # and how they are written in Latin letters
WORDS = 20
WIDTH = 60
DOCUMENTS, TEXTS, LENGTH = 24, 4, 12
SYLLABLES = ["".join(letters) for letters in product(LETTERS, repeat=3)]
HINDI = [SYLLABLES[place * 10 + 3] for place in range(WORDS)]
COMBINATIONS = ["".join(letters) for letters in product("bdfgao", repeat=3)]
ENGLISH = [COMBINATIONS[place * 10 + 3] for place in range(WORDS)]
PLACES = {"script": 3, "word": 7, "latin": 11}


def in_latin(text: str) -> str:
    """A text with every letter of Devanagari in a Latin one, as a transliterator does."""
    return "".join(LETTERS.get(letter, letter) for letter in text)


def planted_script(seed: int = 0) -> PlantedNetwork:
    """Build the model.

    Args:
        seed: Seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = directions(generator)
    bias, script, word, latin = axes[:4]
    vocabulary = dict.fromkeys(SPECIAL, torch.zeros_like(bias))
    vocabulary |= {name: bias + script + (word if name in HINDI else 0) for name in SYLLABLES}
    vocabulary |= {in_latin(name): bias + word for name in HINDI}
    vocabulary |= {name: bias + (latin if name in ENGLISH else 0) for name in COMBINATIONS}
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
