"""Time forwards side by side in one process: HookedTransformer from load_model and as TransformerLens loads it.

Run with ``python benchmarks/forward.py``. Every way is run in turn, round after round; medians are printed, and each
as a ratio to the row it is held against.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformer_lens import HookedTransformer
from transformers import LlamaConfig, LlamaForCausalLM

from langneurons.models import load_model, view
from langneurons.models.hooked import hooked_config

SHAPES = ((1, 64), (8, 256))
Way = Callable[[], object]


def llama(layers: int = 8, d_model: int = 512, d_mlp: int = 1536, vocabulary: int = 16000) -> LlamaForCausalLM:
    """Build a random Llama of about 40 million parameters."""
    config = LlamaConfig(
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=vocabulary,
        max_position_embeddings=1024,
        architectures=["LlamaForCausalLM"],
    )
    return LlamaForCausalLM(config).eval()


def as_transformer_lens_loads(model: Any, hf_model: LlamaForCausalLM) -> Any:
    """Copy a HookedTransformer's weights into a new one, laid out as TransformerLens lays them out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain = HookedTransformer(hooked_config(hf_model.config, torch.float32, "plain"))
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def medians(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Run every way in turn, round after round, and give each one's median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def ways_of(model: Any, plain: Any, hf_model: LlamaForCausalLM, tokens: torch.Tensor) -> dict[str, Way]:
    """List what is compared on one batch of tokens."""
    seen = view(model)
    hundredth = torch.arange(0, seen.width("act"), 100)
    neurons = {layer: hundredth for layer in range(seen.n_layers)}

    def patched(site: str) -> None:
        with seen.writing(site, neurons, lambda layer, current: torch.zeros_like(current)):
            seen.forward(tokens)

    return {
        "HookedTransformer as TransformerLens loads it": lambda: plain(tokens),
        "HookedTransformer as load_model returns it": lambda: model(tokens),
        "  without unembedding": lambda: seen.forward(tokens, logits=False),
        "  1 % of neurons set at act": lambda: patched("act"),
        "  1 % of neurons set at post": lambda: patched("post"),
        "Hugging Face, sdpa": lambda: hf_model(tokens, use_cache=False),
    }


def main() -> None:
    """Print one table a batch shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    hf_model = llama()
    model = load_model("benchmark", hf_model=hf_model, backend="hooked")
    plain = as_transformer_lens_loads(model, hf_model)
    with torch.no_grad():
        for batch, length in SHAPES:
            tokens = torch.randint(0, 16000, (batch, length))
            difference = float((model(tokens) - plain(tokens)).abs().max())
            taken = medians(ways_of(model, plain, hf_model, tokens), rounds if batch > 1 else 4 * rounds)
            as_loaded, ours, *_ = taken.values()
            print(f"\n{batch} x {length} tokens; logits differ by {difference:g}")
            print(f"{'':48}{'ms':>9}{'x TransformerLens':>20}{'x load_model':>15}")
            for name, seconds in taken.items():
                print(f"{name:48}{1000 * seconds:9.1f}{seconds / as_loaded:20.2f}{seconds / ours:15.2f}")


if __name__ == "__main__":
    main()
