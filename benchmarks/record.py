"""Time recording side by side in one process: record(), the forward it rides on, and the paper's way.

Run with ``python benchmarks/record.py``. Every way is run in turn, round after round, on the same packed blocks;
medians are printed, each as a ratio to the row it is held against. Memory is the peak of a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from forward import llama, medians

import langneurons as ln
from langneurons.corpora import PackedCorpus, pack
from langneurons.identification import NeuronSet
from langneurons.models import ModelView, view
from langneurons.recording.recorder import Pass, Run

CONTEXT = 256
BATCH = 8
PERCENTILES = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)


def phrasebook(folder: Path, seen: ModelView, batches: int) -> PackedCorpus:
    """Pack repeated phrasebook text into at least ``batches`` batches of one language."""
    documents = list(ln.load_corpus("babel", ["en"]).documents("en"))
    repeats = 1 + batches * BATCH * CONTEXT // 4000
    return pack(ln.load_corpus({"en": documents * repeats}), seen.tokenizer, CONTEXT, folder)


class Ways:
    """What is compared, each on the same batches of one model."""

    def __init__(self, seen: ModelView, packed: PackedCorpus, batches: int):
        self.seen, self.batches = seen, batches
        self.blocks = [packed.blocks("en", range(i * BATCH, (i + 1) * BATCH)).tokens for i in range(batches)]
        self.recording = Pass(seen, packed, ("act",), BATCH, (0, 1), Run(Path("."), resumable=False), None)
        self.state = self.recording._start("en", range(batches * BATCH))

    def forward(self) -> None:
        """The model alone, without unembedding."""
        for tokens in self.blocks:
            self.seen.forward(tokens, logits=False)

    def record(self) -> None:
        """The same forwards, keeping all statistics."""
        with self.seen.native_attention():
            for i in range(self.batches):
                self.recording._add(self.state, "en", range(i * BATCH, (i + 1) * BATCH))

    def paper(self, one_call: bool = False) -> None:
        """Two passes: moments and seven quantiles a layer and batch, then the share above each of the quantiles."""
        with self._kept() as (layers, run):
            thresholds = [0] * self.seen.n_layers
            for tokens in self.blocks:
                run(tokens)
                for layer, z in enumerate(layers):
                    z.mean(0), z.std(0), z.abs().mean(0)
                    if one_call:
                        thresholds[layer] = torch.quantile(z, torch.tensor(PERCENTILES), dim=0)
                    else:
                        thresholds[layer] = torch.stack([torch.quantile(z, share, dim=0) for share in PERCENTILES])
            for tokens in self.blocks:
                run(tokens)
                for layer, z in enumerate(layers):
                    (z > 0).float().mean(0)
                    for threshold in thresholds[layer]:
                        (z > threshold).float().mean(0)

    @contextmanager
    def _kept(self) -> Iterator[Any]:
        layers: list[torch.Tensor] = [torch.empty(0)] * self.seen.n_layers

        def keep(layer: int, values: torch.Tensor) -> None:
            layers[layer] = values.flatten(0, 1)

        with self.seen.reading({"pre": keep}):
            yield layers, lambda tokens: self.seen.forward(tokens, logits=False)


def table(title: str, taken: dict[str, float], base: str, tokens: int) -> None:
    """Print seconds, tokens a second and the ratio to a base."""
    print(f"\n{title}")
    for name, seconds in taken.items():
        print(f"  {name:58}{seconds:8.2f} s{tokens / seconds:10,.0f} tokens/s{seconds / taken[base]:8.2f} x")


def compare_recording(name: str, model: Any, folder: Path, batches: int, rounds: int) -> None:
    """Record against forward on one model."""
    seen = view(model)
    ways = Ways(seen, phrasebook(folder / name, seen, batches), batches)
    taken = medians({"forward without unembedding": ways.forward, "record()": ways.record}, rounds)
    table(
        f"{name}, {BATCH} x {CONTEXT} tokens a batch", taken, "forward without unembedding", batches * BATCH * CONTEXT
    )


def compare_with_the_paper(name: str, model: Any, folder: Path) -> None:
    """One record() pass against the paper's two passes, one batch (its cost is the same for each)."""
    seen = view(model)
    ways = Ways(seen, phrasebook(folder / f"{name} paper", seen, 1), 1)
    taken = medians(
        {
            "record()": ways.record,
            "paper: two passes, seven torch.quantile calls": ways.paper,
            "the same, one vectorised torch.quantile call": lambda: ways.paper(one_call=True),
        },
        3,
    )
    table(f"{name}: against the published procedure", taken, "record()", BATCH * CONTEXT)


def compare_bridge(hf_model: Any, model: Any, folder: Path, batches: int, rounds: int) -> None:
    """The Bridge path against the plain Hugging Face forward with logits."""
    ways = Ways(view(model), phrasebook(folder / "bridge", view(model), batches), batches)

    def plain() -> None:
        for tokens in ways.blocks:
            hf_model(tokens, use_cache=False)

    taken = medians({"Hugging Face sdpa forward with logits": plain, "record() on the Bridge": ways.record}, rounds)
    base = "Hugging Face sdpa forward with logits"
    table("44M Llama on the Bridge", taken, base, batches * BATCH * CONTEXT)


def compare_memory() -> None:
    """Peak memory of a process that records a corpus, once and ten times as long."""
    peaks = [
        int(
            subprocess.run(
                [sys.executable, __file__, "--peak", str(n)], capture_output=True, text=True, check=True
            ).stdout
        )
        for n in (40_000, 400_000)
    ]
    small, large = (f"{peak / 1e3:,.0f} MB" for peak in peaks)
    print(f"\nPeak memory of recording babel: {small} at 1 x, {large} at 10 x the corpus")
    print(f"  ratio {peaks[1] / peaks[0]:.3f}")


def print_peak(tokens: int) -> None:
    """Record ``tokens`` tokens and print this process' peak memory meanwhile in kilobytes (Linux)."""
    model, phrasebook = ln.load_model("babel"), ln.load_corpus("babel", ["en"])
    documents = list(phrasebook.documents("en"))
    corpus = ln.load_corpus({"en": (text for _ in range(1 + tokens // 4000) for text in documents)})
    ln.record(model, phrasebook, context_length=CONTEXT, progress=False)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports and compilation
    ln.record(model, corpus, tokens_per_language=tokens, context_length=CONTEXT, progress=False)
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def compare_identification() -> None:
    """LAPE and set algebra at Llama-3.1-8B's shape, 16 languages."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((16,), 1_000_000)
    active = (torch.rand(16, 32, 14336, generator=generator) ** 3 * 1_000_000).long()
    stats = ln.ActivationStats.from_counts(active, tokens, [f"l{i}" for i in range(16)])
    start = time.perf_counter()
    neurons = ln.LAPE(top=0.01).identify(stats)
    identified = time.perf_counter() - start
    first, second = NeuronSet.of({}, shape=neurons.shape, site="act") if not neurons.languages else neurons, neurons
    one, other = first[neurons.languages[0]], second[neurons.languages[1]]
    start = time.perf_counter()
    for combined in (one & other, one | other, one - other, neurons & neurons, neurons | neurons):
        len(combined)
    algebra = time.perf_counter() - start
    print(f"\nLlama-3.1-8B's shape, 16 languages: LAPE {identified:.2f} s, five set operations {1000 * algebra:.1f} ms")


def main() -> None:
    """Run every comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--peak", type=int, help="record this many tokens and print the process' peak memory")
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak)
        return
    torch.manual_seed(0)
    babel = ln.load_model("babel")
    tokenizer = view(babel).tokenizer
    hf_model = llama(vocabulary=16384)
    large = ln.load_model("44M Llama", hf_model=hf_model, tokenizer=tokenizer, backend="hooked")
    bridge = ln.load_model("44M Llama", hf_model=llama(vocabulary=16384), tokenizer=tokenizer, backend="bridge")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        compare_recording("babel", babel, Path(folder), arguments.batches, arguments.rounds)
        compare_recording("44M Llama", large, Path(folder), arguments.batches, arguments.rounds)
        compare_bridge(hf_model, bridge, Path(folder), arguments.batches, arguments.rounds)
        compare_with_the_paper("44M Llama", large, Path(folder))
        compare_with_the_paper("44M Llama on the Bridge", bridge, Path(folder))
    compare_identification()
    compare_memory()


if __name__ == "__main__":
    main()
