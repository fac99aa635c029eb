"""A mixture of experts with planted routing: in layer 1 one expert for Hindi, one for a topic, one never chosen."""

from typing import Any

import torch

import langneurons as ln
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_tokenizer

LANGUAGES = ("en", "hi", "zh")
WORDS = {"en": range(4, 36), "hi": range(36, 68), "zh": range(68, 100)}
DEFAULT, NEVER, TOPIC, HINDI, EVERY = range(5)
LAYERS, EXPERTS = 2, 5
_CONSTANT, _HINDI, _TOPIC = range(3)  # coordinates of the embeddings


def of_topic(word: int) -> bool:
    """Whether a word belongs to the topic, which all languages speak of alike."""
    return word % 4 == 0


def planted_experts() -> Any:
    """A Mixtral with two experts of five for every token; attention and the experts of layer 0 write nothing."""
    model: Any = tiny_family("mixtral", num_local_experts=EXPERTS)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, :3] = torch.tensor([4.0, 0.0, 0.0])
        embedding[:, 3:] *= 0.5
        for language, words in WORDS.items():
            for word in words:
                embedding[word, _HINDI] = 4.0 * (language == "hi")
                embedding[word, _TOPIC] = 4.0 * of_topic(word)
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.fill_(1.0)
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.gate.weight[:, :3] = 0.0
        model.model.layers[0].mlp.experts.down_proj.zero_()
        router = model.model.layers[1].mlp.gate.weight
        router *= 0.1
        router[:, _CONSTANT] = torch.tensor([2.0, -8.0, -3.0, -3.0, 1.0])
        router[HINDI, _HINDI] = 8.0
        router[TOPIC, _TOPIC] = 8.0
    return model


def loaded() -> Any:
    """The planted model as langneurons loads it."""
    return ln.load_model("planted-experts", hf_model=planted_experts(), tokenizer=tiny_tokenizer())


def documents(count: int = 40, seed: int = 0) -> dict[str, list[str]]:
    """Texts of random words, a quarter of which are of the topic."""
    random = torch.Generator().manual_seed(seed)
    texts: dict[str, list[str]] = {}
    for language, words in WORDS.items():
        chosen = torch.randint(words.start, words.stop, (count, 24), generator=random)
        lengths = torch.randint(6, 25, (count,), generator=random).tolist()
        texts[language] = [
            " ".join(f"w{word}" for word in row[:length].tolist()) for row, length in zip(chosen, lengths, strict=True)
        ]
    return texts
