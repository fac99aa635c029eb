"""Tiny GGUF files with random weights and a tokenizer of single bytes and one pair."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers.pre_tokenizers import ByteLevel

LAYERS, HIDDEN, INNER, HEADS = 2, 64, 128, 4


def write_gguf(path: Path, tokenizer: bool = True, architecture: str = "llama", seed: int = 0) -> Path:
    """Write a Llama of two layers, its matrices in Q8_0, norms in float32.

    Args:
        path: The file.
        tokenizer: Whether it has one: of the 256 bytes, one pair of them, and four special tokens.
        architecture: What the file says it is.
        seed: Seed of the weights.
    """
    random = np.random.default_rng(seed)
    tokens = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "th", "<|endoftext|>"]
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([2, 3, 3] + [1] * 257 + [3])
        writer.add_token_merges(["t h"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    matrices = {"token_embd": (len(tokens), HIDDEN)}
    for layer in range(LAYERS):
        matrices |= {f"blk.{layer}.attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        matrices |= {f"blk.{layer}.ffn_{name}": (INNER, HIDDEN) for name in ("gate", "up")}
        matrices |= {f"blk.{layer}.ffn_down": (HIDDEN, INNER)}
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for name, shape in matrices.items():
        values = quantize(random.normal(0, 0.05, shape).astype(np.float32), GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
