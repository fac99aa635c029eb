"""Tokenizers of the families that users load, in small: their class, special tokens, stop tokens and chat template."""

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    CohereTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

import langneurons as ln

MERGES = 40
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_MISTRAL = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }}[/INST]{% endfor %}"
_COHERE = (
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ m['content'] }}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
_PHI_3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class FamilyTokenizer:
    """A family's tokenizer.

    Attributes:
        kind: The class of transformers.
        special: Special tokens by role; a role that is None has none.
        further: Special tokens without a role.
        writes_start: Whether texts begin with the beginning of sequence.
        ends: What ends a generation, as generation_config.json lists it.
        chat: The chat template; "" for a model that has none.
        options: What the class takes beside them.
    """

    kind: type
    special: dict[str, str | None]
    further: tuple[str, ...] = ()
    writes_start: bool = False
    ends: tuple[str, ...] = ()
    chat: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        """The tokenizer, with a vocabulary of its special tokens, the 256 bytes, and a few merges."""
        tokens = [token for token in dict.fromkeys([*self.special.values(), *self.further]) if token is not None]
        if self.kind in (LlamaTokenizer, GemmaTokenizer):
            made = self.kind(**_sentencepiece(tokens), **self.special, **self.options)
        elif self.kind is PreTrainedTokenizerFast:
            made = self.kind(tokenizer_object=self._byte_level(tokens), **self.special, **self.options)
        else:
            made = self.kind(**_byte_pairs(tokens), **self.special, **self.options)
        made.add_special_tokens({"additional_special_tokens": list(self.further)} if self.further else {})
        if self.chat:
            made.chat_template = self.chat
        return made

    def _byte_level(self, tokens: list[str]) -> Tokenizer:
        tokenizer = Tokenizer(models.BPE(**_byte_pairs(tokens)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        start = self.special.get("bos_token")
        if self.writes_start and start is not None:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{start} $A",
                pair=f"{start} $A {start} $B",
                special_tokens=[(start, tokenizer.token_to_id(start))],
            )
        else:
            tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        return tokenizer


@cache
def _trained_merges(separator: str) -> tuple[tuple[str, str], ...]:
    """The first merges of the phrasebook, at the level of bytes, or of characters where spaces are written so."""
    tokenizer = Tokenizer(models.BPE())
    if separator:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=separator)
        trainer = trainers.BpeTrainer(vocab_size=100 + MERGES, show_progress=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + MERGES, initial_alphabet=alphabet, show_progress=False)
    corpus = ln.load_corpus("babel", ["en"])
    tokenizer.train_from_iterator(list(corpus.texts("en")), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"][:MERGES]
    return tuple((left, right) for left, right in merges)


def _byte_pairs(tokens: list[str]) -> dict[str, Any]:
    merges = _trained_merges("")
    pieces = [*tokens, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    return {"vocab": _numbered(pieces), "merges": list(merges)}


def _sentencepiece(tokens: list[str]) -> dict[str, Any]:
    merges = _trained_merges("▁")
    letters = sorted({letter for merge in merges for letter in "".join(merge)})
    pieces = [*tokens, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(a + b for a, b in merges)]
    return {"vocab": _numbered(pieces), "merges": list(merges)}


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


_IM = ("<|im_start|>", "<|im_end|>")
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_GEMMA_SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
_GEMMA_TURNS = ("<start_of_turn>", "<end_of_turn>")
_LLAMA_3_SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
_LLAMA_3_FURTHER = ("<|end_of_text|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>")
_QWEN = {"unk_token": None, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_COHERE_SPECIAL = {
    "pad_token": "<PAD>",
    "unk_token": "<UNK>",
    "bos_token": "<BOS_TOKEN>",
    "eos_token": "<|END_OF_TURN_TOKEN|>",
    "cls_token": "<CLS>",
    "sep_token": "<SEP>",
    "mask_token": "<MASK_TOKEN>",
}
_COHERE_TURNS = ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")

_OF_LLAMA_3 = FamilyTokenizer(
    PreTrainedTokenizerFast,
    _LLAMA_3_SPECIAL,
    _LLAMA_3_FURTHER,
    writes_start=True,
    ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    chat=_LLAMA_3,
)
_OF_QWEN = FamilyTokenizer(Qwen2Tokenizer, _QWEN, ("<|im_start|>",), ends=("<|im_end|>", "<|endoftext|>"), chat=_CHATML)
_OF_GEMMA = FamilyTokenizer(
    GemmaTokenizer,
    _GEMMA_SPECIAL,
    _GEMMA_TURNS,
    writes_start=True,
    ends=("<eos>", "<end_of_turn>"),
    chat=_GEMMA,
    options={"add_bos_token": True},
)
_OF_MISTRAL = FamilyTokenizer(
    LlamaTokenizer,
    _LLAMA,
    ("[INST]", "[/INST]"),
    writes_start=True,
    ends=("</s>",),
    chat=_MISTRAL,
    options={"add_bos_token": True},
)
_OF_NEMO = FamilyTokenizer(
    PreTrainedTokenizerFast,
    {**_LLAMA, "pad_token": "<pad>"},
    ("[INST]", "[/INST]"),
    writes_start=True,
    ends=("</s>",),
    chat=_MISTRAL,
)
_OF_COHERE = FamilyTokenizer(
    CohereTokenizer,
    _COHERE_SPECIAL,
    _COHERE_TURNS,
    writes_start=True,
    ends=("<|END_OF_TURN_TOKEN|>",),
    chat=_COHERE,
    options={"add_bos_token": True},
)

TOKENIZERS: dict[str, FamilyTokenizer] = {
    "llama-3.1": _OF_LLAMA_3,
    "llama-3.2": _OF_LLAMA_3,
    "qwen2.5": _OF_QWEN,
    "qwen3": _OF_QWEN,
    "gemma-2": _OF_GEMMA,
    "gemma-3": _OF_GEMMA,
    "mistral": _OF_MISTRAL,
    "mistral-nemo": _OF_NEMO,
    "ministral": _OF_NEMO,
    "command-r": _OF_COHERE,
    "command-r7b": _OF_COHERE,
    "bloom": FamilyTokenizer(
        PreTrainedTokenizerFast,
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        ends=("</s>",),
    ),
    "eurollm": FamilyTokenizer(
        LlamaTokenizer,
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "</s>"},
        ("<|im_start|>",),
        writes_start=True,
        ends=("<|im_end|>",),
        chat=_CHATML,
        options={"add_bos_token": True},
    ),
    "smollm2": FamilyTokenizer(
        GPT2Tokenizer,
        {"unk_token": "<|endoftext|>", "bos_token": _IM[0], "eos_token": _IM[1], "pad_token": _IM[1]},
        ends=("<|im_end|>",),
        chat=_CHATML,
    ),
    "smollm3": FamilyTokenizer(
        PreTrainedTokenizerFast,
        {"bos_token": None, "eos_token": _IM[1], "pad_token": _IM[1]},
        ("<|im_start|>", "<|endoftext|>"),
        ends=("<|im_end|>",),
        chat=_CHATML,
    ),
    "phi-3": FamilyTokenizer(
        LlamaTokenizer,
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        ("<|assistant|>", "<|user|>", "<|end|>"),
        ends=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        chat=_PHI_3,
        options={"add_bos_token": False},
    ),
    "phi-4": FamilyTokenizer(
        GPT2Tokenizer,
        {"unk_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "eos_token": _IM[1], "pad_token": "<|dummy_85|>"},
        ("<|im_start|>",),
        ends=("<|endoftext|>", "<|im_end|>"),
        chat=_CHATML,
    ),
    "olmo-2": FamilyTokenizer(
        GPT2Tokenizer,
        {
            "unk_token": "<|endoftext|>",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|pad|>",
        },
        ends=("<|endoftext|>",),
    ),
}


def reloaded(name: str, folder: Any) -> Any:
    """A family's tokenizer, saved and read as users read it."""
    TOKENIZERS[name].make().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
