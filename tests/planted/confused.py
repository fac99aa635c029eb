"""A tiny Llama that answers Hindi in Hindi, unless a word makes two known neurons push English.

After a word of a language comes another one of it: the unembedding reads the language's direction. One Hindi word also
carries a trigger, which the planted neurons read, and they write the English direction. Once in English, the model
stays there.
"""

from dataclasses import dataclass

import pandas as pd
import torch

import langneurons as ln
from tests.planted.network import HIDDEN, SPECIAL, PlantedNetwork, directions, embedding, random_llama, set_gate
from tests.tiny_models import word_tokenizer

HINDI = (
    *("यह", "वह", "मैं", "हम", "और", "घर", "पानी", "किताब", "बहुत", "अच्छा", "है"),
    *("में", "से", "को", "का", "की", "पर", "नहीं", "आज", "कल", "बच्चे", "स्कूल"),
)
ENGLISH = (
    *("the", "this", "that", "house", "water", "book", "very", "good", "with"),
    *("from", "they", "have", "children", "school", "today", "not", "we", "people"),
)
TRIGGER = "मौसम"
WIDTH = 64
PLANTED = [(0, 7), (1, 20)]
BOTH = (1, 33)  # writes what both languages' words share, so that it pushes neither


@dataclass(frozen=True)
class PlantedConfusion(PlantedNetwork):
    """The model and its prompts: those that end with the trigger are answered in English."""

    prompts: pd.DataFrame

    def task(self, max_new_tokens: int = 8) -> ln.tasks.Confusion:
        """The prompts as a task."""
        return ln.tasks.Confusion({"hi": self.prompts}, words=[], max_new_tokens=max_new_tokens)


@torch.no_grad()
def planted_confusion(confused: int = 8, others: int = 3, seed: int = 0) -> PlantedConfusion:
    """Build the model and its prompts, each a cluster."""
    generator = torch.Generator().manual_seed(seed)
    axes = directions(generator)
    bias, hindi, english, trigger = axes[:4]
    vocabulary = dict.fromkeys(SPECIAL, torch.zeros(HIDDEN))
    vocabulary |= {word: bias + hindi for word in HINDI} | {word: bias + english for word in ENGLISH}
    vocabulary[TRIGGER] = bias + hindi + trigger
    network = random_llama(len(vocabulary), WIDTH, generator, attention=0.01, mlp=0.01)
    network.model.embed_tokens.weight.copy_(embedding(vocabulary, 0.02, generator))
    read = {**dict.fromkeys(HINDI, hindi), **dict.fromkeys(ENGLISH, english)}
    network.lm_head.weight.mul_(0.1)
    for place, word in enumerate(vocabulary):
        if word in read:
            network.lm_head.weight[place] += 4 * read[word] / network.model.norm.weight
    network.lm_head.weight[[list(vocabulary).index(word) for word in (*SPECIAL, TRIGGER)]] = 0
    for (layer, place), gate, write in [
        (PLANTED[0], trigger, 0.15 * english),
        (PLANTED[1], trigger, 0.2 * english),
        (BOTH, trigger, 0.05 * (hindi + english)),
    ]:
        block = network.model.layers[layer]
        set_gate(block, place, gate)
        block.mlp.up_proj.weight[place] = 2 * gate / block.post_attention_layernorm.weight
        block.mlp.down_proj.weight[:, place] = 0.08 * write
    texts = [f"{HINDI[n]} {HINDI[n + 3]} {HINDI[(5 * n) % 20]}" for n in range(confused + others)]
    prompts = [f"{text} {TRIGGER}" if n < confused else text for n, text in enumerate(texts)]
    table = pd.DataFrame({"item": [str(n) for n in range(len(prompts))], "prompt": prompts})
    return PlantedConfusion(network, word_tokenizer(vocabulary), table.assign(cluster=table["item"]))
