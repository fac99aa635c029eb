"""A tiny Llama in which it is known what some neurons respond to, and a corpus that shows it, graded in difficulty.

Kinds of planted neurons, a few of each among random ones in every layer:

- ``exclusive``: fires on every token of one language;
- ``leaning``: fires on 60 % of one language's tokens and on 40 % of the others';
- ``pair``: fires on every token of Hindi and Urdu;
- ``token``: fires on one frequent word of one language (a token detector, no language neuron);
- ``topic``: fires on one topic's words in every language (documents are heterogeneous; no language neuron).
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LANGUAGES = ("en", "hi", "ur", "zh")
WORDS = 60
LAYERS, WIDTH, HIDDEN = 2, 160, 64
BARS = (0.4, 0.5, 0.6)  # how far the direction must exceed the bias; one plant a kind and layer for each
FREQUENT = 0.12  # share of a language's tokens that are its one frequent word
TOPIC_SHARE = 0.6  # of the words in a document of the topic


@dataclass(frozen=True)
class Planted:
    """A model, its tokenizer, a corpus, and what was planted: per kind, a language (or "") for each (layer, neuron)."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    documents: dict[str, list[str]]
    neurons: dict[str, dict[tuple[int, int], str]]

    def truth(self, language: str, kinds: tuple[str, ...] = ("exclusive", "leaning", "pair")) -> set[tuple[int, int]]:
        """The neurons that really belong to a language."""
        found = set()
        for kind in kinds:
            for neuron, owner in self.neurons[kind].items():
                if owner == language or (kind == "pair" and language in ("hi", "ur")):
                    found.add(neuron)
        return found


def planted(seed: int = 0, documents: int = 150, words: int = 40) -> Planted:
    """Build the model and its corpus."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"{language}{word}" for language in LANGUAGES for word in range(WORDS)]
    vocabulary = {name: index for index, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", *names])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    axes = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator)).Q
    features, direction = _features(axes, generator)
    noise = 0.15 * torch.randn(len(vocabulary), HIDDEN, generator=generator)
    model = _model(len(vocabulary), torch.cat([torch.zeros(4, HIDDEN), features]) + noise, generator)
    return Planted(model, wrapped, _corpus(documents, words, generator), _plant(model, direction, generator))


def _features(axes: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Each word's embedding as a sum of directions: bias, language, leaning, frequent word, topic."""
    direction = {"bias": axes[0], "topic": axes[1]}
    direction |= {language: axes[2 + i] for i, language in enumerate(LANGUAGES)}
    direction |= {f"leaning {language}": axes[10 + i] for i, language in enumerate(LANGUAGES)}
    direction |= {f"frequent {language}": axes[20 + i] for i, language in enumerate(LANGUAGES)}
    rows = []
    for language in LANGUAGES:
        for word in range(WORDS):
            row = direction["bias"] + direction[language]
            for leaning in LANGUAGES:
                share = 0.6 if leaning == language else 0.4
                row = row + direction[f"leaning {leaning}"] * (1.0 if (word * 7 + 3) % 20 < 20 * share else -1.0)
            row = row + (direction[f"frequent {language}"] if word == 0 else 0)
            row = row + (direction["topic"] if word >= WORDS - 10 else 0)
            rows.append(row)
    return torch.stack(rows), direction


def _model(vocabulary: int, embedding: Tensor, generator: torch.Generator) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
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
                weight.copy_(0.15 * torch.randn(weight.shape, generator=generator))
        for layer in model.model.layers:
            # Attention and MLP write little, so that every layer still reads the planted directions.
            layer.self_attn.o_proj.weight.mul_(0.03)
            layer.mlp.down_proj.weight.mul_(0.01)
        model.model.embed_tokens.weight.copy_(embedding)
    return model


@torch.no_grad()
def _plant(
    model: LlamaForCausalLM, direction: dict[str, Tensor], generator: torch.Generator
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
    planted: dict[str, dict[tuple[int, int], str]] = {kind: {} for kind, _, _ in gates}
    for index, layer in enumerate(model.model.layers):
        places = torch.randperm(WIDTH, generator=generator)[: len(gates)].tolist()
        norm = layer.post_attention_layernorm.weight
        # Unplanted neurons cannot read what is planted, or some would be language neurons by chance.
        readable = torch.stack([axis for name, axis in direction.items() if name != "bias"])
        gate = layer.mlp.gate_proj.weight * norm
        layer.mlp.gate_proj.weight.copy_((gate - gate @ readable.T @ readable) / norm)
        for place, (kind, owner, gate) in zip(places, gates, strict=True):
            layer.mlp.gate_proj.weight[place] = 2.0 * gate / norm
            planted[kind][index, place] = owner
    return planted


def _corpus(documents: int, words: int, generator: torch.Generator) -> dict[str, list[str]]:
    corpus = {}
    for language in LANGUAGES:
        texts = []
        for _ in range(documents):
            topical = float(torch.rand(1, generator=generator)) < 0.3
            drawn = torch.randint(1, WORDS - 10, (words,), generator=generator)
            chance = torch.rand(words, generator=generator)
            topic = torch.randint(WORDS - 10, WORDS, (words,), generator=generator)
            drawn = torch.where(topical & (chance > 1 - TOPIC_SHARE), topic, drawn)
            drawn = torch.where(chance < FREQUENT, 0, drawn)
            texts.append(" ".join(f"{language}{int(word)}" for word in drawn))
        corpus[language] = texts
    return corpus
