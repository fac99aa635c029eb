"""A tiny Llama with neurons of which it is known what they carry, and labelled texts that show it.

Each text is a few words of one language, one of them a cue for the item's label (in one item of twelve, for the other
label), and, in half of the items whatever their label, a name that is the same in every language.
"""

from dataclasses import dataclass

import numpy as np
import torch

import langneurons as ln
from tests.planted.network import HIDDEN, LAYERS, SPECIAL, PlantedNetwork, directions, embedding, random_llama, set_gate
from tests.tiny_models import word_tokenizer

LANGUAGES, LABELS = ("en", "fr", "hi"), ("no", "yes")
NAME = "Ada"
WIDTH, WORDS = 64, 12
KINDS = ("language", "task", "both", "dead", "token")
FIRST = 3  # place of the first kind in either layer


@dataclass(frozen=True)
class PlantedCarriers(PlantedNetwork):
    """The model, its texts, and what was planted.

    Attributes:
        texts: Items in every language, with labels.
        neurons: The (layer, neuron) pairs of each of ``KINDS``, the lower layer's first.
    """

    texts: ln.analysis.LabelledTexts
    neurons: dict[str, list[tuple[int, int]]]

    def set_of(self, **labelled: str) -> ln.NeuronSet:
        """Kinds by label: ``hi="language both"``."""
        members = {label: sum((self.neurons[kind] for kind in kinds.split()), []) for label, kinds in labelled.items()}
        return ln.NeuronSet.of(members, shape=(LAYERS, WIDTH), site="act")


@torch.no_grad()
def planted_carriers(clusters: int = 24, seed: int = 0) -> PlantedCarriers:
    """Build the model, and two items a cluster."""
    generator = torch.Generator().manual_seed(seed)
    axes = directions(generator)
    bias, name = axes[0], axes[1]
    language = {code: axes[2 + place] for place, code in enumerate(LANGUAGES)}
    label = {cue: axes[10 + place] for place, cue in enumerate(LABELS)}
    vocabulary = {word: torch.zeros(HIDDEN) for word in SPECIAL} | {NAME: bias + name}
    for code, own in language.items():
        vocabulary |= {f"{code}{word}": bias + own for word in range(WORDS)}
        vocabulary |= {f"{code}-{cue}": bias + own + direction for cue, direction in label.items()}
    vectors = embedding(vocabulary, 0.02, generator)
    network = random_llama(len(vocabulary), WIDTH, generator, attention=0.01, mlp=0.01)
    network.model.embed_tokens.weight.copy_(vectors)
    gates = {
        "language": language["hi"] - 0.5 * bias,
        "task": label["yes"] - 0.3 * bias,
        "both": language["hi"] + 3 * label["yes"] - 0.5 * bias,
        "dead": torch.zeros(HIDDEN),
        "token": name - 0.5 * bias,
    }
    for layer in network.model.layers:
        for place, gate in enumerate(gates.values(), start=FIRST):
            set_gate(layer, place, gate)
    neurons = {kind: [(layer, place) for layer in range(LAYERS)] for place, kind in enumerate(gates, start=FIRST)}
    return PlantedCarriers(network, word_tokenizer(vocabulary), _texts(clusters, seed), neurons)


def _texts(clusters: int, seed: int) -> ln.analysis.LabelledTexts:
    draw = np.random.default_rng(seed)
    count = 2 * clusters
    labels = [LABELS[place] for place in draw.permutation(np.arange(count) % 2)]
    misled = draw.permutation(np.arange(count) % 12 == 0)
    cues = [LABELS[LABELS.index(label) ^ wrong] for label, wrong in zip(labels, misled.tolist(), strict=True)]
    named = draw.permutation(np.arange(count) % 2)
    words = draw.integers(WORDS, size=(count, 5))
    texts = {
        language: [
            " ".join([*(f"{language}{word}" for word in row), f"{language}-{cue}", NAME if name else f"{language}0"])
            for row, cue, name in zip(words, cues, named, strict=True)
        ]
        for language in LANGUAGES
    }
    return ln.analysis.LabelledTexts.parallel(texts, labels, [item // 2 for item in range(count)], "cues")
