"""A tiny Llama that answers XNLI-like items with a known accuracy, in one language partly through known neurons.

The last word of a hypothesis is a cue for one label, wrong in a known share of the items. A direct cue carries its
label's direction. A routed cue, which only the damaged language has, carries another direction, from which planted MLP
neurons compute the label's; without them the model falls back to ``FALLBACK``. Both protocols read the same direction:
words for the labels by the unembedding, and ``head``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import langneurons as ln
from langneurons.tasks.heads import ClassificationHead
from langneurons.tasks.likelihood import LABELS, Template
from langneurons.tasks.xnli import XNLI
from tests.planted.network import HIDDEN, LAYERS, SPECIAL, PlantedNetwork, directions, embedding, random_llama, set_gate
from tests.tiny_models import word_tokenizer

LANGUAGES, DAMAGED, FALLBACK = ("en", "hi", "zh"), "hi", "entailment"
WIDTH, WORDS = 64, 30
LAYER, EACH = 1, 2  # where the planted neurons are, and how many a label
ANSWERS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}


@dataclass(frozen=True)
class PlantedClassifier(PlantedNetwork):
    """The model, and everything that is known of it.

    Attributes:
        task: The items, answered by the likelihood of words.
        head: The classification head that answers the same.
        neurons: What routed cues need, of the damaged language.
        predictions: Patched or not -> language -> the label of every item, in order.
    """

    task: XNLI
    head: ClassificationHead
    neurons: ln.NeuronSet
    predictions: Mapping[bool, Mapping[str, list[str]]]

    @property
    def patch(self) -> ln.SetTo:
        """Silences the planted neurons."""
        return ln.SetTo(self.neurons[DAMAGED], 0.0)

    def right(self, language: str, patched: bool = False) -> int:
        """How many items are answered right."""
        gold = self.task.items[language]["label"]
        return sum(map(str.__eq__, self.predictions[patched][language], gold))


def planted_classifier(
    premises: int = 40, wrong: float = 0.2, routed: float = 0.5, seed: int = 0, each: int = 3, together: int = 1
) -> PlantedClassifier:
    """Build the model and its items.

    Args:
        premises: Premises.
        wrong: Share of items with a cue for a wrong label.
        routed: Share of items whose cue is routed in the damaged language.
        seed: Seed for weights and items.
        each: Items of a premise, equally many of each label.
        together: Items in a row that are routed all or none, such as those of a premise.
    """
    draw = np.random.default_rng(seed)
    count = premises * each
    gold = [LABELS[item % len(LABELS)] for item in range(count)]
    misled = set(draw.permutation(count)[: round(wrong * count)].tolist())
    groups = draw.permutation(count // together)
    chosen = set(groups[: round(routed * len(groups))].tolist())
    through = {item for item in range(count) if item // together in chosen}
    cues = [LABELS[(LABELS.index(label) + (item in misled)) % len(LABELS)] for item, label in enumerate(gold)]
    task = XNLI.load({name: _items(name, gold, cues, through, each) for name in LANGUAGES})
    template = Template("{premise} {hypothesis} {label}", ANSWERS)
    damaged = [FALLBACK if item in through else cue for item, cue in enumerate(cues)]
    hf_model, tokenizer, rows, units = _model(seed)
    return PlantedClassifier(
        hf_model=hf_model,
        tokenizer=tokenizer,
        task=replace(task, templates=dict.fromkeys(LANGUAGES, (template,))),
        head=ClassificationHead(rows, torch.zeros(len(LABELS)), LABELS),
        neurons=ln.NeuronSet.of({DAMAGED: units}, shape=(LAYERS, WIDTH), site="act"),
        predictions={
            False: dict.fromkeys(LANGUAGES, cues),
            True: {name: damaged if name == DAMAGED else cues for name in LANGUAGES},
        },
    )


def _items(language: str, gold: list[str], cues: list[str], through: set[int], each: int) -> pd.DataFrame:
    rows = []
    for item, (label, cue) in enumerate(zip(gold, cues, strict=True)):
        premise = item // each
        kind = "routed" if language == DAMAGED and item in through else "direct"
        words = f"{language}{premise % WORDS} {language}{premise // WORDS} {language}{premise % 7}"
        rows.append((words, f"{language}{item % WORDS} {language}-{kind}-{cue}", label))
    return pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])


@torch.no_grad()
def _model(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Tensor, list[tuple[int, int]]]:
    generator = torch.Generator().manual_seed(seed)
    axes = directions(generator)
    label = {name: axes[index] for index, name in enumerate(LABELS)}
    route = {name: axes[3 + index] for index, name in enumerate(LABELS)}
    vocabulary = {name: torch.zeros(HIDDEN) for name in (*SPECIAL, *ANSWERS.values())}
    for place, language in enumerate(LANGUAGES):
        own = axes[10] + axes[11 + place]
        vocabulary |= {f"{language}{word}": own for word in range(WORDS)}
        vocabulary |= {f"{language}-direct-{name}": own + 2 * label[name] for name in LABELS}
    vocabulary |= {f"{DAMAGED}-routed-{name}": axes[10] + route[name] + 0.5 * label[FALLBACK] for name in LABELS}
    network = random_llama(len(vocabulary), WIDTH, generator)
    network.model.embed_tokens.weight.copy_(embedding(vocabulary, 0.02, generator))
    rows = torch.stack(list(label.values())) / network.model.norm.weight
    network.lm_head.weight[[list(vocabulary).index(word) for word in ANSWERS.values()]] = rows
    return network, word_tokenizer(vocabulary), rows, _plant(network, label, route, generator)


@torch.no_grad()
def _plant(
    network: LlamaForCausalLM, label: dict[str, Tensor], route: dict[str, Tensor], generator: torch.Generator
) -> list[tuple[int, int]]:
    layer = network.model.layers[LAYER]
    places = torch.randperm(WIDTH, generator=generator)[: EACH * len(LABELS)].tolist()
    for place, name in zip(places, LABELS * EACH, strict=True):
        set_gate(layer, place, route[name])
        layer.mlp.up_proj.weight[place] = route[name] / layer.post_attention_layernorm.weight
        layer.mlp.down_proj.weight[:, place] = 0.08 * label[name]
    return [(LAYER, place) for place in places]
