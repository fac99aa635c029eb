"""A tiny Llama with neurons of which it is known what they carry, and labelled texts that show it.

Each text is a few words of one language, one of them a cue for the item's label (in one item of twelve, for the other
label), and, in half of the items whatever their label, a name that is the same in every language.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import langneurons as ln
from langneurons.analysis.texts import LabelledTexts

LANGUAGES, LABELS = ("en", "fr", "hi"), ("no", "yes")
SPECIAL, NAME = ("<pad>", "<s>", "</s>", "<unk>"), "Ada"
LAYERS, WIDTH, HIDDEN, WORDS = 2, 64, 64, 12
KINDS = ("language", "task", "both", "dead", "token")


@dataclass(frozen=True)
class PlantedCarriers:
    hf_model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    texts: LabelledTexts
    neurons: dict[str, list[tuple[int, int]]]

    def model(self, backend: str = "auto") -> Any:
        return ln.load_model("planted", hf_model=self.hf_model, tokenizer=self.tokenizer, backend=backend)

    def set_of(self, **labelled: str) -> ln.NeuronSet:
        """Kinds by label: ``hi="language both"``."""
        members = {
            label: [one for kind in kinds.split() for one in self.neurons[kind]] for label, kinds in labelled.items()
        }
        return ln.NeuronSet.of(members, shape=(LAYERS, WIDTH), site="act")


def planted_carriers(clusters: int = 24, seed: int = 0) -> PlantedCarriers:
    """Build the model, and two items a cluster."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator)).Q
    bias, name = axes[0], axes[1]
    language = {one: axes[2 + place] for place, one in enumerate(LANGUAGES)}
    label = {one: axes[10 + place] for place, one in enumerate(LABELS)}
    vocabulary = {word: torch.zeros(HIDDEN) for word in SPECIAL} | {NAME: bias + name}
    for one, own in language.items():
        vocabulary |= {f"{one}{word}": bias + own for word in range(WORDS)}
        vocabulary |= {f"{one}-{cue}": bias + own + cued for cue, cued in label.items()}
    noise = 0.02 * torch.randn(len(vocabulary), HIDDEN, generator=generator)
    model = _untrained(len(vocabulary), generator)
    gates = {
        "language": language["hi"] - 0.5 * bias,
        "task": label["yes"] - 0.3 * bias,
        "both": language["hi"] + 3 * label["yes"] - 0.5 * bias,
        "dead": torch.zeros(HIDDEN),
        "token": name - 0.5 * bias,
    }
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.stack(list(vocabulary.values())) + noise)
        neurons = _plant(model, gates)
    return PlantedCarriers(model, _tokenizer(list(vocabulary)), _texts(clusters, seed), neurons)


def _plant(model: LlamaForCausalLM, gates: dict[str, Tensor]) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {kind: [] for kind in gates}
    for layer, block in enumerate(model.model.layers):
        for place, (kind, gate) in enumerate(gates.items()):
            block.mlp.gate_proj.weight[3 + place] = 2 * gate / block.post_attention_layernorm.weight
            found[kind].append((layer, 3 + place))
    return found


def _texts(clusters: int, seed: int) -> LabelledTexts:
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
    return LabelledTexts.parallel(texts, labels, [item // 2 for item in range(count)], "cues")


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
            # Attention and neurons write little: both layers read the words themselves.
            layer.self_attn.o_proj.weight.mul_(0.01)
            layer.mlp.down_proj.weight.mul_(0.01)
    return model


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
