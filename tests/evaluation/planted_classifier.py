"""A tiny Llama that answers XNLI-like items with a known accuracy, in one language partly through known neurons.

The last word of a hypothesis is a cue for one label, wrong in a known share of the items. A direct cue carries its
label's direction. A routed cue, which only the damaged language has, carries another direction, from which planted MLP
neurons compute the label's; without them the model falls back to ``FALLBACK``. Both protocols read the same direction:
words for the labels by the unembedding, and ``head``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import langneurons as ln
from langneurons.tasks.heads import ClassificationHead
from langneurons.tasks.likelihood import LABELS, Template
from langneurons.tasks.xnli import XNLI

LANGUAGES, DAMAGED, FALLBACK = ("en", "hi", "zh"), "hi", "entailment"
LAYERS, WIDTH, HIDDEN, WORDS = 2, 64, 64, 30
LAYER, EACH = 1, 2  # where the planted neurons are, and how many a label
ANSWERS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


@dataclass(frozen=True)
class PlantedClassifier:
    """The model, and everything that is known of it.

    ``predictions[patched][language]`` is the label of every item, in order, without the patch and with it.
    """

    hf_model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    task: XNLI
    head: ClassificationHead
    neurons: ln.NeuronSet
    predictions: Mapping[bool, Mapping[str, list[str]]]

    @property
    def patch(self) -> ln.SetTo:
        """Silences the planted neurons."""
        return ln.SetTo(self.neurons[DAMAGED], 0.0)

    def model(self, backend: str = "auto") -> Any:
        return ln.load_model("planted", hf_model=self.hf_model, tokenizer=self.tokenizer, backend=backend)

    def right(self, language: str, patched: bool = False) -> int:
        """How many items are answered right."""
        gold = self.task.items[language]["label"]
        return sum(map(str.__eq__, self.predictions[patched][language], gold))


def planted_classifier(premises: int = 40, wrong: float = 0.2, routed: float = 0.5, seed: int = 0) -> PlantedClassifier:
    """Build the model and its items: three a premise, one of each label."""
    draw = np.random.default_rng(seed)
    count = premises * len(LABELS)
    gold = [LABELS[item % len(LABELS)] for item in range(count)]
    misled = set(draw.permutation(count)[: round(wrong * count)].tolist())
    through = set(draw.permutation(count)[: round(routed * count)].tolist())
    cues = [LABELS[(LABELS.index(label) + (item in misled)) % len(LABELS)] for item, label in enumerate(gold)]
    task = XNLI.load({name: _items(name, gold, cues, through) for name in LANGUAGES})
    template = Template("{premise} {hypothesis} {label}", ANSWERS)
    damaged = [FALLBACK if item in through else cue for item, cue in enumerate(cues)]
    hf_model, tokenizer, rows, planted = _model(seed)
    return PlantedClassifier(
        hf_model=hf_model,
        tokenizer=tokenizer,
        task=replace(task, templates=dict.fromkeys(LANGUAGES, (template,))),
        head=ClassificationHead(rows, torch.zeros(len(LABELS)), LABELS),
        neurons=ln.NeuronSet.of({DAMAGED: planted}, shape=(LAYERS, WIDTH), site="act"),
        predictions={
            False: dict.fromkeys(LANGUAGES, cues),
            True: {name: damaged if name == DAMAGED else cues for name in LANGUAGES},
        },
    )


def _items(language: str, gold: list[str], cues: list[str], through: set[int]) -> pd.DataFrame:
    rows = []
    for item, (label, cue) in enumerate(zip(gold, cues, strict=True)):
        premise = item // len(LABELS)
        kind = "routed" if language == DAMAGED and item in through else "direct"
        words = f"{language}{premise % WORDS} {language}{premise // WORDS} {language}{premise % 7}"
        rows.append((words, f"{language}{item % WORDS} {language}-{kind}-{cue}", label))
    return pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])


def _model(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Tensor, list[tuple[int, int]]]:
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator)).Q
    label = {name: axes[index] for index, name in enumerate(LABELS)}
    route = {name: axes[3 + index] for index, name in enumerate(LABELS)}
    vocabulary = {name: torch.zeros(HIDDEN) for name in (*SPECIAL, *ANSWERS.values())}
    for place, language in enumerate(LANGUAGES):
        own = axes[10] + axes[11 + place]
        vocabulary |= {f"{language}{word}": own for word in range(WORDS)}
        vocabulary |= {f"{language}-direct-{name}": own + 2 * label[name] for name in LABELS}
    vocabulary |= {f"{DAMAGED}-routed-{name}": axes[10] + route[name] + 0.5 * label[FALLBACK] for name in LABELS}
    model = _untrained(len(vocabulary), generator)
    noise = 0.02 * torch.randn(len(vocabulary), HIDDEN, generator=generator)
    rows = torch.stack(list(label.values())) / model.model.norm.weight.detach()
    answers = [list(vocabulary).index(word) for word in ANSWERS.values()]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.stack(list(vocabulary.values())) + noise)
        model.lm_head.weight[answers] = rows
        planted = _plant(model, label, route, generator)
    return model, _tokenizer(list(vocabulary)), rows, planted


def _plant(
    model: LlamaForCausalLM, label: dict[str, Tensor], route: dict[str, Tensor], generator: torch.Generator
) -> list[tuple[int, int]]:
    block = model.model.layers[LAYER]
    norm = block.post_attention_layernorm.weight
    places = torch.randperm(WIDTH, generator=generator)[: EACH * len(LABELS)].tolist()
    for place, name in zip(places, LABELS * EACH, strict=True):
        block.mlp.gate_proj.weight[place] = 2 * route[name] / norm
        block.mlp.up_proj.weight[place] = route[name] / norm
        block.mlp.down_proj.weight[:, place] = 0.08 * label[name]
    return [(LAYER, place) for place in places]


def _untrained(vocabulary: int, generator: torch.Generator) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(1 + 0.05 * torch.randn(weight.shape, generator=generator))
            if weight.ndim == 2:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        for layer in model.model.layers:
            # Attention and unplanted neurons write little: the cue at the last position decides.
            layer.self_attn.o_proj.weight.mul_(0.03)
            layer.mlp.down_proj.weight.mul_(0.03)
    return model


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
