"""A tiny Llama in which it is known what some neurons respond to, and a corpus that shows it, graded in difficulty.

Kinds of planted neurons, a few of each among random ones in every layer:

- ``exclusive``: fires on every token of one language;
- ``leaning``: fires on 60 % of one language's tokens and on 40 % of the others';
- ``pair``: fires on every token of Hindi and Urdu;
- ``token``: fires on one frequent word of one language (a token detector, no language neuron);
- ``topic``: fires on one topic's words in every language (documents are heterogeneous; no language neuron).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import langneurons as ln
from langneurons.models import view
from tests.planted.network import LAYERS, SPECIAL, PlantedNetwork, directions, embedding, random_llama, set_gate
from tests.tiny_models import word_tokenizer

LANGUAGES = ("en", "hi", "ur", "zh")
WORDS = 60
WIDTH = 160
BARS = (0.4, 0.5, 0.6)  # how far the direction must exceed the bias; one plant a kind and layer for each
FREQUENT = 0.12  # share of a language's tokens that are its one frequent word
TOPIC_SHARE = 0.6  # of the words in a document of the topic


@dataclass(frozen=True)
class PlantedModel(PlantedNetwork):
    """A model, a corpus, and what was planted.

    Attributes:
        documents: Texts per language.
        neurons: Per kind, the (layer, neuron) pairs and the language of each: "hi&ur" of a pair, "" of a topic.
    """

    documents: dict[str, list[str]]
    neurons: dict[str, dict[tuple[int, int], str]]

    def corpus(self) -> ln.Corpus:
        """The documents as a corpus."""
        return ln.load_corpus(self.documents)

    def of(self, language: str, kinds: Iterable[str] = ("exclusive", "leaning", "pair")) -> set[tuple[int, int]]:
        """The neurons that really belong to a language."""
        return {
            neuron for kind in kinds for neuron, owner in self.neurons[kind].items() if language in owner.split("&")
        }

    def exclusive(self, model: torch.nn.Module, languages: Iterable[str] = LANGUAGES) -> ln.NeuronSet:
        """The exclusive neurons of each language, as a set of the loaded model."""
        members = {language: self.of(language, ("exclusive",)) for language in languages}
        return ln.NeuronSet.of(members, (LAYERS, WIDTH), "act", view(model).fingerprint)


def planted_model(seed: int = 0, documents: int = 150, words: int = 40) -> PlantedModel:
    """Build the model and its corpus.

    Args:
        seed: Seed for weights and corpus.
        documents: Documents per language.
        words: Words per document.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = _named(directions(generator))
    vocabulary = dict.fromkeys(SPECIAL, torch.zeros_like(direction["bias"])) | _words(direction)
    vectors = embedding(vocabulary, 0.15, generator)
    network = random_llama(len(vocabulary), WIDTH, generator, sd=0.15, mlp=0.01, positions=256)
    with torch.no_grad():
        network.model.embed_tokens.weight.copy_(vectors)
    corpus = _corpus(documents, words, generator)
    return PlantedModel(network, word_tokenizer(vocabulary), corpus, _plant(network, direction, generator))


def _named(axes: Tensor) -> dict[str, Tensor]:
    direction = {"bias": axes[0], "topic": axes[1]}
    direction |= {language: axes[2 + i] for i, language in enumerate(LANGUAGES)}
    direction |= {f"leaning {language}": axes[10 + i] for i, language in enumerate(LANGUAGES)}
    return direction | {f"frequent {language}": axes[20 + i] for i, language in enumerate(LANGUAGES)}


def _words(direction: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each word's vector as a sum of directions: bias, language, leaning, frequent word, topic."""
    vectors = {}
    for language in LANGUAGES:
        for word in range(WORDS):
            vector = direction["bias"] + direction[language]
            for leaning in LANGUAGES:
                share = 0.6 if leaning == language else 0.4
                vector = vector + direction[f"leaning {leaning}"] * (1.0 if (word * 7 + 3) % 20 < 20 * share else -1.0)
            vector = vector + (direction[f"frequent {language}"] if word == 0 else 0)
            vectors[f"{language}{word}"] = vector + (direction["topic"] if word >= WORDS - 10 else 0)
    return vectors


@torch.no_grad()
def _plant(
    network: LlamaForCausalLM, direction: dict[str, Tensor], generator: torch.Generator
) -> dict[str, dict[tuple[int, int], str]]:
    bias = direction["bias"]
    gates: list[tuple[str, str, Tensor]] = []
    for bar in BARS:
        for language in LANGUAGES:
            gates.append(("exclusive", language, direction[language] - bar * bias))
            gates.append(("leaning", language, direction[f"leaning {language}"] - (bar - 0.5) * bias))
            gates.append(("token", language, direction[f"frequent {language}"] - bar * bias))
        gates.append(("pair", "hi&ur", direction["hi"] + direction["ur"] - bar * bias))
        gates.append(("topic", "", direction["topic"] - bar * bias))
    plants: dict[str, dict[tuple[int, int], str]] = {kind: {} for kind, _, _ in gates}
    for index, layer in enumerate(network.model.layers):
        places = torch.randperm(WIDTH, generator=generator)[: len(gates)].tolist()
        norm = layer.post_attention_layernorm.weight
        # Unplanted neurons cannot read what is planted, or some would be language neurons by chance.
        readable = torch.stack([axis for name, axis in direction.items() if name != "bias"])
        weight = layer.mlp.gate_proj.weight * norm
        layer.mlp.gate_proj.weight.copy_((weight - weight @ readable.T @ readable) / norm)
        for place, (kind, owner, gate) in zip(places, gates, strict=True):
            set_gate(layer, place, gate)
            plants[kind][index, place] = owner
    return plants


def _corpus(documents: int, words: int, generator: torch.Generator) -> dict[str, list[str]]:
    corpus = {}
    for language in LANGUAGES:
        texts = []
        for _ in range(documents):
            topical = float(torch.rand(1, generator=generator)) < 0.3
            numbers = torch.randint(1, WORDS - 10, (words,), generator=generator)
            chance = torch.rand(words, generator=generator)
            topic = torch.randint(WORDS - 10, WORDS, (words,), generator=generator)
            numbers = torch.where(topical & (chance > 1 - TOPIC_SHARE), topic, numbers)
            numbers = torch.where(chance < FREQUENT, 0, numbers)
            texts.append(" ".join(f"{language}{int(number)}" for number in numbers))
        corpus[language] = texts
    return corpus
